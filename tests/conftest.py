"""A small corpus, tiny models made from it, and what several tests need; nothing here needs the network."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from bartleby.autoencoder import Autoencoder, fit_latent_statistics
from bartleby.bart import new_bart
from bartleby.cli import app
from bartleby.tokenization import train_tokenizer

torch.set_num_threads(1)  # the models here are too small to share out

SUBJECTS = ("The dog", "A small cat", "My sister", "The old clerk", "Nobody", "Tom", "The children")
VERBS = ("likes", "saw", "wants", "lost", "draws", "remembers")
OBJECTS = (
    "the red house.",
    "a letter!",
    "two apples.",
    "the sea?",
    "“nothing at all”.",
    "some tea, please.",
)
TEXTS = [" ".join(words) for words in itertools.product(SUBJECTS, VERBS, OBJECTS)]
WINDOW = 32


def quiet(message: str) -> None:
    """In place of `say`."""


def started(*arguments: object, processes: int = 1, **environment: str) -> subprocess.Popen:
    """`python -m` with these arguments, in so many processes of `torchrun`."""
    launch = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    return subprocess.Popen(
        [sys.executable, "-m", *(launch if processes > 1 else []), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def rows(result: Result) -> list[dict]:
    """The JSON objects that a command printed, one a line; it must have succeeded."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights that a checkpoint goes on training: a denoiser's, not their average, or a BART's."""
    own = checkpoint / "weights.safetensors"
    return load_file(own if own.exists() else checkpoint / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two networks' weights are equal bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name].cpu(), second[name].cpu()) for name in first
    )


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=400, window=WINDOW)


@pytest.fixture(scope="session")
def autoencoder(tokenizer) -> Autoencoder:
    """An untrained tiny BART; its aligned cross-attention makes its decoder depend on the latents."""
    bart = new_bart(tokenizer, architecture="tiny", window=WINDOW, seed=0).eval()
    return Autoencoder(bart, tokenizer, WINDOW, name="tiny")


@pytest.fixture(scope="session")
def statistics(autoencoder):
    return fit_latent_statistics(autoencoder, TEXTS, source="tests")


@pytest.fixture(scope="session")
def model_folder(autoencoder, tmp_path_factory) -> Path:
    """The tiny BART in the layout of the Hugging Face hub."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    autoencoder.bart.save_pretrained(folder)
    autoencoder.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus_file(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def latent_caches(tmp_path_factory):
    """Latent caches of the tests go to a folder of their own."""
    os.environ["BARTLEBY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny_config(model_folder, corpus_file) -> dict:
    """Tables of a training configuration that takes a second: the tiny BART, a tiny transformer."""
    return {
        "data": {"source": str(corpus_file)},
        "autoencoder": {"model": str(model_folder)},
        "denoiser": {"name": "transformer", "size": "tiny"},
        "training": {
            "steps": 12,
            "tokens_per_batch": 256,
            "warmup_steps": 2,
            "validate_every": 6,
            "validation_texts": 4,
        },
    }


@pytest.fixture
def generator_config(tiny_config) -> dict:
    """The same for a denoiser that writes: the tiny token-transformer, given part of half of the texts."""
    tiny_config["denoiser"] = {
        "name": "token-transformer",
        "size": "tiny",
        "self_conditioning": True,
    }
    tiny_config["objective"] = {"loss": "cross-entropy", "schedule": "tan", "conditioned": 0.5}
    return tiny_config


@pytest.fixture(scope="session")
def generator_run(model_folder, tmp_path_factory) -> Path:
    """A finished run of the tiny token-transformer."""
    from bartleby.config import config_from_dict
    from bartleby.training_run import run_training

    folder = tmp_path_factory.mktemp("generator")
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    tables = {
        "data": {"source": str(folder / "texts.txt")},
        "autoencoder": {"model": str(model_folder)},
        "denoiser": {"name": "token-transformer", "size": "tiny", "self_conditioning": True},
        "objective": {"loss": "cross-entropy", "schedule": "tan", "conditioned": 0.5},
        "training": {"steps": 40, "tokens_per_batch": 256, "learning_rate": 3e-3},
    }
    run_training(config_from_dict(tables), folder / "run", say=quiet)
    return folder / "run"


@pytest.fixture(scope="session")
def pipeline(generator_run):
    """The pipeline of that run. All tests share it: none may change it."""
    from bartleby.pipeline import load_pipeline

    return load_pipeline(generator_run)


@pytest.fixture
def cli():
    """Runs `bartleby` with arguments; the result has exit_code, stdout and stderr."""
    torch.manual_seed(0)

    def call(*arguments: object, input: str | bytes | None = None):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)

    return call
