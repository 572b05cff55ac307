"""Candidates stand for a vocabulary: their weighted sum is its sum, and networks score them alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quiet

from bartleby.config import config_from_dict
from bartleby.denoisers.candidates import draw_candidates
from bartleby.errors import UserError
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.training_run import run_training

VOCABULARY = 50
TOKENS = np.array([0, 7, 7, 31, 2])


def test_the_tokens_of_the_batch_are_always_there_and_found():
    candidates = draw_candidates(TOKENS, VOCABULARY, others=10, seed=(1,))
    assert len(candidates.ids) == 4 + 10 and candidates.ids.diff().min() > 0
    places = candidates.places(torch.from_numpy(TOKENS))
    assert (candidates.ids[places].numpy() == TOKENS).all()
    assert (candidates.log_weight[places] == 0).all()


def test_the_weighted_sum_is_the_whole_sum_on_average():
    logits = torch.randn(VOCABULARY, generator=torch.manual_seed(0))
    estimates = []
    for seed in range(3000):
        candidates = draw_candidates(TOKENS, VOCABULARY, others=10, seed=(seed,))
        estimates.append(float((logits[candidates.ids] + candidates.log_weight).exp().sum()))
    error = np.std(estimates) / len(estimates) ** 0.5
    assert np.mean(estimates) == pytest.approx(float(logits.exp().sum()), abs=4 * error)


def test_as_many_as_there_are_is_the_whole_vocabulary():
    candidates = draw_candidates(TOKENS, VOCABULARY, others=VOCABULARY, seed=(1,))
    assert candidates.ids.tolist() == list(range(VOCABULARY))
    assert (candidates.log_weight == 0).all()


def test_a_network_scores_candidates_as_it_does_the_vocabulary(generator_run):
    pipeline = TextDiffusionPipeline.from_run(generator_run)
    denoiser, scheduler = pipeline.denoiser, pipeline.scheduler
    tokens = torch.tensor([[0, 9, 12, 40, 2]])
    known = torch.tensor([[0, -1, 12, -1, 2]])
    vocabulary = denoiser.config.vocabulary
    candidates = draw_candidates(tokens.numpy().ravel(), vocabulary, others=20, seed=(3,))
    noise = torch.randn(1, denoiser.config.channels, 5, generator=torch.manual_seed(4))
    timestep = scheduler.config.num_train_timesteps // 2
    with torch.no_grad():
        whole = denoiser(noise, timestep, known=known)
        some = denoiser(noise, timestep, known=known, candidates=candidates)
    assert some.logits.shape == (5, 5 + 20)
    open_places = known[0] < 0
    expected = whole.logits[:, candidates.ids] + candidates.log_weight
    # What the network reads differs a little, since the expected token it starts from is over fewer.
    difference = (some.logits - expected)[open_places]
    assert difference.abs().max() < 0.2
    assert torch.allclose(some.sample[..., 2], whole.sample[..., 2], atol=1e-4)


def test_training_on_candidates_learns(generator_config, tmp_path):
    generator_config["training"] |= {"steps": 150, "learning_rate": 3e-3, "validate_every": 150}
    generator_config["objective"]["candidates"] = 20
    record = run_training(config_from_dict(generator_config), tmp_path / "run", say=quiet)
    generator_config["training"]["steps"] = 1
    start = run_training(config_from_dict(generator_config), tmp_path / "start", say=quiet)
    assert record["validation"]["cross_entropy"] < 0.6 * start["validation"]["cross_entropy"]


def test_other_denoisers_predict_no_tokens():
    with pytest.raises(UserError, match="objective.candidates is 5, but 'transformer'"):
        config_from_dict({"objective": {"candidates": 5}})
