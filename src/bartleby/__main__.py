"""`python -m bartleby`."""

from bartleby.cli import run

run()
