"""The log of a training run: one JSON object a line in `log.jsonl`, the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from bartleby.errors import UserError

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
