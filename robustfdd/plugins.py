"""Plug-ins: modules outside this package that register a dropout, a data set, an attack or anything else of one's own.

An installed distribution has them as entry points of the group :data:`GROUP`, each of which names a module. A single
file is made one by ``robustfdd --plugin FILE``, or by the environment variable :data:`FILES`. A plug-in registers what
it has when it is imported. Processes that this one starts have the same plug-ins.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from robustfdd import files
from robustfdd.errors import ConfigurationError, RobustFDDError
from robustfdd.text import reason, shown

#: The group of entry points of an installed distribution.
GROUP = "robustfdd.plugins"
#: The environment variable that holds the files, separated as in PATH.
FILES = "ROBUSTFDD_PLUGINS"

#: What was imported, and the message of what failed, which is not tried again: it may have registered a part already.
_tried: dict[str, str | None] = {}


def use(paths: Iterable[Path]) -> None:
    """Have Python files as plug-ins from now on, in this process and in those that it starts.

    Raises:
        ConfigurationError: one is no Python file.
    """
    used = _files()
    for file in paths:
        if file.suffix != ".py" or not file.is_file():
            raise ConfigurationError(f"--plugin {shown(str(file))}: must be a Python file, ending in .py")
        used.append(str(file.resolve()))
    os.environ[FILES] = os.pathsep.join(dict.fromkeys(used))


def load() -> None:
    """Import the plug-ins that are not imported yet.

    Raises:
        ConfigurationError: one cannot be imported, or registers what it may not; the message names it.
    """
    for name in (*_installed(), *_files()):
        if name not in _tried:
            _tried[name] = None  # before it is imported: in its course something may be looked up
            try:
                _import(name)
            except (Exception, SystemExit) as error:  # whatever somebody's code raises
                _tried[name] = str(error) if isinstance(error, RobustFDDError) else reason(error)
        if _tried[name] is not None:
            raise ConfigurationError(f"plug-in {shown(name)}: {_tried[name]}")


def versions() -> dict[str, str]:
    """The plug-ins that are used, with the version of a distribution or the hash of a file."""
    found = {f"plug-in {point.value}": point.dist.version for point in _points() if point.dist}
    return found | {f"plug-in {Path(file).name}": files.sha256(Path(file), files.CODE)[:16] for file in _files()}


@functools.cache
def _points() -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=GROUP))


def environment() -> dict[str, str]:
    """What a process on another machine must find in its environment to have the same files as plug-ins."""
    return {FILES: os.environ[FILES]} if _files() else {}


def _installed() -> tuple[str, ...]:
    return tuple(dict.fromkeys(point.value for point in _points()))


def _files() -> list[str]:
    return [file for file in os.environ.get(FILES, "").split(os.pathsep) if file]


def _import(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name)
    # Of files of one name in two folders each is a module of its own, and the same one in every process.
    module_name = f"robustfdd_plugin_{path.stem}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # for pickle, and dataclasses
    spec.loader.exec_module(module)
