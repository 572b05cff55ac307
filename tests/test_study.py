"""The study end to end on a tiny BART, its report, and what the doctor says of runs with a known fault."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import quiet

from bartleby import study
from bartleby.config import config_from_dict
from bartleby.doctor import diagnose
from bartleby.document import Heading, Paragraph, Picture, Table, to_html, to_markdown
from bartleby.errors import UserError
from bartleby.latents import STATISTICS_FILE
from bartleby.run_setup import open_run, validation_sample
from bartleby.study import MATRIX, StudySettings, quick_settings, run_study
from bartleby.study_report import write_report
from bartleby.training_run import run_training


@pytest.fixture
def settings(model_folder, corpus_file) -> StudySettings:
    return StudySettings(
        data=str(corpus_file), model=str(model_folder), minutes=0.01, epochs=1, size="tiny",
        tokens_per_batch=256, grid=4, texts=4, decoded=1,
    )  # fmt: skip


def test_the_matrix_holds_every_system_with_every_target():
    names = [run.name for run in MATRIX]
    assert len(names) == len(set(names))
    for system in ("simple-unet", "diffusers-unet", "text-unet", "transformer"):
        for target in ("noise", "v", "x0"):
            assert f"{system} {target}" in names
    assert sum(bool(run.published) for run in MATRIX) == 3


def test_a_study_reports_trained_untrained_and_failed_rows(settings, tmp_path, monkeypatch):
    only = ["text-unet noise", "text-unet x0", "transformer + mixture x0", "simple-unet v"]
    monkeypatch.setattr(
        study,
        "MATRIX",
        [
            dataclasses.replace(run, denoiser={"name": "simple-unet", "widths": [9, 9]})
            if run.name == "simple-unet v"
            else run
            for run in MATRIX
        ],
    )
    rows = run_study(settings, tmp_path, only=only, say=quiet)
    by_name = {row["name"]: row for row in rows}
    assert [row["name"] for row in rows][:3] == ["identity", "wiener", "mixture"]
    assert set(by_name) == {"identity", "wiener", "mixture", *only}
    assert "denoiser.widths is [9, 9]" in by_name["simple-unet v"]["failed"]
    trained = by_name["text-unet noise"]
    assert trained["steps"] >= 2 and trained["curve"] and len(trained["timesteps"]) == 4
    assert by_name["identity"]["closed_form"] == pytest.approx(
        by_name["identity"]["noise_cosine"], abs=0.02
    )
    assert by_name["mixture"]["noise_cosine"] > by_name["wiener"]["noise_cosine"]
    report = write_report(rows, dataclasses.asdict(settings), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert report == tmp_path / "report.html"
    for row in rows:
        assert f"| {row['name']} |" in text
    assert f"{trained['noise_cosine']:.3f}" in text and "0.23-0.27, 8M, 25 min" in text
    assert "data:image/png;base64," in report.read_text() and "<script" not in report.read_text()
    # Run again it takes what is there: nothing is trained, the rows are the same.
    monkeypatch.setattr(study, "run_training", None)
    assert run_study(settings, tmp_path, only=only, say=quiet) == rows
    with pytest.raises(UserError, match="was begun with minutes = 0.01, not 3"):
        run_study(dataclasses.replace(settings, minutes=3), tmp_path, say=quiet)


def test_an_unknown_run_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match="no run 'resnet' in the study"):
        run_study(settings, tmp_path, only=["resnet"])


def test_the_quick_study_has_the_rows_of_the_story_on_less():
    small = quick_settings(StudySettings())
    assert small.minutes < 0.5 and small.limit > 0 and small.size == "tiny"
    rows = [run for run in study.MATRIX if run.name in study.QUICK]
    assert len(rows) == len(study.QUICK) < len(study.MATRIX)
    assert {run.target for run in rows} == {"noise", "v", "x0"}
    assert {run.denoiser["name"] for run in rows} == {*study.PUBLISHED, "transformer"}


def test_the_command_prints_an_object_a_run(cli, settings, tmp_path):
    result = cli(
        "study", "--data", settings.data, "--model", settings.model, "--minutes", 0.01, "--epochs", 0.2,
        "--only", "simple-unet noise", "--out", tmp_path / "study", "--quick", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["name"] for row in rows] == ["identity", "wiener", "mixture", "simple-unet noise"]
    keys = {
        "name",
        "target",
        "parameters",
        "steps",
        "seconds",
        "noise_cosine",
        "x0_cosine",
        "token_accuracy",
    }
    assert all(set(row) == keys for row in rows)
    assert "report saved" in result.stderr


def test_documents_escape_and_embed(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"png")
    blocks = [
        Heading("A < B"),
        Paragraph("1 & 2"),
        Table(["a", "b"], [["<x>", "1"]]),
        Picture(picture, "p"),
    ]
    assert (
        to_markdown(blocks)
        == "## A < B\n\n1 & 2\n\n| a | b |\n| --- | ---: |\n| <x> | 1 |\n\n![p](p.png)\n"
    )
    page = to_html(blocks, title="t")
    assert "<h2>A &lt; B</h2>" in page and "<td>&lt;x&gt;</td>" in page and "cG5n" in page


@pytest.fixture(scope="module")
def healthy(model_folder, tmp_path_factory) -> Path:
    """A trained run whose every check but one is good: see the test that uses it."""
    from conftest import TEXTS

    folder = tmp_path_factory.mktemp("doctor")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    tables = {
        "data": {"source": str(folder / "texts.txt")},
        "autoencoder": {"model": str(model_folder)},
        "denoiser": {"size": "tiny", "precondition": "mixture"},
        "objective": {"loss_in": "v"},
        "training": {
            "steps": 60, "tokens_per_batch": 512, "warmup_steps": 5, "validate_every": 60, "validation_texts": 4,
        },
    }  # fmt: skip
    run_training(config_from_dict(tables), folder / "run", say=quiet)
    return folder / "run"


def findings(run: Path) -> dict:
    setup, denoiser = open_run(run, say=quiet)
    return {finding.name: finding for finding in diagnose(setup, denoiser, say=quiet)}


def problems(run: Path) -> set[str]:
    return {name for name, finding in findings(run).items() if finding.problem}


def test_a_good_run_has_no_problems(healthy):
    found = findings(healthy)
    assert not {name for name, finding in found.items() if finding.problem} - {"decoder"}
    assert found["below wiener"].value > found["below wiener"].reference


def faulty(healthy: Path, tmp_path: Path, **tables) -> Path:
    """A run like the healthy one, with changed tables, of a few steps."""
    config = json.loads((healthy / "config.json").read_text())
    config = copy.deepcopy(config)
    for table, keys in tables.items():
        config[table] |= keys
    run_training(config_from_dict(config), tmp_path / "run", say=quiet)
    return tmp_path / "run"


PLAIN = {"precondition": "none"}


def test_a_noise_target_through_a_bottleneck_is_found_and_is_below_the_baselines(healthy, tmp_path):
    run = faulty(
        healthy, tmp_path,
        denoiser={"name": "text-unet", **PLAIN}, objective={"target": "noise", "loss_in": ""},
        training={"steps": 20},
    )  # fmt: skip
    found = findings(run)
    assert {"bottleneck", "below identity", "below wiener"} <= {
        n for n, f in found.items() if f.problem
    }
    assert found["bottleneck"].value == pytest.approx((16 / 64) ** 0.5)
    assert "cosine of 0.500" in found["bottleneck"].text


def with_statistics(model_folder: Path, tmp_path: Path, statistics) -> str:
    """A copy of the model with other latent statistics saved beside it."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / STATISTICS_FILE).write_text(json.dumps(statistics.to_json()))
    return str(model)


