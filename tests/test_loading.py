import dataclasses
import functools
import json
import shutil

import huggingface_hub
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    T5Config,
)

from bartleby.errors import UserError
from bartleby.latents import STATISTICS_FILE
from bartleby.loading import load_autoencoder


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(model_folder, tmp_path / "model")


def test_loads_what_save_pretrained_wrote(model_folder, autoencoder):
    # Where bfloat16 is fast a loaded one computes in it, the fixture never does.
    loaded = dataclasses.replace(load_autoencoder(model_folder), dtype=torch.float32)
    latents = loaded.encode(["The dog likes tea."])
    assert torch.allclose(
        latents.values, autoencoder.encode(["The dog likes tea."]).values, atol=1e-5
    )
    assert loaded.window == 32
    assert type(AutoModelForSeq2SeqLM.from_pretrained(model_folder)) is BartForConditionalGeneration


def test_generation_defaults_of_a_hub_model_do_not_leak_in(folder, autoencoder):
    (folder / "generation_config.json").write_text(
        # facebook/bart-base has the first two; the others would be noticed by this text.
        json.dumps({"num_beams": 4, "forced_bos_token_id": 0, "min_length": 15, "max_length": 5})
    )
    loaded, texts = load_autoencoder(folder), ["The children remembers the red house."]
    assert loaded.decode(loaded.encode(texts)) == autoencoder.decode(autoencoder.encode(texts))


def test_window_follows_the_model_and_the_wish(model_folder):
    assert load_autoencoder(model_folder, window=16).window == 16
    with pytest.raises(UserError, match="window is 64; this model reads 4 to 32 tokens"):
        load_autoencoder(model_folder, window=64)


def test_statistics_beside_the_model_are_used(folder, statistics):
    (folder / STATISTICS_FILE).write_text(json.dumps(statistics.to_json()))
    assert torch.allclose(load_autoencoder(folder).statistics.mean, statistics.mean)
    (folder / STATISTICS_FILE).write_text(
        json.dumps({**statistics.to_json(), "mean": [0.0], "std": [1.0]})
    )
    with pytest.raises(UserError, match="1 channels"):
        load_autoencoder(folder)
    (folder / STATISTICS_FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_autoencoder(folder)


def _write_config(folder, config):
    config.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: _write_config(f, GPT2Config()), "is a gpt2 model; Bartleby needs a BART"),
        (lambda f: _write_config(f, T5Config()), "is a t5 model; Bartleby needs a BART"),
        (lambda f: (f / "model.safetensors").write_bytes(b"rubbish"), "damaged"),
        (lambda f: _cut(f / "model.safetensors"), "damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
        (
            lambda f: _write_config(
                f, BartConfig(d_model=32, encoder_attention_heads=2, decoder_attention_heads=2)
            ),
            "cannot",
        ),
    ],
)
def test_unusable_folders_are_named_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        load_autoencoder(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_missing_folder_and_uncached_name_offline():
    with pytest.raises(UserError, match="no model folder at './nowhere'"):
        load_autoencoder("./nowhere")
    with pytest.raises(UserError, match="not in the Hugging Face cache, and HF_HUB_OFFLINE is set"):
        load_autoencoder("facebook/bart-base")


def test_a_cached_hub_model_is_loaded_by_name_without_network(model_folder, tmp_path, monkeypatch):
    """The layout of the Hugging Face cache: refs/main names a commit, snapshots/COMMIT holds the files."""
    repository = tmp_path / "hub" / "models--someone--small-bart"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model_folder, repository / "snapshots" / ("0" * 40))
    download = functools.partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "hub")
    monkeypatch.setattr("bartleby.loading.snapshot_download", download)
    loaded = load_autoencoder("someone/small-bart")
    assert loaded.name == "someone/small-bart"
    assert loaded.encode(["Tom."]).values.shape[1] == 64
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not in the Hugging Face cache"):
        load_autoencoder("someone/small-bart")


def test_a_name_that_no_hub_could_hold():
    with pytest.raises(UserError, match="neither a folder nor a hub name"):
        load_autoencoder("two words")
