"""Code of one's own that a setting names: module:name, of an installed package or of a file in the working folder."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from bartleby.errors import UserError, first_line


def is_own(setting: str) -> bool:
    """Whether a setting names code instead of something of Bartleby's."""
    return ":" in setting


def own_code(setting: str, key: str) -> Any:
    """What module:name stands for; UserError that names the setting's `key` if importing it fails."""
    module, _, name = setting.partition(":")
    if os.getcwd() not in sys.path:  # as for a script there, but nothing installed is hidden
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # whatever a module of yours may do
        raise UserError(f"{key} is '{setting}', which fails: {first_line(error)}") from None
