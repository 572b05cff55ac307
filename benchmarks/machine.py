"""What the benchmarks compare with: wall-clock time and the machine's matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a [2048, 1024] x [1024, 1024] product, the best of five."""
    a, b = torch.randn(2048, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    best = min(seconds(lambda: [F.linear(a, b) for _ in range(5)]) for _ in range(5))
    return 5 * 2 * 2048 * 1024 * 1024 / best
