"""A trained denoiser at work: raw latents with noise on them in, cleaner ones out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, ModelMixin

from bartleby.autoencoder import Autoencoder
from bartleby.denoisers import load_denoiser
from bartleby.errors import UserError
from bartleby.evaluation.latents import estimate_x0
from bartleby.latents import Latents, LatentStatistics, read_statistics
from bartleby.loading import bundled_folder
from bartleby.run_folder import DENOISER, SCHEDULER
from bartleby.schedules import noise_deviations


@dataclass(frozen=True)
class TrainedDenoiser:
    """A denoiser with what it was trained with.  statistics: of the latents it knows, None for raw ones."""

    denoiser: ModelMixin
    scheduler: DDPMScheduler
    statistics: LatentStatistics | None
    name: str

    def restore(self, noised: Latents, level: float) -> Latents:
        """The denoiser's estimate of the clean raw latents.  level: deviation of the noise on them.

        The network knows noise of one size on all channels; raw noise is that only on average once the
        channels are normalised, so the timestep is taken for its root mean square.
        """
        if level == 0:
            return noised
        normal = self.statistics.normalise(noised) if self.statistics else noised
        inverse_std = 1 / self.statistics.std if self.statistics else torch.ones(1)
        deviation = level * float(inverse_std.square().mean().sqrt())
        timestep = self.timestep(deviation)
        alpha_bar = float(self.scheduler.alphas_cumprod[timestep])
        xt = normal.values * alpha_bar**0.5
        x0, _ = estimate_x0(self.denoiser, self.scheduler, xt, noised.mask, timestep)
        restored = Latents(x0, noised.mask)
        return self.statistics.denormalise(restored) if self.statistics else restored

    def timestep(self, deviation: float) -> int:
        """The timestep whose x_t / sqrt(alpha_bar) carries noise of this deviation."""
        return int((noise_deviations(self.scheduler) - deviation).abs().argmin())


def load_trained_denoiser(folder: str | Path | None, autoencoder: Autoencoder) -> TrainedDenoiser:
    """The denoiser of a training run's folder, or of the bundled model; UserError if it does not fit the BART."""
    folder = Path(folder) if folder else bundled_folder()
    if not (folder / DENOISER).is_dir() or not (folder / SCHEDULER).is_dir():
        raise UserError(f"'{folder}' holds no finished denoiser: denoiser or scheduler is missing")
    denoiser = load_denoiser(folder / DENOISER)
    if denoiser.config.channels != autoencoder.channels:
        raise UserError(
            f"the denoiser in '{folder}' has {denoiser.config.channels} channels, "
            f"'{autoencoder.name}' {autoencoder.channels}"
        )
    return TrainedDenoiser(
        denoiser.to(autoencoder.device),
        DDPMScheduler.from_pretrained(folder / SCHEDULER),
        read_statistics(folder, autoencoder.channels),
        str(folder),
    )
