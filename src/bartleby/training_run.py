"""A whole training run: checks, latents, training with a progress bar, validation, the finished denoiser.

What it leaves in its folder is listed in run_folder.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diffusers import ModelMixin
from rich.progress import Progress

from bartleby.checkpoints import (
    CHECKPOINTS,
    made_folder,
    read_json,
    replaced_folder,
    write_json,
)
from bartleby.config import TrainConfig, config_from_dict, config_to_dict
from bartleby.console import progress_bar
from bartleby.denoisers.build import parameters, save_denoiser
from bartleby.evaluation.latents import (
    DenoisingScores,
    average,
    measure,
    measure_cross_entropy,
    timestep_grid,
)
from bartleby.latents import STATISTICS_FILE
from bartleby.messages import say
from bartleby.precision import network_dtype
from bartleby.processes import Processes, make_accelerator
from bartleby.run_folder import (
    CONFIG_FILE,
    DENOISER,
    LENGTHS_FILE,
    RECORD_FILE,
    SCHEDULER,
    read_record,
)
from bartleby.run_log import LOG_EVERY, RunLog, read_log
from bartleby.run_setup import Setup, prepare, reference_cosines, validation_sample
from bartleby.training import (
    TrainingState,
    check_same_run,
    total_steps,
    train,
)

VALIDATION_TIMESTEPS = 10


def run_training(
    config: TrainConfig,
    out: str | Path,
    *,
    device: str | None = None,
    say: Callable[[str], None] = say,
    prepared: tuple[Setup, ModelMixin] | None = None,
) -> dict:
    """Trains, validates as it goes, leaves the denoiser in `out`; returns the record of it.

    A run that was interrupted goes on; one that has ended returns its record. Raises UserError if `out` holds a
    run of another configuration. All processes but the main one get an empty record.  prepared: what `prepare`
    returns, if that was called before.
    """
    out, accelerator = Path(out), make_accelerator(device)
    processes = Processes(accelerator)
    say = processes.speaking(say)
    _check_begun(out, config)
    record = read_record(out)
    if record:  # also where only what finished was kept
        check_same_run(config, record["config"], out)
    if record and config_from_dict(record["config"]) == config:  # needs no latents to be told
        return _ended(out, record, processes, say)
    with processes.main_first():
        setup, denoiser = prepared or prepare(config, device=str(accelerator.device), say=say)
    steps = total_steps(config, setup.training)
    if record and record["steps"] >= steps:
        return _ended(out, record, processes, say)
    if processes.is_main:
        _begin(out, config)
    processes.wait()
    say(
        f"{config.denoiser.name} · {parameters(denoiser):,} parameters · predicts "
        f"{config.objective.target} · {_noise(config)} · "
        f"{steps:,} steps of up to {config.training.tokens_per_batch:,} tokens · "
        f"{accelerator.device}, {str(network_dtype(accelerator.device)).removeprefix('torch.')}"
        f"{processes} · seed {config.training.seed}"
    )
    states = train(config, setup.training, denoiser, setup.scheduler, out, accelerator, say=say)
    record = {}
    if processes.is_main:
        with Observer(setup, out, say) as observer:
            for state in states:
                observer.see(state)
            record = observer.finish()
    else:
        for _ in states:
            pass
    processes.wait()
    return record


class Observer:
    """Watches a run, a context: progress bar, log, validation, and at the end the finished folder.

    A bar and a log are opened at the first state, from which a resumed run counts on, and closed however the run ends.
    """

    state: TrainingState  # this and the next two from the first state on
    log: RunLog
    _bar: Progress

    def __init__(self, setup: Setup, out: Path, say: Callable[[str], None]):
        self.setup, self.out, self.say = setup, out, say
        self.latents, self.token_ids = validation_sample(
            setup.validation, setup.config.training.validation_texts
        )
        self.timesteps = timestep_grid(
            setup.scheduler.config.num_train_timesteps, VALIDATION_TIMESTEPS
        )
        self.references = reference_cosines(setup, self.latents, self.timesteps)
        self.scores: DenoisingScores | None = None
        self._opened = False
        self._began, self._paused, self._tokens_before = 0.0, 0.0, 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Observer:
        self.say(
            f"noise cosine to beat: {self.references['identity']:.3f} of returning the input, "
            f"{self.references['wiener']:.3f} of a linear filter"
        )
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def see(self, state: TrainingState) -> None:
        """One state of the training loop."""
        self.state = state
        if not self._opened:
            self._open(state)
        if state.loss is None:
            return
        seconds = time.monotonic() - self._began - self._paused
        rate = (state.tokens - self._tokens_before) / max(seconds - self.log.seconds, 1e-9)
        self._bar.update(
            self._bar.task_ids[0],
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

    def finish(self) -> dict:
        """Leaves the averaged denoiser and all it needs in the run folder; returns the record."""
        # None: killed between the last checkpoint and this.
        scores = self.scores or self._validate(self.log.seconds)
        with self.state.averaged() as denoiser:
            return save_finished_run(
                self.out, self.setup, denoiser, self.state, scores, self.references
            )

    def _open(self, state: TrainingState) -> None:
        self._opened = True
        self.log = RunLog(self.out, step=state.step - (state.loss is not None))
        self._stack.callback(self.log.close)
        self._bar = self._stack.enter_context(progress_bar("train", total=state.steps))
        self._began = time.monotonic() - self.log.seconds
        self._tokens_before = state.tokens

    def _validate(self, seconds: float) -> DenoisingScores:
        """The state's scores, logged and kept. Validation is not training: its time is not counted."""
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
        self._paused += time.monotonic() - began
        entropy = self.scores.cross_entropy
        row = {"step": self.state.step, "seconds": round(seconds, 2)}
        self.log.append({**row, **dataclasses.asdict(self.scores)}, kind="valid")
        self.say(
            f"step {self.state.step:,}: noise cosine {self.scores.noise_cosine:.3f} · "
            f"x0 cosine {self.scores.x0_cosine:.3f} · x0 magnitude {self.scores.x0_magnitude:.2f}"
            + (f" · {entropy:.3f} nats a token" if entropy is not None else "")
        )
        return self.scores


