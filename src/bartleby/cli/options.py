"""What all commands of the command line share: the app, how errors are shown, options of one meaning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bartleby.errors import UserError


class Commands(TyperGroup):
    """Turns what a user can put right into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            if isinstance(error, BrokenPipeError):
                raise typer.Exit(1) from None
            message = (
                str(error)
                if isinstance(error, UserError)
                else f"{error.strerror or error}: {error.filename or 'output'}"
            )
            who = f" (process {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else ""
            typer.echo(f"error{who}: " + " ".join(message.split()), err=True)
            raise typer.Exit(1) from None


class SpacedLevels(TyperCommand):
    """Lets --levels take several values, as in `--levels 0.1 0.5 1.0`: every number or range that follows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_option(args, "--levels"))


def spread_option(args: list[str], option: str) -> list[str]:
    """[option, a, b, rest] -> [option=a, option=b, rest]; the first value may be anything, later ones numbers."""
    spread, index = [], 0
    while index < len(args):
        spread_here = args[index] == option and index + 1 < len(args)
        if not spread_here:
            spread.append(args[index])
            index += 1
            continue
        index += 1
        first = True
        while index < len(args) and (first or _is_level(args[index])):
            spread.append(f"{option}={args[index]}")
            index, first = index + 1, False
    return spread


def _is_level(value: str) -> bool:
    try:
        return bool([float(part) for part in value.split(":")])
    except ValueError:
        return False


app = typer.Typer(
    cls=Commands,
    name="bartleby",
    help="Text diffusion in BART's latent space.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHARED = ("pretrain", "train", "repair", "compress")  # commands that several processes can work on

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_FOLDER", help="A BART: hub name or folder. Default: the bundled nano."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of all randomness.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Window = Annotated[
    int | None,
    typer.Option(help="Tokens a text may have. Default: 128, or less if the model has less."),
]
Split = Annotated[
    bool, typer.Option("--split", help="Cut long texts into passages instead of truncating them.")
]
Column = Annotated[str, typer.Option(help="Field of .jsonl or column of .csv that holds the text.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]
TOKENS_PER_BATCH = "Of an optimiser step; a GPU is filled by some ten thousand."
TokensPerBatch = Annotated[int, typer.Option(min=1, help=TOKENS_PER_BATCH)]
LearningRate = Annotated[float, typer.Option(min=1e-8, help="The highest.")]
CurvePlot = Annotated[
    Path | None, typer.Option(help="Write the curve as a picture (.png, .svg, .pdf).")
]
Beams = Annotated[int, typer.Option(min=1, max=64, help="Beams of the decoder; 1 is greedy.")]


@app.callback()
def main(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    from bartleby import silence_libraries

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and ctx.invoked_subcommand not in SHARED:
        raise UserError(
            f"{ctx.invoked_subcommand} is the work of one process: start it without torchrun (several share "
            f"{', '.join(SHARED)})"
        )
    silence_libraries()


def read_texts_given(
    text: str | None, file: Path | None, column: str, limit: int | None
) -> list[str]:
    """The texts a command works on: a file's, standard input's lines, or the one given."""
    from bartleby.console import read_stdin, say
    from bartleby.corpus import clean_texts, read_texts

    if file is not None:
        notes: list[str] = []
        texts = clean_texts(read_texts(file, column=column), file.name, notes)
        for note in notes:
            say(note)
    elif text == "-":
        texts = [line.strip() for line in read_stdin().split("\n") if line.strip()]
        if not texts:
            raise UserError("standard input holds no text")
    else:
        texts = [text or ""]
    return texts[:limit]
