"""The commands that measure texts and latents: evaluate, benchmark, benchmark-edits, fit-schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bartleby.cli.options import (
    Column,
    CurvePlot,
    Device,
    Json,
    Model,
    Seed,
    TokensPerBatch,
    Window,
    read_texts_given,
)
from bartleby.cli.writing import Bart, Generator

if TYPE_CHECKING:
    from bartleby.evaluation.generation import Evaluator

Train = Annotated[
    Path | None, typer.Option(help="What the generator was trained on, to find what it copied.")
]
Judge = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Language model for perplexity and MAUVE: hub name, folder or .gguf file.",
    ),
]
Embedder = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Encoder for MAUVE of topics: hub name or folder."),
]


def evaluate(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="SAMPLES", help="Texts to score; several files are repeats, say of seeds."
        ),
    ],
    reference: Annotated[Path, typer.Option(help="Human texts to hold them against.")],
    train: Train = None,
    judge: Judge = None,
    embedder: Embedder = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Use N texts of each set.")] = None,
    column: Column = "text",
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score any file of texts, a text a line, beside human ones.

    Half of the reference is scored as the human row, the other half is what all are held against.
    Without --judge there is neither perplexity nor MAUVE on its features, without --embedder no MAUVE on
    what texts are about.

    Example: bartleby evaluate mine.txt --reference valid.txt --judge gpt2-large
    """
    from bartleby.console import say, track
    from bartleby.corpus import read_rows
    from bartleby.evaluation.generation import comparable_sets
    from bartleby.reports import evaluation_report

    sets, human, held = comparable_sets(
        [read_rows(path, column=column) for path in samples],
        read_texts_given(None, reference, column, None),
        limit=limit,
        say=say,
    )
    evaluator = _evaluator(held, train, column, judge, embedder, device)
    say(
        f"{len(sets)} x {len(sets[0]):,} texts against {len(held):,} · judge {judge or 'none'} · "
        f"embedder {embedder or 'none'} · seed {seed}"
    )
    rows = {}
    jobs = {"human": [human], "samples": sets}
    for name in track(jobs, "score", total=len(jobs)):
        rows[name] = evaluator.score_repeats(jobs[name], seed=seed)
    evaluation_report(rows, judge=judge, embedder=embedder, as_json=json)


def benchmark(
    reference: Annotated[Path, typer.Option(help="Human texts to hold the generator against.")],
    out: Annotated[Path, typer.Option(help="Folder for the texts and scores of every row.")],
    train: Train = None,
    number: Annotated[int, typer.Option("-n", "--number", min=4, help="Texts of each row.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Sets of texts of the generator.")] = 3,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            metavar="<int>",
            min=1,
            help="A row each, with each of those below; may be repeated. Default, as there: the model's.",
        ),
    ] = None,
    sampler: Annotated[list[str] | None, typer.Option(metavar="<str>", help="Likewise.")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(metavar="<float>", help="Likewise.")
    ] = None,
    handover: Annotated[
        list[float] | None, typer.Option(metavar="<float>", help="Likewise.")
    ] = None,
    decoder_temperature: Annotated[
        list[float] | None, typer.Option(metavar="<float>", help="Likewise.")
    ] = None,
    decoder_min_p: Annotated[
        list[float] | None,
        typer.Option("--decoder-min-p", metavar="<float>", help="Likewise."),
    ] = None,
    autoregressive: Annotated[
        int,
        typer.Option(
            min=0, help="Also train a GPT-2 of the generator's size for N steps; 0 does not."
        ),
    ] = 0,
    tokens_per_batch: TokensPerBatch = 2048,
    dropout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of what a layer of that GPT-2 adds that is left out at random.",
        ),
    ] = 0.0,
    judge: Judge = None,
    embedder: Embedder = None,
    model: Generator = None,
    bart: Bart = None,
    column: Column = "text",
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score a generator with all its controls: human text, what its decoder writes alone, shuffled words.

    Example: bartleby benchmark --reference valid.txt --out runs/benchmark --judge gpt2-large
    """
    import dataclasses
    from itertools import product

    from bartleby.autoregressive import sized_like
    from bartleby.benchmark import run_benchmark
    from bartleby.console import say
    from bartleby.errors import UserError
    from bartleby.evaluation.generation import comparable_sets
    from bartleby.pipeline import load_pipeline
    from bartleby.reports import benchmark_report

    if autoregressive and not train:
        raise UserError("the autoregressive row needs --train, the texts to train on")
    texts = read_texts_given(None, reference, column, None)
    _, human, held = comparable_sets([], texts, limit=number, say=say)
    evaluator = _evaluator(held, train, column, judge, embedder, device)
    pipeline = load_pipeline(model, bart=bart, device=device)
    own = pipeline.default_settings
    options: dict[str, list | None] = {
        "sampler": sampler,
        "steps": steps,
        "temperature": temperature,
        "handover": handover,
        "decoder_temperature": decoder_temperature,
        "decoder_min_p": decoder_min_p,
    }
    asked = {name: values for name, values in options.items() if values}
    settings = [
        dataclasses.replace(own, **dict(zip(asked, values, strict=True)))
        for values in product(*asked.values())
    ]
    say(
        f"{len(human):,} texts a row · {seeds} seeds from {seed} · judge {judge or 'none'} · "
        f"embedder {embedder or 'none'}"
    )
    yardstick = None
    if autoregressive:
        yardstick = sized_like(
            pipeline.trained_parameters,
            len(pipeline.tokenizer),
            steps=autoregressive,
            window=pipeline.config.window,
            tokens_per_batch=tokens_per_batch,
            dropout=dropout,
            seed=seed,
        )
    scores = run_benchmark(
        pipeline,
        evaluator,
        human,
        out,
        settings=settings,
        seeds=list(range(seed, seed + seeds)),
        autoregressive=yardstick,
        say=say,
    )
    benchmark_report(scores, judge=judge, embedder=embedder, as_json=json)
    say(f"texts and scores saved: {out}")


def benchmark_edits(
    reference: Annotated[Path, typer.Option(help="Human texts to edit, fill in and interpolate.")],
    judge: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Language model: hub name, folder or .gguf file."),
    ],
    embedder: Annotated[
        str, typer.Option(metavar="MODEL", help="Encoder for similarity: hub name or folder.")
    ],
    number: Annotated[
        int, typer.Option("-n", "--number", min=2, help="Texts to start from.")
    ] = 200,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            metavar="<float>",
            min=0,
            max=1,
            help="A row each; may be repeated. Default: 0 to 1 by 0.1.",
        ),
    ] = None,
    places: Annotated[int, typer.Option(min=2, help="Texts of an interpolation.")] = 7,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the rows as a picture (.png, .svg, .pdf).")
    ] = None,
    model: Generator = None,
    bart: Bart = None,
    column: Column = "text",
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score edits, interpolations and filled gaps: how fluent, how like their source.

    Example: bartleby benchmark-edits --reference valid.txt --judge gpt2-large --embedder
    sentence-transformers/all-MiniLM-L6-v2
    """
    from bartleby.console import check_plot_path, say, track
    from bartleby.edit_benchmark import EditBenchmark, run_edit_benchmark
    from bartleby.evaluation.judges import load_embedder, load_language_model
    from bartleby.pipeline import load_pipeline
    from bartleby.reports import edit_report

    if plot:
        check_plot_path(plot)
    texts = read_texts_given(None, reference, column, number)
    pipeline = load_pipeline(model, bart=bart, device=device)
    settings = pipeline.editing_settings
    say(f"{len(texts):,} texts · {settings} · judge {judge} · embedder {embedder} · seed {seed}")
    rows = run_edit_benchmark(
        EditBenchmark(
            pipeline,
            load_language_model(judge, device=device),
            load_embedder(embedder, device=device),
            settings,
            seed,
        ),
        texts,
        strengths=strength or [index / 10 for index in range(11)],
        places=places,
        track=lambda items, total: track(items, "benchmark", total=total),
    )
    edit_report(rows, judge=judge, embedder=embedder, as_json=json)
    if plot:
        from bartleby.plots import plot_edits

        plot_edits(rows, plot)
        say(f"plot saved: {plot}")


