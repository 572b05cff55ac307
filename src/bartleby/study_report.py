"""The study's report: what was measured, beside what was published, and what follows from it."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from bartleby.document import Block, Heading, Paragraph, Picture, Table, to_html, to_markdown
from bartleby.errors import UserError
from bartleby.study_plots import plot_ceiling, plot_learning_curves, plot_over_timesteps

TITLE = "Why three denoisers of BART latents stalled, and what does not"
UNREADABLE = 0.5  # token accuracy of the input alone under which noise counts as unreadable


def write_report(rows: list[dict], settings: dict, out: Path) -> Path:
    """`report.md`, `report.html` and their plots in `out`; returns the HTML file's path."""
    done = [row for row in rows if "timesteps" in row]
    channels = int(_row(rows, "identity")["bottleneck"])
    pictures = {
        name: out / f"{name}.png"
        for name in ("learning-curves", "noise-cosine", "tokens", "ceiling")
    }
    plot_learning_curves(done, pictures["learning-curves"])
    plot_over_timesteps(done, "noise_cosine", "noise cosine", pictures["noise-cosine"])
    plot_over_timesteps(
        done, "token_accuracy", "token accuracy of the decoded x0", pictures["tokens"]
    )
    plot_ceiling(done, channels, pictures["ceiling"])
    blocks = _blocks(rows, settings, channels, pictures)
    try:
        (out / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
        (out / "report.html").write_text(to_html(blocks, title=TITLE), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report in '{out}': {error.strerror}") from None
    return out / "report.html"


def _blocks(
    rows: list[dict], settings: dict, channels: int, pictures: dict[str, Path]
) -> list[Block]:
    identity, wiener = _row(rows, "identity"), _row(rows, "wiener")
    blocks: list[Block] = [
        Heading(TITLE, 1),
        Paragraph(
            f"Latents of {settings['model']}, {channels} channels, on {Path(settings['data']).name}. Every network was "
            f"trained by the same command for at most {settings['minutes']:g} minutes and "
            f"{settings['epochs']:g} epochs, on {_machine()}, seed {settings['seed']}. "
            "Validation: one fixed draw of noise, "
            f"{settings['texts']} passages at {settings['grid']} timesteps of the cosine schedule, averaged; "
            f"token accuracy is of the greedily decoded estimate of x0, {settings['decoded']} passages."
        ),
        Heading("Results"),
        results_table(rows),
        Paragraph(
            "Identity returns its input as the noise, Wiener is the best linear filter of each position, "
            "mixture the posterior mean of x0 if each latent is one of its tokens' Gaussians; none is "
            "trained. A network that predicts no noise at all leaves its input to the decoder, which "
            f"reads {_mean(point['token_accuracy'] for point in identity['input_accuracy']):.1%} of the "
            "tokens from it. The closed forms of identity and Wiener give a noise cosine of "
            f"{identity['closed_form']:.4f} (measured {identity['noise_cosine']:.4f}) and "
            f"{wiener['closed_form']:.4f} (measured {wiener['noise_cosine']:.4f})."
        ),
        Heading("What follows"),
        *(Paragraph(sentence) for sentence in findings(rows, channels)),
        Heading("The ceiling of a bottleneck"),
        Paragraph(
            "White noise has no structure to compress: of C numbers a position, a linear path through k "
            "can give back a share k / C of the power, a cosine of sqrt(k / C). Clean latents have "
            "structure, so a network that predicts x0 or v needs no such path."
        ),
        _ceiling_table(rows, channels),
        Picture(
            pictures["ceiling"], "Measured noise cosine at the last timestep against the bottleneck"
        ),
        Heading("Learning curves"),
        Picture(pictures["learning-curves"], "Validation noise cosine over training time"),
        Heading("Over the timesteps"),
        Picture(pictures["noise-cosine"], "Noise cosine at each timestep"),
        Picture(pictures["tokens"], "Token accuracy of the decoded estimate at each timestep"),
    ]
    return blocks


def results_table(rows: list[dict]) -> Table:
    """A row a run: size, training, scores, and what was published."""
    columns = ["run", "parameters", "steps", "epochs", "min", "noise cos", "x0 cos", "x0 MSE"]
    columns += ["x0 norm", "tokens", "published (val. cos, size, time)"]
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append([row["name"], f"failed: {row['failed']}", *[""] * 8, row["published"]])
            continue
        lines.append(
            [
                row["name"],
                f"{row['parameters']:,}",
                f"{row['steps']:,}",
                f"{row['epochs']:.2f}",
                f"{row['seconds'] / 60:.1f}",
                f"{row['noise_cosine']:.3f}",
                f"{row['x0_cosine']:.3f}",
                f"{row['x0_mse']:.3f}",
                f"{row['x0_magnitude']:.2f}",
                f"{row['token_accuracy']:.1%}",
                row["published"],
            ]
        )
    return Table(columns, lines)


def findings(rows: list[dict], channels: int) -> list[str]:
    """What the numbers say, in sentences; each names its numbers."""
    identity, wiener = _row(rows, "identity"), _row(rows, "wiener")
    trained = [row for row in rows if row.get("steps")]
    sentences = []
    published = [row for row in trained if row["published"]]
    for row in published:
        ceiling = math.sqrt(min(1.0, row["bottleneck"] / channels))
        last = row["timesteps"][-1]["noise_cosine"]
        place = "below" if row["noise_cosine"] < identity["noise_cosine"] else "above"
        sentences.append(
            f"{row['name']} reaches {row['noise_cosine']:.3f} after {row['epochs']:.2f} epochs, "
            f"{place} the {identity['noise_cosine']:.3f} of returning the input. On almost pure noise, "
            f"where returning it would score 1, it reaches {last:.3f}; its "
            f"bottleneck of {row['bottleneck']:g} of {channels} channels allows {ceiling:.3f}."
        )
    for row in trained:
        before = next(
            (other for other in published if other["name"].split()[0] == row["name"].split()[0]),
            None,
        )
        if before and row["target"] != "noise" and row["name"].count(" ") == 1:
            place = "above" if row["noise_cosine"] > wiener["noise_cosine"] else "below"
            sentences.append(
                f"{row['name'].split()[0]} predicting {row['target']}: {row['noise_cosine']:.3f} instead of "
                f"{before['noise_cosine']:.3f}, {place} Wiener's {wiener['noise_cosine']:.3f}."
            )
    if trained:
        best = max(trained, key=lambda row: row["noise_cosine"])
        sentences.append(
            f"Best: {best['name']}, noise cosine {best['noise_cosine']:.3f} with {best['parameters']:,} "
            f"parameters after {best['seconds'] / 60:.1f} minutes."
        )
        sentences += _restoration(rows, trained)
    return sentences


def _restoration(rows: list[dict], trained: list[dict]) -> list[str]:
    """How many tokens the best network restores at the first noise that the decoder alone cannot read."""
    unreadable = [
        point["timestep"]
        for point in _row(rows, "identity")["input_accuracy"]
        if point["token_accuracy"] < UNREADABLE
    ]
    if not unreadable:
        return []
    timestep = unreadable[0]

    def accuracy(row: dict) -> float:
        return next(s["token_accuracy"] for s in row["timesteps"] if s["timestep"] == timestep)

    alone = next(
        point["token_accuracy"]
        for point in _row(rows, "identity")["input_accuracy"]
        if point["timestep"] == timestep
    )
    best = max(trained, key=accuracy)
    return [
        f"At timestep {timestep}, the first of the grid where the decoder reads under {UNREADABLE:.0%} of the "
        f"tokens from the noised latents alone ({alone:.1%}), {best['name']} restores {accuracy(best):.1%}, "
        f"Wiener {accuracy(_row(rows, 'wiener')):.1%}."
    ]


def _ceiling_table(rows: list[dict], channels: int) -> Table:
    lines = []
    for row in rows:
        if row["target"] == "noise" and row.get("steps"):
            k = min(row["bottleneck"], channels)
            lines.append(
                [
                    row["name"],
                    f"{k:g}",
                    f"{math.sqrt(k / channels):.3f}",
                    f"{row['timesteps'][-1]['noise_cosine']:.3f}",
                ]
            )
    return Table(["run", f"k of {channels}", "sqrt(k/C)", "measured, last timestep"], lines)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of a {platform.machine()} CPU"


def _row(rows: list[dict], name: str) -> dict:
    return next(row for row in rows if row["name"] == name)
