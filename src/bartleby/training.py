"""Training a denoiser: one loop, a generator of its states.

All randomness is a function of the seed, the step and the passage: a run that was killed goes on as if
it had not been, and several processes see together what one would see alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

from bartleby.batching import endless_batches, plan_epoch
from bartleby.checkpoints import (
    check_same_origins,
    check_same_settings,
    checkpoint_folder,
    drop_old_checkpoints,
    load_newest_checkpoint,
    load_tensors,
    load_training_state,
    replaced_folder,
    save_training_state,
)
from bartleby.config import TrainConfig, config_from_dict, config_to_dict
from bartleby.latent_data import LatentData
from bartleby.messages import say
from bartleby.optimisation import Timer, check_finite, learning_rate
from bartleby.precision import autocast, network_dtype
from bartleby.processes import Processes
from bartleby.training_batch import ORDER, denoising_loss, make_batch

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


def check_same_run(config: TrainConfig, saved: dict, run: Path) -> None:
    """UserError if the tables `saved` of a run differ from `config` in more than `MAY_CHANGE`."""
    # A run may be older than a key: it had the default.
    saved = config_to_dict(config_from_dict(saved))
    check_same_settings(_flat(config_to_dict(config)), _flat(saved), MAY_CHANGE, run)


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
) -> Generator[TrainingState, None, None]:
    """Trains `denoiser` on normalised latents, resuming from `run` if it holds a checkpoint of the same run.

    Yields after every step and saves every `checkpoint_minutes` and at the end; of a run that has
    ended, yields its last state once. Raises UserError if `run` belongs to another configuration, BART
    or text, or the loss stops being a number.
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
    origins = data.origins()
    progress = _resume(config, origins, run, denoiser, optimizer, ema, say)
    step, passages, tokens = progress["step"], progress["passages"], progress["tokens"]
    Processes(accelerator).check_same(step)
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
        check_finite(mean_loss, "loss", step)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        check_finite(float(norm), "gradient's norm", step)
        optimizer.step()
        ema.step(denoiser.parameters())
        step, passages = step + 1, passages + len(indices)
        tokens += int(data.lengths[indices].sum())
        saved = None
        if step == steps or due > 0:
            if accelerator.is_main_process:
                counts = {"step": step, "passages": passages, "tokens": tokens}
                saved = _save(config, origins, run, denoiser, optimizer, ema, counts)
            accelerator.wait_for_everyone()
        yield TrainingState(
            step, steps, mean_loss, norm, rate, passages, tokens, saved, denoiser, ema
        )
        if step >= steps:
            return


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
    origins: dict[str, str],
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
        state = {
            **counts,
            "ema_step": ema.optimization_step,
            "config": config_to_dict(config),
            "origins": origins,
        }
        save_training_state(temporary, optimizer, state)
    drop_old_checkpoints(run)
    return folder


def _resume(
    config: TrainConfig,
    origins: dict[str, str],
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
        check_same_origins(origins, state.get("origins", origins), run)  # older ones name none
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
