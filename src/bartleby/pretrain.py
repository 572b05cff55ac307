"""Pretraining: a BART from scratch, with BART's denoising objective and noise on its latents.

`pretrain(config, texts, run)` is a generator of `Progress`, one per optimiser step. All randomness is
a function of (seed, step), so a run that was killed and resumed goes through the same numbers as one
that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BartForConditionalGeneration, PreTrainedTokenizerBase

from bartleby.bart import ARCHITECTURES, new_bart
from bartleby.batching import endless_batches
from bartleby.checkpoints import digest_of, resume_network, save_network
from bartleby.denoising import Corruption, DenoisingBatch, DenoisingBatches, denoising_loss
from bartleby.errors import UserError
from bartleby.messages import say
from bartleby.optimisation import Timer, learning_rate, optimise
from bartleby.precision import allow_tf32, attention_kernel, autocast, network_dtype
from bartleby.tokenization import encode_texts, passages, train_tokenizer


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights. Presets are in `PRESETS`."""

    architecture: str = "nano"
    vocabulary: int = 8192
    window: int = 128  # tokens, <s> and </s> included
    steps: int = 2000
    tokens_per_batch: int = 2048  # padded decoder positions
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = (
        0.25  # of the steps, at the end, over which the learning rate falls to zero
    )
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    checkpoint_minutes: float = 4.0
    store: str = "bfloat16"  # format of the finished model's weights; checkpoints keep float32
    seed: int = 0
    corruption: Corruption = field(default_factory=Corruption)

    def __post_init__(self):
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"unknown architecture '{self.architecture}' (known: {', '.join(ARCHITECTURES)})"
            )
        if self.vocabulary < 300:
            raise UserError(
                f"vocabulary is {self.vocabulary}; a byte-level BPE needs at least 300 entries"
            )
        if self.window < 8 or self.steps < 1 or self.tokens_per_batch < self.window:
            raise UserError(
                f"window {self.window}, steps {self.steps}, tokens_per_batch {self.tokens_per_batch}: "
                "the window must be at least 8, steps at least 1, and a batch must hold a window"
            )


PRESETS = {
    "nano": PretrainConfig(),
    "wide": PretrainConfig(
        architecture="wide", steps=900, tokens_per_batch=1024, learning_rate=5e-4
    ),
    "tiny": PretrainConfig(
        architecture="tiny",
        vocabulary=400,
        window=32,
        steps=60,
        tokens_per_batch=512,
        warmup_steps=10,
    ),
}
# Settings that may differ when a run is resumed: how long it goes on, and how often it saves.
MAY_CHANGE = {"steps", "decay_share", "checkpoint_minutes", "store"}


@dataclass(frozen=True)
class Progress:
    """State after one optimiser step.

    loss: nats a token, None where the run had ended before.  tokens: real target tokens since it began.
    """

    step: int
    steps: int
    loss: float | None
    tokens: int
    learning_rate: float
    saved: Path | None
    bart: BartForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase


def pretrain(
    config: PretrainConfig,
    texts: list[str],
    run: Path,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = say,
) -> Iterator[Progress]:
    """Trains on `texts`, resuming from `run` if it holds a checkpoint of the same configuration.

    Yields after every step and saves every `checkpoint_minutes` and at the end; of a run that has
    ended, yields its last state once. Raises UserError if `run` belongs to another configuration or
    the loss stops being a number.
    """
    tokenizer = _tokenizer_of(run) or train_tokenizer(
        texts, vocab_size=config.vocabulary, window=config.window
    )
    bart = new_bart(
        tokenizer, architecture=config.architecture, window=config.window, seed=config.seed
    ).to(device)
    optimizer = torch.optim.AdamW(
        bart.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )
    settings = {**dataclasses.asdict(config), "texts": digest_of(texts)}
    state = resume_network(run, bart, optimizer, settings, MAY_CHANGE, say)
    step, tokens = state.get("step", 0), state.get("tokens", 0)
    if step >= config.steps:
        yield Progress(step, config.steps, None, tokens, 0.0, None, bart, tokenizer)
        return
    sequences = token_sequences(tokenizer, texts, window=config.window)
    lengths = np.array([len(sequence) for sequence in sequences])
    batches = DenoisingBatches(tokenizer, config.corruption, window=config.window)
    allow_tf32(device)
    dtype = network_dtype(device)
    saves = Timer(config.checkpoint_minutes)
    bart.train()
    planned = endless_batches(
        lengths, tokens_per_batch=config.tokens_per_batch, seed=(config.seed, 0), skip=step
    )
    for _, indices in planned:
        if step >= config.steps:
            return
        batch = batches.make([sequences[index] for index in indices], seed=(config.seed, 1, step))
        rate = learning_rate(config, step, steps=config.steps)
        loss = train_step(
            bart,
            optimizer,
            batch.to(device),
            rate=rate,
            clip=config.gradient_clip,
            step=step,
            dtype=dtype,
        )
        step, tokens = step + 1, tokens + batch.tokens
        saved = None
        if step == config.steps or saves.due():
            state = {"step": step, "tokens": tokens, "config": settings}
            saved = save_network(run, bart, optimizer, state, beside=[tokenizer])
        yield Progress(step, config.steps, loss, tokens, rate, saved, bart, tokenizer)


def train_step(
    bart: BartForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    batch: DenoisingBatch,
    *,
    rate: float,
    clip: float,
    step: int,
    dtype: torch.dtype,
) -> float:
    """One step of `optimise`; returns the loss in nats a token."""
    device, length = batch.labels.device, batch.labels.shape[1]
    with autocast(device, dtype), attention_kernel(length, device):
        loss = denoising_loss(bart, batch)
    optimise(optimizer, loss, rate=rate, clip=clip, step=step)
    return loss.item()


def token_sequences(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, window: int
) -> list[np.ndarray]:
    """Token ids of each passage of at most `window` tokens, as 16- or 32-bit integers."""
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    cut = list(passages(tokenizer, texts, window=window))
    return [np.array(ids, dtype=dtype) for ids in encode_texts(tokenizer, cut)]


def _tokenizer_of(run: Path) -> PreTrainedTokenizerBase | None:
    """The run's own, from the newest checkpoint that has it unharmed: it is the same in all."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        # transformers reads on without a file that is missing, and fails in many ways on a damaged one.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            return AutoTokenizer.from_pretrained(folder)
    return None
