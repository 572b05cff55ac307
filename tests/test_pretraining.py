import dataclasses
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import TEXTS, quiet, same, weights
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bartleby.batching import cut_by_tokens, plan_epoch
from bartleby.checkpoints import checkpoint_folder
from bartleby.errors import UserError
from bartleby.loading import load_autoencoder
from bartleby.optimisation import learning_rate
from bartleby.pretraining import PRESETS, PretrainConfig, pretrain
from bartleby.pretraining_run import configure, verdict

STEPS = 12
CONFIG = dataclasses.replace(
    PRESETS["tiny"], steps=STEPS, checkpoint_minutes=0.0
)  # saves after every step


def train(run, config=CONFIG, *, stop_after: int | None = None, say=quiet):
    return list(itertools.islice(pretrain(config, TEXTS, run, say=say), stop_after))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights and losses of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("undisturbed")
    states = train(run)
    return weights(checkpoint_folder(run, STEPS)), [state.losses for state in states]


def test_loss_falls(tmp_path):
    losses = [
        state.losses["loss"]
        for state in train(tmp_path, dataclasses.replace(PRESETS["tiny"], steps=60))
    ]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5


def test_same_seed_same_weights_other_seed_other_weights(tmp_path, undisturbed):
    train(tmp_path / "again")
    assert same(weights(checkpoint_folder(tmp_path / "again", STEPS)), undisturbed[0])
    train(tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    assert not same(weights(checkpoint_folder(tmp_path / "other", STEPS)), undisturbed[0])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, undisturbed):
    first = train(tmp_path, stop_after=5)
    messages = []
    rest = train(tmp_path, say=messages.append)
    assert any("resuming" in message and "step 5 of 12" in message for message in messages)
    assert [state.step for state in rest] == list(range(6, STEPS + 1))
    assert [state.losses for state in first + rest] == undisturbed[1]
    assert same(weights(checkpoint_folder(tmp_path, STEPS)), undisturbed[0])


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "training_state.json"]
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_used(tmp_path, undisturbed, file):
    train(tmp_path, stop_after=5)
    path = checkpoint_folder(tmp_path, 5) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    messages = []
    train(tmp_path, say=messages.append)
    assert any("step-00000005 cannot be used" in message for message in messages)
    assert any("step 4 of 12" in message for message in messages)
    assert same(weights(checkpoint_folder(tmp_path, STEPS)), undisturbed[0])


def test_a_damaged_tokenizer_is_taken_from_the_checkpoint_before(tmp_path, undisturbed):
    train(tmp_path, stop_after=5)
    path = checkpoint_folder(tmp_path, 5) / "tokenizer.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(tmp_path)
    assert same(weights(checkpoint_folder(tmp_path, STEPS)), undisturbed[0])


def test_another_configuration_is_refused(tmp_path):
    train(tmp_path, stop_after=2)
    with pytest.raises(UserError, match=r"learning_rate = 0.001, not 0.5"):
        train(tmp_path, dataclasses.replace(CONFIG, learning_rate=0.5))
    with pytest.raises(UserError, match="was begun with another text"):
        next(pretrain(CONFIG, [*TEXTS, "One more."], tmp_path, say=quiet))


def test_a_longer_run_goes_on_from_the_constant_part(tmp_path):
    longer = dataclasses.replace(CONFIG, steps=20)
    train(tmp_path / "first", stop_after=5)
    states = train(tmp_path / "first", longer)
    assert [state.step for state in states] == list(range(6, 21))
    train(tmp_path / "calm", longer)
    ends = [weights(checkpoint_folder(tmp_path / name, 20)) for name in ("first", "calm")]
    assert same(*ends)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path, monkeypatch
):
    train(tmp_path, stop_after=3)
    monkeypatch.setattr(
        "bartleby.pretraining.bart_loss",
        lambda bart, batch: (
            bart.final_logits_bias.sum() + bart.model.shared.weight.sum() * torch.nan
        ),
    )
    with pytest.raises(UserError, match="loss is nan at step 4"):
        train(tmp_path)
    assert checkpoint_folder(tmp_path, 3).exists() and not checkpoint_folder(tmp_path, 4).exists()


def test_checkpoints_are_ordinary_models_and_only_two_are_kept(tmp_path):
    train(tmp_path, stop_after=4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]
    folder = checkpoint_folder(tmp_path, 4)
    assert AutoModelForSeq2SeqLM.from_pretrained(folder).config.model_type == "bart"
    assert AutoTokenizer.from_pretrained(folder).mask_token == "<mask>"
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


