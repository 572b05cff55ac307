"""The commands about a BART and its latents: noise, reconstruct, info, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bartleby.cli.options import (
    Beams,
    Column,
    CurvePlot,
    Device,
    Json,
    Model,
    Seed,
    SpacedLevels,
    Split,
    Window,
    read_texts_given,
)


def noise(
    text: Annotated[
        str | None,
        typer.Argument(help="Text to noise; '-' reads standard input. Default: a pangram."),
    ] = None,
    levels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEVELS", help="Numbers or ranges first:last:step. Default: 0.1 0.5 1.0."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Run over every text of a file and print the curve.")
    ] = None,
    plot: CurvePlot = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Levels in standard deviations of the latents.")
    ] = False,
    denoiser: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Also denoise: a run folder of bartleby train, or 'nano', the bundled.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N texts of --file.")
    ] = None,
    beams: Beams = 1,
    column: Column = "text",
    split: Split = False,
    window: Window = None,
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Add Gaussian noise to a text's latents and decode them.

    Example: bartleby noise "It was a bright cold day in April." --levels 0.1 0.5 1.0
    """
    from bartleby.autoencoder import DecodeSettings
    from bartleby.console import check_plot_path, say, track
    from bartleby.loading import BUNDLED, load_autoencoder
    from bartleby.noise import PANGRAM, PUBLISHED_LEVELS, curve, noise_experiment, parse_levels
    from bartleby.reports import noise_report, print_curve
    from bartleby.restoration import load_trained_denoiser

    if text is not None and file is not None:
        raise typer.BadParameter("give a TEXT or --file, not both")
    if denoiser is not None and relative:
        raise typer.BadParameter("--denoiser works on raw latents, not with --relative")
    numbers = parse_levels(levels) if levels else list(PUBLISHED_LEVELS)
    if plot:
        check_plot_path(plot)
    texts = read_texts_given(text if text is not None else PANGRAM, file, column, limit)
    autoencoder = load_autoencoder(model, window=window, device=device)
    texts = autoencoder.split(texts) if split else texts
    settings = DecodeSettings(num_beams=beams)
    restore = None
    if denoiser is not None:
        bundled = denoiser == BUNDLED
        restore = load_trained_denoiser(None if bundled else denoiser, autoencoder).restore
    say(f"model {autoencoder.name} · seed {seed} · decoding {settings}")
    noised = noise_experiment(
        autoencoder,
        texts,
        numbers,
        relative=relative,
        seed=seed,
        settings=settings,
        restore=restore,
        say=say,
    )
    results = list(track(noised, "noise", total=len(texts) * len(numbers)))
    noise_report(results, as_json=json, many=len(texts) > 1)
    if plot:
        from bartleby.plots import plot_noise_curve

        name = Path(autoencoder.name).name
        plot_noise_curve(curve(results), plot, model=name, texts=len(texts), relative=relative)
        say(f"plot saved: {plot}")
    elif len(texts) > 1 and json:
        print_curve(curve(results), to=say)


def reconstruct(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="Texts, one a line or row; '-' reads standard input."
        ),
    ],
    show: Annotated[
        int, typer.Option(min=0, help="How many imperfect reconstructions to print.")
    ] = 3,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N texts.")] = None,
    beams: Beams = 1,
    column: Column = "text",
    split: Split = False,
    window: Window = None,
    model: Model = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Send texts through the latents and back, and measure what returns.

    Nothing here is random: the seed is accepted and has no effect.

    Example: bartleby reconstruct stories.txt --limit 100
    """
    from bartleby.autoencoder import DecodeSettings
    from bartleby.console import say, track
    from bartleby.evaluation.reconstruction import reconstruct as reconstruct_texts
    from bartleby.loading import load_autoencoder
    from bartleby.reports import reconstruction_report

    texts = (
        read_texts_given("-", None, column, limit)
        if source == "-"
        else read_texts_given(None, Path(source), column, limit)
    )
    autoencoder = load_autoencoder(model, window=window, device=device)
    texts = autoencoder.split(texts) if split else texts
    settings = DecodeSettings(num_beams=beams)
    say(f"model {autoencoder.name} · {len(texts):,} texts · decoding {settings}")
    results = dict(
        track(
            reconstruct_texts(autoencoder, texts, settings, say=say),
            "reconstruct",
            total=len(texts),
        )
    )
    reconstruction_report([results[index] for index in range(len(texts))], as_json=json, show=show)


def info(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A BART (hub name or folder), a run or a pipeline. Default: the bundled nano.",
        ),
    ] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Say what a model is: sizes, window, shape and statistics of its latents, where it is stored."""
    from bartleby.loading import load_autoencoder
    from bartleby.model_report import generator_report, info_report, is_generator
    from bartleby.pipeline import load_pipeline

    if name is not None and model is not None:
        raise typer.BadParameter("give a MODEL or --model, not both")
    chosen = name or model
    if chosen and is_generator(chosen):
        generator_report(load_pipeline(chosen), Path(chosen).expanduser(), as_json=json)
    else:
        info_report(load_autoencoder(chosen), as_json=json)


def demo(
    plot: Annotated[Path, typer.Option(help="Where to save the plot.")] = Path("noise-curve.png"),
    model: Model = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """A tour in a minute: a reconstruction, the noise experiment, a plot, texts from noise."""
    from bartleby.demo import run_demo

    run_demo(model, plot=plot, seed=seed, as_json=json)


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command(cls=SpacedLevels)(noise)
    for command in (reconstruct, info, demo):
        app.command()(command)
