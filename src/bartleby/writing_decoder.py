"""A generator's own decoder: the layers that `bartleby repair` trained, in a file beside its denoiser.

A decoder that has learned to write from estimates copies long texts a little worse, so the BART keeps the one
that copies, and the generator writes with its own. It may have more layers than the BART's and a readout of its own,
where the BART's are the token embeddings of the encoder: to write takes more than to copy.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BartForConditionalGeneration

from bartleby.checkpoints import replaced_file
from bartleby.errors import UserError
from bartleby.loading import BUNDLED, generator_folder
from bartleby.quantisation import dequantised, quantised

DECODER_FILE = "decoder.int8.safetensors"
READOUT = "lm_head.weight"


def decoder_weights(bart: BartForConditionalGeneration) -> dict[str, torch.nn.Parameter]:
    """What belongs to the decoder alone: the token embeddings are the encoder's as well."""
    own = ("layers.", "layernorm_embedding.")
    named = bart.model.decoder.named_parameters()
    weights = {name: weight for name, weight in named if name.startswith(own)}
    if not bart.config.tie_word_embeddings:
        weights[READOUT] = bart.lm_head.weight
    return weights


def untie_readout(bart: BartForConditionalGeneration) -> None:
    """Gives the decoder a readout of its own, in place, equal to the token embeddings at first."""
    if not bart.config.tie_word_embeddings:
        return
    bart.config.tie_word_embeddings = False
    # transformers ties all or nothing, and saves one of tensors that are the same: each gets a copy.
    for part in (bart.lm_head, bart.model.encoder.embed_tokens, bart.model.decoder.embed_tokens):
        part.weight = torch.nn.Parameter(part.weight.detach().clone())


def deepen(bart: BartForConditionalGeneration, layers: int) -> None:
    """Gives the decoder so many layers, in place: the first and the last stay, those between are repeated in order.

    Repeating all of them, as is done for decoders that normalise first (Du et al. 2024), leaves nano's at 7.9 nats a
    token at a timestep of 60%, where this leaves it at 3.1 (docs/LOG.md). UserError for fewer than it has.
    """
    present = list(bart.model.decoder.layers)
    if layers < len(present):
        raise UserError(f"layers is {layers}; the decoder has {len(present)} already")
    if layers == len(present):
        return
    middle = itertools.cycle(present[1:-1] or present[:1])
    chosen = [present[0], *itertools.islice(middle, layers - 2), present[-1]]
    stack = [copy.deepcopy(layer) for layer in chosen]
    for index, layer in enumerate(stack):  # its place in the cache
        layer.self_attn.layer_idx = layer.encoder_attn.layer_idx = index
    bart.model.decoder.layers = torch.nn.ModuleList(stack)
    bart.config.decoder_layers = layers


def save_decoder(bart: BartForConditionalGeneration, folder: Path) -> None:
    """Writes the decoder's own weights to `folder`, matrices in 8 bits."""
    tensors = {name: weight.detach().cpu() for name, weight in decoder_weights(bart).items()}
    with replaced_file(folder / DECODER_FILE) as temporary:
        save_file(quantised(tensors), temporary)


def decoder_folder(name: str | Path) -> Path:
    """The folder that holds a decoder: of a run that has its own, of `bartleby repair`, or "nano", the bundled one's.

    UserError for one that holds none.
    """
    folder = generator_folder(name)
    if not (folder / DECODER_FILE).exists():
        raise UserError(
            f"'{name}' has no decoder of its own; name a folder of bartleby repair, a run that got one by "
            f"bartleby defaults, or {BUNDLED}"
        )
    return folder


@torch.no_grad()
def load_decoder(bart: BartForConditionalGeneration, folder: Path) -> None:
    """Puts the saved weights into `bart`, which gets as many layers; nothing changes if `folder` has none.

    UserError if they do not fit.
    """
    path = folder / DECODER_FILE
    if not path.exists():
        return
    try:
        saved = dequantised(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    layers = {int(name.split(".")[1]) for name in saved if name.startswith("layers.")}
    deepen(bart, max(len(layers), bart.config.decoder_layers))
    if READOUT in saved:
        untie_readout(bart)
    own = decoder_weights(bart)
    shapes = {name: tuple(weight.shape) for name, weight in own.items()}
    if shapes != {name: tuple(weight.shape) for name, weight in saved.items()}:
        raise UserError(
            f"'{path}' is a decoder of another shape than the BART it is to be read with"
        )
    for name, weight in own.items():
        weight.copy_(saved[name])
