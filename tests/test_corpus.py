import gzip
import json
import lzma

import pytest

from bartleby.corpus import load_corpus, merge, read_rows, read_texts
from bartleby.errors import UserError
from bartleby.wikitext import clean_wikitext, detokenise, is_wikitext

TEXTS = ["One line.", "Zwei — “Zeilen”.", "Drei 😀"]


def test_reads_every_format_and_compression(tmp_path):
    plain = "\n".join(TEXTS) + "\n\n"
    rows = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS)
    table = "id,text\n" + "".join(f'1,"{text}"\n' for text in TEXTS)
    for name, content in (("a.txt", plain), ("b.jsonl", rows), ("c.csv", table)):
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        (tmp_path / f"{name}.xz").write_bytes(lzma.compress(content.encode()))
        for suffix in ("", ".gz", ".xz"):
            assert read_texts(tmp_path / (name + suffix)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n \n", "holds no text"),
        ("binary.txt", b"abc\0def", "binary"),
        ("latin1.txt", "café".encode("latin-1"), "not UTF-8: byte 0xe9 at offset 3"),
        ("bad.txt.gz", b"not gzip at all", "damaged"),
        ("cut.txt.xz", lzma.compress(b"some text" * 100)[:40], "damaged"),
        ("half.jsonl", b'{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2 holds half a character"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("other.jsonl", b'{"body": "a"}\n', "no text field 'text'"),
        ("other.csv", b"id,body\n1,a\n", "no column 'text' (found: id, body)"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_texts(path)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_uncached_dataset_offline(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        load_corpus(tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="Salesforce/wikitext"):
        load_corpus("wikitext-2")


def test_folder_splits_come_from_file_names(tmp_path):
    (tmp_path / "train.txt").write_text("a b\nc d\n")
    (tmp_path / "validation.txt.gz").write_bytes(gzip.compress(b"e f\n"))
    corpus = load_corpus(tmp_path)
    assert corpus.splits == {"train": ["a b", "c d"], "valid": ["e f"]}
    with pytest.raises(UserError, match=r"no split 'test' \(found: train, valid\)"):
        corpus.split("test")


def test_held_out_texts_stay_held_out_when_the_corpus_grows(tmp_path):
    texts = [f"text number {index}" for index in range(1000)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts[:500]))
    before = set(load_corpus(path).split("valid"))
    path.write_text("\n".join(texts))
    after = load_corpus(path)
    assert before and before <= set(after.split("valid"))
    assert not set(after.split("valid")) & set(after.split("train"))
    assert 0.005 < len(after.split("valid")) / 1000 < 0.05


def test_merge_joins_splits_of_the_same_name(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(f"train {name}\n")
    corpus = merge([load_corpus(tmp_path / "a"), load_corpus(tmp_path / "b")])
    assert corpus.splits == {"train": ["train a", "train b"]}


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 lb ) .", "It weighs 0.7 – 2.2 kg (1.5 lb)."),
        ('He said " no " , and did n\'t stay .', 'He said "no", and didn\'t stay.'),
        ("a well @-@ known 5 @,@ 000 metres", "a well-known 5,000 metres"),
        ("the dog 's bone ; cats ' toys", "the dog's bone; cats' toys"),
    ],
)
def test_detokenise(tokens, text):
    assert detokenise(tokens) == text


def test_wikitext_is_recognised_and_its_headings_left_out():
    lines = [
        " = Title = ",
        "A well @-@ known thing .",
        " = = Part = = ",
        "It is 1 @.@ 5 m .",
        "Plain @-@ text .",
    ]
    lines = [line.strip() for line in lines]
    assert is_wikitext(lines)
    assert clean_wikitext(lines) == ["A well-known thing.", "It is 1.5 m.", "Plain-text."]
    assert not is_wikitext(["An e-mail to a @ b.", "x = y = z", "Ordinary text."])


def test_a_csv_field_may_be_long_and_a_row_short(tmp_path):
    long = "word " * 50_000 + "end"
    path = tmp_path / "a.csv"
    path.write_text(f"id,text\n1,{long}\n2\n\n3,last\n")
    assert read_rows(path) == [long, "", "last"]


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("One.\nTwo.\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_texts("~/mine.txt") == ["One.", "Two."]
    assert load_corpus("~/mine.txt").name == "mine.txt"


def test_a_corpus_with_nothing_to_validate_on_holds_some_of_its_training_texts_out(tmp_path):
    texts = [f"Story number {number}." for number in range(400)]
    (tmp_path / "train.txt").write_text("\n".join(texts))
    (tmp_path / "test.txt").write_text("A text of the test split.")
    corpus = load_corpus(tmp_path)
    assert sorted(corpus.split("train") + corpus.split("valid")) == sorted(texts)
    assert 0 < len(corpus.split("valid")) < 40
    assert corpus.split("test") == ["A text of the test split."]
    assert "no split to validate on" in corpus.notes[-1]
