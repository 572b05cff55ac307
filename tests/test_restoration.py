"""Noised latents through a trained denoiser: the right timestep, and fewer errors after than before."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TEXTS, quiet

from bartleby.config import config_from_dict
from bartleby.denoisers import MixtureDenoiser
from bartleby.errors import UserError
from bartleby.latents import Latents
from bartleby.noise import noise_experiment
from bartleby.restoration import TrainedDenoiser, load_trained_denoiser
from bartleby.run_setup import baseline, open_setup
from bartleby.schedules import noise_scheduler
from bartleby.training_run import run_training


@pytest.fixture
def trained(tiny_config):
    setup = open_setup(config_from_dict(tiny_config), say=quiet)
    denoiser, scheduler = baseline("mixture", setup)
    return setup, TrainedDenoiser(denoiser, scheduler, setup.autoencoder.statistics, "mixture")


def test_the_timestep_carries_noise_of_the_right_deviation():
    scheduler = noise_scheduler()
    trained = TrainedDenoiser(MixtureDenoiser(4), scheduler, None, "test")
    for deviation in (0.1, 0.5, 1.0, 3.0):
        alpha_bar = scheduler.alphas_cumprod[trained.timestep(deviation)]
        assert float(((1 - alpha_bar) / alpha_bar).sqrt()) == pytest.approx(deviation, rel=0.03)


def test_restored_latents_are_nearer_to_the_clean_ones(trained, autoencoder):
    _, denoiser = trained
    clean = autoencoder.encode(TEXTS[:20])
    noise = torch.randn(clean.values.shape, generator=torch.Generator().manual_seed(0))
    noised = Latents((clean.values + 0.7 * noise) * clean.mask[:, None], clean.mask)
    restored = denoiser.restore(noised, 0.7)
    assert torch.equal(denoiser.restore(noised, 0).values, noised.values)
    before = (noised.values - clean.values).square().mean()
    after = (restored.values - clean.values).square().mean()
    assert after < 0.3 * before


def test_the_experiment_gives_each_noised_text_and_what_the_denoiser_made_of_it(
    trained, autoencoder
):
    _, denoiser = trained
    items = list(
        noise_experiment(autoencoder, TEXTS[:3], [0.0, 0.5], restore=denoiser.restore, say=quiet)
    )
    assert len(items) == 6
    assert all(item.denoised == item.text for item in items[:3])
    assert all(0 <= item.denoised_token_accuracy <= 1 for item in items)
    plain = list(noise_experiment(autoencoder, TEXTS[:3], [0.5], say=quiet))
    assert [item.text for item in plain] == [item.text for item in items[3:]]
    assert plain[0].denoised is None


def test_a_runs_denoiser_on_the_command_line(cli, tiny_config, tmp_path, model_folder):
    run_training(config_from_dict(tiny_config), tmp_path / "run", say=quiet)
    arguments = ["noise", TEXTS[0], "--model", model_folder, "--levels", 0.5]
    result = cli(*arguments, "--denoiser", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    assert {"denoised", "denoised_token_accuracy"} <= set(json.loads(result.stdout))
    assert "denoised" not in json.loads(cli(*arguments, "--json").stdout)
    shown = cli(*arguments, "--denoiser", tmp_path / "run").stdout
    assert "\ndenoised · tokens " in shown


def test_a_denoiser_that_does_not_fit_is_refused(cli, tiny_config, tmp_path, model_folder):
    wrong = cli("noise", "Text.", "--model", model_folder, "--denoiser", tmp_path)
    assert wrong.exit_code == 1 and "holds no finished denoiser" in wrong.stderr
    run_training(config_from_dict(tiny_config), tmp_path / "run", say=quiet)
    wrong = cli("noise", "Text.", "--denoiser", tmp_path / "run")
    assert wrong.exit_code == 1 and "has 64 channels, 'nano' 256" in wrong.stderr


def test_a_missing_denoiser_is_named(autoencoder, tmp_path):
    with pytest.raises(UserError, match="holds no finished denoiser"):
        load_trained_denoiser(tmp_path, autoencoder)
