"""Schedules against their formulas, and every sampler against two predictors whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from bartleby.errors import UserError
from bartleby.objective import training_target
from bartleby.schedules import SAMPLERS, SCHEDULES, TARGETS, noise_scheduler, sampler, target_of


@pytest.mark.parametrize(
    "schedule, formula",
    [
        ("cosine", lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / 0.99984),
        ("sqrt", lambda t: 1 - math.sqrt(t + 1e-4)),
        ("tan", lambda t: 1 / (1 + 9 * math.tan(math.pi * t / 2) ** 2)),
    ],
)
def test_alpha_bar_follows_its_formula(schedule, formula):
    alpha_bar = noise_scheduler(schedule, d=3.0).alphas_cumprod
    for index in (0, 99, 499, 899):
        assert float(alpha_bar[index]) == pytest.approx(formula((index + 1) / 1000), abs=2e-4)


def test_tan_with_d_one_is_nearly_the_cosine_and_larger_d_is_noisier():
    cosine = noise_scheduler("cosine").alphas_cumprod
    assert (noise_scheduler("tan", d=1.0).alphas_cumprod - cosine).abs().max() < 0.02
    assert (noise_scheduler("tan", d=5.0).alphas_cumprod < cosine)[10:-10].all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_falls_from_almost_one_to_almost_nothing(schedule):
    alpha_bar = noise_scheduler(schedule).alphas_cumprod
    assert alpha_bar[0] > 0.95 and alpha_bar[-1] < 1e-4
    assert (alpha_bar.diff() < 0).all()


def predictor(scheduler, mean, deviation):
    """The exact denoiser of N(mean, deviation^2); deviation 0 is a perfect predictor of mean."""
    target = target_of(scheduler)

    def predict(xt, timestep):
        a = float(scheduler.alphas_cumprod[int(timestep)])
        variance = a * deviation**2 + 1 - a
        x0 = mean + math.sqrt(a) * deviation**2 / variance * (xt - math.sqrt(a) * mean)
        noise = (xt - math.sqrt(a) * x0) / math.sqrt(1 - a)
        return {"x0": x0, "noise": noise, "v": math.sqrt(a) * noise - math.sqrt(1 - a) * x0}[target]

    return predict


def sample(name, scheduler, predict, shape, steps):
    generator = torch.Generator().manual_seed(0)
    xt = torch.randn(shape, generator=generator, dtype=torch.float64)
    chosen = sampler(name, scheduler)
    chosen.set_timesteps(steps)
    for timestep in chosen.timesteps:
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        options = SAMPLERS[name].step_options(noise)
        xt = chosen.step(predict(xt, timestep), timestep, xt, **options).prev_sample
    return xt


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_predictor_returns_x0(name, target, schedule):
    scheduler = noise_scheduler(schedule, target=target)
    x0 = torch.linspace(-4, 4, 2 * 3 * 5, dtype=torch.float64).view(2, 3, 5)  # far beyond [-1, 1]
    result = sample(name, scheduler, predictor(scheduler, x0, 0.0), x0.shape, steps=20)
    assert (result - x0).abs().max() < 0.05


@pytest.mark.parametrize("schedule", ["cosine", "tan"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_exact_denoiser_of_a_gaussian_recovers_its_mean_and_deviation(name, target, schedule):
    scheduler = noise_scheduler(schedule, target=target)
    exact = predictor(scheduler, 0.5, 0.8)
    steps = 250 if name in ("ddpm", "ddim") else 50
    result = sample(name, scheduler, exact, (4, 50, 100), steps=steps)
    assert float(result.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(result.std()) == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize("target", TARGETS)
def test_the_saved_scheduler_is_the_one_that_trained(target, tmp_path):
    from diffusers import DDPMScheduler

    scheduler = noise_scheduler("tan", target=target, d=5.0)
    scheduler.save_pretrained(tmp_path)
    loaded = DDPMScheduler.from_pretrained(tmp_path)
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    assert not loaded.config.clip_sample and target_of(loaded) == target
    assert not sampler("ddim", loaded).config.clip_sample


def test_v_agrees_with_diffusers():
    scheduler = noise_scheduler(target="v")
    x0, noise = torch.randn(2, 4, 3, 5).unbind()
    timesteps = torch.tensor([3, 400, 700, 998])
    expected = scheduler.get_velocity(x0, noise, timesteps)
    assert torch.allclose(training_target(scheduler, x0, noise, timesteps), expected, atol=1e-6)


def test_unknown_names_and_impossible_numbers_are_named():
    with pytest.raises(UserError, match="unknown schedule 'cos'"):
        noise_scheduler("cos")
    with pytest.raises(UserError, match="unknown sampler 'euler'"):
        sampler("euler", noise_scheduler())
    with pytest.raises(UserError, match="schedule_d is nan"):
        noise_scheduler("tan", d=float("nan"))
