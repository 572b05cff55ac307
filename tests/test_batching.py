"""Batches: what a resumed run goes on with is what it would have come to."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest

from bartleby.batching import endless_batches

LENGTHS = np.random.default_rng(0).integers(3, 30, size=90)


def batches(skip: int, count: int) -> list[tuple[int, list[int]]]:
    made = endless_batches(LENGTHS, tokens_per_batch=256, seed=(0, 1), skip=skip)
    return [(epoch, indices.tolist()) for epoch, indices in islice(made, count)]


def test_an_epoch_has_every_text_once_and_the_next_another_order():
    epochs = {}
    for epoch, indices in batches(0, 40):
        epochs.setdefault(epoch, []).append(indices)
    first, second = epochs[0], epochs[1]
    for plan in (first, second):
        assert sorted(chain.from_iterable(plan)) == list(range(90))
    assert first != second and len(epochs) > 3
    assert all(len(own) * LENGTHS[own].max() <= 256 for own in first)


@pytest.mark.parametrize("skip", [0, 5, 9, 20, 33])
def test_skipped_batches_are_those_that_came_first(skip):
    assert batches(skip, 5) == batches(0, skip + 5)[skip:]
