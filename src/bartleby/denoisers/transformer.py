"""The transformer denoiser: attention over the text, the timestep in every layer, optional self-conditioning.

adaLN with one modulation network shared by all layers (PixArt-alpha, Chen et al. 2023), rotary
positions (Su et al. 2021), normalised queries and keys, SwiGLU. With `precondition` the network reads
and corrects a closed-form estimate of x0 (posteriors.py), so that it starts where statistics end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from torch import nn

from bartleby.denoisers.contract import Denoiser, DenoiserOutput, at_real_tokens, batch_timesteps
from bartleby.denoisers.posteriors import TokenMixture, WienerFilter
from bartleby.precision import attention_kernel

PRECONDITIONS = ("none", "wiener", "mixture")
SIZES = {  # name -> (width, layers, heads)
    "tiny": (128, 3, 4),
    "nano": (256, 6, 4),  # with the bundled BART it stays under 45 MB
    "small": (384, 6, 6),
    "base": (512, 12, 8),
}
TIME_FEATURES = 256


class DenoisingTransformer(Denoiser):
    """A transformer over the latents of one text.

    self_conditioning: forward also takes the previous estimate of x0.  precondition: none, wiener or
    mixture; with the latter two the output is x0, and the tables of `self.posterior` must be fitted to
    the latents before training.  vocabulary, window: of the mixture's tables.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 256,
        width: int = 384,
        layers: int = 6,
        heads: int = 6,
        self_conditioning: bool = False,
        precondition: str = "none",
        timesteps: int = 1000,
        vocabulary: int = 0,
        window: int = 0,
    ):
        super().__init__()
        self.posterior: WienerFilter | TokenMixture | None = None
        if precondition == "wiener":
            self.posterior = WienerFilter(channels, timesteps)
        elif precondition == "mixture":
            self.posterior = TokenMixture(channels, timesteps, vocabulary, window)
        inputs = self.posterior.inputs_per_channel if self.posterior else 1
        self.enter = nn.Linear(channels * (inputs + self_conditioning), width)
        self.trunk = Trunk(width, layers, heads)
        self.leave = nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)  # starts as no prediction, or no correction
        nn.init.zeros_(self.leave.bias)

    @property
    def bottleneck(self) -> float:
        """Numbers a position that get from input to output: the width, or all beside the posterior."""
        return self.config.channels if self.posterior else self.config.width

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        """previous: [B, C, L], an earlier estimate of x0 for self-conditioning; zeros where there is none."""
        timesteps = batch_timesteps(timestep, sample)
        inputs, closed_form = sample, self.posterior
        if closed_form:
            posterior = closed_form.infer(sample, timesteps, mask)
            inputs = posterior.inputs
        if self.config.self_conditioning:
            previous = torch.zeros_like(sample) if previous is None else previous
            inputs = torch.cat([inputs, previous], dim=1)
        hidden = self.trunk(self.enter(inputs.transpose(1, 2)), timesteps, mask)  # [B, L, W]
        prediction = self.leave(hidden).transpose(1, 2).float()
        if closed_form:
            prediction = closed_form.estimate(posterior, prediction)
        return DenoiserOutput(sample=at_real_tokens(prediction, mask))


class Trunk(nn.Module):
    """The layers between what enters and what leaves: [B, L, W] to [B, L, W], the timestep in each."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.time = nn.Sequential(
            Timesteps(TIME_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0),
            nn.Linear(TIME_FEATURES, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.modulation = nn.Linear(width, 6 * width)
        self.head_width = width // heads
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last_modulation = nn.Linear(width, 2 * width)
        for linear in (self.modulation, self.last_modulation):
            nn.init.zeros_(linear.weight)  # every layer starts as the identity (DiT's adaLN-Zero)
            nn.init.zeros_(linear.bias)

    def forward(
        self, hidden: torch.Tensor, timesteps: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """timesteps: [B].  mask: [B, L], True at real tokens."""
        time = self.time(timesteps)  # [B, W]
        modulation = self.modulation(time)[:, None].chunk(6, dim=-1)
        rotation = rotary_angles(hidden.shape[1], self.head_width, hidden.device)
        attended = None if mask is None else mask[:, None, None].bool()  # [B, 1, 1, L]
        for block in self.blocks:
            hidden = block(hidden, modulation, rotation, attended)
        shift, scale = self.last_modulation(time)[:, None].chunk(2, dim=-1)
        return normalised(hidden) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and SwiGLU, each shifted, scaled and gated by the timestep."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        inner = width * 8 // 3 // 32 * 32  # as many weights as a plain MLP of four times the width
        self.offset = nn.Parameter(torch.zeros(6, width))  # this layer's own part of the modulation
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = nn.RMSNorm(self.head_width)
        self.key_norm = nn.RMSNorm(self.head_width)
        self.attended = nn.Linear(width, width, bias=False)
        self.gate_and_value = nn.Linear(width, 2 * inner, bias=False)
        self.shrink = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        modulation: tuple[torch.Tensor, ...],
        rotation: torch.Tensor,
        attended: torch.Tensor | None,
    ) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            part + own for part, own in zip(modulation, self.offset, strict=True)
        )
        hidden = hidden + gate_a * self._attention(
            normalised(hidden) * (1 + scale_a) + shift_a, rotation, attended
        )
        gate, value = self.gate_and_value(normalised(hidden) * (1 + scale_m) + shift_m).chunk(
            2, dim=-1
        )
        return hidden + gate_m * self.shrink(F.silu(gate) * value)

    def _attention(
        self, values: torch.Tensor, rotation: torch.Tensor, attended: torch.Tensor | None
    ) -> torch.Tensor:
        batch, length, width = values.shape
        split = self.query_key_value(values).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, L, head_width]
        query = rotated(self.query_norm(query.float()), rotation)
        key = rotated(self.key_norm(key.float()), rotation)
        with attention_kernel(length, value.device):
            mixed = F.scaled_dot_product_attention(
                query.to(value.dtype), key.to(value.dtype), value, attn_mask=attended
            )
        return self.attended(mixed.transpose(1, 2).reshape(batch, length, width))


def normalised(values: torch.Tensor) -> torch.Tensor:
    """Layer normalisation without weights; the modulation has them."""
    return F.layer_norm(values, values.shape[-1:])


def rotary_angles(length: int, width: int, device: torch.device) -> torch.Tensor:
    """Angles [L, width / 2] of rotary position embeddings."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    return torch.arange(length, device=device)[:, None] * frequencies


def rotated(values: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Queries or keys [B, heads, L, width] turned by their positions' angles."""
    first, second = values.float().chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
