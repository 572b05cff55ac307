"""Choosing among candidates: by the decoder's own account, one text at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bartleby.batching import pad
from bartleby.denoisers import build_denoiser
from bartleby.errors import UserError
from bartleby.pipeline import load_pipeline
from bartleby.ranking import prior_nats
from bartleby.reading import IGNORED, reading_loss, token_nats
from bartleby.sampling import SamplingSettings
from bartleby.tokenization import decode_ids, encode_texts

ONE = SamplingSettings(steps=4, handover=0.5, decoder_temperature=1.0)
FOUR = dataclasses.replace(ONE, candidates=4)


def scores(pipeline, texts, seeds=None):
    return prior_nats(
        pipeline.autoencoder,
        pipeline.denoiser,
        pipeline.scheduler,
        encode_texts(pipeline.tokenizer, texts),
        seeds=seeds or [(0, 0)] * len(texts),
    )


def test_the_mean_of_the_token_nats_is_the_reading_loss(pipeline):
    texts = ["The dog likes tea.", "Nobody saw the red house."]
    autoencoder = pipeline.autoencoder
    latents, ids = autoencoder.readable(autoencoder.encode(texts)), autoencoder.tokenize(texts)
    labels, _ = pad(ids, IGNORED)
    with torch.no_grad():
        nats = token_nats(pipeline.bart, latents, labels)
        assert nats.shape == (sum(len(own) for own in ids),)
        assert float(reading_loss(pipeline.bart, latents, labels)) == pytest.approx(
            float(nats.mean())
        )
        alone = token_nats(
            pipeline.bart,
            autoencoder.readable(autoencoder.encode(texts[:1])),
            torch.tensor(ids[:1]),
        )
    torch.testing.assert_close(nats[: len(ids[0])], alone, atol=1e-5, rtol=1e-5)


def test_a_score_does_not_depend_on_the_other_texts(pipeline):
    texts = [
        "The dog likes tea.",
        "A small cat saw the red house.",
        "house cat the saw red. small A",
    ]
    together = scores(pipeline, texts)
    alone = [scores(pipeline, [text])[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_nor_for_a_network_that_sees_its_padding(pipeline):
    """A UNet halves the length, so what it makes of a short text depends on how far that is padded."""
    network = build_denoiser("text-unet", channels=pipeline.denoiser.config.channels, window=32)
    texts = ["The dog.", "A small cat saw the red house and then nobody saw the red house."]
    together, alone = [
        prior_nats(
            pipeline.autoencoder,
            network,
            pipeline.scheduler,
            encode_texts(pipeline.tokenizer, some),
            seeds=[(0, 0)] * len(some),
        )[0]
        for some in (texts, texts[:1])
    ]
    assert together == pytest.approx(alone, abs=1e-3)


def test_the_bundled_model_prefers_sentences_to_shuffled_words():
    texts = [
        "I want to go home now.",
        "She told me about her dog.",
        "now. home to go want I",
        "dog. me about her told She",
    ]
    pipeline = load_pipeline()
    nats = scores(pipeline, texts)
    assert max(nats[:2]) + 1 < min(nats[2:])


def test_the_best_of_the_candidates_stays(pipeline, monkeypatch):
    seen = []

    def watched(autoencoder, denoiser, scheduler, written, **options):
        seen.append((written, prior_nats(autoencoder, denoiser, scheduler, written, **options)))
        return seen[-1][1]

    monkeypatch.setattr("bartleby.drafts.prior_nats", watched)
    best = pipeline(6, settings=FOUR, seed=5)
    ((written, nats),) = seen
    texts = np.array(decode_ids(pipeline.tokenizer, written)).reshape(6, 4)
    assert best.texts == texts[range(6), nats.reshape(6, 4).argmin(axis=1)].tolist()
    first = pipeline(6, settings=ONE, seed=5)
    assert first.texts == texts[:, 0].tolist() != best.texts
    assert best.lengths == first.lengths
    assert pipeline(2, settings=FOUR, seed=5, first=3).texts == best.texts[3:5]


def test_infilling_chooses_among_lengths_and_keeps_the_words(pipeline):
    written = pipeline.infill("The <mask> likes tea.", 6, settings=FOUR)
    assert all(text.startswith("The") and text.endswith("likes tea.") for text in written.texts)
    single = pipeline.infill("The <mask> likes tea.", 6, settings=ONE)
    assert written.lengths != single.lengths


def test_a_reconstruction_has_no_candidates_to_choose_from(pipeline):
    texts = ["The dog likes tea.", "Nobody saw the red house."]
    assert pipeline.edit(texts, 0.0, settings=FOUR).texts == pipeline.edit(texts, 0.0).texts


def test_candidates_must_be_a_positive_number():
    with pytest.raises(UserError, match="candidates is 0; it must be a whole number, at least 1"):
        SamplingSettings(candidates=0)
