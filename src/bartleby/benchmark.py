"""`bartleby benchmark`: a generator's texts in one table with every control that says what they are worth."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from bartleby.autoregressive import (
    AutoregressiveConfig,
    train_autoregressive,
    write_autoregressive,
)
from bartleby.checkpoints import digest_of, made_folder, read_json, write_json
from bartleby.console import progress_bar
from bartleby.errors import UserError
from bartleby.evaluation.generation import Evaluator, TextScores
from bartleby.latents import Latents
from bartleby.messages import say
from bartleby.objective import sample_noise
from bartleby.pipeline import TextDiffusionPipeline
from bartleby.run_log import follow
from bartleby.sampling import SamplingSettings, timesteps_of

SHORT = {  # how a row names settings that are not the defaults
    "guidance": "g",
    "temperature": "t",
    "handover": "h",
    "decoder_temperature": "d",
    "decoder_min_p": "p",
    "candidates": "best",
}
Scores = dict[str, tuple[TextScores, TextScores | None]]  # row -> mean, standard deviation


def control_texts(
    pipeline: TextDiffusionPipeline,
    human: list[str],
    *,
    seed: int,
    say: Callable[[str], None] = say,
) -> dict[str, list[str]]:
    """Texts that tell what is due to the decoder, the latents and the words alone. Row -> as many as `human`.

    real latents: human texts through encoder and decoder, the ceiling.  noise, mean latents: what the
    decoder writes by itself.  one step: the denoiser's estimate from pure noise, which knows a text's
    length and nothing else.  noised human: the estimate from human texts noised as far as the default's last
    step, which no sampler could improve on: what is wrong with it is the decoder's fault.  shuffled words: human
    words without order.
    """
    autoencoder = pipeline.autoencoder
    latents = autoencoder.encode(human, say=say)
    seeds = [(seed, index) for index in range(len(human))]
    noise = sample_noise(latents.mask, autoencoder.channels, seeds=seeds)
    rng = np.random.default_rng(seed)
    settings = pipeline.default_settings
    visited = timesteps_of(pipeline.scheduler, settings)
    at_last = 1 - (len(visited) - 1) / settings.steps  # strength of an edit that is the last step
    noised = pipeline.edit(human, at_last, settings=settings, seed=seed).texts
    once = dataclasses.replace(settings, steps=1, handover=0.0)
    one_step = pipeline(len(human), settings=once, seed=seed).texts
    return {
        "real latents": autoencoder.decode(latents),
        "noise latents": autoencoder.decode(Latents(noise, latents.mask)),
        "mean latents": autoencoder.decode(Latents(torch.zeros_like(noise), latents.mask)),
        "one step": one_step,
        "noised human": noised,
        "shuffled words": [" ".join(rng.permutation(text.split())) for text in human],
    }


def run_benchmark(
    pipeline: TextDiffusionPipeline,
    evaluator: Evaluator,
    human: list[str],
    out: Path,
    *,
    settings: list[SamplingSettings],
    seeds: list[int],
    autoregressive: AutoregressiveConfig | None = None,
    say: Callable[[str], None] = say,
) -> Scores:
    """Scores of human text, the generator under each of `settings`, the controls and the autoregressive model.

    Every set has as many texts as `human`. The autoregressive model draws as it has learned to, and under each
    min-p that the generator's decoder draws with. Texts are written to `out`, a file a row and seed; those of
    trained models that the same networks wrote in an earlier call are read instead of written again, and
    that is said. Controls have the first of `seeds` alone and are made in every call.
    """
    training = evaluator.training
    if autoregressive and not training:
        raise UserError("the autoregressive row needs the texts to train on")
    made_folder(out)
    rows: dict[str, list[list[str]]] = {"human": [human]}
    keep = Keeper(out, len(human), seeds, say)
    origin = digest_of(pipeline.bart, pipeline.denoiser)
    for one in settings:
        rows[name_of(one)] = keep(
            name_of(one),
            f"{origin} {one} {pipeline.config.length_counts}",
            partial(_written, pipeline, len(human), one),
        )
    controls = control_texts(pipeline, human, seed=seeds[0], say=say)
    rows |= {name: [texts] for name, texts in controls.items()}
    if autoregressive and training:
        model = _trained(autoregressive, pipeline, training, out / "autoregressive", say)
        trained = digest_of(model)
        for least in sorted({0.0, *(one.decoder_min_p for one in settings)}):
            name = "autoregressive" + (f" {SHORT['decoder_min_p']}{least:g}" if least else "")
            rows[name] = keep(
                name,
                f"{trained} {least}",
                partial(_drawn, model, pipeline.tokenizer, len(human), least),
            )
    for name in ("human", *controls):
        write_json(out / f"{name.replace(' ', '-')}.json", {"texts": rows[name][0]})
    scores = {}
    with progress_bar("score", total=len(rows)) as bar:
        for name, sets in rows.items():
            scores[name] = evaluator.score_repeats(sets, seed=seeds[0])
            bar.advance(bar.task_ids[0])
    judged = {
        "judge": evaluator.judge and evaluator.judge.name,
        "embedder": evaluator.embedder and evaluator.embedder.name,
        "settings": [dataclasses.asdict(one) for one in settings],
        "networks": origin,
        "seeds": seeds,
    }
    write_json(out / "scores.json", {"judged": judged, "rows": _plain(scores)})
    return scores


def name_of(settings: SamplingSettings) -> str:
    """A row's name: sampler, steps and whatever differs from the defaults."""
    parts = [f"{settings.sampler} {settings.steps}"]
    for name, short in SHORT.items():
        value = getattr(settings, name)
        if value != getattr(SamplingSettings(), name):
            parts.append(f"{short}{value:g}")
    return " ".join(parts)