def test_learning_rate_warms_up_stays_and_decays():
    config = PretrainConfig(learning_rate=1.0, warmup_steps=10, decay_share=0.2)
    rates = [learning_rate(config, step, steps=100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == [1.0] * 72
    assert rates[99] == pytest.approx(0.05) and min(rates) > 0


def test_epochs_hold_every_sequence_once_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 128, size=3000)
    plan = plan_epoch(lengths, tokens_per_batch=2048, rng=rng)
    assert sorted(np.concatenate(plan)) == list(range(3000))
    padded = [len(batch) * lengths[batch].max() for batch in plan]
    assert max(padded) <= 2048
    assert lengths.sum() / sum(padded) > 0.95


def test_cut_by_tokens_gives_a_batch_to_a_sequence_over_the_budget():
    lengths = np.array([5, 5, 50])
    assert [batch.tolist() for batch in cut_by_tokens(np.arange(3), lengths, 10)] == [[0, 1], [2]]


def test_verdicts():
    assert verdict(0.2, 1.0, 256).startswith("COLLAPSED")
    assert verdict(0.5, 100.0, 256).startswith("NOT YET")
    assert verdict(0.999, 100.0, 256).startswith("good")


@pytest.mark.parametrize(
    "changes", [{"window": 4}, {"steps": 0}, {"tokens_per_batch": 8}, {"vocabulary": 10}]
)
def test_impossible_settings(changes):
    with pytest.raises(UserError):
        dataclasses.replace(PRESETS["tiny"], **changes)


def test_unknown_preset():
    with pytest.raises(UserError, match=r"unknown preset 'huge' \(known: nano, wide, tiny\)"):
        configure("huge")


def test_the_command_leaves_a_model_that_every_command_accepts(cli, corpus_file, tmp_path):
    run = tmp_path / "run"
    result = cli(
        "pretrain",
        "--preset",
        "tiny",
        "--data",
        corpus_file,
        "--out",
        run,
        "--steps",
        30,
        "--validate-every",
        10,
    )
    assert result.exit_code == 0, result.stderr
    assert "free-running token accuracy" in result.stdout
    autoencoder = load_autoencoder(run / "model")
    assert autoencoder.statistics is not None and autoencoder.window == 32
    for command in (["info", run / "model"], ["noise", "Tom.", "--model", run / "model"]):
        assert cli(*command).exit_code == 0
    again = cli("pretrain", "--preset", "tiny", "--data", corpus_file, "--out", run, "--steps", 30)
    assert again.exit_code == 0 and "already run its 30 steps" in " ".join(again.stderr.split())


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_weights(tmp_path, corpus_file):
    steps = 1200
    command = [
        sys.executable,
        "-m",
        "bartleby",
        "pretrain",
        "--preset",
        "tiny",
        "--data",
        str(corpus_file),
    ]
    command += ["--steps", str(steps), "--save-every", "0.01"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "--out", tmp_path / "calm"], check=True, env=environment)
    kills, rng = 0, random.Random(0)
    while kills < 20:
        process = subprocess.Popen([*command, "--out", tmp_path / "killed"], env=environment)
        _wait_for_progress(process, tmp_path / "killed", rng)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    subprocess.run([*command, "--out", tmp_path / "killed"], check=True, env=environment)
    final = [weights(checkpoint_folder(tmp_path / name, steps)) for name in ("calm", "killed")]
    assert kills == 20
    assert same(*final)


def _wait_for_progress(process, run, rng):
    """Until a checkpoint or two more are there, and then a random moment longer."""
    before = {path.name for path in (run / "checkpoints").glob("step-*")}
    while (
        process.poll() is None
        and {path.name for path in (run / "checkpoints").glob("step-*")} == before
    ):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))


def test_a_run_killed_while_finishing_is_finished_by_the_next_call(cli, corpus_file, tmp_path):
    run = tmp_path / "run"
    command = ("pretrain", "--preset", "tiny", "--data", corpus_file, "--out", run, "--steps", 5)
    assert cli(*command).exit_code == 0
    before = (run / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "model")
    assert cli(*command).exit_code == 0
    assert (run / "model" / "model.safetensors").read_bytes() == before
