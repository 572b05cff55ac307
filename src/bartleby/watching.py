"""A text as it emerges: what the decoder reads of the estimates on the way from noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bartleby.autoencoder import DecodeSettings
from bartleby.drafts import Callback, decoding_seed
from bartleby.latents import Latents
from bartleby.sampling import SamplingStep

if TYPE_CHECKING:
    from bartleby.pipeline import TextDiffusionPipeline

WATCHED_STEPS = 16


def watcher(
    pipeline: TextDiffusionPipeline,
    number: int,
    show: Callable[[int, str], None],
    decoding: DecodeSettings,
) -> Callback:
    """A callback for `pipeline`, which shows text `number`: all of few steps, some of many, spread evenly.

    show: gets the number of the step, from 1, and what the decoder makes of its estimate of x0. With the `decoding`
    and the draws of the text itself, so that the last one is that text (but for what a prompt or candidates change).
    """

    def watch(step: SamplingStep, numbers: list[int]) -> None:
        last = step.steps - 1
        shown = {round(index * last / (WATCHED_STEPS - 1)) for index in range(WATCHED_STEPS)}
        if number not in numbers or step.index not in shown:
            return
        row = numbers.index(number)
        latents = Latents(step.x0[row : row + 1], step.mask[row : row + 1])
        seeds = [decoding_seed(step.seeds[row])]
        (text,) = pipeline.autoencoder.decode(latents, decoding, seeds=seeds)
        show(step.index + 1, text)

    return watch
