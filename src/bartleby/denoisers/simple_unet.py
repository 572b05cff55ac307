"""SimpleUNet1D: the published "v3", an encoder-decoder without skip connections, 2.4 million parameters."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from torch import nn

from bartleby.denoisers.contract import Denoiser, DenoiserOutput, at_real_tokens, batch_timesteps


class SimpleUNet1D(Denoiser):
    """Convolutions down to a quarter of the length and back; the time embedding is added at the bottom.

    The log gives its parameters but not its widths. These, a third and five twelfths of the channels,
    are chosen to come to 2.4 million at 768 channels: (256, 320), 2,398,912 parameters.
    """

    length_multiple = 4

    @register_to_config
    def __init__(self, channels: int = 768, widths: tuple[int, int] | None = None):
        super().__init__()
        first, second = widths or (channels // 6 * 2, channels * 5 // 12)
        self.narrowest = second
        self.time = nn.Sequential(
            Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0),
            nn.Linear(first, second),
            nn.SiLU(),
            nn.Linear(second, second),
        )
        self.down = nn.Sequential(
            nn.Conv1d(channels, first, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(first, first, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv1d(first, second, 3, stride=2, padding=1),
        )
        self.up = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose1d(second, first, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose1d(first, first, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv1d(first, channels, 3, padding=1),
        )

    @property
    def bottleneck(self) -> float:
        """Numbers a position that get from input to output: the bottom holds a quarter of the positions."""
        return self.narrowest / 4

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        time = self.time(batch_timesteps(timestep, sample))  # [B, W]
        hidden = self.down(at_real_tokens(sample, mask)) + time[:, :, None]  # [B, W, L / 4]
        return DenoiserOutput(sample=at_real_tokens(self.up(hidden), mask))
