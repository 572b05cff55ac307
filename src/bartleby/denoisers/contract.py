"""What all denoisers share: their base, their output, timesteps as a batch, and the mask."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

ORIGIN = "module_and_class"  # in the configuration of a denoiser that is not of Bartleby


@dataclass
class DenoiserOutput(BaseOutput):
    """sample: [B, C, L], the prediction, zero at padding."""

    sample: torch.Tensor


class Denoiser(ModelMixin, ConfigMixin):
    """The base of every denoiser, yours too: a diffusers model whose `__init__` takes `channels`.

    Decorate `__init__` with diffusers' `register_to_config`; call `forward(sample [B, C, L], timestep, mask [B, L])`,
    timestep a number or [B] whole numbers, mask True at real tokens or None for all; return a `DenoiserOutput`.
    With `[denoiser] self_conditioning = true` both take one more: `__init__` a self_conditioning, `forward` a
    previous [B, C, L], the estimate of x0 made before, or None. Every parameter must take part in every forward.
    """

    length_multiple = 1  # what L must divide by

    def save_pretrained(self, save_directory: str | os.PathLike, **options: Any) -> None:
        """As diffusers' own; the configuration also says where a class that is not Bartleby's is to be found."""
        kind = type(self)
        if kind.__module__.partition(".")[0] != "bartleby":
            self.register_to_config(**{ORIGIN: f"{kind.__module__}:{kind.__qualname__}"})
        super().save_pretrained(save_directory, **options)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        # Where a pipeline is loaded, diffusers looks for ModelMixin in the module of each model's class.
        vars(sys.modules[cls.__module__]).setdefault("ModelMixin", ModelMixin)

    @property
    def bottleneck(self) -> float:
        """Numbers a position that can get from input to output; by default every channel does."""
        return self.config.channels


def device_of(denoiser: nn.Module, sample: torch.Tensor) -> torch.device:
    """Where the denoiser's weights and tables are; where `sample` is if it has none."""
    return next(itertools.chain(denoiser.parameters(), denoiser.buffers(), [sample])).device


def kept_apart(denoiser: ModelMixin, lengths: np.ndarray) -> np.ndarray | None:
    """Numbers that are equal where texts of these lengths [n] may share a batch; None if all may.

    A network that halves the length sees its padding: only texts of equal padded length go together.
    """
    multiple = denoiser.length_multiple
    return None if multiple == 1 else -(-lengths // multiple)


def padded_for(
    denoiser: ModelMixin, sample: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample` [B, C, L] and `mask` [B, L], padded to an L that the denoiser takes."""
    missing = -sample.shape[-1] % denoiser.length_multiple
    return F.pad(sample, (0, missing)), F.pad(mask, (0, missing))


def batch_timesteps(timestep: torch.Tensor | float, sample: torch.Tensor) -> torch.Tensor:
    """A number, 0-d or [B] tensor of timesteps as [B] on the sample's device."""
    timesteps = torch.as_tensor(timestep, device=sample.device)
    return timesteps.expand(len(sample)) if timesteps.ndim == 0 else timesteps


def at_real_tokens(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`values` [B, C, L], zeroed where `mask` [B, L] is False."""
    return values if mask is None else values * mask[:, None].to(values.dtype)
