"""The denoiser that writes: a transformer that says how likely each token is, in the context of all others.

A latent is nearly known once its token is (posteriors.py), and by Bayes' rule

    p(token | x_t) is proportional to p(x_t at its place | token) p(token | the rest of x_t):

the first factor is known in closed form, the second is what the transformer learns, with cross-entropy
against the true tokens. x0 is the expectation over them, as in the score interpolation of CDCD
(Dieleman et al. 2022, section 3.1): a mean of real latents, never shrunk where the token is certain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from bartleby.denoisers.candidates import Candidates
from bartleby.denoisers.contract import Denoiser, at_real_tokens, batch_timesteps
from bartleby.denoisers.posteriors import Evidence, TokenMixture, placed
from bartleby.denoisers.transformer import Trunk
from bartleby.precision import exact


@dataclass(frozen=True)
class TokenDenoiserOutput:
    """What the network says of the n real places, text after text.

    logits: [n, V], float32, of the tokens.  expected_latents: makes x0 [B, C, L] of such logits, these
    or others (sharpened, guided).  Training needs the logits alone, so x0 is made when it is asked for.
    """

    logits: torch.Tensor
    expected_latents: Callable[[torch.Tensor], torch.Tensor]

    @cached_property
    def sample(self) -> torch.Tensor:
        """x0 [B, C, L], the expectation over the tokens; zero at padding."""
        return self.expected_latents(self.logits)


class TokenTransformer(Denoiser):
    """A transformer over one text's latents that predicts tokens, and x0 as their expectation.

    self_conditioning: forward also takes the previous estimate of x0. The tables of `self.posterior`
    must be fitted to the latents before training.
    """

    target = "x0"

    @register_to_config
    def __init__(
        self,
        channels: int = 256,
        width: int = 384,
        layers: int = 6,
        heads: int = 6,
        self_conditioning: bool = True,
        timesteps: int = 1000,
        vocabulary: int = 8192,
        window: int = 128,
    ):
        super().__init__()
        self.posterior = TokenMixture(channels, timesteps, vocabulary, window)
        self.enter = nn.Linear(channels * (2 + self_conditioning), width)
        self.given = nn.Parameter(torch.zeros(width))  # marks the places whose token is known
        self.trunk = Trunk(width, layers, heads)
        self.leave = nn.Linear(width, channels)
        self.readout = nn.Embedding(vocabulary, channels)
        nn.init.zeros_(self.leave.weight)  # starts as the mixture, which knows no context
        nn.init.zeros_(self.leave.bias)
        nn.init.normal_(self.readout.weight, std=channels**-0.5)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        candidates: Candidates | None = None,
    ) -> TokenDenoiserOutput:
        """previous: [B, C, L], an earlier estimate of x0; zeros where there is none.

        known: [B, L], ids of tokens that are given (a prefix, the words around a gap), -1 elsewhere.
        candidates: the V of the output are these tokens instead of the whole vocabulary.
        """
        timesteps = batch_timesteps(timestep, sample)
        with exact(sample.device):
            seen = self.posterior.observe(sample, timesteps, mask, known, candidates)
        with torch.autocast(sample.device.type, enabled=False):
            token = seen.logits.softmax(dim=1) @ seen.token_means
            inputs = placed(torch.cat([seen.z * seen.precision.sqrt(), token], dim=1), seen.mask)
            if self.config.self_conditioning:
                previous = torch.zeros_like(sample) if previous is None else previous
                inputs = torch.cat([inputs, previous], dim=1)
        hidden = self.enter(inputs.transpose(1, 2))  # [B, L, W]
        if known is not None:
            hidden = hidden + (known >= 0)[:, :, None] * self.given
        hidden = self.trunk(hidden, timesteps, seen.mask)[seen.mask]  # [n, W]
        context = self.leave(hidden).float()  # [n, C]
        readout = self.readout.weight if candidates is None else self.readout(candidates.ids)
        with torch.autocast(sample.device.type, enabled=False):
            logits = torch.addmm(seen.logits, context, readout.T)  # [n, V]
        return TokenDenoiserOutput(logits, functools.partial(self._expected_latents, seen))

    def _expected_latents(self, seen: Evidence, logits: torch.Tensor) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            mean = self.posterior.explain(seen, logits.softmax(dim=1) @ seen.token_means)
            return at_real_tokens(self.posterior.latents(mean, seen.mask), seen.mask)
