"""A run beside the paper: differences, ranks and gaps against figures worked out by hand or by SciPy itself."""

from __future__ import annotations

import csv
import itertools
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_runs import FakeRun, Key
from scipy import stats
from typer.testing import CliRunner, Result

import robustfdd.paper.compare
from robustfdd.cli import app
from robustfdd.errors import ConfigurationError, RunDirectoryError
from robustfdd.paper.compare import compare, compare_runs, write_comparison
from robustfdd.paper.comparison import Comparison
from robustfdd.paper.comparison_tables import figures_table
from robustfdd.paper.exhibits import figure7
from robustfdd.paper.matching import Pair, altered
from robustfdd.paper.ordering import distinct, order_block, summarise, versus
from robustfdd.paper.published import PublishedCell, load
from robustfdd.records import load_run
from robustfdd.report.results import sort_results
from robustfdd.report.study import Method, signed
from robustfdd.report.tables import Entry
from robustfdd.rounding import exact

#: Survivors of 1,000 images in each cell that is not 70.0 % before and 50.0 % after the attack: method, seed, attack,
#: norm, step.
SURVIVORS: Mapping[tuple[str, int, str, str, int], int] = {
    ("none", 0, "fgsm", "linf", 2): 400,
    ("none", 1, "fgsm", "linf", 2): 420,
    ("original", 0, "fgsm", "linf", 2): 300,
    ("original", 1, "fgsm", "linf", 2): 310,
    ("fdd-1d", 0, "fgsm", "linf", 2): 549,
    ("fdd-1d", 1, "fgsm", "linf", 2): 550,
}
CLEAN = {("none", 0): 0.940, ("none", 1): 0.942, ("original", 0): 0.9397, ("original", 1): 0.9397}


def counts(key: Key) -> tuple[int, int, int]:
    survivors = SURVIVORS.get((key.method, key.seed, key.attack, key.norm, key.step), 500)
    return (300, 700, 0) if key.step == 0 else (300, survivors, 700 - survivors)


def paper_options(*names: str) -> dict[str, dict[str, Any]]:
    methods = load().methods
    return {name: {**methods[name].stated, **methods[name].open} for name in names}


def fashion(**changes: Any) -> FakeRun:
    """A run on Fashion-MNIST as the paper has it, over some of its radii."""
    names = ("none", "original", "fdd-1d")
    defaults: dict[str, Any] = {
        "counts": counts,
        "methods": [("none", "No dropout"), ("original", "Original"), ("fdd-1d", "FDD-1D")],
        "attacks": {"fgsm": "FGSM", "bim": "BIM"},
        "eps": {"linf": [0.01, 0.03], "l2": [0.16]},
        "seeds": (0, 1),
        "options": paper_options(*names),
        "clean_accuracy": lambda method, seed: CLEAN.get((method, seed), 0.95),
        "study": {"dataset": "fashion-mnist", "normalization": "zero-one"},
        "manifest": {
            "dataset": {"name": "fashion-mnist", "title": "Fashion-MNIST", "n_train": 60_000, "n_test": 10_000}
        },
    }
    return FakeRun(**{**defaults, **changes})


