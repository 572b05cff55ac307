"""Noise schedules as configurations of diffusers' schedulers, and the samplers derived from them.

A schedule is the share of signal left at each timestep, alpha_bar(t), falling from 1 to 0:
x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise. The DDPM scheduler's configuration is the one
that is saved with a model; samplers are made from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from bartleby.errors import UserError, first_line
from bartleby.own_code import is_own, own_code


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler used to step, and whether it draws noise at every step."""

    kind: type[SchedulerMixin]
    options: dict[str, Any]
    draws_noise: bool

    def step_options(self, noise: torch.Tensor | None) -> dict[str, Any]:
        """What `step` takes beside prediction, timestep and sample; the noise is ours, a draw for each text."""
        return {"variance_noise": noise} if self.draws_noise else {}


_ODE = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
SAMPLERS = {
    # Ancestral sampling (Ho et al. 2020) is SDE-DPM-Solver++ of order 1 (Lu et al., arXiv:2211.01095). diffusers'
    # own DDPM takes no noise from outside, and its DDIM with eta = 1 is NaN where alpha_bar is nearly 0.
    "ddpm": Sampler(DPMSolverMultistepScheduler, {**_SDE, "solver_order": 1}, draws_noise=True),
    # DDIM (Song et al. 2021) is DPM-Solver++ of order 1. diffusers' own goes on to the timestep num_train_timesteps //
    # steps below, which is not the next one where steps is no divisor: noise would be left that no timestep says.
    "ddim": Sampler(DPMSolverMultistepScheduler, {**_ODE, "solver_order": 1}, draws_noise=False),
    "dpm++": Sampler(DPMSolverMultistepScheduler, _ODE, draws_noise=False),
    "sde-dpm++": Sampler(DPMSolverMultistepScheduler, _SDE, draws_noise=True),
    "unipc": Sampler(UniPCMultistepScheduler, {}, draws_noise=False),
}
TARGETS = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}  # ours -> diffusers' names
SCHEDULES = ("cosine", "linear", "sqrt", "tan")
LARGEST_BETA = 0.999  # as Nichol & Dhariwal: the last step must not divide by zero


def noise_scheduler(
    schedule: str | Callable[[float], float] = "cosine",
    *,
    target: str = "x0",
    steps: int = 1000,
    d: float = 3.0,
) -> DDPMScheduler:
    """A DDPM scheduler for `schedule`, whose network predicts `target`: noise, x0 or v.

    cosine: Nichol & Dhariwal 2021, eq. 17. linear: Ho et al. 2020, beta from 1e-4 to 0.02. sqrt:
    Li et al. 2022 (Diffusion-LM), alpha_bar = 1 - sqrt(t + 1e-4). tan: TEncDM (Shabalin et al. 2024),
    alpha_bar = 1 / (1 + d^2 tan^2(pi t / 2)): d = 1 is the cosine, larger is noisier. Others ignore d. Or a function of
    yours, itself or as module:function: t in 0 to 1 -> alpha_bar, falling from nearly 1 to nearly 0.
    steps: how many timesteps, at least 1. Raises UserError for an unknown name or target, a number out of range, and
    a function that is no schedule.
    """
    if target not in TARGETS:
        raise UserError(f"unknown target '{target}' (known: {', '.join(TARGETS)})")
    if not (math.isfinite(d) and d > 0):
        raise UserError(f"schedule_d is {d}; it must be a positive number")
    if steps < 1:
        raise UserError(f"steps is {steps}; a schedule has at least 1")
    return DDPMScheduler(
        num_train_timesteps=steps,
        prediction_type=TARGETS[target],
        clip_sample=False,  # DDPM clamps x0 to [-1, 1] by default; latents are not pixels
        timestep_spacing="trailing",  # "leading" would start below full noise
        **_betas(schedule, steps, d),
    )


def _betas(schedule: str | Callable[[float], float], steps: int, d: float) -> dict[str, Any]:
    """The schedule as diffusers' schedulers take it."""
    if callable(schedule) or is_own(schedule):
        own = own_code(schedule, "objective.schedule") if isinstance(schedule, str) else schedule
        return {"trained_betas": betas_of(_checked(own), steps)}
    if schedule == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2"}
    if schedule == "linear":
        return {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    if schedule == "sqrt":
        return {"trained_betas": betas_of(lambda t: 1 - math.sqrt(t + 1e-4), steps)}
    if schedule == "tan":
        return {"trained_betas": betas_of(lambda t: tan_alpha_bar(t, d), steps)}
    raise UserError(
        f"unknown schedule '{schedule}' (known: {', '.join(SCHEDULES)}, or module:function of yours)"
    )


def _checked(alpha_bar: Callable[[float], float]) -> Callable[[float], float]:
    """A schedule of one's own, if it is one."""
    name = getattr(alpha_bar, "__name__", str(alpha_bar))
    try:
        levels = [float(alpha_bar(index / 100)) for index in range(101)]
    except Exception as error:  # whatever a function of yours may do
        raise UserError(f"the schedule '{name}' fails: {first_line(error)}") from None
    falls = all(after < before for before, after in itertools.pairwise(levels))
    if not (falls and levels[-1] >= -1e-6 and 0.9 < levels[0] <= 1 and levels[-1] < 0.05):
        raise UserError(
            f"the schedule '{name}' goes from {levels[0]:.3g} at t = 0 to {levels[-1]:.3g} at t = 1; alpha_bar must "
            "fall all the way from 1 (over 0.9) to 0 (under 0.05)"
        )
    return lambda t: float(alpha_bar(t))


def tan_alpha_bar(t: float, d: float) -> float:
    """alpha_bar of tan-d at t in [0, 1]; written with cosines, so that t = 1 gives 0 and not an overflow."""
    cosine, sine = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    return cosine**2 / (cosine**2 + d**2 * sine**2)


def betas_of(alpha_bar: Callable[[float], float], steps: int) -> list[float]:
    """Betas whose running product of 1 - beta follows `alpha_bar` at 1/steps, 2/steps, ..., 1."""
    levels = [1.0, *(max(0.0, alpha_bar(index / steps)) for index in range(1, steps + 1))]
    return [
        min(1 - after / before if before > 0 else LARGEST_BETA, LARGEST_BETA)
        for before, after in itertools.pairwise(levels)
    ]


def sampler(name: str, scheduler: DDPMScheduler) -> SchedulerMixin:
    """The sampler `name` for networks trained with `scheduler`; each is tested for x0, v and noise.

    Raises UserError for an unknown name.
    """
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler '{name}' (known: {', '.join(SAMPLERS)})")
    chosen = SAMPLERS[name]
    return chosen.kind.from_config(scheduler.config, timestep_spacing="trailing", **chosen.options)


def target_of(scheduler: SchedulerMixin) -> str:
    """What the scheduler's network predicts, in our words: noise, x0 or v."""
    names = {theirs: ours for ours, theirs in TARGETS.items()}
    return names[scheduler.config.prediction_type]


def alpha_bar_at(scheduler: SchedulerMixin, timesteps: torch.Tensor) -> torch.Tensor:
    """alpha_bar of each timestep as float32, shaped [B, 1, 1] to multiply latents."""
    return scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()[:, None, None]


def noise_deviations(scheduler: SchedulerMixin) -> torch.Tensor:
    """[T], float64: the deviation of the noise in x_t / sqrt(alpha_bar) at each timestep."""
    alpha_bar = scheduler.alphas_cumprod.double()
    return ((1 - alpha_bar) / alpha_bar.clamp_min(1e-12)).sqrt()
