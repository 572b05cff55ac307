"""Denoisers: networks that take noised latents and return what their scheduler's target asks for.

One contract, `Denoiser`: `denoiser(sample, timestep, mask).sample` with sample [B, C, L], timestep a number or [B],
mask [B, L], True at real tokens, or None for all; the result is [B, C, L], what it is at padding is not looked at. Each
is a diffusers model: `save_pretrained`, `from_pretrained`. `length_multiple` is what L must divide by;
`bottleneck` how many numbers a position can get from input to output, which bounds what it can say
of white noise: a cosine of sqrt(bottleneck / C).
"""

from __future__ import annotations

from diffusers import (
    ModelMixin,
)  # where a pipeline is loaded, diffusers looks for it beside our classes

from bartleby.denoisers.baselines import IdentityDenoiser, MixtureDenoiser, WienerDenoiser
from bartleby.denoisers.build import DENOISERS, build_denoiser, load_denoiser
from bartleby.denoisers.contract import Denoiser, DenoiserOutput
from bartleby.denoisers.diffusers_unet import DiffusersUNet1D
from bartleby.denoisers.simple_unet import SimpleUNet1D
from bartleby.denoisers.text_unet import TextUNet1D
from bartleby.denoisers.token_transformer import TokenTransformer
from bartleby.denoisers.transformer import DenoisingTransformer

__all__ = [
    "DENOISERS",
    "Denoiser",
    "DenoiserOutput",
    "DenoisingTransformer",
    "DiffusersUNet1D",
    "IdentityDenoiser",
    "MixtureDenoiser",
    "ModelMixin",
    "SimpleUNet1D",
    "TextUNet1D",
    "TokenTransformer",
    "WienerDenoiser",
    "build_denoiser",
    "load_denoiser",
]
