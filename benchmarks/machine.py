"""What the benchmarks compare with: wall-clock time and the machine's matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bartleby.precision import network_dtype


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, until a GPU has done what it was asked to."""
    _finish()
    start = time.perf_counter()
    work()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """FLOP/s of a product of [n, n] matrices, the best of five; n is 1,024 on a CPU and 8,192 on a GPU."""
    n = 1024 if torch.device(device).type == "cpu" else 8192
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    best = min(seconds(lambda: [F.linear(a, b) for _ in range(5)]) for _ in range(5))
    return 5 * 2 * n**3 / best


def print_rates(device: torch.device | str) -> float:
    """Prints the rates in float32 and bfloat16; returns that of the format networks compute in here."""
    rates = {dtype: matrix_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in rates.items():
        print(f"matrix products in {str(dtype).removeprefix('torch.')}: {rate / 1e12:.3f} TFLOP/s")
    return rates[network_dtype(device)]
