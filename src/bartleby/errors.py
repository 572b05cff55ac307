"""The one exception for what a user can put right."""

from __future__ import annotations


class UserError(ValueError):
    """Input, file or setting that cannot be used; the message says what, its value and the remedy.

    The command line prints the message as one line and exits with code 1.
    """


def first_line(error: Exception) -> str:
    """What a library's error says, cut to one line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
