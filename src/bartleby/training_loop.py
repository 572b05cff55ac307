"""The loop behind all training but a denoiser's: a BART, a decoder's repair, a compressor, the autoregressive model.

What differs between them is a generator of losses, each process's of its share of a step's batch. Denoisers have a
loop of their own (training.py), whose result does not change with the number of processes; here what is drawn does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bartleby.checkpoints import resume_network, save_network
from bartleby.messages import say
from bartleby.optimisation import (
    AnyOptimizer,
    Timer,
    learning_rate,
    optimise,
    weights_of,
)
from bartleby.precision import allow_tf32
from bartleby.processes import Processes

# Settings that may differ when a run is resumed: how long it goes on, what it keeps, how often it saves.
MAY_CHANGE = {"steps", "decay_share", "checkpoint_minutes", "store"}


@dataclass(frozen=True)
class LoopConfig:
    """What all configurations of the loop have; each has more.

    tokens_per_batch: padded positions of an optimiser step.  learning_rate: the highest, reached after `warmup_steps`;
    it falls to zero over `decay_share` of the steps, at the end.  checkpoint_minutes: between checkpoints.
    """

    steps: int = 2000
    tokens_per_batch: int = 2048
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.25
    gradient_clip: float = 1.0
    checkpoint_minutes: float = 4.0
    seed: int = 0


@dataclass(frozen=True)
class StepLoss:
    """total: what is minimised, a 0-d tensor, a mean over `tokens` tokens.  parts: what is logged, means as well."""

    total: torch.Tensor
    tokens: int
    parts: Mapping[str, torch.Tensor | str]


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
    config: LoopConfig,
    network: torch.nn.Module,
    optimizer: AnyOptimizer,
    losses: Callable[[int], Iterable[StepLoss]],
    out: Path,
    *,
    origins: dict[str, str],
    beside: Iterable = (),
    processes: Processes = Processes(),
    say: Callable[[str], None] = say,
) -> Iterator[LoopState]:
    """Trains `network`, resuming from `out` if it holds a checkpoint of the same run.

    losses: step -> the losses of the steps from that one on, each computed when it is asked for; a function of the
    step, so that a resumed run sees what an undisturbed one would.  origins: digests of what the run depends on
    besides `config`, by a name that a message can use.  beside: what is saved with the network.  processes: those
    that share each step; all of them end with the same weights, and the main one saves.

    Yields after every step and saves every `checkpoint_minutes` and at the end; of a run that has ended, yields its
    last state once. Raises UserError if `out` belongs to another run or the loss stops being a number.
    """
    settings = dataclasses.asdict(config)
    state = resume_network(out, network, optimizer, settings, origins, MAY_CHANGE, say)
    step, tokens = state.get("step", 0), state.get("tokens", 0)
    processes.check_same(step)
    if state.get("processes", processes.count) != processes.count:
        say(
            f"{state['processes']} processes had this run before; what is drawn now is drawn otherwise"
        )
    if step >= config.steps:
        yield LoopState(step, config.steps, None, tokens, 0.0, None, network)
        return
    allow_tf32(next(network.parameters()).device)
    saves = Timer(config.checkpoint_minutes)
    for loss in losses(step):
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        loss, due = _over_all(processes, weights_of(optimizer), loss, saves.due())
        rate = learning_rate(config, step, steps=config.steps)
        optimise(optimizer, loss.total, rate=rate, clip=config.gradient_clip, step=step)
        step, tokens = step + 1, tokens + loss.tokens
        saved = None
        if processes.is_main and (due or step == config.steps):
            state = {
                "step": step,
                "tokens": tokens,
                "processes": processes.count,
                "config": settings,
                "origins": origins,
            }
            saved = save_network(out, network, optimizer, state, beside=beside)
        parts = {
            name: part if isinstance(part, str) else float(part.detach())
            for name, part in loss.parts.items()
        }
        yield LoopState(step, config.steps, parts, tokens, rate, saved, network)
        if step == config.steps:
            return


@torch.no_grad()
def _over_all(
    processes: Processes, weights: list[torch.nn.Parameter], loss: StepLoss, due: bool
) -> tuple[StepLoss, bool]:
    """The loss over the tokens of all processes, its gradients in `weights`; whether the main one is to save."""
    if processes.count == 1:
        return loss, due
    numbers = {name: part for name, part in loss.parts.items() if not isinstance(part, str)}
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    means = [*gradients, loss.total, *numbers.values()]
    told = torch.tensor([loss.tokens, due and processes.is_main], device=loss.total.device)
    flat = torch.cat([mean.detach().float().flatten() for mean in means]) * loss.tokens
    *flat, tokens, saving = processes.total(torch.cat([flat, told])).split(
        [*(mean.numel() for mean in means), 1, 1]
    )
    means = [part / tokens for part in flat]
    for weight, mean in zip(weights, means, strict=False):
        weight.grad = mean.view_as(weight)
    total, *parts = (mean[0] for mean in means[len(weights) :])
    summed = {**loss.parts, **dict(zip(numbers, parts, strict=True))}
    whole = StepLoss(total, int(tokens), summed)
    return whole, bool(saving > 0)
