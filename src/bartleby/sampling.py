"""From noise to latents: one loop over any diffusers sampler, a generator of its steps.

Everything random is a function of a text's own seed, so that sample i does not depend on the others
in its batch, on their lengths, or on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, ModelMixin

from bartleby.autoencoder import DecodeSettings
from bartleby.denoisers import TokenTransformer
from bartleby.errors import UserError
from bartleby.objective import implied_prediction, predicted_x0, sample_noise
from bartleby.own_code import is_own, own_code
from bartleby.randomness import Seeds, extended
from bartleby.schedules import SAMPLERS, sampler

START, STEP = range(2)  # what noise is for, so that no two draws share a stream


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample.  sampler: one of SAMPLERS, or module:function of yours.  steps: from pure noise, at least 1.

    guidance: w of classifier-free guidance (Ho & Salimans 2022), 0 to 100, 1 is none; of texts of which part is given.
    temperature: 0.01 to 10, divides the token logits of a TokenTransformer before the expectation; below 1 the
    estimate commits to likely tokens sooner.  handover: share of the timesteps, 0 to below 1, at the end, that
    are left out: the decoder gets the estimate made there.  decoder_temperature, decoder_min_p: how the
    decoder draws its tokens (`DecodeSettings`); at temperature 0 it takes the likeliest.  candidates: how many are
    written of each text, of which the one stays that reads best (ranking.py).
    """

    sampler: str = "ddpm"
    steps: int = 50
    guidance: float = 1.0
    temperature: float = 1.0
    handover: float = 0.0
    decoder_temperature: float = 0.0
    decoder_min_p: float = 0.0
    candidates: int = 1

    def __post_init__(self):
        if self.sampler not in SAMPLERS and not is_own(self.sampler):
            raise UserError(
                f"unknown sampler '{self.sampler}' (known: {', '.join(SAMPLERS)}, or module:function of yours)"
            )
        for name in ("steps", "candidates"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value}; it must be a whole number, at least 1")
        if not 0 <= self.guidance <= 100:
            raise UserError(f"guidance is {self.guidance}; it must be between 0 and 100")
        if not 0.01 <= self.temperature <= 10:
            raise UserError(f"temperature is {self.temperature}; it must be between 0.01 and 10")
        if not 0 <= self.handover < 1:
            raise UserError(f"handover is {self.handover}; it must be at least 0 and below 1")
        self.decoding()  # raises for what is out of range

    def decoding(self, num_beams: int = 1) -> DecodeSettings:
        """How the decoder writes: drawing as set here, or beam search, which does not draw."""
        if num_beams > 1:
            return DecodeSettings(num_beams=num_beams)
        return DecodeSettings(temperature=self.decoder_temperature, min_p=self.decoder_min_p)


@dataclass(frozen=True)
class SamplingStep:
    """After one step of `steps`.  latents: x at the next, less noisy timestep.  x0: the estimate made here.

    Both are [B, C, L]; mask: [B, L], True at real tokens.  seeds: one a text, as `sample_latents` was given.
    """

    index: int
    steps: int
    timestep: int
    latents: torch.Tensor
    x0: torch.Tensor
    mask: torch.Tensor
    seeds: Seeds


def starting_noise(mask: torch.Tensor, channels: int, *, seeds: Seeds) -> torch.Tensor:
    """x_T, [B, C, L], of a mask [B, L]: what `sample_latents` starts from where nothing else is given."""
    return sample_noise(mask, channels, seeds=extended(seeds, START))


