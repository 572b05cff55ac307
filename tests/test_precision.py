"""Where numbers are rounded and where not; sequences gathered from one array as they are padded from a list."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bartleby.batching import gathered, pad, places_of
from bartleby.errors import UserError
from bartleby.precision import allow_tf32, autocast, chosen_device, exact


def test_exact_products_inside_whatever_is_around_them():
    torch.set_float32_matmul_precision("high")
    try:
        a, b = (torch.randn(64, 64, generator=torch.manual_seed(i)) for i in (0, 1))
        with autocast("cpu", torch.bfloat16):
            assert (a @ b).dtype == torch.bfloat16
            with exact("cpu"):
                assert torch.get_float32_matmul_precision() == "highest"
                assert torch.allclose(a @ b, (a.double() @ b.double()).float(), atol=1e-4)
            assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(ZeroDivisionError), exact("cpu"):
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_cpu_goes_on_with_exact_products():
    allow_tf32("cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    with autocast("cpu", torch.float32):
        assert not torch.is_autocast_enabled("cpu")


def test_gathered_sequences_are_those_that_are_padded():
    sequences = [np.arange(start, start + length, dtype=np.uint16) for start, length in
                 ((0, 3), (50, 1), (7, 6), (90, 2))]  # fmt: skip
    offsets = np.cumsum([0, *map(len, sequences)])
    chosen = np.array([2, 0, 3, 2])
    ids, mask = gathered(np.concatenate(sequences), offsets, chosen, padding=-100)
    expected, expected_mask = pad([sequences[index] for index in chosen], -100)
    assert torch.equal(ids, expected) and torch.equal(mask, expected_mask.bool())
    places, wider = places_of(offsets, chosen, length=9)
    assert places.shape == wider.shape == (4, 9)
    assert places.max() < offsets[-1] and (wider.sum(axis=1) == [6, 3, 2, 6]).all()


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(UserError, match="device is"):
        chosen_device(device)
