"""Parts of one's own, in a file or an installed distribution outside the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from robustfdd import catalogue, plugins, provenance
from robustfdd.analysis import ANALYSES
from robustfdd.audit import INDICATORS
from robustfdd.catalogue import add_folder, attack_names, load_study
from robustfdd.code_version import code_version
from robustfdd.datasets import DATASETS
from robustfdd.dropouts import DROPOUTS, build_dropout
from robustfdd.errors import ConfigurationError
from robustfdd.records import load_run
from robustfdd.registry import Registry
from robustfdd.report import exhibits

#: A dropout, a data set, an attack, a study, an analysis and an indicator in one file and a folder beside it.
PLUGIN = """
from pathlib import Path
import numpy as np, pandas as pd, torch
from robustfdd.analysis.base import Analysis, register as register_analysis
from robustfdd.audit.base import Finding, Indicator, register as register_indicator
from robustfdd.catalogue import add_folder
from robustfdd.datasets.base import DatasetSpec, RawData, Split, register as register_dataset
from robustfdd.dropouts import Dropout, DropoutSpec, register

class Mine(Dropout):
    def drop_probability(self, x):
        return torch.full(x.shape[:2], 0.25, device=x.device)

register(DropoutSpec(name="mine", title="Mine", build=Mine, site="features", placements=("last",), source="here 2020",
                     summary="A quarter.", order=15, strategy="none"))

def load(root):
    rng = np.random.default_rng(0)
    def split(n):
        labels = torch.arange(n) % 2
        images = torch.from_numpy(rng.integers(0, 100, (n, 1, 8, 8)).astype(np.uint8))
        return Split(images + (100 * labels).to(torch.uint8)[:, None, None, None], labels)
    return RawData(classes=("dark", "bright"), train=split(64), test=split(16), source="made here")

register_dataset(DatasetSpec(name="halves", title="Halves", summary="Dark and bright.", load=load))
register_analysis(Analysis("weights", "counts weights", ("weights",), {}, lambda trained: {
    "weights": pd.DataFrame({"n": [sum(p.numel() for p in trained.model.parameters())]})}))
register_indicator(Indicator(99, "luck", "Luck", "points", "none", "nobody", "Nothing.",
                             lambda evidence: Finding("passed", 0.0, "There is some luck in everything.")))
add_folder(Path(__file__).parent)

import sys
from robustfdd.report.exhibits import FOLDERS
sys.path.append(str(Path(__file__).parent))
FOLDERS.append("own_exhibits")
"""
EXHIBIT = """
from robustfdd.report.exhibit import Column, table
ORDER = 999

def build(results):
    letters = Column("Letters", lambda m: str(len(m.label)))
    columns = [Column("Method", lambda m: m.label, "method", kind="name"), letters]
    return [table("letters", "Letters", "Of each name.", results.study.methods, columns)]
"""
STUDY = """
name = "own-study"
title = "Own"
description = "Everything from a plug-in"
dataset = "halves"
methods = ["mine"]
eps_unit = "pixel"
test_images = 8
model = {width = 1}
recipe = {epochs = 1, batch_size = 16, learning_rate = 0.1}
audit = {images = 8}

[[attacks]]
name = "half-step"
eps.linf = [0.1]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "own"
    for kind in ("attacks", "evaluations"):
        (top / kind).mkdir(parents=True)
    (top / "mine.py").write_text(PLUGIN)
    (top / "own_exhibits").mkdir()
    (top / "own_exhibits" / "__init__.py").touch()
    (top / "own_exhibits" / "letters.py").write_text(EXHIBIT)
    (top / "evaluations" / "own-study.toml").write_text(STUDY)
    fgsm = (ROOT / "attacks" / "fgsm.toml").read_text(encoding="utf-8")
    (top / "attacks" / "half-step.toml").write_text(fgsm.replace('name = "fgsm"', 'name = "half-step"'))
    return top


def robustfdd(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robustfdd", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_file_registers_one_of_everything_without_a_change_of_the_package(
    jobs: str, folder: Path, tmp_path: Path
) -> None:
    run_it = ("run", "own-study", "--out", tmp_path / "run", "--jobs", jobs, "--no-audit")
    done = robustfdd("--plugin", folder / "mine.py", *run_it)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert run.failures == []
    assert set(run.cells.method) == {"mine"}
    assert set(run.cells.attack) == {"half-step"}
    assert set(run.analyses["weights"].method) == {"mine"}
    assert {name: len(value) for name, value in run.manifest["versions"].items() if "plug-in" in name} == {
        "plug-in mine.py": 16
    }
    assert "| mine | 4 |" in (tmp_path / "run" / "report" / "tables" / "letters.md").read_text(encoding="utf-8")
    # Without it the records can still be read, and what needs it is refused by name.
    assert robustfdd("status", tmp_path / "run").returncode == 0
    with pytest.raises(ConfigurationError, match="unknown attack 'half-step'"):
        load_study(folder / "evaluations" / "own-study.toml")


