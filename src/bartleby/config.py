"""The configuration of a training run: a TOML file with five tables, checked when it is read.

Each field below is a key of its table; the comments are its documentation. `configs/` has examples.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from bartleby.denoisers.build import STORES
from bartleby.denoisers.transformer import PRECONDITIONS
from bartleby.errors import UserError
from bartleby.objective import LOSSES
from bartleby.own_code import is_own
from bartleby.schedules import SCHEDULES, TARGETS

STATISTICS = ("data", "model", "none")


@dataclass(frozen=True)
class DataTable:
    """[data]: what to train on."""

    source: str = "wikitext-2"  # file, folder, Hugging Face dataset or alias
    column: str = "text"  # field of .jsonl, column of .csv or of a dataset
    limit: int = 0  # use only this many texts of each split; 0 is all
    cache_gb: float = 20.0  # larger latents are encoded on the fly


@dataclass(frozen=True)
class AutoencoderTable:
    """[autoencoder]: whose latents."""

    model: str = "nano"  # the bundled nano, a folder, or a hub name such as facebook/bart-base
    window: int = 0  # tokens a passage may have; 0 is 128, or less where the model has less
    # Normalise by the statistics of this run's training split (data), of the model's own (model), or not at all.
    statistics: str = "data"


@dataclass(frozen=True)
class DenoiserTable:
    """[denoiser]: which network."""

    # transformer, token-transformer, simple-unet, diffusers-unet, text-unet, or module:Class of a Denoiser of yours
    name: str = "transformer"
    options: dict = field(default_factory=dict)  # what the __init__ of yours takes besides channels
    size: str = "small"  # of a transformer: tiny, nano, small or base
    widths: list[int] = field(default_factory=list)  # of a UNet; empty is as published
    channels: int = 0  # the latents' channels, if you want them checked; 0 is the BART's
    self_conditioning: bool = False  # half of the time a transformer also sees its own estimate
    # The transformer corrects a closed-form estimate of x0: wiener (linear) or mixture (of tokens).
    precondition: str = "none"
    start: str = (
        ""  # begin with the weights of this run's denoiser, or of the bundled generator's: nano
    )


@dataclass(frozen=True)
class ObjectiveTable:
    """[objective]: what the network predicts, under which noise."""

    target: str = "x0"  # noise, x0 or v
    loss: str = "mse"  # mse, l1, or cross-entropy, which token-transformer needs
    loss_in: str = ""  # measure the error in noise, x0 or v; empty is the target itself
    schedule: str = (
        "cosine"  # cosine, linear, sqrt or tan, or module:function, alpha_bar(t) of yours
    )
    schedule_d: float = 3.0  # of tan: 1 is the cosine, larger is noisier
    timesteps: int = 1000
    conditioned: float = 0.0  # share of passages of which a part is given, for token-transformer
    # Cross-entropy over a batch's tokens and so many others, drawn anew each step; 0 is the whole vocabulary.
    candidates: int = 0


@dataclass(frozen=True)
class TrainingTable:
    """[training]: how long and how."""

    epochs: float = 2.0  # passes over the training split
    steps: int = 0  # optimiser steps instead of epochs; 0 is by epochs
    tokens_per_batch: int = 2048  # padded positions of all processes together
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.5  # of the steps, at the end, over which the rate falls to zero
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999  # of the averaged weights that are evaluated and used
    validate_every: int = 500  # steps
    validation_texts: int = 64
    checkpoint_minutes: float = 4.0
    store: str = "float32"  # format of the finished denoiser's large tensors; or bfloat16, int8
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """A whole configuration."""

    data: DataTable = DataTable()
    autoencoder: AutoencoderTable = AutoencoderTable()
    denoiser: DenoiserTable = DenoiserTable()
    objective: ObjectiveTable = ObjectiveTable()
    training: TrainingTable = TrainingTable()

    def __post_init__(self):
        _one_of("autoencoder.statistics", self.autoencoder.statistics, STATISTICS)
        _one_of("denoiser.precondition", self.denoiser.precondition, PRECONDITIONS)
        _one_of("training.store", self.training.store, STORES)
        _one_of("objective.target", self.objective.target, tuple(TARGETS))
        _one_of("objective.loss", self.objective.loss, LOSSES)
        _one_of("objective.loss_in", self.objective.loss_in, ("", *TARGETS))
        if not is_own(self.objective.schedule):
            _one_of("objective.schedule", self.objective.schedule, SCHEDULES)
        if self.denoiser.precondition != "none" and self.objective.target != "x0":
            raise UserError(
                f"objective.target is '{self.objective.target}', but denoiser.precondition makes the network "
                "return x0; set objective.target = 'x0' (objective.loss_in may be what you like)"
            )
        self._check_token_prediction()
        for key, least in _LEAST.items():
            value = _at(self, key)
            if not (math.isfinite(value) and value >= least):
                raise UserError(f"{key} is {value}; it must be at least {least}")
        for key in _SHARES:
            if not 0 <= _at(self, key) <= 1:
                raise UserError(f"{key} is {_at(self, key)}; it must be between 0 and 1")
        if not 0 < self.training.learning_rate < 1:
            raise UserError(
                f"training.learning_rate is {self.training.learning_rate}; it must be between 0 and 1"
            )
        if not 0 <= self.training.ema_decay < 1:
            raise UserError(
                f"training.ema_decay is {self.training.ema_decay}; it must be at least 0 and below 1"
            )
        if self.training.steps == 0 and self.training.epochs == 0:
            raise UserError("training.steps and training.epochs are both 0; set one")

    def _check_token_prediction(self) -> None:
        writes = self.denoiser.name == "token-transformer"
        if writes != (self.objective.loss == "cross-entropy"):
            raise UserError(
                f"objective.loss is '{self.objective.loss}' and denoiser.name '{self.denoiser.name}'; "
                "token-transformer needs cross-entropy, the other denoisers mse or l1"
            )
        if writes and (self.objective.target, self.objective.loss_in) != ("x0", ""):
            raise UserError(
                "objective.target and loss_in do not fit token-transformer, which predicts tokens; "
                "set target = 'x0' and leave loss_in out"
            )
        if self.objective.conditioned and not writes:
            raise UserError(
                f"objective.conditioned is {self.objective.conditioned}, but '{self.denoiser.name}' takes no "
                "condition; use denoiser.name = 'token-transformer'"
            )
        if self.objective.candidates and not writes:
            raise UserError(
                f"objective.candidates is {self.objective.candidates}, but '{self.denoiser.name}' predicts no "
                "tokens; leave the key out"
            )


_LEAST = {
    "data.limit": 0,
    "data.cache_gb": 0,
    "autoencoder.window": 0,
    "denoiser.channels": 0,
    "objective.schedule_d": 1e-6,
    "objective.timesteps": 2,
    "objective.candidates": 0,
    "training.epochs": 0,
    "training.steps": 0,
    "training.tokens_per_batch": 1,
    "training.warmup_steps": 0,
    "training.weight_decay": 0,
    "training.gradient_clip": 1e-6,
    "training.validate_every": 1,
    "training.validation_texts": 1,
    "training.checkpoint_minutes": 0,
    "training.seed": 0,
}
_SHARES = ("objective.conditioned", "training.decay_share")


def read_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """The configuration in a TOML file, with `table.key=value` overrides; UserError names the key at fault."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid TOML: {error}") from None
    for override in overrides or []:
        key, separator, value = override.partition("=")
        table, dot, name = key.strip().partition(".")
        if not separator or not dot:
            raise UserError(f"'{override}' is no override; write table.key=value")
        if not isinstance(tables.setdefault(table, {}), dict):
            raise UserError(f"{table} is not a table in '{path}'")
        tables[table][name] = _toml_value(value.strip())
    return config_from_dict(tables)


