"""A whole pretraining run: data, training with a progress bar, validation, and the finished model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from bartleby.autoencoder import STATISTICS_FILE, Autoencoder, fit_latent_statistics
from bartleby.checkpoints import made_folder, replaced_folder, write_json
from bartleby.console import print_json, progress_bar, say
from bartleby.corpus import load_corpus, merge
from bartleby.errors import UserError
from bartleby.evaluation.infilling import measure_infilling
from bartleby.evaluation.reconstruction import reconstruct, summarise
from bartleby.precision import chosen_device, network_dtype
from bartleby.pretrain import PRESETS, PretrainConfig, Progress, pretrain
from bartleby.run_log import LOG_EVERY, RunLog
from bartleby.tokenization import passages

QUICK_VALIDATION, FULL_VALIDATION = 100, 1000  # passages
STATISTICS_TEXTS = 5_000
READS = 0.95  # token accuracy in free-running reconstruction from which a decoder counts as reading its latents
COLLAPSED = 0.05  # effective rank over channels below which latents count as collapsed


def configure(preset: str, **changes: object) -> PretrainConfig:
    """The preset's configuration, with every change that is not None."""
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}' (known: {', '.join(PRESETS)})")
    return dataclasses.replace(
        PRESETS[preset], **{key: value for key, value in changes.items() if value is not None}
    )


def run_pretraining(
    config: PretrainConfig,
    data: list[str],
    out: Path,
    *,
    column: str = "text",
    device: str | None = None,
    validate_every: int = 500,
    as_json: bool = False,
) -> None:
    """Trains, validates as it goes, and leaves an ordinary Hugging Face folder in `out/model`."""
    device = chosen_device(device)
    made_folder(out / "checkpoints")
    corpus = merge(load_corpus(source, column=column) for source in data)
    for note in corpus.notes:
        say(note)
    train, valid = corpus.split("train"), corpus.split("valid")
    precision = str(network_dtype(device)).removeprefix("torch.")
    say(
        f"{len(train):,} texts · {config.steps:,} steps of up to {config.tokens_per_batch:,} tokens"
        f" · {device}, {precision}"
    )
    last, log = None, None
    with progress_bar("pretrain", total=config.steps) as bar:
        for progress in pretrain(config, train, out, device=device, say=say):
            last = progress
            if progress.loss is None:
                break
            if log is None:
                log, tokens_before = RunLog(out, step=progress.step - 1), progress.tokens
            rate = (progress.tokens - tokens_before) / max(log.elapsed - log.seconds, 1e-9)
            bar.update(
                bar.task_ids[0],
                completed=progress.step,
                note=f" loss {progress.loss:.3f} · {rate:,.0f} tokens/s",
            )
            if progress.step % LOG_EVERY == 0:
                _log(log, progress, rate)
            if progress.step % validate_every == 0 and progress.step < config.steps:
                _validate(config, progress, valid, log, name=str(out))
        if log:
            log.close()
    if last.loss is None and (out / "model").exists():
        say(f"'{out}' has already run its {config.steps:,} steps; to go on, raise --steps")
        return
    record = finish(
        config, last, train, valid, data=[Path(source).name for source in data], out=out
    )
    if as_json:
        print_json(record)
    else:
        result = record["validation"]
        print(
            f"exact {result['exact']:.1%} · tokens {result['token_accuracy']:.2%} · BLEU {result['bleu']:.1f}"
        )
        print(record["verdict"])
    say(f"saved {out / 'model'}  →  try: bartleby noise --model {out / 'model'}")


def finish(
    config: PretrainConfig,
    last: Progress,
    train: list[str],
    valid: list[str],
    *,
    data: list[str],
    out: Path,
) -> dict:
    """Measures the trained BART as it will be stored and writes `out/model`; returns the record saved with it."""
    bart = last.bart.to(getattr(torch, config.store)).float().eval()  # as it will be after loading
    autoencoder = Autoencoder(
        bart, last.tokenizer, config.window, name=str(out), dtype=network_dtype(bart.device)
    )
    sample = list(passages(last.tokenizer, spread(train, STATISTICS_TEXTS), window=config.window))
    statistics = fit_latent_statistics(
        autoencoder, sample, source=f"train split of {', '.join(data)}", say=say
    )
    held_out = _held_out(last, valid, config.window, FULL_VALIDATION)
    summary = summarise([item for _, item in reconstruct(autoencoder, held_out, say=say)])
    record = {
        "data": data,
        "steps": last.step,
        "tokens": last.tokens,
        "config": dataclasses.asdict(config),
        "validation": dataclasses.asdict(summary),
        "infilling": dataclasses.asdict(measure_infilling(autoencoder, held_out)),
        "effective_rank": statistics.effective_rank,
        "verdict": verdict(summary.token_accuracy, statistics.effective_rank, autoencoder.channels),
    }
    with replaced_folder(out / "model") as folder:
        bart.to(getattr(torch, config.store)).save_pretrained(folder)
        last.tokenizer.save_pretrained(folder)
        write_json(folder / STATISTICS_FILE, statistics.to_json())
        write_json(folder / "pretraining.json", record)
    return record


def verdict(token_accuracy: float, effective_rank: float, channels: int) -> str:
    """In words: does the decoder read its encoder?"""
    numbers = f"free-running token accuracy {token_accuracy:.1%}, effective rank {effective_rank:.1f} of {channels}"
    if effective_rank < max(2.0, COLLAPSED * channels):
        return f"COLLAPSED: the latents hardly differ from one another, the decoder ignores its encoder ({numbers})"
    if token_accuracy < READS:
        return f"NOT YET: the decoder does not reconstruct; train longer before building on these latents ({numbers})"
    return f"good: the decoder reads its encoder ({numbers})"


def _held_out(progress: Progress, valid: list[str], window: int, count: int) -> list[str]:
    """`count` passages of the validation texts, the same ones every time."""
    cut = list(passages(progress.tokenizer, spread(valid, count), window=window))
    return spread(cut, count)


def spread(texts: list[str], count: int) -> list[str]:
    """`count` texts at even distances, so that every source of a merged corpus is in the sample."""
    if len(texts) <= count:
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]


def _validate(config, progress: Progress, valid: list[str], log: RunLog, *, name: str) -> None:
    progress.bart.eval()
    autoencoder = Autoencoder(
        progress.bart,
        progress.tokenizer,
        config.window,
        name=name,
        dtype=network_dtype(progress.bart.device),
    )
    held_out = _held_out(progress, valid, config.window, QUICK_VALIDATION)
    summary = summarise([item for _, item in reconstruct(autoencoder, held_out, say=say)])
    rank = fit_latent_statistics(autoencoder, held_out, source="validation", say=say).effective_rank
    progress.bart.train()
    say(f"step {progress.step:,}: {verdict(summary.token_accuracy, rank, autoencoder.channels)}")
    row = {"step": progress.step, **dataclasses.asdict(summary), "effective_rank": rank}
    log.append({**row, "seconds": round(log.elapsed, 2)}, kind="valid")


def _log(log: RunLog, progress: Progress, rate: float) -> None:
    row = {
        "step": progress.step,
        "loss": progress.loss,
        "tokens": progress.tokens,
        "learning_rate": progress.learning_rate,
        "tokens_per_second": round(rate),
        "seconds": round(log.elapsed, 2),
    }
    log.append(row, kind="train")
