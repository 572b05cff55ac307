"""BART's corruption of token ids: text infilling and sentence permutation (Lewis et al. 2019, section 2.2).

Pure functions of token ids and a NumPy generator: one generator seed gives one corruption.
"""

from __future__ import annotations

import numpy as np


def infill(
    ids: np.ndarray, *, mask_id: int, share: float, mean_span: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`ids` with about `share` of its tokens in spans of Poisson(mean_span) tokens, each span replaced by one mask.

    ids: [n] without <s> and </s>.  Returns the corrupted ids, [m], and which tokens went into a span, [n]
    of bool. A span of length 0 inserts a mask between tokens, as in the paper.
    """
    n = len(ids)
    budget = round(n * share + rng.uniform(-0.5, 0.5))
    spans = []
    while budget > 0:
        span = min(int(rng.poisson(mean_span)), budget)
        spans.append(span)
        budget -= max(span, 1)  # an inserted mask uses up budget too, or many could pile up
    return _replace_spans(ids, spans, mask_id, rng)


def _replace_spans(
    ids: np.ndarray, spans: list[int], mask_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Spans at uniformly drawn places that do not overlap."""
    masked = np.zeros(len(ids), dtype=bool)
    if not spans:
        return ids, masked
    kept = len(ids) - sum(spans)
    gaps = np.sort(
        rng.integers(0, kept + 1, size=len(spans))
    )  # how many kept tokens stand before each span
    order = rng.permutation(len(spans))
    pieces, position, taken = [], 0, 0
    for gap, index in zip(gaps, order, strict=True):
        pieces.append(ids[position : position + gap - taken])
        position += gap - taken
        masked[position : position + spans[index]] = True
        position += spans[index]
        taken = gap
        pieces.append(np.array([mask_id], dtype=ids.dtype))
    pieces.append(ids[position:])
    return np.concatenate(pieces), masked


def permute_sentences(
    ids: np.ndarray, *, is_sentence_end: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """`ids` with its sentences in random order.

    ids: [n].  is_sentence_end: [V] of bool, the tokens that close a sentence.
    """
    ends = np.flatnonzero(is_sentence_end[ids]) + 1
    sentences = [sentence for sentence in np.split(ids, ends) if len(sentence)]
    if len(sentences) < 2:
        return ids
    return np.concatenate([sentences[index] for index in rng.permutation(len(sentences))])
