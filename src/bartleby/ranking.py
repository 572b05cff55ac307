"""Which of several candidates reads best, by the model's own account.

The decoder reads what the denoiser makes of pure noise, which is a text's length and nothing else, and so
scores a text as a language model would. Choosing by a score among candidates is how published systems
decode as well (minimum Bayes risk among 50 in Li et al. 2022, Diffusion-LM, section 4.3).
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDPMScheduler, ModelMixin

from bartleby.autoencoder import Autoencoder
from bartleby.batching import batches_by_length, pad, round_up
from bartleby.denoisers.contract import kept_apart
from bartleby.latents import Latents
from bartleby.objective import predicted_x0
from bartleby.precision import autocast
from bartleby.reading import IGNORED, token_nats
from bartleby.sampling import starting_noise

TOKENS_PER_BATCH = 4096  # padded positions scored together


@torch.inference_mode()
def prior_nats(
    autoencoder: Autoencoder,
    denoiser: ModelMixin,
    scheduler: DDPMScheduler,
    written: list[list[int]],
    *,
    seeds: list[tuple[int, ...]],
) -> np.ndarray:
    """[n] nats a token of texts (their ids, <s> and </s> included) when nothing is known but each one's length.

    seeds: of the pure noise that the denoiser is shown; candidates that are compared should share theirs.
    """
    most = autoencoder.bart.config.max_position_embeddings
    written = [ids[:most] for ids in written]
    nats = np.zeros(len(written))
    counts = np.array([len(ids) for ids in written])
    lengths = np.array([autoencoder.latents_of(min(count, autoencoder.window)) for count in counts])
    for indices in batches_by_length(
        counts, tokens_per_batch=TOKENS_PER_BATCH, apart=kept_apart(denoiser, lengths)
    ):
        sequences = [written[index] for index in indices]
        own = torch.from_numpy(lengths[indices]).to(denoiser.device)
        latents = _blind_estimate(denoiser, scheduler, own, [seeds[index] for index in indices])
        with autocast(autoencoder.device, autoencoder.dtype):
            labels, _ = pad(sequences, IGNORED)
            scores = token_nats(autoencoder.bart, autoencoder.readable(latents), labels)
        parts = scores.split([len(ids) for ids in sequences])
        nats[indices] = [float(part.mean()) for part in parts]
    return nats


def _blind_estimate(
    denoiser: ModelMixin,
    scheduler: DDPMScheduler,
    lengths: torch.Tensor,
    seeds: list[tuple[int, ...]],
) -> Latents:
    """What the denoiser makes of pure noise in one step, for texts of these lengths."""
    multiple = denoiser.length_multiple
    longest = round_up(int(lengths.max()), multiple)
    mask = torch.arange(longest, device=lengths.device) < lengths[:, None]
    noise = starting_noise(mask, denoiser.config.channels, seeds=seeds)
    last = scheduler.config.num_train_timesteps - 1
    timesteps = torch.full((len(mask),), last, device=lengths.device)
    prediction = denoiser(noise, timesteps, mask).sample.float()
    return Latents(predicted_x0(scheduler, prediction, noise, timesteps), mask)
