"""Sequences of different lengths in batches that carry little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

POOL_BATCHES = 64  # lengths are sorted within this many batches' worth of randomly drawn sequences


def plan_epoch(
    lengths: np.ndarray, *, tokens_per_batch: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Indices of every sequence once, in batches of similar length with at most `tokens_per_batch` padded positions.

    lengths: [n].  The order of batches, and which sequences meet in one, are random.
    """
    order = rng.permutation(len(lengths))
    pool_size = max(1, int(POOL_BATCHES * tokens_per_batch / max(1.0, lengths.mean())))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(cut_by_tokens(pool, lengths, tokens_per_batch))
    return [batches[index] for index in rng.permutation(len(batches))]


def endless_batches(
    lengths: np.ndarray, *, tokens_per_batch: int, seed: tuple[int, ...], skip: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, indices) of batch after batch, the first `skip` left out; an epoch's plan depends on seed and number."""
    epoch = 0
    while True:
        rng = np.random.default_rng((*seed, epoch))
        plan = plan_epoch(lengths, tokens_per_batch=tokens_per_batch, rng=rng)
        yield from ((epoch, indices) for indices in plan[skip:])
        skip = max(0, skip - len(plan))
        epoch += 1


def cut_by_tokens(
    indices: np.ndarray, lengths: np.ndarray, tokens_per_batch: int
) -> Iterator[np.ndarray]:
    """`indices`, sorted by length, cut so that count x longest <= tokens_per_batch (one at least)."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or (end + 1 - start) * lengths[indices[end]] > tokens_per_batch:
            yield indices[start:end]
            start = end


def batches_by_length(
    lengths: np.ndarray, *, tokens_per_batch: int, apart: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Indices of every sequence once, in order of length, cut as by `cut_by_tokens`.

    apart: [n], sequences with different numbers here never meet in a batch.
    """
    order = np.argsort(lengths, kind="stable")
    groups = (
        [order] if apart is None else [order[apart[order] == kind] for kind in np.unique(apart)]
    )
    for group in groups:
        yield from cut_by_tokens(group, lengths, tokens_per_batch)


def tokens_at_once(device: torch.device, *, on_cpu: int) -> int:
    """How many tokens a network that learns nothing takes together: what a CPU's cache holds, or a GPU's cores want."""
    return on_cpu if device.type == "cpu" else 16 * on_cpu


def gathered(
    flat: np.ndarray, offsets: np.ndarray, indices: np.ndarray, *, padding: int, length: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pad`, of these sequences of many that lie one after another in `flat`; offsets: [n + 1], their places.

    length: L, by default the longest's.
    """
    places, mask = places_of(offsets, indices, length=length)
    ids = flat[places].astype(np.int64)  # first: unsigned ids have no room for a negative padding
    return torch.from_numpy(np.where(mask, ids, padding)), torch.from_numpy(mask)


def places_of(
    offsets: np.ndarray, indices: np.ndarray, *, length: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Where the parts of these sequences lie, [B, L], and the mask [B, L]; padding has its sequence's last place.

    length: L, by default the longest's.
    """
    lengths = offsets[indices + 1] - offsets[indices]
    steps = np.arange(length or lengths.max())
    inside = np.minimum(steps, lengths[:, None] - 1)
    return offsets[indices][:, None] + inside, steps < lengths[:, None]


def pad(
    sequences: Sequence[Sequence[int] | np.ndarray], padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, L] padded on the right, and the mask [B, L] that is 1 at real tokens."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), longest), padding, dtype=np.int64)
    mask = np.zeros((len(sequences), longest), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple
