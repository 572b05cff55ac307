"""What the commands share: messages on stderr, progress bars, JSON lines and text input."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bartleby.errors import UserError

Item = TypeVar("Item")
WIDTH = 80
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
stderr = Console(stderr=True, highlight=False, markup=False)


def say(message: str) -> None:
    """One message on stderr; stdout is for results."""
    stderr.print(message, soft_wrap=not stderr.is_terminal)


@contextmanager
def progress_bar(description: str, *, total: int) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere. Its only task is `task_ids[0]`, with a field `note`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(
        *columns, console=stderr, transient=True, disable=not stderr.is_terminal
    ) as progress:
        progress.add_task(description, total=total, note="")
        yield progress


def track(items: Iterable[Item], description: str, *, total: int) -> Iterator[Item]:
    """`items`, with a progress bar on a terminal."""
    with progress_bar(description, total=total) as progress:
        for item in items:
            yield item
            progress.advance(progress.task_ids[0])


def print_json(value: Any) -> None:
    """One object on one line of stdout; infinite and undefined numbers become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    print(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wrapped(text: str, *, indent: str = "  ") -> str:
    """Text folded to the terminal's 80 columns, its own line breaks kept."""
    lines = text.split("\n")
    return "\n".join(
        textwrap.fill(
            line, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        or indent
        for line in lines
    )


def read_stdin() -> str:
    """All of standard input as text; UserError if it is binary, not UTF-8 or a terminal."""
    from bartleby.corpus import decode_utf8

    if sys.stdin.isatty():
        raise UserError("standard input is a terminal; pipe text into the command")
    return decode_utf8(sys.stdin.buffer.read(), name="standard input")


def check_plot_path(path: Path) -> None:
    """UserError now rather than after the work if no plot can be written to `path`."""
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UserError(f"cannot write the plot '{path}': name it {', '.join(PLOT_SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write '{path}': there is no folder '{path.parent}'")
    existed = os.path.lexists(path)  # a link that leads nowhere is the user's, too
    try:
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}") from None
