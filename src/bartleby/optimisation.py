"""What the training loops here share: the learning rate over a run, and an optimiser step."""

from __future__ import annotations

import math

import torch

from bartleby.errors import UserError


def learning_rate(
    peak: float, step: int, *, steps: int, warmup_steps: int, decay_share: float
) -> float:
    """Warm-up, constant, then linear decay to zero: a run may be made longer until the decay begins."""
    decay_steps = max(1, int(steps * decay_share))
    return peak * min(1.0, (step + 1) / max(1, warmup_steps), (steps - step) / decay_steps)


def optimise(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, *, rate: float, clip: float, step: int
) -> None:
    """Step `step`, the first is 0, at this learning rate, gradients clipped to a norm of `clip`.

    Raises UserError, before anything changes, if the loss is no number.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise UserError(f"the loss is {value} at step {step + 1}; the last checkpoint is kept")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = []
    for group in optimizer.param_groups:
        group["lr"] = rate
        weights += group["params"]
    torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
