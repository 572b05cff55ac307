"""The yardstick: an autoregressive transformer of the same size, on the same data, trained as long.

GPT-2's architecture from transformers, with the BART's tokenizer, so that what differs is how text is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from bartleby.batching import endless_batches, gathered
from bartleby.checkpoints import digest_of
from bartleby.messages import say
from bartleby.optimisation import MuonAdamW
from bartleby.precision import attention_kernel, autocast, network_dtype
from bartleby.processes import Processes
from bartleby.randomness import seeded
from bartleby.tokenization import decode_ids, token_sequences
from bartleby.training_loop import LoopConfig, LoopState, StepLoss, training_loop

TEXTS_PER_BATCH = 64
ORDER, DROPOUT = range(2)  # what randomness is for


@dataclass(frozen=True)
class AutoregressiveConfig(LoopConfig):
    """width, layers, heads: of the transformer.  dropout: share of what a layer adds that is left out at random.

    weight_decay: of the matrices between layers.
    """

    width: int = 320
    layers: int = 6
    heads: int = 5
    window: int = 32
    dropout: float = 0.0
    learning_rate: float = 2e-3
    weight_decay: float = 0.1


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
    processes: Processes = Processes(),
    say: Callable[[str], None] = say,
) -> Iterator[LoopState]:
    """States as of `training_loop`, `network` a GPT2LMHeadModel; resumes from `out` if it holds a checkpoint."""
    model = new_model(config, tokenizer).to(device)

    def losses(step: int) -> Iterator[StepLoss]:
        sequences = token_sequences(tokenizer, texts, window=config.window)
        lengths = np.array([len(sequence) for sequence in sequences])
        flat, offsets = np.concatenate(sequences), np.concatenate([[0], np.cumsum(lengths)])
        planned = endless_batches(
            lengths, tokens_per_batch=config.tokens_per_batch, seed=(config.seed, ORDER), skip=step
        )
        model.train()
        for index, (_, rows) in enumerate(planned, start=step):
            own = processes.share(rows)
            ids, mask = gathered(flat, offsets, own, padding=tokenizer.pad_token_id)
            with seeded(processes.seed(config.seed, DROPOUT, index), device):
                loss = _loss(model, ids.to(device), mask.to(device))
            yield StepLoss(loss, int(mask[:, 1:].sum()), {"loss": loss})

    yield from training_loop(
        config,
        model,
        _optimizer(model, config),
        losses,
        out,
        origins={"text": digest_of(texts)},
        processes=processes,
        say=say,
    )


def _loss(model: GPT2LMHeadModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Nats a token of texts [B, L] given what stands before each; mask: [B, L], True at real tokens."""
    kernel = attention_kernel(ids.shape[1], ids.device)
    with autocast(ids.device, network_dtype(ids.device)), kernel:
        hidden = model.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        real = mask[:, 1:]
        logits = model.lm_head(hidden[:, :-1][real])
    return F.cross_entropy(logits.float(), ids[:, 1:][real])


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
                activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one kernel instead of eight
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
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
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
