import pytest
from transformers import AutoTokenizer

from bartleby.errors import UserError
from bartleby.tokenization import content_ids, decode_ids, encode_texts, passages, split_sentences

HARD = [
    "Curly “quotes” and ‘more’.",
    "1,234.56 € — naïve café, Ærø",
    "emoji 😀👩‍🚀 and 日本語",
    "two\nlines\n\nand a tab\t.",
    "special </s> <mask> <s> <pad> <unk> tokens as text",
    "  spaces  inside  ",
]


@pytest.mark.parametrize("text", HARD)
def test_any_text_survives_tokenising(tokenizer, text):
    ids = encode_texts(tokenizer, [text])[0]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
    assert decode_ids(tokenizer, [[tokenizer.eos_token_id, *ids, tokenizer.pad_token_id]]) == [text]


def test_ids_are_barts(tokenizer):
    ids = [
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ]
    assert ids == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1


def test_saved_tokenizer_loads_as_any_hub_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert encode_texts(AutoTokenizer.from_pretrained(tmp_path), HARD) == encode_texts(
        tokenizer, HARD
    )


def test_content_stops_at_the_first_end_token(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert content_ids(tokenizer, [eos, bos, 50, 51, eos, 52]) == [50, 51]


def test_split_sentences():
    text = 'He left. "Why?" she asked. (Nobody knew.) It cost 3.50 euros!'
    assert split_sentences(text) == [
        "He left.",
        '"Why?"',
        "she asked.",
        "(Nobody knew.)",
        "It cost 3.50 euros!",
    ]


@pytest.mark.parametrize("window", [8, 12, 32])
def test_passages_fit_the_window_and_lose_nothing(tokenizer, window):
    long_word = "x" * 100
    texts = [
        "Short.",
        "The dog likes tea. " * 20,
        "word " * 60,
        long_word,
        f"Then {long_word} and 😀😀😀😀😀😀😀😀.",
    ]
    for text in texts:
        cut = list(passages(tokenizer, [text], window=window))
        assert max(len(ids) for ids in encode_texts(tokenizer, cut)) <= window
        assert "".join("".join(cut).split()) == "".join(text.split())


def test_no_passage_is_blank(tokenizer):
    long_word = "x" * 100
    cut = list(passages(tokenizer, [f"{long_word}  {long_word}"], window=12))
    assert "".join(cut) == 2 * long_word and all(passage.strip() for passage in cut)


def test_what_is_no_unicode_is_named(tokenizer):
    with pytest.raises(UserError, match="the text 'caf.*' is not valid UTF-8"):
        encode_texts(tokenizer, ["caf\udce9"])
