"""docs/extending.md and the README's denoiser: one's own code runs as it stands there."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import quiet

import bartleby
from bartleby import load_pipeline
from bartleby.errors import UserError
from bartleby.sampling import SamplingSettings
from bartleby.schedules import noise_scheduler

ROOT = Path(__file__).parents[1]


def blocks(page: str, mark: str) -> str:
    """The Python blocks of a page that hold `mark`."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return "\n\n".join(block for block in found if mark in block)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The working folder holds mine.py, as the documents have it."""
    code = blocks("README.md", "class Mine") + blocks("docs/extending.md", "# mine.py")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield
    sys.modules.pop("mine", None)


def test_a_schedule_of_ones_own_trains_and_stays_with_the_run(mine, cli, tiny_config, tmp_path):
    from bartleby.config import config_from_dict
    from bartleby.run_setup import open_run
    from bartleby.training_run import run_training

    tiny_config["objective"] = {"schedule": "mine:sigmoid"}
    run_training(config_from_dict(tiny_config), tmp_path / "run", say=quiet)
    alpha_bar = open_run(tmp_path / "run", say=quiet)[0].scheduler.alphas_cumprod
    import mine

    expected = torch.tensor([mine.sigmoid((step + 1) / 1000) for step in range(1000)])
    assert torch.allclose(alpha_bar, expected, atol=2e-3)
    assert torch.equal(noise_scheduler(mine.sigmoid).alphas_cumprod, alpha_bar)
    (tmp_path / "mine.py").unlink()
    del sys.modules["mine"]
    assert cli("generate", "-n", 1, "--model", tmp_path / "run", "--steps", 2).exit_code == 0
    assert cli("doctor", tmp_path / "run").exit_code == 0


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda t: t, "goes from 0 at t = 0 to 1 at t = 1"),
        (lambda t: 1 - t / 2, "goes from 1 at t = 0 to 0.5"),
        (lambda t: None, "fails: "),
        ("nowhere:sigmoid", "objective.schedule is 'nowhere:sigmoid', which fails: No module"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, message):
    with pytest.raises(UserError, match=message):
        noise_scheduler(schedule)


def test_a_sampler_of_ones_own_ends_where_others_do(mine, cli):
    """With the exact denoiser of one text, every sampler must end at that text."""
    from types import SimpleNamespace

    from bartleby.sampling import sample_latents, starting_noise

    scheduler = noise_scheduler("tan", d=6.0)
    mask = torch.ones(1, 5, dtype=torch.bool)
    x0 = torch.linspace(-2, 2, 20).view(1, 4, 5)

    def oracle(xt, timesteps, mask):
        return SimpleNamespace(sample=x0)

    oracle.config = SimpleNamespace(channels=4)
    start = starting_noise(mask, 4, seeds=[(0, 0)])
    settings = SamplingSettings("mine:heun", 10)
    steps = list(sample_latents(oracle, scheduler, start, mask, settings, seeds=[(0, 0)]))
    assert len(steps) == 10 and torch.allclose(steps[-1].x0, x0)
    assert (steps[-2].latents - x0).abs().max() < 1.5  # nearly there
    result = cli("generate", "-n", 2, "--sampler", "mine:heun", "--steps", 4, "--json")
    texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and all(text.strip() for text in texts)


def test_a_wrong_sampler_is_named(mine, cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def none(*parts):\n    yield from ()\n\n"
        "def endless(estimate, xt, *rest):\n    while True:\n        yield xt, xt\n\n"
        "def halved(estimate, xt, *rest):\n    yield xt[:1], xt[:1, :1]\n"
    )
    for name, message in (
        ("none", "makes fewer steps than the 8 timesteps"),
        ("endless", "makes more steps than the 8 timesteps"),
        ("halved", "must yield"),
        ("missing", "sampler is 'mine:missing', which fails"),
    ):
        result = cli("generate", "-n", 2, "--sampler", f"mine:{name}")
        assert result.exit_code == 1 and message in result.stderr, result.stderr


def test_a_training_loop_of_ones_own_makes_a_pipeline(mine, cli, tmp_path):
    (tmp_path / "train.py").write_text(blocks("docs/extending.md", "# train.py"))
    made = runpy.run_path(str(tmp_path / "train.py"))
    assert made["loss"] < 0.9
    result = cli("generate", "-n", 2, "--model", "my-generator", "--steps", 3)
    assert result.exit_code == 0, result.stderr


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "readme.py").write_text("\n".join(found))
    (tmp_path / "stories.txt").write_text("".join(f"Dog {n} is asleep.\n" for n in range(300)))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path("readme.py")
    printed = capsys.readouterr().out
    assert "torch.Size([1, 256, 8])\n['I would prefer not to.']\n" in printed
    assert made["record"]["steps"] == 40 and made["denoiser"].config.channels == 256
    assert load_pipeline("my-generator")(1).texts == load_pipeline()(1).texts


def test_every_public_name_can_be_had_and_stays_what_it_is():
    for name in bartleby.__all__:
        first = getattr(bartleby, name)
        assert getattr(bartleby, name) is first and not isinstance(first, type(sys)), name
        assert name in dir(bartleby)
    source = (ROOT / "src" / "bartleby" / "__init__.py").read_text(encoding="utf-8")
    typed = source[source.index("if TYPE_CHECKING:") : source.index("_PUBLIC = {")]
    for name in set(bartleby.__all__) - {"__version__"}:
        assert re.search(rf"\b{name}\b", typed), f"{name} is not known to type checkers"
