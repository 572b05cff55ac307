"""The architecture study: the three published denoisers, what stops them, and what does not.

A matrix of runs, all trained by the same command on the same latents for at most the same time; each
leaves a run folder and a result, so that an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, ModelMixin

from bartleby.checkpoints import made_folder, read_json, write_json
from bartleby.config import TrainConfig, config_from_dict, config_to_dict
from bartleby.denoisers.baselines import identity_noise_cosine, wiener_noise_cosine
from bartleby.errors import UserError
from bartleby.evaluation.latents import (
    average,
    decoded_accuracy,
    measure,
    measure_tokens,
    noised,
    timestep_grid,
)
from bartleby.latents import Latents
from bartleby.messages import say
from bartleby.processes import make_accelerator
from bartleby.run_folder import CONFIG_FILE
from bartleby.run_log import read_log
from bartleby.run_setup import Setup, baseline, open_run, open_setup, prepare, validation_sample
from bartleby.schedules import alpha_bar_at
from bartleby.training import total_steps, train
from bartleby.training_run import run_training

CURVE_POINTS = 8  # validations of a run
PROBE_STEPS, PROBE_WARMUP = 6, 2  # optimiser steps that measure how long one takes
RESULT = "result.json"


@dataclass(frozen=True)
class StudyRun:
    """One row of the study.

    denoiser, objective: what they change of a configuration's tables. widths: a UNet's, as shares of the
    channels. rate: learning rate, as a share of the study's. published: what the log reports of this system.
    """

    name: str
    denoiser: dict
    target: str
    objective: dict = dataclasses.field(default_factory=dict)
    widths: tuple[float, ...] = ()
    rate: float = 1.0
    published: str = ""


PUBLISHED = {
    "simple-unet": "0.24, 2.4M, 27 min",
    "diffusers-unet": "0.14, 68M, 29 min",
    "text-unet": "0.23-0.27, 8M, 25 min",
}
LARGE = 0.1  # UNets of over 50M parameters fall to predicting nothing at 1e-3 (docs/LOG.md)
SYSTEMS = [
    StudyRun(
        f"{name} {target}",
        {"name": name},
        target,
        rate=LARGE if name == "diffusers-unet" else 1.0,
        published=published if target == "noise" else "",
    )
    for name, published in PUBLISHED.items()
    for target in ("noise", "v", "x0")
]
WIDTHS = [  # the same network, narrower and wider than the latents
    StudyRun(
        "text-unet narrow noise", {"name": "text-unet"}, "noise", widths=(1 / 12, 1 / 2, 2 / 3)
    ),
    StudyRun(
        "text-unet wide noise",
        {"name": "text-unet"},
        "noise",
        widths=(4 / 3, 4 / 3, 4 / 3),
        rate=LARGE,
    ),
]
TRANSFORMERS = [
    *(StudyRun(f"transformer {t}", {"name": "transformer"}, t) for t in ("noise", "v", "x0")),
    *(
        StudyRun(
            f"transformer + {precondition} x0",
            {"name": "transformer", "precondition": precondition},
            "x0",
            objective={"loss_in": "v"},
        )
        for precondition in ("wiener", "mixture")
    ),
]
MATRIX = [*SYSTEMS, *WIDTHS, *TRANSFORMERS]
QUICK = (  # the rows that tell the story in few minutes
    "simple-unet noise",
    "diffusers-unet noise",
    "text-unet noise",
    "text-unet v",
    "text-unet x0",
    "text-unet wide noise",
    "transformer x0",
    "transformer + mixture x0",
)
BASELINES = ("identity", "wiener", "mixture")


@dataclass(frozen=True)
class StudySettings:
    """minutes: training time of each run at most; never more than `epochs`.  size: of the transformers."""

    data: str = "wikitext-2"
    column: str = "text"
    limit: int = 0
    model: str = "nano"
    minutes: float = 25.0
    epochs: float = 2.0
    size: str = "small"
    tokens_per_batch: int = 2048
    learning_rate: float = 1e-3
    grid: int = 20  # timesteps that are evaluated
    texts: int = 48  # validation passages of latent scores
    decoded: int = 12  # validation passages that are decoded at every timestep
    quick: bool = False  # only the rows of QUICK
    seed: int = 0


def quick_settings(settings: StudySettings) -> StudySettings:
    """The study small enough for minutes: the rows of `QUICK`, on less text, tell the same story less sharply."""
    return dataclasses.replace(
        settings, quick=True, limit=1000, minutes=0.2, size="tiny", grid=10, texts=16, decoded=4
    )


def run_config(run: StudyRun, settings: StudySettings, channels: int) -> TrainConfig:
    """The training configuration of one row, its steps still open."""
    denoiser = dict(run.denoiser)
    if run.denoiser["name"] == "transformer":
        denoiser["size"] = settings.size
    if run.widths:
        denoiser["widths"] = [max(8, round(channels * share) // 8 * 8) for share in run.widths]
    return config_from_dict(
        {
            "data": {"source": settings.data, "column": settings.column, "limit": settings.limit},
            "autoencoder": {"model": settings.model},
            "denoiser": denoiser,
            "objective": {"target": run.target, **run.objective},
            "training": {
                "epochs": settings.epochs,
                "tokens_per_batch": settings.tokens_per_batch,
                "learning_rate": settings.learning_rate * run.rate,
                "validation_texts": max(4, settings.texts // 4),
                "seed": settings.seed,
            },
        }
    )


def run_study(
    settings: StudySettings,
    out: Path,
    *,
    only: list[str] | None = None,
    device: str | None = None,
    say: Callable[[str], None] = say,
) -> list[dict]:
    """Every row's result, baselines first; rows that `out` already holds are not run again.

    only: names of rows to run, the others are left out. A run that fails is a row with `failed`.
    """
    names = QUICK if settings.quick else [run.name for run in MATRIX]
    for name in only or []:
        if name not in names:
            raise UserError(f"no run '{name}' in the study (known: {', '.join(names)})")
    _same_settings(settings, out)
    setup = open_setup(run_config(TRANSFORMERS[0], settings, 768), device=device, say=say)
    channels = setup.autoencoder.channels
    results = [_baseline(name, setup, settings, out, say) for name in BASELINES]
    for run in MATRIX:
        if run.name not in (only or names):
            continue
        folder = out / "runs" / run.name.replace(" ", "-")
        if not (folder / RESULT).exists():
            say(f"\n{run.name}")
            config = run_config(run, settings, channels)
            write_json(
                made_folder(folder) / RESULT,
                _train_and_measure(run, config, setup, settings, folder, device, say),
            )
        results.append(read_json(folder / RESULT))
    return results


def _train_and_measure(
    run: StudyRun,
    config: TrainConfig,
    setup: Setup,
    settings: StudySettings,
    folder: Path,
    device: str | None,
    say: Callable[[str], None],
) -> dict:
    row = {"name": run.name, "target": run.target, "published": run.published}
    try:
        mine, denoiser = prepare(config, device=device, say=say, like=setup)
        config = _with_steps(config, mine, denoiser, settings, folder, device)
        mine = dataclasses.replace(mine, config=config)
        record = run_training(config, folder, device=device, say=say, prepared=(mine, denoiser))
        mine, denoiser = open_run(folder, say=say, like=setup)
    except UserError as error:
        say(f"failed: {error}")
        return {**row, "failed": str(error)}
    say("measuring")
    return {
        **row,
        "parameters": record["parameters"],
        "steps": record["steps"],
        "seconds": record["seconds"],
        "passages": record["passages"],
        "epochs": record["passages"] / len(mine.training),
        "bottleneck": denoiser.bottleneck,
        "curve": [
            {"seconds": entry["seconds"], "noise_cosine": entry["noise_cosine"]}
            for entry in read_log(folder)
            if entry["kind"] == "valid"
        ],
        **measured(denoiser, mine.scheduler, mine, settings),
    }


def measured(
    denoiser: ModelMixin, scheduler: DDPMScheduler, setup: Setup, settings: StudySettings
) -> dict:
    """Scores of a denoiser: averaged over the grid, and at each timestep."""
    grid = timestep_grid(scheduler.config.num_train_timesteps, settings.grid)
    latents, token_ids = _to_device(setup, settings.texts)
    scores = measure(denoiser, scheduler, latents, grid, seed=settings.seed)
    latents, token_ids = _to_device(setup, settings.decoded)
    accuracies = measure_tokens(
        setup.autoencoder, denoiser, scheduler, latents, token_ids, grid, seed=settings.seed
    )
    scores = {
        t: dataclasses.replace(score, token_accuracy=accuracies[t]) for t, score in scores.items()
    }
    return {
        **dataclasses.asdict(average(scores)),
        "timesteps": [{"timestep": t, **dataclasses.asdict(score)} for t, score in scores.items()],
    }


def _baseline(
    name: str, setup: Setup, settings: StudySettings, out: Path, say: Callable[[str], None]
) -> dict:
    folder = out / "runs" / name
    if not (folder / RESULT).exists():
        say(f"\n{name}")
        denoiser, scheduler = baseline(name, setup)
        row = {
            "name": name,
            "target": denoiser.target,
            "published": "",
            "parameters": 0,
            "steps": 0,
            "seconds": 0.0,
            "passages": 0,
            "epochs": 0.0,
            "bottleneck": denoiser.bottleneck,
            **measured(denoiser, scheduler, setup, settings),
        }
        if name != "mixture":
            row["closed_form"] = closed_form(name, scheduler, setup, settings)
        if name == "identity":
            row["input_accuracy"] = input_accuracy(scheduler, setup, settings)
        write_json(made_folder(folder) / RESULT, row)
    return read_json(folder / RESULT)


def closed_form(
    name: str, scheduler: DDPMScheduler, setup: Setup, settings: StudySettings
) -> float:
    """The baseline's noise cosine from the second moments of the very passages it is measured on."""
    grid = timestep_grid(scheduler.config.num_train_timesteps, settings.grid)
    alpha_bar = scheduler.alphas_cumprod[grid]
    latents, _ = validation_sample(setup.validation, settings.texts)
    real = latents.real.double()
    if name == "identity":
        variance = float(real.square().mean())
        return float(identity_noise_cosine(alpha_bar, variance=variance).mean())
    eigenvalues, basis = torch.linalg.eigh(setup.training.covariance().double())
    moments = (real @ basis).square().mean(dim=0)
    cosines = wiener_noise_cosine(alpha_bar.double(), eigenvalues.clamp_min(0), moments)
    return float(cosines.mean())


