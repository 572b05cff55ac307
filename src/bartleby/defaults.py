"""What a run writes with where nothing else is asked for: sampling settings and a decoder, in its folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from bartleby.checkpoints import read_json, replaced_file, write_json
from bartleby.config import config_from_dict
from bartleby.errors import UserError
from bartleby.loading import load_autoencoder
from bartleby.run_folder import RECORD_FILE, SAMPLING_FILE
from bartleby.sampling import SamplingSettings
from bartleby.writing_decoder import DECODER_FILE, decoder_folder, load_decoder

NO_DECODER = "none"


def settings_from(saved: dict[str, Any]) -> SamplingSettings:
    """The settings of a saved dictionary; those that it leaves out are `SamplingSettings`' own."""
    try:
        return SamplingSettings(**saved)
    except TypeError as error:
        raise UserError(f"the model's sampling settings are damaged: {error}") from None


def read_defaults(run: Path) -> SamplingSettings:
    """What a finished run of `bartleby train` is sampled with."""
    if not (run / RECORD_FILE).exists():
        raise UserError(f"'{run}' is no finished run of bartleby train")
    path = run / SAMPLING_FILE
    return settings_from(read_json(path) if path.exists() else {})


def write_defaults(
    run: Path, settings: SamplingSettings, *, decoder: str | Path | None = None
) -> None:
    """Makes these the run's.

    decoder: as in `decoder_folder`, copied to write with; NO_DECODER for that of the run's BART again. UserError, and
    nothing changed, if it does not fit that BART.
    """
    if str(decoder) == NO_DECODER:
        (run / DECODER_FILE).unlink(missing_ok=True)
    elif decoder is not None:
        folder = decoder_folder(decoder)
        trained = config_from_dict(read_json(run / RECORD_FILE)["config"]).autoencoder
        load_decoder(load_autoencoder(trained.model, device="cpu").bart, folder)
        with replaced_file(run / DECODER_FILE) as temporary:
            try:
                shutil.copy(folder / DECODER_FILE, temporary)
            except OSError as error:
                raise UserError(f"cannot copy '{folder}' to '{run}': {error.strerror}") from None
    write_json(run / SAMPLING_FILE, dataclasses.asdict(settings))
