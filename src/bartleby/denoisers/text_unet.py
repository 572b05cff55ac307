"""TextUNet1D: the published "v5", a convolutional U-Net with skip connections and no attention."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from torch import nn

from bartleby.denoisers.contract import Denoiser, DenoiserOutput, at_real_tokens, batch_timesteps

GROUPS = 8


class TextUNet1D(Denoiser):
    """768 -> 256 -> 384 -> 512 -> 384 -> 256 -> 768 channels over lengths L, L/2, L/4, L/2, L.

    widths: the three inner widths; by default a third, a half and two thirds of the channels, as
    published. Each level is two convolutions of 3 with GroupNorm and SiLU, and adds the 256-wide time
    embedding. At 768 channels: 7,830,272 parameters (published: about 8 million).
    """

    length_multiple = 4

    @register_to_config
    def __init__(
        self,
        channels: int = 768,
        widths: tuple[int, int, int] | None = None,
        time_width: int = 256,
    ):
        super().__init__()
        first, second, third = widths or (
            max(GROUPS, round(channels * share) // GROUPS * GROUPS)
            for share in (1 / 3, 1 / 2, 2 / 3)
        )
        self.time = nn.Sequential(
            Timesteps(time_width, flip_sin_to_cos=True, downscale_freq_shift=0),
            nn.Linear(time_width, time_width),
            nn.SiLU(),
            nn.Linear(time_width, time_width),
        )
        self.enter = Level(channels, first, time_width)
        self.down = nn.ModuleList(
            [
                nn.Conv1d(first, first, 3, stride=2, padding=1),
                nn.Conv1d(second, second, 3, stride=2, padding=1),
            ]
        )
        self.descend = Level(first, second, time_width)
        self.bottom = Level(second, third, time_width)
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose1d(third, second, 4, stride=2, padding=1),
                nn.ConvTranspose1d(second, first, 4, stride=2, padding=1),
            ]
        )
        self.ascend = Level(2 * second, second, time_width)
        self.leave = Level(2 * first, first, time_width)
        self.out = nn.Conv1d(first, channels, 3, padding=1)

    @property
    def bottleneck(self) -> float:
        """Numbers a position that get from input to output: everything ends in the first width."""
        return self.out.in_channels

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        time = self.time(batch_timesteps(timestep, sample))  # [B, time_width]
        top = self.enter(at_real_tokens(sample, mask), time)  # [B, first, L]
        middle = self.descend(self.down[0](top), time)  # [B, second, L / 2]
        bottom = self.bottom(self.down[1](middle), time)  # [B, third, L / 4]
        up = self.ascend(torch.cat([self.up[0](bottom), middle], dim=1), time)
        up = self.leave(torch.cat([self.up[1](up), top], dim=1), time)
        return DenoiserOutput(sample=at_real_tokens(self.out(up), mask))


class Level(nn.Module):
    """Two convolutions with GroupNorm and SiLU, the time embedding added between them."""

    def __init__(self, before: int, after: int, time_width: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(before, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.SiLU()
        )
        self.time = nn.Linear(time_width, after)
        self.second = nn.Sequential(
            nn.Conv1d(after, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.SiLU()
        )

    def forward(self, values: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(values) + self.time(time)[:, :, None])
