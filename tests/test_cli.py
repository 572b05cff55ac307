import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import rows
from typer.main import get_command

from bartleby.checkpoints import replaced_folder
from bartleby.cli import app
from bartleby.cli.options import spread_option
from bartleby.console import check_plot_path

TEXT = "The dog likes tea."
HELP = [sys.executable, "-m", "bartleby", "--help"]
COMMANDS = [
    "noise", "reconstruct", "info", "demo", "pretrain", "train", "repair", "compress", "doctor",
    "study", "generate", "edit", "infill", "interpolate", "defaults", "evaluate", "benchmark",
    "benchmark-edits", "fit-schedule", "playground",
]  # fmt: skip


def test_help_is_quick():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(HELP, check=True, capture_output=True)
        return time.perf_counter() - start

    best = min(seconds() for _ in range(3))  # something else may run as well
    assert best < 2.0  # 0.16 s when nothing else runs


def test_help_names_every_command():
    output = subprocess.run(HELP, check=True, capture_output=True, text=True).stdout
    named = [line.split()[0] for line in output.partition("Commands:\n")[2].splitlines()]
    assert named == list(get_command(app).commands) == COMMANDS


def test_help_loads_no_heavy_library():
    code = "import bartleby.cli, sys; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


def test_noise_prints_the_original_and_each_level(cli, model_folder):
    result = cli("noise", TEXT, "--levels", "0.1", "1", "--model", model_folder)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:2] == ["original", f"  {TEXT}"]
    assert [line.split(" · ")[0] for line in lines if line.startswith("level")] == [
        "level 0.1",
        "level 1",
    ]
    assert max(map(len, lines)) <= 80
    assert "seed 0" in result.stderr and "greedy" in result.stderr


def test_noise_json_has_the_promised_fields(cli, model_folder):
    found = rows(cli("noise", TEXT, "--levels", "0", "0.5", "--json", "--model", model_folder))
    assert [row["level"] for row in found] == [0, 0.5]
    assert found[0]["snr_db"] is None  # infinite
    assert {"level", "snr_db", "cosine", "token_accuracy", "bleu", "text"} <= found[1].keys()


