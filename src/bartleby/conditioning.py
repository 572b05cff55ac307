"""Which part of a text is given when a denoiser is trained to complete it: a prefix, or all but gaps.

One model then writes freely, continues and fills in; with nothing given for a share of the passages,
guidance between the two is possible as well (Ho & Salimans 2022).
"""

from __future__ import annotations

import numpy as np

from bartleby.given import FREE

MEAN_GAP = 4.0  # tokens, 1 + Poisson(3): BART's own spans (Lewis et al. 2019) are Poisson(3), but may be empty
PREFIXES = 0.5  # of the conditioned passages are continued, the others filled in


def given_positions(length: int, share: float, *, seed: tuple[int, ...]) -> np.ndarray:
    """[length] bool, True where the token is given; none are for 1 - share of the seeds.

    At least one token between <s> and </s> is left to write.
    """
    rng = np.random.default_rng(seed)
    given = np.zeros(length, dtype=bool)
    if length < 4 or rng.random() >= share:
        return given
    if rng.random() < PREFIXES:
        given[: rng.integers(2, length - 1)] = True
        return given
    given[:] = True
    for _ in range(rng.integers(1, 3)):
        size = min(1 + rng.poisson(MEAN_GAP - 1), length - 2)
        start = rng.integers(1, length - size)
        given[start : start + size] = False
    return given


def given_prefix(prefix: list[int], length: int) -> list[int]:
    """[length] ids: the prefix, then FREE for what is to be written."""
    return [*prefix, *([FREE] * (length - len(prefix)))]


def given_words(pieces: list[list[int]], gaps: list[int], bos: int, eos: int) -> list[int]:
    """Ids of <s>, the pieces with a gap of FREE places between each and the next, and </s>."""
    known = [bos, *pieces[0]]
    for gap, piece in zip(gaps, pieces[1:], strict=True):
        known += [FREE] * gap + piece
    return [*known, eos]
