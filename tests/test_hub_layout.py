"""facebook/bart-base's real configuration with random weights, saved as the hub stores it."""

import json

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from bartleby.loading import load_autoencoder


@pytest.fixture(scope="module")
def bart_base(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart-base")
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=50265,
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
        max_position_embeddings=1024,
    )
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 1024
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_bart_base_goes_through_every_command(bart_base, cli, tmp_path):
    latents = load_autoencoder(bart_base).encode(["The dog likes tea.", "Tom."])
    assert latents.values.shape[:2] == (2, 768)
    path = tmp_path / "texts.txt"
    path.write_text("The dog likes tea.\n" + "word " * 300 + "\n")
    for command in (
        ("info", bart_base, "--json"),
        ("noise", "The dog likes tea.", "--model", bart_base),
        (
            "noise",
            "--file",
            path,
            "--split",
            "--relative",
            "--levels",
            "0",
            "1",
            "--model",
            bart_base,
        ),
        ("reconstruct", path, "--model", bart_base),
        ("reconstruct", path, "--model", bart_base, "--window", "1024", "--beams", "2"),
        ("demo", "--model", bart_base, "--plot", tmp_path / "curve.png"),
    ):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.stderr)


@pytest.mark.slow
def test_denoisers_train_on_bart_base_at_the_published_shape(bart_base, cli, tiny_config, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        '[denoiser]\nname = "text-unet"\n[objective]\ntarget = "v"\n'
        "[training]\nsteps = 3\nvalidation_texts = 2\n"
    )
    overrides = [f"autoencoder.model={bart_base}", f"data.source={tiny_config['data']['source']}"]
    options = [word for override in overrides for word in ("--set", override)]
    result = cli("train", config, "--out", tmp_path / "run", "--json", *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parameters"] == 7_830_272
    for command in (
        ("noise", "The dog likes tea.", "--model", bart_base, "--denoiser", tmp_path / "run"),
        ("doctor", tmp_path / "run"),
    ):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.stderr)
