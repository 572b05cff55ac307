"""Repairing a decoder: it learns to read estimates, forgets nothing it must keep, and resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from conftest import quiet
from safetensors.torch import load_file

from bartleby.checkpoints import made_folder
from bartleby.errors import UserError
from bartleby.loading import load_autoencoder
from bartleby.repair import RepairConfig, _dropout, repair
from bartleby.repair_run import GRID, measure_reading
from bartleby.run_log import read_log
from bartleby.run_setup import open_run
from bartleby.writing_decoder import DECODER_FILE, deepen, save_decoder, untie_readout

CONFIG = RepairConfig(
    steps=12, tokens_per_batch=256, learning_rate=3e-3, warmup_steps=2, checkpoint_minutes=0
)


def opened(run):
    """A setup with a BART of its own, so that no test trains another's."""
    return open_run(run, say=quiet)


def run_for(setup, denoiser, out, steps, config=CONFIG):
    texts = ["The dog likes tea.", "Nobody saw the red house."] * 20
    losses = []
    for progress in repair(config, setup, denoiser, texts, out, say=quiet):
        losses.append(progress.losses and progress.losses["loss"])
        if progress.step == steps:
            break
    return losses


def test_only_the_decoders_layers_change_and_reading_improves(generator_run, tmp_path):
    setup, denoiser = opened(generator_run)
    before = measure_reading(setup, denoiser)
    weights = {name: value.clone() for name, value in setup.autoencoder.bart.state_dict().items()}
    noise = {name: value.clone() for name, value in denoiser.state_dict().items()}
    config = dataclasses.replace(CONFIG, steps=60, checkpoint_minutes=9)
    run_for(setup, denoiser, tmp_path, 60, config)
    for name, value in setup.autoencoder.bart.state_dict().items():
        learns = name.startswith(("model.decoder.layers", "model.decoder.layernorm_embedding"))
        assert learns or torch.equal(value, weights[name]), name
    assert all(torch.equal(value, noise[name]) for name, value in denoiser.state_dict().items())
    after = measure_reading(setup, denoiser)
    assert all(after[str(share)] < before[str(share)] for share in GRID)


@pytest.mark.parametrize("more", [{}, {"layers": 4, "own_readout": True}])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(generator_run, tmp_path, more):
    config = dataclasses.replace(CONFIG, **more)
    setup, denoiser = opened(generator_run)
    whole = run_for(setup, denoiser, tmp_path / "whole", 12, config)
    straight = setup.autoencoder.bart.state_dict()
    setup, denoiser = opened(generator_run)
    first = run_for(setup, denoiser, tmp_path / "parts", 5, config)
    setup, denoiser = opened(generator_run)
    rest = run_for(setup, denoiser, tmp_path / "parts", 12, config)
    assert len(rest) == 7 and first + rest == whole
    resumed = setup.autoencoder.bart.state_dict()
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())
    setup, denoiser = opened(generator_run)
    assert run_for(setup, denoiser, tmp_path / "parts", 12, config) == [None]
    setup, denoiser = opened(generator_run)
    with torch.no_grad():
        denoiser.leave.bias += 1
    with pytest.raises(UserError, match="was begun with another denoiser"):  # another denoiser
        run_for(setup, denoiser, tmp_path / "parts", 12, config)
    setup, denoiser = opened(generator_run)
    other = dataclasses.replace(config, noisiest=0.5)
    with pytest.raises(UserError, match="was trained with noisiest = 0.8, not 0.5"):
        run_for(setup, denoiser, tmp_path / "parts", 12, other)


