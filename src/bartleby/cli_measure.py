"""The commands that measure texts and models: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bartleby.cli_options import Column, Device, Json, Seed


def evaluate(
    samples: Annotated[
        list[Path], typer.Argument(help="Texts to score; several files are repeats, say of seeds.")
    ],
    reference: Annotated[Path, typer.Option(help="Human texts to hold them against.")],
    train: Annotated[
        Path | None, typer.Option(help="What the generator was trained on, to find what it copied.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Language model: hub name, folder or .gguf file."),
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Encoder for MAUVE: hub name or folder."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use N texts of each set.")] = None,
    column: Column = "text",
    device: Device = "cpu",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score any file of texts, a text a line, beside human ones.

    Half of the reference is scored as the human row, the other half is what all are held against.
    Without --judge there is no perplexity, without --embedder no MAUVE.

    Example: bartleby evaluate mine.txt --reference valid.txt --judge gpt2-large
    """
    from bartleby.console import say, track
    from bartleby.corpus import read_texts
    from bartleby.evaluation.generation import Evaluator, comparable_sets
    from bartleby.evaluation.judges import load_embedder, load_language_model
    from bartleby.reports import evaluation_report

    sets, human, held = comparable_sets(
        [read_lines(path, column) for path in samples],
        read_texts(reference, column=column),
        limit=limit,
        say=say,
    )
    evaluator = Evaluator(
        held,
        read_texts(train, column=column) if train else None,
        load_language_model(judge, device=device) if judge else None,
        load_embedder(embedder, device=device) if embedder else None,
    )
    say(
        f"{len(sets)} x {len(sets[0]):,} texts against {len(held):,} · perplexity by {judge or 'no model'} · "
        f"MAUVE on {embedder or 'no model'} · seed {seed}"
    )
    rows = {}
    jobs = {"human": [human], "samples": sets}
    for name in track(jobs, "score", total=len(jobs)):
        rows[name] = evaluator.score_repeats(jobs[name], seed=seed)
    evaluation_report(rows, judge=judge, embedder=embedder, as_json=json)


def read_lines(path: Path, column: str) -> list[str]:
    """Texts of a file of samples; in .txt files a blank line is an empty sample and counts."""
    from bartleby.corpus import decode_utf8, read_texts
    from bartleby.errors import UserError

    if path.suffix != ".txt":
        return read_texts(path, column=column)
    if not path.is_file():
        raise UserError(f"no file at '{path}'")
    texts = decode_utf8(path.read_bytes(), name=f"'{path}'").removesuffix("\n").split("\n")
    if not any(text.strip() for text in texts):
        raise UserError(f"'{path}' holds no text")
    return [text.strip() for text in texts]


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(evaluate)
