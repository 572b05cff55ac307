"""The table of a generator and its controls, the autoregressive yardstick, and the fitted schedule."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import TEXTS, quiet

from bartleby.autoregressive import (
    AutoregressiveConfig,
    new_model,
    sized_like,
    train_autoregressive,
    write_autoregressive,
)
from bartleby.benchmark import control_texts, name_of, run_benchmark
from bartleby.errors import UserError
from bartleby.evaluation.generation import Evaluator
from bartleby.sampling import SamplingSettings
from bartleby.schedule_fit import ReadAt, fit_schedule

TINY = AutoregressiveConfig(
    width=32, layers=1, heads=2, steps=8, tokens_per_batch=256, checkpoint_minutes=0
)


def test_controls_are_as_many_as_the_human_texts_and_what_they_say(pipeline):
    human = TEXTS[:12]
    controls = control_texts(pipeline, human, seed=0)
    assert {len(texts) for texts in controls.values()} == {12}
    autoencoder = pipeline.autoencoder
    assert controls["real latents"] == autoencoder.decode(autoencoder.encode(human))
    for text, shuffled in zip(human, controls["shuffled words"], strict=True):
        assert sorted(text.split()) == sorted(shuffled.split())
    lengths = autoencoder.encode(human).mask.sum(dim=1)
    same = controls["mean latents"]  # depends on the length alone
    for row in range(12):
        for other in range(row):
            if lengths[row] == lengths[other]:
                assert same[row] == same[other]


def test_a_benchmark_has_every_row_and_reads_texts_it_wrote_before(pipeline, tmp_path):
    evaluator = Evaluator(TEXTS[100:140], training=TEXTS)
    drawn = SamplingSettings("ddim", 2, decoder_temperature=1.0, decoder_min_p=0.5)
    settings = [SamplingSettings(steps=3), drawn]
    options = {"settings": settings, "seeds": [0, 1], "autoregressive": TINY}
    scores = run_benchmark(pipeline, evaluator, TEXTS[:20], tmp_path, **options)
    assert list(scores) == [
        "human", "ddpm 3", "ddim 2 d1 p0.5", "real latents", "noise latents", "mean latents",
        "one step", "noised human", "shuffled words", "autoregressive", "autoregressive p0.5",
    ]  # fmt: skip
    assert all(mean.texts == 20 for mean, _ in scores.values())
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["rows"]["human"]["mean"] == dataclasses.asdict(scores["human"][0])
    assert saved["judged"]["judge"] is None and scores["human"][1] is None
    assert (tmp_path / "autoregressive-p0.5-seed1.json").exists()
    kept = tmp_path / "ddpm-3-seed0.json"
    texts = json.loads(kept.read_text())
    kept.write_text(json.dumps({**texts, "texts": ["The same."] * 20}))
    again = run_benchmark(pipeline, evaluator, TEXTS[:20], tmp_path, **options)
    assert again["ddpm 3"][0].duplicates > scores["ddpm 3"][0].duplicates
    kept.write_text(json.dumps({"origin": "other networks", "texts": ["The same."] * 20}))
    anew = run_benchmark(pipeline, evaluator, TEXTS[:20], tmp_path, **options)
    assert anew["ddpm 3"] == scores["ddpm 3"]


def test_names_of_rows():
    assert name_of(SamplingSettings()) == "ddpm 50"
    assert name_of(SamplingSettings("ddim", 20, handover=0.3)) == "ddim 20 h0.3"


@pytest.mark.parametrize("parameters", [3e5, 1e7, 1.8e7, 1.2e8])
def test_the_autoregressive_model_is_of_the_size_asked_for(tokenizer, parameters):
    config = sized_like(int(parameters), len(tokenizer), dropout=0.1)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in new_model(config, tokenizer).parameters())
    assert abs(count / parameters - 1) < 0.2
    assert config.width == 64 * config.heads and config.dropout == 0.1


def test_the_autoregressive_model_learns_resumes_and_writes(tokenizer, tmp_path):
    def losses(out, steps):
        found = []
        states = train_autoregressive(TINY, tokenizer, TEXTS, out, say=quiet)
        for state in states:
            found.append(state.losses["loss"])
            if state.step == steps:
                break
        return found, state.network

    whole, straight = losses(tmp_path / "whole", 8)
    first, _ = losses(tmp_path / "parts", 3)
    rest, resumed = losses(tmp_path / "parts", 8)
    assert first + rest == whole and whole[-1] < whole[0]
    weights = resumed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in straight.state_dict().items())
    texts = write_autoregressive(straight, tokenizer, 5, seed=1)
    assert len(texts) == 5 and texts == write_autoregressive(straight, tokenizer, 5, seed=1)
    assert write_autoregressive(straight, tokenizer, 70, seed=1)[:5] == texts
    likeliest = write_autoregressive(straight, tokenizer, 5, min_p=1.0, seed=1)
    assert len(set(likeliest)) == 1 and likeliest != texts
    other = dataclasses.replace(TINY, width=64)
    with pytest.raises(UserError, match="was trained with width = 32, not 64"):
        next(train_autoregressive(other, tokenizer, TEXTS, tmp_path / "whole"))


def test_the_command_prints_a_table_of_80_columns(cli, generator_run, tmp_path):
    reference = tmp_path / "reference.txt"
    reference.write_text("\n".join(TEXTS[:60]) + "\n")
    options = ("benchmark", "--reference", reference, "--model", generator_run, "-n", 10)
    options += ("--seeds", 2, "--steps", 2, "--steps", 3, "--train", reference)
    result = cli(*options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 12 and max(map(len, lines)) <= 80
    assert lines[-2] == "perplexity (± over seeds) and MAUVE: no model"
    rows = cli(*options, "--out", tmp_path / "out", "--json").stdout.splitlines()
    assert [json.loads(row)["row"] for row in rows][:3] == ["human", "ddpm 2", "ddpm 3"]


def curve_at(center):
    """A made-up BART whose latents lose their tokens around noise of deviation `center`."""
    deviations = np.geomspace(0.25, 64, 25)
    left = 1 / (1 + (deviations / center) ** 3)
    return [ReadAt(float(x), float(y), float(y)) for x, y in zip(deviations, left, strict=True)]


def test_noisier_latents_get_a_noisier_schedule():
    d = {center: fit_schedule(curve_at(center)).d for center in (1, 3, 9)}
    assert d[1] < d[3] < d[9]
    # On a logarithmic scale moving the curve moves d with it.
    assert d[9] / d[3] == pytest.approx(3, rel=0.1) and d[3] / d[1] == pytest.approx(3, rel=0.1)
    fitted = fit_schedule(curve_at(3))
    assert fitted.half_known == pytest.approx(3, rel=0.05)
    assert (
        fit_schedule(curve_at(9)).learnable["tan"] > fit_schedule(curve_at(9)).learnable["cosine"]
    )


def test_fit_schedule_on_the_command_line(cli, model_folder, corpus_file, tmp_path):
    plot = tmp_path / "schedule.png"
    options = ("fit-schedule", "--data", corpus_file, "--model", model_folder, "--texts", 4)
    result = cli(*options, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert 'schedule = "tan"' in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    found = json.loads(cli(*options, "--json").stdout)
    information = [point["information"] for point in found["curve"]]
    assert information[0] > 0.95 and information[-1] < 0.1
    assert f"schedule_d = {found['d']:.1f}" in result.stdout
