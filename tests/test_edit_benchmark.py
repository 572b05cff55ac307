"""The benchmark of edits: gaps, what must be exact, the table, the picture, bad input."""

from __future__ import annotations

import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from conftest import TEXTS
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from bartleby.defaults import write_defaults
from bartleby.edit_benchmark import EditBenchmark, run_edit_benchmark, with_gap
from bartleby.errors import UserError
from bartleby.evaluation.judges import load_language_model
from bartleby.evaluation.ngrams import words_of
from bartleby.pipeline import load_pipeline
from bartleby.sampling import SamplingSettings

STRENGTHS, PLACES = [0.0, 0.5, 1.0], 3


class BagOfWords:
    """In place of an `Embedder`: texts are as similar as the words they share are many."""

    name = "bag of words"

    def embed(self, texts: list[str]) -> np.ndarray:
        """[n, d] unit vectors, zero for a text without words."""
        counts = np.zeros((len(texts), 256), np.float32)
        for row, text in enumerate(texts):
            for word in words_of(text):
                counts[row, zlib.crc32(word.encode()) % 256] += 1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1)


@pytest.fixture(scope="module")
def judges(tokenizer, tmp_path_factory):
    """(judge, embedder): folders of untrained models; what they say means nothing, how it is used is tested."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer)}
    networks = {
        "judge": GPT2LMHeadModel(
            GPT2Config(**sizes, n_positions=64, n_embd=16, n_layer=1, n_head=2)
        ),
        "embedder": BertModel(
            BertConfig(
                **sizes,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            )
        ),
    }
    folder = tmp_path_factory.mktemp("judges")
    for name, network in networks.items():
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "judge", folder / "embedder"


def test_a_gap_leaves_the_ends_and_takes_one_to_three_words():
    text = "the dog likes to drink tea at home"
    for seed in range(50):
        words = with_gap(text, seed=(seed,)).split()
        assert words[0] == "the" and words[-1] == "home" and words.count("<mask>") == 1
        assert 8 - 3 <= len(words) - 1 <= 8 - 1
    assert len({with_gap(text, seed=(seed,)) for seed in range(50)}) > 10
    with pytest.raises(UserError, match="has 4 words; a gap needs at least 5"):
        with_gap("too short a text", seed=(0,))


def benchmark_of(pipeline, judges):
    judge = load_language_model(str(judges[0]))
    return EditBenchmark(pipeline, judge, BagOfWords(), SamplingSettings(steps=4))


def test_rows_are_there_and_an_edit_of_strength_0_keeps_what_one_of_1_forgets(judges):
    benchmark = benchmark_of(load_pipeline(), judges)
    texts = [text for text in TEXTS if len(text.split()) >= 5][:6]
    rows = run_edit_benchmark(benchmark, [*texts, "Hi."], strengths=STRENGTHS, places=PLACES)
    assert [row.kind for row in rows] == [
        "human", *["edit"] * 3, *["interpolation"] * 3, "human", "infilling",
    ]  # fmt: skip
    assert [row.amount for row in rows[1:7]] == [0, 0.5, 1, 0, 0.5, 1]
    assert rows[0].similarity == pytest.approx(1, abs=1e-5) and rows[0].unchanged == 1
    kept, _, new = rows[1:4]
    assert kept.unchanged > 0.6 and new.unchanged < 0.2
    assert kept.similarity > 0.9 and new.similarity < 0.7


def test_texts_too_long_for_the_window_are_not_filled_in(judges, generator_run, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("bartleby.edit_benchmark.say", said.append)
    texts = [text for text in TEXTS if len(text.split()) >= 5][:4]
    benchmark = benchmark_of(load_pipeline(generator_run), judges)
    rows = run_edit_benchmark(benchmark, [*texts, " ".join(TEXTS)], strengths=[0.0], places=2)
    assert said == ["1 texts are too long to be filled in"]
    assert [row.kind for row in rows][-1] == "infilling"


def test_an_interpolation_leaves_the_first_text_and_arrives_at_the_last(judges):
    """With the bundled model, which reconstructs these texts exactly."""
    texts = [text for text in TEXTS if len(text.split()) >= 5][::29][:4]
    embedder, pairs = BagOfWords(), list(zip(texts[::2], texts[1::2], strict=True))
    apart = float(np.mean([np.prod(embedder.embed(pair), axis=0).sum() for pair in pairs]))
    assert apart < 0.5  # or ends that are swapped would not be seen
    first, _, last = benchmark_of(load_pipeline(), judges).interpolations(
        pairs, PLACES, track=lambda items, total: iter(items)
    )
    assert (first.amount, last.amount) == (0, 1)
    assert first.similarity == pytest.approx(1) and last.similarity_last == pytest.approx(1)
    assert first.similarity_last == pytest.approx(apart) == last.similarity


def test_the_command(cli, generator_run, judges, tmp_path):
    run, reference, plot = tmp_path / "run", tmp_path / "reference.txt", tmp_path / "edits.png"
    shutil.copytree(generator_run, run)
    write_defaults(run, SamplingSettings(steps=3, candidates=2))  # quick
    reference.write_text("\n".join(TEXTS[:12]) + "\n")
    options = ["benchmark-edits", "--reference", reference, "--model", run, "-n", 8]
    options += ["--judge", judges[0], "--embedder", judges[1], "--places", 3]
    result = cli(*options, "--strength", 0, "--strength", 1, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and lines[2].startswith("edit 0 ")
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = cli(*options, "--strength", 0.5, "--json").stdout.splitlines()
    assert json.loads(rows[1])["kind"] == "edit" and json.loads(rows[1])["amount"] == 0.5
    assert cli(*options, "--strength", 2).exit_code == 2
    reference.write_text("Too short.\nThis too.\n")
    failed = cli(*options)
    assert failed.exit_code == 1 and "fewer than 2 of the texts" in failed.stderr
