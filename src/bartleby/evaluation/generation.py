"""How good generated texts are, as a set, beside human ones: one protocol for ours and anybody's.

Every number moves with the number of texts and their length, so samples and reference are cut to the
same number, and human text is scored the same way. Which models judged is part of the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bartleby.errors import UserError
from bartleby.evaluation.judges import Embedder, LanguageModelJudge
from bartleby.evaluation.ngrams import (
    NgramIndex,
    diversity,
    length_distance,
    repetition,
    unigram_entropy,
    words_of,
)
from bartleby.messages import say


@dataclass(frozen=True)
class TextScores:
    """Scores of a set of texts. Shares are 0 to 1; None where what is needed for a score was not given.

    perplexity: exp(nats / tokens) over all texts together, under the judge.  mauve: 0 to 1, against the
    reference (Pillutla et al. 2021), on the judge's features.  mauve_embedder: the same on the embedder's,
    which say what texts are about and hardly see the order of their words.  entropy: nats a word, of all words.
    diversity: of 2- to 4-grams.  repetition: of 2-grams within a text.  memorised: share of 4-grams,
    longest_overlap: mean longest run of words, copied: share of whole texts, in the training texts.
    length_distance: words, to the reference.  empty, duplicates: shares of the texts.
    """

    texts: int
    words: float
    perplexity: float | None
    mauve: float | None
    mauve_embedder: float | None
    entropy: float
    diversity: float
    repetition: float
    memorised: float | None
    longest_overlap: float | None
    copied: float | None
    length_distance: float
    empty: float
    duplicates: float


@dataclass(frozen=True)
class Evaluator:
    """What texts are held against.  reference: human texts.  training: what the generator learned from."""

    reference: list[str]
    training: list[str] | None = None
    judge: LanguageModelJudge | None = None
    embedder: Embedder | None = None

    def score(self, texts: list[str], *, seed: int = 0) -> TextScores:
        """Scores of one set. Empty texts count as empty and stay in every other score that can take them."""
        if not texts:
            raise UserError("there are no texts to score")
        words, reference = self._words(texts), self._words(self.reference)
        count = len(texts)
        perplexity = likely = topics = memorised = overlap = copied = None
        if self.judge:
            reading = self.judge.read(texts)
            perplexity = reading.perplexity
            if mauve_installed():
                likely = self._mauve(reading.features, self._judged_reference, seed)
        if self.embedder and mauve_installed():
            topics = self._mauve(self.embedder.embed(texts), self._embedded_reference, seed)
        if self.training is not None:
            index = self._training_ngrams
            memorised, copied = index.memorised(words), _share_in(texts, self.training)
            overlap = float(np.mean(index.longest_overlaps(words)))
        return TextScores(
            texts=count,
            words=float(np.mean([len(own) for own in words])),
            perplexity=perplexity,
            mauve=likely,
            mauve_embedder=topics,
            entropy=unigram_entropy(words),
            diversity=diversity(words),
            repetition=repetition(words, 2),
            memorised=memorised,
            longest_overlap=overlap,
            copied=copied,
            length_distance=length_distance(words, reference),
            empty=sum(not text.strip() for text in texts) / count,
            duplicates=1 - len(set(texts)) / count,
        )

    def score_repeats(
        self, sets: list[list[str]], *, seed: int = 0
    ) -> tuple[TextScores, TextScores | None]:
        """(mean, standard deviation) over sets of texts, say one a seed; no deviation for a single set."""
        scores = [self.score(texts, seed=seed + index) for index, texts in enumerate(sets)]
        if len(scores) == 1:
            return scores[0], None
        return _over(statistics.mean, scores), _over(statistics.stdev, scores)

    @staticmethod
    def _mauve(features: np.ndarray, reference: np.ndarray, seed: int) -> float:
        """MAUVE of as many texts on both sides."""
        count = min(len(features), len(reference))
        return mauve(features[:count], reference[:count], seed)

    # Each is asked for where there is what it needs, and made once.

    @cached_property
    def _judged_reference(self) -> np.ndarray:
        assert self.judge is not None
        return self.judge.read(self.reference).features

    @cached_property
    def _embedded_reference(self) -> np.ndarray:
        assert self.embedder is not None
        return self.embedder.embed(self.reference)

    @cached_property
    def _training_ngrams(self) -> NgramIndex:
        assert self.training is not None
        return NgramIndex(self._words(self.training))

    @staticmethod
    def _words(texts: list[str]) -> list[list[str]]:
        return [words_of(text) for text in texts]


def comparable_sets(
    sets: list[list[str]],
    reference: list[str],
    *,
    limit: int | None = None,
    say: Callable[[str], None] = say,
) -> tuple[list[list[str]], list[str], list[str]]:
    """(sets, human, reference), all of one size: the reference's odd lines are the human row, its even ones
    what all are held against. What is left out is said.
    """
    if len(reference) < 4:
        raise UserError(f"the reference has {len(reference)} texts; it needs at least 4")
    held, human = reference[::2], reference[1::2]
    count = min([len(human), limit or len(human), *(len(texts) for texts in sets)])
    for index, texts in enumerate(sets):
        if len(texts) > count:
            say(f"set {index + 1}: the first {count:,} of {len(texts):,} texts are used")
    return [texts[:count] for texts in sets], human[:count], held[:count]


def mauve_installed() -> bool:
    """Whether the package is there; a judge gives perplexity without it."""
    return importlib.util.find_spec("mauve") is not None


def mauve(features: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """MAUVE between two sets of features [n, d], with mauve-text's defaults; UserError without that package."""
    try:
        from mauve import compute_mauve
    except ImportError:
        raise UserError("MAUVE needs the package mauve-text: pip install mauve-text") from None
    with _quiet_stderr():
        seed %= 2**31 - 100  # faiss takes no larger ones, and numbers its repetitions from it on
        result = compute_mauve(p_features=reference, q_features=features, seed=seed, verbose=False)
    return float(result.mauve)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """faiss warns from C++, at every call, that MAUVE's defaults want more texts for so many clusters."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _share_in(texts: list[str], training: list[str]) -> float:
    known = set(training)
    return sum(text in known for text in texts) / len(texts)


def _over(function: Callable[[list[float]], float], scores: list[TextScores]) -> TextScores:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TextScores):
        column = [getattr(score, field.name) for score in scores]
        values[field.name] = None if None in column else float(function(column))
    return TextScores(**values | {"texts": scores[0].texts})
