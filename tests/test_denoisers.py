"""The denoisers' one contract, their sizes, and the closed forms of those that are not trained."""

from __future__ import annotations

import pytest
import torch

from bartleby.denoisers import (
    DENOISERS,
    IdentityDenoiser,
    MixtureDenoiser,
    WienerDenoiser,
    build_denoiser,
    load_denoiser,
)
from bartleby.denoisers.baselines import identity_noise_cosine, wiener_noise_cosine
from bartleby.denoisers.build import WEIGHTS_FILE, parameters, save_denoiser
from bartleby.denoisers.transformer import PRECONDITIONS
from bartleby.errors import UserError
from bartleby.evaluation.latents import average, measure, timestep_grid
from bartleby.latents import Latents
from bartleby.schedules import noise_scheduler

CHANNELS, LENGTH = 24, 16
MASK = torch.arange(LENGTH) < torch.tensor([[16], [9], [4]])
VARIANTS = [
    *((name, {}) for name in DENOISERS if name != "transformer"),
    *(("transformer", {"precondition": kind}) for kind in PRECONDITIONS),
    ("transformer", {"self_conditioning": True}),
]


def build(name, options):
    """A small denoiser, its weights all random: as built, the transformer's output layers are zero."""
    denoiser = build_denoiser(
        name, channels=CHANNELS, window=LENGTH, size="tiny", vocabulary=30, **options
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in denoiser.parameters():
            if (weight == 0).all():
                weight.normal_(std=0.1)
    return denoiser.eval()


@pytest.fixture
def sample():
    return (
        torch.randn(3, CHANNELS, LENGTH, generator=torch.Generator().manual_seed(0)) * MASK[:, None]
    )


@pytest.mark.parametrize("name, options", VARIANTS)
def test_contract(name, options, sample):
    denoiser = build(name, options)
    timesteps = torch.tensor([10, 500, 900])
    with torch.inference_mode():
        output = denoiser(sample, timesteps, MASK).sample
        assert output.shape == sample.shape and output.dtype == torch.float32
        assert (output * ~MASK[:, None] == 0).all()
        swapped = denoiser(sample, timesteps.flip(0), MASK).sample
        assert (output[0] - swapped[0]).norm() / output[0].norm() > 0.01  # time is read
        order = torch.tensor([2, 0, 1])
        permuted = denoiser(sample[order], timesteps[order], MASK[order]).sample
        assert torch.allclose(permuted, output[order], atol=1e-5)
        same = denoiser(sample, 500, MASK).sample
        assert torch.allclose(same[1], output[1], atol=1e-5)


@pytest.mark.parametrize("name, options", VARIANTS)
def test_padding_changes_nothing_and_the_transformer_needs_none(name, options, sample):
    denoiser = build(name, options)
    garbage = torch.where(MASK[:, None], sample, torch.tensor(99.0))
    with torch.inference_mode():
        expected = denoiser(sample, 500, MASK).sample
        assert torch.allclose(denoiser(garbage, 500, MASK).sample, expected, atol=1e-4)
        if name in ("transformer", "token-transformer"):
            alone = denoiser(sample[2:, :, :4], 500, MASK[2:, :4]).sample
            assert torch.allclose(alone, expected[2:, :, :4], atol=1e-4)


@pytest.mark.parametrize("name, options", VARIANTS)
def test_saved_and_loaded_it_is_the_same_and_recorded_by_the_package(
    name, options, sample, tmp_path
):
    denoiser = build(name, options)
    denoiser.save_pretrained(tmp_path)
    loaded = load_denoiser(tmp_path)
    assert type(loaded) is type(denoiser) and type(loaded).__module__ == "bartleby.denoisers"
    with torch.inference_mode():
        expected = denoiser(sample, 300, MASK).sample
        assert torch.equal(loaded(sample, 300, MASK).sample, expected)


@pytest.mark.parametrize("store, room", [("bfloat16", 0.6), ("int8", 0.4)])
@pytest.mark.parametrize("name", ["mixture", "token-transformer"])
def test_stored_in_less_room_it_denoises_the_same(sample, tmp_path, name, store, room):
    writes = name == "token-transformer"
    denoiser = build(name, {}) if writes else build("transformer", {"precondition": name})
    exact = ("basis", "eigenvalues", "alpha_bar", "position_means")  # every digit is needed
    for table in ("position_means", "token_means"):
        denoiser.posterior.get_buffer(table).normal_()
    denoiser.posterior.basis.copy_(torch.linalg.qr(torch.randn(CHANNELS, CHANNELS))[0])
    denoiser.save_pretrained(tmp_path / "plain")
    save_denoiser(denoiser, tmp_path, store=store)
    loaded = load_denoiser(tmp_path)
    (stored,) = tmp_path.glob("*.safetensors")
    small, plain = stored.stat().st_size, (tmp_path / "plain" / WEIGHTS_FILE).stat().st_size
    assert (stored.name == WEIGHTS_FILE) != (
        store == "int8"
    )  # diffusers must not take it for weights
    assert small < room * plain
    assert all(weight.dtype == torch.float32 for weight in loaded.state_dict().values())
    for table in exact:
        assert torch.equal(
            loaded.posterior.get_buffer(table), denoiser.posterior.get_buffer(table)
        ), table
    with torch.inference_mode():
        outputs = [network(sample, 300, MASK) for network in (denoiser, loaded)]
        expected, output = (out.logits if writes else out.sample for out in outputs)
    assert 0 < (output - expected).norm() / expected.norm() < 0.02


def test_sizes_at_the_published_shape():
    sizes = {name: parameters(build_denoiser(name, channels=768, window=128)) for name in DENOISERS}
    assert sizes["simple-unet"] == 2_398_912
    assert sizes["diffusers-unet"] == 67_841_024
    assert sizes["text-unet"] == 7_830_272
    base = build_denoiser("transformer", channels=768, window=128, size="base")
    assert sizes["transformer"] < parameters(base) < 68_000_000


def test_the_same_seed_builds_the_same_weights():
    first, second, other = (
        build_denoiser("text-unet", channels=CHANNELS, window=LENGTH, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, other.out.weight)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("unet", {}, "denoiser.name is 'unet'"),
        ("transformer", {"size": "huge"}, "denoiser.size is 'huge'"),
        ("transformer", {"widths": (8, 8, 8)}, "denoiser.widths is for UNets"),
        ("text-unet", {"widths": (12, 16, 16)}, "takes 3 multiples of 8"),
        ("text-unet", {"self_conditioning": True}, "denoiser.self_conditioning needs"),
        ("text-unet", {"precondition": "wiener"}, "denoiser.precondition needs"),
    ],
)
def test_wrong_options_name_their_key(name, options, message):
    with pytest.raises(UserError, match=message):
        build_denoiser(name, channels=CHANNELS, window=LENGTH, **options)


