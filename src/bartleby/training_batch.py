"""A step of a denoiser's training, but for the optimiser: its batch, or one process's share of it, and the loss.

All randomness is a function of the seed, the step and the passage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin
from torch.nn.parallel import DistributedDataParallel

from bartleby.batching import places_of
from bartleby.conditioning import given_positions
from bartleby.config import TrainConfig
from bartleby.denoisers.candidates import Candidates, draw_candidates
from bartleby.given import FREE
from bartleby.latent_data import LatentData
from bartleby.latents import Latents
from bartleby.objective import (
    loss_weight,
    masked_loss,
    predicted_x0,
    sample_noise,
    stratified_timesteps,
    training_target,
)
from bartleby.randomness import stream_seeds, uniforms
from bartleby.reading import IGNORED

# What the parts of a run draw their randomness from, so that no two share a stream.
ORDER, TIMES, NOISE, SELF_CONDITION, GIVEN, CANDIDATES = range(6)


@dataclass(frozen=True)
class Batch:
    """One process's share of a step.  latents: B clean passages.  tokens: [B, L], their ids, for cross-entropy.

    given: [B, L], True where the text is a condition and not to be predicted.  self_conditioned: [B], True
    where the network sees its own first estimate.  share: this process's factor in the mean loss.
    candidates: tokens that stand for the vocabulary, if not all are scored.
    """

    latents: Latents
    tokens: torch.Tensor
    given: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    self_conditioned: torch.Tensor
    share: float
    candidates: Candidates | None


def make_batch(
    config: TrainConfig,
    data: LatentData,
    denoiser: ModelMixin,
    scheduler: DDPMScheduler,
    indices: np.ndarray,
    epoch: int,
    step: int,
    accelerator: Accelerator,
) -> Batch:
    """This process's rows of the batch `indices`, with their noise and timesteps.

    Timesteps are stratified over the whole batch; a passage's noise and what is given of it depend on
    the seed, the epoch and the passage alone, so nothing changes with the number of processes.
    """
    seed, device = config.training.seed, accelerator.device
    rows = np.arange(len(indices))[accelerator.process_index :: accelerator.num_processes]
    lengths = data.lengths[indices]
    given = given_positions(
        lengths,
        config.objective.conditioned,
        seeds=stream_seeds((seed, GIVEN, epoch), indices),
    )
    share = accelerator.num_processes / float(lengths.sum() - given.sum())
    if len(rows) == 0:  # more processes than passages: take part in the step, add nothing to it
        rows, share = np.arange(1), 0.0
    timesteps = stratified_timesteps(
        len(indices), scheduler.config.num_train_timesteps, seed=(seed, TIMES, step)
    )
    coins = uniforms([(seed, SELF_CONDITION, step)], len(indices))[0]
    latents = data.batch(indices[rows], length_multiple=denoiser.length_multiple, device=device)
    seeds = stream_seeds((seed, NOISE, epoch), indices[rows])
    noise = sample_noise(latents.mask, latents.values.shape[1], seeds=seeds)
    # Of the whole batch, so that every process scores the same tokens.
    candidates = batch_candidates(
        config, data, indices, seed=(seed, CANDIDATES, step), device=device
    )
    width = latents.mask.shape[1]
    tokens = torch.zeros(latents.mask.shape, dtype=torch.long)
    if config.objective.loss == "cross-entropy":
        tokens = data.token_batch(indices[rows], padding=0, length=width)
    return Batch(
        latents,
        tokens.to(device),
        # The longest passage of the batch may be another process's: cut, or padded.
        F.pad(torch.from_numpy(given[rows]), (0, width - given.shape[1])).to(device),
        noise,
        timesteps[rows].to(device),
        (coins[rows] < 0.5).to(device),
        share,
        candidates,
    )


def batch_candidates(
    config: TrainConfig,
    data: LatentData,
    indices: np.ndarray,
    *,
    seed: tuple[int, ...],
    device: torch.device,
) -> Candidates | None:
    """The tokens that stand for the vocabulary in a batch of these passages; None if all are scored."""
    others = config.objective.candidates
    if not others:
        return None
    places, mask = places_of(data.offsets, indices)
    tokens = data.tokens[places[mask]]
    vocabulary = len(data.autoencoder.tokenizer)
    return draw_candidates(tokens, vocabulary, others=others, seed=seed).to(device)


def denoising_loss(
    config: TrainConfig, network: torch.nn.Module, scheduler: DDPMScheduler, batch: Batch
) -> torch.Tensor:
    """This process's part of the loss; the mean over processes is the mean over all tokens to predict."""
    x0, mask, timesteps = batch.latents.values, batch.latents.mask, batch.timesteps
    xt = scheduler.add_noise(x0, batch.noise, timesteps)
    conditions: dict[str, Any] = {}
    if config.objective.loss == "cross-entropy":
        # Also where nothing is given, so that every weight takes part.
        conditions["known"] = torch.where(batch.given, batch.tokens, FREE)
    if batch.candidates:
        conditions["candidates"] = batch.candidates
    if config.denoiser.self_conditioning:
        conditions["previous"] = _first_estimate(network, scheduler, xt, batch, conditions)
    output = network(xt, timesteps, mask, **conditions)
    predicted = mask & ~batch.given
    if config.objective.loss == "cross-entropy":
        tokens = batch.candidates.places(batch.tokens) if batch.candidates else batch.tokens
        wanted = torch.where(predicted, tokens, IGNORED)[mask]
        loss = F.cross_entropy(output.logits, wanted, ignore_index=IGNORED, reduction="sum")
        return loss * batch.share
    target = training_target(scheduler, x0, batch.noise, timesteps)
    measured_in = config.objective.loss_in or config.objective.target
    weight = loss_weight(scheduler, timesteps, measured_in=measured_in)
    loss = masked_loss(output.sample, target, predicted, loss=config.objective.loss, weight=weight)
    return loss * batch.share


def _first_estimate(
    network: torch.nn.Module,
    scheduler: DDPMScheduler,
    xt: torch.Tensor,
    batch: Batch,
    conditions: dict,
) -> torch.Tensor:
    """The network's own estimate of x0 where `batch.self_conditioned`, zeros elsewhere; nothing is learned here."""
    if isinstance(network, DistributedDataParallel):  # not every process need come here
        network = network.module
    previous, rows = torch.zeros_like(xt), batch.self_conditioned.nonzero()[:, 0]
    if len(rows) == 0:
        return previous
    timesteps, mask = batch.timesteps[rows], batch.latents.mask[rows]
    chosen = {  # candidates are the whole batch's
        name: value if name == "candidates" else value[rows] for name, value in conditions.items()
    }
    with torch.no_grad():
        guess = network(xt[rows], timesteps, mask, **chosen).sample.float()
    previous[rows] = predicted_x0(scheduler, guess, xt[rows], timesteps)
    return previous
