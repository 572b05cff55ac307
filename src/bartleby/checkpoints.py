"""Checkpoints that survive a kill at any moment: safetensors and JSON, written aside and renamed.

A run folder holds `checkpoints/step-00000400/`, each an ordinary model folder plus the optimiser's
state. A folder of that name is complete, since it only gets its name once everything in it is on disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bartleby.errors import UserError
from bartleby.optimisation import AnyOptimizer

T = TypeVar("T")
Network = TypeVar("Network", bound=torch.nn.Module)


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read; the one before it may still be good."""


WEIGHTS = ["model.safetensors", "diffusion_pytorch_model.safetensors"]  # transformers', diffusers'
CHECKPOINTS = "checkpoints"  # their folder in a run's
KEEP = 2  # the newest, and the one before in case the newest is damaged


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, renamed to `folder` at the end; on an error nothing is left behind."""
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        with _writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _open_to_all(file)
            _sync(temporary)
            if folder.is_symlink():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Within, what cannot be written is a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None
    except SafetensorError as error:  # how safetensors reports a full disk
        raise UserError(f"cannot write '{path}': {error}") from None


def _open_to_all(path: Path) -> None:
    """Whoever may read what else is written here may read this: safetensors' files are their owner's alone."""
    if path.is_file():
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary file to write, renamed to `path` at the end; on an error nothing is left behind."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with _writing(path):
            yield temporary
            _open_to_all(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def made_once(
    path: Path, make: Callable[[], T], *, lock: Path, say: Callable[[str], None]
) -> T | None:
    """What `make` returns, by which `path` comes to be; None, and nothing is done, if it is there already.

    Of several processes one makes it while the others wait.
    """
    if path.exists():
        return None
    with alone(lock, say=say):
        return None if path.exists() else make()


@contextmanager
def alone(path: Path, *, say: Callable[[str], None]) -> Iterator[None]:
    """Only one process at a time is inside, of all that name this lock file; the others wait and are told."""
    made_folder(path.parent)
    try:
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is at work on {path.stem}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_json(path: Path, value: object) -> None:
    """`value` as indented JSON, written aside and renamed."""
    with replaced_file(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict:
    """The JSON object in a file of ours; UserError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is damaged: expected a JSON object")
    return value


def made_folder(folder: Path) -> Path:
    """The folder, made if it is not there; UserError if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror}") from None
    return folder


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """Those that the run holds, the newest first."""
    return sorted((run / CHECKPOINTS).glob("step-*"), reverse=True)


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(folder.name.removeprefix("step-"))


def save_training_state(folder: Path, optimizer: AnyOptimizer, state: dict) -> None:
    """The optimiser's tensors and a JSON object of everything else that resuming needs."""
    tensors: dict[str, torch.Tensor] = {}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in moments.items()}
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "training_state.json", state)


def load_training_state(folder: Path, optimizer: AnyOptimizer) -> dict:
    """Restores `optimizer` and returns the JSON object that was saved beside it."""
    try:
        state = read_json(folder / "training_state.json")
    except UserError as error:
        raise DamagedCheckpointError(str(error)) from None
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_tensors(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return state


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; DamagedCheckpointError if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"'{path}' is missing or damaged: {error}") from None


def load_newest_checkpoint(
    run: Path, load: Callable[[Path], None], say: Callable[[str], None]
) -> Path | None:
    """The newest checkpoint that `load` can read; None if there is none at all.

    A damaged one is said and the one before it tried. Raises UserError if all are damaged: starting
    over would throw away what might still be rescued.
    """
    folders = checkpoint_folders(run)
    for folder in folders:
        try:
            load(folder)
        except DamagedCheckpointError as error:
            say(f"checkpoint {folder.name} cannot be used ({error})")
            continue
        return folder
    if folders:
        raise UserError(
            f"no checkpoint in '{run / 'checkpoints'}' can be read; remove that folder to start over"
        )
    return None


def check_same_settings(wanted: dict, saved: dict, may_change: set[str], run: Path) -> None:
    """UserError if a setting that is not in `may_change` is not what the run was trained with."""
    for key, value in wanted.items():
        if key not in may_change and saved.get(key) != value:
            raise UserError(
                f"'{run}' was trained with {key} = {saved.get(key)}, not {value}; "
                "use another --out or the same settings"
            )


def save_network(
    run: Path,
    network: torch.nn.Module,
    optimizer: AnyOptimizer,
    state: dict,
    *,
    beside: Iterable = (),
) -> Path:
    """A checkpoint of `network` and of what lies `beside` it, named by state["step"]; older ones are dropped."""
    folder = checkpoint_folder(run, state["step"])
    with replaced_folder(folder) as temporary:
        for part in (network, *beside):
            part.save_pretrained(temporary)
        save_training_state(temporary, optimizer, state)
    drop_old_checkpoints(run)
    return folder


def resume_network(
    run: Path,
    network: torch.nn.Module,
    optimizer: AnyOptimizer,
    settings: dict,
    origins: dict[str, str],
    may_change: set[str],
    say: Callable[[str], None],
) -> dict:
    """The state of the newest usable checkpoint of `save_network`, its weights loaded; {} if there is none.

    Raises UserError if its "config" differs from `settings` in more than `may_change`, or its "origins" at all.
    """
    state: dict = {}

    def load(folder: Path) -> None:
        nonlocal state
        state = load_training_state(folder, optimizer)
        check_same_settings(settings, state["config"], may_change, run)
        check_same_origins(origins, state.get("origins", {}), run)
        # Embeddings and output layer of a BART are one tensor, saved once.
        names = [name for name in WEIGHTS if (folder / name).exists()] or WEIGHTS
        network.load_state_dict(load_tensors(folder / names[0]), strict=False)

    folder = load_newest_checkpoint(run, load, say)
    if folder is not None:
        say(f"resuming from {folder}: step {state['step']:,} of {settings['steps']:,}")
    return state


def check_same_origins(origins: dict[str, str], saved: dict[str, str], run: Path) -> None:
    """UserError if what a run depends on besides its settings, by digest, is not what it was begun with."""
    for name, digest in origins.items():
        if saved.get(name) != digest:
            raise UserError(f"'{run}' was begun with another {name}; use another --out")


@torch.no_grad()
def realigned(network: Network) -> Network:
    """The network with its weights in memory of their own.

    Weights that are mapped from a file lie where its header ends, and sums over unaligned memory are made
    in another order: the same weights in two files would give results that differ in the last digits.
    """
    for weight in [*network.parameters(), *network.buffers()]:
        weight.data = weight.data.clone()
    return network


def digest_of(*parts: torch.nn.Module | np.ndarray | list[str]) -> str:
    """A name for networks, arrays and texts that changes with any weight, number or character of them."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            for name, weight in part.state_dict().items():
                digest.update(name.encode())
                digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            for text in part:
                digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:20]


def drop_old_checkpoints(run: Path) -> None:
    """Leaves the newest `KEEP` checkpoints."""
    for folder in checkpoint_folders(run)[KEEP:]:
        shutil.rmtree(folder)
