"""Does it denoise like a BART? The share of infilled tokens that the decoder restores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bartleby.autoencoder import Autoencoder
from bartleby.batching import cut_by_tokens, pad
from bartleby.corruption import infill
from bartleby.precision import autocast

SHARE, MEAN_SPAN = 0.3, 3.0  # of a text's tokens; tokens, Poisson: as in pretraining
SEED = 0


@dataclass(frozen=True)
class InfillingResult:
    """Shares, 0 to 1.  unigram: what always guessing the most frequent token of the texts would restore."""

    masked_tokens: int
    restored: float
    unigram: float


@torch.inference_mode()
def measure_infilling(autoencoder: Autoencoder, texts: list[str]) -> InfillingResult:
    """Infills `SHARE` of each text's tokens and scores the decoder's first choice at each masked token.

    Teacher forced: the decoder sees the true tokens to the left, since a free-running text of another
    length could not be compared token by token.
    """
    rng = np.random.default_rng(SEED)
    bart, tokenizer = autoencoder.bart, autoencoder.tokenizer
    bos, eos, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    targets = [np.array(ids) for ids in autoencoder.tokenize(texts)]
    infilled = [
        infill(
            ids[1:-1], mask_id=tokenizer.mask_token_id, share=SHARE, mean_span=MEAN_SPAN, rng=rng
        )
        for ids in targets
    ]
    lengths = np.array([len(ids) for ids in targets])
    right = total = 0
    hidden_tokens: list[np.ndarray] = []
    for indices in cut_by_tokens(np.argsort(lengths, kind="stable"), lengths, 4096):
        room = autoencoder.window - 2
        sources, source_mask = pad(
            [[bos, *infilled[index][0][:room], eos] for index in indices], padding
        )
        decoder_ids, _ = pad([[eos, *targets[index][:-1]] for index in indices], padding)
        labels, _ = pad([targets[index] for index in indices], padding)
        masked, _ = pad([[0, *infilled[index][1], 0] for index in indices], 0)
        with autocast(autoencoder.device, autoencoder.dtype):
            logits = bart(
                input_ids=sources.to(autoencoder.device),
                attention_mask=source_mask.to(autoencoder.device),
                decoder_input_ids=decoder_ids.to(autoencoder.device),
                use_cache=False,
            ).logits
        here = masked.bool()
        right += int((logits.argmax(dim=-1).cpu()[here] == labels[here]).sum())
        total += int(here.sum())
        hidden_tokens.append(labels[here].numpy())
    everything = np.concatenate([ids[1:-1] for ids in targets])
    most_frequent = np.bincount(everything).argmax()
    return InfillingResult(
        total, right / max(total, 1), float(np.mean(np.concatenate(hidden_tokens) == most_frequent))
    )
