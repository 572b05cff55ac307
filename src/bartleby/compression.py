"""Training a compressor on a frozen BART: the decoder must write the text from what is expanded again.

The loss is the decoder's cross-entropy, as in Lovelace et al. 2022, plus the squared error of BART's own
latents, which says from the first step where each token belongs. Noise on the vectors keeps near vectors
near in meaning: a better reconstruction from a jagged space makes worse texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bartleby.autoencoder import Autoencoder, fit_latent_statistics
from bartleby.batching import endless_batches, pad
from bartleby.checkpoints import digest_of
from bartleby.compressor import Compressor
from bartleby.corpus import spread
from bartleby.errors import UserError
from bartleby.latents import STATISTICS_TEXTS, all_real
from bartleby.messages import say
from bartleby.precision import autocast
from bartleby.processes import Processes
from bartleby.randomness import extended, normals, stream_seeds, uniforms
from bartleby.reading import IGNORED, reading_loss
from bartleby.tokenization import token_sequences
from bartleby.training_loop import LoopConfig, LoopState, StepLoss, training_loop

ORDER, NOISE, DEVIATION = range(3)  # what randomness is for


@dataclass(frozen=True)
class CompressionConfig(LoopConfig):
    """window: tokens a text may have.  vectors, vector_channels: K and D.  width, layers, heads: of each Perceiver.

    noise: on a text's vectors, its deviation drawn evenly from 0 to this.  latent_weight: of the squared
    error of BART's latents, in units of their variance.
    """

    window: int = 32
    vectors: int = 16
    vector_channels: int = 64
    width: int = 256
    layers: int = 3
    heads: int = 4
    decay_share: float = 0.5
    noise: float = 0.5
    latent_weight: float = 1.0

    def __post_init__(self):
        counts = ("vectors", "vector_channels", "layers", "heads", "steps", "tokens_per_batch")
        for name in counts:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise UserError(f"width is {self.width}; it must be a multiple of heads, {self.heads}")
        if not 0 <= self.noise <= 10:
            raise UserError(f"noise is {self.noise}; it must be between 0 and 10")
        if self.tokens_per_batch < self.window:
            raise UserError(
                f"tokens_per_batch is {self.tokens_per_batch}; a batch must hold a window of {self.window}"
            )


def new_compressor(
    config: CompressionConfig, autoencoder: Autoencoder, texts: list[str]
) -> Compressor:
    """An untrained compressor for this BART; it knows the statistics of `texts`' latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        compressor = Compressor(
            autoencoder.bart.config.d_model,
            config.vectors,
            config.vector_channels,
            config.window,
            config.width,
            config.layers,
            config.heads,
        )
    compressor.to(autoencoder.device)
    sample = spread(texts, STATISTICS_TEXTS)
    narrow = dataclasses.replace(autoencoder, window=config.window)
    statistics = fit_latent_statistics(narrow, narrow.split(sample), source="train split")
    compressor.mean.copy_(statistics.mean)
    compressor.std.copy_(statistics.std)
    return compressor


def train_compressor(
    config: CompressionConfig,
    autoencoder: Autoencoder,
    texts: list[str],
    out: Path,
    *,
    processes: Processes = Processes(),
    say: Callable[[str], None] = say,
) -> Iterator[LoopState]:
    """Trains a compressor of `autoencoder`'s latents; states as of `training_loop`, `network` the compressor.

    Resumes from `out` if it holds a checkpoint. A step's losses are the decoder's "nats" a token and the mean squared
    "latent_error", in units of BART's variance. The autoencoder's BART learns nothing, and is left so (`requires_grad`
    is False).
    """
    bart = autoencoder.bart.eval().requires_grad_(False)
    raw = dataclasses.replace(autoencoder, statistics=None)
    compressor = new_compressor(config, autoencoder, texts)
    optimizer = torch.optim.AdamW(
        compressor.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), fused=True
    )

    def losses(step: int) -> Iterator[StepLoss]:
        sequences = token_sequences(autoencoder.tokenizer, texts, window=config.window)
        planned = endless_batches(
            np.array([len(sequence) for sequence in sequences]),
            tokens_per_batch=config.tokens_per_batch,
            seed=(config.seed, ORDER),
            skip=step,
        )
        for index, (_, rows) in enumerate(planned, start=step):
            chosen = [sequences[row].tolist() for row in processes.share(rows)]
            seed = processes.seed(config.seed, index)
            nats, error = _losses(config, raw, compressor, chosen, seed)
            total = nats + config.latent_weight * error
            yield StepLoss(total, sum(map(len, chosen)), {"nats": nats, "latent_error": error})

    yield from training_loop(
        config,
        compressor,
        optimizer,
        losses,
        out,
        origins={"BART": digest_of(bart), "text": digest_of(texts)},
        processes=processes,
        say=say,
    )


def _losses(
    config: CompressionConfig,
    raw: Autoencoder,
    compressor: Compressor,
    sequences: list[list[int]],
    seed: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(nats a token, mean squared error of latents over their variance) of one batch."""
    latents = raw.encode_tokens(sequences)
    values, mask = latents.values.clone(), latents.mask.clone()  # out of inference mode
    with autocast(raw.device, raw.dtype):
        vectors = compressor.compress(values, mask)
        seeds = stream_seeds(seed, np.arange(len(vectors)))
        drawn = normals(extended(seeds, NOISE), vectors[0].numel(), device=vectors.device)
        deviation = config.noise * uniforms(extended(seeds, DEVIATION), 1, device=vectors.device)
        expanded = compressor.expand(vectors + (deviation * drawn).view_as(vectors))
        nats = reading_loss(raw.bart, all_real(expanded), pad(sequences, IGNORED)[0])
    length = mask.shape[1]
    error = (expanded[:, :, :length] - values) / compressor.std[:, None]
    return nats, error.square().mean(dim=1)[mask].mean()
