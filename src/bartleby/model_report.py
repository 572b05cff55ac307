"""What a model is: a BART, or a generator with all its parts."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from bartleby.autoencoder import Autoencoder
from bartleby.checkpoints import read_json
from bartleby.console import WIDTH, print_json
from bartleby.denoisers.build import parameters
from bartleby.errors import UserError
from bartleby.loading import GENERATOR
from bartleby.messages import say
from bartleby.pipeline import PIPELINE_FILE, TextDiffusionPipeline, load_pipeline
from bartleby.run_folder import is_run, read_record
from bartleby.schedules import target_of
from bartleby.writing_decoder import decoder_weights


def describe(autoencoder: Autoencoder) -> dict:
    """What a model is, as plain values."""
    config = autoencoder.bart.config
    folder = autoencoder.folder
    files = folder.glob("*.safetensors") if folder else ()
    statistics, compressor = autoencoder.statistics, autoencoder.compressor
    length = (
        f"tokens (up to {autoencoder.window})"
        if compressor is None
        else f"{autoencoder.latents_of(0)} of up to {autoencoder.window} tokens"
    )
    return {
        "model": autoencoder.name,
        "stored": str(folder.resolve()) if folder else None,
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "parameters": sum(parameter.numel() for parameter in autoencoder.bart.parameters()),
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "channels": autoencoder.channels,
        "vocabulary": len(autoencoder.tokenizer),
        "window": autoencoder.window,
        "positions": config.max_position_embeddings,
        "latents": ["texts", autoencoder.channels, length],
        "compute": str(autoencoder.dtype).removeprefix("torch."),
        "statistics": None
        if statistics is None
        else {
            "source": statistics.source,
            "tokens": statistics.tokens,
            "effective_rank": statistics.effective_rank,
            "std_smallest": float(statistics.std.min()),
            "std_median": float(statistics.std.median()),
            "std_largest": float(statistics.std.max()),
        },
        "pretraining": _pretraining_record(folder) if folder else None,
    }


def _pretraining_record(folder: Path) -> dict | None:
    path = folder / "pretraining.json"
    return read_json(path) if path.exists() else None


def info_report(autoencoder: Autoencoder, *, as_json: bool) -> None:
    """`describe`, one line a fact; below it the generator that a BART has in its folder, as the bundled one has."""
    facts = describe(autoencoder)
    beside = autoencoder.folder and autoencoder.folder / GENERATOR
    generator = _generator(beside) if beside else None
    if as_json:
        own = describe_generator(generator, beside) if generator and beside else None
        print_json(facts | {"generator": own})
        return
    statistics, record = facts.pop("statistics"), facts.pop("pretraining")
    facts["latents"] = "[" + ", ".join(map(str, facts["latents"])) + "]"
    _lines(facts)
    if statistics is None:
        _line("statistics", "none saved with this model")
    else:
        _line(
            "statistics",
            f"{statistics['tokens']:,} tokens of {statistics['source']}; std {statistics['std_smallest']:.2f} to "
            f"{statistics['std_largest']:.2f}",
        )
        _line("effective rank", f"{statistics['effective_rank']:.1f} of {facts['channels']}")
    if record:
        _line(
            "trained on",
            f"{', '.join(record['data'])}: {record['steps']:,} steps, {record['tokens']:,} tokens",
        )
        result = record["validation"]
        _line(
            "validation",
            f"{result['texts']:,} texts: exact {result['exact']:.1%}, tokens {result['token_accuracy']:.2%}",
        )
    if generator and beside:
        print()
        generator_report(generator, beside, as_json=False)


def is_generator(model: str | Path) -> bool:
    """Whether this names a run of `bartleby train` or a saved pipeline, and no BART."""
    folder = Path(model).expanduser()
    return is_run(folder) or (folder / PIPELINE_FILE).exists()


def describe_generator(pipeline: TextDiffusionPipeline, folder: Path) -> dict[str, Any]:
    """What a generator is, as plain values."""
    counts = np.array(pipeline.config.length_counts or [])
    spread = np.repeat(np.arange(len(counts)), counts)
    trained = read_record(folder)
    return {
        "model": str(folder),
        "denoiser": type(pipeline.denoiser).__name__,
        "parameters": parameters(pipeline.denoiser),
        "predicts": target_of(pipeline.scheduler),
        "timesteps": pipeline.scheduler.config.num_train_timesteps,
        "channels": pipeline.denoiser.config.channels,
        "window": pipeline.config.window,
        "lengths": None
        if len(spread) == 0
        else np.percentile(spread, (5, 50, 95)).astype(int).tolist(),
        "decoder_layers": pipeline.bart.config.decoder_layers,
        "decoder_parameters": sum(w.numel() for w in decoder_weights(pipeline.bart).values()),
        "sampling": dataclasses.asdict(pipeline.default_settings),
        "trained": trained
        and {
            "bart": trained["config"]["autoencoder"]["model"],
            "data": trained["config"]["data"]["source"],
            "schedule": trained["config"]["objective"]["schedule"],
            "steps": trained["steps"],
            "tokens": trained["tokens"],
            "seconds": trained["seconds"],
        },
    }


def _generator(folder: Path) -> TextDiffusionPipeline | None:
    """The generator in this folder; None if there is none, or, which is said, none that can be loaded."""
    if not is_generator(folder):
        return None
    try:
        return load_pipeline(folder)
    except UserError as error:
        say(f"its generator cannot be loaded: {error}")
        return None


def generator_report(pipeline: TextDiffusionPipeline, folder: Path, *, as_json: bool) -> None:
    """`describe_generator`, one line a fact."""
    facts = describe_generator(pipeline, folder)
    if as_json:
        print_json(facts)
        return
    trained, sampling, lengths = (facts.pop(name) for name in ("trained", "sampling", "lengths"))
    _lines(facts)
    if lengths:
        _line("lengths", f"{lengths[1]} tokens, 90% of them {lengths[0]} to {lengths[2]}")
    if trained:
        seconds = trained["seconds"]
        took = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
        _line(
            "trained on",
            f"{trained['data']}, latents of '{trained['bart']}', {trained['schedule']} schedule: {trained['steps']:,} "
            f"steps, {trained['tokens']:,} tokens, {took}",
        )
    _line("sampled with", ", ".join(f"{key} {value}" for key, value in sampling.items()))


def _lines(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else "unknown" if value is None else value
        if name in ("model", "stored"):  # to be copied, so in one piece
            print(f"{name:<19} {shown}")
        else:
            _line(name.replace("_", " "), str(shown))


def _line(name: str, fact: str) -> None:
    """Folded to the terminal's 80 columns, names in it (a corpus's, a model's) in one piece."""
    print(
        textwrap.fill(
            f"{name:<19} {fact}",
            WIDTH,
            subsequent_indent=" " * 20,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
