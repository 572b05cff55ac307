"""The sampling loop: against predictors whose answer is known, and what its randomness depends on."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

from bartleby.errors import UserError
from bartleby.sampling import SamplingSettings, sample_latents, starting_noise, timesteps_of
from bartleby.schedules import SAMPLERS, TARGETS, alpha_bar_at, noise_scheduler

CHANNELS = 6
MASK = torch.arange(12) < torch.tensor([[12], [7], [3]])
SEEDS = [(0, 0), (0, 1), (0, 2)]


class Oracle:
    """The exact denoiser of N(mean, deviation^2), predicting what its scheduler wants."""

    config = SimpleNamespace(self_conditioning=True, channels=CHANNELS)

    def __init__(self, scheduler, target, mean, deviation=0.0):
        self.scheduler, self.target = scheduler, target
        self.mean, self.deviation = mean, deviation
        self.previous = []

    def __call__(self, xt, timesteps, mask, previous=None):
        self.previous.append(previous)
        a = alpha_bar_at(self.scheduler, timesteps)
        gain = a.sqrt() * self.deviation**2 / (a * self.deviation**2 + 1 - a)
        x0 = self.mean + gain * (xt - a.sqrt() * self.mean)
        noise = (xt - a.sqrt() * x0) / (1 - a).sqrt()
        v = a.sqrt() * noise - (1 - a).sqrt() * x0
        return SimpleNamespace(sample={"x0": x0, "noise": noise, "v": v}[self.target])


def run(denoiser, scheduler, settings, start, mask=MASK, seeds=SEEDS, **options):
    return list(sample_latents(denoiser, scheduler, start, mask, settings, seeds=seeds, **options))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_predictor_is_followed_to_x0(name, target):
    scheduler = noise_scheduler("tan", target=target)
    x0 = torch.linspace(-4, 4, 3 * CHANNELS * 12).view(3, CHANNELS, 12)
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    steps = run(Oracle(scheduler, target, x0), scheduler, SamplingSettings(name, 20), start)
    assert [step.index for step in steps] == list(range(20))
    assert (steps[-1].x0 - x0).abs().max() < 0.01
    assert (steps[-1].latents - x0).abs().max() < 0.05


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_gaussian_keeps_its_mean_and_deviation(name):
    scheduler = noise_scheduler("tan")
    mask = torch.ones(40, 50, dtype=torch.bool)
    seeds = [(1, index) for index in range(40)]
    start = starting_noise(mask, CHANNELS, seeds=seeds)
    settings = SamplingSettings(name, 250 if name in ("ddpm", "ddim") else 50)
    oracle = Oracle(scheduler, "x0", torch.tensor(0.5), 0.8)
    result = run(oracle, scheduler, settings, start, mask, seeds)[-1].latents
    assert float(result.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(result.std()) == pytest.approx(0.8, rel=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_i_does_not_depend_on_its_batch(name):
    scheduler = noise_scheduler("tan")
    oracle = Oracle(scheduler, "x0", torch.tensor(0.5), 0.8)
    settings = SamplingSettings(name, 10)
    together = run(oracle, scheduler, settings, starting_noise(MASK, CHANNELS, seeds=SEEDS))[-1].x0
    for row, length in enumerate((12, 7, 3)):
        mask = torch.ones(1, length, dtype=torch.bool)
        start = starting_noise(mask, CHANNELS, seeds=SEEDS[row : row + 1])
        alone = run(oracle, scheduler, settings, start, mask, SEEDS[row : row + 1])[-1].x0
        assert torch.equal(alone[0], together[row, :, :length])


def test_stochastic_samplers_draw_new_noise_each_step_and_others_none():
    scheduler = noise_scheduler("tan")
    oracle = Oracle(scheduler, "x0", torch.tensor(0.5), 0.8)
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    for name, kind in SAMPLERS.items():
        settings = SamplingSettings(name, 8)
        first = run(oracle, scheduler, settings, start)[-1].x0
        other = run(oracle, scheduler, settings, start, seeds=[(9, row) for row in range(3)])[-1].x0
        assert torch.equal(first, other) != kind.draws_noise


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps_gives_numbers(name):
    scheduler = noise_scheduler("tan", d=6.0)
    oracle = Oracle(scheduler, "x0", torch.tensor(0.5), 0.8)
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    for count in (1, 2, 3, 4, 5, 7, 20, 33, 100, 1000):
        result = run(oracle, scheduler, SamplingSettings(name, count), start)[-1]
        assert torch.isfinite(result.latents).all() and torch.isfinite(result.x0).all()


def test_strength_takes_the_last_timesteps():
    scheduler = noise_scheduler("tan")
    settings = SamplingSettings("dpm++", 20)
    everything = timesteps_of(scheduler, settings)
    assert len(everything) == 20 and everything[0] == 999
    assert timesteps_of(scheduler, settings, 0.25) == everything[-5:]
    assert timesteps_of(scheduler, settings, 0.001) == everything[-1:]
    assert timesteps_of(scheduler, settings, 0.0) == []
    early = SamplingSettings("dpm++", 20, handover=0.5)
    assert timesteps_of(scheduler, early) == [t for t in everything if t >= 500]
    assert timesteps_of(scheduler, early, 0.25) == everything[-5:-4]  # one at least
    for name in SAMPLERS:
        settings = dataclasses.replace(settings, sampler=name)
        x0 = torch.ones(3, CHANNELS, 12)
        oracle = Oracle(scheduler, "x0", x0)
        start = torch.randn(x0.shape, generator=torch.manual_seed(0))
        steps = run(oracle, scheduler, settings, start, strength=0.25)
        assert len(steps) == 5 and (steps[-1].latents - 1).abs().max() < 0.05


def test_each_estimate_conditions_the_next():
    scheduler = noise_scheduler("tan")
    oracle = Oracle(scheduler, "x0", torch.tensor(0.5), 0.8)
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    steps = run(oracle, scheduler, SamplingSettings("ddim", 3), start)
    assert oracle.previous[0] is None
    assert oracle.previous[1] is steps[0].x0 and oracle.previous[2] is steps[1].x0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampler": "euler"}, r"unknown sampler 'euler' \(known: ddpm"),
        ({"steps": 0}, "steps is 0; it must be a whole number, at least 1"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"handover": 1.0}, "handover is 1.0"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        SamplingSettings(**options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_given_latents_are_kept_and_seen_under_the_noise_of_their_timestep(name, target):
    scheduler = noise_scheduler("tan", target=target)
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    given = torch.linspace(-3, 3, start.numel()).view_as(start) * MASK[:, None]
    known = torch.where(torch.arange(12) < 2, 7, -1).expand(3, -1)
    oracle = Oracle(scheduler, target, torch.tensor(0.5), 0.8)
    options = {"known": known, "known_latents": given}
    steps = run(oracle, scheduler, SamplingSettings(name, 20), start, **options)
    assert torch.equal(steps[-1].x0[:, :, :2], given[:, :, :2])
    assert (steps[-1].latents - given)[:, :, :2].abs().max() < 0.05
    for step in steps[:-1] if name == "ddim" else ():
        a = scheduler.alphas_cumprod[steps[step.index + 1].timestep]
        expected = a.sqrt() * given + (1 - a).sqrt() * start
        torch.testing.assert_close(step.latents[:, :, :2], expected[:, :, :2], atol=1e-3, rtol=0)
    free = run(
        Oracle(scheduler, target, torch.tensor(0.5), 0.8),
        scheduler,
        SamplingSettings(name, 20),
        start,
    )
    torch.testing.assert_close(steps[-1].x0[:, :, 2:], free[-1].x0[:, :, 2:], atol=1e-3, rtol=0)
    assert all(step.x0 is seen for step, seen in zip(steps, oracle.previous[1:], strict=False))


def test_what_a_denoiser_lacks_or_would_ignore_is_said():
    scheduler = noise_scheduler("tan")
    oracle = Oracle(scheduler, "x0", torch.tensor(0.5))
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    given = {"known": torch.full(MASK.shape, -1)}
    with pytest.raises(UserError, match="Oracle takes no tokens; give it known_latents"):
        run(oracle, scheduler, SamplingSettings(), start, **given)
    with pytest.raises(UserError, match="known_latents are for"):
        run(oracle, scheduler, SamplingSettings(), start, known_latents=start)
    given["known_latents"] = start
    with pytest.raises(UserError, match="guidance is 2.0, but Oracle has not learned"):
        run(oracle, scheduler, SamplingSettings(guidance=2.0), start, **given)
    with pytest.raises(UserError, match="temperature is 0.5, but Oracle predicts no tokens"):
        run(oracle, scheduler, SamplingSettings(temperature=0.5), start)
    with pytest.raises(UserError, match="steps is 1500; this model has 1000 timesteps"):
        run(oracle, scheduler, SamplingSettings(steps=1500), start)


@pytest.mark.parametrize("count", [20, 150, 600])
def test_ddim_leaves_as_much_noise_as_the_next_timestep_says(count):
    scheduler = noise_scheduler("tan", d=6.0)
    start = starting_noise(MASK, CHANNELS, seeds=SEEDS)
    steps = run(Oracle(scheduler, "x0", 0.0), scheduler, SamplingSettings("ddim", count), start)
    for step, after in itertools.pairwise(steps):
        wanted = start * (1 - alpha_bar_at(scheduler, torch.tensor([after.timestep]))).sqrt()
        torch.testing.assert_close(step.latents, wanted, rtol=2e-3, atol=1e-4)
