"""BART's denoising objective on latents that carry noise: batches in, loss out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BartForConditionalGeneration, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from bartleby.batching import pad
from bartleby.corruption import infill, permute_sentences


@dataclass(frozen=True)
class Corruption:
    """How training examples are corrupted. Shares are probabilities per example unless said otherwise."""

    infill_share: float = 0.3  # of an example's tokens (Lewis et al. 2019)
    mean_span: float = 3.0  # tokens, Poisson (Lewis et al. 2019)
    infilled: float = 0.5  # examples that are infilled; the others teach exact copying
    permuted: float = (
        0.1  # examples whose sentences are permuted; more teaches the decoder to reorder clean text
    )
    random_tokens: float = (
        0.05  # examples of random tokens, so that every token of the vocabulary can be copied
    )
    decoder_mask: float = (
        0.15  # of the decoder's input tokens, masked so that it has to read the latents
    )
    latent_noise: float = (
        0.7  # largest noise on the latents, in their standard deviations, uniform per example
    )


@dataclass(frozen=True)
class DenoisingBatch:
    """source_ids, source_mask: [B, Ls].  decoder_ids, labels, label_mask: [B, L].  noise_level: [B]."""

    source_ids: torch.Tensor
    source_mask: torch.Tensor
    decoder_ids: torch.Tensor
    labels: torch.Tensor
    label_mask: torch.Tensor
    noise_level: torch.Tensor
    noise_seed: int

    @property
    def tokens(self) -> int:
        """Real tokens to predict."""
        return int(self.label_mask.sum())

    def to(self, device: torch.device | str) -> DenoisingBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


def sentence_end_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """[V] of bool: tokens that end with . ! or ?"""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([piece.endswith((".", "!", "?")) for piece in pieces])


class DenoisingBatches:
    """Makes a `DenoisingBatch` from token ids: same ids, same seed, same batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, corruption: Corruption, *, window: int):
        self.corruption = corruption
        self.window = window
        self.vocabulary = len(tokenizer)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.padding, self.mask_id = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.is_sentence_end = sentence_end_table(tokenizer)
        special = set(tokenizer.all_special_ids)
        self.ordinary = np.array(
            [token for token in range(self.vocabulary) if token not in special]
        )

    def make(self, sequences: list[np.ndarray], *, seed: tuple[int, ...]) -> DenoisingBatch:
        """sequences: token ids with <s> and </s>, [n] each."""
        rng = np.random.default_rng(seed)
        corruption = self.corruption
        sources, targets, decoder_inputs = [], [], []
        for sequence in sequences:
            content = sequence[1:-1]
            if rng.random() < corruption.random_tokens:
                content = rng.choice(self.ordinary, size=len(content))
            targets.append(self._wrap(content))
            sources.append(self._wrap(self._corrupt(content, rng)))
            decoder_inputs.append(self._decoder_input(targets[-1], rng))
        source_ids, source_mask = pad(sources, self.padding)
        labels, label_mask = pad(targets, self.padding)
        decoder_ids, _ = pad(decoder_inputs, self.padding)
        noise_level = torch.from_numpy(
            rng.uniform(0, corruption.latent_noise, size=len(sequences))
        ).float()
        return DenoisingBatch(
            source_ids,
            source_mask,
            decoder_ids,
            labels,
            label_mask,
            noise_level,
            int(rng.integers(2**62)),
        )

    def _wrap(self, content: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.bos], content, [self.eos]])

    def _corrupt(self, content: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        corruption = self.corruption
        if rng.random() < corruption.permuted:
            content = permute_sentences(content, is_sentence_end=self.is_sentence_end, rng=rng)
        if rng.random() < corruption.infilled:
            content, _ = infill(
                content,
                mask_id=self.mask_id,
                share=corruption.infill_share,
                mean_span=corruption.mean_span,
                rng=rng,
            )
        return content[: self.window - 2]  # inserted masks can lengthen a full window

    def _decoder_input(self, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shifted = np.concatenate([[self.eos], target[:-1]])
        masked = rng.random(len(shifted)) < self.corruption.decoder_mask
        masked[0] = False
        return np.where(masked, self.mask_id, shifted)


def noised(
    latents: torch.Tensor, mask: torch.Tensor, *, level: torch.Tensor, seed: int
) -> torch.Tensor:
    """latents [B, L, C] plus Gaussian noise of `level` [B] standard deviations of each channel over real tokens."""
    real = latents.detach()[mask.bool()].float()  # [tokens, C]
    generator = torch.Generator(device=latents.device).manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    return latents + noise * real.std(dim=0) * level[:, None, None]


def bart_loss(bart: BartForConditionalGeneration, batch: DenoisingBatch) -> torch.Tensor:
    """Mean cross-entropy in nats over the real tokens of the batch.

    The vocabulary is scored at real positions only; padded ones would cost as much as real ones.
    """
    latents = bart.model.encoder(
        batch.source_ids, attention_mask=batch.source_mask
    ).last_hidden_state
    latents = noised(latents, batch.source_mask, level=batch.noise_level, seed=batch.noise_seed)
    hidden = bart.model(
        decoder_input_ids=batch.decoder_ids,
        encoder_outputs=BaseModelOutput(last_hidden_state=latents),
        attention_mask=batch.source_mask,
        use_cache=False,
    ).last_hidden_state
    real = batch.label_mask.bool()
    logits = bart.lm_head(hidden[real]) + bart.final_logits_bias  # [tokens, V]
    return F.cross_entropy(logits.float(), batch.labels[real])
