"""Text sources -> clean strings -> fixed splits.

A source is a file (.txt, .jsonl, .csv, each also .gz or .xz), a folder of such files, or the name of a
Hugging Face dataset. What comes back is a `Corpus`: named splits of plain strings, one string a text,
and notes that say what was dropped or changed on the way. Nothing here knows of tokens or models.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bartleby.errors import UserError, first_line
from bartleby.wikitext import clean_wikitext, is_wikitext

# Short names for datasets on the Hugging Face hub: (repository, configuration).
HUB_ALIASES = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
TEXT_SUFFIXES = (".txt", ".jsonl", ".csv")
HELD_OUT_PERCENT = 2


@dataclass
class Corpus:
    """Named splits of texts. `notes` says, one line each, what reading changed or left out."""

    name: str
    splits: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)

    def split(self, name: str) -> list[str]:
        """The texts of one split; another split is never put in its place."""
        if name not in self.splits:
            found = ", ".join(self.splits)
            raise UserError(f"corpus '{self.name}' has no split '{name}' (found: {found})")
        return self.splits[name]


def load_corpus(source: str | Path, *, column: str = "text") -> Corpus:
    """Every split of a file, a folder or a Hugging Face dataset (`owner/name`, `owner/name:config` or an alias).

    A folder whose files are named train, valid or test gives those splits. What has none to validate on is
    divided into train and valid by a hash of each text, so that a text stays in its split whatever else is
    added to the corpus.  column: of .jsonl, .csv and datasets. Raises UserError for what cannot be read, or is empty.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path, column)
    if path.exists():
        notes: list[str] = []
        return _with_held_out(
            path.name, clean_texts(read_texts(path, column=column), path.name, notes), notes
        )
    if _looks_like_a_path(str(source)):
        raise UserError(f"no file or folder at '{source}'")
    return _load_hub_dataset(str(source), column)


def read_texts(path: str | Path, *, column: str = "text") -> list[str]:
    """The texts of one local file: a line each (.txt) or a row each (.jsonl, .csv), blank ones left out.

    Any other suffix is read as lines. Raises UserError for a file that is missing, binary, damaged,
    not UTF-8 or without any text.
    """
    return [text for text in read_rows(path, column=column) if text]


def read_rows(path: str | Path, *, column: str = "text") -> list[str]:
    """Like `read_texts`, but blank lines and fields stay, as empty texts: a generator may have written them.

    A blank line of a .jsonl or .csv file is no row.
    """
    path = Path(path).expanduser()
    text = _read_utf8(path)
    suffix = _inner_suffix(path)
    if suffix == ".jsonl":
        rows = list(_jsonl_rows(text, path, column))
    elif suffix == ".csv":
        rows = list(_csv_rows(text, path, column))
    else:
        rows = text.removesuffix("\n").split("\n")
    texts = [row.strip() for row in rows]
    if not any(texts):
        raise UserError(f"'{path}' holds no text")
    return texts


def _looks_like_a_path(source: str) -> bool:
    return (
        source.startswith((".", "/", "~"))
        or source.endswith((*TEXT_SUFFIXES, ".gz", ".xz"))
        or source.count("/") > 1
    )


def _inner_suffix(path: Path) -> str:
    """'.txt' for both story.txt and story.txt.xz."""
    name = path.name.lower()
    for compression in (".gz", ".xz"):
        name = name.removesuffix(compression)
    return Path(name).suffix


