"""BART models made from scratch: presets, and an initialisation that can copy from the first step."""

from __future__ import annotations

import math

import torch
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerBase

# Widths and depths; `ffn` is the width inside the feed-forward layers.
ARCHITECTURES = {
    "nano": {"width": 256, "encoder_layers": 4, "decoder_layers": 4, "heads": 4, "ffn": 1024},
    "wide": {"width": 768, "encoder_layers": 2, "decoder_layers": 2, "heads": 12, "ffn": 1536},
    "tiny": {
        "width": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "heads": 2,
        "ffn": 128,
    },  # for tests
}
POSITION_TO_TOKEN_SCALE = 2.0
ATTENTION_SHARPNESS = 1.5


def new_bart(
    tokenizer: PreTrainedTokenizerBase, *, architecture: str, window: int, seed: int
) -> BartForConditionalGeneration:
    """An untrained BART of one of `ARCHITECTURES`, its cross-attention aligned so that it can copy."""
    sizes = ARCHITECTURES[architecture]
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=window,
        d_model=sizes["width"],
        encoder_layers=sizes["encoder_layers"],
        decoder_layers=sizes["decoder_layers"],
        encoder_attention_heads=sizes["heads"],
        decoder_attention_heads=sizes["heads"],
        encoder_ffn_dim=sizes["ffn"],
        decoder_ffn_dim=sizes["ffn"],
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bart = BartForConditionalGeneration(config)
    align_cross_attention(bart)
    return bart


@torch.no_grad()
def align_cross_attention(bart: BartForConditionalGeneration) -> None:
    """Starts every cross-attention as "read the encoder at my own position".

    From BART's random initialisation the decoder is a plain language model for thousands of steps: it
    ignores the encoder, and the latents collapse. Both stacks keep their input in the residual stream,
    so it is enough that encoder and decoder share position embeddings, that these outweigh the tokens,
    that queries and keys are the same rotation-free map, and that values pass through unchanged: the
    decoder then sees at position p the encoder's token p, which is the token it has to predict.
    Training changes all of this freely.
    """
    encoder, decoder = bart.model.encoder, bart.model.decoder
    encoder.embed_positions.weight.mul_(POSITION_TO_TOKEN_SCALE)
    decoder.embed_positions.weight.copy_(encoder.embed_positions.weight)
    for layer in decoder.layers:
        attention = layer.encoder_attn
        identity = torch.eye(attention.embed_dim)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(identity * math.sqrt(ATTENTION_SHARPNESS))
        for projection in (attention.v_proj, attention.out_proj):
            projection.weight.copy_(identity)
