"""What all denoisers share: their output, timesteps as a batch, and the mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


@dataclass
class DenoiserOutput(BaseOutput):
    """sample: [B, C, L], the prediction, zero at padding."""

    sample: torch.Tensor


def batch_timesteps(timestep: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
    """A number, 0-d or [B] tensor of timesteps as [B] on the sample's device."""
    timesteps = torch.as_tensor(timestep, device=sample.device)
    return timesteps.expand(len(sample)) if timesteps.ndim == 0 else timesteps


def at_real_tokens(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`values` [B, C, L], zeroed where `mask` [B, L] is False."""
    return values if mask is None else values * mask[:, None].to(values.dtype)
