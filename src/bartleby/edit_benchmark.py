"""`bartleby benchmark-edits`: do editing, interpolating and filling in do what they promise?

An edit should leave its source the further behind the stronger it is, an interpolation pass smoothly from
one text to the other, and what fills a gap should read like what stood there; all of it as fluently as
human text. Similarity is the cosine of an embedder's vectors, fluency a language model's perplexity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bartleby.errors import UserError
from bartleby.evaluation.judges import Embedder, LanguageModelJudge
from bartleby.messages import say
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.sampling import SamplingSettings
from bartleby.tokenization import encode_texts

LONGEST_GAP = 3  # words that are taken out of a text
FEWEST_WORDS = 5  # of a text that something can be taken out of
HUMAN, EDIT, INTERPOLATION, INFILLING = "human", "edit", "interpolation", "infilling"
Track = Callable[[Iterable, int], Iterator]


@dataclass(frozen=True)
class EditScores:
    """Means over the texts of one kind and amount.

    kind: human (the sources), edit, interpolation or infilling.  amount: strength of an edit, place between
    two texts.  perplexity: of all texts together, under the judge.  similarity: to the source, or the
    text an interpolation starts from; similarity_last: to the one it ends at.  unchanged: share of texts
    that equal their source.
    """

    kind: str
    amount: float
    perplexity: float | None
    similarity: float
    similarity_last: float | None
    unchanged: float


@dataclass(frozen=True)
class EditBenchmark:
    """What judges, and how texts are sampled."""

    pipeline: TextDiffusionPipeline
    judge: LanguageModelJudge
    embedder: Embedder
    settings: SamplingSettings
    seed: int = 0

    def human(self, texts: list[str]) -> EditScores:
        """The sources themselves, what all else is held against."""
        return self._scores(HUMAN, 0.0, texts, texts, self.embedder.embed(texts))

    def edits(self, texts: list[str], strengths: Iterable[float]) -> Iterator[EditScores]:
        """All texts at each strength."""
        vectors = self.embedder.embed(texts)
        for strength in strengths:
            edited = self.pipeline.edit(texts, strength, settings=self.settings, seed=self.seed)
            yield self._scores(EDIT, strength, edited.texts, texts, vectors)

    def interpolations(
        self, pairs: list[tuple[str, str]], steps: int, *, track: Track
    ) -> Iterator[EditScores]:
        """A row for each of the `steps` places between the two texts of every pair."""
        rows = [
            self.pipeline.interpolate(
                first, last, steps, settings=self.settings, seed=self.seed + index
            ).texts
            for index, (first, last) in enumerate(track(pairs, len(pairs)))
        ]
        firsts, lasts = ([pair[end] for pair in pairs] for end in (0, 1))
        vectors, last_vectors = self.embedder.embed(firsts), self.embedder.embed(lasts)
        for place in range(steps):
            texts, amount = [row[place] for row in rows], place / (steps - 1)
            yield self._scores(INTERPOLATION, amount, texts, firsts, vectors, last_vectors)

    def infilling(self, texts: list[str], *, track: Track) -> EditScores:
        """Every text with a run of words taken out and filled in again."""
        filled = [
            self.pipeline.infill(
                with_gap(text, seed=(self.seed, index)),
                settings=self.settings,
                seed=self.seed + index,
            ).texts[0]
            for index, text in enumerate(track(texts, len(texts)))
        ]
        return self._scores(INFILLING, 0.0, filled, texts, self.embedder.embed(texts))

    def _scores(
        self,
        kind: str,
        amount: float,
        texts: list[str],
        sources: list[str],
        vectors: np.ndarray,
        last_vectors: np.ndarray | None = None,
    ) -> EditScores:
        """vectors, last_vectors: of the sources, and of the texts that interpolations end at."""
        embedded = self.embedder.embed(texts)
        return EditScores(
            kind=kind,
            amount=round(amount, 6),
            perplexity=self.judge.read(texts).perplexity,
            similarity=float((embedded * vectors).sum(axis=1).mean()),
            similarity_last=None
            if last_vectors is None
            else float((embedded * last_vectors).sum(axis=1).mean()),
            unchanged=float(np.mean([a == b for a, b in zip(texts, sources, strict=True)])),
        )


def with_gap(text: str, *, seed: tuple[int, ...]) -> str:
    """The text with 1 to `LONGEST_GAP` of its words replaced by one <mask>; never its first or its last.

    Raises UserError if it has fewer than `FEWEST_WORDS` words.
    """
    words = text.split()
    if len(words) < FEWEST_WORDS:
        raise UserError(f"'{text}' has {len(words)} words; a gap needs at least {FEWEST_WORDS}")
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, LONGEST_GAP + 1))
    start = int(rng.integers(1, len(words) - size))
    return " ".join([*words[:start], "<mask>", *words[start + size :]])


def run_edit_benchmark(
    benchmark: EditBenchmark,
    texts: list[str],
    *,
    strengths: list[float],
    places: int,
    track: Track = lambda items, total: iter(items),
) -> list[EditScores]:
    """All rows: human, edits, interpolations between neighbouring texts; then human and infilling of the longer texts.

    Texts with fewer than `FEWEST_WORDS` words, or more tokens than the window, are in the first two alone; the latter
    are counted for the user. Raises UserError if fewer than two are left.
    """
    enough = [text for text in texts if len(text.split()) >= FEWEST_WORDS]
    autoencoder = benchmark.pipeline.autoencoder
    fits = [len(ids) <= autoencoder.window for ids in encode_texts(autoencoder.tokenizer, enough)]
    long = [text for text, fit in zip(enough, fits, strict=True) if fit]
    if len(long) < 2:
        raise UserError(
            f"fewer than 2 of the texts have {FEWEST_WORDS} words or more and fit {autoencoder.window} tokens"
        )
    if len(long) < len(enough):
        say(f"{len(enough) - len(long):,} texts are too long to be filled in")
    pairs = list(zip(long[::2], long[1::2], strict=False))
    return [
        benchmark.human(texts),
        *benchmark.edits(texts, track(strengths, len(strengths))),
        *benchmark.interpolations(pairs, places, track=track),
        benchmark.human(long),
        benchmark.infilling(long, track=track),
    ]
