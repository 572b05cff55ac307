"""What every training loop here shares: the learning rate over a run."""

from __future__ import annotations


def learning_rate(
    peak: float, step: int, *, steps: int, warmup_steps: int, decay_share: float
) -> float:
    """Warm-up, constant, then linear decay to zero: a run may be made longer until the decay begins."""
    decay_steps = max(1, int(steps * decay_share))
    return peak * min(1.0, (step + 1) / max(1, warmup_steps), (steps - step) / decay_steps)
