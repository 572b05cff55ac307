"""Denoisers by name, new or from a saved folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bartleby.denoisers.baselines import IdentityDenoiser, MixtureDenoiser, WienerDenoiser
from bartleby.denoisers.diffusers_unet import DiffusersUNet1D
from bartleby.denoisers.simple_unet import SimpleUNet1D
from bartleby.denoisers.text_unet import TextUNet1D
from bartleby.denoisers.token_transformer import TokenTransformer
from bartleby.denoisers.transformer import SIZES, DenoisingTransformer
from bartleby.errors import UserError, first_line
from bartleby.quantisation import dequantised, quantised

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
QUANTISED_FILE = "denoiser.int8.safetensors"
STORES = ("float32", "bfloat16", "int8")
TRANSFORMERS = ("transformer", "token-transformer")
DENOISERS = ("simple-unet", "diffusers-unet", "text-unet", *TRANSFORMERS)
CLASSES = {
    kind.__name__: kind
    for kind in (
        SimpleUNet1D,
        DiffusersUNet1D,
        TextUNet1D,
        DenoisingTransformer,
        TokenTransformer,
        IdentityDenoiser,
        WienerDenoiser,
        MixtureDenoiser,
    )
}
for kind in CLASSES.values():
    # diffusers records a class by its module's path; the package's survives moved files.
    kind.__module__ = "bartleby.denoisers"


def build_denoiser(
    name: str,
    *,
    channels: int,
    window: int,
    timesteps: int = 1000,
    size: str = "small",
    widths: tuple[int, ...] | None = None,
    self_conditioning: bool = False,
    precondition: str = "none",
    vocabulary: int = 0,
    seed: int = 0,
) -> ModelMixin:
    """A new denoiser for latents of `channels` and at most `window` tokens; the same seed gives the same weights.

    size and self_conditioning belong to the transformers, precondition to the first of them, widths to
    the UNets, vocabulary to the mixture of tokens. Raises UserError for an unknown name or size, for
    options of another denoiser, and for a window that the network cannot halve often enough.
    """
    _check_options(name, size, widths, self_conditioning, precondition)
    options = {} if widths is None else {"widths": tuple(widths)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TRANSFORMERS:
            shape = dict(zip(("width", "layers", "heads"), SIZES[size], strict=True))
            shape |= {"channels": channels, "timesteps": timesteps}
            shape |= {"self_conditioning": self_conditioning}
            tables = {"vocabulary": vocabulary, "window": window}
            if name == "token-transformer":
                return TokenTransformer(**shape, **tables)
            tables = tables if precondition == "mixture" else {}
            return DenoisingTransformer(**shape, **tables, precondition=precondition)
        if name == "diffusers-unet":
            widths = widths or diffusers_widths(channels)
            denoiser = DiffusersUNet1D(channels=channels, length=window, widths=tuple(widths))
        else:
            kind = {"simple-unet": SimpleUNet1D, "text-unet": TextUNet1D}[name]
            denoiser = kind(channels=channels, **options)
    if window % denoiser.length_multiple:
        raise UserError(
            f"autoencoder.window is {window}, but '{name}' halves the length and needs a multiple of "
            f"{denoiser.length_multiple}; use {window // denoiser.length_multiple * denoiser.length_multiple}"
        )
    return denoiser


def _check_options(name, size, widths, self_conditioning, precondition) -> None:
    if name not in DENOISERS:
        raise UserError(f"denoiser.name is '{name}' (known: {', '.join(DENOISERS)})")
    if name in TRANSFORMERS and size not in SIZES:
        raise UserError(f"denoiser.size is '{size}' (known: {', '.join(SIZES)})")
    if name in TRANSFORMERS and widths:
        raise UserError("denoiser.widths is for UNets; a transformer takes denoiser.size")
    if name not in TRANSFORMERS and self_conditioning:
        raise UserError(
            f"denoiser.self_conditioning needs a transformer (denoiser.name = "
            f"{' or '.join(TRANSFORMERS)}), not '{name}'"
        )
    if name != "transformer" and precondition != "none":
        raise UserError(f"denoiser.precondition needs denoiser.name = 'transformer', not '{name}'")
    levels = {"simple-unet": 2}.get(name, 3)
    if widths and (any(width % 8 for width in widths) or len(widths) != levels):
        raise UserError(
            f"denoiser.widths is {list(widths)}; '{name}' takes {levels} multiples of 8"
        )


def diffusers_widths(channels: int) -> tuple[int, int, int]:
    """(256, 512, 768) at 768 channels, scaled with them; multiples of 8 for GroupNorm."""
    return tuple(max(8, channels * third // 24 * 8) for third in (1, 2, 3))


def load_denoiser(folder: str | Path) -> ModelMixin:
    """A denoiser saved with `save_pretrained` or `save_denoiser`, of whichever of our classes, ready to use."""
    folder = Path(folder)
    path = folder / "config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["_class_name"]
        kind = CLASSES[name]
    except (OSError, ValueError, KeyError):
        raise UserError(f"'{folder}' holds no denoiser of Bartleby") from None
    try:
        small = folder / QUANTISED_FILE
        tensors = load_file(small if small.exists() else folder / WEIGHTS_FILE)
        denoiser = kind.from_config(kind.load_config(folder))
        denoiser.load_state_dict(dequantised(tensors))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"the denoiser in '{folder}' cannot be loaded: {first_line(error)}"
        ) from None
    return denoiser.float().eval()


def save_denoiser(denoiser: ModelMixin, folder: Path, *, store: str = "float32") -> None:
    """Like `save_pretrained`; with store = bfloat16 or int8 the large tensors take less room.

    int8 has a scale for each row and about bfloat16's precision; only `load_denoiser` reads it, so its
    file has a name of its own. What needs its digits stays float32: a posterior's axes, through which
    x_t goes there and back, and every vector.
    """
    denoiser.save_pretrained(folder)
    if store == "float32":
        return
    path = folder / WEIGHTS_FILE
    tensors = load_file(path)
    large = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.ndim >= 2 and not name.endswith((".basis", ".position_means"))
    }
    if store == "int8":
        tensors |= quantised(large)
    else:
        tensors |= {name: tensor.to(getattr(torch, store)) for name, tensor in large.items()}
    path.unlink()
    name = QUANTISED_FILE if store == "int8" else WEIGHTS_FILE
    save_file(tensors, folder / name, metadata={"format": "pt"})


def parameters(denoiser: ModelMixin) -> int:
    """Trainable parameters."""
    return sum(weight.numel() for weight in denoiser.parameters())
