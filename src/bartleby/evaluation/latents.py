"""How well a denoiser denoises, timestep by timestep, on one fixed draw of noise.

All scores are per text over its real tokens, then averaged. Noise cosine: between predicted and true
noise, both flattened. Averages over timesteps are over an even grid, the midpoints of equal strata.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin

from bartleby.autoencoder import Autoencoder
from bartleby.denoisers.contract import at_real_tokens, device_of, padded_for
from bartleby.evaluation.text import token_accuracy
from bartleby.latents import Latents
from bartleby.objective import predicted_noise, predicted_x0, sample_noise
from bartleby.schedules import alpha_bar_at
from bartleby.tokenization import content_ids

TEXTS_PER_BATCH = 32
SEED = 0  # of the noise, where no other is asked for


@dataclass(frozen=True)
class DenoisingScores:
    """At one timestep, or averaged. Cosines -1 to 1; magnitudes are norms of predicted over true, 1 is right.

    token_accuracy: of the decoded x0 estimate, 0 to 1; None where nothing was decoded.
    cross_entropy: nats a token of a denoiser that predicts tokens; None for others.
    """

    noise_cosine: float
    x0_cosine: float
    x0_mse: float
    noise_magnitude: float
    x0_magnitude: float
    token_accuracy: float | None = None
    cross_entropy: float | None = None


def timestep_grid(steps: int, count: int) -> list[int]:
    """`count` timesteps of 0..steps-1, the midpoints of equal strata."""
    return [int((index + 0.5) * steps / count) for index in range(count)]


def noised(
    scheduler: SchedulerMixin, latents: Latents, timestep: int, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_t, noise) of clean latents; text i's noise depends on the seed, the timestep and i alone."""
    seeds = [(seed, timestep, index) for index in range(len(latents.mask))]
    noise = sample_noise(latents.mask, latents.values.shape[1], seeds=seeds)
    alpha_bar = alpha_bar_at(scheduler, torch.full((1,), timestep, device=noise.device))
    return alpha_bar.sqrt() * latents.values + (1 - alpha_bar).sqrt() * noise, noise


@torch.inference_mode()
def estimate_x0(
    denoiser: ModelMixin,
    scheduler: SchedulerMixin,
    xt: torch.Tensor,
    mask: torch.Tensor,
    timestep: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x0, noise) as the denoiser sees them in x_t [B, C, L], a batch at a time, where x_t is.

    Any L will do: the denoiser gets the padding that it needs.
    """
    x0, noise = torch.empty_like(xt), torch.empty_like(xt)
    device = device_of(denoiser, xt)
    for rows in torch.arange(len(xt)).split(TEXTS_PER_BATCH):
        noised_rows, real = padded_for(denoiser, xt[rows].to(device), mask[rows].to(device))
        timesteps = torch.full((len(rows),), timestep, device=device)
        prediction = denoiser(noised_rows, timesteps, real).sample.float()
        for estimates, convert in ((x0, predicted_x0), (noise, predicted_noise)):
            estimate = convert(scheduler, prediction, noised_rows, timesteps)
            estimate = at_real_tokens(estimate, real)[:, :, : xt.shape[-1]]
            estimates[rows] = estimate.to(xt.device)
    return x0, noise


def measure(
    denoiser: ModelMixin,
    scheduler: SchedulerMixin,
    latents: Latents,
    timesteps: list[int],
    *,
    seed: int = SEED,
) -> dict[int, DenoisingScores]:
    """Scores at each timestep; `scheduler` says what the denoiser predicts.  latents: clean, normalised."""
    results = {}
    for timestep in timesteps:
        xt, noise = noised(scheduler, latents, timestep, seed=seed)
        x0_hat, noise_hat = estimate_x0(denoiser, scheduler, xt, latents.mask, timestep)
        x0, counts = latents.values, latents.mask.sum(dim=1) * latents.values.shape[1]
        results[timestep] = DenoisingScores(
            noise_cosine=_cosine(noise_hat, noise),
            x0_cosine=_cosine(x0_hat, x0),
            x0_mse=float(((x0_hat - x0).square().sum(dim=(1, 2)) / counts).mean()),
            noise_magnitude=_magnitude(noise_hat, noise),
            x0_magnitude=_magnitude(x0_hat, x0),
        )
    return results


@torch.inference_mode()
def measure_cross_entropy(
    denoiser: ModelMixin,
    scheduler: SchedulerMixin,
    latents: Latents,
    token_ids: list[list[int]],
    timesteps: list[int],
) -> dict[int, float]:
    """Nats a token of a token-predicting denoiser at each timestep, nothing given, no self-conditioning."""
    entropies = {}
    for timestep in timesteps:
        xt, _ = noised(scheduler, latents, timestep, seed=SEED)
        total = 0.0
        for rows in torch.arange(len(xt)).split(TEXTS_PER_BATCH):
            inputs = (
                xt[rows].to(device_of(denoiser, xt)),
                timestep,
                latents.mask[rows].to(device_of(denoiser, xt)),
            )
            logits = denoiser(*inputs).logits
            tokens = torch.tensor([id for row in rows.tolist() for id in token_ids[row]])
            total += float(F.cross_entropy(logits, tokens.to(logits.device), reduction="sum"))
        entropies[timestep] = total / sum(len(ids) for ids in token_ids)
    return entropies


def measure_tokens(
    autoencoder: Autoencoder,
    denoiser: ModelMixin,
    scheduler: SchedulerMixin,
    latents: Latents,
    token_ids: list[list[int]],
    timesteps: list[int],
    *,
    seed: int = SEED,
) -> dict[int, float]:
    """Free-running token accuracy of decode(x0 estimate) at each timestep.

    autoencoder: with the statistics that normalised `latents`.  token_ids: what each text is.
    """
    accuracies = {}
    for timestep in timesteps:
        xt, _ = noised(scheduler, latents, timestep, seed=seed)
        x0_hat, _ = estimate_x0(denoiser, scheduler, xt, latents.mask, timestep)
        accuracies[timestep] = decoded_accuracy(
            autoencoder, Latents(x0_hat, latents.mask), token_ids
        )
    return accuracies


def decoded_accuracy(
    autoencoder: Autoencoder, latents: Latents, token_ids: list[list[int]]
) -> float:
    """Mean token accuracy of what the decoder, which is greedy, writes for each of `latents`."""
    tokenizer, total = autoencoder.tokenizer, 0.0
    for rows in torch.arange(len(token_ids)).split(TEXTS_PER_BATCH):
        part = Latents(latents.values[rows], latents.mask[rows])
        written = autoencoder.decode_tokens(part)
        for row, sequence in zip(rows.tolist(), written, strict=True):
            reference = content_ids(tokenizer, token_ids[row])
            total += token_accuracy(reference, content_ids(tokenizer, sequence))
    return total / len(token_ids)


def average(scores: dict[int, DenoisingScores]) -> DenoisingScores:
    """The mean of each score over the timesteps that have it."""
    means: dict[str, Any] = {}
    for field in dataclasses.fields(DenoisingScores):
        values = [getattr(score, field.name) for score in scores.values()]
        values = [value for value in values if value is not None]
        means[field.name] = sum(values) / len(values) if values else None
    return DenoisingScores(**means)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean())


def _magnitude(predicted: torch.Tensor, true: torch.Tensor) -> float:
    return float((predicted.flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).mean())
