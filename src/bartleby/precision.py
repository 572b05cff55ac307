"""Which device networks run on, and in which number format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bartleby.errors import UserError

SHORT_TEXT = 128  # tokens
DEVICES = ("cpu", "cuda")  # what networks are known to run on here


def chosen_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is named; without a name cuda where there is one, unless `accelerate launch --cpu` was said.

    Raises UserError for a device that is neither cpu nor cuda, or that this machine does not have.
    """
    if device is None:
        cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device is '{device}'; say cpu or cuda") from None
    if chosen.type not in DEVICES:
        raise UserError(f"device is '{device}'; say cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but this machine has no CUDA device; use --device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is '{device}'; this machine has {torch.cuda.device_count()} GPUs")
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


@contextmanager
def autocast(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast for networks only; noise, statistics and losses stay in float32."""
    device = torch.device(device)
    half = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
    with half, _any_shape(device):
        yield


@contextmanager
def exact(device: torch.device | str) -> Iterator[None]:
    """Within, products of float32 matrices are float32's: no autocast, no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def allow_tf32(device: torch.device | str) -> None:
    """For training: from now on a GPU rounds the factors of float32 products, but for those under `exact`.

    A vocabulary's scores are such products, and were a third of a step (docs/LOG.md).
    """
    if torch.device(device).type == "cuda":
        torch.set_float32_matmul_precision("high")


def attention_kernel(length: int, device: torch.device | str) -> AbstractContextManager:
    """For training: plain matrix products for short texts on a CPU.

    There the flash kernel's work for each text and head costs more than it saves: its way back in
    bfloat16 took 5 times as long at 10 tokens, and still 1.3 times at 128 (docs/LOG.md).
    """
    if torch.device(device).type == "cpu" and length <= SHORT_TEXT:
        return sdpa_kernel(SDPBackend.MATH)
    return _any_shape(torch.device(device))


def _any_shape(device: torch.device) -> AbstractContextManager:
    """On a GPU the attention kernels that need no preparation.

    cuDNN's plans anew for every shape, and no two batches of texts have the same: that was a third of a training
    step (docs/LOG.md).
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
