"""The yardstick: an autoregressive transformer of the same size, on the same data, trained as long.

GPT-2's architecture from transformers, with the BART's tokenizer, so that what differs is how text is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from bartleby.batching import endless_batches, gathered
from bartleby.checkpoints import digest_of, resume_network, save_network
from bartleby.messages import say
from bartleby.optimisation import MuonAdamW, Timer, learning_rate, optimise
from bartleby.precision import allow_tf32, attention_kernel, autocast, network_dtype
from bartleby.pretrain import token_sequences
from bartleby.randomness import seeded
from bartleby.tokenization import decode_ids

MAY_CHANGE = {"steps", "decay_share", "checkpoint_minutes"}  # when a run is resumed
TEXTS_PER_BATCH = 64
ORDER, DROPOUT = range(2)  # what randomness is for


@dataclass(frozen=True)
class AutoregressiveConfig:
    """width, layers, heads: of the transformer.  dropout: share of what a layer adds that is left out at random.
    weight_decay: of the matrices between layers.

    The rest as in a denoiser's [training] table.
    """

    width: int = 320
    layers: int = 6
    heads: int = 5
    window: int = 32
    dropout: float = 0.0
    steps: int = 2000
    tokens_per_batch: int = 2048
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    weight_decay: float = 0.1
    checkpoint_minutes: float = 4.0
    seed: int = 0


def sized_like(parameters: int, vocabulary: int, **options: Any) -> AutoregressiveConfig:
    """The configuration of a model of about so many parameters.

    In GPT-2's proportions: 64 channels a head, about as many layers as heads.  options: its other fields.
    """

    def layers(heads: int) -> int:
        width = 64 * heads
        return max(1, round((parameters - vocabulary * width) / (12 * width**2)))

    heads = min(range(1, 33), key=lambda heads: abs(layers(heads) - heads))
    return AutoregressiveConfig(width=64 * heads, layers=layers(heads), heads=heads, **options)


def train_autoregressive(
    config: AutoregressiveConfig,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    out: Path,
    *,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = say,
) -> Iterator[tuple[int, float | None, GPT2LMHeadModel]]:
    """Yields (step, nats a token, model) after every step; resumes from `out`. The loss of an ended run is None."""
    model = new_model(config, tokenizer).to(device)
    optimizer = _optimizer(model, config)
    settings = {**dataclasses.asdict(config), "texts": digest_of(texts)}
    step = resume_network(out, model, optimizer, settings, MAY_CHANGE, say).get("step", 0)
    if step >= config.steps:
        yield step, None, model.eval()
        return
    sequences = token_sequences(tokenizer, texts, window=config.window)
    lengths = np.array([len(sequence) for sequence in sequences])
    flat, offsets = np.concatenate(sequences), np.concatenate([[0], np.cumsum(lengths)])
    allow_tf32(device)
    saves, dtype = Timer(config.checkpoint_minutes), network_dtype(device)
    planned = endless_batches(
        lengths, tokens_per_batch=config.tokens_per_batch, seed=(config.seed, ORDER), skip=step
    )
    for _, indices in planned:
        if step >= config.steps:
            return
        rate = learning_rate(config, step, steps=config.steps)
        ids, mask = gathered(flat, offsets, indices, padding=tokenizer.pad_token_id)
        ids, mask = ids.to(device), mask.to(device)
        kernel = attention_kernel(ids.shape[1], device)
        with autocast(device, dtype), kernel, seeded((config.seed, DROPOUT, step), device):
            hidden = model.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            real = mask[:, 1:]
            logits = model.lm_head(hidden[:, :-1][real])
        loss = F.cross_entropy(logits.float(), ids[:, 1:][real])
        optimise(optimizer, loss, rate=rate, clip=1.0, step=step)
        step += 1
        if step == config.steps or saves.due():
            save_network(out, model, optimizer, {"step": step, "config": settings})
        yield step, float(loss.detach()), model


def new_model(config: AutoregressiveConfig, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """An untrained GPT-2 of this size; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=config.window,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=0.0,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def _optimizer(model: GPT2LMHeadModel, config: AutoregressiveConfig) -> MuonAdamW:
    """As the decoder's own repair has it, so that the yardstick learns as fast from a text."""
    matrices, others = [], []
    for name, weights in model.named_parameters():
        inner = weights.ndim == 2 and name.startswith("transformer.h.")
        (matrices if inner else others).append(weights)
    return MuonAdamW(matrices, others, lr=config.learning_rate, weight_decay=config.weight_decay)


@torch.inference_mode()
def write_autoregressive(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    min_p: float = 0.0,
    seed: int,
) -> list[str]:
    """`count` texts by ancestral sampling at temperature 1: what the model has learned, unsharpened.

    min_p: tokens less likely than this share of the likeliest are left out, as a decoder's may be.
    """
    texts: list[str] = []
    prompt = torch.full((TEXTS_PER_BATCH, 1), tokenizer.bos_token_id, device=model.device)
    # Batches are always full, so that `count` changes no text.
    for batch in range(-(-count // TEXTS_PER_BATCH)):
        with seeded((seed, batch), model.device):
            written = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=GenerationConfig(
                    do_sample=True,
                    top_k=0,
                    min_p=min_p or None,
                    max_length=model.config.n_positions,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                ),
            )
            texts += decode_ids(tokenizer, written.tolist())
    return texts[:count]
