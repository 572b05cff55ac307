"""Where the variance of latents comes from: means by position and by token, and what is left.

Additive, as in an analysis of variance: latent = position mean + token mean + rest. Written beside the
latent cache, since two passes over all latents take a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from bartleby.checkpoints import load_tensors, made_once, replaced_file
from bartleby.denoisers.posteriors import TokenMixture
from bartleby.errors import UserError
from bartleby.latent_data import LatentData
from bartleby.messages import say

FILE = "token_statistics.safetensors"
PASSAGES_PER_CHUNK = 512
UNCACHED_PASSAGES = 5_000  # what the statistics are taken from where latents are not cached
PRIOR_COUNT = 0.1  # added to each token's count, so that unseen tokens stay possible
SHRINKAGE = 1.0  # a token's mean is pulled towards 0 as if it had been seen this often at 0


@dataclass(frozen=True)
class TokenStatistics:
    """Of normalised latents.  position_means: [L, C].  token_means: [V, C], about the position's mean.

    counts: [V].  within: [C, C], covariance of the rest.
    """

    position_means: torch.Tensor
    token_means: torch.Tensor
    counts: torch.Tensor
    within: torch.Tensor

    @property
    def prior(self) -> torch.Tensor:
        """Probability of each token, [V]."""
        counts = self.counts + PRIOR_COUNT
        return counts / counts.sum()

    def shares(self, covariance: torch.Tensor) -> dict[str, float]:
        """Parts of the latents' variance: position, token, rest.  covariance: [C, C], of all latents."""
        total = float(covariance.diagonal().sum())
        rest = float(self.within.diagonal().sum()) / total
        token = float((self.prior[:, None] * self.token_means.square()).sum()) / total
        return {"position": 1 - token - rest, "token": token, "rest": rest}


def token_statistics(data: LatentData) -> TokenStatistics:
    """The statistics of a split's normalised latents; read from beside the cache if they are there.

    Raises UserError for compressed latents, which belong to no token.
    """
    if data.autoencoder.compressor is not None:
        raise UserError(
            f"the latents of '{data.autoencoder.name}' are compressed and belong to no token: no token mixture "
            "and no token-transformer; use denoiser.name = 'transformer'"
        )
    path = data.cache.with_name(FILE) if data.cache else None
    if path is None:
        say(
            f"token statistics from {min(len(data), UNCACHED_PASSAGES):,} passages: no cache to read"
        )
        tables = _measure(data)
    else:
        made_once(
            path, lambda: _save(_measure(data), path), lock=path.with_suffix(".lock"), say=say
        )
        tables = _load(path)
    return _normalised(TokenStatistics(**tables), data)


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_tensors(path)
    except UserError as error:
        raise UserError(f"{error}; remove it, and it is measured again") from None


def _save(tables: dict[str, torch.Tensor], path: Path) -> None:
    with replaced_file(path) as temporary:
        save_file(tables, temporary)


def fit_mixture(
    mixture: TokenMixture, statistics: TokenStatistics, alpha_bar: torch.Tensor
) -> None:
    """Sets the mixture's tables for these latents under this schedule, alpha_bar [T]."""
    mixture.fit(
        position_means=statistics.position_means,
        token_means=statistics.token_means,
        prior=statistics.prior,
        within=statistics.within,
        alpha_bar=alpha_bar,
    )


def _measure(data: LatentData) -> dict[str, torch.Tensor]:
    """The statistics of raw latents, in two passes: position means, then the rest about them."""
    channels = data.autoencoder.channels
    window, vocabulary = data.autoencoder.window, len(data.autoencoder.tokenizer)
    device = data.autoencoder.device  # a GPU has these sums at once
    sums = torch.zeros(window, channels, dtype=torch.float64, device=device)
    seen = torch.zeros(window, dtype=torch.float64, device=device)
    for latents, _, positions in _chunks(data):
        sums.index_add_(0, positions, latents.double())
        seen += torch.bincount(positions, minlength=window)
    overall = sums.sum(dim=0) / seen.sum()
    position_means = torch.where(seen[:, None] > 0, sums / seen[:, None].clamp_min(1), overall)
    totals = torch.zeros(vocabulary, channels, dtype=torch.float64, device=device)
    counts = torch.zeros(vocabulary, dtype=torch.float64, device=device)
    products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
    for latents, tokens, positions in _chunks(data):
        rest = latents - position_means[positions].float()
        totals.index_add_(0, tokens, rest.double())
        counts += torch.bincount(tokens, minlength=vocabulary)
        products += (rest.T @ rest).double()
    token_means = totals / (counts + SHRINKAGE)[:, None]
    # Sum of (rest - mean)(rest - mean)' over all latents, each with its token's mean.
    crossed = token_means.T @ totals
    within = products - crossed - crossed.T + (token_means * counts[:, None]).T @ token_means
    return {
        "position_means": position_means.float().cpu(),
        "token_means": token_means.float().cpu(),
        "counts": counts.float().cpu(),
        "within": (within / counts.sum()).float().cpu(),
    }


def _chunks(data: LatentData) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(raw latents [n, C], token ids [n], positions [n]) of real tokens, all of a cache or a sample without."""
    device = data.autoencoder.device
    step = 1 if data.cache else max(1, len(data) // UNCACHED_PASSAGES)
    order = np.argsort(data.lengths[::step], kind="stable") * step
    for start in range(0, len(order), PASSAGES_PER_CHUNK):
        indices = order[start : start + PASSAGES_PER_CHUNK]
        latents = data.raw_batch(indices, device=device)
        tokens = data.token_batch(indices, padding=0).to(device)
        positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        yield latents.real, tokens[latents.mask], positions[latents.mask]


def _normalised(raw: TokenStatistics, data: LatentData) -> TokenStatistics:
    if data.statistics is None:
        return raw
    mean, std = data.statistics.mean, data.statistics.std
    return TokenStatistics(
        (raw.position_means - mean) / std,
        raw.token_means / std,
        raw.counts,
        raw.within / torch.outer(std, std),
    )
