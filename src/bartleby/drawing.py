"""Drawing a decoder's tokens instead of taking the likeliest, a text's draws depending on its seed alone."""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
)

from bartleby.objective import sample_generator


def draws(temperature: float, min_p: float, seeds: list[tuple[int, ...]]) -> LogitsProcessorList:
    """What makes greedy search draw, for `generate`; nothing where temperature is 0.

    min_p: tokens less likely than this share of the likeliest are left out (Nguyen et al. 2024).
    """
    if not temperature:
        return LogitsProcessorList()
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if min_p:
        processors.append(MinPLogitsWarper(float(min_p)))
    processors.append(GumbelDraws(seeds))
    return processors


class GumbelDraws(LogitsProcessor):
    """Makes greedy search draw from softmax(logits): the argmax of logits plus Gumbel noise is a draw.

    seeds: one for each text of the batch. The noise of a text's n-th token is the n-th of its own generator, so that
    neither the batch nor what the others write changes it.
    """

    def __init__(self, seeds: list[tuple[int, ...]]):
        self.generators = [sample_generator(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [B, V] logits of the next token."""
        drawn = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=own) for own in self.generators]
        )
        return scores - drawn.log().to(scores.device)