class Estimator:
    """The denoiser's estimate of x0 for texts of one batch, under their conditions; what a sampler calls.

    estimate(xt [B, C, L], timestep) -> x0 [B, C, L]. Each estimate conditions the next, where the denoiser takes one.
    For a denoiser that takes no tokens, x0 of what is given is given as well: with it a sampler makes x_t of exactly
    these latents under noise, which is what the denoiser sees beside what it writes (Song et al. 2021, section 5).
    """

    def __init__(
        self,
        denoiser: ModelMixin,
        noise_scheduler: DDPMScheduler,
        mask: torch.Tensor,
        settings: SamplingSettings,
        known: torch.Tensor | None,
        known_latents: torch.Tensor | None,
    ):
        self._denoiser, self._scheduler, self._settings = denoiser, noise_scheduler, settings
        self._mask, self._known = mask, known
        self._known_latents = known_latents
        self._previous: torch.Tensor | None = None

    def __call__(self, xt: torch.Tensor, timestep: int) -> torch.Tensor:
        return self.predict(xt, timestep)[1]

    def predict(self, xt: torch.Tensor, timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the denoiser predicts, as its scheduler wants it, x0)."""
        batch = torch.full((len(xt),), timestep, device=xt.device)
        prediction = _predict(
            self._denoiser, xt, batch, self._mask, self._previous, self._known, self._settings
        )
        x0 = predicted_x0(self._scheduler, prediction, xt, batch)
        if self._known is not None and self._known_latents is not None:
            given = (self._known >= 0)[:, None]
            implied = implied_prediction(self._scheduler, self._known_latents, xt, batch)
            prediction = torch.where(given, implied, prediction)
            x0 = torch.where(given, self._known_latents, x0)
        self._previous = x0
        return prediction, x0


@torch.inference_mode()
def sample_latents(
    denoiser: ModelMixin,
    noise_scheduler: DDPMScheduler,
    start: torch.Tensor,
    mask: torch.Tensor,
    settings: SamplingSettings,
    *,
    seeds: Seeds,
    known: torch.Tensor | None = None,
    known_latents: torch.Tensor | None = None,
    strength: float = 1.0,
) -> Iterator[SamplingStep]:
    """Denoises `start`, step by step; the last step's x0 is the result.

    start: [B, C, L], noise, or with strength (0 to 1) below 1 latents at the first of `timesteps_of`.  mask: [B, L],
    True at real tokens.  seeds: one a text.  known: [B, L], ids of tokens that are given, -1 elsewhere.
    known_latents: [B, C, L], theirs, which all denoisers need that do not take the tokens themselves
    (`takes_tokens`). Raises UserError for settings that the denoiser would ignore.
    """
    _check_options(denoiser, settings, known, known_latents)
    timesteps = timesteps_of(noise_scheduler, settings, strength)
    estimate = Estimator(denoiser, noise_scheduler, mask, settings, known, known_latents)

    def noise(timestep: int) -> torch.Tensor:
        return sample_noise(mask, start.shape[1], seeds=extended(seeds, STEP, timestep))

    if is_own(settings.sampler):
        alpha_bar = noise_scheduler.alphas_cumprod.to(start.device)
        steps = _own_steps(settings.sampler, estimate, start, timesteps, alpha_bar, noise)
    else:
        steps = _diffusers_steps(settings, noise_scheduler, estimate, start, timesteps, noise)
    for index, ((xt, x0), timestep) in enumerate(zip(steps, timesteps, strict=True)):
        yield SamplingStep(index, len(timesteps), timestep, xt, x0, mask, seeds)


def _diffusers_steps(
    settings: SamplingSettings,
    noise_scheduler: DDPMScheduler,
    estimate: Estimator,
    xt: torch.Tensor,
    timesteps: list[int],
    noise: Callable[[int], torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(x at the next timestep, x0) of each step of one of diffusers' samplers."""
    stepper = sampler(settings.sampler, noise_scheduler)
    stepper.set_timesteps(settings.steps, device=xt.device)
    if hasattr(stepper, "set_begin_index") and timesteps:
        # Multistep samplers count instead of looking timesteps up.
        stepper.set_begin_index(stepper.timesteps.tolist().index(timesteps[0]))
    chosen = SAMPLERS[settings.sampler]
    for timestep in timesteps:
        prediction, x0 = estimate.predict(xt, timestep)
        options = chosen.step_options(noise(timestep) if chosen.draws_noise else None)
        xt = stepper.step(prediction, timestep, xt, **options).prev_sample
        yield xt, x0