def test_latents_that_are_not_of_unit_variance_are_found(healthy, tmp_path, model_folder):
    setup, _ = open_run(healthy, say=quiet)
    statistics = setup.autoencoder.statistics
    wrong = dataclasses.replace(statistics, std=statistics.std * 2)
    model = with_statistics(model_folder, tmp_path, wrong)
    run = faulty(
        healthy, tmp_path,
        autoencoder={"model": model, "statistics": "model"}, denoiser=PLAIN, training={"steps": 2},
    )  # fmt: skip
    found = findings(run)
    assert found["variance"].problem and found["variance"].value == pytest.approx(0.5, abs=0.05)
    assert not found["padding"].problem


def test_an_ignored_timestep_is_found(healthy, tmp_path):
    run = faulty(
        healthy, tmp_path,
        denoiser={"name": "text-unet", **PLAIN}, objective={"loss_in": ""}, training={"steps": 2},
    )  # fmt: skip
    _, denoiser = open_run(run, say=quiet)
    with torch.no_grad():
        for level in (
            denoiser.enter,
            denoiser.descend,
            denoiser.bottom,
            denoiser.ascend,
            denoiser.leave,
        ):
            level.time.weight.zero_()
    denoiser.save_pretrained(run / "denoiser")
    assert "timestep" in problems(run)
    assert "timestep" not in problems(healthy)


