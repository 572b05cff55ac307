"""Where the library speaks: the logger "bartleby", or standard error, since standard output is for results."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("bartleby")
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)


def say(message: str) -> None:
    """`message` as information of the logger "bartleby"; on standard error where nobody has set up logging.

    `logging.getLogger("bartleby").setLevel("WARNING")` keeps it quiet. Functions that speak take another `say` in its
    place.
    """
    if logger.hasHandlers():
        logger.info(message)
    elif logger.isEnabledFor(logging.INFO):
        print(message, file=sys.stderr)
