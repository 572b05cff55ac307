"""Which device networks run on, and in which number format."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bartleby.errors import UserError

SHORT_TEXT = 128  # tokens


def chosen_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is named; without a name cuda where there is one, unless `accelerate launch --cpu` was said.

    Raises UserError for a device that torch does not know or this machine does not have.
    """
    if device is None:
        cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device is '{device}'; say cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but this machine has no CUDA device; use --device cpu")
    return chosen


def network_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32.

    On a CPU that means AMX or AVX-512 bf16 instructions: without them bfloat16 is emulated and was
    measured at an eighth of float32's speed (docs/LOG.md).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return (
            torch.bfloat16
            if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
            else torch.float32
        )
    return torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast for networks only; noise, statistics and losses stay in float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def attention_kernel(length: int, device: torch.device | str) -> AbstractContextManager:
    """For training: plain matrix products for short texts on a CPU.

    There the flash kernel's work for each text and head costs more than it saves: its way back in
    bfloat16 took 5 times as long at 10 tokens, and still 1.3 times at 128 (docs/LOG.md).
    """
    if torch.device(device).type == "cpu" and length <= SHORT_TEXT:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
