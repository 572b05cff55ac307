"""Everything works on a device that is not the CPU, without one: see second_device.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path

from second_device import SecondDevice
import torch
from typer.testing import CliRunner

from bartleby import precision
from bartleby.cli import app
from conftest import TEXTS

torch.set_num_threads(1)
precision.DEVICES = (*precision.DEVICES, "meta")
out = Path(sys.argv[1])
(out / "texts.txt").write_text("\\n".join(TEXTS))


def bartleby(*arguments):
    arguments = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, [*arguments, "--device", "meta"], catch_exceptions=False)
    assert result.exit_code == 0, (arguments, result.output)
    return result.stdout


with SecondDevice():
    try:
        torch.ones(2, device="meta") + torch.ones(2)
    except RuntimeError as error:
        assert "two devices in add" in str(error)
    else:
        raise AssertionError("the second device refuses nothing")
    data = ("--data", out / "texts.txt")
    bartleby("pretrain", "--preset", "tiny", *data, "--out", out / "bart", "--steps", 3)
    bartleby("train", out / "generator.toml", "--out", out / "run")
    bartleby("repair", out / "run", "--out", out / "repaired", "--steps", 3, "--layers", 3, "--own-readout")
    bartleby("train", out / "mixture.toml", "--out", out / "mixture")
    bartleby("doctor", out / "run")
    bartleby("reconstruct", out / "texts.txt", "--model", out / "bart/model", "--limit", 8)
    bartleby("noise", "Tom saw the sea?", "--model", out / "bart/model", "--denoiser", out / "mixture")
    model = ("--model", out / "run", "--steps", 4)
    assert len(bartleby("generate", "-n", 3, *model).splitlines()) == 3
    bartleby("generate", "-n", 2, "--prompt", "Tom", "--guidance", 2, "--sampler", "sde-dpm++", *model)
    bartleby("infill", "The <mask> saw <mask>.", *model)
    bartleby("edit", "Tom saw a letter!", "--strength", 0.5, *model)
    bartleby("interpolate", "Tom saw a letter!", "Nobody likes the sea?", "--model", out / "run", "--steps", 3)
print("all of it")
"""
TABLES = """
[data]
source = "{out}/texts.txt"
[autoencoder]
model = "{out}/bart/model"
[training]
steps = 4
tokens_per_batch = 256
validate_every = 2
validation_texts = 4
"""
GENERATOR = """
[denoiser]
name = "token-transformer"
size = "tiny"
self_conditioning = true
[objective]
loss = "cross-entropy"
schedule = "tan"
conditioned = 0.5
candidates = 64
"""
MIXTURE = """
[denoiser]
name = "transformer"
size = "tiny"
precondition = "mixture"
"""


def test_nothing_mixes_devices(tmp_path):
    for name, tables in (("generator", GENERATOR), ("mixture", MIXTURE)):
        (tmp_path / f"{name}.toml").write_text(TABLES.format(out=tmp_path) + tables)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "BARTLEBY_CACHE": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all of it\n")
