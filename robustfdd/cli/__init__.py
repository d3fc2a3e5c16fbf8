"""The command line: ``robustfdd run | plan | status | train | attack | audit | report | compare | list``.

Each module holds a few commands; importing them registers them, in the order in which help lists them.
"""

from __future__ import annotations

import io
import sys

from robustfdd.cli import studies  # isort: split

from robustfdd.cli import models  # isort: split

from robustfdd.cli import reports  # isort: split

from robustfdd.cli import listing
from robustfdd.cli.base import app

__all__ = ["app", "main"]

del studies, models, reports, listing


def main() -> None:
    """The command, once its arguments can be read; :mod:`robustfdd.__main__` is where it is entered."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the encoding of a terminal or a pipe lacks is no error
            stream.reconfigure(errors="backslashreplace")
    app()
