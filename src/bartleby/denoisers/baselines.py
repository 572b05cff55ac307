"""Denoisers that need no training: whatever is trained has to beat them."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config

from bartleby.denoisers.contract import Denoiser, DenoiserOutput, at_real_tokens, batch_timesteps
from bartleby.denoisers.posteriors import TokenMixture, WienerFilter


class IdentityDenoiser(Denoiser):
    """Returns its input as the noise: a noise-predicting network that has learned nothing.

    Closed form of its noise cosine, for latents of unit variance: sqrt(1 - alpha_bar).
    """

    target = "noise"

    @register_to_config
    def __init__(self, channels: int = 256):
        super().__init__()

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        return DenoiserOutput(sample=at_real_tokens(sample, mask))


class WienerDenoiser(Denoiser):
    """Returns the best linear estimate of x0 from each position alone, the Wiener filter.

    Closed form of its noise cosine: sqrt(mean over i of (1-a) / (a lambda_i + 1 - a)), lambda_i the
    eigenvalues of the latents' covariance. `posterior.fit` must be given that covariance first.
    """

    target = "x0"

    @register_to_config
    def __init__(self, channels: int = 256, timesteps: int = 1000):
        super().__init__()
        self.posterior = WienerFilter(channels, timesteps)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        posterior = self.posterior.infer(sample, batch_timesteps(timestep, sample), mask)
        return DenoiserOutput(sample=at_real_tokens(self.posterior.estimate(posterior), mask))


class MixtureDenoiser(Denoiser):
    """Returns the posterior mean of x0 where each position's latent is one of its tokens' Gaussians.

    What the statistics of single tokens say and a linear filter cannot; nothing of context. The tables of
    `posterior` must be fitted to the latents first (`token_statistics.fit_mixture`).
    """

    target = "x0"

    @register_to_config
    def __init__(
        self,
        channels: int = 256,
        timesteps: int = 1000,
        vocabulary: int = 8192,
        window: int = 128,
    ):
        super().__init__()
        self.posterior = TokenMixture(channels, timesteps, vocabulary, window)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        mask: torch.Tensor | None = None,
    ) -> DenoiserOutput:
        posterior = self.posterior.infer(sample, batch_timesteps(timestep, sample), mask)
        return DenoiserOutput(sample=at_real_tokens(self.posterior.estimate(posterior), mask))


def identity_noise_cosine(alpha_bar: torch.Tensor, *, variance: float = 1.0) -> torch.Tensor:
    """Closed form at each alpha_bar, for latents of this mean square."""
    return ((1 - alpha_bar) / (alpha_bar * variance + 1 - alpha_bar)).sqrt()


def wiener_noise_cosine(
    alpha_bar: torch.Tensor, eigenvalues: torch.Tensor, moments: torch.Tensor | None = None
) -> torch.Tensor:
    """Closed form at each alpha_bar [T], for a filter fitted to these eigenvalues [C].

    moments: [C], mean squares along the filter's axes of the latents it is used on; by default the
    eigenvalues themselves, and then it is sqrt(mean over i of (1-a) / (a lambda_i + 1 - a)).
    """
    a = alpha_bar[:, None]
    moments = eigenvalues if moments is None else moments
    gain = (1 - a).sqrt() / (a * eigenvalues + 1 - a)  # of the noise estimate, on each component
    power = (gain.square() * (a * moments + 1 - a)).mean(dim=1)
    return (1 - a[:, 0]).sqrt() * gain.mean(dim=1) / power.sqrt()