def test_a_window_that_cannot_be_halved_is_said_with_the_remedy():
    with pytest.raises(UserError, match=r"autoencoder.window is 30.*multiple of 4; use 28"):
        build_denoiser("text-unet", channels=CHANNELS, window=30)


def test_a_foreign_folder_is_no_denoiser(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="holds no denoiser of Bartleby"):
        load_denoiser(tmp_path)


@pytest.fixture(scope="module")
def gaussian():
    """Latents with a known covariance: eigenvalues from large to small along random axes."""
    generator = torch.Generator().manual_seed(0)
    channels = 32
    basis, _ = torch.linalg.qr(torch.randn(channels, channels, generator=generator))
    eigenvalues = torch.logspace(0.8, -2, channels)
    eigenvalues *= channels / eigenvalues.sum()
    values = torch.randn(64, 128, channels, generator=generator) * eigenvalues.sqrt() @ basis.T
    covariance = basis @ torch.diag(eigenvalues) @ basis.T
    return values.transpose(1, 2).contiguous(), covariance, eigenvalues


def test_identity_and_wiener_agree_with_their_closed_forms(gaussian):
    values, covariance, eigenvalues = gaussian
    latents = Latents(values, torch.ones(64, 128, dtype=torch.bool))
    grid = timestep_grid(1000, 10)
    scheduler = noise_scheduler(target="noise")
    alpha_bar = scheduler.alphas_cumprod[grid]
    measured = average(measure(IdentityDenoiser(32), scheduler, latents, grid)).noise_cosine
    expected = identity_noise_cosine(alpha_bar, variance=float(values.square().mean())).mean()
    assert measured == pytest.approx(float(expected), abs=0.005)
    wiener = WienerDenoiser(32)
    wiener.posterior.fit(covariance, scheduler.alphas_cumprod)
    measured = average(measure(wiener, noise_scheduler(target="x0"), latents, grid)).noise_cosine
    expected = wiener_noise_cosine(alpha_bar, eigenvalues).mean()
    assert measured == pytest.approx(float(expected), abs=0.005)


