"""Texts through the latents and back, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bartleby.autoencoder import TOKENS_PER_BATCH, Autoencoder, DecodeSettings
from bartleby.evaluation.text import Reconstruction, bleu, token_accuracy
from bartleby.messages import say
from bartleby.tokenization import content_ids, decode_ids

WORD_BUCKETS = ((1, 9), (10, 50), (51, 100), (101, None))


@dataclass(frozen=True)
class Summary:
    """exact, token_accuracy: means over texts, 0 to 1.  bleu: of the corpus, 0 to 100."""

    texts: int
    exact: float
    token_accuracy: float
    bleu: float

    def __str__(self) -> str:
        return f"exact {self.exact:.1%} · tokens {self.token_accuracy:.2%} · BLEU {self.bleu:.1f}"


def reconstruct(
    autoencoder: Autoencoder,
    texts: list[str],
    settings: DecodeSettings = DecodeSettings(),
    *,
    say: Callable[[str], None] = say,
) -> Iterator[tuple[int, Reconstruction]]:
    """(index, reconstruction) of every text, in batches of similar length, so not in order."""
    sequences = autoencoder.tokenize(texts, say=say)
    for indices, latents in autoencoder.encode_in_batches(
        sequences, tokens_per_batch=TOKENS_PER_BATCH
    ):
        written = autoencoder.decode_tokens(latents, settings)
        for index, sequence, text in zip(
            indices, written, decode_ids(autoencoder.tokenizer, written), strict=True
        ):
            reference = content_ids(autoencoder.tokenizer, sequences[index])
            accuracy = token_accuracy(reference, content_ids(autoencoder.tokenizer, sequence))
            yield int(index), Reconstruction(texts[index], text, accuracy)


def summarise(reconstructions: list[Reconstruction]) -> Summary:
    """Exact-match rate, mean token accuracy and corpus BLEU."""
    count = len(reconstructions)
    return Summary(
        texts=count,
        exact=sum(item.exact for item in reconstructions) / count,
        token_accuracy=sum(item.token_accuracy for item in reconstructions) / count,
        bleu=bleu(
            [item.text for item in reconstructions],
            [item.reconstruction for item in reconstructions],
        ),
    )


def by_length(reconstructions: list[Reconstruction]) -> dict[str, Summary]:
    """A summary for each of `WORD_BUCKETS` that has texts, named '1-9', '10-50', '51-100', 'over 100'."""
    summaries = {}
    for low, high in WORD_BUCKETS:
        bucket = [
            item
            for item in reconstructions
            if low <= item.words and (high is None or item.words <= high)
        ]
        if bucket:
            summaries[f"{low}-{high}" if high else f"over {low - 1}"] = summarise(bucket)
    return summaries
