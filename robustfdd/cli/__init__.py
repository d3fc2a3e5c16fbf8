"""The command line: ``robustfdd run | plan | status | train | attack | audit | report | compare | list``.

Each module holds a few commands; importing them registers them, in the order in which help lists them.
"""

from __future__ import annotations

from robustfdd.cli import studies  # isort: split

from robustfdd.cli import models  # isort: split

from robustfdd.cli import reports  # isort: split

from robustfdd.cli import listing
from robustfdd.cli.base import app, main

__all__ = ["app", "main"]

del studies, models, reports, listing
