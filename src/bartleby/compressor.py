"""A Perceiver between a BART's latents and a few vectors: a text of any length becomes K latents of D channels.

Queries that are learned read the text by cross-attention (Jaegle et al. 2021), as in Latent Diffusion for
Language Generation (Lovelace et al. 2022): a denoiser then works on [B, D, K] whatever the text's length,
which the latents hold as they hold its words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

QUERY_SCALE = 0.02  # deviation of the learned queries at first, as BART's embeddings


class Compressor(ModelMixin, ConfigMixin):
    """channels: C of the BART.  vectors: K.  vector_channels: D.  window: L that `expand` gives back.

    Compressed vectors have mean 0 and variance 1 over their own channels, so that noise of one deviation
    means the same to each.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 256,
        vectors: int = 16,
        vector_channels: int = 64,
        window: int = 32,
        width: int = 256,
        layers: int = 3,
        heads: int = 4,
    ):
        super().__init__()
        # Of BART's latents, from the training split: what is read and written is normalised in between.
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.read = Perceiver(channels, vectors, width, layers, heads, vector_channels)
        self.write = Perceiver(vector_channels, window, width, layers, heads, channels)

    def compress(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Raw latents [B, C, L] of BART and their mask [B, L] to [B, D, K]."""
        vectors = self.read((values.transpose(1, 2) - self.mean) / self.std, mask)
        return F.layer_norm(vectors.float(), vectors.shape[-1:]).transpose(1, 2)

    def expand(self, vectors: torch.Tensor) -> torch.Tensor:
        """[B, D, K] to raw latents [B, C, window]: every position, since the vectors say where the text ends."""
        return (self.write(vectors.transpose(1, 2)).float() * self.std + self.mean).transpose(1, 2)


class Perceiver(nn.Module):
    """[B, n, inputs] to [B, queries, outputs]: layers of cross-attention from learned queries."""

    def __init__(
        self, inputs: int, queries: int, width: int, layers: int, heads: int, outputs: int
    ):
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.queries = nn.Parameter(torch.randn(queries, width) * QUERY_SCALE)
        self.layers = nn.ModuleList(PerceiverLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def forward(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """mask: [B, n], True at what may be read; everything by default."""
        seen = self.enter(values)
        state = self.queries.expand(len(values), -1, -1)
        attended = None
        if mask is not None:  # the queries are read as well
            every = torch.ones(state.shape[:2], dtype=torch.bool, device=mask.device)
            attended = torch.cat([mask.bool(), every], dim=1)[:, None, None]
        for layer in self.layers:
            state = layer(state, seen, attended)
        return self.leave(self.norm(state))


class PerceiverLayer(nn.Module):
    """Queries attend to what is seen and to each other, then an MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.state_norm, self.seen_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, state: torch.Tensor, seen: torch.Tensor, attended: torch.Tensor | None
    ) -> torch.Tensor:
        own = self.state_norm(state)
        source = torch.cat([self.seen_norm(seen), own], dim=1)
        key, value = self.key_value(source).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(own), key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
        state = state + self.attended(mixed.transpose(1, 2).flatten(2))
        return state + self.mlp(state)
