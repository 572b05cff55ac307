"""A generator's own decoder: the layers that `bartleby repair` trained, in a file beside its denoiser.

A decoder that has learned to write from estimates copies long texts a little worse, so the BART keeps the one
that copies, and the generator writes with its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BartForConditionalGeneration

from bartleby.errors import UserError
from bartleby.quantisation import dequantised, quantised

DECODER_FILE = "decoder.int8.safetensors"


def decoder_layers(bart: BartForConditionalGeneration) -> dict[str, torch.nn.Parameter]:
    """What belongs to the decoder alone: its token embeddings are the encoder's as well."""
    own = ("layers.", "layernorm_embedding.")
    named = bart.model.decoder.named_parameters()
    return {name: weight for name, weight in named if name.startswith(own)}


def save_decoder(bart: BartForConditionalGeneration, folder: Path) -> None:
    """Writes the decoder's layers to `folder`, matrices in 8 bits."""
    tensors = {name: weight.detach().cpu() for name, weight in decoder_layers(bart).items()}
    try:
        save_file(quantised(tensors), folder / DECODER_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write '{folder / DECODER_FILE}': {error}") from None


@torch.no_grad()
def load_decoder(bart: BartForConditionalGeneration, folder: Path) -> None:
    """Puts the saved layers into `bart`; nothing changes if `folder` has none. UserError if they do not fit."""
    path = folder / DECODER_FILE
    if not path.exists():
        return
    try:
        saved = dequantised(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    layers = decoder_layers(bart)
    shapes = {name: tuple(weight.shape) for name, weight in layers.items()}
    if shapes != {name: tuple(weight.shape) for name, weight in saved.items()}:
        raise UserError(
            f"'{path}' is a decoder of another shape than the BART it is to be read with"
        )
    for name, weight in layers.items():
        weight.copy_(saved[name])
