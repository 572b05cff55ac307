"""The denoiser that predicts tokens: Bayes' rule, what is given, its contract, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import quiet

from bartleby.conditioning import given_positions, given_prefix, given_words
from bartleby.config import config_from_dict
from bartleby.denoisers import TokenTransformer
from bartleby.errors import UserError
from bartleby.schedules import noise_scheduler
from bartleby.training_run import run_training

CHANNELS, VOCABULARY, LENGTH = 16, 30, 10


@pytest.fixture
def denoiser() -> TokenTransformer:
    """Tables of a made-up language: tokens far apart, a small Gaussian rest."""
    torch.manual_seed(0)
    network = TokenTransformer(
        channels=CHANNELS, width=32, layers=2, heads=2, vocabulary=VOCABULARY, window=LENGTH
    )
    network.posterior.fit(
        position_means=torch.randn(LENGTH, CHANNELS),
        token_means=torch.randn(VOCABULARY, CHANNELS),
        prior=torch.rand(VOCABULARY).softmax(dim=0),
        within=0.05 * torch.eye(CHANNELS),
        alpha_bar=noise_scheduler("tan").alphas_cumprod,
    )
    return network.eval()


def text(denoiser, tokens):
    """Clean latents [1, C, L] of tokens, without the rest."""
    posterior = denoiser.posterior
    places = posterior.token_means[tokens] @ posterior.basis.T + posterior.position_means
    return places.T[None]


def test_before_training_it_is_bayes_rule_for_each_token_alone(denoiser):
    tokens = torch.arange(LENGTH)
    scheduler = noise_scheduler("tan")
    x0 = text(denoiser, tokens)
    timestep = 300
    a = float(scheduler.alphas_cumprod[timestep])
    xt = a**0.5 * x0 + (1 - a) ** 0.5 * torch.randn(x0.shape, generator=torch.manual_seed(1))
    logits = denoiser(xt, timestep).logits.double()
    means = (
        denoiser.posterior.token_means @ denoiser.posterior.basis.T
    ).double()  # [V, C], in the latents' axes
    centred = (xt[0].T - a**0.5 * denoiser.posterior.position_means).double()
    distance = (centred[:, None] - a**0.5 * means).square().sum(dim=2)  # [L, V]
    expected = denoiser.posterior.log_prior - distance / (2 * (a * 0.05 + 1 - a))
    assert torch.allclose(
        logits.log_softmax(dim=1), expected.log_softmax(dim=1).double(), atol=1e-4
    )


def test_x0_is_the_token_where_it_is_certain_and_the_prior_where_nothing_is(denoiser):
    tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    x0 = text(denoiser, tokens)
    assert torch.allclose(denoiser(x0, 0).sample, x0, atol=0.05)
    blank = denoiser(torch.zeros_like(x0), 999).sample
    prior = denoiser.posterior.log_prior.exp() @ denoiser.posterior.token_means
    expected = (prior @ denoiser.posterior.basis.T)[:, None] + denoiser.posterior.position_means.T
    assert torch.allclose(blank[0], expected, atol=0.05)


def test_a_given_token_is_certain_whatever_the_sample_says(denoiser):
    tokens = torch.arange(LENGTH)
    known = torch.full((1, LENGTH), -1)
    known[0, 2:5] = tokens[2:5]
    noise = torch.randn(1, CHANNELS, LENGTH, generator=torch.manual_seed(2))
    output = denoiser(noise, 900, known=known)
    assert output.logits.argmax(dim=1)[2:5].tolist() == [2, 3, 4]
    assert torch.allclose(output.sample[..., 2:5], text(denoiser, tokens)[..., 2:5], atol=1e-3)
    other = noise.clone()
    other[..., 2:5] += 7  # the sample at given places is not looked at
    assert torch.allclose(denoiser(other, 900, known=known).sample, output.sample, atol=1e-5)


def test_x0_of_other_logits_is_the_expectation_over_them(denoiser):
    """With no signal x0 is what the logits say; halfway logits give the mean of two texts."""
    output = denoiser(torch.zeros(1, CHANNELS, LENGTH), 999)
    first, second = torch.arange(LENGTH), torch.arange(LENGTH) + 10
    both = (F.one_hot(first, VOCABULARY) + F.one_hot(second, VOCABULARY)) * 1e4
    expected = (text(denoiser, first) + text(denoiser, second)) / 2
    assert torch.allclose(output.expected_latents(both.float()), expected, atol=0.02)


def test_given_positions_leave_something_to_write():
    lengths = 2 + np.arange(4000) % 30
    seeds = [(0, index) for index in range(len(lengths))]
    given = given_positions(lengths, 0.5, seeds=seeds)
    inside = np.arange(given.shape[1]) < lengths[:, None]
    assert not given[~inside].any()
    assert not given[lengths < 4].any()
    within = (
        inside
        & (np.arange(given.shape[1]) > 0)
        & (np.arange(given.shape[1]) < lengths[:, None] - 1)
    )
    assert ((within & ~given).sum(axis=1) > 0)[lengths > 2].all()
    some = given[lengths >= 4].any(axis=1)
    assert some.mean() == pytest.approx(0.5, abs=0.03)
    # Half of what is given is a prefix: its last token is to be written.
    last = given[np.arange(len(lengths)), lengths - 1][lengths >= 4]
    assert (some & ~last).sum() / some.sum() == pytest.approx(0.5, abs=0.04)
    alone = given_positions(lengths[7:8], 1.0, seeds=[(1, 7)])
    together = given_positions(lengths[6:9], 1.0, seeds=[(1, 6), (1, 7), (1, 8)])
    assert (together[1, : lengths[7]] == alone[0]).all()
    assert not given_positions(lengths, 0.0, seeds=seeds).any()


def test_given_prefix_and_words():
    assert given_prefix([0, 7], 4) == [0, 7, -1, -1]
    assert given_words([[5], [6, 7], []], [2, 1], bos=0, eos=2) == [0, 5, -1, -1, 6, 7, -1, 2]


def test_it_learns_context(generator_config, tmp_path):
    """At a noise that hides single tokens the rest of the text says what they are."""
    generator_config["training"] |= {"steps": 150, "learning_rate": 3e-3, "validate_every": 150}
    record = run_training(config_from_dict(generator_config), tmp_path / "run", say=quiet)
    generator_config["training"]["steps"] = 1
    start = run_training(config_from_dict(generator_config), tmp_path / "start", say=quiet)
    entropy = record["validation"]["cross_entropy"]
    assert entropy < 0.6 * start["validation"]["cross_entropy"]
    assert (tmp_path / "run" / "lengths.json").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": {"loss": "mse"}}, "token-transformer needs cross-entropy"),
        (
            {"objective": {"loss": "cross-entropy", "target": "v"}},
            "objective.target and loss_in do not fit token-transformer",
        ),
        (
            {"denoiser": {"name": "transformer"}, "objective": {"conditioned": 0.5}},
            "objective.conditioned is 0.5, but 'transformer' takes no condition",
        ),
        (
            {"objective": {"loss": "cross-entropy", "conditioned": 2.0}},
            "objective.conditioned is 2.0; it must be between 0 and 1",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    tables = {"denoiser": {"name": "token-transformer"}, **changes}
    with pytest.raises(UserError, match=message):
        config_from_dict(tables)
