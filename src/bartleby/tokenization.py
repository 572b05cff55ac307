"""Byte-level BPE tokenizers with BART's special tokens, and texts cut into windows.

Text is text: "</s>" or "<mask>" inside a user's text is encoded as plain characters, never as a
special token, so that every string survives the way to token ids and back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import ByteLevelBPETokenizer
from transformers import BartTokenizer, PreTrainedTokenizerBase

from bartleby.errors import UserError

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+")


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, window: int
) -> PreTrainedTokenizerBase:
    """A byte-level BPE of up to `vocab_size` entries in BART's format.

    Ids 0 to 3 are <s> <pad> </s> <unk>, the last is <mask>.
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts,
        vocab_size=vocab_size - 1,
        min_frequency=2,
        special_tokens=[BOS, PAD, EOS, UNK],
        show_progress=False,
    )
    vocab = bpe.get_vocab()
    vocab[MASK] = len(vocab)
    return BartTokenizer(vocab=vocab, merges=_merges(bpe), model_max_length=window)


def _merges(bpe: ByteLevelBPETokenizer) -> list[tuple[str, str]]:
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in merges
    ]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, with <s> and </s>, of any length. UserError for what is no Unicode."""
    if not texts:
        return []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes of a command line that are not UTF-8 come as surrogates
            shown = text.encode("ascii", "backslashreplace").decode()[:60]
            raise UserError(f"the text '{shown}' is not valid UTF-8") from None
    return tokenizer(texts, split_special_tokens=True, truncation=False, verbose=False)["input_ids"]


def decode_ids(tokenizer: PreTrainedTokenizerBase, sequences: Iterable[list[int]]) -> list[str]:
    """Text of each sequence of ids: up to its first </s>, without special tokens."""
    texts = []
    for sequence in sequences:
        texts.append(
            tokenizer.decode(content_ids(tokenizer, sequence), clean_up_tokenization_spaces=False)
        )
    return texts


def content_ids(tokenizer: PreTrainedTokenizerBase, sequence: list[int]) -> list[int]:
    """The ids between <s> and the first </s>, without padding: what a text says."""
    special = set(tokenizer.all_special_ids)
    content = []
    for position, token in enumerate(sequence):
        if (
            token == tokenizer.eos_token_id and position > 0
        ):  # position 0 holds the decoder's start token
            break
        if token not in special:
            content.append(token)
    return content


def split_sentences(text: str) -> list[str]:
    """A text cut after ., ! or ? (and a closing quote or bracket) where white space follows."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence]


def passages(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, window: int
) -> Iterator[str]:
    """Texts cut at sentence ends into passages of at most `window` tokens, <s> and </s> included.

    A sentence longer than the window is cut between words, a word longer than it between tokens.
    """
    for text in texts:
        if len(text.encode()) <= window - 2:  # a byte-level BPE makes at most one token a byte
            yield text
        else:
            cut = _join_to_window(tokenizer, split_sentences(text), window)
            yield from (passage for passage in cut if passage.strip())


def _join_to_window(
    tokenizer: PreTrainedTokenizerBase, pieces: list[str], window: int
) -> Iterator[str]:
    room = window - 2
    # A piece is encoded differently at the start of a passage and after a space inside it.
    first_lengths = [len(ids) - 2 for ids in encode_texts(tokenizer, pieces)]
    later_lengths = [
        len(ids) - 2 for ids in encode_texts(tokenizer, [" " + piece for piece in pieces])
    ]
    current: list[str] = []
    used = 0
    for piece, first, later in zip(pieces, first_lengths, later_lengths, strict=True):
        if current and used + later <= room:
            current.append(piece)
            used += later
            continue
        if current:
            yield " ".join(current)
        if first <= room:
            current, used = [piece], first
        else:
            current, used = [], 0
            yield from _cut_long_piece(tokenizer, piece, window)
    if current:
        yield " ".join(current)


def _cut_long_piece(tokenizer: PreTrainedTokenizerBase, piece: str, window: int) -> Iterator[str]:
    words = piece.split(" ")
    if len(words) > 1:
        yield from _join_to_window(tokenizer, words, window)
        return
    step = (window - 2) // 4  # at most 4 bytes, so at most 4 tokens, a character
    yield from (piece[start : start + step] for start in range(0, len(piece), step))


def token_sequences(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, window: int
) -> list[np.ndarray]:
    """Token ids of each passage of at most `window` tokens, as 16- or 32-bit integers."""
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    cut = list(passages(tokenizer, texts, window=window))
    return [np.array(ids, dtype=dtype) for ids in encode_texts(tokenizer, cut)]
