"""What the training loops here share: the learning rate over a run, an optimiser step, when to save."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Protocol

import torch

from bartleby.errors import UserError
from bartleby.muon import StackedMuon


class RateSettings(Protocol):
    """The part of a configuration that says how the learning rate changes over a run."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def decay_share(self) -> float: ...


def learning_rate(settings: RateSettings, step: int, *, steps: int) -> float:
    """Warm-up, constant, then linear decay to zero: a run may be made longer until the decay begins."""
    warm = (step + 1) / max(1, settings.warmup_steps)
    left = (steps - step) / max(1, int(steps * settings.decay_share))
    return settings.learning_rate * min(1.0, warm, left)


class Timer:
    """Says once in so many minutes that they have passed."""

    def __init__(self, minutes: float):
        self.seconds, self._since = 60 * minutes, time.monotonic()

    def due(self) -> bool:
        """Whether they have since it last said so, or began."""
        now = time.monotonic()
        if now - self._since <= self.seconds:
            return False
        self._since = now
        return True


class MuonAdamW:
    """Muon for the matrices between layers, AdamW for all else (embeddings, readout, biases, norms).

    weight_decay: of the matrices; the rest decays by 0.01.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal, so that all its directions learn at the same
    pace. Its updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), hence one learning rate.
    States are numbered across both, as in one optimiser.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
    ):
        self.parts = (
            StackedMuon(matrices, lr=lr, weight_decay=weight_decay),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        )

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        state: dict[int, dict] = {}
        first = 0
        for part in self.parts:
            own = part.state_dict()["state"]
            state |= {first + index: moments for index, moments in own.items()}
            first += _count(part)
        return {"state": state, "param_groups": []}

    def load_state_dict(self, saved: dict) -> None:
        first = 0
        for part in self.parts:
            mine = range(first, first + _count(part))
            state = {i - first: moments for i, moments in saved["state"].items() if i in mine}
            part.load_state_dict(
                {"state": state, "param_groups": part.state_dict()["param_groups"]}
            )
            first += _count(part)


AnyOptimizer = torch.optim.Optimizer | MuonAdamW


def _count(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def weights_of(optimizer: AnyOptimizer) -> list[torch.nn.Parameter]:
    """All that it changes."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def optimise(
    optimizer: AnyOptimizer, loss: torch.Tensor, *, rate: float, clip: float, step: int
) -> None:
    """Step `step`, the first is 0, along the gradients that are there, clipped to a norm of `clip`.

    Raises UserError, before anything changes, if the loss or the gradients' norm is no finite number.
    """
    check_finite(float(loss.detach()), "loss", step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(weights_of(optimizer), clip)
    check_finite(float(norm), "gradient's norm", step)
    optimizer.step()


def check_finite(value: float, name: str, step: int) -> None:
    """UserError if this number of step `step`, the first is 0, is infinite or none."""
    if not math.isfinite(value):
        raise UserError(
            f"the {name} is {value} at step {step + 1}; what was saved before is kept. "
            "Try a lower learning rate, in another --out"
        )
