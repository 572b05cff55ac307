"""Plots for reports; matplotlib is loaded here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # after the backend is chosen

from bartleby.errors import UserError
from bartleby.noise import PUBLISHED_LEVELS, CurvePoint
from bartleby.schedule_fit import FittedSchedule, information_at
from bartleby.schedules import noise_deviations, noise_scheduler

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bartleby.edit_benchmark import EditScores


def plot_noise_curve(
    points: list[CurvePoint], path: Path, *, model: str, texts: int, relative: bool
) -> None:
    """Token accuracy, exact matches, BLEU and cosine over the noise level, the published levels marked."""
    levels = [point.level for point in points]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    series = {
        "token accuracy": [point.token_accuracy for point in points],
        "exact match": [point.exact for point in points],
        "BLEU / 100": [point.bleu / 100 for point in points],
        "cosine to clean latents": [point.cosine for point in points],
    }
    for (label, values), style in zip(series.items(), ("-", "-", "-", "--"), strict=True):
        axes.plot(levels, values, style, marker="o", markersize=3, label=label)
    if not relative:
        marked = [level for level in PUBLISHED_LEVELS if min(levels) <= level <= max(levels)]
        for level in marked:
            once = "published levels" if level == marked[0] else None
            axes.axvline(level, color="0.6", linewidth=1, linestyle=":", zorder=0, label=once)
            axes.annotate(f"{level}", (level, 1.04), ha="center", fontsize=8, color="0.3")
    unit = "standard deviations of each channel" if relative else "added to raw latents"
    axes.set(xlabel=f"noise level ({unit})", ylim=(-0.02, 1.09))
    counted = "1 text" if texts == 1 else f"{texts:,} texts"
    axes.set_title(f"What {model}'s decoder reads through noise ({counted})", fontsize=11)
    axes.legend(loc="best", frameon=False)
    axes.grid(alpha=0.25)
    save(figure, path)


def plot_schedule(fitted: FittedSchedule, path: Path, *, model: str) -> None:
    """What is left over the noise, and over the timesteps of the cosine and of the fitted schedule."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    deviations = [point.deviation for point in fitted.curve]
    left.plot(
        deviations, [point.information for point in fitted.curve], label="information on the token"
    )
    left.plot(
        deviations,
        [point.decoder_accuracy for point in fitted.curve],
        "--",
        label="token accuracy of the decoder",
    )
    left.set(xscale="log", xlabel="noise, standard deviations of the latents", ylim=(-0.02, 1.05))
    marks = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
    left.set_xticks(marks, [f"{mark:g}" for mark in marks])
    left.minorticks_off()
    left.set_title(f"What is left of {model}'s latents", fontsize=11)
    for name, title in (("cosine", "cosine"), ("tan", f"fitted: tan, d = {fitted.d:g}")):
        noise = noise_deviations(noise_scheduler(name, d=fitted.d)).numpy()
        times = np.arange(1, len(noise) + 1) / len(noise)
        right.plot(times, information_at(fitted.curve, noise), label=title)
    right.plot([0, 1], [1, 0], ":", color="0.5", label="even")
    right.set(xlabel="timestep / number of timesteps", ylim=(-0.02, 1.05))
    right.set_title("Information over the timesteps", fontsize=11)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        axes.grid(alpha=0.25)
    save(figure, path)


def plot_edits(rows: list[EditScores], path: Path) -> None:
    """Similarity and perplexity, as a multiple of human text's, over an edit's strength and an interpolation."""
    human = next(row.perplexity for row in rows if row.kind == "human")
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", sharey=True)
    labels = {"edit": "strength of the edit", "interpolation": "place between the two texts"}
    for axes, (kind, label) in zip(panels, labels.items(), strict=True):
        chosen = [row for row in rows if row.kind == kind]
        amounts = [row.amount for row in chosen]
        source = "to the source" if kind == "edit" else "to the first text"
        axes.plot(amounts, [row.similarity for row in chosen], "o-", label=f"similarity {source}")
        if kind == "interpolation":
            to_last = [row.similarity_last for row in chosen]
            axes.plot(amounts, to_last, "o-", label="similarity to the last text")
        axes.set(xlabel=label, ylim=(0, 1.05))
        axes.grid(alpha=0.25)
        right = axes.twinx()
        multiples = [
            row.perplexity / human if row.perplexity and human else np.nan for row in chosen
        ]
        right.plot(amounts, multiples, "--", color="tab:red", label="perplexity, x human")
        right.set_ylim(0, 1.1 * np.nanmax(multiples))
        right.tick_params(axis="y", colors="tab:red")
        lines = [*axes.get_lines(), *right.get_lines()]
        axes.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize=8)
    panels[0].set_ylabel("cosine of embeddings")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format of the path's suffix; UserError, and no file, if that cannot be done."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        if path.is_file():
            path.unlink()  # a full disk leaves half a picture
        raise UserError(f"cannot write the plot '{path}': {error.strerror}") from None
    finally:
        plt.close(figure)
