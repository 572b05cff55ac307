"""Configurations: what is wrong is said in a line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from bartleby.config import TrainConfig, config_from_dict, config_to_dict, read_config
from bartleby.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_missing_keys_keep_their_defaults_and_overrides_win(tmp_path):
    path = written(tmp_path, '[denoiser]\nname = "text-unet"\n[training]\nepochs = 3\n')
    config = read_config(
        path, ["training.learning_rate=3e-4", "denoiser.widths=[8, 16, 24]", "data.source=a b.txt"]
    )
    assert config.denoiser.name == "text-unet" and config.training.epochs == 3.0
    assert config.training.learning_rate == 3e-4 and config.denoiser.widths == [8, 16, 24]
    assert config.data.source == "a b.txt" and config.objective == TrainConfig().objective
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_shipped_configurations_are_valid(path):
    read_config(path)


def test_there_are_shipped_configurations():
    assert len(CONFIGS) >= 5


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "training.lerning_rate=1",
            r"unknown key training.lerning_rate \(did you mean training.learning_rate\?\)",
        ),
        ("trainning.seed=1", r"unknown key trainning \(did you mean training\?\)"),
        ("training.learning_rate=fast", "training.learning_rate is 'fast'; it must be a number"),
        ("training.steps=1.5", "training.steps is 1.5; it must be a whole number"),
        ("training.steps=true", "training.steps is True; it must be a whole number"),
        ("training.steps=-1", "training.steps is -1; it must be at least 0"),
        ("training.learning_rate=nan", "training.learning_rate is nan"),
        ("training.epochs=inf", "training.epochs is inf"),
        ("training.ema_decay=1.0", "training.ema_decay is 1.0"),
        (
            "denoiser.self_conditioning=yes",
            "denoiser.self_conditioning is 'yes'; it must be true or false",
        ),
        ("denoiser.widths=[0]", r"denoiser.widths is \[0\]; it must be a list of whole numbers"),
        ("denoiser.precondition=magic", "denoiser.precondition is 'magic'"),
        ("objective.target=epsilon", r"objective.target is 'epsilon' \(known: noise, x0, v\)"),
        ("objective.loss_in=y", r"objective.loss_in is 'y' \(known: \(empty\), noise, x0, v\)"),
        ("objective.schedule=cos", "objective.schedule is 'cos'"),
        ("training.steps", "'training.steps' is no override; write table.key=value"),
    ],
)
def test_wrong_keys_and_values(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        read_config(written(tmp_path, ""), [override])


def test_contradictions_name_both_keys(tmp_path):
    overrides = ["denoiser.precondition=mixture", "objective.target=v"]
    with pytest.raises(UserError, match="objective.target is 'v', but denoiser.precondition"):
        read_config(written(tmp_path, ""), overrides)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="cannot read .*No such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(UserError, match="is not valid TOML"):
        read_config(written(tmp_path, "[training\nsteps = 1"))
    with pytest.raises(UserError, match="training is 3; it must be a table"):
        read_config(written(tmp_path, "training = 3"))
