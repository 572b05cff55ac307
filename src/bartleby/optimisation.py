"""What the training loops here share: the learning rate over a run, an optimiser step, when to save."""

from __future__ import annotations

import math
import time
from typing import Protocol

import torch

from bartleby.errors import UserError


class RateSettings(Protocol):
    """The part of a configuration that says how the learning rate changes over a run."""

    learning_rate: float
    warmup_steps: int
    decay_share: float


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


def optimise(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, *, rate: float, clip: float, step: int
) -> None:
    """Step `step`, the first is 0, at this learning rate, gradients clipped to a norm of `clip`.

    Raises UserError, before anything changes, if the loss is no number.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise UserError(
            f"the loss is {value} at step {step + 1}; the last good checkpoint is kept. "
            "Try a lower learning rate"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = []
    for group in optimizer.param_groups:
        group["lr"] = rate
        weights += group["params"]
    torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
