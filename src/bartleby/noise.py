"""The noise experiment: how much Gaussian noise on its latents can BART's decoder still read?

The published experiment adds 0.1, 0.5 and 1.0 times Gaussian noise to raw latents. What such a level
means depends on the encoder, so each comes with its signal-to-noise ratio; `relative` levels are in
standard deviations of each channel instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bartleby.autoencoder import (
    TOKENS_PER_BATCH,
    Autoencoder,
    DecodeSettings,
    fit_latent_statistics,
)
from bartleby.errors import UserError
from bartleby.evaluation.text import bleu, sentence_bleu, token_accuracy
from bartleby.latents import Latents
from bartleby.messages import say
from bartleby.objective import sample_noise
from bartleby.tokenization import content_ids, decode_ids

PANGRAM = (
    "The quick brown fox jumps over the lazy dog. This pangram contains every letter of the English alphabet at "
    "least once. Pangrams are often used to display font samples and test keyboards."
)
PUBLISHED_LEVELS = (0.1, 0.5, 1.0)


@dataclass(frozen=True)
class NoisedText:
    """One text decoded from latents with noise.

    level: as asked for.  snr_db: 10 log10(variance of the latents / variance of the noise), infinite
    without noise.  cosine: between noised and clean latents, -1 to 1, over real tokens.
    token_accuracy: 0 to 1.  bleu: 0 to 100.  denoised: decoded after a denoiser, where there is one.
    """

    level: float
    snr_db: float
    cosine: float
    token_accuracy: float
    bleu: float
    text: str
    original: str
    denoised: str | None = None
    denoised_token_accuracy: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """Means over many texts at one level; bleu is of the whole corpus."""

    level: float
    snr_db: float
    cosine: float
    token_accuracy: float
    exact: float
    bleu: float


def noise_experiment(
    autoencoder: Autoencoder,
    texts: list[str],
    levels: list[float],
    *,
    relative: bool = False,
    seed: int = 0,
    settings: DecodeSettings = DecodeSettings(),
    restore: Callable[[Latents, float], Latents] | None = None,
    say: Callable[[str], None] = say,
) -> Iterator[NoisedText]:
    """Every text at every level: level by level, the texts of a level in batches of similar length.

    Text i gets the same noise, times the level, at every level and in any batch: its generator is
    seeded with (seed, i). restore: takes noised raw latents and their level, returns cleaner ones, as
    `TrainedDenoiser.restore` does. Raises UserError for a level that is negative or not a number.
    """
    for level in levels:
        if not (math.isfinite(level) and level >= 0):
            raise UserError(f"noise level is {level}; levels are numbers from 0 up")
    raw = dataclasses.replace(autoencoder, statistics=None)
    sequences = raw.tokenize(texts, say=say)
    unit = torch.ones(raw.channels)
    if relative:
        statistics = autoencoder.statistics
        if statistics is None:
            say(
                f"'{autoencoder.name}' carries no latent statistics: they are measured on these {len(texts):,} texts"
            )
            statistics = fit_latent_statistics(
                autoencoder, texts, source="the given texts", say=lambda message: None
            )
        unit = statistics.std
    for level in levels:
        for indices, latents in raw.encode_in_batches(sequences, tokens_per_batch=TOKENS_PER_BATCH):
            seeds = [(seed, int(index)) for index in indices]
            noise = sample_noise(latents.mask, raw.channels, seeds=seeds) * unit[:, None].to(
                raw.device
            )
            noised = Latents(latents.values + level * noise, latents.mask)
            written = raw.decode_tokens(noised, settings)
            decoded = decode_ids(raw.tokenizer, written)
            cleaned = raw.decode_tokens(restore(noised, level), settings) if restore else None
            for row, index in enumerate(indices):
                reference = content_ids(raw.tokenizer, sequences[index])
                after: dict[str, Any] = {}
                if cleaned:
                    content = content_ids(raw.tokenizer, cleaned[row])
                    after["denoised"] = decode_ids(raw.tokenizer, [cleaned[row]])[0]
                    after["denoised_token_accuracy"] = token_accuracy(reference, content)
                yield NoisedText(
                    level=level,
                    snr_db=signal_to_noise(latents, level * noise, row),
                    cosine=cosine(noised, latents, row),
                    token_accuracy=token_accuracy(
                        reference, content_ids(raw.tokenizer, written[row])
                    ),
                    bleu=sentence_bleu(texts[index], decoded[row]),
                    text=decoded[row],
                    original=texts[index],
                    **after,
                )


def signal_to_noise(latents: Latents, noise: torch.Tensor, row: int) -> float:
    """dB between the latents' variance about their channel means and the noise's power, for one text.

    The means are the same for every text and say nothing, so they are no signal.
    """
    real = latents.values[row][:, latents.mask[row]]  # [C, tokens]
    signal = (real - real.mean(dim=1, keepdim=True)).square().mean()
    power = noise[row][:, latents.mask[row]].double().square().mean()  # 1e20 squared is no float32
    return math.inf if power == 0 else 10 * math.log10(float(signal / power))


def cosine(a: Latents, b: Latents, row: int) -> float:
    """Cosine of one text's latents in `a` and `b`, flattened over its real tokens."""
    mask = b.mask[row]
    return float(
        torch.cosine_similarity(
            a.values[row][:, mask].flatten(), b.values[row][:, mask].flatten(), dim=0
        )
    )


def curve(results: list[NoisedText]) -> list[CurvePoint]:
    """One point per level, in the levels' order."""
    points = []
    for level in dict.fromkeys(item.level for item in results):
        here = [item for item in results if item.level == level]
        mean = lambda name, here=here: sum(getattr(item, name) for item in here) / len(here)  # noqa: E731
        points.append(
            CurvePoint(
                level=level,
                snr_db=mean("snr_db"),
                cosine=mean("cosine"),
                token_accuracy=mean("token_accuracy"),
                exact=sum(item.text == item.original for item in here) / len(here),
                bleu=bleu([item.original for item in here], [item.text for item in here]),
            )
        )
    return points


def parse_levels(values: list[str]) -> list[float]:
    """Numbers, and ranges 'first:last:step' with both ends included, as one list."""
    levels: list[float] = []
    for value in values:
        parts = value.split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            raise UserError(
                f"noise level '{value}' is not a number or a range first:last:step"
            ) from None
        if len(numbers) == 1:
            levels.append(numbers[0])
        elif (
            len(numbers) == 3
            and all(map(math.isfinite, numbers))
            and numbers[2] > 0
            and numbers[1] >= numbers[0]
        ):
            first, last, step = numbers
            if (last - first) / step > 1000:
                raise UserError(f"noise range '{value}' has more than 1,000 levels")
            count = math.floor((last - first) / step + 1e-9) + 1
            levels.extend(round(first + step * index, 10) for index in range(count))
        else:
            raise UserError(
                f"noise range '{value}' must be first:last:step with first <= last and step > 0"
            )
    return levels
