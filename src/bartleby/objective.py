"""What a denoiser is trained to predict, how the predictions convert, and the loss. Pure functions.

x_t = sqrt(a) x0 + sqrt(1 - a) noise with a = alpha_bar(t), and v = sqrt(a) noise - sqrt(1 - a) x0
(Salimans & Ho 2022). Everything here is float32, [B, C, L]; masks are [B, L], True at real tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import SchedulerMixin

from bartleby.randomness import Seeds, normals
from bartleby.schedules import alpha_bar_at, target_of

LOSSES = ("mse", "l1", "cross-entropy")  # the last is of tokens, for token-transformer
# A noise prediction says nothing of x0 where almost no signal is left; the division is held off there.
SMALLEST_SIGNAL = 1e-4


def training_target(
    scheduler: SchedulerMixin, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the scheduler's network should return for x_t: noise, x0 or v."""
    target = target_of(scheduler)
    if target == "noise":
        return noise
    if target == "x0":
        return x0
    alpha_bar = alpha_bar_at(scheduler, timesteps)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0


def predicted_x0(
    scheduler: SchedulerMixin, prediction: torch.Tensor, xt: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The clean latents that a prediction implies."""
    target, alpha_bar = target_of(scheduler), alpha_bar_at(scheduler, timesteps)
    if target == "x0":
        return prediction
    if target == "v":
        return alpha_bar.sqrt() * xt - (1 - alpha_bar).sqrt() * prediction
    return (xt - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt().clamp_min(SMALLEST_SIGNAL)


def predicted_noise(
    scheduler: SchedulerMixin, prediction: torch.Tensor, xt: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The noise that a prediction implies."""
    target, alpha_bar = target_of(scheduler), alpha_bar_at(scheduler, timesteps)
    if target == "noise":
        return prediction
    if target == "v":
        return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * xt
    return (xt - alpha_bar.sqrt() * prediction) / (1 - alpha_bar).sqrt()


def implied_prediction(
    scheduler: SchedulerMixin, x0: torch.Tensor, xt: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The inverse of `predicted_x0`: what the scheduler's network would have returned for this estimate."""
    alpha_bar = alpha_bar_at(scheduler, timesteps)
    noise = (xt - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    return training_target(scheduler, x0, noise, timesteps)


def loss_weight(
    scheduler: SchedulerMixin, timesteps: torch.Tensor, *, measured_in: str
) -> torch.Tensor:
    """Factor [B, 1, 1] that turns a squared error of the scheduler's target into one of `measured_in`.

    An error e in x0 is an error sqrt(a / (1 - a)) e in noise and e / sqrt(1 - a) in v.
    """
    alpha_bar = alpha_bar_at(scheduler, timesteps)
    squared = {"x0": torch.ones_like(alpha_bar), "v": 1 / (1 - alpha_bar)}
    squared["noise"] = alpha_bar / (1 - alpha_bar)
    return squared[measured_in] / squared[target_of(scheduler)]


def masked_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    *,
    loss: str = "mse",
    weight: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Sum over real tokens of the mean error over channels; divide by the number of real tokens.

    weight: [B, 1, 1], of squared errors.  loss: mse, or l1, whose errors get the weight's square root.
    """
    error = (prediction.float() - target) * mask[:, None]
    if loss == "l1":
        weight = weight**0.5
        return (error.abs() * weight).sum() / prediction.shape[1]
    return (error.square() * weight).sum() / prediction.shape[1]


def stratified_timesteps(count: int, steps: int, *, seed: tuple[int, ...]) -> torch.Tensor:
    """[count] timesteps in 0..steps-1, one from each of `count` equal strata, in random order.

    Each is uniform on its own; together they cover the range evenly, which lowers the loss's variance.
    """
    rng = np.random.default_rng(seed)
    uniform = (rng.permutation(count) + rng.random(count)) / count
    return torch.from_numpy(np.minimum((uniform * steps).astype(np.int64), steps - 1))


def sample_noise(mask: torch.Tensor, channels: int, *, seeds: Seeds) -> torch.Tensor:
    """Gaussian noise [B, C, L], zero at padding; a place's depends on its row's seed and on itself alone."""
    noise = normals(seeds, mask.shape[1] * channels, device=mask.device)
    return (noise.reshape(*mask.shape, channels) * mask[:, :, None]).transpose(1, 2)
