"""What guidance does to continuations: the first half of held-out texts, each continued at several weights.

python benchmarks/guidance.py TEXTS --judge MODEL [--model RUN] [-n 200] [--weights 1 1.5 2 3 5] [--steps N]

TEXTS: a file of texts, as Bartleby reads them. Weight 1 is no guidance (Ho & Salimans 2022). Perplexity, under
MODEL, and diversity are of the whole texts, prompt and continuation; "human" is the texts themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from bartleby import silence_libraries
from bartleby.corpus import clean_texts, read_texts
from bartleby.evaluation.generation import Evaluator
from bartleby.evaluation.judges import load_language_model
from bartleby.pipeline import TextDiffusionPipeline, load_pipeline


def first_half(text: str) -> str:
    """The first half of a text's words, at least one."""
    words = text.split()
    return " ".join(words[: max(1, len(words) // 2)])


def continued(
    pipeline: TextDiffusionPipeline, prompts: list[str], weight: float, steps: int | None
) -> list[str]:
    """One continuation of each prompt; text i has seed i, whatever the weight."""
    settings = dataclasses.replace(pipeline.default_settings, guidance=weight)
    if steps:
        settings = dataclasses.replace(settings, steps=steps)
    return [
        pipeline(1, prompt=prompt, settings=settings, seed=index).texts[0]
        for index, prompt in enumerate(prompts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--model")
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--weights", type=float, nargs="+", default=[1, 1.5, 2, 3, 5])
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    silence_libraries()
    texts = clean_texts(read_texts(arguments.texts), arguments.texts.name, [])
    human = [text for text in texts if len(text.split()) >= 4][: arguments.n]
    evaluator = Evaluator(human, judge=load_language_model(arguments.judge))
    pipeline = load_pipeline(arguments.model)
    base = evaluator.score(human)
    print(
        f"{len(human)} texts · human: perplexity {base.perplexity:.0f}, diversity {base.diversity:.3f}"
    )
    print("guidance   x human   entropy   diversity   words")
    for weight in arguments.weights:
        written = continued(pipeline, [first_half(text) for text in human], weight, arguments.steps)
        scores = evaluator.score(written)
        print(
            f"{weight:8g} {scores.perplexity / base.perplexity:9.2f} {scores.entropy:9.2f}"
            f" {scores.diversity:11.3f} {scores.words:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
