"""The loop behind all that one process trains: a BART, a decoder's repair, a compressor, the autoregressive model.

What differs between them is a generator of losses. Denoisers have a loop of their own, which several processes
can share (training.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bartleby.checkpoints import resume_network, save_network
from bartleby.messages import say
from bartleby.optimisation import AnyOptimizer, RateSettings, Timer, learning_rate, optimise
from bartleby.precision import allow_tf32

# Settings that may differ when a run is resumed: how long it goes on, what it keeps, how often it saves.
MAY_CHANGE = {"steps", "decay_share", "checkpoint_minutes", "store"}


class LoopSettings(RateSettings, Protocol):
    """The part of a configuration, a dataclass, that the loop reads."""

    steps: int
    gradient_clip: float
    checkpoint_minutes: float


@dataclass(frozen=True)
class StepLoss:
    """total: what is minimised, a 0-d tensor.  tokens: of the texts it was taken over.  parts: what is logged of it."""

    total: torch.Tensor
    tokens: int
    parts: dict[str, torch.Tensor | str]


@dataclass(frozen=True)
class LoopState:
    """After one step of `steps`.

    losses: the parts of the step's loss, in nats a token unless they say otherwise; None where the run had ended
    before.  tokens: seen since the run began.  saved: the checkpoint, if one was written.
    """

    step: int
    steps: int
    losses: dict[str, float | str] | None
    tokens: int
    learning_rate: float
    saved: Path | None
    network: Any


def training_loop(
    config: LoopSettings,
    network: torch.nn.Module,
    optimizer: AnyOptimizer,
    losses: Callable[[int], Iterable[StepLoss]],
    out: Path,
    *,
    origins: dict[str, str],
    beside: Iterable = (),
    say: Callable[[str], None] = say,
) -> Iterator[LoopState]:
    """Trains `network`, resuming from `out` if it holds a checkpoint of the same run.

    losses: step -> the losses of the steps from that one on, each computed when it is asked for; a function of the
    step, so that a resumed run sees what an undisturbed one would.  origins: digests of what the run depends on
    besides `config`, by a name that a message can use.  beside: what is saved with the network.

    Yields after every step and saves every `checkpoint_minutes` and at the end; of a run that has ended, yields its
    last state once. Raises UserError if `out` belongs to another run or the loss stops being a number.
    """
    settings = dataclasses.asdict(config)
    state = resume_network(out, network, optimizer, settings, origins, MAY_CHANGE, say)
    step, tokens = state.get("step", 0), state.get("tokens", 0)
    if step >= config.steps:
        yield LoopState(step, config.steps, None, tokens, 0.0, None, network)
        return
    allow_tf32(next(network.parameters()).device)
    saves = Timer(config.checkpoint_minutes)
    for loss in losses(step):
        rate = learning_rate(config, step, steps=config.steps)
        optimise(optimizer, loss.total, rate=rate, clip=config.gradient_clip, step=step)
        step, tokens = step + 1, tokens + loss.tokens
        saved = None
        if step == config.steps or saves.due():
            state = {"step": step, "tokens": tokens, "config": settings, "origins": origins}
            saved = save_network(out, network, optimizer, state, beside=beside)
        parts = {
            name: part if isinstance(part, str) else float(part.detach())
            for name, part in loss.parts.items()
        }
        yield LoopState(step, config.steps, parts, tokens, rate, saved, network)
        if step == config.steps:
            return
