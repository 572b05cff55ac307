"""Several processes share a run: together they learn what one alone would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rows, started
from safetensors.torch import load_file

from bartleby.errors import UserError
from bartleby.processes import Processes, make_accelerator
from bartleby.run_log import read_log

# Seven texts of different lengths, so that processes have unequal numbers of tokens; nothing is drawn.
SHARED = """
import sys
from pathlib import Path

import numpy as np
import torch

from bartleby.autoregressive import AutoregressiveConfig
from bartleby.denoisers import DenoisingTransformer
from bartleby.processes import launched
from bartleby.training_loop import StepLoss, training_loop


processes, device = launched("cpu")
torch.manual_seed(0)
network = DenoisingTransformer(channels=4, width=16, layers=1, heads=2)
lengths, values = np.array([3, 9, 4, 7, 2, 8, 5]), torch.randn(7, 4, 9)


def losses(step):
    while True:
        rows = processes.share(np.arange(7))
        mask = torch.arange(9) < torch.from_numpy(lengths[rows])[:, None]
        error = (network(values[rows], 100, mask).sample - values[rows].flip(1)).square().mean(dim=1)
        mean = error[mask].mean()
        yield StepLoss(mean, int(mask.sum()), {"loss": mean, "kind": "a"})


optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
out = Path(sys.argv[1])
settings = AutoregressiveConfig(steps=5, learning_rate=1e-2, warmup_steps=1, decay_share=0.0)
options = {"origins": {}, "processes": processes}
states = list(training_loop(settings, network, optimizer, losses, out, **options))
assert all(state.tokens == 38 * state.step for state in states)
assert [state.saved is not None for state in states] == [False] * 4 + [processes.is_main]
(out / f"losses-{processes.index}").write_text(" ".join(str(state.losses["loss"]) for state in states))
"""


def succeeded(process) -> str:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    return errors.decode()


def test_the_loss_and_its_gradient_are_those_of_all_tokens(tmp_path):
    (tmp_path / "shared_script.py").write_text(SHARED)
    ends = {}
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        succeeded(started("shared_script", out, processes=count, PYTHONPATH=str(tmp_path)))
        saved = load_file(out / "checkpoints/step-00000005/diffusion_pytorch_model.safetensors")
        losses = [(out / f"losses-{index}").read_text().split() for index in range(count)]
        assert all(own == losses[0] for own in losses)
        ends[count] = np.array(losses[0], float), saved
    assert ends[1][0] == pytest.approx(ends[2][0], rel=1e-5)
    assert ends[1][0][-1] < ends[1][0][0]
    for name, weight in ends[1][1].items():
        torch.testing.assert_close(weight, ends[2][1][name], atol=1e-5, rtol=1e-4)


def shared_run(command: str, out: Path, *options: object, steps: int = 12) -> str:
    """What two processes say of a run that they share; it must be there, logged once and reported once."""
    arguments = ("bartleby", command, *options, "--tokens-per-batch", 256, "--out", out)
    messages = succeeded(started(*arguments, "--steps", steps, processes=2))
    assert messages.count("2 processes") == 1 and messages.count("saved ") == 1
    logged = [row["step"] for row in read_log(out) if row["kind"] == "train"]
    assert logged == sorted(set(logged)) and logged[-1] == steps
    assert (out / "model" / "config.json").exists()
    return messages


def test_two_processes_repair_and_one_goes_on(generator_run, cli, tmp_path):
    out = tmp_path / "repaired"
    shared_run("repair", out, generator_run)
    options = ("--tokens-per-batch", 256, "--steps", 14, "--json")
    alone = cli("repair", generator_run, "--out", out, *options)
    assert "2 processes had this run before" in alone.stderr
    assert rows(alone)[0]["nats_after"]


@pytest.mark.slow
def test_two_processes_pretrain_and_compress(corpus_file, model_folder, tmp_path):
    shared_run("pretrain", tmp_path / "bart", "--preset", "tiny", "--data", corpus_file)
    options = ("--model", model_folder, "--data", corpus_file, "--window", 32)
    shared_run("compress", tmp_path / "compressed", *options)
    again = shared_run("compress", tmp_path / "compressed", *options, steps=14)
    assert again.count("resuming from") == 1 and "step 12 of 14" in again


def test_what_one_process_does_is_refused_to_several(cli, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = cli("generate", "-n", 1)
    assert result.exit_code == 1 and "generate is the work of one process" in result.stderr


class Third(Processes):
    index, count = 2, 4

    def from_main(self, make):
        return 8


def test_every_process_gets_rows_draws_its_own_numbers_and_begins_where_the_main_one_does():
    assert Third().share(np.arange(11)).tolist() == [2, 6, 10]
    assert Third().share(np.array([5, 6])).tolist() == [5]
    assert Third().seed(1, 2) == (1, 2, 2)
    Third().check_same(8)
    with pytest.raises(UserError, match="process 2 would begin at step 0"):
        Third().check_same(0)
    alone = Processes()
    alone.check_same(5)
    assert alone.share(np.arange(3)).tolist() == [0, 1, 2] and alone.seed(1, 2) == (1, 2)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("bartleby.processes.chosen_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes were started, but this machine has 2 GPUs"):
        make_accelerator()
