"""A denoiser of one's own goes through every command that ours do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

OWN = """
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

import bartleby


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width, 1))  # a name that 8-bit weights give something else

    def forward(self, hidden):
        return hidden / hidden.square().mean(dim=1, keepdim=True).add(1).sqrt() * self.scale


class Convolution(bartleby.Denoiser):
    length_multiple = 8

    @register_to_config
    def __init__(self, channels: int = 8, width: int = 16):
        super().__init__()
        self.time = nn.Embedding(1000, width)
        self.enter, self.leave = nn.Conv1d(channels, width, 3, padding=1), nn.Conv1d(width, channels, 1)
        self.norm = Norm(width)

    def forward(self, sample, timestep, mask=None):
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        assert sample.shape[-1] % self.length_multiple == 0
        hidden = self.enter(sample) + self.time(timestep)[:, :, None]
        return bartleby.DenoiserOutput(sample=self.leave(self.norm(hidden).relu()))


class Halved(Convolution):
    def forward(self, sample, timestep, mask=None):
        return bartleby.DenoiserOutput(sample=sample[:, :, ::2])


class Failing(Convolution):
    def forward(self, sample, timestep, mask=None):
        raise RuntimeError("no idea")


class Forgetful(Convolution):
    def __init__(self, channels=8, width=16):
        super().__init__(channels)


not_one = nn.Conv1d
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The working folder holds own_networks.py."""
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)


def toml(tables: dict) -> str:
    lines = []
    for table, keys in tables.items():
        lines.append(f"[{table}]")
        for key, value in keys.items():
            inline = (
                ", ".join(f"{name} = {json.dumps(item)}" for name, item in value.items())
                if isinstance(value, dict)
                else ""
            )
            lines.append(
                f"{key} = {'{' + inline + '}' if isinstance(value, dict) else json.dumps(value)}"
            )
    return "\n".join(lines)


def trained(cli, tables, name="Convolution", **keys):
    tables["denoiser"] = {"name": f"own_networks:{name}", **keys}
    Path("own.toml").write_text(toml(tables))
    return cli("train", "own.toml", "--out", "run", "--json")


def test_it_trains_is_doctored_restores_and_writes(own, cli, tiny_config):
    result = trained(cli, tiny_config, options={"width": 24})
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 12
    saved = json.loads(Path("run/denoiser/config.json").read_text())
    assert saved["width"] == 24 and saved["module_and_class"] == "own_networks:Convolution"
    sys.modules.pop("own_networks")  # as in another process
    model = tiny_config["autoencoder"]["model"]
    for command in (
        ("doctor", "run"),
        ("noise", "Tom saw the sea?", "--model", model, "--denoiser", "run"),
        ("generate", "-n", 2, "--model", "run", "--steps", 3, "--prompt", "Tom saw"),
        ("infill", "Tom <mask> the sea.", "--model", "run", "--steps", 3),
        ("repair", "run", "--out", "repaired", "--steps", 2),
    ):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.stderr)
    again = trained(cli, tiny_config, options={"width": 24})
    assert "has already run" in again.stderr


def test_its_pipeline_is_saved_and_loaded(own, cli, tiny_config):
    from bartleby import load_pipeline

    assert trained(cli, tiny_config).exit_code == 0
    pipeline = load_pipeline("run")
    texts = pipeline(2, seed=3).texts
    pipeline.save_pretrained("saved")
    assert load_pipeline("saved")(2, seed=3).texts == texts


def test_one_that_was_trained_elsewhere_can_be_loaded_anywhere(
    own, generator_run, cli, monkeypatch
):
    monkeypatch.syspath_prepend(Path.cwd())
    from own_networks import Convolution

    from bartleby import load_pipeline
    from bartleby.pipeline import TextDiffusionPipeline

    parts = load_pipeline(generator_run)
    mine = Convolution(channels=parts.denoiser.config.channels)
    options = {key: parts.config[key] for key in ("window", "latent_statistics", "length_counts")}
    TextDiffusionPipeline(
        parts.bart, parts.tokenizer, mine, parts.scheduler, **options
    ).save_pretrained("mine")
    result = cli("generate", "-n", 1, "--model", Path("mine").absolute())
    assert result.exit_code == 0, result.stderr
    folder = Path("mine").absolute()
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder.parent)])
    monkeypatch.delitem(sys.modules, "own_networks")
    result = cli("generate", "-n", 1, "--model", folder)
    assert result.exit_code == 1
    assert "needs your own code" in result.stderr and "No module named" in result.stderr


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("Nobody", {}, "denoiser.name is 'own_networks:Nobody', which fails: module"),
        ("not_one", {}, "which is no subclass of bartleby.Denoiser"),
        ("Halved", {}, "'own_networks:Halved' makes [2, "),
        ("Failing", {}, "denoiser 'own_networks:Failing' fails: no idea"),
        ("Forgetful", {"options": {"width": 9}}, "does not remember width; decorate"),
        ("Convolution", {"options": {"depth": 9}}, "fails: "),
        ("Convolution", {"widths": [8]}, "widths and precondition are not for"),
        ("Convolution", {"self_conditioning": True}, "self_conditioning"),
    ],
)
def test_what_is_wrong_with_one_is_said(own, cli, tiny_config, name, keys, message):
    result = trained(cli, tiny_config, name, **keys)
    assert result.exit_code == 1
    assert message in result.stderr and len(result.stderr.strip().splitlines()[-1]) < 300


def test_options_are_for_ones_own(own, cli, tiny_config):
    tiny_config["denoiser"] = {"name": "transformer", "options": {"depth": 3}}
    Path("own.toml").write_text(toml(tiny_config))
    result = cli("train", "own.toml", "--out", "run")
    assert result.exit_code == 1
    assert "denoiser.options are for a network of your own, not for 'transformer'" in result.stderr