def test_the_command_leaves_a_bart_that_generates(cli, generator_run, tmp_path):
    out = tmp_path / "repaired"
    result = cli("repair", generator_run, "--out", out, "--steps", 3, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["nats_before"].keys() == record["nats_after"].keys()
    assert json.loads((out / "model" / "repair.json").read_text()) == record
    written = cli(
        "generate", "-n", 2, "--steps", 4, "--model", generator_run, "--bart", out / "model",
        "--handover", 0.3,
    )  # fmt: skip
    assert written.exit_code == 0 and len(written.stdout.splitlines()) == 2
    wrong = cli("generate", "--bart", out / "model", "--model", out / "model")
    assert wrong.exit_code == 1 and "error: " in wrong.stderr


def test_impossible_settings_are_named(tmp_path):
    with pytest.raises(UserError, match="noisiest is 1.5"):
        RepairConfig(noisiest=1.5)
    with pytest.raises(UserError, match="quietest is 0.8; it must be below noisiest"):
        RepairConfig(quietest=0.8)
    with pytest.raises(UserError, match="copies is -1"):
        RepairConfig(copies=-1)


def test_dropout_is_the_same_for_the_same_seed_and_over_after_the_step(generator_run):
    bart = opened(generator_run)[0].autoencoder.bart.cpu().eval()
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits():
        with torch.no_grad():
            return bart(input_ids=ids, decoder_input_ids=ids).logits

    def dropped(share, seed):
        with _dropout(bart, share, seed=seed):
            return logits()

    plain = logits()
    assert torch.equal(dropped(0.5, (1, 2)), dropped(0.5, (1, 2)))
    assert not torch.equal(dropped(0.5, (1, 2)), dropped(0.5, (1, 3)))
    assert torch.equal(dropped(0.0, (1, 2)), plain)
    state = torch.get_rng_state()
    assert not torch.equal(dropped(0.5, (1, 2)), plain)
    assert torch.equal(logits(), plain)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_begins_with_the_decoder_that_is_named(generator_run, model_folder, tmp_path, cli):
    other = load_autoencoder(model_folder).bart
    deepen(other, 4)
    untie_readout(other)
    save_decoder(other, made_folder(tmp_path / "other"))
    options = ("--steps", 1, "--copies", 0, "--tokens-per-batch", 64, "--learning-rate", 1e-8)
    result = cli(
        "repair", generator_run, "--out", tmp_path / "new", "--start", tmp_path / "other", *options
    )
    assert result.exit_code == 0, result.stderr
    new = load_file(tmp_path / "new" / DECODER_FILE)
    assert new.keys() == load_file(tmp_path / "other" / DECODER_FILE).keys()
    for start, message in (
        (tmp_path / "none", "has no decoder of its own"),
        ("nano", "another shape"),
    ):
        result = cli(
            "repair", generator_run, "--out", tmp_path / "failed", "--start", start, *options
        )
        assert result.exit_code == 1 and message in result.stderr
        assert not (tmp_path / "failed").exists()


def test_it_can_be_made_longer_when_the_run_writes_with_what_it_made(generator_run, tmp_path, cli):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(generator_run, run)
    options = ("repair", run, "--out", out, "--copies", 0, "--tokens-per-batch", 64, "--json")
    first = json.loads(cli(*options, "--steps", 2).stdout)
    assert cli("defaults", run, "--decoder", out).exit_code == 0
    result = cli(*options, "--steps", 4)
    assert result.exit_code == 0 and "step 2 of 4" in result.stderr
    again = json.loads(result.stdout)
    assert again["nats_before"] == first["nats_before"] != again["nats_after"]
    rows = [row["step"] for row in read_log(out)]
    assert rows == [2, 4]  # the last step of each
    assert cli("defaults", run, "--decoder", "none").exit_code == 0
    assert not (run / DECODER_FILE).exists()


def test_a_decoder_that_does_not_fit_changes_nothing(generator_run, tmp_path, cli):
    run = tmp_path / "run"
    shutil.copytree(generator_run, run)
    result = cli("defaults", run, "--decoder", "nano", "--steps", 3)
    assert result.exit_code == 1 and "another shape" in result.stderr
    assert not (run / DECODER_FILE).exists() and not (run / "sampling.json").exists()
