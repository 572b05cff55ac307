"""Drawing the decoder's tokens: the right distribution, a text's own draws, nothing where nothing is drawn."""

from __future__ import annotations

import pytest
import torch
from conftest import TEXTS

from bartleby.autoencoder import DecodeSettings
from bartleby.drawing import draws
from bartleby.errors import UserError
from bartleby.latents import Latents
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.sampling import SamplingSettings

DRAWN = DecodeSettings(temperature=1.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    count = 20_000
    draw = draws(temperature, 0.0, [(index,) for index in range(count)])
    drawn = draw(torch.zeros(count, 1, dtype=torch.long), logits.expand(count, -1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / count
    assert torch.allclose(shares, (logits / temperature).softmax(dim=0), atol=0.015)


def test_min_p_leaves_out_what_is_unlikely_beside_the_likeliest():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    draw = draws(1.0, 0.4, [(index,) for index in range(5_000)])
    drawn = draw(torch.zeros(5_000, 1, dtype=torch.long), logits.expand(5_000, -1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / 5_000
    assert shares[2:].sum() == 0  # below 0.4 of 0.5
    assert shares[0] == pytest.approx(0.5 / 0.8, abs=0.03)


def test_a_text_draws_the_same_alone_and_in_company(autoencoder):
    latents = autoencoder.encode(TEXTS[:6])
    noisy = Latents(
        latents.values + 2 * torch.randn(latents.values.shape, generator=torch.manual_seed(0)),
        latents.mask,
    )
    seeds = [(7, index) for index in range(6)]
    together = autoencoder.decode(noisy, DRAWN, seeds=seeds)
    for index in range(6):
        own = int(noisy.mask[index].sum())
        single = Latents(
            noisy.values[index : index + 1, :, :own], noisy.mask[index : index + 1, :own]
        )
        assert autoencoder.decode(single, DRAWN, seeds=[seeds[index]]) == [together[index]]
    assert together != autoencoder.decode(noisy)  # the tiny decoder is sure of nothing
    assert together != autoencoder.decode(noisy, DRAWN, seeds=[(8, index) for index in range(6)])


def test_a_pipeline_draws_by_seed_and_reconstructs_without(generator_run):
    pipeline = TextDiffusionPipeline.from_run(generator_run)
    settings = SamplingSettings(steps=3, handover=0.5, decoder_temperature=1.0)
    texts = pipeline(5, settings=settings).texts
    assert texts == pipeline(5, settings=settings).texts
    assert texts[3:] == pipeline(2, settings=settings, first=3).texts
    assert texts != pipeline(5, settings=SamplingSettings(steps=3, handover=0.5)).texts
    rebuilt = pipeline.edit(TEXTS[:8], 0.0, settings=settings).texts
    assert rebuilt == pipeline.edit(TEXTS[:8], 0.0).texts


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="beam search does not draw"):
        DecodeSettings(num_beams=2, temperature=0.5)
    with pytest.raises(UserError, match="decoder's temperature is -1"):
        DecodeSettings(temperature=-1)
    with pytest.raises(UserError, match="decoder's temperature is 11"):
        SamplingSettings(decoder_temperature=11)
    assert "drawn at temperature 0.5" in str(DecodeSettings(temperature=0.5))
    with pytest.raises(UserError, match="decoder's min_p is 2"):
        SamplingSettings(decoder_min_p=2)
    assert "greedy" in str(SamplingSettings().decoding())
    assert "3 beams" in str(SamplingSettings(decoder_temperature=1.0).decoding(num_beams=3))
