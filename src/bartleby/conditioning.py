"""Which part of a text is given when a denoiser is trained to complete it: a prefix, or all but gaps.

One model then writes freely, continues and fills in; with nothing given for a share of the passages,
guidance between the two is possible as well (Ho & Salimans 2022).
"""

from __future__ import annotations

import math

import numpy as np

from bartleby.given import FREE
from bartleby.randomness import Seeds, uniforms

MEAN_GAP = 4.0  # tokens, 1 + Poisson(3): BART's own spans (Lewis et al. 2019) are Poisson(3), but may be empty
MOST_GAPS = 2  # in a text: one or two, alike often
PREFIXES = 0.5  # of the conditioned passages are continued, the others filled in
# The distribution function of Poisson(MEAN_GAP - 1), which a uniform number is looked up in.
POISSON = np.cumsum([(MEAN_GAP - 1) ** k / math.factorial(k) for k in range(20)]) / math.exp(
    MEAN_GAP - 1
)


def given_positions(lengths: np.ndarray, share: float, *, seeds: Seeds) -> np.ndarray:
    """[B, L] bool, True where a token is given, of texts of these lengths; none are for 1 - share of the seeds.

    At least one token between <s> and </s> is left to write.
    """
    drawn = uniforms(seeds, 4 + 2 * MOST_GAPS).numpy()
    conditioned, prefixed, cut, many = drawn[:, :4].T
    lengths = lengths[:, None]
    steps = np.arange(lengths.max())
    prefix = steps < 2 + np.floor(cut[:, None] * (lengths - 3))
    around = steps < lengths
    for gap in range(MOST_GAPS):
        size, start = drawn[:, 4 + 2 * gap : 6 + 2 * gap].T[:, :, None]
        size = np.minimum(1 + np.searchsorted(POISSON, size), lengths - 2)
        start = 1 + np.floor(start * (lengths - size - 1))
        there = many[:, None] * MOST_GAPS >= gap
        around &= ~(there & (steps >= start) & (steps < start + size))
    given = np.where(prefixed[:, None] < PREFIXES, prefix, around)
    return given & (lengths >= 4) & (conditioned[:, None] < share)


def given_prefix(prefix: list[int], length: int) -> list[int]:
    """[length] ids: the prefix, then FREE for what is to be written."""
    return [*prefix, *([FREE] * (length - len(prefix)))]


def given_words(pieces: list[list[int]], gaps: list[int], bos: int, eos: int) -> list[int]:
    """Ids of <s>, the pieces with a gap of FREE places between each and the next, and </s>."""
    known = [bos, *pieces[0]]
    for gap, piece in zip(gaps, pieces[1:], strict=True):
        known += [FREE] * gap + piece
    return [*known, eos]
