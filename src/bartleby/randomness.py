"""Random numbers that are a function of their seed and their place: the same beside others or alone, on any device.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The n-th number of a stream is
computed from n, so that whole batches, each row with a seed of its own, are drawn at once where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

Seeds = Sequence[tuple[int, ...]] | np.ndarray  # one row of integers for each stream, [n, k]

WORDS = 4  # numbers of 32 bits that one block makes
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def uniforms(
    seeds: Seeds, count: int, *, first: int = 0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """[n, count] float32, evenly spread over 0 to below 1: numbers first, first + 1, ... of each seed's stream."""
    # 24 bits, so that none is rounded to 1.
    return (_words(seeds, count, first, device) >> 8).float().mul_(2.0**-24)


def normals(seeds: Seeds, count: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """[n, count] float32, Gaussian of mean 0 and deviation 1, by Box and Muller (1958)."""
    words = _words(seeds, count + count % 2, 0, device).float().mul_(2.0**-32)
    radius = (words[:, ::2] + 2.0**-33).log_().mul_(-2).clamp_min_(0).sqrt_()
    angle = words[:, 1::2] * (2 * torch.pi)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    return pairs.flatten(1)[:, :count]


def extended(seeds: Seeds, *more: int) -> np.ndarray:
    """[n, k + m]: every seed with these integers after its own."""
    seeds = _table(seeds)
    tail = _table([more])
    return np.concatenate([seeds, np.repeat(tail, len(seeds), axis=0)], axis=1)


def stream_seeds(prefix: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    """[n, k + 1]: a seed for each of `indices`, all with the same beginning."""
    start = np.repeat(_table([prefix]), len(indices), axis=0)
    return np.concatenate([start, indices[:, None].astype(np.uint64)], axis=1)


@contextmanager
def seeded(seed: tuple[int, ...], device: torch.device | str) -> Iterator[None]:
    """Within, what torch draws by itself (dropout, say) is the seed's; outside it is as if nothing had been drawn."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(_keys([seed])[0] >> np.uint64(1)))
        yield


def _table(seeds: Seeds) -> np.ndarray:
    """[n, k] uint64; integers of any size count modulo 2**64."""
    if isinstance(seeds, np.ndarray):
        return seeds.astype(np.uint64, copy=False)
    return np.array([[part % 2**64 for part in seed] for seed in seeds], dtype=np.uint64)


def _keys(seeds: Seeds) -> np.ndarray:
    """[n] uint64, a key for each seed, by SplitMix64's mixing (Steele et al. 2014) of one part after another."""
    table = _table(seeds)
    keys = np.full(len(table), table.shape[1], np.uint64)
    for part in table.T:
        keys = _mixed(keys + np.uint64(0x9E3779B97F4A7C15) ^ _mixed(part))
    return keys


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _words(seeds: Seeds, count: int, first: int, device: torch.device | str) -> torch.Tensor:
    """[n, count] int64 of 0 to 2**32 - 1: numbers first, first + 1, ... of each seed's stream."""
    keys = torch.from_numpy(_keys(seeds).view(np.int64)).to(device)[:, None]
    block = first // WORDS
    blocks = -(-(first + count) // WORDS) - block
    counters = torch.arange(block, block + blocks, device=device)[None]
    words = torch.stack(philox(counters, keys), dim=2).flatten(1)  # [n, 4 x blocks]
    return words[:, first - block * WORDS :][:, :count]


def philox(counters: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Four tensors of words of 32 bits in int64, of shape [counters x keys]: what each counter is under each key.

    counters, keys: int64, of shapes that broadcast; 64 bits each, the counter's upper 64 of 128 are zero.
    """
    zeros = torch.zeros_like(counters * keys)
    x0, x1, x2, x3 = zeros + (counters & LOW), zeros + (counters >> 32 & LOW), zeros, zeros
    key0, key1 = keys & LOW, keys >> 32 & LOW
    for _ in range(ROUNDS):
        # A product's 64 bits are all there, the uppermost as a sign.
        even, odd = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1 = (odd >> 32 & LOW) ^ x1 ^ key0, odd & LOW
        x2, x3 = (even >> 32 & LOW) ^ x3 ^ key1, even & LOW
        key0, key1 = key0 + WEYL[0] & LOW, key1 + WEYL[1] & LOW
    return x0, x1, x2, x3
