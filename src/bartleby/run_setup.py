"""What a run works on: its data as latents, its noise, its denoiser as it begins or as it has become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler, ModelMixin
from rich.progress import Progress

from bartleby.autoencoder import Autoencoder
from bartleby.checkpoints import checkpoint_folders, read_json, step_of
from bartleby.config import TrainConfig, config_from_dict
from bartleby.console import progress_bar
from bartleby.corpus import load_corpus
from bartleby.denoisers import (
    IdentityDenoiser,
    MixtureDenoiser,
    WienerDenoiser,
    build_denoiser,
    load_denoiser,
)
from bartleby.denoisers.build import start_from
from bartleby.denoisers.posteriors import TokenMixture
from bartleby.errors import UserError
from bartleby.evaluation.latents import average, measure
from bartleby.latent_data import EncodedBatches, LatentData, open_latents
from bartleby.latents import Latents, LatentStatistics
from bartleby.loading import generator_folder, load_autoencoder
from bartleby.messages import say
from bartleby.run_folder import CONFIG_FILE, DENOISER, SCHEDULER, read_record
from bartleby.schedules import TARGETS, noise_scheduler
from bartleby.token_statistics import fit_mixture, token_statistics


@dataclass(frozen=True)
class Setup:
    """Data of a run.  autoencoder: with the statistics that normalise `training` and `validation`."""

    config: TrainConfig
    autoencoder: Autoencoder
    training: LatentData
    validation: LatentData
    scheduler: DDPMScheduler


def prepare(
    config: TrainConfig,
    *,
    device: str | None = None,
    say: Callable[[str], None] = say,
    like: Setup | None = None,
) -> tuple[Setup, ModelMixin]:
    """Data and denoiser of a run as it begins, checked before latents are encoded, if no cache holds them.

    like: a setup whose data are used again where they are the same. Raises UserError that names the
    key at fault.
    """
    like = _reusable(config, like)
    autoencoder = like.autoencoder if like else _load_autoencoder(config, device)
    denoiser = _new_denoiser(config, autoencoder)
    setup = _opened(config, autoencoder, say, like)
    if config.denoiser.precondition == "wiener":
        denoiser.posterior.fit(setup.training.covariance(), setup.scheduler.alphas_cumprod)
    elif isinstance(getattr(denoiser, "posterior", None), TokenMixture):
        statistics = token_statistics(setup.training)
        fit_mixture(denoiser.posterior, statistics, setup.scheduler.alphas_cumprod)
    return setup, denoiser


def open_setup(
    config: TrainConfig,
    *,
    device: str | None = None,
    say: Callable[[str], None] = say,
    like: Setup | None = None,
    scheduler: DDPMScheduler | None = None,
) -> Setup:
    """The data alone; otherwise as `prepare`.  scheduler: the run's, if it is saved; else made of the configuration."""
    like = _reusable(config, like)
    autoencoder = like.autoencoder if like else _load_autoencoder(config, device)
    return _opened(config, autoencoder, say, like, scheduler)


def _reusable(config: TrainConfig, like: Setup | None) -> Setup | None:
    same = like and (like.config.data, like.config.autoencoder) == (config.data, config.autoencoder)
    return like if same else None


def _new_denoiser(config: TrainConfig, autoencoder: Autoencoder) -> ModelMixin:
    """As it begins, its tables not fitted; UserError if it does not fit the autoencoder or the batches."""
    channels = autoencoder.channels
    if config.denoiser.channels not in (0, channels):
        raise UserError(
            f"denoiser.channels is {config.denoiser.channels}, but latents of '{config.autoencoder.model}' have "
            f"{channels}; leave the key out"
        )
    if config.training.tokens_per_batch < autoencoder.window:
        raise UserError(
            f"training.tokens_per_batch is {config.training.tokens_per_batch}; a batch must hold a window "
            f"of {autoencoder.window} tokens"
        )
    denoiser = build_denoiser(
        config.denoiser.name,
        channels=channels,
        window=autoencoder.window,
        timesteps=config.objective.timesteps,
        size=config.denoiser.size,
        widths=tuple(config.denoiser.widths) or None,
        self_conditioning=config.denoiser.self_conditioning,
        precondition=config.denoiser.precondition,
        vocabulary=len(autoencoder.tokenizer),
        own_options=config.denoiser.options,
        seed=config.training.seed,
    )
    if config.denoiser.start:
        try:
            start_from(denoiser, generator_folder(config.denoiser.start) / DENOISER)
        except UserError as error:
            raise UserError(f"denoiser.start: {error}") from None
    return denoiser


def _opened(
    config: TrainConfig,
    autoencoder: Autoencoder,
    say: Callable[[str], None],
    like: Setup | None,
    scheduler: DDPMScheduler | None = None,
) -> Setup:
    if like:
        training, validation = like.training, like.validation
    else:
        training, validation = _open_data(config, autoencoder, say)
        statistics = _statistics(config, autoencoder, training)
        training = dataclasses.replace(training, statistics=statistics)
        validation = dataclasses.replace(validation, statistics=statistics)
    autoencoder = dataclasses.replace(autoencoder, statistics=training.statistics)
    scheduler = scheduler or noise_scheduler(
        config.objective.schedule,
        target=config.objective.target,
        steps=config.objective.timesteps,
        d=config.objective.schedule_d,
    )
    return Setup(config, autoencoder, training, validation, scheduler)


