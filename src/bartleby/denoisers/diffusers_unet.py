"""diffusers' UNet1DModel as a denoiser: the published "v4", 68 million parameters at 768 channels."""

from __future__ import annotations

import torch
from diffusers import UNet1DModel
from diffusers.configuration_utils import register_to_config

from bartleby.denoisers.contract import Denoiser, DenoiserOutput, at_real_tokens, batch_timesteps


class DiffusersUNet1D(Denoiser):
    """UNet1DModel with residual blocks, configured so that it really reads the timestep.

    Its other block types ignore the timestep, or fail at this many channels; with fourier embeddings
    neighbouring integer timesteps look unrelated. It knows no mask: padding is zeroed before and after.
    Parameters: 67,841,024 at 768 channels and widths (256, 512, 768).
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 768,
        length: int = 128,
        widths: tuple[int, ...] = (256, 512, 768),
        layers_per_block: int = 2,
    ):
        super().__init__()
        self.length_multiple = 2 ** (len(widths) - 1)  # each level but the last halves the length
        self.unet = UNet1DModel(
            sample_size=length,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(widths),
            layers_per_block=layers_per_block,
            down_block_types=("DownResnetBlock1D",) * len(widths),
            up_block_types=("UpResnetBlock1D",) * len(widths),
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            time_embedding_type="positional",
            use_timestep_embedding=True,
            act_fn="silu",
        )

    @property
    def bottleneck(self) -> float:
        """Numbers a position that get from input to output: everything ends in the first width."""
        return self.config.widths[0]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        timesteps = batch_timesteps(timestep, sample)
        prediction = self.unet(at_real_tokens(sample, mask), timesteps).sample
        return DenoiserOutput(sample=at_real_tokens(prediction, mask))
