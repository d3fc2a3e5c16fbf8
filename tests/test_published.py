"""The published figures: what is shipped is whole and agrees with itself, and damage is named."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import ROOT

from robustfdd.catalogue import attack_names, load_attack, study_names
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import ConfigurationError
from robustfdd.paper import published
from robustfdd.paper.published import PublishedCell, agrees

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def shipped() -> published.Published:
    return published.load()


def figure(cells: tuple[PublishedCell, ...], method: str, attack: str | None, norm: str | None, eps: float) -> float:
    (found,) = (
        cell.accuracy_percent
        for cell in cells
        if (cell.method, cell.attack, cell.norm, cell.eps_normalized) == (method, attack, norm, eps)
    )
    return found


def test_every_table_has_its_shape(shipped: published.Published) -> None:
    assert shipped.datasets == ("fashion-mnist", "cifar10", "cifar100", "svhn")
    counts = {
        (dataset, place.name): len(shipped.cells_of(dataset, place.name))
        for dataset in shipped.datasets
        for place in shipped.places
    }
    assert {key: n for key, n in counts.items() if n} == {
        **{(dataset, "table2"): 8 for dataset in shipped.datasets},
        ("fashion-mnist", "table3"): 7 * 6,
        ("cifar100", "table3"): 7 * 6,
        ("fashion-mnist", "figure7"): (8 + 5) * 5,
        ("cifar100", "figure7"): (8 + 5) * 5,
    }
    assert all((cell.std_percent is not None) == (cell.place == "table2") for cell in shipped.cells)
    assert shipped.cells_of("toy") == ()


@pytest.mark.parametrize(
    ("attack", "eps", "improvement"), [("fgsm", 0.06, 51.28), ("bim", 0.03, 53.61), ("pgd", 0.03, 50.71)]
)
def test_table3_gives_the_improvements_that_the_text_of_the_paper_states(
    shipped: published.Published, attack: str, eps: float, improvement: float
) -> None:
    cells = shipped.cells_of("cifar100", "table3")
    fdd, original = (figure(cells, method, attack, "linf", eps) for method in ("fdd-1d", "original"))
    assert fdd - original == pytest.approx(improvement, abs=1e-9)


@pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar100"])
def test_the_plot_agrees_with_the_tables_within_its_reading_error(shipped: published.Published, dataset: str) -> None:
    place = next(place for place in shipped.places if place.name == "figure7")
    printed = {cell.key: cell for cell in shipped.cells_of(dataset) if cell.place != "figure7"}
    shared = [cell for cell in shipped.cells_of(dataset, "figure7") if cell.key in printed]
    # Clean and three FGSM radii in L-infinity, clean again in L2; none, original and FDD-1D are in both.
    assert len(shared) == 5 * 3
    for cell in shared:
        assert abs(cell.accuracy_percent - printed[cell.key].accuracy_percent) <= place.reading_error_points, cell


def test_clean_accuracy_is_one_measurement_whatever_the_norm() -> None:
    def cell(**changes: object) -> PublishedCell:
        content = {"place": "figure7", "dataset": "d", "method": "none", "accuracy_percent": 90.0, **changes}
        return PublishedCell.model_validate(content)

    table = cell(place="table2")
    assert table.key == cell(attack="fgsm", norm="l2", eps_normalized=0.0).key
    at_003 = cell(attack="fgsm", norm="l2", eps_normalized=0.03)
    assert at_003.key == cell(attack="fgsm", norm="l2", eps_normalized=0.3 * 0.1).key
    assert at_003.key != table.key
    assert at_003.key != cell(attack="fgsm", norm="linf", eps_normalized=0.03).key


def test_a_method_of_the_paper_is_ours_with_its_default_options(shipped: published.Published) -> None:
    """Else a run with the defaults would be left out of the comparison, or one with other options let in."""
    assert set(shipped.methods) <= set(DROPOUTS)
    for name, facts in shipped.methods.items():
        assert not facts.stated.keys() & facts.open.keys()
        assert {**facts.stated, **facts.open} == DROPOUTS[name].settings({}), name
        assert facts.placement is None or facts.placement in DROPOUTS[name].placements


def test_an_attack_of_the_paper_is_ours_with_its_default_parameters(shipped: published.Published) -> None:
    assert set(shipped.attacks) <= set(attack_names())
    for name, parameters in shipped.attacks.items():
        assert load_attack(name).parameters == parameters, name


def test_settings_are_by_data_set_where_they_differ(shipped: published.Published) -> None:
    assert shipped.stated("study.normalization", "fashion-mnist") == "zero-one"
    assert shipped.stated("study.normalization", "cifar100") == "z-score"
    assert shipped.stated("study.normalization", "svhn") is None
    assert {shipped.stated("study.model.width", dataset) for dataset in shipped.datasets} == {64}
    assert shipped.stated("study.recipe.epochs", "cifar100") is None
    assert shipped.stated("no.such.key", "cifar100") is None


def test_figures_of_the_text_go_by_name(shipped: published.Published) -> None:
    low, high = (shipped.value(f"heat-map-entropy-{group}-density") for group in ("low", "high"))
    assert (low, high, shipped.value("pca-seconds-per-epoch")) == (2.045, 3.616, 0.74)
    with pytest.raises(ConfigurationError, match=r"'entropy'; allowed: heat-map-entropy-low-density, "):
        shipped.value("entropy")


def test_the_facts_are_no_study() -> None:
    assert "paper" not in study_names()


def test_the_wheel_takes_every_file() -> None:
    """The packaging rules, applied to the files; `tox` runs the other tests here on the wheel itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"]["evaluations"] == "robustfdd/_evaluations"
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "evaluations" / "published").iterdir())
    assert len(files) == 4
    for file in files:
        matching = [pattern for pattern in wheel["include"] if fnmatch(file, pattern)]
        assert any(pattern.count("/") == file.count("/") for pattern in matching), file


