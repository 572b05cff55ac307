"""What the commands print: tables for people, JSON lines for programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bartleby.console import print_json, wrapped
from bartleby.evaluation.reconstruction import by_length, summarise
from bartleby.evaluation.text import Reconstruction
from bartleby.noise import CurvePoint, NoisedText, curve

if TYPE_CHECKING:
    from bartleby.doctor import Finding
    from bartleby.edit_benchmark import EditScores
    from bartleby.evaluation.generation import TextScores
    from bartleby.schedule_fit import FittedSchedule


def noise_report(results: list[NoisedText], *, as_json: bool, many: bool) -> None:
    """One text: the original and each level's text. Many: the curve. JSON: an object a text and level."""
    if as_json:
        for item in results:
            fields = dataclasses.asdict(item)
            print_json({key: value for key, value in fields.items() if value is not None})
    elif many:
        print_curve(curve(results))
    else:
        print("original")
        print(wrapped(results[0].original))
        for item in results:
            print(
                f"\nlevel {item.level:g} · SNR {decibels(item.snr_db)} · cosine {item.cosine:.3f} · "
                f"tokens {item.token_accuracy:.1%} · BLEU {item.bleu:.1f}"
            )
            print(wrapped(item.text or "(nothing)"))
            if item.denoised is not None:
                print(f"denoised · tokens {item.denoised_token_accuracy:.1%}")
                print(wrapped(item.denoised or "(nothing)"))


def decibels(value: float) -> str:
    """'12.3 dB', or 'infinite' without noise."""
    return "infinite" if math.isinf(value) else f"{value:.1f} dB"


def print_curve(points: list[CurvePoint], *, to: Callable[[str], None] = print) -> None:
    """A table with a row per noise level."""
    to(f"{'level':>7} {'SNR':>9} {'cosine':>7} {'tokens':>8} {'exact':>7} {'BLEU':>6}")
    for point in points:
        to(
            f"{point.level:>7g} {decibels(point.snr_db):>9} {point.cosine:>7.3f} {point.token_accuracy:>8.1%} "
            f"{point.exact:>7.1%} {point.bleu:>6.1f}"
        )


def reconstruction_report(items: list[Reconstruction], *, as_json: bool, show: int) -> None:
    """A row per length bucket and one for all, then some imperfect ones. JSON: an object a text."""
    if as_json:
        for item in items:
            fields = dataclasses.asdict(item)
            accuracy = fields.pop("token_accuracy")
            print_json({**fields, "exact": item.exact, "token_accuracy": accuracy})
        return
    print(f"{'words':<10} {'texts':>7} {'exact':>8} {'tokens':>8} {'BLEU':>7}")
    for name, summary in {**by_length(items), "all": summarise(items)}.items():
        print(
            f"{name:<10} {summary.texts:>7,} {summary.exact:>8.1%} {summary.token_accuracy:>8.2%} {summary.bleu:>7.2f}"
        )
    imperfect = [item for item in items if not item.exact]
    for item in imperfect[:show]:
        print()
        print(wrapped(item.text, indent="  - "))
        print(wrapped(item.reconstruction or "(nothing)", indent="  + "))
    if len(imperfect) > show > 0:
        print(f"\n  … and {len(imperfect) - show:,} more texts that differ; --json prints all")


def print_scores(record: dict) -> None:
    """A finished training run in a few lines."""
    scores = record["validation"]
    print(
        f"{record['denoiser']}, predicts {record['target']}: {record['parameters']:,} parameters, "
        f"{record['steps']:,} steps, {record['seconds'] / 60:.1f} minutes"
    )
    print(
        f"validation: noise cosine {scores['noise_cosine']:.3f} · x0 cosine {scores['x0_cosine']:.3f} · "
        f"x0 magnitude {scores['x0_magnitude']:.2f}"
    )
    if untrained := record.get("untrained_noise_cosines"):
        print(
            f"noise cosine without training: {untrained['identity']:.3f} of returning the input, "
            f"{untrained['wiener']:.3f} of a linear filter"
        )


