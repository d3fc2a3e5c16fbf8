"""The version of code: blind to what computes nothing, not to what does."""

from __future__ import annotations

import ast
import functools
import importlib
import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from types import CodeType, FrameType

import pytest
from conftest import make_dataset, short
from torch import nn

import robustfdd.code_version as code_version_module
from robustfdd.analysis.base import ANALYSES, TrainedModel
from robustfdd.audit.evidence import AuditedAttack, Evidence
from robustfdd.audit.run import audit_code, audit_images
from robustfdd.code_version import PACKAGE, UNCOUNTED, Package, Part, code_version, source_version
from robustfdd.datasets import Dataset
from robustfdd.dropouts import SpatialDropout, build_dropout
from robustfdd.models import build_model, load_model, parts_of
from robustfdd.specs import AdversarialTraining, Protocol, Recipe
from robustfdd.threat import Threat
from robustfdd.training import train, training_code
from robustfdd.units import Attacked, AttackUnit, Subject, TestSet

ROOT = Path(code_version_module.__file__).parent
CHECKING = "from typing import TYPE_CHECKING\n"
INDICATORS = [path for path in (ROOT / "audit" / "indicators").glob("*.py") if path.stem != "__init__"]

SOURCE = '''
"""A module."""
import math


class Circle:
    """A circle."""

    radius: float = 1.0
    """In metres."""

    def area(self, scale=2, *, unit=None):
        """Its area."""
        # Archimedes
        return math.pi * self.radius ** scale
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', ""),
        ('"""A circle."""', '"""A disc."""'),
        ('    """In metres."""\n', ""),
        ("        # Archimedes\n", ""),
        ("self.radius ** scale", "(self.radius**scale)"),
        ("\n\n\nclass", "\nclass"),
    ],
)
def test_what_computes_nothing_does_not_count(old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert source_version(changed) == source_version(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.pi * self", "math.pi / self"),
        ("self.radius ** scale", "self.radius * scale"),
        ("scale=2", "scale=3"),
        ("scale=2", "scale=2.0"),
        ("unit=None", "unit"),
        ("*, unit", "unit"),
        ("radius: float = 1.0", "radius: float = -1.0"),
        ("import math", "import cmath as math"),
        ("return math.pi", 'return "math.pi"; math.pi'),
        ("        return", "        if scale:\n            return"),
    ],
)
def test_what_computes_counts(old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert source_version(changed) != source_version(SOURCE)


def test_parts_are_told_apart_and_their_order_is_not() -> None:
    assert code_version("engines.art") != code_version("engines.foolbox")
    assert code_version("engines.art", "measure") == code_version("measure", "engines.art")
    assert code_version("dropouts.base", "dropouts.density") == code_version("dropouts.density")
    with pytest.raises(ValueError, match=r"robustfdd\.engine: there is no such module"):
        code_version("engine")


# --- what the key of each kind of work depends on --------------------------------------------------------------------

WORK = {
    "training": ("training", "dropouts.density"),
    "adversarial training": ("training", "adversarial_training", "dropouts.density"),
    "attack": ("units", "engines.native", "models", "dropouts.density"),
    "audit": ("audit.run", "audit.indicators.curve", "models", "dropouts.density"),
    "analysis": ("analysis.activations", "models", "dropouts.density"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, to be changed."""
    skip = shutil.ignore_patterns("__pycache__", "report", "*.npz", "*.csv")
    return shutil.copytree(ROOT, tmp_path / PACKAGE, ignore=skip)


def versions(root: Path) -> dict[str, str]:
    package = Package(root)
    return {work: package.version(*modules) for work, modules in WORK.items()}


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The versions as they are."""
    return versions(ROOT)


EVERYTHING = set(WORK)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # What was forgotten while the modules were listed by hand:
        ("ascent", {"adversarial training", "attack", "audit"}),
        ("audit/indicators/curve", {"audit"}),
        ("audit/base", {"audit"}),
        ("batching", {"attack", "audit"}),
        ("square", {"attack", "audit"}),
        ("threat", EVERYTHING),
        # What is used, and by what:
        ("training", {"training", "adversarial training"}),
        ("adversarial_training", {"adversarial training"}),
        ("resume", {"training", "adversarial training"}),
        ("datasets/augment", {"training", "adversarial training"}),
        ("measure", {"attack", "audit"}),
        ("engines/native", {"attack"}),
        ("analysis/activations", {"analysis"}),
        ("models", EVERYTHING),
        ("classifier", EVERYTHING),
        ("datasets/base", EVERYTHING),
        ("dropouts/base", EVERYTHING),
        ("dropouts/density", EVERYTHING),
        # What is not used, or is in the keys by itself:
        ("dropouts/sap", set()),
        ("dropouts/__init__", set()),
        ("datasets/cifar", set()),
        ("datasets/folder", set()),
        ("engines/art", set()),
        ("engines/__init__", set()),
        ("analysis/cost", set()),
        ("audit/indicators/noise", set()),
        ("executors/ray", set()),
        ("catalogue", set()),
        ("errors", set()),
        ("text", set()),
        ("progress", set()),
        ("cli/models", set()),
        ("__init__", set()),
    ],
)
def test_a_change_of_a_module_makes_stale_what_uses_it(
    module: str, expected: set[str], copy: Path, before: dict[str, str]
) -> None:
    path = copy / f"{module}.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nchanged = 1\n", encoding="utf-8")
    after = versions(copy)
    assert {work for work in WORK if before[work] != after[work]} == expected


@pytest.mark.parametrize("folder", ["dropouts", "datasets", "engines", "analysis", "audit/indicators", "executors", ""])
def test_a_new_module_makes_nothing_stale_that_does_not_use_it(folder: str, copy: Path, before: dict[str, str]) -> None:
    name = f"{folder.replace('/', '.')}.mine".lstrip(".")
    (copy / folder / "mine.py").write_text(
        "from robustfdd.square import square\nfrom robustfdd.analysis.cost import REPETITIONS\n"
    )
    assert versions(copy) == before
    package = Package(copy)
    assert {"square", "analysis.cost", "adversarial_training", name} <= package.closure(name)
    assert package.version("training", name) != package.version("training")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from robustfdd.dropouts import Dropout", {"dropouts.base"}),
        ("from robustfdd.dropouts import feature_density as density", {"dropouts.base", "dropouts.density"}),
        ("from robustfdd.dropouts import original", {"dropouts.base", "dropouts.original"}),
        ("from robustfdd import Threat", {"threat"}),
        ("from robustfdd import threat", {"threat"}),
        ("import robustfdd.threat", {"threat"}),
        ("import robustfdd.threat as t", {"threat"}),
        ("import robustfdd as r\nr.dropouts.density.feature_density()", {"dropouts.base", "dropouts.density"}),
        ("import robustfdd as r\nr.feature_density.__doc__", {"dropouts.base", "dropouts.density"}),
        ("from .threat import Threat", {"threat"}),
        ("from . import threat", {"threat"}),
        ("def f():\n    if True:\n        from robustfdd.threat import Threat", {"threat"}),
        ("try:\n    import robustfdd.threat\nexcept ImportError:\n    import robustfdd.nothing", {"threat"}),
        ("from robustfdd.engines import get_engine", set()),
        ("from robustfdd.errors import ConfigurationError", set()),
        ("from robustfdd import __version__", set()),
        (f"{CHECKING}if TYPE_CHECKING:\n    from robustfdd.threat import Threat", set()),
        (f"{CHECKING}if TYPE_CHECKING:\n    pass\nelse:\n    from robustfdd.threat import Threat", {"threat"}),
        ("import typing\nif typing.TYPE_CHECKING:\n    from robustfdd.threat import Threat", set()),
        (f"{CHECKING}if not TYPE_CHECKING:\n    from robustfdd.threat import Threat", {"threat"}),
    ],
)
def test_every_way_of_importing_is_followed(text: str, found: set[str], copy: Path) -> None:
    (copy / "mine.py").write_text(text)
    assert Package(copy).closure("mine") == {"mine", *found}


def test_an_import_in_a_circle_ends(copy: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        (copy / f"{name}.py").write_text(f"import robustfdd.{other}")
    assert Package(copy).closure("one") == Package(copy).closure("two") == {"one", "two"}


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(p.relative_to(ROOT).as_posix(), ast.parse(p.read_bytes())) for p in sorted(ROOT.rglob("*.py"))]


def test_an_init_only_gathers_and_looks_up() -> None:
    """None is counted; so what one defines may only choose among modules by a name that is in the key."""
    defined = {
        f"{path}: {node.name}"
        for path, tree in trees()
        if path.endswith("__init__.py")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    lazy = {f"__init__.py: {name}" for name in ("__getattr__", "__dir__", "_Package", "audit")}
    assert defined == lazy | {
        "datasets/__init__.py: load_dataset",
        "engines/__init__.py: get_engine",
        "report/exhibits/__init__.py: all_exhibits",
    }


def test_what_is_imported_by_a_computed_name_is_a_registered_part_or_somebody_elses() -> None:
    dynamic = {path for path, tree in trees() if "import_module" in ast.dump(tree) or "__import__" in ast.dump(tree)}
    inits = {f"{p}/__init__.py" for p in ("analysis", "datasets", "dropouts", "audit/indicators", "report/exhibits")}
    others = {"__init__.py", "ending.py", "foreign.py", "plugins.py", "cli/base.py", "executors/ray.py"}
    assert dynamic == inits | others


def test_what_is_not_counted_cannot_compute() -> None:
    """It imports no library that does, and nothing of the package but what describes work."""
    numeric = {"torch", "torchvision", "numpy", "scipy", "pandas", "art", "foolbox", "math", "random", "statistics"}
    for path, tree in trees():
        if path.removesuffix(".py") not in UNCOUNTED:
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top, _, rest = name.partition(".")
                assert top not in numeric, path
                for inner in [rest] if rest else [alias.name for alias in node.names]:
                    assert top != PACKAGE or inner in UNCOUNTED | {"specs", "threat", "files"}, path


def called_by(work: Callable[[], object]) -> set[str]:
    """The modules of the package of which a function is called meanwhile."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    paths = {Path(code.co_filename) for code in codes if code.co_name != "<module>"}
    return {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths if p.is_relative_to(ROOT)}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["part", "whole"])
def test_every_module_that_is_executed_counts(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what really runs: of no module outside the closure is a function called while a result is made."""
    data, out = make_dataset(n_train=16, n_test=8), tmp_path / "m.safetensors"
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.05, augmentation="flip")
    perturbed = AdversarialTraining(attack="pgd", norm="l2", eps=0.1, steps=1)
    run = sys.modules["robustfdd.audit.run"]
    if not whole:  # two indicators, and none of the attacks of the others
        few = {name: run.INDICATORS[name] for name in ("one-step", "transfer")}
        monkeypatch.setattr(run, "INDICATORS", few)
        monkeypatch.setattr(run, "lines", lambda evidence: [])
        monkeypatch.setattr(Evidence, "worst", property(lambda evidence: evidence.survivors))

    def trained(recipe: Recipe = recipe) -> None:
        train(build_model(data, "fdd-2d", width=2), data, recipe, seed=0, out=out)

    def attacked() -> None:
        subject, test = Subject("s", "m", 0, 1.0, "x"), TestSet.choose(data, 8)
        model = Attacked(load_model(out), subject, test, attack_seed=0, batch_size=None, compile=False)
        protocols: tuple[Protocol, ...] = ("paper", "strong")
        for name, protocol in product(("apgd-ce", "square", "fgsm"), protocols):
            unit = AttackUnit("m", 0, short(name), "linf", "native", (0.1,), "pixel", protocol=protocol)
            model.cells(unit, lambda cost: None, None)

    def audited() -> None:
        audit_images(
            load_model(out),
            TestSet.choose(data, 4),
            Threat("linf", 0.1),
            attack=AuditedAttack(steps=2),
            sibling=load_model(out),
            eot_samples=0,
            seed=0,
            batch_size=8,
        ).frames()

    trained()  # what is done once in a process, such as hashing all of the code, is not watched: it would take long
    called = {
        "training": called_by(trained),
        "adversarial training": called_by(
            lambda: trained(recipe.model_copy(update={"adversarial": perturbed})),
        ),
        "attack": called_by(attacked),
        "audit": called_by(audited),
        "analysis": called_by(
            lambda: ANALYSES["activations"].compute(TrainedModel(load_model(out), data, recipe)),
        ),
    }
    indicators = [f"audit.indicators.{path.stem}" for path in INDICATORS]
    package = Package(ROOT)
    for work, modules in WORK.items():
        closure = package.closure(*modules, *(indicators if work == "audit" else []))
        assert modules[0] in called[work]
        assert {name for name in called[work] if not name.endswith("__init__")} <= closure | UNCOUNTED, work
    assert "ascent" in called["adversarial training"] - called["training"]


# --- parts from outside ----------------------------------------------------------------------------------------------

LAYER = """
import helping
import robustfdd
from robustfdd.dropouts.base import Dropout, DropoutSpec, register

class Own(Dropout):
    def drop_probability(self, x):
        return helping.rate(x)

def build(**options):
    return Own(**options)
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Loads a layer from a file of the user's, with what it imports, and gives the versions of code with it."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    (folder / "unrelated.py").write_text("nothing = 1\n")

    def load(layer: str = LAYER, helping: str = "def rate(x):\n    return 0.5\n") -> dict[str, str]:
        for name, text in (("layer", layer), ("helping", helping)):
            (folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
        module = importlib.import_module("layer")
        parts = {"class": module.Own, "function": module.build, "partial": functools.partial(module.build, p=1)}
        return {name: code_version("training", parts=[part]) for name, part in parts.items()}

    return load


def test_a_layer_of_the_users_own_counts_with_what_it_imports(outside: Callable[..., dict[str, str]]) -> None:
    first = outside()
    assert len(set(first.values())) == 1
    assert first["class"] != code_version("training")
    assert outside() == first
    assert outside(LAYER.replace("import helping\n", "import helping  # a remark\n")) == first
    for changed in (outside(LAYER.replace("helping.rate(x)", "1 - helping.rate(x)")), outside(helping="rate = abs\n")):
        assert not set(changed.values()) & set(first.values())
    # What it uses of the package counts, and what is somebody else's does not.
    assert code_version(parts=[nn.Conv2d, functools.partial(len)]) == code_version()
    other = outside(LAYER.replace("import robustfdd\n", "from robustfdd.square import square\n"))
    assert other["class"] not in first.values()


def test_what_was_loaded_counts_and_not_what_the_file_became(
    outside: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    first = outside()
    (tmp_path / "theirs" / "layer.py").write_text(LAYER.replace("helping.rate(x)", "0"))
    assert code_version("training", parts=[sys.modules["layer"].Own]) == first["class"]


def test_a_part_without_a_file_is_no_error() -> None:
    typed = type("Typed", (nn.Module,), {"__module__": "nowhere"})
    assert code_version("training", parts=[typed]) == code_version("training")


def test_the_keys_name_what_they_use(monkeypatch: pytest.MonkeyPatch, quarters: Dataset) -> None:
    """Training, attack and audit as they ask for their versions: with the network's own parts, and no others."""
    asked: list[frozenset[str]] = []

    def closure(*modules: str, parts: Iterable[Part] = ()) -> str:
        names = {getattr(p, "__module__", "").removeprefix(f"{PACKAGE}.") for p in parts}
        asked.append(frozenset({*modules, *names}))
        return "x"

    for user in ("training", "audit.run"):
        monkeypatch.setattr(sys.modules[f"robustfdd.{user}"], "code_version", closure)
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.1)
    network = build_model(quarters, "fdd-2d", width=1)
    training_code(network, recipe)
    training_code(network, recipe.model_copy(update={"adversarial": AdversarialTraining(attack="fast", eps=0.1)}))
    assert "adversarial_training" not in asked[0]
    assert asked[1] == asked[0] | {"adversarial_training"}
    assert {"training", "dropouts.density", "models"} <= asked[0]
    audit_code(*parts_of("sap"))
    assert {"audit.run", "dropouts.sap", "models", *(f"audit.indicators.{p.stem}" for p in INDICATORS)} <= asked[2]
    assert not {"dropouts.spatial", "dropouts.sap", "dropouts.guided"} & asked[0]
    assert parts_of(nn.Sequential(nn.Linear(2, 2), build_dropout("spatial"))) == (SpatialDropout,)