def _load_autoencoder(config: TrainConfig, device: str | None) -> Autoencoder:
    wanted = config.autoencoder
    try:
        return load_autoencoder(wanted.model, window=wanted.window or None, device=device)
    except UserError as error:
        raise UserError(f"autoencoder: {error}") from None


def _open_data(
    config: TrainConfig, autoencoder: Autoencoder, say: Callable[[str], None]
) -> tuple[LatentData, LatentData]:
    """Raw latents of the training and the validation split."""
    try:
        corpus = load_corpus(config.data.source, column=config.data.column)
        for note in corpus.notes:
            say(note)
        texts = {"train": corpus.split("train"), "valid": corpus.split("valid")}
    except UserError as error:
        raise UserError(f"data.source: {error}") from None
    if config.data.limit:
        texts = {name: split[: config.data.limit] for name, split in texts.items()}
    opened = []
    for name, split in texts.items():
        with progress_bar(f"encode {name}", total=1) as bar:

            def tracked(batches: EncodedBatches, total: int, bar: Progress = bar) -> EncodedBatches:
                bar.update(bar.task_ids[0], total=total)
                for indices, latents in batches:
                    yield indices, latents
                    bar.advance(bar.task_ids[0], len(indices))

            opened.append(
                open_latents(
                    autoencoder,
                    split,
                    name=name,
                    limit_gb=config.data.cache_gb,
                    say=say,
                    track=tracked,
                )
            )
    return opened[0], opened[1]


def _statistics(
    config: TrainConfig, autoencoder: Autoencoder, training: LatentData
) -> LatentStatistics | None:
    choice = config.autoencoder.statistics
    if choice == "none":
        return None
    if choice == "data":
        return training.moments.statistics(f"train split of {Path(config.data.source).name}")
    if autoencoder.statistics is None:
        raise UserError(
            f"autoencoder.statistics is 'model', but '{config.autoencoder.model}' has none saved; use 'data'"
        )
    return autoencoder.statistics


def baseline(name: str, setup: Setup) -> tuple[ModelMixin, DDPMScheduler]:
    """A denoiser that needs no training, and its scheduler: identity, or wiener or mixture, fitted to the data."""
    channels, scheduler = setup.autoencoder.channels, setup.scheduler.config
    kind = {"identity": IdentityDenoiser, "wiener": WienerDenoiser, "mixture": MixtureDenoiser}[
        name
    ]
    scheduler = DDPMScheduler.from_config(scheduler, prediction_type=TARGETS[kind.target])
    steps = scheduler.config.num_train_timesteps
    if name == "identity":
        denoiser = IdentityDenoiser(channels)
    elif name == "wiener":
        denoiser = WienerDenoiser(channels, steps)
        denoiser.posterior.fit(setup.training.covariance(), scheduler.alphas_cumprod)
    else:
        vocabulary, window = len(setup.autoencoder.tokenizer), setup.autoencoder.window
        denoiser = MixtureDenoiser(channels, steps, vocabulary, window)
        fit_mixture(denoiser.posterior, token_statistics(setup.training), scheduler.alphas_cumprod)
    return denoiser.to(setup.autoencoder.device), scheduler


def reference_cosines(setup: Setup, latents: Latents, timesteps: list[int]) -> dict[str, float]:
    """The noise cosines of what needs no training, by which a denoiser's is to be judged: identity and wiener."""
    cosines = {}
    for name in ("identity", "wiener"):
        denoiser, scheduler = baseline(name, setup)
        cosines[name] = average(measure(denoiser, scheduler, latents, timesteps)).noise_cosine
    return cosines


def validation_sample(data: LatentData, count: int) -> tuple[Latents, list[list[int]]]:
    """Latents and token ids of `count` passages at even distances, the same ones every time."""
    count = min(count, len(data))
    indices = np.arange(count) * len(data) // count
    return data.batch(indices), [data.token_ids(index) for index in indices]


def open_run(
    run: str | Path,
    *,
    device: str | None = None,
    say: Callable[[str], None] = say,
    like: Setup | None = None,
) -> tuple[Setup, ModelMixin]:
    """A run's setup and its averaged denoiser: the newest checkpoint's while it goes on, else the finished one.

    The BART is the one it was trained on, without the run's own decoder (`writing_decoder.load_decoder`). Raises
    UserError if this is no run, or has no checkpoint yet.
    """
    run = Path(run)
    if not (run / CONFIG_FILE).exists():
        raise UserError(f"'{run}' is no training run: {CONFIG_FILE} is missing")
    config = config_from_dict(read_json(run / CONFIG_FILE))
    saved = run / SCHEDULER
    scheduler = DDPMScheduler.from_pretrained(saved) if saved.exists() else None
    setup = open_setup(config, device=device, say=say, like=like, scheduler=scheduler)
    # A finished run may have been made longer since.
    record, newest = read_record(run), checkpoint_folders(run)[:1]
    goes_on = record and newest and step_of(newest[0]) > record["steps"]
    if (run / DENOISER).exists() and not goes_on:
        return setup, load_denoiser(run / DENOISER).to(setup.autoencoder.device)
    for folder in checkpoint_folders(run):
        try:
            return setup, load_denoiser(folder).to(setup.autoencoder.device)
        except UserError as error:
            say(str(error))
    raise UserError(f"'{run}' has no checkpoint yet")
