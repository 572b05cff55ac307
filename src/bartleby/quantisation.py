"""Weights in 8 bits, a scale for each row: about bfloat16's precision in half its room."""

from __future__ import annotations

import torch

SCALE = ".scale"


def quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor of two dimensions or more as int8, its rows' scales beside it under its name + `SCALE`."""
    small = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            small[name] = tensor
            continue
        scale = tensor.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127
        scale = scale.view(-1, *[1] * (tensor.ndim - 1))
        small[name] = (tensor / scale).round().to(torch.int8)
        small[name + SCALE] = scale
    return small


def dequantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """float32 of what `quantised` returns, or of any tensors."""
    # A network of one's own may have a weight of that name; only what was made 8 bits has a scale.
    scales = {
        name + SCALE
        for name, tensor in tensors.items()
        if tensor.dtype == torch.int8 and name + SCALE in tensors
    }
    plain = {name: tensor.float() for name, tensor in tensors.items() if name not in scales}
    for name in scales:
        plain[name.removesuffix(SCALE)] *= tensors[name]
    return plain