def test_the_wiener_filter_is_the_best_linear_one(gaussian):
    values, covariance, _ = gaussian
    scheduler = noise_scheduler(target="x0")
    wiener = WienerDenoiser(32)
    wiener.posterior.fit(covariance, scheduler.alphas_cumprod)
    a = float(scheduler.alphas_cumprod[400])
    xt = a**0.5 * values + (1 - a) ** 0.5 * torch.randn(values.shape)
    x, y = xt.transpose(1, 2).reshape(-1, 32), values.transpose(1, 2).reshape(-1, 32)
    best = x @ torch.linalg.lstsq(x, y).solution
    ours = wiener(xt, 400).sample.transpose(1, 2).reshape(-1, 32)
    assert float((ours - y).square().mean()) == pytest.approx(
        float((best - y).square().mean()), rel=0.02
    )


def test_the_mixture_is_bayes_rule():
    """Against the sum over tokens written out, with full covariances."""
    generator = torch.Generator().manual_seed(0)
    channels, vocabulary, window = 4, 5, 3
    tables = {
        "position_means": torch.randn(window, channels, generator=generator),
        "token_means": torch.randn(vocabulary, channels, generator=generator),
        "prior": torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]),
    }
    root = torch.randn(channels, channels, generator=generator) * 0.4
    within = root @ root.T + 0.01 * torch.eye(channels)
    scheduler = noise_scheduler(target="x0")
    denoiser = MixtureDenoiser(channels, 1000, vocabulary, window)
    denoiser.posterior.fit(**tables, within=within, alpha_bar=scheduler.alphas_cumprod)
    xt = torch.randn(2, channels, window, generator=generator)
    timesteps = torch.tensor([300, 700])
    posterior = denoiser.posterior.infer(xt, timesteps)
    mean = denoiser(xt, timesteps).sample
    for text in range(2):
        a = float(scheduler.alphas_cumprod[timesteps[text]])
        noisy = a * within + (1 - a) * torch.eye(channels)
        for position in range(window):
            x = xt[text, :, position]
            centres = tables["position_means"][position] + tables["token_means"]
            off = x - a**0.5 * centres
            logits = tables["prior"].log() - 0.5 * (off @ noisy.inverse() * off).sum(dim=1)
            weights = logits.softmax(dim=0)
            means = centres + a**0.5 * off @ noisy.inverse() @ within
            expected = weights @ means
            assert torch.allclose(mean[text, :, position], expected, atol=1e-4)
            rest = within - a * within @ noisy.inverse() @ within
            spread = (weights[:, None] * means).T @ means - torch.outer(expected, expected)
            axes = denoiser.posterior.basis
            variance = (axes.T @ (rest + spread) @ axes).diagonal()
            assert torch.allclose(posterior.deviation[text, :, position] ** 2, variance, atol=1e-4)


@pytest.mark.parametrize("precondition", ["wiener", "mixture"])
def test_a_new_preconditioned_transformer_is_its_closed_form(precondition, gaussian):
    values, covariance, _ = gaussian
    scheduler = noise_scheduler(target="x0")
    denoiser = build_denoiser(
        "transformer", channels=32, window=128, size="tiny", precondition=precondition, vocabulary=7
    )
    if precondition == "wiener":
        denoiser.posterior.fit(covariance, scheduler.alphas_cumprod)
        plain = WienerDenoiser(32)
    else:
        plain = MixtureDenoiser(32, 1000, 7, 128)
    plain.posterior.load_state_dict(denoiser.posterior.state_dict())
    with torch.inference_mode():
        assert torch.equal(denoiser(values[:2], 300).sample, plain(values[:2], 300).sample)