def fit_schedule(
    data: Annotated[
        str, typer.Option(help="File, folder or Hugging Face dataset that will be trained on.")
    ],
    texts: Annotated[int, typer.Option(min=4, help="Held-out texts to measure on.")] = 100,
    plot: CurvePlot = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Use only N training texts for the statistics; 0 is all.")
    ] = 20_000,
    column: Column = "text",
    window: Window = None,
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the noise schedule that fits a BART and a corpus: tan-d, and the d to train with.

    Example: bartleby fit-schedule --data stories.txt --plot schedule.png
    """
    from bartleby.config import config_from_dict
    from bartleby.console import check_plot_path, say, track
    from bartleby.reports import schedule_report
    from bartleby.run_setup import open_setup, validation_sample
    from bartleby.schedule_fit import DEVIATIONS, measure_readability
    from bartleby.schedule_fit import fit_schedule as fit

    if plot:
        check_plot_path(plot)
    tables = {
        "data": {"source": data, "column": column, "limit": limit},
        "autoencoder": {"model": model or "nano", "window": window or 0},
    }
    setup = open_setup(config_from_dict(tables), device=device, say=say)
    latents, token_ids = validation_sample(setup.validation, texts)
    say(f"model {model or 'nano'} · {len(token_ids):,} held-out texts · seed {seed}")
    curve = measure_readability(
        setup.autoencoder,
        setup.training,
        latents,
        token_ids,
        seed=seed,
        track=lambda items: track(items, "fit", total=len(DEVIATIONS)),
    )
    fitted = fit(curve)
    schedule_report(fitted, as_json=json)
    if plot:
        from bartleby.plots import plot_schedule

        plot_schedule(fitted, plot, model=model or "nano")
        say(f"plot saved: {plot}")


def _evaluator(
    held: list[str],
    train: Path | None,
    column: str,
    judge: str | None,
    embedder: str | None,
    device: str | None,
) -> Evaluator:
    from bartleby.console import say
    from bartleby.evaluation.generation import Evaluator, mauve_installed
    from bartleby.evaluation.judges import load_embedder, load_language_model

    if (judge or embedder) and not mauve_installed():
        say("no MAUVE without the package mauve-text: pip install mauve-text")
    return Evaluator(
        held,
        read_texts_given(None, train, column, None) if train else None,
        load_language_model(judge, device=device) if judge else None,
        load_embedder(embedder, device=device) if embedder else None,
    )


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    for command in (evaluate, benchmark, benchmark_edits, fit_schedule):
        app.command()(command)
