"""Plots for reports; matplotlib is loaded here and nowhere else."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt  # after the backend is chosen

from bartleby.errors import UserError
from bartleby.noise import PUBLISHED_LEVELS, CurvePoint


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
            label = "published levels" if level == marked[0] else None
            axes.axvline(level, color="0.6", linewidth=1, linestyle=":", zorder=0, label=label)
            axes.annotate(f"{level}", (level, 1.04), ha="center", fontsize=8, color="0.3")
    unit = "standard deviations of each channel" if relative else "added to raw latents"
    axes.set(xlabel=f"noise level ({unit})", ylim=(-0.02, 1.09))
    counted = "1 text" if texts == 1 else f"{texts:,} texts"
    axes.set_title(f"What {model}'s decoder reads through noise ({counted})", fontsize=11)
    axes.legend(loc="best", frameon=False)
    axes.grid(alpha=0.25)
    save(figure, path)


def save(figure, path: Path) -> None:
    """Writes the figure in the format of the path's suffix; UserError, and no file, if that cannot be done."""
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        if path.is_file():
            path.unlink()  # a full disk leaves half a picture
        raise UserError(f"cannot write the plot '{path}': {error.strerror}") from None
    finally:
        plt.close(figure)
