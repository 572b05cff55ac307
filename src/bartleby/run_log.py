"""The log of a training run: one JSON object a line in `log.jsonl`, the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from bartleby.console import progress_bar
from bartleby.errors import UserError
from bartleby.processes import Processes
from bartleby.training_loop import LoopState

LOG_EVERY = 10  # steps


class RunLog:
    """Appends rows that have a `step`. Opened at a step, it first drops what a killed run logged after it.

    seconds: of training, up to that step.
    """

    def __init__(self, run: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self.path = run / "log.jsonl"
        kept = [row for row in read_log(run) if row["step"] <= step]
        self.seconds = kept[-1].get("seconds", 0.0) if kept else 0.0
        try:
            temporary = self.path.with_name(".log.jsonl.partial")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            os.replace(temporary, self.path)
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise UserError(f"cannot write '{run}': {error.strerror}") from None
        self._opened = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training until now, those of earlier processes included."""
        return self.seconds + time.monotonic() - self._opened

    def append(self, row: dict, *, kind: str) -> None:
        """One row; `kind` (train, valid) groups its numbers on TensorBoard."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, **row}) + "\n")
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"{kind}/{name}", value, row["step"])
        except OSError as error:
            raise UserError(f"cannot write '{self.path}': {error.strerror}") from None

    def close(self) -> None:
        """Writes out what TensorBoard's file still holds back."""
        self._board.close()


def follow(
    states: Iterable[LoopState],
    out: Path,
    title: str,
    *,
    processes: Processes = Processes(),
    observe: Callable[[LoopState, RunLog], None] | None = None,
) -> LoopState:
    """Goes through the states of a `training_loop` with a progress bar and a log in `out`; returns the last one.

    observe: called after every step, to validate now and then. Of several processes the main one does all that.
    """
    if not processes.is_main:
        return deque(states, maxlen=1).pop()
    log, before = None, 0
    with progress_bar(title, total=1) as bar, contextlib.ExitStack() as stack:
        for state in states:
            if state.losses is None:
                break
            if log is None:
                log, before = RunLog(out, step=state.step - 1), state.tokens
                stack.callback(log.close)
            rate = (state.tokens - before) / max(log.elapsed - log.seconds, 1e-9)
            note = " · ".join(_in_words(name, part) for name, part in state.losses.items())
            bar.update(
                bar.task_ids[0],
                completed=state.step,
                total=state.steps,
                note=f" {note} · {rate:,.0f} tokens/s",
            )
            if state.step % LOG_EVERY == 0 or state.step == state.steps:
                row = {"step": state.step, **state.losses, "tokens": state.tokens}
                row |= {"learning_rate": state.learning_rate, "tokens_per_second": round(rate)}
                log.append({**row, "seconds": round(log.elapsed, 2)}, kind="train")
            if observe:
                observe(state, log)
    return state


def _in_words(name: str, part: float | str) -> str:
    name = name.replace("_", " ")
    return f"{name} {part}" if isinstance(part, str) else f"{name} {part:.3f}"


def read_log(run: Path) -> list[dict]:
    """Every row of a run's log; a line cut short by a kill is left out."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
