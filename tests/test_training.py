"""Training a denoiser: it learns, resumes exactly, survives kills and does not depend on the process count."""

from __future__ import annotations

import copy
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet, same, started, weights
from safetensors.torch import load_file, save_file

from bartleby.checkpoints import checkpoint_folder
from bartleby.config import config_from_dict
from bartleby.denoisers import load_denoiser
from bartleby.errors import UserError
from bartleby.evaluation.latents import average, measure, timestep_grid
from bartleby.pipeline import load_pipeline
from bartleby.processes import make_accelerator
from bartleby.run_log import read_log
from bartleby.run_setup import Setup, open_run, prepare, validation_sample
from bartleby.training import train
from bartleby.training_batch import make_batch
from bartleby.training_run import run_training


def interrupted(message: str) -> None:
    """In place of `say`: Ctrl-C when training begins."""
    if "steps of up to" in message:
        raise KeyboardInterrupt


def changed(tables: dict, **keys) -> dict:
    """The tables with `table_key=value` changes, as in training_steps=3."""
    tables = copy.deepcopy(tables)
    for key, value in keys.items():
        table, name = key.split("_", 1)
        tables.setdefault(table, {})[name] = value
    return tables


def run(tables: dict, out: Path, **changes) -> dict:
    return run_training(config_from_dict(changed(tables, **changes)), out, say=quiet)


def train_for(tables: dict, out: Path, steps: int, *, save_every: float = 0.0) -> list[float]:
    """Losses of a run that is left after `steps`, saving at every step or every so many minutes."""
    config = config_from_dict(changed(tables, training_checkpoint_minutes=save_every))
    setup, denoiser = prepare(config, say=quiet)
    accelerator = make_accelerator()
    losses = []
    for state in train(
        config, setup.training, denoiser, setup.scheduler, out, accelerator, say=quiet
    ):
        losses.append(state.loss)
        if state.step == steps:
            break
    return losses


