"""A generator's own decoder: 8 bits of the layers, the rest of the BART untouched, misfits named."""

from __future__ import annotations

import shutil

import pytest
import torch

from bartleby.errors import UserError
from bartleby.loading import load_autoencoder
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.quantisation import dequantised, quantised
from bartleby.writing_decoder import (
    DECODER_FILE,
    READOUT,
    decoder_weights,
    deepen,
    load_decoder,
    save_decoder,
    untie_readout,
)


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
    layers = {f"model.decoder.{name}" for name in decoder_weights(own)}
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


def test_a_deeper_decoder_repeats_what_is_between_its_ends():
    bart = load_autoencoder().bart
    first, *middle, last = [layer.fc1.weight.clone() for layer in bart.model.decoder.layers]
    deepen(bart, 7)
    wanted = [first, *middle, *middle, middle[0], last]
    found = [layer.fc1.weight for layer in bart.model.decoder.layers]
    assert len(found) == 7 == bart.config.decoder_layers
    assert all(torch.equal(own, one) for own, one in zip(found, wanted, strict=True))
    assert len({weight.data_ptr() for weight in found}) == 7  # each learns by itself
    with pytest.raises(UserError, match="layers is 6; the decoder has 7 already"):
        deepen(bart, 6)


@pytest.mark.parametrize("present, layers", [(1, 3), (2, 5)])
def test_short_decoders_are_deepened_too(model_folder, present, layers):
    bart = load_autoencoder(model_folder).bart
    bart.model.decoder.layers = bart.model.decoder.layers[:present]
    bart.config.decoder_layers = present
    deepen(bart, layers)
    assert len(bart.model.decoder.layers) == layers


def test_a_deeper_decoder_with_its_own_readout_writes_the_same_after_every_way_of_saving(
    model_folder, generator_run, tmp_path
):
    bart = load_autoencoder(model_folder).bart
    deepen(bart, bart.config.decoder_layers + 2)
    embeddings = bart.model.shared.weight.clone()
    untie_readout(bart)
    with torch.no_grad():
        for weight in decoder_weights(bart).values():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.manual_seed(0))
    assert READOUT in decoder_weights(bart)
    assert torch.equal(bart.model.encoder.embed_tokens.weight, embeddings)
    run = shutil.copytree(generator_run, tmp_path / "run")
    save_decoder(bart, run)
    pipeline = TextDiffusionPipeline.from_run(run)
    assert len(pipeline.bart.model.decoder.layers) == bart.config.decoder_layers
    assert torch.allclose(pipeline.bart.lm_head.weight, bart.lm_head.weight, atol=0.02)
    pipeline.save_pretrained(tmp_path / "saved")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "saved")
    state = again.bart.state_dict()
    assert all(
        torch.equal(value, state[name]) for name, value in pipeline.bart.state_dict().items()
    )
    assert again(4, seed=1).texts == pipeline(4, seed=1).texts
    # The cache of keys and values knows the added layers: with it and without, the same tokens.
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    written = [
        pipeline.bart.generate(
            ids, max_new_tokens=12, use_cache=cached, decoder_start_token_id=2, eos_token_id=2
        ).tolist()
        for cached in (True, False)
    ]
    assert written[0] == written[1]
