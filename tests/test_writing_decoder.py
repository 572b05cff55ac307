"""A generator's own decoder: 8 bits of the layers, the rest of the BART untouched, misfits named."""

from __future__ import annotations

import shutil

import pytest
import torch

from bartleby.errors import UserError
from bartleby.loading import load_autoencoder
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.quantisation import dequantised, quantised
from bartleby.writing_decoder import DECODER_FILE, decoder_layers, load_decoder, save_decoder


def test_eight_bits_keep_every_row_to_a_254th_of_its_largest():
    tensors = {"matrix": torch.randn(5, 40), "vector": torch.randn(7)}
    back = dequantised(quantised(tensors))
    assert set(back) == set(tensors) and torch.equal(back["vector"], tensors["vector"])
    largest = tensors["matrix"].abs().amax(dim=1, keepdim=True)
    assert ((back["matrix"] - tensors["matrix"]).abs() <= largest / 254 + 1e-6).all()


def test_only_the_layers_travel_and_a_run_writes_with_its_own(
    model_folder, generator_run, tmp_path
):
    other = load_autoencoder(model_folder).bart
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.manual_seed(0))
    run = shutil.copytree(generator_run, tmp_path / "run")
    plain = TextDiffusionPipeline.from_run(run).bart.state_dict()
    save_decoder(other, run)
    own = TextDiffusionPipeline.from_run(run).bart
    layers = {f"model.decoder.{name}" for name in decoder_layers(own)}
    for name, value in own.state_dict().items():
        expected = other.state_dict()[name] if name in layers else plain[name]
        assert torch.allclose(value, expected, atol=0.02), name
    asked = TextDiffusionPipeline.from_run(run, model=model_folder).bart  # another was asked for
    assert all(torch.equal(value, plain[name]) for name, value in asked.state_dict().items())


def test_what_does_not_fit_is_named(autoencoder, model_folder, tmp_path):
    bart = load_autoencoder(model_folder).bart
    load_decoder(bart, tmp_path)  # none there: nothing happens
    (tmp_path / DECODER_FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        load_decoder(bart, tmp_path)
    save_decoder(load_autoencoder().bart, tmp_path)  # nano is wider
    with pytest.raises(UserError, match="of another shape"):
        load_decoder(bart, tmp_path)