def test_noise_reads_standard_input_and_files(cli, model_folder, tmp_path):
    assert (
        "  Hello there."
        in cli("noise", "-", "--model", model_folder, input="Hello there.\n").stdout
    )
    path = tmp_path / "texts.txt"
    path.write_text("One text.\nAnother text.\n")
    plot = tmp_path / "curve.png"
    result = cli(
        "noise", "--file", path, "--levels", "0:1:0.5", "--plot", plot, "--model", model_folder
    )
    assert result.exit_code == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["level", "0", "0.5", "1"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_reconstruct_json_is_in_the_order_of_the_texts(cli, model_folder, tmp_path):
    texts = ["A rather longer text than the others.", "Short.", "Middle one."]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = rows(cli("reconstruct", path, "--json", "--model", model_folder))
    assert [row["text"] for row in found] == texts
    assert all(row.keys() == {"text", "reconstruction", "exact", "token_accuracy"} for row in found)


def test_a_long_text_is_cut_and_said_or_split(cli, model_folder, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("The dog likes tea. Nobody saw it. " * 8 + "\n")
    options = (path, "--json", "--model", model_folder)
    whole, parts = cli("reconstruct", *options), cli("reconstruct", *options, "--split")
    assert "1 of 1 texts have more than 32 tokens" in whole.stderr and len(rows(whole)) == 1
    assert "more than 32 tokens" not in parts.stderr and len(rows(parts)) == 4
    assert " ".join(row["text"] for row in rows(parts)) == path.read_text().strip()
    options = ("--file", path, "--levels", 0, "--json", "--model", model_folder)
    assert "truncated" in cli("noise", *options).stderr
    assert "truncated" not in cli("noise", *options, "--split").stderr


def test_reconstruct_reads_standard_input_and_prints_buckets(cli, model_folder):
    result = cli(
        "reconstruct", "-", "--model", model_folder, input="One two.\n" + "word " * 12 + "\n"
    )
    assert [line.split()[0] for line in result.stdout.splitlines()[:4]] == [
        "words",
        "1-9",
        "10-50",
        "all",
    ]


def test_info_of_a_run_and_of_a_pipeline(cli, generator_run, tmp_path):
    from bartleby.pipeline import load_pipeline

    load_pipeline(generator_run).save_pretrained(tmp_path / "saved")
    (run,), (saved,) = (
        rows(cli("info", model, "--json")) for model in (generator_run, tmp_path / "saved")
    )
    assert run["denoiser"] == saved["denoiser"] == "TokenTransformer"
    assert run["trained"]["steps"] == 40 and saved["trained"] is None
    assert run["lengths"][0] <= run["lengths"][1] <= run["window"] == 32
    printed = cli("info", generator_run).stdout
    assert (
        "sampled with" in printed and max(map(len, printed.splitlines())) <= 120
    )  # a folder's name is not folded


def test_weights_can_be_read_by_whoever_can_read_the_rest(generator_run):
    modes = {path.stat().st_mode & 0o777 for path in generator_run.rglob("*.safetensors")}
    assert modes == {(generator_run / "training.json").stat().st_mode & 0o777}


def test_info(cli, model_folder):
    (row,) = rows(cli("info", model_folder, "--json"))
    assert (row["channels"], row["window"], row["statistics"]) == (64, 32, None)
    assert row["stored"] == str(Path(model_folder).resolve())
    assert row["generator"] is None
    assert "[texts, 64, tokens (up to 32)]" in cli("info", model_folder).stdout


def test_info_of_the_bundled_bart_names_its_generator(cli):
    (row,) = rows(cli("info", "--json"))
    assert row["model"] == "nano" and row["generator"]["denoiser"] == "TokenTransformer"
    printed = cli("info").stdout
    assert "sampled with" in printed
    # Where they are stored is not folded.
    assert all(len(line) <= 80 or "/" in line for line in printed.splitlines())


def test_info_of_a_bart_whose_generator_is_broken(cli, model_folder, tmp_path, caplog):
    folder = Path(
        shutil.copytree(model_folder, tmp_path / "a-model-with-a-long-name" / "of-its-own")
    )
    (folder / "generator").mkdir()
    (folder / "generator" / "training.json").write_text("{}")
    result = cli("info", folder)
    assert result.exit_code == 0 and "its generator cannot be loaded" in caplog.text
    assert f"stored              {folder.resolve()}" in result.stdout


def test_a_noise_that_leaves_nothing_is_a_number(cli, model_folder):
    (row,) = rows(cli("noise", TEXT, "--levels", "1e20", "--model", model_folder, "--json"))
    assert row["snr_db"] < -300


def test_a_link_is_the_users_even_if_it_leads_nowhere(tmp_path):
    link = tmp_path / "plot.png"
    link.symlink_to(tmp_path / "elsewhere.png")
    check_plot_path(link)
    assert link.is_symlink()
    folder = tmp_path / "model"
    (tmp_path / "store").mkdir()
    folder.symlink_to(tmp_path / "store")
    with replaced_folder(folder) as temporary:
        (temporary / "new").write_text("new")
    assert (folder / "new").exists() and not (tmp_path / "store" / "new").exists()


def test_errors_are_one_line_with_exit_code_1(cli, model_folder, tmp_path):
    binary, latin = tmp_path / "binary.txt", tmp_path / "latin.txt"
    binary.write_bytes(b"\0\1\2")
    latin.write_bytes("café".encode("latin-1"))
    model = ("--model", model_folder)
    for arguments in (
        ("noise", "", *model),
        ("noise", " \n ", *model),
        ("noise", "word " * 100_000, *model),
        ("noise", TEXT, "--levels", "-1", *model),
        ("noise", TEXT, "--levels", "nan", *model),
        ("noise", TEXT, "--levels", "lots", *model),
        ("noise", TEXT, "--levels", "0:1:1e-320", *model),
        ("noise", "caf\udce9", *model),
        ("noise", TEXT, "--plot", tmp_path / "no" / "folder.png", *model),
        ("noise", TEXT, "--plot", tmp_path, *model),
        ("noise", TEXT, "--plot", tmp_path / "curve.unknown", *model),
        ("noise", TEXT, "--window", "100000", *model),
        ("noise", TEXT, "--model", tmp_path / "missing"),
        ("noise", TEXT, "--model", "facebook/bart-base"),
        ("noise", "--file", tmp_path / "missing.txt", *model),
        ("reconstruct", binary, *model),
        ("reconstruct", latin, *model),
        ("reconstruct", tmp_path, *model),
        ("info", tmp_path),
        ("pretrain", "--data", tmp_path / "none.txt", "--out", tmp_path / "run"),
        ("pretrain", "--data", latin, "--out", tmp_path / "run"),
        ("pretrain", "--data", "x.txt", "--out", "/dev/null/run"),
        ("pretrain", "--data", "x.txt", "--out", tmp_path / "run", "--preset", "huge"),
    ):
        result = cli(*arguments)
        assert result.exit_code == 1, (arguments, result.stderr, result.exception)
        last = result.stderr.splitlines()[-1]
        assert last.startswith("error: "), arguments
        assert "Traceback" not in result.stderr and result.stdout == "", arguments
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("noise", TEXT, "--file", "x.txt"),
        ("reconstruct",),
        ("nonsense",),
        ("noise", "--seed", "-1"),
        ("noise", "a", "b"),
    ],
)
def test_wrong_usage_is_exit_code_2(cli, arguments):
    assert cli(*arguments).exit_code == 2


def test_debug_shows_the_traceback(cli, tmp_path):
    result = cli("--debug", "info", tmp_path)
    assert result.exception is not None and "config.json is missing" in str(result.exception)


def test_levels_take_several_values_and_leave_the_text_alone():
    spread = spread_option(["--levels", "0.1", "0:1:0.5", "Some text", "--seed", "1"], "--levels")
    assert spread == ["--levels=0.1", "--levels=0:1:0.5", "Some text", "--seed", "1"]
    assert spread_option(["text", "--levels=0.3"], "--levels") == ["text", "--levels=0.3"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model_folder):
    command = [sys.executable, "-m", "bartleby", "noise", TEXT, "--model", str(model_folder)]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