def save_finished_run(
    out: Path,
    setup: Setup,
    denoiser: ModelMixin,
    state: TrainingState,
    scores: DenoisingScores,
    references: dict[str, float],
) -> dict:
    """Writes what a generator is made of beside its BART, `training.json` last; returns that record.

    references: as of `reference_cosines`.
    """
    with replaced_folder(out / DENOISER) as temporary:
        save_denoiser(denoiser, temporary, store=setup.config.training.store)
    with replaced_folder(out / SCHEDULER) as temporary:
        setup.scheduler.save_pretrained(temporary)
    counts = np.bincount(setup.training.lengths).tolist()
    write_json(out / LENGTHS_FILE, {"passages_of_length": counts})
    if setup.autoencoder.statistics:
        write_json(out / STATISTICS_FILE, setup.autoencoder.statistics.to_json())
    record = {
        "denoiser": setup.config.denoiser.name,
        "target": setup.config.objective.target,
        "parameters": parameters(denoiser),
        "steps": state.step,
        "passages": state.passages,
        "tokens": state.tokens,
        "seconds": read_log(out)[-1]["seconds"],
        "validation": dataclasses.asdict(scores),
        "untrained_noise_cosines": references,
        "config": config_to_dict(setup.config),
        "origins": setup.training.origins(),
    }
    write_json(out / RECORD_FILE, record)
    return record


def _noise(config: TrainConfig) -> str:
    """The schedule and the loss, in words."""
    own = config.objective
    schedule = f"tan-{own.schedule_d:g}" if own.schedule == "tan" else own.schedule
    return f"{schedule} schedule · {own.loss}{f' in {own.loss_in}' if own.loss_in else ''}"


def _check_begun(out: Path, config: TrainConfig) -> None:
    """UserError if another run was begun here, even one that has no checkpoint yet."""
    if (out / CONFIG_FILE).exists():
        check_same_run(config, read_json(out / CONFIG_FILE), out)


def _ended(out: Path, record: dict, processes: Processes, say: Callable[[str], None]) -> dict:
    say(
        f"'{out}' has already run its {record['steps']:,} steps; to go on, raise training.steps or epochs"
    )
    return record if processes.is_main else {}


def _begin(out: Path, config: TrainConfig) -> None:
    made_folder(out / CHECKPOINTS)
    write_json(out / CONFIG_FILE, config_to_dict(config))
