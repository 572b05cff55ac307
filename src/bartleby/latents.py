"""Latents of a batch of texts, their statistics per channel, and how those are measured and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bartleby.errors import UserError
from bartleby.precision import exact

STATISTICS_FILE = "latent_statistics.json"
STATISTICS_TEXTS = 5_000  # are enough to measure them on


@dataclass(frozen=True)
class Latents:
    """values: [B, C, L], float32, zero at padding.  mask: [B, L], bool, True at real tokens."""

    values: torch.Tensor
    mask: torch.Tensor

    def __post_init__(self):
        """UserError for shapes that do not belong together."""
        shape = tuple(self.values.shape)
        if len(shape) != 3 or tuple(self.mask.shape) != (shape[0], shape[2]):
            raise UserError(
                f"latents are {list(shape)} and their mask {list(self.mask.shape)}; they must be [B, C, L] and [B, L]"
            )
        if self.mask.dtype != torch.bool:
            raise UserError(f"a mask of latents is {self.mask.dtype}; it must be bool")

    @property
    def real(self) -> torch.Tensor:
        """The latents of real tokens alone, [tokens, C]."""
        return self.values.transpose(1, 2)[self.mask]


@dataclass(frozen=True)
class LatentStatistics:
    """mean, std: [C], per channel over the real tokens of a training split.  tokens: how many of them.

    effective_rank: 1 to C, of their covariance (`fit_latent_statistics`).  source: where they are from, in words.
    """

    mean: torch.Tensor = field(repr=False)
    std: torch.Tensor = field(repr=False)
    tokens: int
    effective_rank: float
    source: str

    def normalise(self, latents: Latents) -> Latents:
        """Raw latents to unit variance per channel."""
        mean, std = self._on(latents.values.device)
        return Latents((latents.values - mean) / std * latents.mask[:, None], latents.mask)

    def denormalise(self, latents: Latents) -> Latents:
        """The inverse of `normalise`."""
        mean, std = self._on(latents.values.device)
        return Latents((latents.values * std + mean) * latents.mask[:, None], latents.mask)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean[:, None].to(device), self.std[:, None].to(device)

    def to_json(self) -> dict:
        """For `latent_statistics.json`."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "effective_rank": self.effective_rank,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @classmethod
    def from_json(cls, value: dict) -> LatentStatistics:
        """The inverse of `to_json`."""
        return cls(
            mean=torch.tensor(value["mean"]),
            std=torch.tensor(value["std"]),
            tokens=value["tokens"],
            effective_rank=value["effective_rank"],
            source=value["source"],
        )


class LatentMoments:
    """Running mean and covariance of raw latents: add real tokens [n, C], then read.

    Sums are float64; a batch's products are float32's, before they are added up.
    """

    def __init__(self, channels: int):
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, real: torch.Tensor) -> None:
        self.count += len(real)
        self.total += real.sum(dim=0, dtype=torch.float64).cpu()
        with exact(real.device):
            self.products += (real.T @ real).cpu().double()

    @property
    def mean(self) -> torch.Tensor:
        """[C]"""
        return self.total / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """[C, C]"""
        return self.products / self.count - torch.outer(self.mean, self.mean)

    def statistics(self, source: str) -> LatentStatistics:
        """Per channel, with the effective rank of all."""
        covariance = self.covariance
        return LatentStatistics(
            mean=self.mean.float(),
            std=covariance.diagonal().clamp_min(1e-12).sqrt().float(),
            tokens=self.count,
            effective_rank=effective_rank(covariance),
            source=source,
        )


def all_real(values: torch.Tensor) -> Latents:
    """Latents [B, C, L] without padding."""
    return Latents(values, torch.ones_like(values[:, 0], dtype=torch.bool))


def effective_rank(covariance: torch.Tensor) -> float:
    """exp(entropy of the normalised eigenvalues) of a covariance [C, C]: between 1 and C."""
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0)
    shares = eigenvalues / eigenvalues.sum().clamp_min(1e-30)
    return float(torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()))


def read_statistics(folder: Path, channels: int) -> LatentStatistics | None:
    """The statistics saved in a model folder; None if it has none, UserError if they do not fit the model."""
    path = folder / STATISTICS_FILE
    if not path.exists():
        return None
    try:
        statistics = LatentStatistics.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    if len(statistics.mean) != channels or len(statistics.std) != channels:
        raise UserError(
            f"'{path}' has {len(statistics.mean)} channels, the model beside it {channels}"
        )
    return statistics
