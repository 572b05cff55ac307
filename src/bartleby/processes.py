"""The processes that work on one run: all that `torchrun` started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from bartleby.errors import UserError
from bartleby.precision import allow_tf32, chosen_device

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """accelerator: accelerate's, of all of them; None where this one is alone."""

    accelerator: Accelerator | None = None

    @property
    def count(self) -> int:
        """How many they are."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def index(self) -> int:
        """This one's number; that of the main one, which alone writes and speaks, is 0."""
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def is_main(self) -> bool:
        """Whether this is the main one."""
        return self.index == 0

    def __str__(self) -> str:
        """What a line about a run says of them: nothing where one is alone."""
        return f" · {self.count} processes" if self.count > 1 else ""

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This one's rows of a batch; where they are fewer than the processes, some go to several."""
        own = rows[self.index :: self.count]
        return own if len(own) else rows[[self.index % len(rows)]]

    def seed(self, *parts: int) -> tuple[int, ...]:
        """The seed of what each process draws for itself: `parts` where it is alone."""
        return parts if self.count == 1 else (*parts, self.index)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all of them."""
        return self.accelerator.reduce(values, reduction="sum") if self.accelerator else values

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main one, in all of them."""
        if self.accelerator is None:
            return make()
        made = [make() if self.is_main else None]
        return broadcast_object_list(made)[0]

    def check_same(self, step: int) -> None:
        """UserError if this one is to begin at another step than the main one: it does not see its checkpoints."""
        if self.from_main(lambda: step) != step:
            raise UserError(
                f"process {self.index} would begin at step {step:,}, the main one does not: the run folder must be one "
                "that all of them see"
            )

    def main_first(self) -> AbstractContextManager[None]:
        """Within, the others wait until the main one has left."""
        return self.accelerator.main_process_first() if self.accelerator else nullcontext()

    def wait(self) -> None:
        """Until all of them have come here."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def speaking(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say` in the main one, nothing in the others."""
        return say if self.is_main else _silence


def launched(device: str | None = None) -> tuple[Processes, torch.device]:
    """The processes that `torchrun` (or `accelerate launch`, on GPUs) started, and this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(), chosen_device(device)
    accelerator = make_accelerator(device)
    return Processes(accelerator), accelerator.device


def make_accelerator(device: str | torch.device | None = None) -> Accelerator:
    """accelerate for this device and every process that was started with this one.

    UserError if they are more than this machine has GPUs.
    """
    device = chosen_device(device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes were started, but this machine has {torch.cuda.device_count()} GPUs; each needs its own"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # or accelerate would take the first
    allow_tf32(device)
    return Accelerator(
        mixed_precision="no",  # loops have their own autocast; accelerate's would stay in a network's forward
        cpu=device.type == "cpu",
        kwargs_handlers=[
            # One process may encode a large corpus, or validate, for hours while the others wait.
            InitProcessGroupKwargs(timeout=timedelta(days=2)),
            # Buffers are tables that never change; sent anew with every step they would be its largest part.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )


def _silence(message: str) -> None:
    """Only the main process speaks."""