def config_from_dict(tables: dict[str, Any]) -> TrainConfig:
    """A configuration from nested dictionaries; missing keys keep their defaults. UserError names the key at fault."""
    kinds = get_type_hints(TrainConfig)
    _known("", tables, kinds)
    filled = {}
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise UserError(f"{table} is {values!r}; it must be a table: [{table}]")
        hints = get_type_hints(kinds[table])
        _known(f"{table}.", values, hints)
        filled[table] = kinds[table](
            **{
                name: _typed(f"{table}.{name}", value, hints[name])
                for name, value in values.items()
            }
        )
    return TrainConfig(**filled)


def config_to_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The inverse of `config_from_dict`."""
    return dataclasses.asdict(config)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word, as in denoiser.name=transformer


def _known(prefix: str, given: dict, known: dict) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"unknown key {prefix}{name} ({remedy})")


def _typed(key: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`; whole numbers are fine where fractions are wanted, nothing else is converted."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == list[int]:
        if isinstance(value, list) and all(type(item) is int and item > 0 for item in value):
            return value
    elif type(value) is kind:
        return value
    wanted = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        dict: "a table",
    }
    raise UserError(f"{key} is {value!r}; it must be {wanted.get(kind, 'a list of whole numbers')}")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(
            f"{key} is '{value}' (known: {', '.join(name or '(empty)' for name in known)})"
        )


def _at(config: TrainConfig, key: str) -> Any:
    table, name = key.split(".")
    return getattr(getattr(config, table), name)
