"""WikiText's word-level tokens back to plain text."""

from __future__ import annotations

import re

_HEADING = re.compile(r"^=+ .* =+$")
_RULES = [
    (re.compile(r" @([-,.])@ "), r"\1"),  # 5 @,@ 000 -> 5,000
    (re.compile(r" ([,.;:!?%)\]}])"), r"\1"),
    (re.compile(r"([(\[{$£€#]) "), r"\1"),
    (re.compile(r" (n't|'(?:s|re|ve|ll|d|m)|')(?= |$|[,.;:!?)])"), r"\1"),
    (re.compile(r'" ([^"]*?) ?"'), r'"\1"'),  # quotes come in pairs within a line
    (re.compile(r"(\d) (°|′|″)"), r"\1\2"),
]


def is_wikitext(lines: list[str]) -> bool:
    """True if the first 1,000 lines carry WikiText's marks: ` @-@ ` and the like, or ` = Title = `."""
    marks = sum(
        bool(re.search(r" @[-,.]@ ", line) or _HEADING.match(line.strip())) for line in lines[:1000]
    )
    return marks >= max(3, len(lines[:1000]) // 50)


def detokenise(line: str) -> str:
    """One WikiText line as plain text: `2 @.@ 5 cm ( 1 in ) .` -> `2.5 cm (1 in).`"""
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return line


def clean_wikitext(lines: list[str]) -> list[str]:
    """Plain-text paragraphs: headings left out, tokens rejoined."""
    return [detokenise(line) for line in lines if not _HEADING.match(line)]
