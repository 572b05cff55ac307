"""The command line, a file for each kind of command. Heavy imports stay inside them, so that --help is quick."""

from __future__ import annotations

import sys

from bartleby.cli import measuring, playground, reading, training, writing
from bartleby.cli.options import app

for commands in (reading, training, writing, measuring, playground):
    commands.register(app)


def run() -> None:
    """Entry point of the `bartleby` command."""
    sys.exit(app())
