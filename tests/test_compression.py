"""The compressor: a latent space like any other, of K latents, from training to generated text."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from conftest import TEXTS, WINDOW, quiet

from bartleby.compression import CompressionConfig, new_compressor, train_compressor
from bartleby.compressor import Compressor
from bartleby.config import config_from_dict
from bartleby.errors import UserError
from bartleby.loading import load_autoencoder
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.sampling import SamplingSettings
from bartleby.training_run import run_training

CONFIG = CompressionConfig(
    window=24, vectors=5, vector_channels=12, width=32, layers=1, heads=2,
    steps=12, tokens_per_batch=256, warmup_steps=2, learning_rate=3e-3, checkpoint_minutes=0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def as_it_was(autoencoder):
    """Training a compressor freezes the BART, which the tests of all files share: it learns again afterwards."""
    learned = {weight: weight.requires_grad for weight in autoencoder.bart.parameters()}
    yield
    for weight, learns in learned.items():
        weight.requires_grad_(learns)


@pytest.fixture
def compressed(autoencoder):
    """The tiny BART with an untrained compressor."""
    compressor = new_compressor(CONFIG, autoencoder, TEXTS).eval()
    return dataclasses.replace(autoencoder, compressor=compressor, window=CONFIG.window)


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    """A finished run of `bartleby compress`."""
    from typer.testing import CliRunner

    from bartleby.cli import app

    out = tmp_path_factory.mktemp("compressed")
    (out / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    arguments = [
        "compress",
        "--model",
        model_folder,
        "--data",
        out / "texts.txt",
        "--out",
        out / "run",
    ]
    arguments += ["--window", 24, "--vectors", 6, "--vector-channels", 16, "--steps", 8, "--json"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["config"]["vectors"] == 6 and 0 <= record["validation"]["token_accuracy"] <= 1
    return out / "run" / "model"


def test_every_text_has_as_many_latents_and_company_changes_nothing(compressed):
    latents = compressed.encode(TEXTS[:9])
    assert latents.values.shape == (9, 12, 5) and latents.mask.all()
    deviation = latents.values.std(dim=1, unbiased=False)
    assert torch.allclose(deviation, torch.ones_like(deviation), atol=1e-3)
    for index in (0, 5):
        alone = compressed.encode(TEXTS[index : index + 1])
        assert torch.allclose(alone.values[0], latents.values[index], atol=1e-5)
    assert len(compressed.decode(latents)) == 9


def test_training_lowers_both_losses_and_leaves_bart_alone(autoencoder, tmp_path):
    before = {name: value.clone() for name, value in autoencoder.bart.state_dict().items()}
    config = dataclasses.replace(CONFIG, steps=60, checkpoint_minutes=9)
    states = list(train_compressor(config, autoencoder, TEXTS, tmp_path, say=quiet))
    assert states[-1].losses["latent_error"] < 0.5 * states[0].losses["latent_error"]
    assert (
        states[-1].losses["nats"] < states[0].losses["nats"] - 0.05
    )  # all that the untrained decoder can be helped
    after = autoencoder.bart.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(autoencoder, tmp_path):
    *_, whole = train_compressor(CONFIG, autoencoder, TEXTS, tmp_path / "whole", say=quiet)
    for state in train_compressor(CONFIG, autoencoder, TEXTS, tmp_path / "parts", say=quiet):
        if state.step == 5:
            break
    first, *_, resumed = train_compressor(CONFIG, autoencoder, TEXTS, tmp_path / "parts", say=quiet)
    assert first.step == 6
    straight = whole.network.state_dict()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(value, straight[name]), name
    other = dataclasses.replace(CONFIG, noise=0.1)
    with pytest.raises(UserError, match="was trained with noise = 0.5, not 0.1"):
        next(train_compressor(other, autoencoder, TEXTS, tmp_path / "whole", say=quiet))


def test_its_folder_is_a_model_of_every_command(cli, folder, tmp_path):
    facts = json.loads(cli("info", folder, "--json").stdout)
    assert facts["latents"] == ["texts", 16, "6 of up to 24 tokens"] and facts["statistics"]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS[:5]) + "\n")
    rows = cli("reconstruct", texts, "--model", folder, "--json").stdout.splitlines()
    assert len(rows) == 5
    result = cli("noise", TEXTS[0], "--model", folder, "--levels", 0.5)
    assert result.exit_code == 0, result.stderr
    short = cli("reconstruct", texts, "--model", folder, "--window", 16, "--json")
    assert short.exit_code == 0 and len(short.stdout.splitlines()) == 5, short.stderr
    wide = cli("reconstruct", texts, "--model", folder, "--window", WINDOW)
    assert wide.exit_code == 1 and "window is 32; this model reads 4 to 24" in wide.stderr
    options = ("--data", texts, "--out", tmp_path / "again", "--window", 24)
    again = cli("compress", "--model", folder, *options)
    assert again.exit_code == 1 and "is compressed already" in again.stderr


def test_from_training_to_saved_pipeline(folder, tiny_config, tmp_path, cli):
    """A transformer learns on compressed latents, and its pipeline is saved and loaded bit for bit."""
    tiny_config["autoencoder"] = {"model": str(folder)}
    tiny_config["denoiser"]["self_conditioning"] = True
    run_training(config_from_dict(tiny_config), tmp_path / "run", say=quiet)
    pipeline = TextDiffusionPipeline.from_run(tmp_path / "run")
    settings = SamplingSettings(steps=3)
    written = pipeline(4, settings=settings)
    assert written.lengths == [6] * 4
    assert written.texts[2:] == pipeline(2, settings=settings, first=2).texts
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert loaded(4, settings=settings).texts == written.texts
    rebuilt = load_autoencoder(folder).decode(pipeline.autoencoder.encode(TEXTS[:3]))
    assert len(rebuilt) == 3 and len(pipeline.edit(TEXTS[:3], 0.5, settings=settings).texts) == 3
    with pytest.raises(UserError, match="compressed latents do not have one"):
        pipeline(1, length=7, settings=settings)
    with pytest.raises(UserError, match="part of a text cannot be given in compressed"):
        pipeline.infill("The <mask> likes tea.", settings=settings)
    repaired = cli("repair", tmp_path / "run", "--out", tmp_path / "repaired")
    assert repaired.exit_code == 1 and "works on compressed latents" in repaired.stderr
    assert cli("doctor", tmp_path / "run").exit_code == 0


def test_what_needs_tokens_is_refused(folder, generator_config, tmp_path):
    generator_config["autoencoder"] = {"model": str(folder)}
    with pytest.raises(UserError, match="are compressed and belong to no token"):
        run_training(config_from_dict(generator_config), tmp_path / "run", say=quiet)


def test_a_damaged_or_foreign_compressor_is_named(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (weights,) = (broken / "compressor").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="is damaged"):
        load_autoencoder(broken)
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    Compressor(99, 5, 12, 24, 32, 1, 2).save_pretrained(foreign / "compressor")
    with pytest.raises(UserError, match="reads 99 channels, the BART beside it has 64"):
        load_autoencoder(foreign)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vectors": 0}, "vectors is 0"),
        ({"width": 33}, "must be a multiple of heads"),
        ({"noise": -1}, "noise is -1"),
        ({"tokens_per_batch": 8}, "a batch must hold a window"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
