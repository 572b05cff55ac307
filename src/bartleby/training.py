"""Training a denoiser: one loop, a generator of its states.

All randomness is a function of the seed, the step and the passage: a run that was killed goes on as if
it had not been, and several processes see together what one would see alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
)
from diffusers import DDPMScheduler, ModelMixin
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from bartleby.batching import endless_batches, places_of, plan_epoch
from bartleby.checkpoints import (
    check_same_settings,
    checkpoint_folder,
    drop_old_checkpoints,
    load_newest_checkpoint,
    load_tensors,
    load_training_state,
    replaced_folder,
    save_training_state,
)
from bartleby.conditioning import given_positions
from bartleby.config import TrainConfig, config_from_dict, config_to_dict
from bartleby.denoisers.candidates import Candidates, draw_candidates
from bartleby.errors import UserError
from bartleby.given import FREE
from bartleby.latent_data import LatentData
from bartleby.latents import Latents
from bartleby.messages import say
from bartleby.objective import (
    loss_weight,
    masked_loss,
    predicted_x0,
    sample_noise,
    stratified_timesteps,
    training_target,
)
from bartleby.optimisation import Timer, learning_rate
from bartleby.precision import allow_tf32, autocast, chosen_device, network_dtype
from bartleby.randomness import stream_seeds, uniforms
from bartleby.reading import IGNORED

# Settings that may differ when a run is resumed: how long it goes on, and what it reports.
MAY_CHANGE = {
    "training.epochs",
    "training.steps",
    "training.decay_share",
    "training.validate_every",
    "training.validation_texts",
    "training.checkpoint_minutes",
    "training.store",
    "data.cache_gb",
}
# What the parts of a run draw their randomness from, so that no two share a stream.
ORDER, TIMES, NOISE, SELF_CONDITION, GIVEN, CANDIDATES = range(6)


@dataclass(frozen=True)
class TrainingState:
    """After one optimiser step.

    loss: mean over the real tokens of all processes; None where the run had ended before.  passages,
    tokens: seen since it began.  denoiser: with the weights being trained; `averaged` gives the others.
    """

    step: int
    steps: int
    loss: float | None
    gradient_norm: float | torch.Tensor
    learning_rate: float
    passages: int
    tokens: int
    saved: Path | None
    denoiser: ModelMixin
    ema: EMAModel

    @contextmanager
    def averaged(self) -> Iterator[ModelMixin]:
        """The denoiser with its averaged weights, in evaluation mode, for as long as the block lasts."""
        with averaged_weights(self.denoiser, self.ema):
            yield self.denoiser


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


def check_same_run(config: TrainConfig, saved: dict, run: Path) -> None:
    """UserError if the tables `saved` of a run differ from `config` in more than `MAY_CHANGE`."""
    # A run may be older than a key: it had the default.
    saved = config_to_dict(config_from_dict(saved))
    check_same_settings(_flat(config_to_dict(config)), _flat(saved), MAY_CHANGE, run)


def make_accelerator(device: str | torch.device | None = None) -> Accelerator:
    """accelerate for this device and every process that `accelerate launch` started."""
    device = chosen_device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or accelerate would take the first
    allow_tf32(device)
    return Accelerator(
        mixed_precision="no",  # `train` has its own autocast; accelerate's would stay in the denoiser's forward
        cpu=device.type == "cpu",
        kwargs_handlers=[
            # One process may encode a large corpus for hours while the others wait.
            InitProcessGroupKwargs(timeout=timedelta(days=2)),
            # Buffers are tables that never change; sent anew with every step they would be its largest part.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )


def total_steps(config: TrainConfig, data: LatentData) -> int:
    """Optimiser steps of a whole run; a step is a batch of all processes together."""
    if config.training.steps:
        return config.training.steps
    rng = np.random.default_rng((config.training.seed, ORDER, 0))
    batches = len(
        plan_epoch(data.lengths, tokens_per_batch=config.training.tokens_per_batch, rng=rng)
    )
    return max(1, round(config.training.epochs * batches))


def train(
    config: TrainConfig,
    data: LatentData,
    denoiser: ModelMixin,
    scheduler: DDPMScheduler,
    run: Path,
    accelerator: Accelerator,
    *,
    say: Callable[[str], None] = say,
) -> Iterator[TrainingState]:
    """Trains `denoiser` on normalised latents, resuming from `run` if it holds a checkpoint of the same run.

    Yields after every step and saves every `checkpoint_minutes` and at the end; of a run that has
    ended, yields its last state once. Raises UserError if `run` belongs to another configuration or
    the loss stops being a number.
    """
    settings, steps = config.training, total_steps(config, data)
    optimizer = torch.optim.AdamW(
        denoiser.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    denoiser.to(accelerator.device)
    ema = EMAModel(denoiser.parameters(), decay=settings.ema_decay, foreach=True)
    progress = _resume(config, run, denoiser, optimizer, ema, say)
    step, passages, tokens = progress["step"], progress["passages"], progress["tokens"]
    if step >= steps:
        yield TrainingState(step, steps, None, 0.0, 0.0, passages, tokens, None, denoiser, ema)
        return
    network, optimizer = accelerator.prepare(denoiser, optimizer)
    saves, dtype = Timer(settings.checkpoint_minutes), network_dtype(accelerator.device)
    denoiser.train()
    planned = endless_batches(
        data.lengths,
        tokens_per_batch=settings.tokens_per_batch,
        seed=(settings.seed, ORDER),
        skip=step,
    )
    for epoch, indices in planned:
        batch = make_batch(config, data, denoiser, scheduler, indices, epoch, step, accelerator)
        rate = learning_rate(settings, step, steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast(accelerator.device, dtype):
            loss = denoising_loss(config, network, scheduler, batch)
        # Whether to save is the main process's word: clocks differ, and all must come to the barrier or none.
        due = float(accelerator.is_main_process and saves.due())
        told = torch.stack([loss.detach(), torch.tensor(due, device=loss.device)])
        mean_loss, due = accelerator.reduce(told, reduction="mean").tolist()
        if not math.isfinite(mean_loss):
            raise UserError(
                f"the loss is {mean_loss} at step {step + 1}; what was saved before is kept. "
                "Try a lower training.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimizer.step()
        ema.step(denoiser.parameters())
        step, passages = step + 1, passages + len(indices)
        tokens += int(data.lengths[indices].sum())
        saved = None
        if step == steps or due > 0:
            if accelerator.is_main_process:
                counts = {"step": step, "passages": passages, "tokens": tokens}
                saved = _save(config, run, denoiser, optimizer, ema, counts)
            accelerator.wait_for_everyone()
        yield TrainingState(
            step, steps, mean_loss, norm, rate, passages, tokens, saved, denoiser, ema
        )
        if step >= steps:
            return


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
    conditions = {}
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
    network = getattr(network, "module", network)  # not every process need come here
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


@contextmanager
def averaged_weights(denoiser: ModelMixin, ema: EMAModel) -> Iterator[None]:
    """Swaps the averaged weights in, and evaluation mode on, for as long as the block lasts."""
    ema.store(denoiser.parameters())
    ema.copy_to(denoiser.parameters())
    denoiser.eval()
    try:
        yield
    finally:
        ema.restore(denoiser.parameters())
        denoiser.train()


def _save(
    config: TrainConfig,
    run: Path,
    denoiser: ModelMixin,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    counts: dict,
) -> Path:
    folder = checkpoint_folder(run, counts["step"])
    raw = {name: weight.detach().cpu().contiguous() for name, weight in denoiser.named_parameters()}
    with replaced_folder(folder) as temporary:
        save_file(raw, temporary / "weights.safetensors")
        with averaged_weights(denoiser, ema):
            denoiser.save_pretrained(temporary)
        state = {**counts, "ema_step": ema.optimization_step, "config": config_to_dict(config)}
        save_training_state(temporary, optimizer, state)
    drop_old_checkpoints(run)
    return folder


def _resume(
    config: TrainConfig,
    run: Path,
    denoiser: ModelMixin,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    say: Callable[[str], None],
) -> dict:
    """Counts of the newest usable checkpoint, everything restored from it; zeros if there is none."""
    state: dict = {"step": 0, "passages": 0, "tokens": 0}

    def load(folder: Path) -> None:
        nonlocal state
        raw = load_tensors(folder / "weights.safetensors")
        averaged = load_tensors(folder / "diffusion_pytorch_model.safetensors")
        state = load_training_state(folder, optimizer)
        check_same_run(config, state["config"], run)
        with torch.no_grad():
            for (name, weight), shadow in zip(
                denoiser.named_parameters(), ema.shadow_params, strict=True
            ):
                weight.copy_(raw[name])
                shadow.copy_(averaged[name])
            for name, table in denoiser.named_buffers():
                if name in averaged:
                    table.copy_(averaged[name])
        ema.optimization_step = state["ema_step"]

    folder = load_newest_checkpoint(run, load, say)
    if folder is not None:
        say(f"resuming from {folder}: step {state['step']:,}")
    return state


def _flat(tables: dict) -> dict:
    """{"table.key": value} of nested tables."""
    return {
        f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()
    }
