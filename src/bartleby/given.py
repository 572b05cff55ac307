"""What is given of a text, and a decoder that keeps it: at its places, or where the text's own course leads to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import LogitsProcessor

FREE = -1  # in place of a token that is to be written


@dataclass(frozen=True)
class GivenText:
    """One text of which tokens are given.

    known: [L] ids, FREE where the decoder chooses.  end: the id of </s>.  elastic: a gap before a given
    token ends as soon as that token is written, or later than its places by up to `room` tokens in all;
    otherwise it fills its places, no more, no fewer. A gap always gets at least one token.
    """

    known: list[int]
    end: int
    elastic: bool = False
    room: int = 0

    def next(self, written: list[int]) -> tuple[int | None, set[int]]:
        """After these tokens, <s> the first: the one that must come next, or None; and those that must not."""
        place, begun = self._place_after(written)
        if place >= len(self.known):
            return None, set()
        if self.known[place] != FREE:
            return self.known[place], set()
        ahead = self._ahead[place]
        if ahead is None:
            return None, set()
        given = self.known[ahead]
        if not self.elastic:
            return None, {self.end}
        return None, {self.end} - {given} if begun else {self.end, given}

    def _place_after(self, written: list[int]) -> tuple[int, bool]:
        """The place to be written next; whether something has been written in the gap that it is in."""
        place, begun, room = 0, False, self.room
        for token in written:
            ahead = self._ahead[place] if place < len(self.known) else None
            if ahead is None or ahead == place:
                place, begun = place + 1, False
            elif self.elastic and begun and token == self.known[ahead]:
                place, begun = ahead + 1, False
            elif self.elastic and room and place + 1 == ahead:
                room, begun = room - 1, True  # the gap's last place once more
            else:
                place, begun = place + 1, True
        return place, begun

    @cached_property
    def _ahead(self) -> list[int | None]:
        """For each place the next one, itself included, whose token is given; None if there is none."""
        ahead: list[int | None] = [None]
        for place in reversed(range(len(self.known))):
            ahead.append(ahead[-1] if self.known[place] == FREE else place)
        return ahead[:0:-1]


class KeepGiven(LogitsProcessor):
    """For `generate`: rules out everything but what the texts of a batch allow next, each of them `beams` rows."""

    def __init__(self, texts: list[GivenText], *, beams: int = 1):
        self.texts, self.beams = texts, beams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids: [B x beams, n], the decoder's start token first.  scores: [B x beams, V]."""
        kept = scores.clone()
        for row, written in enumerate(input_ids[:, 1:].tolist()):
            forced, forbidden = self.texts[row // self.beams].next(written)
            if forced is not None:
                kept[row] = -torch.inf
                # Another rule, such as a ban on repeated n-grams, may have ruled it out: what is given stays.
                kept[row, forced] = scores[row, forced].nan_to_num(neginf=0.0)
            elif forbidden:
                kept[row, list(forbidden)] = -torch.inf
        return kept