@dataclass(frozen=True)
class Keeper:
    """Texts of a row, `count` a seed, in files of `out`: read if an earlier call wrote the same, else written."""

    out: Path
    count: int
    seeds: list[int]
    say: Callable[[str], None]

    def __call__(
        self, name: str, origin: str, write: Callable[[int], list[str]]
    ) -> list[list[str]]:
        """origin: what the texts depend on besides number and seed.  write: seed -> texts."""
        return [self._of_seed(name, origin, write, seed) for seed in self.seeds]

    def _of_seed(
        self, name: str, origin: str, write: Callable[[int], list[str]], seed: int
    ) -> list[str]:
        path = self.out / f"{name.replace(' ', '-')}-seed{seed}.json"
        origin = hashlib.sha256(f"{origin} {self.count}".encode()).hexdigest()[:20]
        if path.exists() and read_json(path).get("origin") == origin:
            self.say(f"texts written before are used: {path}")
            return read_json(path)["texts"]
        texts = write(seed)
        write_json(path, {"origin": origin, "texts": texts})
        return texts


def _trained(
    config: AutoregressiveConfig,
    pipeline: TextDiffusionPipeline,
    training: list[str],
    out: Path,
    say: Callable[[str], None],
) -> GPT2LMHeadModel:
    device = pipeline.bart.device
    states = train_autoregressive(config, pipeline.tokenizer, training, out, device=device, say=say)
    return follow(states, out, "autoregressive").network.eval()


def _written(
    pipeline: TextDiffusionPipeline, count: int, settings: SamplingSettings, seed: int
) -> list[str]:
    return pipeline(count, settings=settings, seed=seed).texts


def _drawn(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, count: int, min_p: float, seed: int
) -> list[str]:
    return write_autoregressive(model, tokenizer, count, min_p=min_p, seed=seed)


def _plain(scores: Scores) -> dict:
    return {
        name: {
            "mean": dataclasses.asdict(mean),
            "deviation": deviation and dataclasses.asdict(deviation),
        }
        for name, (mean, deviation) in scores.items()
    }
