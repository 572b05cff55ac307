"""`bartleby doctor RUN`: why a denoiser's run fails, in words, with the number behind each.

Every check compares the run with what its own latents allow, so there is nothing to configure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from bartleby.denoisers.contract import device_of, padded_for
from bartleby.evaluation.latents import (
    DenoisingScores,
    average,
    decoded_accuracy,
    estimate_x0,
    measure,
    noised,
    timestep_grid,
)
from bartleby.latent_data import LatentData
from bartleby.latents import Latents, LatentStatistics
from bartleby.messages import say
from bartleby.run_setup import Setup, reference_cosines, validation_sample
from bartleby.schedules import alpha_bar_at

GRID = 10  # timesteps of the latent scores
DECODED = 16  # passages
UNIT_VARIANCE = 0.1  # how far the mean deviation of latents may be from 1
SAME_OUTPUT = 0.01  # relative change between early and late timesteps below which time is ignored
SHRINKS = 0.8  # magnitude over cosine; 1 for the best estimate, whatever its accuracy
LOSES_TOKENS = 0.05  # token accuracy that decoding the estimate may cost against decoding the input
GAP = 0.05  # noise cosine on training passages over that on validation passages
PADDED = 0.97  # share of real tokens in the statistics below which padding is suspected


@dataclass(frozen=True)
class Finding:
    """One check.  value: what was measured; reference: what it is compared with; text: both in words."""

    name: str
    problem: bool
    value: float
    reference: float
    text: str


def diagnose(
    setup: Setup, denoiser: ModelMixin, *, say: Callable[[str], None] = say
) -> list[Finding]:
    """Every check of a run's denoiser, problems and passes alike. setup: as `open_run` gives it."""
    grid = timestep_grid(setup.scheduler.config.num_train_timesteps, GRID)
    latents, token_ids = validation_sample(setup.validation, 32)
    scores = average(measure(denoiser, setup.scheduler, latents, grid))
    findings = [
        *_against_baselines(setup, scores, latents, grid),
        _bottleneck(setup, denoiser, scores),
        _unit_variance(latents),
        _padding(setup.autoencoder.statistics, setup.training),
        _timestep(setup, denoiser, latents),
        _magnitude(setup, scores),
        _gap(setup, denoiser, scores, grid),
    ]
    say("decoding what the denoiser makes")
    sample = Latents(latents.values[:DECODED], latents.mask[:DECODED])
    return [*findings, _decoder(setup, denoiser, sample, token_ids[:DECODED])]


def _against_baselines(
    setup: Setup, scores: DenoisingScores, latents: Latents, grid: list[int]
) -> list[Finding]:
    findings = []
    references = reference_cosines(setup, latents, grid)
    for name, what in (("identity", "returning its input"), ("wiener", "a linear filter")):
        reference = references[name]
        below = scores.noise_cosine < reference
        text = (
            f"noise cosine {scores.noise_cosine:.3f}, {'below' if below else 'above'} the {reference:.3f} "
            f"of {what}{': it has learned less than nothing' if below else ''}"
        )
        findings.append(Finding(f"below {name}", below, scores.noise_cosine, reference, text))
    return findings


def _bottleneck(setup: Setup, denoiser: ModelMixin, scores: DenoisingScores) -> Finding:
    channels = setup.autoencoder.channels
    k = min(float(denoiser.bottleneck), channels)
    ceiling = math.sqrt(k / channels)
    target = setup.config.objective.target
    problem = target == "noise" and ceiling < 1
    text = f"predicts {target} through {k:g} of {channels} channels"
    if problem:
        text += (
            f": of white noise at most a cosine of {ceiling:.3f} passes. Predict x0 or v "
            "(objective.target), or widen the network"
        )
    return Finding("bottleneck", problem, ceiling, 1.0, text)


def _unit_variance(latents: Latents) -> Finding:
    deviation = float(latents.real.std(dim=0).mean())
    problem = abs(deviation - 1) > UNIT_VARIANCE
    text = f"latents have a standard deviation of {deviation:.2f}"
    if problem:
        text += (
            ": the schedule's noise is made for 1. Set autoencoder.statistics = 'data', which normalises "
            "each channel"
        )
    return Finding("variance", problem, deviation, 1.0, text)