def _read_utf8(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; name a file in it")
    openers: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with openers.get(path.suffix.lower(), open)(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"no file at '{path}'") from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged or not a {path.suffix} file: {error}") from None
    return decode_utf8(data, name=f"'{path}'")


def decode_utf8(data: bytes, *, name: str) -> str:
    """The text in `data`; UserError for binary data and for bytes that are not UTF-8."""
    if b"\0" in data:
        raise UserError(f"{name} is a binary file, not text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}"
        ) from None


def _jsonl_rows(text: str, path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"'{path}' line {number} is not JSON: {error.msg}") from None
        value = row if isinstance(row, str) else row.get(column) if isinstance(row, dict) else None
        if not isinstance(value, str):
            raise UserError(f"'{path}' line {number} has no text field '{column}'")
        if not _is_unicode(value):  # JSON may escape half of a pair of surrogates
            raise UserError(f"'{path}' line {number} holds half a character (a lone surrogate)")
        yield value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(text: str, path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KiB of the default
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"'{path}' is not CSV: {error}") from None
    if not rows:
        return
    header = rows[0]
    if column not in header:
        raise UserError(f"'{path}' has no column '{column}' (found: {', '.join(header)})")
    index = header.index(column)
    yield from (row[index] if len(row) > index else "" for row in rows[1:] if row)


def _load_folder(folder: Path, column: str) -> Corpus:
    files = [file for file in sorted(folder.iterdir()) if _inner_suffix(file) in TEXT_SUFFIXES]
    if not files:
        raise UserError(f"'{folder}' holds no .txt, .jsonl or .csv file (also .gz or .xz)")
    notes: list[str] = []
    by_split: dict[str, list[str]] = {}
    unsplit: list[str] = []
    for file in files:
        texts = clean_texts(read_texts(file, column=column), file.name, notes)
        split = SPLIT_NAMES.get(file.name.split(".")[0].lower())
        (by_split.setdefault(split, []) if split else unsplit).extend(texts)
    if not by_split:
        return _with_held_out(folder.name, unsplit, notes)
    if unsplit:
        notes.append(
            f"{folder.name}: files not named train, valid or test were left out ({len(unsplit):,} texts)"
        )
    return _with_valid(Corpus(folder.name, by_split, notes))


def clean_texts(texts: list[str], name: str, notes: list[str]) -> list[str]:
    """Texts without a source format's marks (today: WikiText's); what was done is added to `notes`."""
    if not is_wikitext(texts):
        return texts
    cleaned = clean_wikitext(texts)
    notes.append(
        f"{name}: WikiText tokens made plain text; "
        f"{len(texts) - len(cleaned):,} headings left out of {len(texts):,} lines"
    )
    return cleaned


def _with_held_out(name: str, texts: list[str], notes: list[str]) -> Corpus:
    splits: dict[str, list[str]] = {"train": [], "valid": []}
    for text in texts:
        bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
        splits["valid" if bucket < HELD_OUT_PERCENT else "train"].append(text)
    if not all(splits.values()):
        notes.append(
            f"{name}: {len(texts):,} texts are too few to hold {HELD_OUT_PERCENT}% of them out as valid; name a folder "
            "with train.txt and valid.txt"
        )
        return Corpus(name, {"train": texts}, notes)
    notes.append(
        f"{name}: no split to validate on; {len(splits['valid']):,} of {len(texts):,} texts held out as valid"
    )
    return Corpus(name, splits, notes)


def _load_hub_dataset(name: str, column: str) -> Corpus:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    named, _, chosen = name.partition(":")
    repository, config = HUB_ALIASES.get(named, (named, chosen or None))
    try:
        loaded = datasets.load_dataset(repository, config)
    except (datasets.exceptions.DatasetNotFoundError, OSError, HfHubHTTPError, ValueError) as error:
        raise UserError(
            f"'{name}' is no local file or folder, and the Hugging Face dataset '{repository}' could not be loaded: "
            f"{first_line(error)}. Offline, only datasets fetched before can be read."
        ) from None
    notes: list[str] = []
    splits: dict[str, list[str]] = {}
    for split, rows in loaded.items():
        if column not in rows.column_names:
            raise UserError(
                f"dataset '{repository}' has no column '{column}' (found: {', '.join(rows.column_names)})"
            )
        texts = [text.strip() for text in rows[column] if text and text.strip()]
        splits[SPLIT_NAMES.get(split, split)] = clean_texts(texts, f"{name} {split}", notes)
    return _with_valid(Corpus(name, splits, notes))


def _with_valid(corpus: Corpus) -> Corpus:
    """The corpus, a part of its train split held out as valid if it has none."""
    if "valid" in corpus.splits or "train" not in corpus.splits:
        return corpus
    parted = _with_held_out(corpus.name, corpus.splits["train"], corpus.notes)
    return Corpus(corpus.name, {**corpus.splits, **parted.splits}, parted.notes)


def merge(corpora: Iterable[Corpus]) -> Corpus:
    """Several corpora as one: splits of the same name joined in order."""
    corpora = list(corpora)
    splits: dict[str, list[str]] = {}
    for corpus in corpora:
        for split, texts in corpus.splits.items():
            splits.setdefault(split, []).extend(texts)
    notes = [note for corpus in corpora for note in corpus.notes]
    return Corpus(" + ".join(corpus.name for corpus in corpora), splits, notes)


def spread(texts: list[str], count: int) -> list[str]:
    """`count` texts at even distances, so that every source of a merged corpus is in the sample."""
    if len(texts) <= count:
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]
