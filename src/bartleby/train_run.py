"""A whole training run: checks, latents, training with a progress bar, validation, the finished denoiser.

A run folder holds `config.json`, `log.jsonl`, `tensorboard/`, `checkpoints/` and, at the end, `denoiser/`,
`scheduler/`, `latent_statistics.json`, `lengths.json` (how many passages have 0, 1, 2, ... tokens) and
`training.json`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler, ModelMixin

from bartleby.autoencoder import Autoencoder
from bartleby.checkpoints import (
    checkpoint_folder,
    made_folder,
    read_json,
    replaced_folder,
    write_json,
)
from bartleby.config import TrainConfig, config_from_dict, config_to_dict
from bartleby.console import progress_bar, say
from bartleby.corpus import load_corpus
from bartleby.denoisers import build_denoiser, load_denoiser
from bartleby.denoisers.build import parameters, save_denoiser, start_from
from bartleby.denoisers.posteriors import TokenMixture
from bartleby.errors import UserError
from bartleby.evaluation.latents import (
    DenoisingScores,
    average,
    measure,
    measure_cross_entropy,
    timestep_grid,
)
from bartleby.latent_data import LENGTHS_FILE, LatentData, open_latents
from bartleby.latents import STATISTICS_FILE, Latents
from bartleby.loading import generator_folder, load_autoencoder
from bartleby.precision import network_dtype
from bartleby.run_log import LOG_EVERY, RunLog, read_log
from bartleby.schedules import noise_scheduler
from bartleby.token_statistics import fit_mixture, token_statistics
from bartleby.training import (
    TrainingState,
    check_same_run,
    make_accelerator,
    total_steps,
    train,
)

VALIDATION_TIMESTEPS = 10


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
    setup = _open_setup(config, autoencoder, say, like)
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
) -> Setup:
    """The data alone; otherwise as `prepare`."""
    like = _reusable(config, like)
    autoencoder = like.autoencoder if like else _load_autoencoder(config, device)
    return _open_setup(config, autoencoder, say, like)


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
            start_from(denoiser, generator_folder(config.denoiser.start) / "denoiser")
        except UserError as error:
            raise UserError(f"denoiser.start: {error}") from None
    return denoiser


def _open_setup(config: TrainConfig, autoencoder: Autoencoder, say, like: Setup | None) -> Setup:
    if like:
        training, validation = like.training, like.validation
    else:
        training, validation = _open_normalised(config, autoencoder, say)
    autoencoder = dataclasses.replace(autoencoder, statistics=training.statistics)
    scheduler = noise_scheduler(
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


def _open_normalised(
    config: TrainConfig, autoencoder: Autoencoder, say
) -> tuple[LatentData, LatentData]:
    training, validation = _open_data(config, autoencoder, say)
    statistics = _statistics(config, autoencoder, training)
    training = dataclasses.replace(training, statistics=statistics)
    return training, dataclasses.replace(validation, statistics=statistics)


def _open_data(config: TrainConfig, autoencoder: Autoencoder, say) -> tuple[LatentData, LatentData]:
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

            def tracked(batches, total, bar=bar):
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


def _statistics(config: TrainConfig, autoencoder: Autoencoder, training: LatentData):
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


def validation_sample(data: LatentData, count: int) -> tuple[Latents, list[list[int]]]:
    """Latents and token ids of `count` passages at even distances, the same ones every time."""
    count = min(count, len(data))
    indices = np.arange(count) * len(data) // count
    return data.batch(indices), [data.token_ids(index) for index in indices]


def run_training(
    config: TrainConfig,
    out: str | Path,
    *,
    device: str | None = None,
    say: Callable[[str], None] = say,
    prepared: tuple[Setup, ModelMixin] | None = None,
) -> dict:
    """Trains, validates as it goes, leaves the denoiser in `out`; returns the record saved as `training.json`.

    A run that was interrupted goes on; one that has ended returns its record. Raises UserError if `out` holds a
    run of another configuration.  prepared: what `prepare` returns, if that was called before.
    """
    out, accelerator = Path(out), make_accelerator(device)
    if not accelerator.is_main_process:
        say = _silence
    with accelerator.main_process_first():
        setup, denoiser = prepared or prepare(config, device=str(accelerator.device), say=say)
    steps = total_steps(config, setup.training)
    finished = out / "training.json"
    if finished.exists() and (record := read_json(finished))["steps"] >= steps:
        check_same_run(config, record["config"], out)
        say(
            f"'{out}' has already run its {steps:,} steps; to go on, raise training.steps or epochs"
        )
        return record if accelerator.is_main_process else {}
    _check_begun(out, config)
    if accelerator.is_main_process:
        _begin(out, config)
    accelerator.wait_for_everyone()
    say(
        f"{config.denoiser.name} · {parameters(denoiser):,} parameters · predicts "
        f"{config.objective.target} · {_noise(config)} · "
        f"{steps:,} steps of up to {config.training.tokens_per_batch:,} tokens · "
        f"{accelerator.device}, {str(network_dtype(accelerator.device)).removeprefix('torch.')}"
        f"{f', {accelerator.num_processes} processes' if accelerator.num_processes > 1 else ''}"
        f" · seed {config.training.seed}"
    )
    observer = Observer(setup, out, say) if accelerator.is_main_process else None
    for state in train(
        config, setup.training, denoiser, setup.scheduler, out, accelerator, say=say
    ):
        if observer:
            observer.see(state)
    record = observer.finish() if observer else {}
    accelerator.wait_for_everyone()
    return record


class Observer:
    """Watches a run: progress bar, log, validation, and the finished folder."""

    def __init__(self, setup: Setup, out: Path, say: Callable[[str], None]):
        self.setup, self.out, self.say = setup, out, say
        self.latents, self.token_ids = validation_sample(
            setup.validation, setup.config.training.validation_texts
        )
        self.timesteps = timestep_grid(
            setup.scheduler.config.num_train_timesteps, VALIDATION_TIMESTEPS
        )
        self.state: TrainingState | None = None
        self.log: RunLog | None = None
        self.scores: DenoisingScores | None = None
        self._stack = contextlib.ExitStack()

    def see(self, state: TrainingState) -> None:
        """One state of the training loop."""
        first = self.state is None
        self.state = state
        if first:
            self.log = RunLog(self.out, step=state.step - (state.loss is not None))
            self.bar = self._stack.enter_context(progress_bar("train", total=state.steps))
            self.started = time.monotonic() - self.log.seconds
            self.paused, self.tokens_before = 0.0, state.tokens
        if state.loss is None:
            return
        seconds = time.monotonic() - self.started - self.paused
        rate = (state.tokens - self.tokens_before) / max(seconds - self.log.seconds, 1e-9)
        self.bar.update(
            self.bar.task_ids[0],
            completed=state.step,
            note=f" loss {state.loss:.4f} · {rate:,.0f} tokens/s",
        )
        if state.step % LOG_EVERY == 0 or state.step == state.steps:
            row = {
                "step": state.step,
                "loss": state.loss,
                "gradient_norm": float(state.gradient_norm),
                "learning_rate": state.learning_rate,
                "passages": state.passages,
                "tokens": state.tokens,
                "seconds": round(seconds, 2),
            }
            self.log.append(row, kind="train")
        if state.step % self.setup.config.training.validate_every == 0 or state.step == state.steps:
            self._validate(seconds)

    def _validate(self, seconds: float) -> None:
        """Validation is not training: its time is not counted."""
        began = time.monotonic()
        with self.state.averaged() as denoiser:
            scores = measure(denoiser, self.setup.scheduler, self.latents, self.timesteps)
            if self.setup.config.objective.loss == "cross-entropy":
                entropies = measure_cross_entropy(
                    denoiser, self.setup.scheduler, self.latents, self.token_ids, self.timesteps
                )
                scores = {
                    t: dataclasses.replace(score, cross_entropy=entropies[t])
                    for t, score in scores.items()
                }
        self.scores = average(scores)
        self.paused += time.monotonic() - began
        entropy = self.scores.cross_entropy
        row = {"step": self.state.step, "seconds": round(seconds, 2)}
        self.log.append({**row, **dataclasses.asdict(self.scores)}, kind="valid")
        self.say(
            f"step {self.state.step:,}: noise cosine {self.scores.noise_cosine:.3f} · "
            f"x0 cosine {self.scores.x0_cosine:.3f} · x0 magnitude {self.scores.x0_magnitude:.2f}"
            + (f" · {entropy:.3f} nats a token" if entropy is not None else "")
        )

    def finish(self) -> dict:
        """Leaves the averaged denoiser and all it needs in the run folder; returns the record."""
        self._stack.close()
        if self.scores is None:  # killed between the last checkpoint and this
            self._validate(self.log.seconds)
        self.log.close()
        with self.state.averaged() as denoiser, replaced_folder(self.out / "denoiser") as temporary:
            save_denoiser(denoiser, temporary, store=self.setup.config.training.store)
        with replaced_folder(self.out / "scheduler") as temporary:
            self.setup.scheduler.save_pretrained(temporary)
        counts = np.bincount(self.setup.training.lengths).tolist()
        write_json(self.out / LENGTHS_FILE, {"passages_of_length": counts})
        if self.setup.autoencoder.statistics:
            write_json(self.out / STATISTICS_FILE, self.setup.autoencoder.statistics.to_json())
        record = {
            "denoiser": self.setup.config.denoiser.name,
            "target": self.setup.config.objective.target,
            "parameters": parameters(self.state.denoiser),
            "steps": self.state.step,
            "passages": self.state.passages,
            "tokens": self.state.tokens,
            "seconds": read_log(self.out)[-1]["seconds"],
            "validation": dataclasses.asdict(self.scores),
            "config": config_to_dict(self.setup.config),
        }
        write_json(self.out / "training.json", record)
        return record


def open_run(
    run: str | Path,
    *,
    device: str | None = None,
    say: Callable[[str], None] = say,
    like: Setup | None = None,
) -> tuple[Setup, ModelMixin]:
    """A run's setup and its averaged denoiser: the finished one, or the newest checkpoint's."""
    run = Path(run)
    if not (run / "config.json").exists():
        raise UserError(f"'{run}' is no training run: config.json is missing")
    config = config_from_dict(read_json(run / "config.json"))
    setup = open_setup(config, device=device, say=say, like=like)
    if (run / "scheduler").exists():
        setup = dataclasses.replace(
            setup, scheduler=DDPMScheduler.from_pretrained(run / "scheduler")
        )
    if (run / "denoiser").exists():
        return setup, load_denoiser(run / "denoiser").to(setup.autoencoder.device)
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            return setup, load_denoiser(folder).to(setup.autoencoder.device)
        except UserError as error:
            say(str(error))
    raise UserError(f"'{run}' has no checkpoint yet")


def _noise(config: TrainConfig) -> str:
    """The schedule and the loss, in words."""
    own = config.objective
    schedule = f"tan-{own.schedule_d:g}" if own.schedule == "tan" else own.schedule
    return f"{schedule} schedule · {own.loss}{f' in {own.loss_in}' if own.loss_in else ''}"


def _check_begun(out: Path, config: TrainConfig) -> None:
    """UserError if another run was begun here, even one that has no checkpoint yet."""
    if (out / "config.json").exists():
        check_same_run(config, read_json(out / "config.json"), out)


def _begin(out: Path, config: TrainConfig) -> None:
    made_folder(checkpoint_folder(out, 0).parent)
    write_json(out / "config.json", config_to_dict(config))


def _silence(message: str) -> None:
    """Only the main process speaks."""
