"""Looks into trained models, whose results the report draws without needing the models.

Every module of this package that calls :func:`robustfdd.analysis.base.register` adds an analysis; nothing else has to
be changed for it. :func:`analyse_run` makes those that a run directory lacks.
"""

from __future__ import annotations

import importlib
import pkgutil

from robustfdd.analysis.base import ANALYSES, Analysis, TrainedModel
from robustfdd.analysis.run import Note, analyse_run

__all__ = ["ANALYSES", "Analysis", "Note", "TrainedModel", "analyse_run"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
