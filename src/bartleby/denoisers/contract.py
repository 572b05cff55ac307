"""What all denoisers share: their output, timesteps as a batch, and the mask."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class DenoiserOutput(BaseOutput):
    """sample: [B, C, L], the prediction, zero at padding."""

    sample: torch.Tensor


def device_of(denoiser: nn.Module, sample: torch.Tensor) -> torch.device:
    """Where the denoiser's weights and tables are; where `sample` is if it has none."""
    return next(itertools.chain(denoiser.parameters(), denoiser.buffers(), [sample])).device


def batch_timesteps(timestep: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
    """A number, 0-d or [B] tensor of timesteps as [B] on the sample's device."""
    timesteps = torch.as_tensor(timestep, device=sample.device)
    return timesteps.expand(len(sample)) if timesteps.ndim == 0 else timesteps


def at_real_tokens(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`values` [B, C, L], zeroed where `mask` [B, L] is False."""
    return values if mask is None else values * mask[:, None].to(values.dtype)
