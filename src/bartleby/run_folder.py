"""The folder of a run of `bartleby train`: what lies in it, and what can be told without opening its data.

config.json              as the run was begun; from the first moment
checkpoints/             to go on from
log.jsonl, tensorboard/  its curves
denoiser/, scheduler/    what it made; from here on once it has finished
latent_statistics.json   mean and deviation that normalise its latents, if any do
lengths.json             how many of its passages have 0, 1, 2, ... tokens
training.json            the record, written last: with it the run is finished, until it is made longer
sampling.json            what it writes with where nothing else is asked for, once that is chosen
decoder.int8.safetensors a decoder of its own (writing_decoder.py), once it has one
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bartleby.checkpoints import CHECKPOINTS, read_json
from bartleby.errors import UserError

CONFIG_FILE = "config.json"
DENOISER, SCHEDULER = "denoiser", "scheduler"
LENGTHS_FILE = "lengths.json"
RECORD_FILE = "training.json"
SAMPLING_FILE = "sampling.json"


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder, or is finished."""
    # A saved BART has a config.json as well, other trainings have checkpoints, and a finished run needs none.
    begun = all((folder / name).exists() for name in (CONFIG_FILE, CHECKPOINTS))
    return begun or (folder / RECORD_FILE).exists()


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a finished run left of itself; None if it is not finished."""
    path = folder / RECORD_FILE
    return read_json(path) if path.exists() else None


def finished_record(folder: Path) -> dict[str, Any]:
    """The same; UserError that names what an unfinished run lacks."""
    for part in (DENOISER, SCHEDULER, LENGTHS_FILE, RECORD_FILE):
        if not (folder / part).exists():
            raise UserError(f"'{folder}' is no finished run: {part} is missing")
    return read_json(folder / RECORD_FILE)
