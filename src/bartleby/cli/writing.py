"""The commands that write text: generate, edit, infill, interpolate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bartleby.cli.options import Beams, Column, Device, Json, Seed, read_texts_given

if TYPE_CHECKING:
    from bartleby.autoencoder import DecodeSettings
    from bartleby.sampling import SamplingSettings

Generator = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME_OR_FOLDER",
        help="A saved pipeline (folder or hub name) or a run of bartleby train. Default: the bundled generator.",
    ),
]
Count = Annotated[int, typer.Option("-n", "--number", min=1, help="How many texts.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Evaluations of the denoiser. Default, as below: the model's own."),
]
SamplerName = Annotated[
    str | None,
    typer.Option(help="ddpm, ddim, dpm++, sde-dpm++, unipc, or module:function of yours."),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Weight of classifier-free guidance by what is given, 0 to 100; 1 is none."),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Of the denoiser's tokens, 0.01 to 10: below 1 commits to likely ones sooner."
    ),
]
Bart = Annotated[
    str | None,
    typer.Option(
        metavar="NAME_OR_FOLDER",
        help="With a run: another BART to write with, instead of the one it was trained on and its own decoder.",
    ),
]
Handover = Annotated[
    float | None,
    typer.Option(
        help="Share of the timesteps, at the end, left out: the decoder reads from there. 0 to below 1."
    ),
]
DecoderTemperature = Annotated[
    float | None,
    typer.Option(help="At which the decoder draws its tokens, 0 to 10; 0 takes the likeliest."),
]
DecoderMinP = Annotated[
    float | None,
    typer.Option(
        "--decoder-min-p",
        help="Tokens less likely than this share of the likeliest, 0 to 1, are not drawn. In edit, infill "
        "and interpolate at least 0.1 by default.",
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many are written of each text; the one that reads best stays. In edit, infill and "
        "interpolate 16 by default.",
    ),
]
CHUNK = 256  # texts written before the first is printed: enough to batch similar lengths


def generate(
    context: typer.Context,
    number: Count = 5,
    prompt: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="What every text begins with.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Latents to write each text from, about as many tokens. Default: as in training.",
        ),
    ] = None,
    first: Annotated[
        int, typer.Option(min=0, help="Number of the first text, where others were written before.")
    ] = 0,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    handover: Handover = None,
    decoder_temperature: DecoderTemperature = None,
    decoder_min_p: DecoderMinP = None,
    candidates: Candidates = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the first text emerging, step by step.")
    ] = False,
    beams: Beams = 1,
    model: Generator = None,
    bart: Bart = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write new texts from pure noise, one a line.

    Example: bartleby generate -n 5 --prompt "The old man"
    """
    from bartleby.console import progress_bar, say
    from bartleby.errors import UserError
    from bartleby.pipeline import load_pipeline
    from bartleby.watching import watcher

    if guidance not in (None, 1) and prompt is None:
        raise UserError(
            f"guidance is {guidance:g}, but nothing is given that could guide; give a --prompt"
        )
    pipeline = load_pipeline(model, bart=bart, device=device)
    settings = _settings(pipeline.default_settings, context)
    decoding = _announce(settings, beams, seed)
    callback = None
    if watch:
        callback = watcher(
            pipeline, first, lambda step, text: say(f"  step {step:>3}  {text}"), decoding
        )
    empty = 0
    with progress_bar("generate", total=number) as bar:
        for start in range(first, first + number, CHUNK):
            written = pipeline(
                min(CHUNK, first + number - start),
                prompt=prompt,
                length=length,
                settings=settings,
                seed=seed,
                first=start,
                decoding=decoding,
                callback=callback,
            )
            for index, text in enumerate(written.texts):
                row = {"index": start + index, "text": text}
                if pipeline.compressor is None:
                    row["length"] = written.lengths[index] - 2  # tokens, without <s> and </s>
                _print(text, json, row)
            empty += sum(not text.strip() for text in written.texts)
            bar.advance(bar.task_ids[0], len(written.texts))
            callback = None
    _say_empty(empty, number)


