"""Imports point one way, and the libraries that are wrapped are imported in one place each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "robustfdd"
#: From the bottom up; a module may import from layers below its own, and from its own part.
LAYERS = [
    {"errors", "text", "checksums", "files", "ending", "rounding"},
    {"schema", "plugins"},
    {"registry"},
    {"threat", "records", "code_version", "locking", "journal"},
    {"specs", "status", "sources", "audited"},
    {"catalogue"},
    {"datasets", "dropouts", "layout", "progress", "randomness"},
    {"classifier", "provenance"},
    {"ascent"},
    {"adversarial_training", "iterates", "square", "watched_gradient"},
    {"models", "engines", "preparation", "batching"},
    {"resume", "measure", "foreign"},
    {"training", "identity"},
    {"units"},
    {"manifest"},
    {"analysis"},
    {"audit"},
    {"tasks"},
    {"executors"},
    {"evaluation"},
    {"report"},
    {"paper"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
#: The face of the package; it gathers names from everywhere, and modules below take the version from it.
FACE = "__init__"


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "robustfdd":
                yield from (f"robustfdd.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    mine = part_of(path)
    if mine == FACE:
        return
    assert mine in RANK, f"{path}: say in LAYERS where it belongs"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top != "robustfdd" or rest == "__version__":
            continue
        other = rest.split(".")[0]
        assert other == mine or RANK[other] < RANK[mine], f"{path} imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("art", {"engines/art.py"}),
        ("foolbox", {"engines/foolbox.py"}),
        ("eagerpy", {"engines/foolbox.py"}),
        ("captum", {"analysis/deconvolution.py"}),
        ("filelock", {"locking.py"}),
    ],
)
def test_attack_libraries_are_imported_in_one_place(library: str, allowed: set[str]) -> None:
    found = {p.relative_to(PACKAGE).as_posix() for p in MODULES for name in imports(p) if name.split(".")[0] == library}
    assert found == allowed


def test_reports_need_neither_torch_nor_the_rest() -> None:
    for path in [*(PACKAGE / "report").rglob("*.py"), *(PACKAGE / "paper").rglob("*.py"), PACKAGE / "records.py"]:
        for name in imports(path):
            assert name.split(".")[0] not in {"torch", "torchvision", "art", "foolbox", "captum"}, (
                f"{path} imports {name}"
            )
            if name.startswith("robustfdd."):
                below = {"records", "checksums", "files", "errors", "text", "plugins", "rounding", "schema", "audited"}
                allowed = below | {"report"} | ({"paper"} if part_of(path) == "paper" else set())
                assert name.split(".")[1] in allowed, f"{path} imports {name}"


def test_only_the_command_line_knows_the_paper() -> None:
    users = {part_of(path) for path in MODULES for name in imports(path) if name.startswith("robustfdd.paper")}
    assert users <= {"paper", "cli"}