def doctor_report(findings: list[Finding], *, as_json: bool) -> None:
    """A line a check, problems first, and what it comes to. JSON: an object a check."""
    if as_json:
        for finding in findings:
            print_json(finding)
        return
    for finding in sorted(findings, key=lambda finding: not finding.problem):
        label = "PROBLEM" if finding.problem else "ok"
        print(wrapped(f"{label:<8}{finding.name}: {finding.text}.", indent=""))
    problems = sum(finding.problem for finding in findings)
    print(f"\n{problems or 'no'} {'problem' if problems == 1 else 'problems'} found")


def study_report(rows: list[dict], *, as_json: bool) -> None:
    """A line a run. JSON: an object a run."""
    keys = ["name", "target", "parameters", "steps", "seconds", "noise_cosine", "x0_cosine"]
    keys += ["token_accuracy", "failed"]
    if as_json:
        for row in rows:
            print_json({key: row[key] for key in keys if key in row})
        return
    print(f"{'run':<26}{'parameters':>12}{'steps':>7}{'min':>6}{'noise':>8}{'x0':>7}{'tokens':>8}")
    for row in rows:
        if "failed" in row:
            print(f"{row['name']:<26}failed: {row['failed']}")
            continue
        print(
            f"{row['name']:<26}{row['parameters']:>12,}{row['steps']:>7,}{row['seconds'] / 60:>6.1f}"
            f"{row['noise_cosine']:>8.3f}{row['x0_cosine']:>7.3f}{row['token_accuracy']:>8.1%}"
        )
    print("noise and x0: cosines over validation passages and timesteps; tokens: of the decoded x0")


SCORES = {  # field of TextScores -> what it is called, how it is printed
    "perplexity": ("perplexity", "{:.1f}"),
    "mauve": ("MAUVE, judge's features", "{:.3f}"),
    "mauve_embedder": ("MAUVE, embedder's features", "{:.3f}"),
    "entropy": ("unigram entropy, nats", "{:.3f}"),
    "diversity": ("diversity of 2- to 4-grams", "{:.3f}"),
    "repetition": ("repeated 2-grams in a text", "{:.2%}"),
    "memorised": ("4-grams found in training", "{:.1%}"),
    "longest_overlap": ("longest overlap, words", "{:.2f}"),
    "copied": ("texts found in training", "{:.1%}"),
    "words": ("words a text", "{:.2f}"),
    "length_distance": ("distance of lengths, words", "{:.2f}"),
    "empty": ("empty", "{:.2%}"),
    "duplicates": ("duplicates", "{:.2%}"),
}


def evaluation_report(
    rows: dict[str, tuple[TextScores, TextScores | None]],
    *,
    judge: str | None,
    embedder: str | None,
    as_json: bool,
) -> None:
    """A column a set of texts, with standard deviations. JSON: an object a set."""
    if as_json:
        for name, (scores, deviations) in rows.items():
            print_json(
                {
                    "set": name,
                    **dataclasses.asdict(scores),
                    "deviations": deviations and dataclasses.asdict(deviations),
                    "judge": judge,
                    "embedder": embedder,
                }
            )
        return
    print(f"{'':<30}" + "".join(f"{name:>22}" for name in rows))
    for field, (title, form) in SCORES.items():
        cells = []
        for scores, deviations in rows.values():
            value = getattr(scores, field)
            cell = "-" if value is None else form.format(value)
            if deviations and value is not None:
                cell += f" ± {form.format(getattr(deviations, field))}"
            cells.append(cell)
        print(f"{title:<30}" + "".join(f"{cell:>22}" for cell in cells))


