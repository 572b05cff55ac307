"""What word counts say of a set of texts: diversity, repetition, entropy, and what was learned by heart.

Words are lower-cased runs of letters and digits, and single marks. All shares are 0 to 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
MEMORY_N = 4
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # any large odd number


def words_of(text: str) -> list[str]:
    """The words and marks of a text."""
    return _WORD.findall(text.lower())


def ngrams(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    """Every run of n words."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def unigram_entropy(texts: list[list[str]]) -> float:
    """Entropy of the words of all texts together, nats a word; it grows with the number of texts."""
    counts = np.array(list(Counter(word for words in texts for word in words).values()), float)
    if counts.size == 0:
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def diversity(texts: list[list[str]]) -> float:
    """Product over n = 2, 3, 4 of distinct n-grams by all n-grams (Su et al. 2022), of all texts together."""
    return math.prod(distinct(texts, n) for n in (2, 3, 4))


def distinct(texts: list[list[str]], n: int) -> float:
    """Distinct n-grams by all n-grams of all texts together; 0 where there are none."""
    seen = [ngram for words in texts for ngram in ngrams(words, n)]
    return len(set(seen)) / len(seen) if seen else 0.0


def repetition(texts: list[list[str]], n: int) -> float:
    """Mean over texts of the share of n-grams that repeat an earlier one of the same text (rep-n)."""
    shares = []
    for words in texts:
        own = list(ngrams(words, n))
        if own:
            shares.append(1 - len(set(own)) / len(own))
    return float(np.mean(shares)) if shares else 0.0


class NgramIndex:
    """The n-grams of many texts, for asking which of others stand among them.

    n-grams are compared by 64-bit hashes: among three million the odds that any two collide are 1 in 10^6.
    """

    def __init__(self, texts: list[list[str]]):
        self._texts = _Coded(texts)
        self._sorted: dict[int, np.ndarray] = {}

    def memorised(self, texts: list[list[str]], n: int = MEMORY_N) -> float:
        """Share of the texts' n-grams that stand in the indexed ones."""
        found, _ = self._found(_Coded(texts), n)
        return float(found.mean()) if found.size else 0.0

    def longest_overlaps(self, texts: list[list[str]]) -> list[int]:
        """For each text, the length in words of its longest run that stands in an indexed text."""
        coded, longest, n = _Coded(texts), np.zeros(len(texts), int), 0
        while True:  # where no n-gram is shared, no longer one is either
            n += 1
            found, owners = self._found(coded, n)
            if not found.any():
                return longest.tolist()
            longest[owners[found]] = n

    def _found(self, coded: _Coded, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(whether it is indexed, which text it is of) for every n-gram of `coded`."""
        if n not in self._sorted:
            self._sorted[n] = np.unique(self._texts.ngrams(n)[0])
        known, (hashes, owners) = self._sorted[n], coded.ngrams(n)
        if not known.size:
            return np.zeros(len(hashes), bool), owners
        places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
        return known[places] == hashes, owners


class _Coded:
    """Texts as one array of word codes, and the text that each word is of."""

    def __init__(self, texts: list[list[str]]):
        words = np.array([hash(word) for text in texts for word in text], np.int64)
        self.words: np.ndarray = words.view(np.uint64)
        self.owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(hashes, owners) of all runs of n words within a text."""
        starts = max(0, len(self.words) - n + 1)
        hashes: np.ndarray = np.zeros(starts, np.uint64)
        for offset in range(n):  # a polynomial in HASH_BASE, modulo 2^64
            hashes = hashes * HASH_BASE + self.words[offset : offset + starts]
        within = self.owners[:starts] == self.owners[n - 1 : n - 1 + starts]
        return hashes[within], self.owners[:starts][within]


def length_distance(texts: list[list[str]], reference: list[list[str]]) -> float:
    """Wasserstein-1 distance between the two distributions of words a text, in words."""
    quantiles = (np.arange(1000) + 0.5) / 1000
    ours, theirs = (np.array([len(words) for words in side]) for side in (texts, reference))
    at = [np.quantile(side, quantiles, method="inverted_cdf") for side in (ours, theirs)]
    return float(np.abs(at[0] - at[1]).mean())