def test_found_in_the_package_where_there_is_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "robustfdd"
    inside = package / "_evaluations" / "published"
    shutil.copytree(published.folder(), inside)
    # Somebody's own folder of that name beside the packages is not ours.
    (package.parent / "evaluations" / "published").mkdir(parents=True)
    monkeypatch.setattr(published, "_PACKAGE", package)
    assert published.folder() == inside
    assert published.load().datasets


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def appended(line: str) -> Callable[[str], str]:
    return lambda text: f"{text}{line}\n"


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("table2.csv", replaced("94.05", "ninety"), r"table2.csv, line 2: accuracy_percent: .*given: 'ninety'"),
        ("table2.csv", replaced("94.05", "940.5"), r"table2.csv, line 2: accuracy_percent: .*given: '940.5'"),
        ("table2.csv", replaced("94.05", "nan"), r"table2.csv, line 2: accuracy_percent: "),
        ("table2.csv", replaced("0.07", "-0.07"), r"table2.csv, line 2: std_percent: "),
        ("table2.csv", replaced("std_percent", "spread"), r"table2.csv, line 2: spread: .*allowed: place, dataset, "),
        ("table2.csv", replaced("method", "dropout"), r"table2.csv, line 2: "),
        ("table2.csv", appended("svhn,none,96.5,0.1"), r"table2.csv, line 34: the same figure is given twice"),
        ("table2.csv", appended("svhn,sap,96.5,0.1,7"), r"table2.csv, line 34: \(more columns than the header\): "),
        ("table2.csv", appended("svhn,sapp,96.5,0.1"), r"table2.csv, line 34: method: unknown 'sapp'; allowed: none, "),
        ("table2.csv", lambda text: text.splitlines()[0], r"table2.csv: holds no figures"),
        ("table3.csv", replaced("fgsm", "cw"), r"table3.csv, line 2: attack: unknown 'cw'; allowed: fgsm, bim, pgd"),
        ("table3.csv", replaced("linf", "l1"), r"table3.csv, line 2: norm: .*'linf' or 'l2'.*given: 'l1'"),
        ("table3.csv", replaced("0.03", "-0.03"), r"table3.csv, line 2: eps_normalized: "),
        ("table3.csv", replaced("fgsm,linf", "fgsm,"), r"table3.csv, line 2: attack, norm and eps_normalized go"),
        ("table3.csv", replaced("fgsm,linf", ","), r"table3.csv, line 2: attack, norm and eps_normalized go"),
        ("paper.toml", replaced("[source]", "[source"), r"paper.toml: not valid TOML"),
        ("paper.toml", replaced("doi =", "url ="), r"paper.toml: source.doi: Field required"),
        ("paper.toml", replaced('key = "study.seeds"', "key = 3"), r"paper.toml: settings.*key: .*given: 3"),
        (
            "paper.toml",
            replaced("reading_error_points = 1.0", "reading_error_points = -1"),
            r"paper.toml: places.2.read",
        ),
    ],
)
def test_damage_is_named_with_file_and_line(file: str, change: Callable[[str], str], says: str, tmp_path: Path) -> None:
    folder = shutil.copytree(published.folder(), tmp_path / "published")
    text = (folder / file).read_text(encoding="utf-8")
    (folder / file).write_text(change(text), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        published.load(folder)
    message = str(caught.value)
    assert message.startswith(str(folder / file))
    assert re.search(says, message), message
    assert len(message.splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(published.folder(), tmp_path / "published")
    (folder / "figure7.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"figure7\.csv: cannot be read"):
        published.load(folder)


@pytest.mark.parametrize(
    ("stated", "found", "same"),
    [
        (64, 64, True),
        (64, 64.0, True),
        (0.01, 0.1 * 0.1, True),
        (0.01, 0.0101, False),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        ("cosine", "cosine", True),
        ("cosine", {"name": "cosine"}, False),
        (64, "64", False),
        (64, None, False),
    ],
)
def test_settings_agree_up_to_rounding_and_kind(stated: published.Scalar, found: object, same: bool) -> None:
    assert agrees(stated, found) is same
