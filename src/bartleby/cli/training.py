"""The commands that train, and say how it went: pretrain, train, repair, compress, doctor, study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bartleby.cli.options import (
    TOKENS_PER_BATCH,
    Column,
    Device,
    Json,
    LearningRate,
    Model,
    Seed,
    TokensPerBatch,
)


def pretrain(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="CORPUS", help="File, folder or Hugging Face dataset; may be repeated."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, log and the finished model.")],
    preset: Annotated[
        str, typer.Option(help="nano (256 wide), wide (768 wide) or tiny (for tests).")
    ] = "nano",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps. Default: the preset's.")
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the steps, at the end, that lower the learning rate."
        ),
    ] = None,
    tokens_per_batch: Annotated[
        int | None, typer.Option(min=1, help=f"{TOKENS_PER_BATCH} Default: the preset's.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-8, help="The highest. Default: the preset's.")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")] = 4.0,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 500,
    column: Column = "text",
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a BART from scratch on your text. Run the same command again to resume.

    Example: bartleby pretrain --preset nano --data stories.txt --out runs/stories
    """
    from bartleby.console import say
    from bartleby.pretraining_run import configure, run_pretraining

    config = configure(
        preset,
        steps=steps,
        decay_share=decay,
        tokens_per_batch=tokens_per_batch,
        learning_rate=learning_rate,
        checkpoint_minutes=save_every,
        seed=seed,
    )
    run_pretraining(
        config,
        data,
        out,
        column=column,
        device=device,
        validate_every=validate_every,
        as_json=json,
        say=say,
    )


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to train on what.")],
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/ and the configuration's name.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides training.seed.")] = None,
    json: Json = False,
) -> None:
    """Train a denoiser. Run the same command again to resume.

    Example: bartleby train configs/transformer.toml --set data.source=stories.txt

    On several GPUs: torchrun --nproc-per-node gpu -m bartleby train CONFIG.toml
    """
    from bartleby.config import read_config
    from bartleby.console import print_json, say
    from bartleby.reports import print_scores
    from bartleby.training_run import run_training

    overrides = [*(set_ or []), *([] if seed is None else [f"training.seed={seed}"])]
    run = out or Path("runs") / config.stem
    record = run_training(read_config(config, overrides), run, device=device, say=say)
    if not record:
        return  # another process has it
    if json:
        print_json(record)
    else:
        print_scores(record)
    say(f"saved {run}  →  try: bartleby doctor {run}")


