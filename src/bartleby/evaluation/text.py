"""How well one text repeats another: exact match, token accuracy, BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reconstruction:
    """One text and what came back. token_accuracy: 0 to 1."""

    text: str
    reconstruction: str
    token_accuracy: float

    @property
    def exact(self) -> bool:
        """True if every character came back."""
        return self.text == self.reconstruction

    @property
    def words(self) -> int:
        """White-space separated words of the original."""
        return len(self.text.split())


def token_accuracy(reference: Sequence[int], written: Sequence[int]) -> float:
    """Share of positions with the right token, 0 to 1, counted over the longer of the two.

    Strict: after an inserted or lost token everything that follows is wrong. Two empty sequences agree.
    """
    longest = max(len(reference), len(written))
    if longest == 0:
        return 1.0
    return sum(a == b for a, b in zip(reference, written, strict=False)) / longest


def bleu(references: list[str], written: list[str]) -> float:
    """Corpus BLEU of sacrebleu with its defaults, 0 to 100."""
    import sacrebleu

    return sacrebleu.corpus_bleu(written, [references]).score


def sentence_bleu(reference: str, written: str) -> float:
    """sacrebleu's sentence BLEU, 0 to 100."""
    import sacrebleu

    return sacrebleu.sentence_bleu(written, [reference]).score
