"""A whole run of `bartleby repair`: data, training with a progress bar, measurement, the finished model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ModelMixin

from bartleby.batching import pad
from bartleby.checkpoints import (
    checkpoint_folders,
    made_folder,
    read_json,
    replaced_folder,
    write_json,
)
from bartleby.console import print_json
from bartleby.corpus import load_corpus, merge
from bartleby.errors import UserError
from bartleby.evaluation.latents import estimate_x0, noised
from bartleby.latents import STATISTICS_FILE, Latents
from bartleby.messages import say
from bartleby.processes import launched
from bartleby.reading import IGNORED, reading_loss
from bartleby.repair import RepairConfig, repair
from bartleby.run_log import follow
from bartleby.run_setup import Setup, open_run, validation_sample
from bartleby.writing_decoder import decoder_folder, load_decoder, save_decoder

VALIDATION_TEXTS = 128
STORE = torch.bfloat16  # format of the BART in `out/model`
GRID = (0.0, 0.2, 0.4, 0.6, 0.8)  # timesteps, as shares of all


def run_repair(
    config: RepairConfig,
    run: Path,
    out: Path,
    *,
    data: list[str],
    start: str | None = None,
    column: str = "text",
    device: str | None = None,
    as_json: bool = False,
    say: Callable[[str], None] = say,
) -> None:
    """Trains the decoder of the BART that `run` was trained on; leaves the whole BART in `out/model`.

    It begins with the decoder named `start`, else with the run's own if it has one (writing_decoder.py), else with
    that of its BART.

    data: texts for the steps that read latents as in pretraining; without any, the run's own.
    """
    processes, here = launched(device)
    say = processes.speaking(say)
    with processes.main_first():
        setup, denoiser = open_run(run, device=str(here), say=say)
    if setup.autoencoder.compressor is not None:
        raise UserError(f"'{run}' works on compressed latents; only BART's own can be repaired")
    load_decoder(setup.autoencoder.bart, decoder_folder(start) if start else run)
    own = setup.config.data
    sources = [(source, column) for source in data] or [(own.source, own.column)]
    corpus = merge(load_corpus(source, column=field) for source, field in sources)
    for note in corpus.notes:
        say(note)
    texts = corpus.split("train")
    texts = texts[: own.limit] if own.limit and not data else texts
    made_folder(out)
    before = _reading_before(setup, denoiser, out) if processes.is_main else None
    say(
        f"{config.steps:,} steps of up to {config.tokens_per_batch:,} tokens · estimates from timestep "
        f"{config.quietest:.0%} to {config.noisiest:.0%} · {config.copies:.0%} of the steps copy"
        f"{processes} · seed {config.seed}"
    )
    states = repair(config, setup, denoiser, texts, out, processes=processes, say=say)
    follow(states, out, "repair", processes=processes)
    if processes.is_main:
        bart = setup.autoencoder.bart.eval()
        bart.to(STORE).float()  # measured as it will be stored
        record = {
            "config": dataclasses.asdict(config),
            "nats_before": before,
            "nats_after": measure_reading(setup, denoiser),
            "data": [Path(source).name for source, _ in sources],
            "start": start and Path(start).name,
        }
        _finish(setup, out, record)
        _report(record, as_json=as_json)
    processes.wait()
    say(
        f"saved {out}  →  try: bartleby generate --model {run} --bart {out / 'model'}\n"
        f"to write with it from now on: bartleby defaults {run} --decoder {out}"
    )


def _report(record: dict, *, as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    print("nats a token, the decoder reading the denoiser's estimate (held-out texts)")
    print("timestep" + "".join(f"{share:>8.0%}" for share in GRID))
    for name in ("before", "after"):
        row = record[f"nats_{name}"]
        print(f"{name:<8}" + "".join(f"{row[str(share)]:>8.2f}" for share in GRID))


def _reading_before(setup: Setup, denoiser: ModelMixin, out: Path) -> dict[str, float]:
    """What the decoder reads before its repair: measured once, for the run may write with the repaired one later."""
    path = out / "nats_before.json"
    if not checkpoint_folders(out):
        write_json(path, measure_reading(setup, denoiser))
    return read_json(path)


@torch.inference_mode()
def measure_reading(setup: Setup, denoiser: ModelMixin) -> dict[str, float]:
    """Nats a token of held-out texts given the denoiser's estimates, at each timestep of `GRID`."""
    latents, sequences = validation_sample(setup.validation, VALIDATION_TEXTS)
    labels, _ = pad(sequences, IGNORED)
    nats = {}
    for share in GRID:
        timestep = round(share * (setup.scheduler.config.num_train_timesteps - 1))
        xt, _ = noised(setup.scheduler, latents, timestep, seed=0)
        x0, _ = estimate_x0(denoiser, setup.scheduler, xt, latents.mask, timestep)
        estimates = setup.autoencoder.readable(Latents(x0, latents.mask))
        nats[str(share)] = float(reading_loss(setup.autoencoder.bart, estimates, labels))
    return nats


def _finish(setup: Setup, out: Path, record: dict) -> None:
    """The BART in `out/model`, with what else lay in its folder and the record of its repair.

    Its decoder's layers alone in `out`: copied into the run's folder, the run writes with them.
    """
    autoencoder = setup.autoencoder
    save_decoder(autoencoder.bart, out)
    with replaced_folder(out / "model") as temporary:
        autoencoder.bart.to(STORE).save_pretrained(temporary)
        autoencoder.tokenizer.save_pretrained(temporary)
        for name in (STATISTICS_FILE, "pretraining.json"):
            if autoencoder.folder and (autoencoder.folder / name).exists():
                shutil.copy(autoencoder.folder / name, temporary / name)
        write_json(temporary / "repair.json", record)
    autoencoder.bart.float()