def test_a_distribution_is_found_by_its_entry_point(folder: Path, tmp_path: Path) -> None:
    info = folder / "own_parts-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nmine = mine\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    listed = robustfdd("list", PYTHONPATH=path)
    assert listed.returncode == 0, listed.stderr
    for name in ("mine", "halves", "half-step", "own-study"):
        assert f" {name} " in listed.stdout
    code = "from robustfdd.plugins import versions; print(versions())"
    environment = {**os.environ, "PYTHONPATH": path}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "{'plug-in mine': '1.2'}\n"


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in this test is forgotten after it."""
    for registry in (DROPOUTS, DATASETS, ANALYSES, INDICATORS):
        monkeypatch.setattr(registry, "_parts", registry._parts)
    monkeypatch.setattr(catalogue, "_added", [])
    monkeypatch.setattr(exhibits, "FOLDERS", list(exhibits.FOLDERS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_tried", {})
    monkeypatch.delenv(plugins.FILES, raising=False)
    monkeypatch.setenv(plugins.FILES, "")  # so that it is put back


@pytest.mark.usefixtures("apart")
def test_nothing_else_is_computed_anew_because_of_it(folder: Path) -> None:
    """Keys of what uses none of its parts are the same with it and without."""

    def keys() -> list[str]:
        parts = [type(build_dropout("sap")), ANALYSES["cost"].compute, INDICATORS["noise"].compute]
        return [code_version("units", "engines.foolbox"), *(code_version("training", parts=[part]) for part in parts)]

    before, versions = keys(), provenance.versions()
    plugins.use([folder / "mine.py"])
    assert list(DROPOUTS)[:3] == ["none", "original", "mine"]
    assert "halves" in DATASETS
    assert INDICATORS["luck"].number == 99
    assert keys() == before
    assert provenance.versions() == versions  # which are in the keys of attacks and trainings
    assert code_version("training", parts=[type(build_dropout("mine"))]) not in before


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "plug-in .*broken.py'?: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "plug-in .*broken.py'?: SystemExit: 3"),
        ("def f(:", "plug-in .*broken.py'?: SyntaxError"),
        ("from robustfdd.dropouts.base import DROPOUTS, register; register(DROPOUTS['sap'])", "'sap' is registered"),
        ("from pathlib import Path; import robustfdd.catalogue as c; c.add_folder(Path('nowhere'))", "has no attacks"),
    ],
)
def test_a_plug_in_that_fails_is_named_every_time(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(text)
    plugins.use([tmp_path / "broken.py"])
    for look in (lambda: DROPOUTS["sap"], lambda: list(DATASETS), attack_names):
        with pytest.raises(ConfigurationError, match=message):
            look()


def test_a_plug_in_that_fails_is_one_message_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no\\nluck')")
    done = robustfdd("--plugin", tmp_path / "broken.py", "list", "attacks")
    assert done.returncode == 2
    assert done.stdout == ""
    assert " ".join(done.stderr.split()) == f"error: plug-in '{tmp_path / 'broken.py'}': RuntimeError: no luck"


@pytest.mark.parametrize("name", ["nothing.py", "folder.py", "text.txt"])
def test_what_is_no_file_of_python_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text("")
    done = robustfdd("--plugin", tmp_path / name, "list", "studies")
    assert done.returncode == 2
    assert "must be a Python file" in " ".join(done.stderr.split())


def test_files_of_a_folder_do_not_replace_those_of_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustfdd.catalogue._added", [])
    add_folder(folder)
    assert "half-step" in attack_names()
    (folder / "attacks" / "pgd.toml").write_text("")
    with pytest.raises(ConfigurationError, match="half-step, pgd: there is one of that name already"):
        add_folder(folder)


def test_a_registry_keeps_its_order_and_what_belongs_to_one_part() -> None:
    class Part:
        def __init__(self, name: str, order: int, claims: str) -> None:
            self.name, self.order, self.claims = name, order, set(claims)

    parts: Registry[Part] = Registry("part", order=lambda part: part.order, claims=lambda part: part.claims)
    last, first = parts.register(Part("last", 2, "ab")), parts.register(Part("first", 1, "c"))
    assert list(parts.values()) == [first, last]
    assert len(parts) == 2
    assert repr(parts) == "<2 of part: first, last>"
    with pytest.raises(ConfigurationError, match="part 'other': b is of part 'last' already"):
        parts.register(Part("other", 3, "bd"))
    with pytest.raises(ConfigurationError, match="a part named 'last' is registered already"):
        parts.register(Part("last", 3, ""))
    assert list(parts) == ["first", "last"]
