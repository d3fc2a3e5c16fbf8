"""The tables and figures that stand by themselves, one module each.

Every module here says with ``ORDER`` where it stands on the page and gives with ``build(results)`` its artefacts: an
empty list where the run does not hold what it needs. A new table or figure is one new module.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from robustfdd.report.artefact import Artefact
from robustfdd.report.results import Results


def all_artefacts(results: Results) -> list[Artefact]:
    """Every artefact that a run has the records for, in the order of the page.

    Raises:
        RunDirectoryError: the manifest or the records are damaged.
    """
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    modules.sort(key=lambda module: (module.ORDER, module.__name__))
    return [artefact for module in modules for artefact in module.build(results)]
