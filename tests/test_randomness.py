"""Random numbers by place: the published generator, the right distributions, nobody's numbers depend on the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bartleby.randomness import extended, normals, philox, stream_seeds, uniforms

SEEDS = [(3, index) for index in range(400)]


def test_philox_is_the_published_one():
    """The known answer of Random123's test vectors for counter and key of zero."""
    zero = torch.zeros(1, 1, dtype=torch.long)
    words = [f"{int(word):08x}" for word in philox(zero, zero)]
    assert words == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_normals_and_uniforms_have_their_distributions():
    drawn = normals(SEEDS, 1001)
    assert drawn.shape == (400, 1001) and drawn.dtype == torch.float32
    for power, moment in enumerate((0, 1, 0, 3, 0, 15), start=1):
        assert drawn.double().pow(power).mean() == pytest.approx(moment, abs=0.06 * 2**power)
    assert drawn.abs().max() < 7
    neighbours = torch.corrcoef(torch.stack([drawn[:, :-1].flatten(), drawn[:, 1:].flatten()]))
    rows = torch.corrcoef(drawn[:50])
    assert abs(neighbours[0, 1]) < 0.01 and rows.fill_diagonal_(0).abs().max() < 0.2
    even = uniforms(SEEDS, 1000)
    assert even.min() >= 0 and even.max() < 1
    shares = torch.histc(even, bins=20, min=0, max=1) / even.numel()
    assert torch.allclose(shares, torch.full((20,), 0.05), atol=0.002)


def test_a_number_depends_on_its_seed_and_its_place_alone():
    together = uniforms(SEEDS, 20)
    assert torch.equal(uniforms(SEEDS[7:8], 9)[0], together[7, :9])
    assert torch.equal(uniforms(SEEDS, 11, first=6), together[:, 6:17])
    assert torch.equal(normals(SEEDS[7:8], 9)[0], normals(SEEDS, 20)[7, :9])
    assert len(together[:, 0].unique()) == len(SEEDS)


def test_seeds_are_told_apart_by_each_part_and_their_length():
    seeds = [(0, 1), (1, 0), (0, 0), (-1, 1), (2**63, 1), (2**32, 1)]
    assert len(uniforms(seeds, 1).unique()) == len(seeds)
    assert not torch.equal(uniforms([(0,)], 4), uniforms([(0, 0)], 4))
    assert torch.equal(uniforms([(-1, 1)], 4), uniforms([(2**64 - 1, 1)], 4))


def test_seeds_as_a_table():
    wanted = normals([(5, 2, 9), (5, 4, 9)], 6)
    assert torch.equal(normals(extended(stream_seeds((5,), np.array([2, 4])), 9), 6), wanted)
    assert torch.equal(normals(extended([(5, 2), (5, 4)], 9), 6), wanted)
