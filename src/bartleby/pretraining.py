"""Pretraining: a BART from scratch, with BART's denoising objective and noise on its latents.

`pretrain(config, texts, run)` is a generator of `LoopState`, one per optimiser step. All randomness is
a function of (seed, step) and, where several processes share a step, the process, so a run that was
killed and resumed goes through the same numbers as one that was not.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BartForConditionalGeneration, PreTrainedTokenizerBase

from bartleby.bart import ARCHITECTURES, new_bart
from bartleby.bart_objective import Corruption, DenoisingBatch, DenoisingBatches, bart_loss
from bartleby.batching import endless_batches
from bartleby.checkpoints import checkpoint_folders, digest_of
from bartleby.errors import UserError
from bartleby.messages import say
from bartleby.precision import attention_kernel, autocast, network_dtype
from bartleby.processes import Processes
from bartleby.tokenization import token_sequences, train_tokenizer
from bartleby.training_loop import LoopConfig, LoopState, StepLoss, training_loop

ORDER, BATCH = range(2)  # what randomness is for


@dataclass(frozen=True)
class PretrainConfig(LoopConfig):
    """Everything that decides the weights; `PRESETS` has some. Raises UserError for what cannot be."""

    architecture: str = "nano"
    vocabulary: int = 8192
    window: int = 128  # tokens, <s> and </s> included
    weight_decay: float = 0.01
    store: str = "bfloat16"  # format of the finished model's weights; checkpoints keep float32
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
        if not 0 <= self.decay_share <= 1:
            raise UserError(f"decay_share is {self.decay_share}; it must be between 0 and 1")


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


def pretrain(
    config: PretrainConfig,
    texts: list[str],
    run: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: torch.device | str = "cpu",
    processes: Processes = Processes(),
    say: Callable[[str], None] = say,
) -> Iterator[LoopState]:
    """Trains a BART on `texts` while its states are taken: those of `training_loop`, `network` the BART.

    Its checkpoints lie in `run`, from which it resumes; each is a Hugging Face folder.  tokenizer: what
    `run_tokenizer` returns, if that was called before. Raises UserError if `run` holds another configuration's
    checkpoints or the loss stops being a number.
    """
    tokenizer = tokenizer or run_tokenizer(config, texts, run)
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

    def losses(step: int) -> Iterator[StepLoss]:
        sequences = token_sequences(tokenizer, texts, window=config.window)
        batches = DenoisingBatches(tokenizer, config.corruption, window=config.window)
        planned = endless_batches(
            np.array([len(sequence) for sequence in sequences]),
            tokens_per_batch=config.tokens_per_batch,
            seed=(config.seed, ORDER),
            skip=step,
        )
        bart.train()
        for index, (_, rows) in enumerate(planned, start=step):
            own = [sequences[row] for row in processes.share(rows)]
            batch = batches.make(own, seed=processes.seed(config.seed, BATCH, index))
            loss = pretraining_loss(bart, batch.to(device), network_dtype(device))
            yield StepLoss(loss, batch.tokens, {"loss": loss})

    yield from training_loop(
        config,
        bart,
        optimizer,
        losses,
        run,
        origins={"text": digest_of(texts)},
        beside=[tokenizer],
        processes=processes,
        say=say,
    )


def pretraining_loss(
    bart: BartForConditionalGeneration, batch: DenoisingBatch, dtype: torch.dtype
) -> torch.Tensor:
    """Nats a token of a batch, the network computing in `dtype`."""
    device, length = batch.labels.device, batch.labels.shape[1]
    with autocast(device, dtype), attention_kernel(length, device):
        return bart_loss(bart, batch)


def run_tokenizer(config: PretrainConfig, texts: list[str], run: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a run has, or will have: a byte-level BPE trained on its texts."""
    return _saved_tokenizer(run) or train_tokenizer(
        texts, vocab_size=config.vocabulary, window=config.window
    )


def _saved_tokenizer(run: Path) -> PreTrainedTokenizerBase | None:
    """The run's own, from the newest checkpoint that has it unharmed: it is the same in all."""
    for folder in checkpoint_folders(run):
        # transformers reads on without a file that is missing, and fails in many ways on a damaged one.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            return AutoTokenizer.from_pretrained(folder)
    return None
