"""Drawing a decoder's tokens instead of taking the likeliest, a text's draws depending on its seed alone."""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
)

from bartleby.randomness import Seeds, uniforms


def draws(temperature: float, min_p: float, seeds: Seeds) -> LogitsProcessorList:
    """What makes greedy search draw, for `generate`; nothing where temperature is 0.

    min_p: tokens less likely than this share of the likeliest are left out (Nguyen et al. 2024).
    """
    if not temperature:
        return LogitsProcessorList()
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if min_p:
        processors.append(MinPLogitsWarper(float(min_p)))
    processors.append(Draws(seeds))
    return processors


class Draws(LogitsProcessor):
    """Makes greedy search draw from softmax(logits), by the inverse of the distribution function.

    seeds: one for each text of the batch. A text's n-th token is chosen by the n-th number of its own stream, so that
    neither the batch nor what the others write changes it.
    """

    def __init__(self, seeds: Seeds):
        self.seeds, self.written = seeds, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [B, V] logits of the next token."""
        drawn = uniforms(self.seeds, 1, first=self.written, device=scores.device)
        self.written += 1
        # float64: a GPU sums in parallel, and in float32 its sum may fall where it should stand still.
        below = scores.double().softmax(dim=1).cumsum(dim=1)
        # Strictly above, so that a token of no probability is never drawn.
        token = torch.searchsorted(below, drawn * below[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
