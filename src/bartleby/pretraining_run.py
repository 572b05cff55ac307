"""A whole pretraining run: data, training with a progress bar, validation, and the finished model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bartleby.autoencoder import Autoencoder, fit_latent_statistics
from bartleby.checkpoints import CHECKPOINTS, made_folder, read_json, replaced_folder, write_json
from bartleby.console import print_json
from bartleby.corpus import load_corpus, merge, spread
from bartleby.errors import UserError
from bartleby.evaluation.infilling import measure_infilling
from bartleby.evaluation.reconstruction import Summary, reconstruct, summarise
from bartleby.latents import STATISTICS_FILE, STATISTICS_TEXTS
from bartleby.messages import say
from bartleby.precision import network_dtype
from bartleby.pretraining import PRESETS, PretrainConfig, pretrain, run_tokenizer
from bartleby.processes import launched
from bartleby.run_log import RunLog, follow
from bartleby.tokenization import passages
from bartleby.training_loop import LoopState

RECORD_FILE = "pretraining.json"
QUICK_VALIDATION, FULL_VALIDATION = 100, 1000  # passages
READS = 0.95  # token accuracy in free-running reconstruction from which a decoder counts as reading its latents
COLLAPSED = 0.05  # effective rank over channels below which latents count as collapsed


def configure(preset: str, **changes: Any) -> PretrainConfig:
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
    say: Callable[[str], None] = say,
) -> None:
    """Trains, validates as it goes, and leaves an ordinary Hugging Face folder in `out/model`."""
    processes, here = launched(device)
    say = processes.speaking(say)
    made_folder(out / CHECKPOINTS)
    corpus = merge(load_corpus(source, column=column) for source in data)
    for note in corpus.notes:
        say(note)
    train, valid = corpus.split("train"), corpus.split("valid")
    precision = str(network_dtype(here)).removeprefix("torch.")
    say(
        f"{len(train):,} texts · {config.steps:,} steps of up to {config.tokens_per_batch:,} tokens"
        f" · {here}, {precision}{processes}"
    )
    tokenizer = processes.from_main(lambda: run_tokenizer(config, train, out))

    def observe(state: LoopState, log: RunLog) -> None:
        if state.step % validate_every == 0 and state.step < config.steps:
            _validate(config, state, tokenizer, valid, log, name=str(out), say=say)

    states = pretrain(
        config, train, out, tokenizer=tokenizer, device=here, processes=processes, say=say
    )
    last = follow(states, out, "pretrain", processes=processes, observe=observe)
    if processes.is_main:
        saved = out / "model" / RECORD_FILE
        if last.losses is None and saved.exists():
            say(f"'{out}' has already run its {config.steps:,} steps; to go on, raise --steps")
            if as_json:
                print_json(read_json(saved))
        else:
            names = [Path(source).name for source in data]
            record = finish(config, last, tokenizer, train, valid, data=names, out=out, say=say)
            _report(record, out, as_json=as_json, say=say)
    processes.wait()


def _report(record: dict, out: Path, *, as_json: bool, say: Callable[[str], None]) -> None:
    if as_json:
        print_json(record)
    else:
        print(Summary(**record["validation"]))
        print(record["verdict"])
    say(f"saved {out / 'model'}  →  try: bartleby noise --model {out / 'model'}")


def finish(
    config: PretrainConfig,
    last: LoopState,
    tokenizer: PreTrainedTokenizerBase,
    train: list[str],
    valid: list[str],
    *,
    data: list[str],
    out: Path,
    say: Callable[[str], None] = say,
) -> dict:
    """Measures the trained BART as it will be stored and writes `out/model`; returns the record saved with it."""
    # As it will be after loading.
    bart = last.network.to(getattr(torch, config.store)).float().eval()
    autoencoder = Autoencoder(
        bart, tokenizer, config.window, name=str(out), dtype=network_dtype(bart.device)
    )
    sample = list(passages(tokenizer, spread(train, STATISTICS_TEXTS), window=config.window))
    statistics = fit_latent_statistics(
        autoencoder, sample, source=f"train split of {', '.join(data)}", say=say
    )
    held_out = _held_out(tokenizer, valid, config.window, FULL_VALIDATION)
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
        tokenizer.save_pretrained(folder)
        write_json(folder / STATISTICS_FILE, statistics.to_json())
        write_json(folder / RECORD_FILE, record)
    return record


def verdict(token_accuracy: float, effective_rank: float, channels: int) -> str:
    """In words: does the decoder read its encoder?"""
    numbers = f"free-running token accuracy {token_accuracy:.1%}, effective rank {effective_rank:.1f} of {channels}"
    if effective_rank < max(2.0, COLLAPSED * channels):
        return f"COLLAPSED: the latents hardly differ from one another, the decoder ignores its encoder ({numbers})"
    if token_accuracy < READS:
        return f"NOT YET: the decoder does not reconstruct; train longer before building on these latents ({numbers})"
    return f"good: the decoder reads its encoder ({numbers})"


def _held_out(
    tokenizer: PreTrainedTokenizerBase, valid: list[str], window: int, count: int
) -> list[str]:
    """`count` passages of the validation texts, the same ones every time."""
    cut = list(passages(tokenizer, spread(valid, count), window=window))
    return spread(cut, count)


def _validate(
    config: PretrainConfig,
    state: LoopState,
    tokenizer: PreTrainedTokenizerBase,
    valid: list[str],
    log: RunLog,
    *,
    name: str,
    say: Callable[[str], None],
) -> None:
    bart = state.network.eval()
    autoencoder = Autoencoder(
        bart, tokenizer, config.window, name=name, dtype=network_dtype(bart.device)
    )
    held_out = _held_out(tokenizer, valid, config.window, QUICK_VALIDATION)
    summary = summarise([item for _, item in reconstruct(autoencoder, held_out, say=say)])
    rank = fit_latent_statistics(autoencoder, held_out, source="validation", say=say).effective_rank
    bart.train()
    say(f"step {state.step:,}: {verdict(summary.token_accuracy, rank, autoencoder.channels)}")
    row = {"step": state.step, **dataclasses.asdict(summary), "effective_rank": rank}
    log.append({**row, "seconds": round(log.elapsed, 2)}, kind="valid")
