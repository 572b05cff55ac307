"""A report as a list of blocks, written as Markdown with pictures beside it or as one HTML file."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """columns: headers; the first column is text, the others are numbers, already formatted."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


Block = Heading | Paragraph | Table | Picture


def to_markdown(blocks: list[Block]) -> str:
    """Markdown; pictures are linked by file name."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {text}")
            case Paragraph(text):
                parts.append(text)
            case Table(columns, rows):
                lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
                parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
            case Picture(path, caption):
                parts.append(f"![{caption}]({path.name})")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: list[Block], *, title: str) -> str:
    """One HTML file that needs nothing else: pictures are inside it."""
    body = "\n".join(_html_block(block) for block in blocks)
    return _PAGE.format(title=html.escape(title), body=body)


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Table(columns, rows):
            head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
            lines = (
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            return (
                f'<div class="wide"><table><tr>{head}</tr>\n' + "\n".join(lines) + "</table></div>"
            )
        case Picture(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
  table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
  th, td {{ padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
  th:first-child, td:first-child {{ text-align: left; }}
  .wide {{ overflow-x: auto; }}
  figure {{ margin: 1.5rem 0; }}
  img {{ max-width: 100%; height: auto; }}
  figcaption {{ color: #666; font-size: 0.85rem; }}
</style>
{body}
</html>
"""