def benchmark_report(
    scores: dict[str, tuple[TextScores, TextScores | None]],
    *,
    judge: str | None,
    embedder: str | None,
    as_json: bool,
) -> None:
    """A line a row of the benchmark, ± over seeds. JSON: an object a row."""
    if as_json:
        for name, (mean, deviation) in scores.items():
            row = {"row": name, **dataclasses.asdict(mean), "judge": judge, "embedder": embedder}
            print_json({**row, "deviations": deviation and dataclasses.asdict(deviation)})
        return
    columns = {
        "mauve": ("MAUVE", "{:.3f}"),
        "mauve_embedder": ("topic", "{:.3f}"),
        "entropy": ("entr.", "{:.2f}"),
        "diversity": ("div.", "{:.3f}"),
        "memorised": ("mem.", "{:.1%}"),
        "empty": ("empty", "{:.1%}"),
        "duplicates": ("dupl.", "{:.1%}"),
    }
    titles = "".join(f"{title:>6}" for title, _ in columns.values())
    print(f"{'':<22}{'perpl.':>8}{'x human':>8}{titles}")
    human = scores["human"][0].perplexity
    for name, (mean, deviation) in scores.items():
        perplexity = ratio = "-"
        if mean.perplexity is not None and human:
            perplexity, ratio = f"{mean.perplexity:.0f}", f"{mean.perplexity / human:.2f}"
            perplexity += f" ±{deviation.perplexity:.0f}" if deviation else ""
        values = [(getattr(mean, field), form) for field, (_, form) in columns.items()]
        cells = ["-" if value is None else form.format(value) for value, form in values]
        line = "".join(f"{cell:>6}" for cell in cells)
        print(f"{name:<22}{perplexity:>8}{ratio:>8}{line}")
    print(f"perplexity (± over seeds) and MAUVE: {Path(judge).name if judge else 'no model'}")
    print(
        f"topic: MAUVE on {Path(embedder).name if embedder else 'no model'}; mem.: 4-grams in training"
    )


def edit_report(rows: list[EditScores], *, judge: str, embedder: str, as_json: bool) -> None:
    """A line a strength, place or gap set. JSON: an object each."""
    if as_json:
        for row in rows:
            print_json({**dataclasses.asdict(row), "judge": judge, "embedder": embedder})
        return
    print(f"{'':<22}{'perplexity':>11}{'x human':>9}{'similar':>9}{'to last':>9}{'unchanged':>11}")
    human = None
    for row in rows:
        if row.kind == "human":
            human = row.perplexity
        name = row.kind if row.kind in ("human", "infilling") else f"{row.kind} {row.amount:.3g}"
        cells = ["-", "-"]
        if row.perplexity is not None and human:
            cells = [f"{row.perplexity:.0f}", f"{row.perplexity / human:.2f}"]
        last = "" if row.similarity_last is None else f"{row.similarity_last:.3f}"
        print(
            f"{name:<22}{cells[0]:>11}{cells[1]:>9}{row.similarity:>9.3f}{last:>9}"
            f"{row.unchanged:>11.1%}"
        )
    print(f"perplexity: {Path(judge).name}; similar to the source: {Path(embedder).name}")
    print("x human: by the human row above it, the sources of the rows below")


def schedule_report(fitted: FittedSchedule, *, as_json: bool) -> None:
    """What was measured, the schedules compared, and the lines to put into a configuration. JSON: one object."""
    if as_json:
        print_json(fitted)
        return
    print(f"{'noise':>8}{'information left':>19}{'the decoder reads':>20}")
    for point in fitted.curve:
        print(f"{point.deviation:>8.2f}{point.information:>19.1%}{point.decoder_accuracy:>20.1%}")
    print(
        f"\nHalf of what single latents say of their tokens is left at noise {fitted.half_known:.2f}; the\n"
        f"decoder itself reads half of the tokens at {fitted.half_read:.2f} (standard deviations)."
    )
    print("\nTimesteps at which there is something to learn (1% to 99% left)")
    for name, share in fitted.learnable.items():
        title = f"tan, d = {fitted.d:g}" if name == "tan" else name
        print(f"  {title:<14}{share:>7.1%}")
    print(f'\n[objective]\nschedule = "tan"\nschedule_d = {fitted.d:.1f}')