def _own_steps(
    name: str,
    estimate: Estimator,
    xt: torch.Tensor,
    timesteps: list[int],
    alpha_bar: torch.Tensor,
    noise: Callable[[int], torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same of a sampler of one's own: a generator function of these arguments, as in docs/extending.md."""
    steps, shape = own_code(name, "sampler")(estimate, xt, timesteps, alpha_bar, noise), xt.shape
    count = 0
    for step in steps:
        if not (isinstance(step, tuple) and [part.shape for part in step] == [shape, shape]):
            raise UserError(
                f"the sampler '{name}' must yield (x at the next timestep, x0), each {list(shape)}, a step"
            )
        count += 1
        if count > len(timesteps):
            break
        yield step
    if count != len(timesteps):
        more = "fewer" if count < len(timesteps) else "more"
        raise UserError(
            f"the sampler '{name}' makes {more} steps than the {len(timesteps)} timesteps"
        )


def takes_tokens(denoiser: ModelMixin) -> bool:
    """Whether given tokens are shown to the denoiser; any other is given their latents as its estimate of them."""
    return isinstance(denoiser, TokenTransformer)


def _check_options(
    denoiser: ModelMixin,
    settings: SamplingSettings,
    known: torch.Tensor | None,
    known_latents: torch.Tensor | None,
) -> None:
    """UserError for options that this denoiser would ignore, and for what it lacks."""
    if known_latents is not None and (known is None or takes_tokens(denoiser)):
        raise UserError("known_latents are for a denoiser that takes no tokens, beside known")
    if takes_tokens(denoiser):
        return
    kind = type(denoiser).__name__
    if settings.temperature != 1:
        raise UserError(
            f"temperature is {settings.temperature}, but {kind} predicts no tokens; leave it at 1"
        )
    if known is None:
        return
    if known_latents is None:
        raise UserError(
            f"{kind} takes no tokens; give it known_latents, the latents of what is given"
        )
    if settings.guidance != 1:
        raise UserError(
            f"guidance is {settings.guidance}, but {kind} has not learned with part of a text given; leave it at 1"
        )


def timesteps_of(
    noise_scheduler: DDPMScheduler, settings: SamplingSettings, strength: float = 1.0
) -> list[int]:
    """The timesteps visited, noisiest first: the last `strength` of them, down to the handover.

    At least one if strength > 0.
    """
    most = noise_scheduler.config.num_train_timesteps
    if settings.steps > most:
        raise UserError(f"steps is {settings.steps}; this model has {most} timesteps")
    # All take the same; one's own is given diffusers' trailing ones.
    spaced_by = "ddim" if is_own(settings.sampler) else settings.sampler
    stepper = sampler(spaced_by, noise_scheduler)
    stepper.set_timesteps(settings.steps)
    count = min(settings.steps, max(round(settings.steps * strength), int(strength > 0)))
    timesteps = [int(timestep) for timestep in stepper.timesteps[settings.steps - count :]]
    last = settings.handover * most
    return [timestep for timestep in timesteps if timestep >= last] or timesteps[:1]


def _predict(
    denoiser: ModelMixin,
    xt: torch.Tensor,
    timesteps: torch.Tensor,
    mask: torch.Tensor,
    previous: torch.Tensor | None,
    known: torch.Tensor | None,
    settings: SamplingSettings,
) -> torch.Tensor:
    """What the denoiser predicts at x_t, as the scheduler expects it: [B, C, L], float32."""
    conditions = {}
    if getattr(denoiser.config, "self_conditioning", False):
        conditions["previous"] = previous
    if not takes_tokens(denoiser):
        return denoiser(xt, timesteps, mask, **conditions).sample.float()
    output = denoiser(xt, timesteps, mask, known=known, **conditions)
    logits = output.logits
    if known is not None and settings.guidance != 1:
        free = denoiser(xt, timesteps, mask).logits  # an earlier estimate would carry the condition
        open_places = (known < 0)[mask][:, None]
        guided = free + settings.guidance * (logits - free)
        logits = torch.where(open_places, guided, logits)
    return output.expected_latents(logits / settings.temperature)
