"""Teaching a BART's decoder to write fluent text from what a denoiser makes of noise.

The encoder, and with it the latents, the statistics and every denoiser trained on them, stays as it is.
Two kinds of steps alternate at random: the decoder reads the denoiser's estimate of x0 at some noise and
writes the text that was noised; or it reads latents as in pretraining, so that it does not forget how.
Shabalin et al. 2024 (TEncDM) train theirs on noised latents; here the noise has been through the denoiser,
as it will have been when text is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from transformers import BartForConditionalGeneration

from bartleby.bart_objective import Corruption, DenoisingBatches, bart_loss
from bartleby.batching import endless_batches
from bartleby.checkpoints import digest_of
from bartleby.conditioning import given_positions
from bartleby.errors import UserError
from bartleby.given import FREE
from bartleby.latents import Latents
from bartleby.messages import say
from bartleby.objective import (
    predicted_x0,
    sample_noise,
    stratified_timesteps,
)
from bartleby.optimisation import MuonAdamW
from bartleby.precision import autocast
from bartleby.processes import Processes
from bartleby.randomness import seeded, stream_seeds
from bartleby.reading import IGNORED, reading_loss
from bartleby.run_setup import Setup
from bartleby.tokenization import token_sequences
from bartleby.training_batch import batch_candidates
from bartleby.training_loop import LoopConfig, LoopState, StepLoss, training_loop
from bartleby.writing_decoder import READOUT, decoder_weights, deepen, untie_readout

# What randomness is for.
KIND, READ, COPY, CORRUPTION, TIMES, NOISE, COINS, GIVEN, CANDIDATES, DROPOUT = range(10)


@dataclass(frozen=True)
class RepairConfig(LoopConfig):
    """quietest, noisiest: shares of all timesteps between which lie those whose estimates are read.

    conditioned: share of the passages of which a part is given, if the denoiser was trained so.  copies: share of
    the steps that read latents as in pretraining.  layers: the decoder's from then on, 0 for as many as it has.
    own_readout: whether it stops sharing the one that is the encoder's token embeddings.  dropout: share of what a
    decoder's layer adds that is left out at random.
    """

    steps: int = 1200
    layers: int = 0
    own_readout: bool = False
    warmup_steps: int = 50
    decay_share: float = 0.5
    weight_decay: float = 0.1
    dropout: float = 0.1
    quietest: float = 0.3
    noisiest: float = 0.8
    conditioned: float = 0.5
    copies: float = 0.15

    def __post_init__(self):
        if self.steps < 1 or self.tokens_per_batch < 1:
            raise UserError("steps and tokens_per_batch must be at least 1")
        for name in ("quietest", "noisiest", "conditioned", "copies", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.quietest >= self.noisiest:
            raise UserError(
                f"quietest is {self.quietest}; it must be below noisiest, {self.noisiest}"
            )


def repair(
    config: RepairConfig,
    setup: Setup,
    denoiser: ModelMixin,
    copies: list[str],
    out: Path,
    *,
    processes: Processes = Processes(),
    say: Callable[[str], None] = say,
) -> Iterator[LoopState]:
    """Trains the decoder of `setup.autoencoder.bart` in place; states as of `training_loop`, `network` the BART.

    Resumes from `out` if it holds a checkpoint, whatever the decoder is by then. setup, denoiser: of a training run.
    copies: texts for the steps that read latents as in pretraining. A step's losses are nats a token and what it
    "reads": a read, or a copy.
    """
    bart = setup.autoencoder.bart
    if config.layers:
        deepen(bart, config.layers)
    if config.own_readout:
        untie_readout(bart)
    weights = _only_decoder(bart)
    matrices = [w for name, w in weights.items() if w.ndim == 2 and name != READOUT]
    others = [w for name, w in weights.items() if w.ndim != 2 or name == READOUT]
    optimizer = MuonAdamW(
        matrices, others, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    yield from training_loop(
        config,
        bart,
        optimizer,
        lambda step: _losses(config, setup, denoiser, copies, processes, step),
        out,
        origins={
            "BART": digest_of(bart.model.encoder),
            "denoiser": digest_of(denoiser),
            "text": digest_of(copies),
        },
        processes=processes,
        say=say,
    )


def _losses(
    config: RepairConfig,
    setup: Setup,
    denoiser: ModelMixin,
    copies: list[str],
    processes: Processes,
    step: int,
) -> Iterator[StepLoss]:
    """The losses of the steps from `step` on: of estimates read, or of latents copied as in pretraining."""
    bart, tokenizer = setup.autoencoder.bart, setup.autoencoder.tokenizer
    window = min(bart.config.max_position_embeddings, tokenizer.model_max_length)
    sequences = token_sequences(tokenizer, copies, window=window)
    corrupted = DenoisingBatches(tokenizer, Corruption(), window=window)
    lengths = np.array([len(sequence) for sequence in sequences])
    kinds = ["copy" if _is_copy(config, index) else "read" for index in range(config.steps)]
    batches = {
        kind: endless_batches(
            of, tokens_per_batch=config.tokens_per_batch, seed=(config.seed, stream), skip=seen
        )
        for kind, of, stream, seen in (
            ("read", setup.training.lengths, READ, kinds[:step].count("read")),
            ("copy", lengths, COPY, kinds[:step].count("copy")),
        )
    }
    for index in range(step, config.steps):
        rows = processes.share(next(batches[kinds[index]])[1])
        seed = processes.seed(config.seed, DROPOUT, index)
        dropout = _dropout(bart, config.dropout, seed=seed)
        with autocast(bart.device, setup.autoencoder.dtype), dropout:
            if kinds[index] == "copy":
                chosen = [sequences[row] for row in rows]
                seed = processes.seed(config.seed, CORRUPTION, index)
                batch = corrupted.make(chosen, seed=seed)
                tokens, loss = batch.tokens, bart_loss(bart, batch.to(bart.device))
            else:
                estimates = estimated_latents(config, setup, denoiser, processes, rows, index)
                labels = setup.training.token_batch(rows, padding=IGNORED)
                tokens = int(setup.training.lengths[rows].sum())
                loss = reading_loss(bart, setup.autoencoder.readable(estimates), labels)
        yield StepLoss(loss, tokens, {"loss": loss, "reads": kinds[index]})


@torch.no_grad()
def estimated_latents(
    config: RepairConfig,
    setup: Setup,
    denoiser: ModelMixin,
    processes: Processes,
    indices: np.ndarray,
    step: int,
) -> Latents:
    """The denoiser's estimates of x0, normalised, for one process's passages.

    Their timesteps are drawn between the shares of `config`. Half of them are made with an earlier estimate to look
    at, where the denoiser takes one, and where it takes conditions a part is given of `config.conditioned`. Tokens
    are scored as in the denoiser's own training: all, or candidates for them.
    """
    device, seed = denoiser.device, config.seed
    clean = setup.training.batch(indices, length_multiple=denoiser.length_multiple, device=device)
    most = setup.scheduler.config.num_train_timesteps
    first, last = round(config.quietest * most), round(config.noisiest * most)
    drawn = processes.seed(seed, TIMES, step)
    timesteps = stratified_timesteps(len(indices), max(1, last - first), seed=drawn)
    timesteps = (timesteps + first).clamp_max(most - 1).to(device)
    seeds = stream_seeds((seed, NOISE, step), indices)
    noise, mask = sample_noise(clean.mask, clean.values.shape[1], seeds=seeds), clean.mask
    xt = setup.scheduler.add_noise(clean.values, noise, timesteps)
    known = _known(config, setup, indices, step, mask)
    candidates = batch_candidates(
        setup.config, setup.training, indices, seed=(seed, CANDIDATES, step), device=device
    )

    def estimate(rows: slice | torch.Tensor, **conditions) -> torch.Tensor:
        if known is not None:
            conditions["known"] = known[rows]
        if candidates:
            conditions["candidates"] = candidates
        guess = denoiser(xt[rows], timesteps[rows], mask[rows], **conditions).sample.float()
        return predicted_x0(setup.scheduler, guess, xt[rows], timesteps[rows])

    x0 = estimate(slice(None))
    if getattr(denoiser.config, "self_conditioning", False):
        coins = np.random.default_rng(processes.seed(seed, COINS, step)).random(len(indices)) < 0.5
        rows = torch.from_numpy(coins.nonzero()[0]).to(device)
        if len(rows):
            x0[rows] = estimate(rows, previous=x0[rows])
    return Latents(x0, mask)


def _known(
    config: RepairConfig, setup: Setup, indices: np.ndarray, step: int, mask: torch.Tensor
) -> torch.Tensor | None:
    """[B, L] ids of what is given of each passage, FREE elsewhere; None for a denoiser that takes none."""
    if not setup.config.objective.conditioned:
        return None
    seeds = stream_seeds((config.seed, GIVEN, step), indices)
    given = given_positions(setup.training.lengths[indices], config.conditioned, seeds=seeds)
    tokens = setup.training.token_batch(indices, padding=FREE)
    known = torch.where(torch.from_numpy(given), tokens, FREE)
    return F.pad(known, (0, mask.shape[1] - known.shape[1]), value=FREE).to(mask.device)


def _only_decoder(bart: BartForConditionalGeneration) -> dict[str, torch.nn.Parameter]:
    """Lets only what is the decoder's own learn; by name."""
    bart.eval().requires_grad_(False)
    weights = decoder_weights(bart)
    for weight in weights.values():
        weight.requires_grad_(True)
    return weights


@contextmanager
def _dropout(
    bart: BartForConditionalGeneration, share: float, *, seed: tuple[int, ...]
) -> Iterator[None]:
    """Within, the decoder's layers drop this share of what each of their parts adds, the same one for the same seed.

    The network's own settings would draw from a generator that no checkpoint holds.
    """
    with seeded(seed, bart.device):
        for layer in bart.model.decoder.layers:
            layer.dropout, layer.activation_dropout, layer.training = share, 0.0, share > 0
        try:
            yield
        finally:
            for layer in bart.model.decoder.layers:
                layer.training = False


def _is_copy(config: RepairConfig, index: int) -> bool:
    return np.random.default_rng((config.seed, KIND, index)).random() < config.copies
