"""generate, edit, infill and interpolate on the command line."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import rows

from bartleby import SamplingSettings

TEXT = "The dog likes tea."


def test_generate_prints_a_text_a_line_and_nothing_else(cli, generator_run):
    result = cli("generate", "-n", 3, "--steps", 4, "--model", generator_run)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    assert "ddpm, 4 steps" in result.stderr and "seed 0" in result.stderr
    again = cli("generate", "-n", 3, "--steps", 4, "--model", generator_run)
    assert again.stdout == result.stdout
    other = cli("generate", "-n", 3, "--steps", 4, "--seed", 1, "--model", generator_run)
    assert other.stdout != result.stdout


def test_generate_json_prompt_and_length(cli, generator_run):
    options = ("--steps", 4, "--json", "--model", generator_run)
    found = rows(cli("generate", "-n", 2, "--prompt", "Tom", "--length", 9, *options))
    assert [row["index"] for row in found] == [0, 1]
    assert all(row["text"].startswith("Tom") and row["length"] == 9 for row in found)


def test_many_texts_are_generated_in_chunks_that_follow_on(cli, monkeypatch):
    asked = []

    def write(number, *, first, **options):
        asked.append((first, number))
        assert options["length"] is None  # what one chunk wrote must not bind the next
        texts = ["" if index == 3 else f"Text {index}." for index in range(first, first + number)]
        return SimpleNamespace(texts=texts, lengths=[5] * number)

    write.default_settings, write.compressor = SamplingSettings(), None
    monkeypatch.setattr("bartleby.pipeline.load_pipeline", lambda *_, **__: write)
    monkeypatch.setattr("bartleby.cli.writing.CHUNK", 2)
    result = cli("generate", "-n", 5)
    assert asked == [(0, 2), (2, 2), (4, 1)]
    assert result.stdout.splitlines() == ["Text 0.", "Text 1.", "Text 2.", "", "Text 4."]
    assert "1 of 5 texts are empty" in result.stderr


def test_candidates_are_said_and_texts_that_are_given_have_several(cli, generator_run):
    options = ("--steps", 3, "--model", generator_run)
    assert "best of 1 " in cli("generate", "-n", 2, *options).stderr
    assert "best of 3 " in cli("generate", "-n", 2, "--candidates", 3, *options).stderr
    assert "best of 16 " in cli("infill", "The <mask> tea.", *options).stderr
    assert "best of 2 " in cli("edit", TEXT, "--candidates", 2, *options).stderr
    assert cli("edit", TEXT, "--candidates", 0, *options).exit_code == 2


def test_watch_shows_the_steps_on_standard_error(cli, generator_run):
    result = cli("generate", "-n", 2, "--steps", 5, "--watch", "--model", generator_run)
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.count("  step ") == 5
    last = result.stderr.splitlines()[-1].split(maxsplit=2)[2]
    assert last == result.stdout.splitlines()[0]


def test_edit(cli, generator_run, tmp_path):
    options = ("--steps", 4, "--json", "--model", generator_run)
    (row,) = rows(cli("edit", TEXT, "--strength", 0.0, *options))
    assert row.keys() == {"text", "edited", "strength"} and row["text"] == TEXT
    path = tmp_path / "texts.txt"
    path.write_text(f"{TEXT}\nNobody saw the sea?\n")
    assert len(rows(cli("edit", "--file", path, *options))) == 2
    assert len(rows(cli("edit", "-", *options, input="One.\nTwo.\nThree.\n"))) == 3


def test_generate_goes_on_and_a_gap_has_the_length_it_is_given(cli, generator_run):
    options = ("--steps", 4, "--json", "--model", generator_run)
    texts = [row["text"] for row in rows(cli("generate", "-n", 4, *options))]
    later = rows(cli("generate", "-n", 2, "--first", 2, *options))
    assert [(row["index"], row["text"]) for row in later] == [(2, texts[2]), (3, texts[3])]
    asked = []
    for gaps in ((2,), (2, 5)):
        given = [part for gap in gaps for part in ("--gap", gap)]
        asked.append(cli("infill", "<mask> likes <mask>.", *given, *options).stdout)
    assert asked[0] != asked[1]
    wrong = cli("infill", "The <mask> likes tea.", "--gap", 2, "--gap", 3, *options)
    assert wrong.exit_code == 1 and "for 2 gaps; the text has 1" in wrong.stderr


def test_infill_and_interpolate(cli, generator_run):
    options = ("--steps", 4, "--json", "--model", generator_run)
    found = rows(cli("infill", "The <mask> likes tea.", "-n", 3, *options))
    assert all(
        row["filled"].startswith("The") and row["filled"].endswith(" likes tea.") for row in found
    )
    options = ("--denoising-steps", 4, "--json", "--model", generator_run)
    found = rows(cli("interpolate", TEXT, "Nobody saw the sea?", "--steps", 4, *options))
    assert [row["weight"] for row in found] == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("generate", "--sampler", "euler"), "unknown sampler 'euler'"),
        (("generate", "--prompt", "word " * 60), "this model writes at most 30"),
        (("generate", "--length", 99), "length is 99 tokens"),
        (("edit", TEXT, "--strength", 1.5), "strength is 1.5; it must be between 0 and 1"),
        (("edit", TEXT, "--strength", "nan"), "strength is nan"),
        (("infill", "no gap"), "has no <mask>"),
        (("infill", "no\ngap"), "'no gap' has no <mask> to fill in; write <mask> where"),
        (("interpolate", TEXT, " "), "text 2 is blank"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(cli, generator_run, arguments, message):
    result = cli(*arguments, "--model", generator_run)
    assert result.exit_code == 1 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert result.stderr.count("error: ") == 1


def test_edit_takes_a_text_or_a_file(cli, corpus_file):
    for arguments in ((), (TEXT, "--file", corpus_file)):
        result = cli("edit", *arguments)
        assert result.exit_code == 2 and "give a TEXT or --file" in result.stderr


@pytest.mark.parametrize("steps", ["0", "-5", "many"])
def test_impossible_steps_are_a_usage_error(cli, generator_run, steps):
    assert cli("generate", "--steps", steps, "--model", generator_run).exit_code == 2


def test_a_run_that_has_not_finished_is_named(cli, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    for arguments in (("generate", "--model", tmp_path), ("info", tmp_path)):
        result = cli(*arguments)
        assert result.exit_code == 1 and "is no finished run: denoiser is missing" in result.stderr
    (tmp_path / "config.json").unlink()  # as a run of pretraining
    result = cli("generate", "--model", tmp_path)
    assert result.exit_code == 1 and "holds no model: model_index.json" in result.stderr


def test_what_a_run_writes_with_is_chosen_once(cli, generator_run, tmp_path):
    run = shutil.copytree(generator_run, tmp_path / "run")
    assert cli("repair", run, "--out", tmp_path / "repaired", "--steps", 2).exit_code == 0
    result = cli("defaults", run, "--decoder", tmp_path / "repaired", "--steps", 3, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 3
    assert (run / "decoder.int8.safetensors").exists()
    result = cli("defaults", run, "--handover", 0.5)
    assert (
        "steps                3\n" in result.stdout
        and "handover             0.5\n" in result.stdout
    )
    assert "ddpm, 3 steps" in cli("generate", "-n", 1, "--model", run).stderr
    for arguments, message in (
        ((tmp_path, "--steps", 3), "is no finished run of bartleby train"),
        ((run, "--decoder", tmp_path / "none"), "has no decoder of its own"),
        ((run, "--handover", 2), "handover is 2.0; it must be"),
    ):
        result = cli("defaults", *arguments)
        assert result.exit_code == 1 and message in result.stderr
    assert "steps                3\n" in cli("defaults", run).stdout