def test_a_run_leaves_a_folder_with_everything_in_it(tiny_config, tmp_path):
    record = run(tiny_config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "log.jsonl", "tensorboard", "checkpoints", "denoiser", "scheduler",
        "latent_statistics.json", "lengths.json", "training.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "training.json").read_text()) == record
    assert record["steps"] == 12 and record["validation"]["noise_cosine"] > 0
    untrained = record["untrained_noise_cosines"]
    assert 0 < untrained["identity"] < untrained["wiener"] < 1
    rows = read_log(tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "valid"] == [6, 12]
    assert rows[-1]["seconds"] >= rows[0]["seconds"] > 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    setup, denoiser = open_run(tmp_path / "run", say=quiet)
    saved = load_denoiser(checkpoint_folder(tmp_path / "run", 12))
    assert same(denoiser.state_dict(), saved.state_dict())
    assert setup.autoencoder.statistics is not None


def test_the_same_seed_gives_the_same_weights_another_seed_others(tiny_config, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tiny_config, tmp_path / name, training_seed=seed)
    a, b, c = (weights(checkpoint_folder(tmp_path / name, 12)) for name in "abc")
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize(
    ("options", "left", "steps"),
    [
        ({}, 5, 12),
        ({"self_conditioning": True, "precondition": "mixture"}, 5, 12),
        ({}, 20, 24),  # in the third epoch, of 9 steps each
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(tiny_config, tmp_path, options, left, steps):
    tables = changed(tiny_config, training_steps=steps)
    tables["denoiser"] |= options
    calm = run(tables, tmp_path / "calm")
    train_for(tables, tmp_path / "cut", left)
    said = []
    resumed = run_training(config_from_dict(tables), tmp_path / "cut", say=said.append)
    assert any(line.startswith("resuming") and line.endswith(f"step {left}") for line in said)
    calm_folder, cut_folder = (
        checkpoint_folder(tmp_path / name, steps) for name in ("calm", "cut")
    )
    assert same(weights(calm_folder), weights(cut_folder))
    averaged = "diffusion_pytorch_model.safetensors"
    assert same(load_file(calm_folder / averaged), load_file(cut_folder / averaged))
    assert resumed["validation"] == calm["validation"] and resumed["tokens"] == calm["tokens"]


def test_averaged_weights_are_neither_the_trained_nor_the_first(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run")
    folder = checkpoint_folder(tmp_path / "run", 12)
    averaged = load_file(folder / "diffusion_pytorch_model.safetensors")
    trained = weights(folder)
    first = prepare(config_from_dict(tiny_config), say=quiet)[1].state_dict()
    name = "leave.weight"
    assert not torch.equal(averaged[name], trained[name])
    assert 0 < averaged[name].norm() < trained[name].norm() and first[name].norm() == 0


def test_a_run_may_begin_with_what_another_has_learned(generator_config, generator_run):
    tables = changed(generator_config, data_limit=4, denoiser_start=str(generator_run))
    begun = prepare(config_from_dict(tables), say=quiet)[1]
    fresh = prepare(
        config_from_dict(tables | {"denoiser": generator_config["denoiser"]}), say=quiet
    )[1]
    there = load_denoiser(generator_run / "denoiser")
    for name, weight in begun.named_parameters():
        assert torch.equal(weight, there.get_parameter(name)), name
    assert not torch.equal(begun.leave.weight, fresh.leave.weight)
    assert same(dict(begun.named_buffers()), dict(fresh.named_buffers()))  # of its own texts
    assert not same(dict(begun.named_buffers()), dict(there.named_buffers()))


def test_it_learns_four_sentences_by_heart(tiny_config, tmp_path):
    tables = changed(
        tiny_config, data_limit=4, training_steps=200, training_learning_rate=2e-3,
        training_validate_every=200, training_decay_share=0.2, training_ema_decay=0.9,
    )  # fmt: skip
    losses = train_for(tables, tmp_path / "run", 200, save_every=9.0)
    assert np.mean(losses[-20:]) < 0.3 * losses[0]  # at much noise it cannot know which of the four


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_used(tiny_config, tmp_path):
    train_for(tiny_config, tmp_path / "run", 5)
    newest = checkpoint_folder(tmp_path / "run", 5) / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    said = []
    run_training(config_from_dict(tiny_config), tmp_path / "run", say=said.append)
    assert any("step-00000005 cannot be used" in line for line in said)
    assert any("step 4" in line for line in said)
    run(tiny_config, tmp_path / "calm")
    folders = [checkpoint_folder(tmp_path / name, 12) for name in ("run", "calm")]
    assert same(weights(folders[0]), weights(folders[1]))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(tiny_config, tmp_path):
    train_for(tiny_config, tmp_path / "run", 5)
    kept = list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(kept) == 2
    for folder in kept:
        (folder / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="remove that folder to start over"):
        run(tiny_config, tmp_path / "run")


def test_a_resumed_run_drops_what_its_log_has_beyond_the_checkpoint(tiny_config, tmp_path):
    steps = {}
    for name in ("calm", "cut"):
        if name == "cut":
            train_for(tiny_config, tmp_path / "cut", 5)
            lost = {"kind": "valid", "step": 6, "seconds": 1.0}
            (tmp_path / "cut" / "log.jsonl").write_text(json.dumps(lost) + '\n{"kind": "tra')
        run(tiny_config, tmp_path / name)
        steps[name] = [(row["kind"], row["step"]) for row in read_log(tmp_path / name)]
    assert steps["calm"] == steps["cut"]


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    real = torch.nn.Linear.forward
    train_for(tiny_config, tmp_path / "run", 3)
    before = weights(checkpoint_folder(tmp_path / "run", 3))
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: real(self, x) * float("nan"))
    with pytest.raises(UserError, match="the loss is nan at step 4; what was saved before is kept"):
        run(tiny_config, tmp_path / "run")
    assert same(weights(checkpoint_folder(tmp_path / "run", 3)), before)


def test_a_finished_run_says_so_and_can_be_made_longer(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run")
    said = []
    run_training(config_from_dict(tiny_config), tmp_path / "run", say=said.append)
    assert "has already run its 12 steps" in said[-1]
    assert run(tiny_config, tmp_path / "run", training_steps=14)["steps"] == 14
    for steps in (14, 16):
        with pytest.raises(UserError, match=r"training.learning_rate = 0.001, not 0.5"):
            run(tiny_config, tmp_path / "run", training_steps=steps, training_learning_rate=0.5)


def test_a_run_goes_on_with_the_text_and_the_bart_it_was_begun_with_alone(
    tiny_config, tmp_path, caplog
):
    texts = Path(tiny_config["data"]["source"])
    own = tmp_path / "texts.txt"
    own.write_bytes(texts.read_bytes())
    tiny_config["data"]["source"] = str(own)
    bart = Path(shutil.copytree(tiny_config["autoencoder"]["model"], tmp_path / "bart"))
    tiny_config["autoencoder"]["model"] = str(bart)
    run(tiny_config, tmp_path / "run")
    lines = own.read_text().splitlines()
    own.write_text("\n".join([lines[0] + " Yes.", *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="begun with another text; use another --out"):
        run(tiny_config, tmp_path / "run", training_steps=14)
    own.write_bytes(texts.read_bytes())
    weights = load_file(bart / "model.safetensors")
    name = next(name for name in weights if "encoder.layers.0.fc1.weight" in name)
    save_file(weights | {name: weights[name] * 1.01}, bart / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="begun with another BART; use another --out"):
        run(tiny_config, tmp_path / "run", training_steps=14)
    assert "has changed" not in caplog.text
    load_pipeline(tmp_path / "run")
    assert f"'{bart}' has changed since '{tmp_path / 'run'}' was trained on its" in caplog.text


def test_a_finished_run_that_goes_on_is_opened_as_it_is_now(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run")
    finished = open_run(tmp_path / "run", say=quiet)[1].state_dict()
    train_for(changed(tiny_config, training_steps=20), tmp_path / "run", 15)
    longer = open_run(tmp_path / "run", say=quiet)[1].state_dict()
    assert not all(torch.equal(weight, longer[name]) for name, weight in finished.items())


def test_that_a_run_has_ended_or_is_another_is_told_before_anything_is_encoded(
    tiny_config, tmp_path, monkeypatch
):
    record = run(tiny_config, tmp_path / "run")

    def prepared(*args, **options):
        raise AssertionError("encodes")

    monkeypatch.setattr("bartleby.training_run.prepare", prepared)
    assert run(tiny_config, tmp_path / "run") == record
    with pytest.raises(UserError, match=r"training.learning_rate = 0.001, not 0.5"):
        run(tiny_config, tmp_path / "run", training_learning_rate=0.5)
    with pytest.raises(AssertionError, match="encodes"):  # it may go on
        run(tiny_config, tmp_path / "run", training_steps=14)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_still_that_run(tiny_config, tmp_path):
    config = config_from_dict(tiny_config)
    setup, denoiser = prepare(config, say=quiet)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, tmp_path / "run", say=interrupted, prepared=(setup, denoiser))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"training.learning_rate = 0.001, not 0.5"):
        run(tiny_config, tmp_path / "run", training_learning_rate=0.5)
    longer = run(tiny_config, tmp_path / "run", training_steps=13)
    assert longer["steps"] == 13
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["training"]["steps"] == 13


def test_training_leaves_the_denoiser_as_precise_as_it_was(tiny_config, tmp_path):
    """What a run says of its validation is what anyone measures afterwards, in float32."""
    said = []
    record = run_training(config_from_dict(tiny_config), tmp_path / "run", say=said.append)
    setup, denoiser = open_run(tmp_path / "run", say=quiet)
    latents, _ = validation_sample(setup.validation, 4)
    scores = average(measure(denoiser, setup.scheduler, latents, timestep_grid(1000, 10)))
    assert record["validation"]["noise_cosine"] == pytest.approx(scores.noise_cosine, abs=1e-6)
    assert record["validation"]["x0_mse"] == pytest.approx(scores.x0_mse, abs=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"denoiser_channels": 768}, "denoiser.channels is 768, but latents of .* have 64"),
        ({"autoencoder_window": 500}, "autoencoder: window is 500; this model reads 4 to 32"),
        ({"autoencoder_window": 30, "denoiser_name": "text-unet", "denoiser_size": "small"},
         "autoencoder.window is 30, .* multiple of 4"),
        ({"training_tokens_per_batch": 31}, "training.tokens_per_batch is 31"),
        ({"autoencoder_model": "/none"}, "autoencoder: no model folder at '/none'"),
        ({"autoencoder_statistics": "model"}, "autoencoder.statistics is 'model', but"),
        ({"denoiser_start": "/none"}, "denoiser.start: '/none/denoiser' holds no denoiser"),
        ({"denoiser_start": "nano"}, "denoiser.start: .* of another shape than the new one: "),
        ({"data_source": "/none.txt"}, "data.source: no file or folder at '/none.txt'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_any_work(tiny_config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(tiny_config, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_corpus_without_validation_split_is_refused(tiny_config, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.txt").write_text("One text.\nAnother text.\n")
    with pytest.raises(UserError, match="data.source: .* has no split 'valid'"):
        run(tiny_config, tmp_path / "run", data_source=str(tmp_path / "corpus"))


class Process:
    """What `make_batch` asks of an accelerator."""

    device = torch.device("cpu")

    def __init__(self, index: int, count: int):
        self.process_index, self.num_processes = index, count


def shares(setup: Setup, denoiser, count: int, indices: np.ndarray):
    return [
        make_batch(
            setup.config,
            setup.training,
            denoiser,
            setup.scheduler,
            indices,
            0,
            7,
            Process(index, count),
        )
        for index in range(count)
    ]


def test_processes_see_disjoint_parts_of_the_batch_that_one_would_see(generator_config):
    generator_config["objective"]["candidates"] = 20
    prepared = prepare(config_from_dict(generator_config), say=quiet)
    indices = np.array([5, 9, 2, 7, 30])
    whole = shares(*prepared, 1, indices)[0]
    parts = shares(*prepared, 2, indices)
    for index, part in enumerate(parts):
        rows = torch.arange(5)[index::2]
        length = part.latents.mask.shape[1]
        assert torch.equal(part.timesteps, whole.timesteps[rows])
        assert torch.equal(part.noise, whole.noise[rows][:, :, :length])
        assert torch.equal(part.latents.values, whole.latents.values[rows][:, :, :length])
        assert torch.equal(part.self_conditioned, whole.self_conditioned[rows])
        assert torch.equal(part.given, whole.given[rows][:, :length])
        assert torch.equal(part.tokens, whole.tokens[rows][:, :length])
        assert torch.equal(part.candidates.ids, whole.candidates.ids)
    assert whole.self_conditioned.any() and not whole.self_conditioned.all() and whole.given.any()
    assert whole.share == pytest.approx(1 / int((whole.latents.mask & ~whole.given).sum()))
    assert sum(len(part.timesteps) for part in parts) == 5
    # The mean over processes of what each adds is the mean over all tokens to predict.
    assert [part.share / 2 for part in parts] == pytest.approx([whole.share] * 2)
    spare = shares(*prepared, 3, indices[:2])[2]  # more processes than passages
    assert spare.share == 0.0 and len(spare.timesteps) == 1


def launch(tables: dict, out: Path, processes: int, *options: str) -> subprocess.Popen:
    config = out.with_suffix(".toml")
    config.write_text(
        "\n".join(
            f"[{table}]\n"
            + "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
            for table, keys in tables.items()
        )
    )
    return started("bartleby", "train", config, "--out", out, *options, processes=processes)


def test_two_processes_follow_the_loss_of_one(tiny_config, tmp_path):
    """The same batches and noise, summed in another order, in bfloat16 where the machine has it."""
    curves = []
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        process = launch(changed(tiny_config, training_steps=20), out, processes)
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-2000:]
        assert ("2 processes" in errors.decode()) == (processes == 2)
        curves.append([row["loss"] for row in read_log(out) if row["kind"] == "train"])
    assert len(curves[0]) == 2 and curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_weights(tiny_config, tmp_path):
    tables = changed(tiny_config, training_steps=900, training_checkpoint_minutes=0.005)
    assert launch(tables, tmp_path / "calm", 1).wait() == 0
    kills, rng = 0, random.Random(0)
    while kills < 20:
        process = launch(tables, tmp_path / "killed", 1)
        seen = len(read_log(tmp_path / "killed"))
        while process.poll() is None and len(read_log(tmp_path / "killed")) <= seen:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 0.7))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills == 20
    assert launch(tables, tmp_path / "killed", 1).wait() == 0
    folders = [checkpoint_folder(tmp_path / name, 900) for name in ("calm", "killed")]
    assert same(weights(folders[0]), weights(folders[1]))


def test_a_run_of_before_a_key_was_added_is_still_the_same_run(tiny_config, tmp_path):
    record = run(tiny_config, tmp_path / "run")
    for file in ("config.json", "training.json"):
        saved = json.loads((tmp_path / "run" / file).read_text())
        saved.get("config", saved)["denoiser"].pop("options")
        (tmp_path / "run" / file).write_text(json.dumps(saved))
    again = run(tiny_config, tmp_path / "run")
    assert again["steps"] == record["steps"] and again["seconds"] == record["seconds"]
