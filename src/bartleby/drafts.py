"""Drafts of texts, denoised and decoded in batches; of a text's candidates the one that reads best stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, ModelMixin

from bartleby.autoencoder import Autoencoder, DecodeSettings
from bartleby.batching import batches_by_length, round_up, tokens_at_once
from bartleby.denoisers.contract import kept_apart
from bartleby.given import FREE, GivenText
from bartleby.latents import Latents
from bartleby.ranking import prior_nats
from bartleby.sampling import (
    SamplingSettings,
    SamplingStep,
    sample_latents,
    starting_noise,
    takes_tokens,
    timesteps_of,
)
from bartleby.schedules import alpha_bar_at
from bartleby.tokenization import content_ids

TOKENS_PER_BATCH = 1024  # positions that a CPU denoises together; more gains nothing on two cores
LENGTH, NOISE, DECODE, RANK = range(4)  # what randomness is for
Callback = Callable[[SamplingStep, list[int]], None]


@dataclass(frozen=True)
class Draft:
    """A candidate for a text: its seed, its tokens' number, and what is already there of it.

    given: None if nothing is.  start: [C, length], latents to begin with instead of noise.
    """

    seed: tuple[int, ...]
    length: int
    given: GivenText | None = None
    start: torch.Tensor | None = None


def decoding_seed(seed: tuple[int, ...]) -> tuple[int, ...]:
    """What the decoder draws with, of a draft's own seed."""
    return (*seed, DECODE)


@dataclass(frozen=True)
class Writer:
    """Makes token ids of drafts. The autoencoder's statistics are those that the denoiser was trained with."""

    autoencoder: Autoencoder
    denoiser: ModelMixin
    scheduler: DDPMScheduler
    settings: SamplingSettings
    decoding: DecodeSettings

    def write(
        self,
        candidates: list[list[Draft]],
        strength: float = 1.0,
        *,
        callback: Callback | None = None,
        first: int = 0,
    ) -> list[tuple[list[int], Draft]]:
        """Of every text's candidates the best: its token ids and its draft.

        All drafts have something given, or none; a start, or none.  callback: gets each SamplingStep and the
        numbers of the texts in its batch, the first text's being `first`.
        """
        decoding = self.decoding
        if strength == 0:  # a reconstruction is no draw
            decoding = dataclasses.replace(decoding, temperature=0.0)
            candidates = [drafts[:1] for drafts in candidates]
        drafts = [draft for own in candidates for draft in own]
        numbers = [number for number, own in enumerate(candidates, start=first) for _ in own]
        written: list[list[int]] = [[]] * len(drafts)
        lengths = np.array([draft.length for draft in drafts])
        for indices in batches_by_length(
            lengths,
            tokens_per_batch=tokens_at_once(self.denoiser.device, on_cpu=TOKENS_PER_BATCH),
            apart=kept_apart(self.denoiser, lengths),
        ):
            batch = [drafts[index] for index in indices]
            latents = self._denoise(
                batch, strength, [numbers[index] for index in indices], callback
            )
            seeds = [decoding_seed(draft.seed) for draft in batch]
            given = [draft.given for draft in batch] if batch[0].given else None
            ids = self.autoencoder.decode_tokens(latents, decoding, given=given, seeds=seeds)
            for index, sequence in zip(indices, ids, strict=True):
                written[index] = sequence
        return [(written[index], drafts[index]) for index in self._best(candidates, written)]

    def _best(self, candidates: list[list[Draft]], written: list[list[int]]) -> list[int]:
        """Of each text's candidates the number, counted over all of them, of the one that reads best."""
        counts = [len(drafts) for drafts in candidates]
        firsts = np.cumsum([0, *counts[:-1]])
        if max(counts) == 1:
            return firsts.tolist()
        start, end = (
            self.autoencoder.tokenizer.bos_token_id,
            self.autoencoder.tokenizer.eos_token_id,
        )
        ids = [[start, *content_ids(self.autoencoder.tokenizer, own), end] for own in written]
        nats = prior_nats(
            self.autoencoder,
            self.denoiser,
            self.scheduler,
            ids,
            seeds=[(*own[0].seed, RANK) for own in candidates for _ in own],
        )
        ends = firsts + counts
        return [int(a + nats[a:b].argmin()) for a, b in zip(firsts, ends, strict=True)]

    def _denoise(
        self, drafts: list[Draft], strength: float, numbers: list[int], callback: Callback | None
    ) -> Latents:
        """Latents of one batch; all of its drafts have something given, or none, and a start, or none."""
        device, seeds = self.denoiser.device, [draft.seed for draft in drafts]
        multiple = self.denoiser.length_multiple
        longest = round_up(max(draft.length for draft in drafts), multiple)
        mask = torch.arange(longest) < torch.tensor([draft.length for draft in drafts])[:, None]
        mask = mask.to(device)
        known = known_latents = None
        tokens = [draft.given.known for draft in drafts if draft.given]
        if tokens:
            known = torch.full(mask.shape, FREE, device=device)
            for row, own in enumerate(tokens):
                known[row, : len(own)] = torch.tensor(own)
            if not takes_tokens(self.denoiser):
                given = self.autoencoder.encode_tokens(tokens).values
                known_latents = F.pad(given, (0, longest - given.shape[2]))
        noise = starting_noise(mask, self.denoiser.config.channels, seeds=seeds)
        starts = [draft.start for draft in drafts if draft.start is not None]
        if starts:
            x0 = torch.zeros_like(noise)
            for row, start in enumerate(starts):
                x0[row, :, : start.shape[1]] = start
            if strength == 0:
                return Latents(x0, mask)
            timestep = torch.tensor(timesteps_of(self.scheduler, self.settings, strength)[:1])
            alpha_bar = alpha_bar_at(self.scheduler, timestep.to(device))
            noise = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        for step in sample_latents(
            self.denoiser,
            self.scheduler,
            noise,
            mask,
            self.settings,
            seeds=seeds,
            known=known,
            known_latents=known_latents,
            strength=strength,
        ):
            if callback:
                callback(step, numbers)
        return Latents(step.x0, mask)