def input_accuracy(scheduler: DDPMScheduler, setup: Setup, settings: StudySettings) -> list[dict]:
    """Token accuracy of noised latents that are decoded as they are, x_t / sqrt(alpha_bar), at each timestep."""
    rows = []
    latents, token_ids = _to_device(setup, settings.decoded)
    for timestep in timestep_grid(scheduler.config.num_train_timesteps, settings.grid):
        xt, _ = noised(scheduler, latents, timestep, seed=settings.seed)
        values = xt / alpha_bar_at(scheduler, torch.tensor([timestep])).sqrt().to(xt.device)
        accuracy = decoded_accuracy(setup.autoencoder, Latents(values, latents.mask), token_ids)
        rows.append({"timestep": timestep, "token_accuracy": accuracy})
    return rows


def _to_device(setup: Setup, count: int):
    latents, token_ids = validation_sample(setup.validation, count)
    device = setup.autoencoder.device
    return Latents(latents.values.to(device), latents.mask.to(device)), token_ids


def _with_steps(
    config: TrainConfig,
    setup: Setup,
    denoiser: ModelMixin,
    settings: StudySettings,
    folder: Path,
    device: str | None,
) -> TrainConfig:
    """The configuration with as many steps as fit the minutes, decided once and then kept."""
    if (folder / CONFIG_FILE).exists():
        return config_from_dict(read_json(folder / CONFIG_FILE))
    epochs = total_steps(config, setup.training)
    steps = min(
        epochs, max(20, int(60 * settings.minutes / seconds_per_step(setup, denoiser, device)))
    )
    warmup = max(1, min(config.training.warmup_steps, steps // 10))
    training = dataclasses.replace(
        config.training,
        steps=steps,
        warmup_steps=warmup,
        validate_every=max(1, steps // CURVE_POINTS),
    )
    config = dataclasses.replace(config, training=training)
    write_json(made_folder(folder) / CONFIG_FILE, config_to_dict(config))
    return config


def seconds_per_step(setup: Setup, denoiser: ModelMixin, device: str | None) -> float:
    """Median wall-clock seconds of a training step, from a few that leave no trace."""
    weights = {name: value.clone() for name, value in denoiser.state_dict().items()}
    times = []
    training = dataclasses.replace(setup.config.training, steps=10**6, checkpoint_minutes=1e9)
    config = dataclasses.replace(setup.config, training=training)
    states = train(
        config,
        setup.training,
        denoiser,
        setup.scheduler,
        Path("/nonexistent"),
        make_accelerator(device),
    )
    began = time.perf_counter()
    for _ in range(PROBE_WARMUP + PROBE_STEPS):
        next(states)
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    states.close()
    denoiser.load_state_dict(weights)
    return float(np.median(times[PROBE_WARMUP:]))


def _same_settings(settings: StudySettings, out: Path) -> None:
    path = made_folder(out) / "study.json"
    wanted = dataclasses.asdict(settings)
    if not path.exists():
        write_json(path, wanted)
        return
    saved = read_json(path)
    for key, value in wanted.items():
        if saved.get(key) != value:
            raise UserError(
                f"the study in '{out}' was begun with {key} = {saved.get(key)}, not {value}; "
                "use another --out or the same settings"
            )
