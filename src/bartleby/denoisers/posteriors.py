"""What can be said of x0 from one position of x_t alone, in closed form, from statistics of the latents.

Two models of clean latents. `WienerFilter`: Gaussian, with their covariance. `TokenMixture`: a mean for
each position and each token of the vocabulary, and a Gaussian around them; which token it is follows
from x_t by Bayes' rule. Both give the posterior mean and deviation of x0, which a network may correct:
Karras et al. 2022 (EDM, table 1) is the Gaussian with unit covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bartleby.denoisers.candidates import Candidates
from bartleby.precision import exact

SMALLEST_VARIANCE = 1e-4  # a component that never varies must not be divided by
IMPOSSIBLE = -1e4  # logit of every other token where one is known
POSITIONS = 8192  # inferred together at most


@dataclass(frozen=True)
class Posterior:
    """x0 given x_t, in axes where its channels are independent; all [B, k, L] or [B, k, 1], float32.

    inputs: what a network should read, about unit variance.  mean, deviation: of x0's C components.
    """

    inputs: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor


class WienerFilter(nn.Module):
    """The best linear estimate of x0 from each position.

    Latents of covariance U diag(lambda) U', noised to x_t = sqrt(a) x0 + sqrt(1-a) noise, have along U
    independent components z_i of variance a lambda_i + 1 - a. x0's component then has the posterior mean
    sqrt(a) lambda_i / (a lambda_i + 1 - a) z_i and variance lambda_i (1-a) / (a lambda_i + 1 - a).

    Tables, set by `fit` and saved with the model: basis U [C, C], eigenvalues [C], alpha_bar [T].
    """

    inputs_per_channel = 1
    basis: torch.Tensor
    eigenvalues: torch.Tensor
    alpha_bar: torch.Tensor

    def __init__(self, channels: int, timesteps: int):
        super().__init__()
        self.register_buffer("basis", torch.eye(channels))
        self.register_buffer("eigenvalues", torch.ones(channels))
        self.register_buffer("alpha_bar", torch.linspace(1, 0, timesteps))

    def fit(self, covariance: torch.Tensor, alpha_bar: torch.Tensor) -> None:
        """For latents of this covariance [C, C] under this schedule [T]."""
        eigenvalues, basis = torch.linalg.eigh(covariance.double().cpu())
        self.eigenvalues.copy_(eigenvalues.flip(0).clamp_min(0))
        self.basis.copy_(basis.flip(1))
        self.alpha_bar.copy_(alpha_bar)

    def infer(
        self, sample: torch.Tensor, timesteps: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Posterior:
        """The posterior given x_t [B, C, L] at timesteps [B]."""
        # In half precision the way there and back would lose more than the noise of early timesteps.
        with exact(sample.device):
            a = self.alpha_bar[timesteps][:, None, None]  # [B, 1, 1]
            eigenvalues = self.eigenvalues[:, None]
            z = self.basis.T @ sample.float()
            variance = a * eigenvalues + 1 - a  # [B, C, 1]
            return Posterior(
                inputs=z / variance.sqrt(),
                mean=a.sqrt() * eigenvalues / variance * z,
                deviation=(eigenvalues * (1 - a) / variance).sqrt(),
            )

    def estimate(
        self, posterior: Posterior, correction: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x0 [B, C, L]: the posterior mean, plus a correction in units of its deviation."""
        with exact(posterior.mean.device):
            return self.basis @ corrected(posterior, correction)


@dataclass(frozen=True)
class Evidence:
    """What each of n real positions says of its token by itself; V tokens or candidates, C axes.

    z: [n, C], the noised latent about its position's mean.  logits: [n, V], log of likelihood times
    prior, up to a constant.  signal: [n, 1], sqrt(alpha_bar).  precision: [n, C], of z given the token.
    mask: [B, L], where the n tokens stand.  token_means: [V, C].
    """

    z: torch.Tensor
    logits: torch.Tensor
    token_means: torch.Tensor
    signal: torch.Tensor
    precision: torch.Tensor
    mask: torch.Tensor


