"""Where the library speaks: standard error, since standard output is for results."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Prints `message` on standard error. Functions that speak take another `say` in its place."""
    print(message, file=sys.stderr)
