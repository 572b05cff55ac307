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


def memorised(texts: list[list[str]], training: list[list[str]], n: int = MEMORY_N) -> float:
    """Share of the texts' n-grams that stand in the training texts."""
    wanted = {ngram for words in texts for ngram in ngrams(words, n)}
    known = {ngram for words in training for ngram in ngrams(words, n) if ngram in wanted}
    own = [ngram for words in texts for ngram in ngrams(words, n)]
    return sum(ngram in known for ngram in own) / len(own) if own else 0.0


def longest_overlaps(texts: list[list[str]], training: list[list[str]]) -> list[int]:
    """For each text, the length in words of its longest run that stands in a training text."""
    longest = [0] * len(texts)
    candidates = set(range(len(texts)))
    n = 0
    while candidates:  # a text without a shared n-gram has no longer one either
        n += 1
        wanted = {ngram for index in candidates for ngram in ngrams(texts[index], n)}
        known = {ngram for words in training for ngram in ngrams(words, n) if ngram in wanted}
        candidates = {
            index
            for index in candidates
            if any(ngram in known for ngram in ngrams(texts[index], n))
        }
        for index in candidates:
            longest[index] = n
    return longest


def length_distance(texts: list[list[str]], reference: list[list[str]]) -> float:
    """Wasserstein-1 distance between the two distributions of words a text, in words."""
    quantiles = (np.arange(1000) + 0.5) / 1000
    ours, theirs = (np.array([len(words) for words in side]) for side in (texts, reference))
    method = {"method": "inverted_cdf"}
    return float(
        np.abs(
            np.quantile(ours, quantiles, **method) - np.quantile(theirs, quantiles, **method)
        ).mean()
    )
