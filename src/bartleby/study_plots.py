"""The study's plots: learning curves, scores over timesteps, and the ceiling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bartleby.plots import plt, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES = ("simple-unet", "diffusers-unet", "text-unet", "transformer")
TARGET_COLOURS = {"noise": "tab:red", "v": "tab:blue", "x0": "tab:green"}
BASELINE_STYLES = {"identity": (0, (1, 1.5)), "wiener": (0, (5, 2)), "mixture": "-"}


def plot_learning_curves(rows: list[dict], path: Path) -> None:
    """Validation noise cosine over training minutes, a panel a network, the untrained rows in each."""

    def draw(axes: Axes, row: dict) -> None:
        points = [(point["seconds"] / 60, point["noise_cosine"]) for point in row["curve"]]
        axes.plot(*zip(*points, strict=True), marker=".", markersize=4, **_style(row))

    def baseline(axes: Axes, row: dict) -> None:
        axes.axhline(row["noise_cosine"], **_style(row))

    _panels(rows, draw, baseline, "minutes of training", "validation noise cosine", path)


def plot_over_timesteps(rows: list[dict], key: str, label: str, path: Path) -> None:
    """One score at each timestep, a panel a network, the untrained rows in each."""
    measured = (row["input_accuracy"] for row in rows if "input_accuracy" in row)
    reads: list[dict] = next(measured, [])

    def draw(axes: Axes, row: dict) -> None:
        points = [(score["timestep"], score[key]) for score in row["timesteps"]]
        axes.plot(*zip(*points, strict=True), **_style(row))
        if key == "token_accuracy" and row["name"] == "identity":
            points = [(point["timestep"], point["token_accuracy"]) for point in reads]
            axes.plot(*zip(*points, strict=True), color="tab:orange", label="input alone")

    _panels(rows, draw, draw, "timestep (0 is clean)", label, path)


def plot_ceiling(rows: list[dict], channels: int, path: Path) -> None:
    """Noise cosine of noise-predicting networks against their bottleneck, with the line sqrt(k / C)."""
    figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
    share = np.linspace(0, 1, 200)
    axes.plot(share, np.sqrt(share), color="0.2", label="√(k/C), the most a linear map can do")
    for row in rows:
        if row["target"] != "noise" or not row["steps"] or "timesteps" not in row:
            continue
        k = min(row["bottleneck"] / channels, 1.0)
        measured = row["timesteps"][-1]["noise_cosine"]
        axes.plot([k], [measured], "o", color=TARGET_COLOURS["noise"])
        name = row["name"].removesuffix(" noise")
        axes.annotate(name, (k, measured), (6, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="bottleneck k / channels C",
        ylabel="noise cosine where the input is almost pure noise",
        xlim=(0, 1.15),
        ylim=(0, 1.05),
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    save(figure, path)


def _panels(
    rows: list[dict],
    draw: Callable[[Axes, dict], None],
    draw_baseline: Callable[[Axes, dict], None],
    xlabel: str,
    ylabel: str,
    path: Path,
) -> None:
    figure, grid = plt.subplots(
        2, 2, figsize=(9.5, 7), layout="constrained", sharex=True, sharey=True
    )
    for family, axes in zip(FAMILIES, grid.flat, strict=True):
        for row in rows:
            if "timesteps" not in row:
                continue  # a failed run has no line
            if row["name"] in BASELINE_STYLES:
                draw_baseline(axes, row)
            elif row["name"].startswith(family):
                draw(axes, row)
        axes.set_title(family, fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    save(figure, path)


def _style(row: dict) -> dict:
    if row["name"] in BASELINE_STYLES:
        line = BASELINE_STYLES[row["name"]]
        return {"color": "0.3", "linestyle": line, "linewidth": 1, "label": row["name"]}
    style = {"color": TARGET_COLOURS[row["target"]], "linewidth": 1.5, "label": row["name"]}
    if "+" in row["name"]:
        colour = "tab:purple" if "mixture" in row["name"] else "tab:brown"
        style |= {"color": colour, "linewidth": 2}
    elif "narrow" in row["name"] or "wide" in row["name"]:
        style |= {"linestyle": "--" if "narrow" in row["name"] else "-.", "alpha": 0.6}
    return style
