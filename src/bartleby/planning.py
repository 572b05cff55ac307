"""What is decided of a text before it is written: how long it is to be, and which of its tokens are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bartleby.autoencoder import SLACK, Autoencoder
from bartleby.conditioning import MEAN_GAP, given_prefix, given_words
from bartleby.drafts import LENGTH
from bartleby.errors import UserError
from bartleby.given import GivenText
from bartleby.messages import say
from bartleby.tokenization import encode_texts

MASK = "<mask>"  # in a text: words are missing here


@dataclass(frozen=True)
class Planner:
    """Plans texts for an autoencoder.  length_counts: how many training texts have 0, 1, 2, ... tokens.

    A length counts <s> and </s>. Whatever is drawn is a function of the seed that is passed.
    """

    autoencoder: Autoencoder
    length_counts: list[int] | None = None

    def prefix(self, prompt: str | None) -> list[int]:
        """<s> and the prompt's tokens, nothing without a prompt. UserError for a blank one."""
        if prompt is None:
            return []
        if not prompt.strip():
            raise UserError("the prompt is blank; leave it out to write freely")
        # The space before the next word belongs to that word's token.
        return encode_texts(self.autoencoder.tokenizer, [prompt.rstrip()])[0][:-1]

    def new_text(
        self, prompt: str | None, wanted: int | None
    ) -> Callable[[tuple[int, ...]], tuple[int, GivenText | None]]:
        """Seed -> (latents, what is given) of a text that begins with `prompt`.

        wanted: tokens without <s> and </s>; by default drawn from the training texts that are long enough.
        """
        prefix = self.prefix(prompt)
        length_of = self._length(wanted, least=len(prefix) + 2 if prefix else 3)

        def plan(seed: tuple[int, ...]) -> tuple[int, GivenText | None]:
            length = length_of(seed)
            return length, self._given(given_prefix(prefix, length)) if prefix else None

        return plan

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids of what stands before, between and after the gaps of `text`. UserError if it has none."""
        if not isinstance(text, str):
            raise UserError(f"one text is filled in at a time, not a {type(text).__name__}")
        pieces = text.split(MASK)
        if len(pieces) < 2:
            raise UserError(
                f"'{text}' has no <mask> to fill in; write <mask> where words are missing"
            )
        # The space before a gap belongs to the first token of what fills it.
        return [self._ids(piece.rstrip(" ")) for piece in pieces[:-1]] + [self._ids(pieces[-1])]

    def with_gaps(
        self, seed: tuple[int, ...], pieces: list[list[int]], gap: int | list[int] | None
    ) -> GivenText:
        """The pieces and between them gaps of `gap` tokens, or of as many as are drawn and fit, which then may change.

        gap: for each of them, or one number for all. UserError if the text does not fit the window.
        """
        count = len(pieces) - 1
        gaps = list(gap) if isinstance(gap, list) else [1 if gap is None else gap] * count
        if min(gaps, default=1) < 1:
            raise UserError(f"gap is {gap}; it must be at least 1 token")
        if len(gaps) != count:
            raise UserError(f"gap is {gap}, for {len(gaps)} gaps; the text has {count}")
        window = self.autoencoder.window
        room = window - 2 - sum(map(len, pieces)) - sum(gaps)  # <s> and </s>
        if room < 0:
            raise UserError(
                f"the text with its gaps has at least {window - room} tokens; this model writes at most {window}, "
                "so give a shorter text or a smaller gap"
            )
        rng = np.random.default_rng((*seed, LENGTH))
        for place in range(count) if gap is None else ():
            more = min(room, int(rng.poisson(MEAN_GAP - 1)))
            room -= more
            gaps[place] += more
        tokenizer = self.autoencoder.tokenizer
        known = given_words(pieces, gaps, tokenizer.bos_token_id, tokenizer.eos_token_id)
        return self._given(known, elastic=gap is None)

    def _given(self, known: list[int], *, elastic: bool = False) -> GivenText:
        if self.autoencoder.compressor is not None:
            raise UserError(
                "part of a text cannot be given in compressed latents, none of which belongs to a token"
            )
        positions = self.autoencoder.bart.config.max_position_embeddings
        room = max(0, min(SLACK, positions - len(known) - 1))
        return GivenText(known, self.autoencoder.tokenizer.eos_token_id, elastic, room)

    def _ids(self, piece: str) -> list[int]:
        return encode_texts(self.autoencoder.tokenizer, [piece])[0][1:-1] if piece else []

    def _length(self, wanted: int | None, *, least: int) -> Callable[[tuple[int, ...]], int]:
        """Seed -> latents of a text of at least `least` tokens. Compressed: as many as all have."""
        window = self.autoencoder.window
        if self.autoencoder.compressor is not None:
            if wanted is not None:
                raise UserError(
                    f"length is {wanted}, but compressed latents do not have one; leave it out"
                )
            return lambda seed: self.autoencoder.latents_of(least)
        if least > window:
            raise UserError(
                f"the prompt has {least - 3} tokens; this model writes at most {window - 2}, so at most "
                f"{window - 3} can be given"
            )
        if wanted is not None:
            if not least <= wanted + 2 <= window:
                raise UserError(
                    f"length is {wanted} tokens; with this prompt and window it must be {least - 2} to {window - 2}"
                )
            return lambda seed: wanted + 2
        chances = self._chances(least)
        return lambda seed: int(
            np.random.default_rng((*seed, LENGTH)).choice(len(chances), p=chances)
        )

    def _chances(self, least: int) -> np.ndarray:
        """[window + 1], of each length, as among the training texts that are long enough."""
        window = self.autoencoder.window
        counts = np.zeros(window + 1)
        saved = np.array(self.length_counts or [], dtype=float)[: window + 1]
        counts[: len(saved)] = saved
        counts[:least] = 0
        if counts.sum() == 0:
            counts[least : min(window, least + 8) + 1] = 1
            reason = f"no training text has {least} tokens or more"
            if not saved.any():
                reason = "the lengths of the training texts are not known"
            say(f"{reason}, so a length up to {least + 8} is drawn")
        return counts / counts.sum()