def test_padding_in_the_statistics_is_found(healthy, tmp_path, model_folder):
    """Statistics as a tool would take them that forgets the mask: zeros at 40% of the positions."""
    setup, _ = open_run(healthy, say=quiet)
    mean, variance = setup.training.moments.mean, setup.training.moments.covariance.diagonal()
    share = 0.6
    padded = dataclasses.replace(
        setup.autoencoder.statistics,
        mean=(share * mean).float(),
        std=(share * (variance + mean**2) - share**2 * mean**2).sqrt().float(),
    )
    model = with_statistics(model_folder, tmp_path, padded)
    run = faulty(
        healthy, tmp_path,
        autoencoder={"model": model, "statistics": "model"}, denoiser=PLAIN, training={"steps": 2},
    )  # fmt: skip
    found = findings(run)
    assert found["padding"].problem and found["padding"].value == pytest.approx(0.6, abs=0.02)
    assert not findings(healthy)["padding"].problem


def scaled(healthy: Path, tmp_path: Path, factor: float) -> Path:
    """A plain run whose predictions are multiplied."""
    run = faulty(healthy, tmp_path, denoiser=PLAIN, objective={"loss_in": ""})
    _, denoiser = open_run(run, say=quiet)
    with torch.no_grad():
        denoiser.leave.weight.mul_(factor)
        denoiser.leave.bias.mul_(factor)
    denoiser.save_pretrained(run / "denoiser")
    return run


def test_shrunken_predictions_and_what_the_decoder_cannot_read_are_found(healthy, tmp_path):
    found = findings(scaled(healthy, tmp_path, 0.3))
    assert found["magnitude"].problem and found["magnitude"].value < 0.5


def test_a_decoder_that_cannot_read_the_estimate_is_found(healthy, tmp_path, monkeypatch):
    """A decoder that reads latents of the deviation they were noised to, and nothing that is less loud."""
    latents, _ = validation_sample(open_run(healthy, say=quiet)[0].validation, 8)
    quietest = 1.1 * float(latents.real.std())

    def decoded_accuracy(autoencoder, latents, token_ids):
        return 0.9 if latents.real.std() > quietest else 0.2

    monkeypatch.setattr("bartleby.doctor.decoded_accuracy", decoded_accuracy)
    found = findings(healthy)["decoder"]
    assert found.problem and found.value == 0.2 and found.reference == 0.9


def test_a_run_that_learned_its_texts_by_heart_is_found(healthy, tmp_path):
    run = faulty(
        healthy, tmp_path,
        data={"limit": 3}, denoiser=PLAIN, objective={"loss_in": ""},
        training={
            "steps": 300, "learning_rate": 3e-3, "ema_decay": 0.9, "tokens_per_batch": 128, "validate_every": 300,
        },
    )  # fmt: skip
    assert "gap" in problems(run)


def test_the_doctors_command(cli, healthy, tmp_path):
    result = cli("doctor", healthy)
    assert result.exit_code == 0, result.stderr
    assert "ok      timestep: the output changes by" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    rows = [json.loads(line) for line in cli("doctor", healthy, "--json").stdout.splitlines()]
    assert {"name", "problem", "value", "reference", "text"} == set(rows[0])
    wrong = cli("doctor", tmp_path)
    assert wrong.exit_code == 1 and "is no training run: config.json is missing" in wrong.stderr


def test_the_train_command(cli, tiny_config, tmp_path, model_folder, corpus_file):
    config = tmp_path / "mine.toml"
    config.write_text(
        '[denoiser]\nsize = "tiny"\n[training]\nsteps = 4\ntokens_per_batch = 256\nvalidation_texts = 4\n'
    )
    arguments = [
        "train",
        config,
        "--out",
        tmp_path / "run",
        "--set",
        f"autoencoder.model={model_folder}",
    ]
    arguments += ["--set", f"data.source={corpus_file}"]
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("transformer, predicts x0: ")
    assert "try: bartleby doctor" in result.stderr
    assert json.loads(cli(*arguments, "--json").stdout)["steps"] == 4
    wrong = cli(*arguments, "--set", "training.steps=x")
    assert wrong.exit_code == 1
    assert wrong.stderr.strip() == "error: training.steps is 'x'; it must be a whole number"
