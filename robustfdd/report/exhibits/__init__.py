"""The tables and figures that stand by themselves, one module each, here and beside the paper.

Every module in a folder of :data:`FOLDERS` says with ``ORDER`` where it stands on the page and gives with
``build(results)`` its exhibits: an empty list where the run does not hold what it needs. A new table or figure is one
new module.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from robustfdd import plugins
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.results import Results

#: The packages in which tables and figures are looked for; a plug-in appends one of its own.
FOLDERS = ["robustfdd.report.exhibits", "robustfdd.paper.exhibits"]


def all_exhibits(results: Results) -> list[Exhibit]:
    """Every table and figure that a run has the records for, in the order of the page.

    Raises:
        RunDirectoryError: the manifest or the records are damaged.
    """
    plugins.load()
    folders = [import_module(folder) for folder in FOLDERS]
    found = [entry for folder in folders for entry in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.")]
    modules = sorted((import_module(entry.name) for entry in found), key=lambda module: module.ORDER)
    return [exhibit for module in modules for exhibit in module.build(results)]