class TokenMixture(nn.Module):
    """x0 = position mean + token mean + a Gaussian rest, the token unknown: its posterior is Bayes' rule.

    Tables, set by `fit` and saved with the model: position_means [L, C]; along the axes of the rest's
    covariance (basis, eigenvalues) token_means [V, C]; log_prior [V]; alpha_bar [T].
    """

    inputs_per_channel = 2
    basis: torch.Tensor
    eigenvalues: torch.Tensor
    alpha_bar: torch.Tensor
    position_means: torch.Tensor
    token_means: torch.Tensor
    log_prior: torch.Tensor

    def __init__(self, channels: int, timesteps: int, vocabulary: int, window: int):
        super().__init__()
        self.register_buffer("basis", torch.eye(channels))
        self.register_buffer("eigenvalues", torch.ones(channels))
        self.register_buffer("alpha_bar", torch.linspace(1, 0, timesteps))
        self.register_buffer("position_means", torch.zeros(window, channels))
        self.register_buffer("token_means", torch.zeros(vocabulary, channels))
        self.register_buffer("log_prior", torch.zeros(vocabulary))

    def fit(
        self,
        *,
        position_means: torch.Tensor,
        token_means: torch.Tensor,
        prior: torch.Tensor,
        within: torch.Tensor,
        alpha_bar: torch.Tensor,
    ) -> None:
        """position_means: [L, C].  token_means: [V, C].  prior: [V].  within: [C, C], covariance of the rest."""
        eigenvalues, basis = torch.linalg.eigh(within.double().cpu())
        self.eigenvalues.copy_(eigenvalues.flip(0).clamp_min(0))
        self.basis.copy_(basis.flip(1))
        self.alpha_bar.copy_(alpha_bar)
        self.position_means.copy_(position_means)
        self.token_means.copy_(token_means.float() @ self.basis)
        self.log_prior.copy_(prior.log())

    def observe(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        mask: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        candidates: Candidates | None = None,
    ) -> Evidence:
        """The evidence of x_t [B, C, L] at timesteps [B], at real tokens only.

        known: [B, L], ids of tokens that are given, -1 elsewhere; there the sample is not looked at.
        candidates: score these instead of the whole vocabulary; they must include what is known.
        """
        means, log_prior = self.token_means, self.log_prior
        if candidates is not None:
            means = means[candidates.ids]
            log_prior = log_prior[candidates.ids] + candidates.log_weight
        if mask is None:
            mask = torch.ones_like(sample[:, 0], dtype=torch.bool)
        mask = mask.bool()
        row = mask.nonzero()[:, 0]  # [n], which text each real token is of
        a = self.alpha_bar[timesteps][:, None]  # [B, 1]
        precision = 1 / (a * self.eigenvalues + 1 - a).clamp_min(SMALLEST_VARIANCE)  # [B, C]
        # What does not depend on z is the same for a whole text: a tenth of the work or less.
        without_z = log_prior - 0.5 * (a * precision) @ means.square().T  # [B, V]
        a, precision = a[row], precision[row]
        positions = self._positions(mask.shape[1]).expand(*mask.shape, -1)[mask]
        z = (sample.float().transpose(1, 2)[mask] - a.sqrt() * positions) @ self.basis
        logits = without_z[row].addmm_(a.sqrt() * precision * z, means.T)
        signal = a.sqrt()
        if known is not None:
            given = known[mask] >= 0
            tokens = known[mask][given]
            signal[given], z[given] = 1.0, self.token_means[tokens]
            precision[given] = 1 / self.eigenvalues.clamp_min(SMALLEST_VARIANCE)
            logits[given] = IMPOSSIBLE
            logits[given, candidates.places(tokens) if candidates else tokens] = 0.0
        return Evidence(z, logits, means, signal, precision, mask)

    def explain(self, evidence: Evidence, token: torch.Tensor) -> torch.Tensor:
        """Posterior mean [n, C] along the axes, about the position's mean, given the expected token mean [n, C]."""
        gain = evidence.signal * self.eigenvalues * evidence.precision
        return token + gain * (evidence.z - evidence.signal * token)

    def latents(self, explained: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x0 [B, C, L] of what `explain` returns; the position's mean alone at padding."""
        x0 = self.basis @ placed(explained, mask)
        return x0 + self._positions(mask.shape[1]).T

    def infer(
        self, sample: torch.Tensor, timesteps: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Posterior:
        """The posterior given x_t [B, C, L] at timesteps [B]; work is only done at real tokens."""
        if mask is None:
            mask = torch.ones_like(sample[:, 0], dtype=torch.bool)
        # Probabilities of a whole vocabulary at every token: some texts at a time, or they fill a GPU.
        texts = torch.arange(len(sample)).split(max(1, POSITIONS // sample.shape[2]))
        with exact(sample.device):
            parts = [self._infer(sample[own], timesteps[own], mask[own]) for own in texts]
        return Posterior(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _infer(
        self, sample: torch.Tensor, timesteps: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        seen = self.observe(sample, timesteps, mask)
        probabilities = seen.logits.softmax(dim=1)
        token = probabilities @ self.token_means
        mean = self.explain(seen, token)
        spread = (probabilities @ self.token_means.square() - token.square()).clamp_min(0)
        gain = seen.signal * self.eigenvalues * seen.precision
        variance = self.eigenvalues * (1 - seen.signal.square()) * seen.precision
        variance = variance + (1 - seen.signal * gain).square() * spread
        inputs = torch.cat([seen.z * seen.precision.sqrt(), mean], dim=1)
        return tuple(placed(part, seen.mask) for part in (inputs, mean, variance.sqrt()))

    def _positions(self, length: int) -> torch.Tensor:
        known = len(self.position_means)
        if length <= known:
            return self.position_means[:length]
        rest = self.position_means[-1:].expand(length - known, -1)  # padding beyond the window
        return torch.cat([self.position_means, rest])

    def estimate(
        self, posterior: Posterior, correction: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x0 [B, C, L]: the posterior mean, plus a correction in units of its deviation."""
        with exact(posterior.mean.device):
            x0 = self.basis @ corrected(posterior, correction)
            return x0 + self._positions(x0.shape[2]).T


def corrected(posterior: Posterior, correction: torch.Tensor | None) -> torch.Tensor:
    """The mean, moved by `correction` deviations."""
    if correction is None:
        return posterior.mean
    return posterior.mean + posterior.deviation * correction.float()


def placed(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values [n, k] of real tokens at their places in [B, k, L], zero elsewhere."""
    spread = values.new_zeros(*mask.shape, values.shape[1])
    spread[mask] = values
    return spread.transpose(1, 2)