def edit(
    context: typer.Context,
    text: Annotated[
        str | None, typer.Argument(help="Text to edit; '-' reads standard input, a text a line.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="0 gives the text back, 1 a new one of the same length.")
    ] = 0.5,
    file: Annotated[Path | None, typer.Option(help="Edit every text of a file.")] = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    temperature: Temperature = None,
    handover: Handover = None,
    decoder_temperature: DecoderTemperature = None,
    decoder_min_p: DecoderMinP = None,
    candidates: Candidates = None,
    beams: Beams = 1,
    column: Column = "text",
    model: Generator = None,
    bart: Bart = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Noise a text to STRENGTH of the way and denoise it: another text, more or less like it.

    Example: bartleby edit "The dog is in the garden." --strength 0.4
    """
    from bartleby.pipeline import load_pipeline

    if (text is None) == (file is None):
        raise typer.BadParameter("give a TEXT or --file")
    texts = read_texts_given(text, file, column, None)
    pipeline = load_pipeline(model, bart=bart, device=device)
    settings = _settings(pipeline.editing_settings, context)
    decoding = _announce(settings, beams, seed)
    written = pipeline.edit(texts, strength, settings=settings, seed=seed, decoding=decoding)
    for source, edited in zip(texts, written.texts, strict=True):
        _print(edited, json, {"text": source, "edited": edited, "strength": strength})
    _say_empty(sum(not edited.strip() for edited in written.texts), len(texts))


def infill(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="A text with <mask> where words are missing.")],
    number: Count = 1,
    gap: Annotated[
        list[int] | None,
        typer.Option(
            metavar="<int>",
            min=1,
            help="Tokens for each <mask>; may be given for every one. Default: as many as it takes, about 4.",
        ),
    ] = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    handover: Handover = None,
    decoder_temperature: DecoderTemperature = None,
    decoder_min_p: DecoderMinP = None,
    candidates: Candidates = None,
    beams: Beams = 1,
    model: Generator = None,
    bart: Bart = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fill in the <mask> of a text; the given words stay as they are.

    Example: bartleby infill "The <mask> sat on the mat." -n 3
    """
    from bartleby.pipeline import load_pipeline

    pipeline = load_pipeline(model, bart=bart, device=device)
    settings = _settings(pipeline.editing_settings, context)
    decoding = _announce(settings, beams, seed)
    gaps = gap[0] if gap and len(gap) == 1 else gap
    written = pipeline.infill(
        text, number, gap=gaps, settings=settings, seed=seed, decoding=decoding
    )
    for filled in written.texts:
        _print(filled, json, {"text": text, "filled": filled})
    _say_empty(sum(not filled.strip() for filled in written.texts), number)


def interpolate(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="The text to start from.")],
    last: Annotated[str, typer.Argument(help="The text to end at.")],
    number: Annotated[
        int, typer.Option("-n", "--number", "--steps", min=2, help="Texts, both ends included.")
    ] = 7,
    strength: Annotated[
        float, typer.Option(help="Noise in the middle, 0 to 1: more is more fluent, less alike.")
    ] = 0.5,
    steps: Annotated[
        int | None,
        typer.Option("--denoising-steps", min=1, help="Evaluations of the denoiser."),
    ] = None,
    sampler: SamplerName = None,
    temperature: Temperature = None,
    handover: Handover = None,
    decoder_temperature: DecoderTemperature = None,
    decoder_min_p: DecoderMinP = None,
    candidates: Candidates = None,
    beams: Beams = 1,
    model: Generator = None,
    bart: Bart = None,
    device: Device = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Texts on the way from one to another, through the latents between them.

    Example: bartleby interpolate "The dog is asleep." "I have to go home now." --steps 7
    """
    from bartleby.pipeline import load_pipeline

    pipeline = load_pipeline(model, bart=bart, device=device)
    settings = _settings(pipeline.editing_settings, context)
    decoding = _announce(settings, beams, seed)
    written = pipeline.interpolate(
        first, last, number, strength=strength, settings=settings, seed=seed, decoding=decoding
    )
    for index, text in enumerate(written.texts):
        _print(text, json, {"weight": index / (number - 1), "text": text})
    _say_empty(sum(not text.strip() for text in written.texts), number)


def defaults(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A finished run folder of bartleby train.")],
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Whose decoder writes from now on: of bartleby repair, another run, 'nano'; 'none': the BART's own.",
        ),
    ] = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    temperature: Temperature = None,
    handover: Handover = None,
    decoder_temperature: DecoderTemperature = None,
    decoder_min_p: DecoderMinP = None,
    candidates: Candidates = None,
    json: Json = False,
) -> None:
    """Show or choose what a run writes with where nothing else is asked for: its decoder, its sampling settings.

    Those not named stay. generate, benchmark and all else that writes then use them.

    Example: bartleby defaults runs/generator --decoder runs/repaired --steps 20 --handover 0.6
    """
    from bartleby.console import print_json, say
    from bartleby.defaults import NO_DECODER, read_defaults, write_defaults

    own = read_defaults(run)
    settings = _settings(own, context)
    if decoder or settings != own:
        write_defaults(run, settings, decoder=decoder)
    if decoder:
        whose = "its BART's decoder" if decoder == NO_DECODER else f"the decoder of '{decoder}'"
        say(f"'{run}' writes with {whose}")
    if json:
        print_json(dataclasses.asdict(settings))
    else:
        for name, value in dataclasses.asdict(settings).items():
            print(f"{name:<20} {value}")


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    for command in (generate, edit, infill, interpolate, defaults):
        app.command()(command)


def _settings(own: SamplingSettings, context: typer.Context) -> SamplingSettings:
    """The model's own settings, with every option of the command that is named like one and was given."""
    names = {field.name for field in dataclasses.fields(own)}
    given = {
        name: value for name, value in context.params.items() if name in names and value is not None
    }
    return dataclasses.replace(own, **given)


def _announce(settings: SamplingSettings, beams: int, seed: int) -> DecodeSettings:
    """Says what is going to be done; returns how texts are decoded."""
    from bartleby.console import say

    decoding = settings.decoding(num_beams=beams)
    say(
        f"{settings.sampler}, {settings.steps} steps · guidance {settings.guidance:g} · "
        f"temperature {settings.temperature:g} · handover {settings.handover:g} · "
        f"best of {settings.candidates} · seed {seed} · decoding {decoding}"
    )
    return decoding


def _print(text: str, as_json: bool, row: dict) -> None:
    from bartleby.console import print_json

    if as_json:
        print_json(row)
    else:
        print(text.replace("\n", " "))  # one a line


def _say_empty(empty: int, number: int) -> None:
    from bartleby.console import say

    if empty:
        say(f"{empty:,} of {number:,} texts are empty")
