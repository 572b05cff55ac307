"""BART as an autoencoder: texts to latents and back.

Shapes: B texts, L tokens (the window at most), C channels of the BART in use.

Length is explicit: a text of n tokens has n latents. The mask [B, L] is 1 at real tokens; it goes into
the encoder, the statistics and the decoder's cross-attention, and latents are zero where it is 0.
With a compressor (compressor.py) every text has K latents of D channels instead, all of them real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from bartleby.batching import cut_by_tokens, pad, tokens_at_once
from bartleby.checkpoints import digest_of
from bartleby.compressor import Compressor
from bartleby.drawing import draws
from bartleby.errors import UserError
from bartleby.given import FREE, GivenText, KeepGiven
from bartleby.latents import LatentMoments, Latents, LatentStatistics, all_real
from bartleby.messages import say
from bartleby.precision import autocast
from bartleby.tokenization import decode_ids, encode_texts, passages

TOKENS_PER_BATCH = 8192  # for decoding, whose many small steps gain from company
SLACK = 8  # tokens, and a quarter of the latents: by so many what is written may exceed them
MAX_TRUNCATED_WINDOWS = (
    100  # a longer text would lose 99% of itself: that is a mistake, not a truncation
)


@dataclass(frozen=True)
class DecodeSettings:
    """How the decoder writes. Every field is passed to it; nothing is taken from a model's own defaults.

    num_beams: 1 is no beam search.  repetition_penalty, no_repeat_ngram_size, length_penalty: as in transformers'
    `generate`; 1, 0 and 1 change nothing.  temperature: 0 to 10; 0 takes the likeliest token, 1 draws from what the
    decoder predicts; not with beams.  min_p: 0 to 1; of what is drawn, tokens less likely than this share of the
    likeliest are left out. Raises UserError for what is out of range.
    """

    num_beams: int = 1
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    temperature: float = 0.0
    min_p: float = 0.0

    def __post_init__(self):
        if not 0 <= self.min_p <= 1:
            raise UserError(f"the decoder's min_p is {self.min_p}; it must be between 0 and 1")
        if not 0 <= self.temperature <= 10:
            raise UserError(
                f"the decoder's temperature is {self.temperature}; it must be between 0 and 10"
            )
        if self.temperature and self.num_beams > 1:
            raise UserError(
                f"beam search does not draw; set {self.num_beams} beams or a decoder temperature of "
                f"{self.temperature:g}, not both"
            )

    def __str__(self) -> str:
        if self.num_beams > 1:
            search = f"{self.num_beams} beams, length penalty {self.length_penalty}"
        else:
            drawn = f"drawn at temperature {self.temperature:g}, min-p {self.min_p:g}"
            search = drawn if self.temperature else "greedy"
        return f"{search}, repetition penalty {self.repetition_penalty}, no-repeat n-gram {self.no_repeat_ngram_size}"


@dataclass(frozen=True)
class Autoencoder:
    """A BART, its tokenizer and, where known, the statistics of its latents.

    window: tokens a text may have, <s> and </s> included.  dtype: what the networks compute in; latents
    are float32 always.  folder: where it was loaded from.  compressor: between BART's latents and fewer
    ones, of which all else here then speaks.
    """

    bart: BartForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    window: int
    name: str
    statistics: LatentStatistics | None = None
    dtype: torch.dtype = torch.float32
    folder: Path | None = None
    compressor: Compressor | None = None

    @property
    def channels(self) -> int:
        """C: the width of the encoder's output, or the compressor's D."""
        if self.compressor is not None:
            return self.compressor.config.vector_channels
        return self.bart.config.d_model

    def latents_of(self, tokens: int) -> int:
        """How many latents a text of so many tokens has."""
        return tokens if self.compressor is None else self.compressor.config.vectors

    def digest(self) -> str:
        """A name for all weights that latents depend on."""
        networks = (self.bart.model.encoder, self.compressor)
        return digest_of(*(network for network in networks if network is not None))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.bart.device

    def tokenize(self, texts: list[str], *, say: Callable[[str], None] = say) -> list[list[int]]:
        """Token ids of each text, cut to the window; how many were cut is said.

        Raises UserError for no texts, for a blank one, and for one so long that under 1% of it would be left.
        """
        if not texts or isinstance(texts, str):
            raise UserError("there are no texts; a single one is a list as well")
        for index, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"text {index + 1} is blank")
        sequences = encode_texts(self.tokenizer, texts)
        longest = max(range(len(texts)), key=lambda index: len(sequences[index]))
        if len(sequences[longest]) > MAX_TRUNCATED_WINDOWS * self.window:
            raise UserError(
                f"text {longest + 1} has {len(sequences[longest]):,} tokens; this model reads {self.window} at a time. "
                "Cut it into passages (`Autoencoder.split`; the commands noise and reconstruct have --split)"
            )
        too_long = sum(len(sequence) > self.window for sequence in sequences)
        if too_long:
            say(
                f"{too_long:,} of {len(texts):,} texts have more than {self.window} tokens "
                f"(up to {len(sequences[longest]):,}) and are truncated (`Autoencoder.split`, or --split "
                "of noise and reconstruct, cuts them into passages instead)"
            )
        return [fit_to_window(sequence, self.window) for sequence in sequences]

    def split(self, texts: list[str]) -> list[str]:
        """Texts cut at sentence ends into passages that fit the window."""
        return list(passages(self.tokenizer, texts, window=self.window))

    @torch.inference_mode()
    def encode_tokens(self, sequences: list[list[int]]) -> Latents:
        """Latents of token ids, as one batch: normalised where `statistics` is set, else raw.

        Where an id is FREE the text is unknown: the encoder reads the rest at its places, and no latent is there.
        """
        ids, mask = pad(sequences, self.tokenizer.pad_token_id)
        unknown = ids == FREE
        ids = ids.masked_fill(unknown, self.tokenizer.pad_token_id).to(self.device)
        mask = mask.masked_fill(unknown, 0).to(self.device)
        with autocast(self.device, self.dtype):
            hidden = self.bart.get_encoder()(
                input_ids=ids, attention_mask=mask
            ).last_hidden_state  # [B, L, C]
            values = hidden.float().transpose(1, 2) * mask[:, None]  # [B, C, L]
            latents = Latents(values, mask.bool())
            if self.compressor is not None:
                latents = all_real(self.compressor.compress(values, latents.mask))
        return self.statistics.normalise(latents) if self.statistics else latents

    def encode_in_batches(
        self, sequences: list[list[int]], *, tokens_per_batch: int | None = None
    ) -> Iterator[tuple[np.ndarray, Latents]]:
        """(indices into `sequences`, their latents), batch after batch, similar lengths together."""
        if tokens_per_batch is None:
            # A CPU is 20% slower on 8,192 tokens than on 2,048, which stay in its cache.
            tokens_per_batch = tokens_at_once(self.device, on_cpu=2048)
        lengths = np.array([len(sequence) for sequence in sequences])
        order = np.argsort(lengths, kind="stable")
        for indices in cut_by_tokens(order, lengths, tokens_per_batch):
            yield indices, self.encode_tokens([sequences[index] for index in indices])

    def encode(self, texts: list[str], *, say: Callable[[str], None] = say) -> Latents:
        """Latents of all texts, [B, C, L] with L the longest text's tokens, in the texts' order, on the CPU.

        Normalised where `statistics` is set, else raw. Longer texts are cut to the window, and that is said. Raises
        UserError as `tokenize` does.
        """
        sequences = self.tokenize(texts, say=say)
        longest = max(self.latents_of(len(sequence)) for sequence in sequences)
        values = torch.zeros(len(texts), self.channels, longest)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for indices, latents in self.encode_in_batches(sequences):
            length = latents.mask.shape[1]
            values[indices, :, :length] = latents.values.cpu()
            mask[indices, :length] = latents.mask.cpu()
        return Latents(values, mask)

    def readable(self, latents: Latents) -> Latents:
        """The raw latents, as BART's decoder reads them, of what `encode` returns or a denoiser estimates."""
        if latents.values.shape[1] != self.channels:
            raise UserError(
                f"the latents have {latents.values.shape[1]} channels, those of '{self.name}' {self.channels}"
            )
        latents = Latents(latents.values.to(self.device), latents.mask.to(self.device))
        if self.statistics:
            latents = self.statistics.denormalise(latents)
        if self.compressor is None:
            return latents
        with autocast(self.device, self.dtype):
            # Only its own: a batch may be padded for a UNet.
            return all_real(self.compressor.expand(latents.values[:, :, : self.latents_of(0)]))

    @torch.inference_mode()
    def decode_tokens(
        self,
        latents: Latents,
        settings: DecodeSettings = DecodeSettings(),
        *,
        given: list[GivenText] | None = None,
        seeds: list[tuple[int, ...]] | None = None,
    ) -> list[list[int]]:
        """What the decoder writes for one batch of latents: token ids, starting with the decoder's start token.

        given: what each text must keep.  seeds: one a text, of what is drawn at a temperature; by default
        (0, its number in the batch).
        """
        if not latents.values.isfinite().all():
            raise UserError("the latents hold numbers that are infinite or undefined")
        latents = self.readable(latents)
        lengths = latents.mask.sum(dim=1).tolist()
        # What a compressor gives back has its window, even where shorter texts were asked for.
        most = self.window if self.compressor is None else self.compressor.config.window
        if max(lengths) > most:
            raise UserError(f"a text has {max(lengths)} latents; this model has a window of {most}")
        limits = [
            min(length + length // 4 + SLACK, self.bart.config.max_position_embeddings)
            for length in lengths
        ]
        options = dataclasses.asdict(settings)
        seeds = seeds or [(0, index) for index in range(len(lengths))]
        processors = draws(options.pop("temperature"), options.pop("min_p"), seeds)
        if given:
            processors.insert(0, KeepGiven(given, beams=settings.num_beams))
        with autocast(self.device, self.dtype):
            sequences = self.bart.generate(
                # A fresh output object each call: beam search rebinds its field in place.
                encoder_outputs=BaseModelOutput(
                    last_hidden_state=latents.values.transpose(1, 2).contiguous()
                ),
                attention_mask=latents.mask.long(),
                generation_config=GenerationConfig(
                    **options,
                    do_sample=False,
                    early_stopping=settings.num_beams > 1,
                    max_length=max(limits),
                    decoder_start_token_id=self.bart.config.decoder_start_token_id,
                    bos_token_id=self.tokenizer.bos_token_id,
                    eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.pad_token_id,
                ),
                logits_processor=processors,
            ).tolist()
        # Cut to the text's own limit, so that what is written does not depend on the rest of the batch.
        return [sequence[:limit] for sequence, limit in zip(sequences, limits, strict=True)]

    def decode(
        self,
        latents: Latents,
        settings: DecodeSettings = DecodeSettings(),
        *,
        seeds: list[tuple[int, ...]] | None = None,
    ) -> list[str]:
        """The text that the decoder writes for each of `latents`, in order; similar lengths are decoded together.

        seeds: as in `decode_tokens`.
        """
        lengths = latents.mask.sum(dim=1).cpu().numpy()
        texts = [""] * len(lengths)
        seeds = seeds or [(0, index) for index in range(len(lengths))]
        together = tokens_at_once(self.device, on_cpu=TOKENS_PER_BATCH)
        for indices in cut_by_tokens(np.argsort(lengths, kind="stable"), lengths, together):
            length = lengths[indices].max()
            batch = Latents(latents.values[indices, :, :length], latents.mask[indices, :length])
            own = [seeds[index] for index in indices]
            ids = self.decode_tokens(batch, settings, seeds=own)
            written = decode_ids(self.tokenizer, ids)
            for index, text in zip(indices, written, strict=True):
                texts[index] = text
        return texts


def fit_to_window(sequence: list[int], window: int) -> list[int]:
    """Token ids cut to `window`, the last kept as </s>."""
    return sequence if len(sequence) <= window else [*sequence[: window - 1], sequence[-1]]


def fit_latent_statistics(
    autoencoder: Autoencoder, texts: list[str], *, source: str, say: Callable[[str], None] = say
) -> LatentStatistics:
    """Mean, deviation and effective rank of the raw latents over the real tokens of `texts`.

    source: what is to be said of where they are from. Effective rank: exp of the entropy of the covariance's
    normalised eigenvalues (Roy & Vetterli 2007), C for white latents, 1 when all lie on a line.
    """
    raw = dataclasses.replace(autoencoder, statistics=None)
    moments = LatentMoments(raw.channels)
    for _, latents in raw.encode_in_batches(raw.tokenize(texts, say=say)):
        moments.add(latents.real)
    return moments.statistics(source)