def _padding(statistics: LatentStatistics | None, data: LatentData) -> Finding:
    """Statistics over padded positions, zeros there, look like real ones shrunk by the share of real tokens."""
    if statistics is None:
        return Finding(
            "padding", False, 1.0, 1.0, "no statistics are used, so no padding is in them"
        )
    mean, variance = data.moments.mean, data.moments.covariance.diagonal()
    share = float(statistics.mean.double() @ mean / (mean @ mean))
    squared = share * (variance + mean.square()) - share**2 * mean.square()
    explained = float((statistics.std.double().square() / squared.clamp_min(1e-12)).median())
    problem = 0 < share < PADDED and abs(explained - 1) < 0.1
    text = f"{min(share, 1):.0%} of what the latent statistics were taken from is real tokens"
    if problem:
        text += "; the rest is padding. Use autoencoder.statistics = 'data', which leaves it out"
    return Finding("padding", problem, share, 1.0, text)


@torch.inference_mode()
def _timestep(setup: Setup, denoiser: ModelMixin, latents: Latents) -> Finding:
    """The network's output on one input at an early and a late timestep."""
    steps = setup.scheduler.config.num_train_timesteps
    xt, _ = noised(setup.scheduler, latents, steps // 2, seed=0)
    device = device_of(denoiser, xt)
    xt, mask = padded_for(denoiser, xt.to(device), latents.mask.to(device))
    outputs = [denoiser(xt, timestep, mask).sample for timestep in (steps // 10, steps * 9 // 10)]
    change = float((outputs[0] - outputs[1]).norm() / outputs[0].norm().clamp_min(1e-12))
    problem = change < SAME_OUTPUT
    text = f"the output changes by {change:.1%} between an early and a late timestep"
    if problem:
        text += ": the network ignores the timestep. Its time embedding is not used, or not trained"
    return Finding("timestep", problem, change, SAME_OUTPUT, text)


def _magnitude(setup: Setup, scores: DenoisingScores) -> Finding:
    """For the mean of a posterior, the ratio of norms equals the cosine; less is shrinking beyond doubt."""
    if setup.config.objective.target == "noise":
        magnitude, cosine = scores.noise_magnitude, scores.noise_cosine
    else:
        magnitude, cosine = scores.x0_magnitude, scores.x0_cosine
    ratio = magnitude / max(cosine, 1e-6)
    problem = ratio < SHRINKS
    text = f"predictions have {magnitude:.2f} of the true norm at a cosine of {cosine:.2f}"
    if problem:
        text += f": they shrink to {ratio:.2f} of what their accuracy warrants. Train longer, or check the loss"
    return Finding("magnitude", problem, ratio, 1.0, text)


def _gap(setup: Setup, denoiser: ModelMixin, scores: DenoisingScores, grid: list[int]) -> Finding:
    latents, _ = validation_sample(setup.training, 32)
    seen = average(measure(denoiser, setup.scheduler, latents, grid)).noise_cosine
    gap = seen - scores.noise_cosine
    problem = gap > GAP
    text = f"noise cosine {seen:.3f} on training passages, {scores.noise_cosine:.3f} on validation passages"
    if problem:
        text += ": it has learned its training texts by heart. Use more text, or stop earlier"
    return Finding("gap", problem, gap, GAP, text)


def _decoder(
    setup: Setup, denoiser: ModelMixin, latents: Latents, token_ids: list[list[int]]
) -> Finding:
    """The largest loss, over three noises, of decoding the estimate instead of the noised latents."""
    worst = (-1.0, 0, 0.0, 0.0)
    steps = setup.scheduler.config.num_train_timesteps
    for timestep in (steps // 4, steps // 2, steps * 3 // 4):
        xt, _ = noised(setup.scheduler, latents, timestep, seed=0)
        x0, _ = estimate_x0(denoiser, setup.scheduler, xt, latents.mask, timestep)
        scale = alpha_bar_at(setup.scheduler, torch.tensor([timestep])).sqrt()
        alone = decoded_accuracy(setup.autoencoder, Latents(xt / scale, latents.mask), token_ids)
        read = decoded_accuracy(setup.autoencoder, Latents(x0, latents.mask), token_ids)
        worst = max(worst, (alone - read, timestep, alone, read))
    loss, timestep, alone, read = worst
    problem = loss > LOSES_TOKENS
    text = (
        f"at timestep {timestep} the decoder reads {read:.0%} of the tokens from the estimate, "
        f"{alone:.0%} from its input"
    )
    if problem:
        text += (
            ": it cannot read what the denoiser makes. Train the denoiser longer, or the decoder on "
            "its estimates"
        )
    return Finding("decoder", problem, read, alone, text)
