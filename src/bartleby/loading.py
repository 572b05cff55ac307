"""Any BART by name or folder: the bundled nano, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, BartForConditionalGeneration, GenerationConfig

from bartleby.autoencoder import Autoencoder
from bartleby.checkpoints import realigned
from bartleby.compressor import Compressor
from bartleby.errors import UserError, first_line
from bartleby.latents import read_statistics
from bartleby.precision import chosen_device, network_dtype

BUNDLED = "nano"
DEFAULT_WINDOW = 128
GENERATOR = "generator"  # folder of the bundled model: what writes with its BART
COMPRESSOR = "compressor"  # folder of a model whose latents are compressed
HUB_FILES = ["*.json", "*.txt", "*.safetensors"]  # configuration, tokenizer, weights; no pickles


def load_autoencoder(
    model: str | Path | None = None,
    *,
    window: int | None = None,
    device: str | torch.device | None = None,
) -> Autoencoder:
    """The BART named `model` (default: the bundled nano), ready to encode and decode.

    model: a folder in Hugging Face's layout, or a hub name such as facebook/bart-base. window: tokens
    a text may have; by default 128, or less where the model's positions or tokenizer allow less.
    Raises UserError for anything that is not a loadable BART.
    """
    folder = model_folder(model)
    name = str(model or BUNDLED)
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "bart":
            raise UserError(f"'{name}' is a {config.model_type} model; Bartleby needs a BART")
        check_weights(folder)
        bart = BartForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError, TypeError) as error:
        raise UserError(f"the model in '{name}' cannot be loaded: {first_line(error)}") from None
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"'{name}': the tokenizer has {len(tokenizer):,} entries, the model's vocabulary {config.vocab_size:,}"
        )
    # A hub model's own generation defaults (beams, n-gram bans) would slip into every decode.
    bart.generation_config = GenerationConfig()
    device = chosen_device(device)
    compressor = _load_compressor(folder / COMPRESSOR, config.d_model)
    positions, beside, channels = config.max_position_embeddings, folder, config.d_model
    if compressor is not None:
        positions = min(positions, compressor.config.window)
        beside, channels = folder / COMPRESSOR, compressor.config.vector_channels
        compressor.eval().to(device)
    return Autoencoder(
        bart=realigned(bart).eval().to(device),
        tokenizer=tokenizer,
        window=_window(window, positions, tokenizer.model_max_length),
        name=name,
        folder=folder,
        statistics=read_statistics(beside, channels),
        dtype=network_dtype(device),
        compressor=compressor,
    )


def _load_compressor(folder: Path, channels: int) -> Compressor | None:
    """The compressor beside a BART of so many channels; None if there is none."""
    if not folder.is_dir():
        return None
    check_weights(folder)
    try:
        compressor = Compressor.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"the compressor in '{folder}' cannot be loaded: {first_line(error)}"
        ) from None
    if compressor.config.channels != channels:
        raise UserError(
            f"the compressor in '{folder}' reads {compressor.config.channels} channels, the BART beside it has "
            f"{channels}"
        )
    return realigned(compressor)


def bundled_folder() -> Path:
    """Where the bundled model lies in the installed package."""
    return Path(__file__).parent / "pretrained" / BUNDLED


def generator_folder(name: str | Path) -> Path:
    """The folder of a generator's own parts: a run's, or of "nano" the bundled one's."""
    return bundled_folder() / GENERATOR if str(name) == BUNDLED else Path(name).expanduser()


def model_folder(model: str | Path | None, *, marker: str = "config.json") -> Path:
    """The local folder of a model: bundled, named, or fetched from the hub into its cache.

    marker: the file by which a model's folder is known. The network is asked only for what the cache
    lacks. Raises UserError for a path that does not exist, and for a hub name that cannot be fetched.
    """
    if model is None or str(model) == BUNDLED:
        return bundled_folder()
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / marker).exists():
            raise UserError(f"folder '{model}' holds no model: {marker} is missing")
        return path
    if path.exists():
        raise UserError(f"'{model}' is a file; name the model's folder")
    if str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        raise UserError(f"no model folder at '{model}'")
    return _cached(str(model), marker) or _fetch(str(model))


def _cached(name: str, marker: str) -> Path | None:
    """The hub cache's folder for `name`, if it is there with its marker and weights."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(
            f"'{name}' is neither a folder nor a hub name: {first_line(error)}"
        ) from None
    complete = (folder / marker).exists() and any(folder.glob("**/*.safetensors"))
    return folder if complete else None


def _fetch(name: str) -> Path:
    if HF_HUB_OFFLINE:
        raise UserError(
            f"'{name}' is no local folder and not in the Hugging Face cache, and HF_HUB_OFFLINE is set: "
            "unset it to fetch the model, or name a folder"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"'{name}' is no local folder and could not be fetched from the Hugging Face hub: {first_line(error)}"
        ) from None


def check_weights(folder: Path) -> None:
    """Reads the header and size of each weights file of a folder; UserError names a damaged one."""
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if 0 < length < size else b""
        try:
            tensors = json.loads(header)
            end = max(
                entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"
            )
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"'{file}' is damaged: it has no readable header. Fetch or train it again"
            ) from None
        if 8 + length + end != size:
            raise UserError(
                f"'{file}' is damaged: {size:,} bytes of {8 + length + end:,}. Fetch or train it again"
            )


def _window(wanted: int | None, positions: int, tokenizer_limit: int) -> int:
    largest = min(positions, tokenizer_limit)
    if wanted is None:
        return min(DEFAULT_WINDOW, largest)
    if not 4 <= wanted <= largest:
        raise UserError(f"window is {wanted}; this model reads 4 to {largest} tokens")
    return wanted
