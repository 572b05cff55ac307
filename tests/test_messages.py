"""Where the library's own messages go, in programs of their own: pytest sets logging up."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAY = "import logging; from bartleby.messages import say; {}; say('two texts are cut')"


@pytest.mark.parametrize(
    ("before", "heard"),
    [
        ("pass", "two texts are cut\n"),
        ("logging.basicConfig(format='%(name)s: %(message)s')", "bartleby: two texts are cut\n"),
        ("logging.getLogger('bartleby').setLevel('WARNING')", ""),
        ("logging.basicConfig(); logging.getLogger('bartleby').setLevel('WARNING')", ""),
    ],
)
def test_messages_are_logged_or_printed_or_kept_quiet(before, heard):
    program = subprocess.run(
        [sys.executable, "-c", SAY.format(before)], capture_output=True, text=True, check=True
    )
    assert (program.stdout, program.stderr) == ("", heard)
