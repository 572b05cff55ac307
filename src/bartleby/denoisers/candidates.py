"""Part of a vocabulary that stands for all of it, so that a training step need not score every token.

The tokens of the batch are always there; of the others a random few, each with the weight of those that
were left out. The sum over the candidates is then an unbiased estimate of the sum over the vocabulary
(importance sampling as in Jean et al. 2015, "On Using Very Large Target Vocabulary").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Candidates:
    """ids: [K], ascending.  log_weight: [K], float32, to be added to a candidate's logit."""

    ids: torch.Tensor
    log_weight: torch.Tensor

    def places(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where these tokens, all of them candidates, stand among the K."""
        return torch.searchsorted(self.ids, tokens)

    def to(self, device: torch.device) -> Candidates:
        return Candidates(self.ids.to(device), self.log_weight.to(device))


def draw_candidates(
    tokens: np.ndarray, vocabulary: int, *, others: int, seed: tuple[int, ...]
) -> Candidates:
    """Every one of `tokens`, and `others` more of the vocabulary's ids, drawn evenly; all if they are fewer."""
    present = np.zeros(vocabulary, bool)
    present[tokens] = True
    absent = np.flatnonzero(~present)
    drawn = np.random.default_rng(seed).permutation(absent)[:others]
    log_weights = np.zeros(vocabulary, np.float32)
    log_weights[drawn] = math.log(len(absent) / max(1, len(drawn)))
    present[drawn] = True
    ids = np.flatnonzero(present)
    return Candidates(torch.from_numpy(ids), torch.from_numpy(log_weights[ids]))
