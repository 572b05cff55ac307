"""Denoisers by name, ours or yours, new or from a saved folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bartleby.denoisers.baselines import IdentityDenoiser, MixtureDenoiser, WienerDenoiser
from bartleby.denoisers.contract import ORIGIN, Denoiser
from bartleby.denoisers.diffusers_unet import DiffusersUNet1D
from bartleby.denoisers.simple_unet import SimpleUNet1D
from bartleby.denoisers.text_unet import TextUNet1D
from bartleby.denoisers.token_transformer import TokenTransformer
from bartleby.denoisers.transformer import SIZES, DenoisingTransformer
from bartleby.errors import UserError, first_line
from bartleby.own_code import is_own, own_code
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
    own_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> ModelMixin:
    """A new denoiser for latents of `channels` and at most `window` tokens; the same seed gives the same weights.

    name: one of DENOISERS, or module:Class of a `Denoiser` of yours, whose `__init__` is also given own_options.
    size and self_conditioning belong to the transformers, precondition to the first of them, widths to
    the UNets, vocabulary to the mixture of tokens. Raises UserError for an unknown name or size, for
    options of another denoiser, and for a window that the network cannot halve often enough.
    """
    _check_options(name, size, widths, self_conditioning, precondition, own_options)
    options = {} if widths is None else {"widths": tuple(widths)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_own(name):
            asked = {"self_conditioning": True} if self_conditioning else {}
            denoiser = _own(name, {"channels": channels, **asked, **(own_options or {})})
        elif name in TRANSFORMERS:
            shape = dict(zip(("width", "layers", "heads"), SIZES[size], strict=True))
            shape |= {"channels": channels, "timesteps": timesteps}
            shape |= {"self_conditioning": self_conditioning}
            tables = {"vocabulary": vocabulary, "window": window}
            if name == "token-transformer":
                return TokenTransformer(**shape, **tables)
            tables = tables if precondition == "mixture" else {}
            return DenoisingTransformer(**shape, **tables, precondition=precondition)
        elif name == "diffusers-unet":
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


def class_of(name: str) -> type[Denoiser]:
    """The class that module:Class names."""
    own = own_code(name, "denoiser.name")
    if not (isinstance(own, type) and issubclass(own, Denoiser)):
        raise UserError(f"denoiser.name is '{name}', which is no subclass of bartleby.Denoiser")
    return own


def _own(name: str, options: dict[str, Any]) -> Denoiser:
    """A denoiser of yours, after a look at whether it does what a denoiser must."""
    try:
        denoiser = class_of(name)(**options)
        latents = torch.zeros(2, options["channels"], denoiser.length_multiple)
        mask = torch.ones_like(latents[:, 0], dtype=torch.bool)
        with torch.no_grad():
            shape = denoiser(latents, torch.zeros(2, dtype=torch.long), mask).sample.shape
        forgotten = [key for key, value in options.items() if _saved(denoiser, key) != value]
    except UserError:
        raise
    except Exception as error:  # whatever a network of yours may do
        raise UserError(f"denoiser '{name}' fails: {first_line(error)}") from None
    if shape != latents.shape:
        raise UserError(f"'{name}' makes {list(shape)} of latents {list(latents.shape)}")
    if forgotten:
        raise UserError(
            f"'{name}' does not remember {', '.join(forgotten)}; decorate its __init__ with "
            "diffusers.configuration_utils.register_to_config"
        )
    return denoiser


def _saved(denoiser: Denoiser, key: str) -> Any:
    value = denoiser.config.get(key)
    return list(value) if isinstance(value, tuple) else value


def has_own_class(folder: Path) -> bool:
    """Whether the denoiser saved in `folder` is of a class that is not Bartleby's."""
    try:
        return ORIGIN in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _check_options(
    name: str,
    size: str,
    widths: tuple[int, ...] | None,
    self_conditioning: bool,
    precondition: str,
    own_options: dict[str, Any] | None,
) -> None:
    if is_own(name):
        if widths or precondition != "none":
            raise UserError(f"denoiser.widths and precondition are not for '{name}'; use options")
        return
    if own_options:
        raise UserError(f"denoiser.options are for a network of your own, not for '{name}'")
    if name not in DENOISERS:
        raise UserError(
            f"denoiser.name is '{name}' (known: {', '.join(DENOISERS)}, or module:Class of yours)"
        )
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


def diffusers_widths(channels: int) -> tuple[int, ...]:
    """(256, 512, 768) at 768 channels, scaled with them; multiples of 8 for GroupNorm."""
    return tuple(max(8, channels * third // 24 * 8) for third in (1, 2, 3))


def load_denoiser(folder: str | Path) -> ModelMixin:
    """A denoiser saved with `save_pretrained` or `save_denoiser`, of whichever class, ready to use.

    Raises UserError if it is missing, damaged, or of a class that cannot be imported here.
    """
    folder = Path(folder)
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        origin = described.get(ORIGIN)
        kind = class_of(origin) if origin else CLASSES[described["_class_name"]]
    except UserError as error:
        raise UserError(f"'{folder}' needs your own code: {error}") from None
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"'{folder}' holds no denoiser of Bartleby") from None
    try:
        small = folder / QUANTISED_FILE
        tensors = load_file(small if small.exists() else folder / WEIGHTS_FILE)
        denoiser = kind.from_config({k: v for k, v in described.items() if k != ORIGIN})
        denoiser.load_state_dict(dequantised(tensors))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"the denoiser in '{folder}' cannot be loaded: {first_line(error)}"
        ) from None
    return denoiser.float().eval()


@torch.no_grad()
def start_from(denoiser: ModelMixin, folder: Path) -> None:
    """Gives a new denoiser, in place, what the one saved in `folder` has learned; tables stay as they were fitted.

    UserError, and nothing changed, if its parameters have other names or shapes.
    """
    saved = dict(load_denoiser(folder).named_parameters())
    own = dict(denoiser.named_parameters())
    for name in own | saved:
        here, there = (tuple(part[name].shape) if name in part else None for part in (own, saved))
        if here != there:
            raise UserError(
                f"the denoiser in '{folder}' is of another shape than the new one: {name} is "
                f"{there or 'missing'} there, {here or 'missing'} here"
            )
    for name, weight in own.items():
        weight.copy_(saved[name])


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