def compared(run: FakeRun, path: Path, **arguments: Any) -> Comparison:
    return compare(sort_results(load_run(run.write(path))), **arguments)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a comparison; where only its tables are looked at, nothing is drawn."""
    for name in ("draw_scatter", "draw_differences"):
        monkeypatch.setattr(robustfdd.paper.compare, name, lambda comparison: {})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fashion().write(tmp_path_factory.mktemp("compare") / "run")


@pytest.fixture(scope="module")
def comparison(run_dir: Path) -> Comparison:
    return compare(sort_results(load_run(run_dir)))


def pair_of(comparison: Comparison, place: str, method: str, attack: str | None, norm: str | None, eps: float) -> Pair:
    (found,) = (
        pair
        for pair in comparison.pairs
        if (pair.published.place, pair.published.method) == (place, method)
        and (pair.published.attack, pair.published.norm, pair.published.eps_normalized) == (attack, norm, eps)
    )
    return found


def reason_of(comparison: Comparison, place: str, method: str, attack: str, norm: str, eps: float) -> str:
    (found,) = (
        item.reason
        for item in comparison.not_run
        if item.published.row
        == PublishedCell(
            place=place, dataset="d", method="m", attack=attack, norm=norm, eps_normalized=eps, accuracy_percent=0
        ).row
        and item.published.method == method
    )
    return found


def test_a_difference_is_the_run_minus_the_paper(comparison: Comparison) -> None:
    pair = pair_of(comparison, "table3", "none", "fgsm", "linf", 0.03)
    # 400 and 420 of 1,000 images in the two seeds; the paper has 36.35.
    assert pair.mean == pytest.approx(41.0)
    assert pair.ours.std == pytest.approx(math.sqrt(2))
    assert (pair.ours.n_seeds, pair.n_images) == (2, 1000)
    assert pair.difference == pytest.approx(4.65)
    # 549 and 550; the paper has 54.92.
    assert pair_of(comparison, "table3", "fdd-1d", "fgsm", "linf", 0.03).difference == pytest.approx(0.03)
    # The same cell against the point of Figure 7, which reads 36.5.
    assert pair_of(comparison, "figure7", "none", "fgsm", "linf", 0.03).difference == pytest.approx(4.5)


def test_table2_is_over_the_whole_test_set_and_figure7_begins_with_the_records(comparison: Comparison) -> None:
    pair = pair_of(comparison, "table2", "none", None, None, 0.0)
    assert pair.mean == pytest.approx(94.1)
    assert pair.difference == pytest.approx(0.05)
    assert pair.n_images == 10_000
    at_zero = pair_of(comparison, "figure7", "none", "fgsm", "l2", 0.0)
    assert (at_zero.mean, at_zero.n_images) == (pytest.approx(70.0), 1000)
    assert at_zero.difference == pytest.approx(70 - 94)


def test_every_published_figure_is_compared_or_accounted_for(comparison: Comparison) -> None:
    cells = load().cells_of("fashion-mnist")
    found = [item.published for item in (*comparison.pairs, *comparison.not_run)]
    assert len(found) == len(cells)
    assert {(cell.row, cell.method) for cell in found} == {(cell.row, cell.method) for cell in cells}
    # Table 2; FGSM and BIM at 0.03; Figure 7 at 0 in both norms, at 0.03 and at 0.16, each with three methods.
    assert len(comparison.pairs) == 3 * (1 + 2 + 4)


def test_what_is_not_run_says_why(comparison: Comparison) -> None:
    reasons = {
        ("table3", "none", "fgsm", "linf", 0.06): "the run has FGSM in L∞ at other ε: 0.01, 0.03",
        ("table3", "none", "pgd", "linf", 0.02): "the run has no pgd in L∞",
        ("table3", "spatial", "fgsm", "linf", 0.03): "the run has this method not at all",
        ("figure7", "original", "fgsm", "l2", 0.64): "the run has FGSM in L2 at other ε: 0.16",
    }
    for key, reason in reasons.items():
        assert reason_of(comparison, *key) == reason


def test_a_gap_is_no_figure(tmp_path: Path) -> None:
    run = fashion(
        counts=lambda key: None if (key.method, key.attack) == ("none", "bim") else counts(key),
        clean_accuracy=lambda method, seed: None if method == "none" else 0.9,
    )
    found = compared(run, tmp_path)
    assert reason_of(found, "table3", "none", "bim", "linf", 0.03) == "planned, but without a record"
    assert [i.reason for i in found.not_run if (i.published.place, i.published.method) == ("table2", "none")] == [
        "no model of it has a training record"
    ]
    assert pair_of(found, "table3", "original", "bim", "linf", 0.03).mean == pytest.approx(50)


def test_radii_match_in_either_unit_up_to_rounding(tmp_path: Path) -> None:
    # 0.03 * 0.25 in pixels; 0.0075 / 0.25 need not be 0.03 to the last bit.
    found = compared(fashion(eps_unit="pixel", eps={"linf": [0.0025, 0.1 * 0.075]}), tmp_path)
    assert pair_of(found, "table3", "none", "fgsm", "linf", 0.03).difference == pytest.approx(4.65)


def test_another_normalisation_is_another_ball(tmp_path: Path) -> None:
    found = compared(fashion(study={"dataset": "fashion-mnist", "normalization": "z-score"}), tmp_path)
    assert {pair.published.eps_normalized for pair in found.pairs} == {0.0}
    assert "normalises its images in another way" in reason_of(found, "table3", "none", "fgsm", "linf", 0.03)
    assert ("study.normalization", "zero-one", "z-score", "differs") in [
        (item.key, item.paper, item.ours, item.kind) for item in found.setup
    ]


def test_an_attack_with_other_parameters_is_not_the_papers(tmp_path: Path) -> None:
    path = fashion().write(tmp_path)
    run = load_run(path)
    for attack in run.manifest["study"]["attacks"]:
        attack["parameters"] = {"steps": 20, "relative_step": 0.1} if attack["name"] == "bim" else {}
    found = compare(sort_results(run))
    assert reason_of(found, "table3", "none", "bim", "linf", 0.03) == "the run has BIM with steps = 20 (not 10)"
    assert pair_of(found, "table3", "none", "fgsm", "linf", 0.03)


def test_a_method_is_known_by_its_dropout_and_options_not_by_its_label(tmp_path: Path) -> None:
    options = paper_options("none", "fdd-1d")
    run = fashion(
        methods=[("base", "Base"), ("fdd-1d", "FDD-1D inverted"), ("mine", "Mine"), ("again", "Again"), ("j", "Jump")],
        dropouts={"base": "none", "mine": "fdd-1d", "again": "fdd-1d", "j": "jumpout"},
        options={
            "fdd-1d": {**options["fdd-1d"], "rescale": "inverted"},
            "mine": options["fdd-1d"],
            "again": options["fdd-1d"],
        },
    )
    found = compared(run, tmp_path)
    assert {pair.method.label for pair in found.pairs} == {"base", "mine"}
    assert {(method.label, reason) for method, reason in found.left_out} == {
        ("fdd-1d", "rescale = inverted (not none)"),
        ("again", "Mine is the same method, and comes first"),
        ("j", "the paper has no figures for it"),
    }
    assert reason_of(found, "table3", "original", "fgsm", "linf", 0.03) == "the run has this method not at all"


def test_a_method_only_with_altered_options_is_named_where_it_is_missing(tmp_path: Path) -> None:
    options = {**paper_options("none", "original", "fdd-1d"), "fdd-1d": {"kappa": 0.8, "alpha": 0.1}}
    found = compared(fashion(options=options), tmp_path)
    assert reason_of(found, "table3", "fdd-1d", "fgsm", "linf", 0.03) == (
        "the run has this method only as FDD-1D: kappa = 0.8 (not -0.8), alpha = 0.1 (not 0.9)"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"dropout": "spatial", "placement": "last", "options": {"p": 0.5}}, None),
        ({"dropout": "spatial", "placement": "stages", "options": {}}, "placement = stages (not last)"),
        ({"dropout": "none", "placement": "stages", "options": {}}, None),
        ({"dropout": "sap", "placement": "stages", "options": {"share": 1}}, None),
        ({"dropout": "spatial", "options": {"gain": 2}}, "gain = 2 (a new option)"),
        ({"dropout": "spatial", "options": {"p": True}}, "p = True (not 0.5)"),
        ({"dropout": None, "options": {}}, "the paper has no figures for it"),
        ({"options": None}, "the paper has no figures for it"),
    ],
)
def test_what_makes_a_method_another(settings: dict[str, Any], expected: str | None) -> None:
    assert altered(Method("x", "X", settings), load()) == expected


def make_pair(
    method: str, published: float, ours: float, *, place: str = "table3", eps: float = 0.03, error: float = 0.0
) -> Pair:
    cell = PublishedCell(
        place=place,
        dataset="fashion-mnist",
        method=method,
        attack="fgsm",
        norm="linf",
        eps_normalized=eps,
        accuracy_percent=published,
    )
    return Pair(cell, Method(method, method, {"dropout": method}), Entry(exact(ours), None, 1, 1), 1000, error)


def block(published: list[float], ours: list[float]) -> list[Pair]:
    return [make_pair(f"m{i}", x, y) for i, (x, y) in enumerate(zip(published, ours, strict=True))]


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ([10.0, 20.0, 30.0, 40.0, 50.0], [1.0, 2.0, 3.0, 4.0, 5.0]),
        ([10.0, 20.0, 30.0, 40.0, 50.0], [5.0, 4.0, 3.0, 1.0, 2.0]),
        ([10.0, 20.0, 20.0, 40.0, 50.0], [3.0, 1.0, 2.0, 2.0, 4.0]),
        ([10.0, 20.0, 20.0, 20.0, 50.0, 60.0], [7.0, 7.0, 2.0, 2.0, 9.0, 7.0]),
    ],
)
def test_rank_correlations_are_scipys_and_their_p_is_over_all_orders(published: list[float], ours: list[float]) -> None:
    found = order_block(block(published, ours))
    assert found.remark == ""
    for coefficient, p, function in (
        (found.spearman, found.spearman_p, stats.spearmanr),
        (found.kendall, found.kendall_p, stats.kendalltau),
    ):
        observed = function(published, ours)[0]
        assert coefficient == pytest.approx(observed)
        null = np.array([function(published, order)[0] for order in itertools.permutations(ours)])
        # Twice the smaller tail, as SciPy has it for two sides.
        tails = (null >= observed - 1e-9).mean(), (null <= observed + 1e-9).mean()
        assert p == pytest.approx(min(1.0, 2 * min(tails)))


def test_without_ties_kendalls_p_is_the_exact_one_of_scipy() -> None:
    published, ours = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 3.0, 5.0, 4.0, 6.0]
    found = order_block(block(published, ours))
    assert found.kendall_p == pytest.approx(stats.kendalltau(published, ours, method="exact").pvalue)


@pytest.mark.parametrize(
    ("published", "ours", "remark"),
    [
        ([1.0, 2.0], [1.0, 2.0], "fewer than 3 methods"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], "all published figures are equal"),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], "all figures of the run are equal"),
    ],
)
def test_no_coefficient_where_it_would_mean_nothing(published: list[float], ours: list[float], remark: str) -> None:
    found = order_block(block(published, ours))
    assert (found.spearman, found.spearman_p, found.kendall, found.kendall_p) == (None,) * 4
    assert found.remark == remark


def test_four_methods_have_a_coefficient_and_no_p() -> None:
    found = order_block(block([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]))
    assert (found.spearman, found.kendall) == (pytest.approx(-1), pytest.approx(-1))
    assert (found.spearman_p, found.kendall_p) == (None, None)
    assert found.remark == "fewer than 5 methods: no p"


def test_the_order_keeps_ties_together() -> None:
    found = order_block(block([30.0, 10.0, 30.0], [1.0, 3.0, 2.0]))
    assert found.order(ours=False) == [("m0", "m2"), ("m1",)]
    assert found.order(ours=True) == [("m1",), ("m2",), ("m0",)]
    assert found.best(ours=False) == ("m0", "m2")


def test_beating_a_baseline_is_counted_by_sign() -> None:
    pairs = [
        make_pair("none", 30.0, 20.0),
        make_pair("original", 25.0, 21.0),  # loses in the paper, wins in the run
        make_pair("fdd-1d", 50.0, 40.0),  # wins in both
        make_pair("fdd-2d", 10.0, 5.0),  # loses in both
        make_pair("fdd-3d", 40.0, 20.0),  # wins, and is equal in the run
        make_pair("spatial", 30.0, 25.0),  # is equal in the paper
    ]
    found = versus([pairs], "none")
    assert (found.agreeing, found.decided, found.tied) == (2, 3, 2)
    # Without the baseline nothing is compared.
    found = versus([pairs[1:]], "none")
    assert (found.agreeing, found.decided, found.tied) == (0, 0, 0)


def test_a_plot_decides_nothing_within_its_reading_error() -> None:
    near = [make_pair("none", 30.0, 30.0, error=1.0), make_pair("sap", 32.0, 29.0, error=1.0)]
    assert (versus([near], "none").decided, versus([near], "none").tied) == (0, 1)
    far = [near[0], make_pair("sap", 32.5, 29.0, error=1.0)]
    found = versus([far], "none")
    assert (found.agreeing, found.decided) == (0, 1)


def test_the_summary_counts_each_measurement_once() -> None:
    table = [make_pair("none", 30.0, 29.0), make_pair("original", 20.0, 23.0), make_pair("fdd-1d", 50.0, 46.0)]
    plot = [
        make_pair("none", 30.5, 29.0, place="figure7", error=1.0),
        make_pair("sap", 40.0, 42.0, place="figure7", error=1.0),
        make_pair("none", 10.0, 11.0, place="figure7", eps=0.06, error=1.0),
    ]
    pairs = [*table, *plot]
    assert distinct(pairs) == [*table, *plot[1:]]
    first, second, everything = summarise([order_block(table), order_block(plot[:2]), order_block(plot[2:])])
    assert (first.place, first.n_cells, first.n_close) == ("table3", 3, 1)
    # −1, +3 and −4
    assert (first.median, first.mean_absolute) == (pytest.approx(-1), pytest.approx(8 / 3))
    assert (first.spearman, first.n_ordered, first.n_same_best) == (pytest.approx(1), 1, 1)
    # −1.5, +2 and +1; exactly 2 points are close
    assert (second.place, second.n_cells, second.n_close) == ("figure7", 3, 3)
    assert (second.spearman, second.n_ordered) == (None, 0)
    # −1, +3, −4, +2 and +1; SAP of the plot is held against "none" of the table
    assert (everything.place, everything.n_cells, everything.n_close) == (None, 5, 3)
    assert (everything.median, everything.mean_absolute) == (pytest.approx(1), pytest.approx(11 / 5))
    assert [(v.baseline, v.agreeing, v.decided, v.tied) for v in everything.versus] == [
        ("none", 3, 3, 0),
        ("original", 3, 3, 0),
    ]


def test_the_table_puts_run_paper_and_difference_below_each_other(comparison: Comparison) -> None:
    place = next(place for place in comparison.places if place.name == "table3")
    grid = figures_table(comparison, place)
    assert grid.headers == ("Attack", "ε", "", "Non-dropout", "Original", "Spatial", "FDD-1D", "FDD-2D", "FDD-3D")
    assert grid.rows[:3] == (
        ("FGSM", "0.03", "run", "41.0 ± 1.4", "30.5 ± 0.7", "–", "55.0 ± 0.1", "–", "–"),
        ("", "", "paper", "36.35", "31.43", "38.10", "54.92", "47.39", "50.87"),
        ("", "", "difference", "+4.7", "−0.9", "–", "0.0", "–", "–"),
    )
    assert {mark for mark in grid.marks if mark[0] < 3} == {(2, 4), (2, 6)}
    assert "known to within" in grid.caption


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1.25, 2, "+1.25"), (-1.25, 1, "−1.3"), (-0.04, 1, "0.0"), (0.0, 0, "0"), (12.6, 0, "+13")],
)
def test_differences_have_a_sign_and_zero_has_none(value: float, decimals: int, text: str) -> None:
    assert signed(value, decimals) == text


def test_what_differs_is_told_from_what_the_paper_leaves_open(comparison: Comparison) -> None:
    found = {item.key: (item.paper, item.ours, item.kind) for item in comparison.setup}
    assert found["study.model.width"] == ("64 (512 features)", "8", "differs")
    assert found["study.recipe.batch_size"] == ("64", "128", "differs")
    assert found["records.n_images"] == ("10,000", "1,000", "differs")
    assert found["study.recipe.epochs"] == ("not stated", "3", "open")
    assert found["study.seeds"] == ("several for Table 2, number not stated", "0, 1", "open")
    assert found["methods.original"] == ("not stated", "p = 0.5, rescale = inverted", "open")
    assert "study.normalization" not in found  # as stated
    assert "dataset.n_train" not in found
    assert "dataset.name" not in found
    kinds = [item.kind for item in comparison.setup]
    assert kinds == sorted(kinds)  # what differs comes first


MINI = {"name": "fashion-mnist-mini", "title": "Fashion-MNIST (subset)", "n_train": 2000, "n_test": 1000}


def mini(**changes: Any) -> FakeRun:
    return fashion(manifest={"dataset": MINI}, **changes)


@pytest.mark.usefixtures("_no_pictures")
def test_another_data_set_is_compared_only_when_asked_for_and_then_says_so(tmp_path: Path) -> None:
    path = mini().write(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        compare_runs(path)
    for part in (str(path), "'fashion-mnist-mini'", "fashion-mnist, cifar10, cifar100, svhn", "--as NAME"):
        assert part in str(caught.value)
    (found,) = compare_runs(path, as_dataset="fashion-mnist")
    assert found.stand_in
    assert pair_of(found, "table3", "none", "fgsm", "linf", 0.03).difference == pytest.approx(4.65)
    assert ("dataset.name", "fashion-mnist", "fashion-mnist-mini") in [(i.key, i.paper, i.ours) for i in found.setup]
    folder = write_comparison(path, as_dataset="fashion-mnist")
    for name in ("compare.md", "compare.tex", "ordering.md", "summary.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count("Not the same data: Fashion-MNIST (subset) (run) beside fashion-mnist (paper)") >= 1, name
    assert "This is not a reproduction" in (folder / "compare.md").read_text(encoding="utf-8")
    assert set(pd.read_csv(folder / "compare.csv").run_dataset) == {"Fashion-MNIST (subset)"}


@pytest.mark.parametrize(
    ("run", "as_dataset", "says"),
    [
        (mini(), "mnist", "--as mnist: no published figures for this data set; allowed: fashion-mnist, cifar10, "),
        (fashion(), "cifar100", r"--as cifar100: .*the runs' own data \(fashion-mnist\); leave it out"),
    ],
)
def test_the_data_set_to_stand_in_must_make_sense(run: FakeRun, as_dataset: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        write_comparison(run.write(tmp_path / "run"), as_dataset=as_dataset)
    assert not (tmp_path / "run" / "report").exists()


def test_a_run_without_records_has_nothing_to_compare(tmp_path: Path) -> None:
    run = fashion(counts=lambda key: None, models=False)
    with pytest.raises(RunDirectoryError, match=f"{tmp_path}: there are no records yet"):
        compare_runs(run.write(tmp_path))


def test_a_run_without_a_figure_of_the_paper_is_refused_with_the_reasons(tmp_path: Path) -> None:
    run = fashion(methods=[("jump", "Jump")], dropouts={"jump": "jumpout"})
    with pytest.raises(RunDirectoryError, match=r"none of the 115 published figures .* this method not at all"):
        compare_runs(run.write(tmp_path))


def test_training_alone_is_compared_with_table_2(tmp_path: Path) -> None:
    found = compared(fashion(counts=lambda key: None), tmp_path)
    assert {pair.published.place for pair in found.pairs} == {"table2"}
    folder = write_comparison(tmp_path)
    assert (folder / "differences.png").stat().st_size > 1000


def test_runs_on_one_data_set_are_compared_as_one(tmp_path: Path, comparison: Comparison) -> None:
    parts = [fashion(seeds=(seed,), first_unit=100 * seed).write(tmp_path / f"seed-{seed}") for seed in (0, 1)]
    (found,) = compare_runs(parts)
    assert [(pair.published, pair.mean, pair.ours) for pair in found.pairs] == [
        (pair.published, pair.mean, pair.ours) for pair in comparison.pairs
    ]


@pytest.mark.usefixtures("_no_pictures")
def test_runs_on_two_data_sets_are_compared_apart(tmp_path: Path, run_dir: Path) -> None:
    svhn = {"name": "svhn", "title": "SVHN", "n_train": 73_257, "n_test": 26_032}
    other = fashion(manifest={"dataset": svhn}).write(tmp_path / "svhn")
    folder = write_comparison([run_dir, other], out=tmp_path / "out")
    assert folder == tmp_path / "out"
    tables = {name: pd.read_csv(folder / f"{name}-compare.csv") for name in ("fashion-mnist", "svhn")}
    assert {name: set(table.dataset) for name, table in tables.items()} == {name: {name} for name in tables}
    assert set(tables["svhn"].table) == {"table2"}
    assert r"\label{tab:svhn-compare-table2}" in (folder / "svhn-compare.tex").read_text(encoding="utf-8")


def test_no_run_directory_at_all() -> None:
    with pytest.raises(ConfigurationError, match="at least one run directory"):
        write_comparison([])


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command_prints_the_tables_and_writes_every_file(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    result = invoke("compare", copy)
    assert result.exit_code == 0, result.output
    folder = copy / "report" / "compare"
    for part in ("Table 3 of the paper and this run", "+4.7", "This run and the paper in short", "Same"):
        assert part in result.output, result.output
    for extension in ("csv", "md", "tex", "png", "pdf"):
        assert f"comparison: {folder / f'compare.{extension}'}" in result.output
    expected = {
        *(f"compare.{extension}" for extension in ("csv", "md", "tex", "png", "pdf")),
        *(f"{name}.{extension}" for name in ("ordering", "summary", "setup") for extension in ("csv", "md", "tex")),
        *("differences.png", "differences.pdf", "not-run.csv"),
    }
    assert {path.name for path in folder.iterdir()} == expected

    with (folder / "compare.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    (row,) = (r for r in rows if (r["table"], r["method"], r["attack"]) == ("table3", "none", "fgsm"))
    assert (row["published_percent"], row["run_percent"], row["difference_points"]) == ("36.35", "41.0", "4.65")
    assert (row["eps_normalized"], row["n_seeds"], row["n_images"]) == ("0.03", "2", "1000")
    not_run = pd.read_csv(folder / "not-run.csv")
    assert len(not_run) + len(rows) == len(load().cells_of("fashion-mnist"))
    assert not_run.reason.notna().all()
    ordering = pd.read_csv(folder / "ordering.csv")
    (at,) = ordering[(ordering.table == "table3") & (ordering.attack == "fgsm")].itertuples()
    assert (at.published_order, at.run_order) == ("fdd-1d > none > original",) * 2
    assert at.spearman == pytest.approx(1)

    page = (folder / "compare.md").read_text(encoding="utf-8")
    for part in ("doi:10.1609/aaai.v34i07.6782", "What differs", "Order of the methods", "has nothing for", "–"):
        assert part in page

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert invoke("compare", copy).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_refuses_on_one_screen(tmp_path: Path) -> None:
    cases: list[tuple[list[str | Path], str]] = [
        ([mini().write(tmp_path / "mini")], "only for: fashion-mnist, cifar10, cifar100, svhn"),
        ([tmp_path / "nowhere"], "no run directory"),
        ([fashion(counts=lambda key: None, models=False).write(tmp_path / "empty")], "there are no records yet"),
    ]
    for arguments, says in cases:
        result = invoke("compare", *arguments)
        assert result.exit_code == 2, result.output
        assert says in result.output
        assert "Traceback" not in result.output
        assert len(result.output.splitlines()) < 25


def test_figure_7_holds_the_runs_curves_and_the_published_ones(run_dir: Path) -> None:
    (artefact,) = figure7.build(sort_results(load_run(run_dir)))
    frame = artefact.frame
    paper = frame[frame.source == "paper"]
    cells = load().cells_of("fashion-mnist", "figure7")
    assert set(zip(paper.norm, paper.method, paper.eps_normalized, paper.accuracy_percent, strict=True)) == {
        (cell.norm, cell.method, cell.eps_normalized, cell.accuracy_percent) for cell in cells
    }
    run = frame[(frame.source == "run") & (frame.method == "none") & (frame.norm == "linf")]
    assert list(run.eps_normalized) == [0, 0.01, 0.03]
    assert list(run.accuracy_percent) == pytest.approx([70, 50, 41])
    assert set(artefact.figure or ()) == {"png", "pdf"}
    assert "this run has no such method: Guided, SAP" in artefact.caption


def test_figure_7_draws_the_published_curves_faint_and_on_the_same_axis(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("robustfdd.report.figures.render", lambda figure: drawn.append(figure) or {})
    figure7.build(sort_results(load_run(run_dir)))
    linf, l2 = drawn[0].axes
    for axes, n_published, n_own in ((linf, 8, 3), (l2, 5, 2)):
        faint = [line for line in axes.lines if line.get_alpha() is not None]
        own = [line for line in axes.lines if line.get_alpha() is None]
        bold, worst = own[::2], own[1::2]
        assert [len(line.get_xdata()) for line in faint] == [n_published] * 3
        assert [line.get_color() for line in worst] == [line.get_color() for line in bold]
        assert all(line.get_marker() in ("", "None") for line in worst)
        for line, below in zip(bold, worst, strict=True):
            assert (line.get_ydata() >= np.asarray(below.get_ydata())).all()
        assert [len(line.get_xdata()) for line in bold] == [n_own] * 3
        assert [line.get_color() for line in faint] == [line.get_color() for line in bold]
        assert all(line.get_marker() in ("", "None") for line in faint)
    none, own = (next(line for line in linf.lines if (line.get_alpha() is None) == bold) for bold in (False, True))
    # 0.03 is the fifth radius of the paper and the second of the run: one place on the axis, two figures.
    assert none.get_xdata()[4] == own.get_xdata()[2]
    assert (none.get_ydata()[4], own.get_ydata()[2]) == (36.5, pytest.approx(41))
    assert all(np.diff(none.get_xdata()) > 0)


@pytest.mark.parametrize(
    "run",
    [
        mini(),
        fashion(study={"dataset": "fashion-mnist", "normalization": "z-score"}),
        fashion(attacks={"bim": "BIM"}),
        fashion(counts=lambda key: None),
        replace(fashion(), manifest={"dataset": {"name": "svhn", "title": "SVHN"}}),
    ],
    ids=["no published data", "other normalisation", "no FGSM", "no records", "no plot"],
)
def test_figure_7_is_left_out_where_there_is_nothing_to_set_beside(run: FakeRun, tmp_path: Path) -> None:
    assert figure7.build(sort_results(load_run(run.write(tmp_path)))) == []
