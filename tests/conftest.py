"""What several test modules share: a tiny data set that can be learned, and models whose best attack is known."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from robustfdd import datasets, evaluation, records
from robustfdd.catalogue import attack_names, load_attack
from robustfdd.classifier import weights_digest
from robustfdd.datasets.base import Dataset, Split
from robustfdd.evaluation import run_evaluation
from robustfdd.models import load_model
from robustfdd.specs import ENGINES, AttackSpec, Scalar

# Networks this small gain nothing from threads, and lose much when several test processes share the cores. The
# processes that tests start come to the same bits only with as many.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _away_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's data folder or the working directory."""
    monkeypatch.setenv("ROBUSTFDD_DATA", str(tmp_path / "data-root"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


#: Tests that look at figures. Elsewhere they are composed but not written, which takes two thirds of a report.
DRAWN = {
    "test_artefact_figures",
    "test_benchmarks",
    "test_compare",
    "test_evaluation",
    "test_report_artefacts",
    "test_report_audit",
    "test_report_files",
    "test_worst_case",
}


@pytest.fixture(scope="module", autouse=True)
def _blank_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    def blank(self: Figure, fname: Any, *, format: str, **_: object) -> None:
        fname.write({"png": b"\x89PNG", "pdf": b"%PDF"}[format])

    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ not in DRAWN:
            patch.setattr(Figure, "savefig", blank)
            patch.setattr(Figure, "draw_without_rendering", lambda self: None)
        yield


class LinearModel(nn.Module):
    """Two classes, logits (0, w.x + b): the best perturbation of either norm is known in closed form."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack((torch.zeros_like(score), score), 1)


class TinyNet(nn.Module):
    """A small smooth network with batch norm, for attacks on something that is not linear."""

    def __init__(self, channels: int = 1, n_classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh()
        )
        self.head = nn.LazyLinear(n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


@pytest.fixture
def tiny_net() -> TinyNet:
    torch.manual_seed(3)
    net = TinyNet()
    net(torch.rand(8, 1, 10, 10))  # settles the lazy layer and gives the batch norm some statistics
    return net.eval()


#: Parameters with which the attacks that take long are done in a moment.
SHORT: dict[str, dict[str, Scalar]] = {
    "apgd-ce": {"steps": 10, "restarts": 2},
    "apgd-dlr": {"steps": 10, "restarts": 2},
    "apgd-margin": {"steps": 10, "restarts": 2},
    "art-autoattack": {"steps": 10, "restarts": 2, "queries": 20},
    "cw": {"search_steps": 4, "steps": 15, "learning_rate": 0.1, "initial_const": 0.1},
    "ddn": {"steps": 15},
    "deepfool": {"steps": 10, "candidates": 3},
    "fmn": {"steps": 15},
    "hopskipjump": {"steps": 2, "initial_evaluations": 10},
    "noise-gaussian": {"draws": 4},
    "noise-uniform": {"draws": 4},
    "square": {"steps": 20},
    "transfer": {"steps": 5},
}
#: Every attack with every engine and norm that it is offered in.
OFFERED = [
    (name, norm, engine) for name in attack_names() for engine in ENGINES for norm in load_attack(name).norms(engine)
]


def short(name: str) -> AttackSpec:
    """The attack of that name, short enough for a test."""
    return load_attack(name).with_parameters(SHORT.get(name, {}))


def make_dataset(
    n_train: int = 160, n_test: int = 80, n_classes: int = 4, size: int = 8, channels: int = 1, name: str = "quarters"
) -> Dataset:
    """Images of four classes that differ in the bright quarter, with noise: learnable in a few dozen steps.

    With more classes, some share a quarter and cannot be told apart.
    """
    rng = np.random.default_rng(5)

    def split(n: int) -> Split:
        labels = np.arange(n) % n_classes
        images = rng.integers(0, 120, (n, channels, size, size))
        half = size // 2
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label) % 4, 2)
            image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 100
        return Split(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels))

    train, test = split(n_train), split(n_test)
    pixels = train.images.numpy().astype(np.float64) / 255
    return Dataset(
        name=name,
        title=name.capitalize(),
        classes=tuple(f"quarter {k}" for k in range(n_classes)),
        train=train,
        test=test,
        mean=float(pixels.mean()),
        std=float(pixels.std()),
        sha256="0" * 64,
        source="made by the tests",
    )


@pytest.fixture(scope="session")
def quarters() -> Dataset:
    return make_dataset()


@contextmanager
def registered(dataset: Dataset) -> Iterator[None]:
    """The data set under its name, as a study file and the command line name it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (evaluation, datasets):
            real = module.load_dataset
            patch.setattr(
                module,
                "load_dataset",
                lambda name, root=None, real=real: dataset if name == dataset.name else real(name, root=root),
            )
        yield


@pytest.fixture
def quarters_registered(quarters: Dataset) -> Iterator[Dataset]:
    with registered(quarters):
        yield quarters


STUDY = """
name = "small"
title = "Small"
description = "A study of seconds"
dataset = "quarters"
methods = ["none", {dropout = "fdd-2d", label = "fdd-2d-inverted", options = {rescale = "inverted"}}]
eps_unit = "normalized"
test_images = 24

[model]
width = 2

[recipe]
epochs = 3
batch_size = 16
learning_rate = 0.1
weight_decay = 0

[[attacks]]
name = "fgsm"
eps.linf = [0, 0.1, 0.8]

[[attacks]]
name = "pgd"
eps.l2 = [0.5]
parameters = {steps = 3}

[open_choices]
"recipe.epochs" = "enough"
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(quarters: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small study; tests take a copy of it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(STUDY, encoding="utf-8")
    with registered(quarters):
        return run_evaluation(folder / "small.toml", out=folder / "run")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose data another process can load, from images in a folder."""
    top = tmp_path_factory.mktemp("images")
    data = make_dataset(n_train=80, n_test=40)
    for name, split in (("train", data.train), ("test", data.test)):
        for position, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = top / "data" / name / f"quarter{int(label)}" / f"{position:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    (top / "s.toml").write_text(STUDY.replace('"quarters"', f'"folder:{top / "data"}"'))
    return top


@pytest.fixture(scope="session")
def reference(folder: Path) -> Path:
    """What one process after the other makes of it."""
    return run_evaluation(folder / "s.toml", out=folder / "reference")


def assert_same(run: Path, other: Path) -> None:
    found, expected = records.load_run(run), records.load_run(other)
    assert found.failures == []
    keys = ["unit", "eps_pixel"]
    cells, wanted = found.cells.sort_values(keys), expected.cells.sort_values(keys)
    assert cells.unit.tolist() == wanted.unit.tolist()
    for column in ("outcome", "prediction", "distance", "clean_prediction"):
        for mine, theirs in zip(cells[column], wanted[column], strict=True):
            assert np.array_equal(mine, theirs)
    for path in sorted(other.glob("models/*.safetensors")):
        assert weights_digest(load_model(run / "models" / path.name)) == weights_digest(load_model(path))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="a Markdown page whose table of faults is filled in")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, int, int], None]:
    """Tells the summary of a fault: what it was, how often it was tried, and how many results were lost by it."""

    def tell(fault: str, tried: int, lost: int) -> None:
        request.node.user_properties.append(("fault", [fault, tried, lost]))

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of the faults that were tried."""
    faults: dict[str, list[int]] = {}
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties:
            if name == "fault":
                fault, *counts = value
                faults[fault] = [a + b for a, b in zip(faults.get(fault, [0, 0]), counts, strict=True)]
    if not faults:
        return
    lines = ["| fault | times tried | results lost |", "|:--|--:|--:|"]
    lines += [f"| {fault} | {tried} | {lost} |" for fault, (tried, lost) in sorted(faults.items())]
    terminalreporter.section("faults")
    terminalreporter.write_line("\n".join(lines))
    page = config.getoption("--fault-table")
    if page is not None:
        before, start, rest = page.read_text(encoding="utf-8").partition("<!-- faults -->\n")
        end = rest[rest.index("<!-- end -->") :]
        page.write_text(before + start + "\n".join(lines) + "\n" + end, encoding="utf-8")
