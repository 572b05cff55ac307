"""Targets, conversions, weights and the randomness of training."""

from __future__ import annotations

import pytest
import torch

from bartleby.objective import (
    loss_weight,
    masked_loss,
    predicted_noise,
    predicted_x0,
    sample_noise,
    stratified_timesteps,
    training_target,
)
from bartleby.schedules import TARGETS, noise_scheduler

TIMESTEPS = torch.tensor([0, 20, 500, 900])


@pytest.fixture
def clean():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 6, 5, generator=generator).unbind()


@pytest.mark.parametrize("target", TARGETS)
def test_x0_and_noise_of_the_true_target_are_the_true_ones(target, clean):
    x0, noise = clean
    scheduler = noise_scheduler(target=target)
    xt = scheduler.add_noise(x0, noise, TIMESTEPS)
    prediction = training_target(scheduler, x0, noise, TIMESTEPS)
    assert torch.allclose(predicted_x0(scheduler, prediction, xt, TIMESTEPS), x0, atol=1e-4)
    # At timestep 0 the noise is a 150th of x_t: rounding is what is left of it.
    assert torch.allclose(predicted_noise(scheduler, prediction, xt, TIMESTEPS), noise, atol=1e-3)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("measured_in", TARGETS)
def test_weights_turn_an_error_of_one_target_into_that_of_another(target, measured_in, clean):
    x0, noise = clean
    scheduler = noise_scheduler(target=target)
    xt = scheduler.add_noise(x0, noise, TIMESTEPS)
    true = training_target(scheduler, x0, noise, TIMESTEPS)
    off = true + 0.1
    other = noise_scheduler(target=measured_in)
    x0_error = predicted_x0(scheduler, off, xt, TIMESTEPS) - x0
    noise_error = predicted_noise(scheduler, off, xt, TIMESTEPS) - noise
    error = training_target(other, x0_error, noise_error, TIMESTEPS)  # linear, so it maps errors
    weighted = (off - true).square() * loss_weight(scheduler, TIMESTEPS, measured_in=measured_in)
    assert torch.allclose(weighted[1:], error.square()[1:], rtol=0.02)


def test_padding_is_in_no_loss():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    target = torch.zeros(2, 4, 3)
    prediction = torch.where(mask[:, None], 2.0, 1e6).expand(2, 4, 3)
    assert float(masked_loss(prediction, target, mask)) == 4.0 * 3
    assert float(masked_loss(prediction, target, mask, loss="l1")) == 2.0 * 3


def test_timesteps_are_stratified_and_uniform():
    drawn = stratified_timesteps(10, 1000, seed=(0, 1))
    assert sorted(drawn // 100) == list(range(10))
    many = torch.cat([stratified_timesteps(7, 1000, seed=(0, step)) for step in range(3000)])
    assert many.min() == 0 and many.max() == 999
    assert many.float().mean() == pytest.approx(499.5, abs=1)
    first = torch.stack([stratified_timesteps(7, 1000, seed=(0, step))[0] for step in range(3000)])
    assert first.float().mean() == pytest.approx(499.5, abs=20)


def test_a_samples_noise_depends_on_nothing_but_its_seed():
    long, short = torch.ones(8, dtype=torch.bool), torch.arange(8) < 3
    together = sample_noise(torch.stack([long, short]), 5, seeds=[(0, 1), (0, 2)])
    alone = sample_noise(short[None, :3], 5, seeds=[(0, 2)])
    assert torch.equal(together[1, :, :3], alone[0])
    assert (together[1, :, 3:] == 0).all()
    assert not torch.equal(together[0, :, :3], alone[0])
