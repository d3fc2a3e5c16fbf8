"""A short hash of the code that a result depends on, blind to comments, docstrings and layout.

A comment that was mended computes nothing anew; a line that was changed does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

#: What the weights of a trained network depend on.
TRAINING = (
    *("training", "resume", "adversarial_training", "models", "dropouts", "datasets.augment", "datasets.base"),
    "randomness",
)
#: What the outcome of an attack depends on, besides the code of its engine. How many images go at once
#: (``batching``) changes no outcome.
ATTACK = (
    *("measure", "classifier", "preparation", "ascent", "square", "iterates", "threat", "specs", "randomness"),
    *("models", "dropouts", "datasets.base", "units", "engines.base"),
)
#: What an audit depends on, besides what attacks do.
AUDIT = (*ATTACK, "engines.native", "audit.base", "audit.evidence", "audit.pictures", "audit.run", "audit.study")


def code_version(*modules: str) -> str:
    """A hash of the syntax trees of modules of this package, without docstrings and comments.

    Args:
        *modules: dotted names below ``robustfdd``, e.g. ``"training"`` or ``"engines.art"``; a package stands for all
            modules in it. Their order does not matter.

    Returns:
        16 hexadecimal digits; the same for all versions of Python.

    Raises:
        ValueError: there is no such module.
    """
    return _code_version(frozenset(modules))


@functools.cache
def _code_version(modules: frozenset[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for module in modules for path in _files(module)}):
        name = path.relative_to(_PACKAGE).as_posix()
        digest.update(f"{name} {source_version(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def _files(module: str) -> list[Path]:
    path = _PACKAGE.joinpath(*module.split("."))
    found = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.rglob("*.py"))
    if not found:
        raise ValueError(f"robustfdd.{module}: there is no such module")
    return found


def source_version(source: str) -> str:
    """A hash of Python source, without its docstrings, its comments and its layout.

    Args:
        source: a module.

    Raises:
        SyntaxError: it is no Python.
    """
    return hashlib.sha256("\n".join(_described(ast.parse(source))).encode()).hexdigest()


def _described(node: object) -> Iterable[str]:
    """A syntax tree as text; ``ast.dump`` writes what is empty in some versions of Python, and not in others."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value is None and isinstance(node, ast.Constant):
                yield "None"
            elif value is not None and value != []:
                yield name
                yield from _described(value)
        yield ")"
    elif isinstance(node, list):
        for entry in node:
            if not _is_text(entry):
                yield from _described(entry)
        yield ","
    else:
        yield repr(node)


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