def repair(
    run: Annotated[Path, typer.Argument(help="A run folder of bartleby train.")],
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, log and the finished BART.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS",
            help="What the decoder goes on copying, so that it does not forget; may be repeated. Default: the run's.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Begin with the decoder of another run or repair, or 'nano', the bundled generator's. "
            "Default: the run's own.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1200,
    layers: Annotated[
        int, typer.Option(min=0, help="The decoder's from then on; 0 leaves as many as it has.")
    ] = 0,
    own_readout: Annotated[
        bool,
        typer.Option(
            "--own-readout", help="Let it learn a readout that is not the encoder's embeddings."
        ),
    ] = False,
    quietest: Annotated[
        float,
        typer.Option(help="Timesteps whose estimates are read begin at this share of all, 0 to 1."),
    ] = 0.3,
    noisiest: Annotated[
        float,
        typer.Option(help="Timesteps whose estimates are read end at this share of all, 0 to 1."),
    ] = 0.8,
    conditioned: Annotated[
        float,
        typer.Option(help="Share of the texts that are read with a part of them given, 0 to 1."),
    ] = 0.5,
    copies: Annotated[
        float, typer.Option(help="Share of the steps that read latents as in pretraining, 0 to 1.")
    ] = 0.15,
    dropout: Annotated[
        float,
        typer.Option(
            help="Share of what a decoder's layer adds that is left out at random, 0 to 1."
        ),
    ] = 0.1,
    tokens_per_batch: TokensPerBatch = 2048,
    learning_rate: LearningRate = 1e-3,
    save_every: Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")] = 4.0,
    column: Column = "text",
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Teach the decoder of a run's BART to read what its denoiser makes of noise. Resumes where it stopped.

    A run with a decoder of its own goes on from that one. On little text or time, --start nano begins with one
    that can write already, if the run's BART is nano.

    Example: bartleby repair runs/stories-generator --out runs/repaired
    """
    from bartleby.console import say
    from bartleby.repair import RepairConfig
    from bartleby.repair_run import run_repair

    config = RepairConfig(
        steps=steps,
        layers=layers,
        own_readout=own_readout,
        quietest=quietest,
        noisiest=noisiest,
        conditioned=conditioned,
        copies=copies,
        dropout=dropout,
        tokens_per_batch=tokens_per_batch,
        learning_rate=learning_rate,
        checkpoint_minutes=save_every,
        seed=seed,
    )
    run_repair(
        config,
        run,
        out,
        data=data or [],
        start=start,
        column=column,
        device=device,
        as_json=json,
        say=say,
    )


def compress(
    data: Annotated[
        list[str],
        typer.Option(help="File, folder or Hugging Face dataset; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(help="Run folder: checkpoints, log and the finished model.")],
    window: Annotated[int, typer.Option(min=4, help="Tokens a text may have.")] = 32,
    vectors: Annotated[int, typer.Option(min=1, help="Latents of every text.")] = 16,
    vector_channels: Annotated[int, typer.Option(min=1, help="Channels of each.")] = 64,
    noise: Annotated[
        float,
        typer.Option(help="Largest noise on the latents in training, in standard deviations."),
    ] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    tokens_per_batch: TokensPerBatch = 2048,
    learning_rate: LearningRate = 1e-3,
    save_every: Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")] = 4.0,
    column: Column = "text",
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a Perceiver that makes a few latents of a text, whatever its length, and gives it back.

    The result is a model like any other: --model of every command. Resumes where it stopped.

    Example: bartleby compress --data stories.txt --out runs/compressed
    """
    from bartleby.compression import CompressionConfig
    from bartleby.compression_run import run_compression
    from bartleby.console import say

    config = CompressionConfig(
        window=window,
        vectors=vectors,
        vector_channels=vector_channels,
        noise=noise,
        steps=steps,
        tokens_per_batch=tokens_per_batch,
        learning_rate=learning_rate,
        checkpoint_minutes=save_every,
        seed=seed,
    )
    run_compression(
        config, data, out, model=model, column=column, device=device, as_json=json, say=say
    )


def doctor(
    run: Annotated[Path, typer.Argument(help="A run folder of bartleby train.")],
    device: Device = None,
    json: Json = False,
) -> None:
    """Say why a denoiser's run fails, or that it does not, with the number behind each answer."""
    from bartleby.console import say
    from bartleby.doctor import diagnose
    from bartleby.reports import doctor_report
    from bartleby.run_setup import open_run
    from bartleby.writing_decoder import load_decoder

    setup, denoiser = open_run(run, device=device, say=say)
    load_decoder(setup.autoencoder.bart, run)
    doctor_report(diagnose(setup, denoiser, say=say), as_json=json)


def study(
    data: Annotated[str, typer.Option(help="File, folder or Hugging Face dataset.")] = "wikitext-2",
    out: Annotated[Path, typer.Option(help="Folder of runs and report.")] = Path("runs/study"),
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Training time of each run at most. Default: 25, quick 0.2."),
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Epochs of each run at most.")] = 2.0,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="The rows that tell the story, on little text, in minutes."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this run of the matrix; may be repeated."),
    ] = None,
    tokens_per_batch: TokensPerBatch = 2048,
    column: Column = "text",
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train the published denoisers and ours alike, and report why some stall. Resumes where it stopped.

    Example: bartleby study --quick --data stories.txt
    """
    import dataclasses

    from bartleby.console import say
    from bartleby.reports import study_report
    from bartleby.study import StudySettings, quick_settings, run_study
    from bartleby.study_report import write_report

    settings = StudySettings(
        data=data,
        column=column,
        model=model or "nano",
        epochs=epochs,
        tokens_per_batch=tokens_per_batch,
        seed=seed,
    )
    settings = quick_settings(settings) if quick else settings
    if minutes is not None:
        settings = dataclasses.replace(settings, minutes=minutes)
    rows = run_study(settings, out, only=only, device=device)
    report = write_report(rows, dataclasses.asdict(settings), out)
    study_report(rows, as_json=json)
    say(f"report saved: {report} and {report.with_suffix('.md')}")


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    for command in (pretrain, train, repair, compress, doctor, study):
        app.command()(command)
