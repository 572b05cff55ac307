"""Fitting a noise schedule to latents: at which noise do they stop saying which tokens they are?

Training time is spent where timesteps are. Where every token can still be told, or none, there is little
to learn, so the schedule should pass quickly through both (Dieleman et al. 2022, CDCD, section 3.4, warp
time by the entropy; Shabalin et al. 2024, TEncDM, choose d of tan-d by hand). Here d is chosen so that
what a single latent says of its token falls as evenly as can be over the timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bartleby.autoencoder import Autoencoder
from bartleby.denoisers.posteriors import TokenMixture
from bartleby.evaluation.latents import TEXTS_PER_BATCH, decoded_accuracy
from bartleby.latent_data import LatentData
from bartleby.latents import Latents
from bartleby.objective import sample_noise
from bartleby.schedules import SCHEDULES, noise_deviations, noise_scheduler
from bartleby.token_statistics import fit_mixture, token_statistics

DEVIATIONS = tuple(float(value) for value in np.geomspace(0.25, 64, 25))
DS = np.geomspace(0.5, 30, 400)  # of tan-d, tried one by one
LEARNABLE = (0.01, 0.99)  # information between these leaves something to learn


@dataclass(frozen=True)
class ReadAt:
    """At noise of `deviation` on latents of unit variance.

    information: 1 - H(token | its latent) / H(token), 0 to 1, by the token mixture.  decoder_accuracy:
    token accuracy of what BART's decoder writes from the noised latents themselves.
    """

    deviation: float
    information: float
    decoder_accuracy: float


@dataclass(frozen=True)
class FittedSchedule:
    """d: of tan-d.  half_read, half_known: deviations at which the decoder reads half, and at which half of the
    information is left.  learnable: schedule -> share of its timesteps where there is something to learn."""

    d: float
    half_read: float
    half_known: float
    learnable: dict[str, float]
    curve: list[ReadAt]


def measure_readability(
    autoencoder: Autoencoder,
    training: LatentData,
    latents: Latents,
    token_ids: list[list[int]],
    *,
    seed: int = 0,
    track: Callable[[Iterator[float]], Iterator[float]] = iter,
) -> list[ReadAt]:
    """What is left at each of `DEVIATIONS`.  latents: clean, normalised as `training`; token_ids: what they are."""
    statistics = token_statistics(training)
    mixture = TokenMixture(
        latents.values.shape[1], len(DEVIATIONS), len(statistics.counts), autoencoder.window
    )
    alpha_bar = torch.tensor([1 / (1 + deviation**2) for deviation in DEVIATIONS])
    fit_mixture(mixture, statistics, alpha_bar)
    tokens = torch.tensor([token for ids in token_ids for token in ids])
    prior_entropy = float(F.nll_loss(mixture.log_prior[None].expand(len(tokens), -1), tokens))
    noise = sample_noise(
        latents.mask, latents.values.shape[1], seeds=[(seed, row) for row in range(len(token_ids))]
    )
    curve = []
    for index, deviation in enumerate(track(iter(DEVIATIONS))):
        noised = latents.values + deviation * noise
        timesteps = torch.full((len(noised),), index)
        xt = noised * mixture.alpha_bar[index].sqrt()
        entropy = sum(
            float(
                F.cross_entropy(
                    mixture.observe(xt[rows], timesteps[rows], latents.mask[rows]).logits,
                    torch.tensor([token for row in rows.tolist() for token in token_ids[row]]),
                    reduction="sum",
                )
            )
            for rows in torch.arange(len(xt)).split(TEXTS_PER_BATCH)
        ) / len(tokens)
        accuracy = decoded_accuracy(autoencoder, Latents(noised, latents.mask), token_ids)
        information = min(1.0, max(0.0, 1 - entropy / prior_entropy))
        curve.append(ReadAt(deviation, information, accuracy))
    return curve


def fit_schedule(curve: list[ReadAt]) -> FittedSchedule:
    """The tan-d whose timesteps lose information most evenly, and how it compares with the others."""
    times = (np.arange(1000) + 0.5) / 1000
    errors = [
        float(np.square(information_at(curve, d * np.tan(np.pi * times / 2)) - (1 - times)).mean())
        for d in DS
    ]
    d = round(float(DS[int(np.argmin(errors))]), 1)
    schedulers = {name: noise_scheduler(name, d=d) for name in SCHEDULES}
    learnable = {}
    for name, scheduler in schedulers.items():
        left = information_at(curve, noise_deviations(scheduler).numpy())
        learnable[name] = float(((left > LEARNABLE[0]) & (left < LEARNABLE[1])).mean())
    return FittedSchedule(
        d=d,
        half_read=_crossing(curve, "decoder_accuracy"),
        half_known=_crossing(curve, "information"),
        learnable=learnable,
        curve=curve,
    )


def information_at(curve: list[ReadAt], deviations: np.ndarray) -> np.ndarray:
    """The curve's information at other deviations, interpolated over their logarithms."""
    known = np.log([point.deviation for point in curve])
    return np.interp(np.log(deviations), known, [point.information for point in curve])


def _crossing(curve: list[ReadAt], name: str) -> float:
    """The deviation at which a falling curve passes one half."""
    values = np.minimum.accumulate([getattr(point, name) for point in curve])
    logs = np.log([point.deviation for point in curve])
    return float(np.exp(np.interp(-0.5, -values, logs)))
