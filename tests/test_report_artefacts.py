"""The tables and figures that stand by themselves: what is in them, what is marked, and when there are none."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import FakeRun, Key
from scipy.stats import ttest_ind

from robustfdd.paper import published
from robustfdd.paper.exhibits import figure5, table1, table2, table3
from robustfdd.records import load_run, write_json
from robustfdd.report import write_report
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.exhibits import all_exhibits, random_forward
from robustfdd.report.latex import to_latex
from robustfdd.report.results import sort_results


def survives(key: Key) -> tuple[int, int, int]:
    return (100, 900, 0) if key.step == 0 else (100, 900 - 100 * key.step, 100 * key.step)


def build(module: ModuleType, run: FakeRun, path: Path) -> Exhibit | None:
    found = module.build(sort_results(load_run(run.write(path))))
    assert len(found) < 2
    return found[0] if found else None


def clean_run(percent: Mapping[str, Sequence[float | None]], **changes: Any) -> FakeRun:
    """A run of methods with these clean accuracies, one for each seed."""
    return FakeRun(
        survives,
        methods=[(label, label.upper()) for label in percent],
        seeds=range(max(map(len, percent.values()))),
        eps={"linf": [0.5]},
        clean_accuracy=lambda method, seed: None if (value := percent[method][seed]) is None else value / 100,
        epochs=1,
        **changes,
    )


# Of three seeds each; "much" is far above "original", "worse" far below, "hardly" above it by less than the noise.
PERCENT = {
    "original": [94.0, 94.2, 94.1],
    "none": [94.1, 94.3, 94.0],
    "worse": [90.0, 90.2, 90.1],
    "much": [95.0, 95.2, 95.1],
    "hardly": [94.2, 94.4, 94.0],
}


def cells(artefact: Exhibit | None, column: str) -> list[str]:
    assert artefact is not None
    position = artefact.headers.index(column)
    return [row[position] for row in artefact.rows]


def test_table_2_marks_what_is_better_and_significant_and_nothing_else(tmp_path: Path) -> None:
    found = build(table2, clean_run(PERCENT), tmp_path)
    assert cells(found, "Clean accuracy") == [
        *("94.10 ± 0.10", "94.13 ± 0.15", "90.10 ± 0.10", "95.10 ± 0.10†", "94.20 ± 0.20"),
    ]
    assert cells(found, "Difference") == ["–", "+0.03", "−4.00", "+1.00", "+0.10"]
    assert found is not None
    assert found.marks == {(3, 1)}
    assert found.frame["significantly_better"].tolist() == [False, False, False, True, False]
    # "worse" differs as significantly as "much" does.
    p = found.frame.set_index("method")["p_student"]
    assert p["worse"] < p["much"] < 0.05 < p["hardly"]
    for label in ("none", "worse", "much", "hardly"):
        assert p[label] == pytest.approx(ttest_ind(PERCENT[label], PERCENT["original"]).pvalue, rel=1e-6)
    # Four tests: "worse" has the smallest p-value, "much" the next.
    adjusted = found.frame.set_index("method")["p_student_holm"]
    assert adjusted["worse"] == pytest.approx(4 * p["worse"])
    assert adjusted["much"] == pytest.approx(3 * p["much"])
    assert pd.isna(adjusted["original"])
    assert cells(found, "p (Student)")[3] == "<0.001"
    assert cells(found, "p (Student)")[0] == "–"
    for words in (
        "all 10,000 test images",
        "† Significantly better than ORIGINAL at the 0.05 level, by a two-sided Student's t-test",
        "each of the 4 comparisons by itself",
        "over seeds 0, 1, 2",
        "±1.0 points at worst (binomial",
        "Bold: the best.",
    ):
        assert words in found.caption
    assert r"95.10 $\pm$ 0.10$^\dagger$" in to_latex(found, label="x")


def test_table_2_gives_intervals(tmp_path: Path) -> None:
    found = build(table2, clean_run(PERCENT), tmp_path)
    assert found is not None
    row = found.frame.set_index("method").loc["much"]
    expected = ttest_ind(PERCENT["much"], PERCENT["original"], equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (row["difference_ci_low"], row["difference_ci_high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_welch"] == pytest.approx(expected.pvalue)
    assert cells(found, "CI of difference")[3] == f"±{(interval.high - interval.low) / 2:.2f}"
    # t(2, 0.975) = 4.30265, times 0.1 / sqrt(3)
    assert cells(found, "95 % CI")[3] == "±0.25"
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((95.1 - 0.248414, 95.1 + 0.248414), abs=1e-5)
    assert row["std"] == pytest.approx(statistics.stdev(PERCENT["much"]))


def test_with_one_seed_nothing_is_marked_and_the_caption_says_why(tmp_path: Path) -> None:
    found = build(table2, clean_run({"original": [94.0], "much": [99.0]}), tmp_path)
    assert found is not None
    assert found.headers == ("Method", "Clean accuracy", "Seeds", "Difference")
    assert found.rows == (("ORIGINAL", "94.00", "1", "–"), ("MUCH", "99.00", "1", "+5.00"))
    assert found.marks == {(1, 1)}
    assert "†" not in found.caption
    assert (
        "No method is marked as significantly better: a test needs at least two values on each side." in found.caption
    )
    assert "±" not in found.caption.partition("Apart from")[0]


def test_equal_figures_of_all_seeds_are_no_test(tmp_path: Path) -> None:
    found = build(table2, clean_run({"original": [94.0, 94.0], "much": [99.0, 99.0]}), tmp_path)
    assert cells(found, "Clean accuracy") == ["94.00 ± 0.00", "99.00 ± 0.00"]
    assert found is not None
    assert "neither side varies" in found.caption


def test_without_original_dropout_the_caption_says_so(tmp_path: Path) -> None:
    found = build(table2, clean_run({"none": [94.0, 94.1], "much": [99.0, 99.1]}), tmp_path)
    assert found is not None
    assert found.headers == ("Method", "Clean accuracy", "Seeds", "95 % CI")
    assert "There is no original dropout in this study, so nothing is tested against it." in found.caption


def test_two_seeds_and_a_missing_one(tmp_path: Path) -> None:
    percent = {"original": [94.0, 94.1], "half": [99.0, None], "none": [None, None], "much": [95.0, 95.1]}
    found = build(table2, clean_run(percent), tmp_path)
    assert cells(found, "Seeds") == ["2", "1 of 2", "0 of 2", "2"]
    assert cells(found, "Clean accuracy") == ["94.05 ± 0.07", "99.00", "–", "95.05 ± 0.07†"]
    assert cells(found, "p (Student)")[:3] == ["–"] * 3
    assert found is not None
    assert "With 2 runs of a method" in found.caption
    assert "Not tested: HALF (a test needs at least two values on each side)." in found.caption
    assert found.frame["no_test_because"].tolist()[1] == "a test needs at least two values on each side"


def test_one_network_under_two_names_is_not_tested_against_itself(tmp_path: Path) -> None:
    percent = {"original": [94.0, 94.1], "spatial": [94.0, 94.1], "much": [95.0, 95.1]}
    run = clean_run(percent, weights={"original": "same", "spatial": "same", "much": "other"})
    found = build(table2, run, tmp_path)
    assert found is not None
    assert "Not tested: SPATIAL (the same network)." in found.caption
    row = found.frame.set_index("method").loc["spatial"]
    assert row.isna()["p_student"]
    # A single test is left, so that nothing is adjusted for their number.
    assert found.frame["p_student_holm"].dropna().tolist() == found.frame["p_student"].dropna().tolist()
    assert len(found.frame["p_student"].dropna()) == 1


def test_original_dropout_is_known_by_its_dropout(tmp_path: Path) -> None:
    run = clean_run({"much": [95.0, 95.1], "baseline": [94.0, 94.1]}, dropouts={"baseline": "original"})
    found = build(table2, run, tmp_path)
    assert cells(found, "Difference") == ["+1.00", "–"]
    assert found is not None
    assert "better than BASELINE" in found.caption
    # One test needs no adjustment.
    assert found.headers[-2:] == ("p (Student)", "p (Welch)")
    assert "Holm" not in found.caption


def test_original_dropout_that_was_not_trained(tmp_path: Path) -> None:
    found = build(table2, clean_run({"original": [None, None], "much": [95.0, 95.1]}), tmp_path)
    assert found is not None
    assert "ORIGINAL has no training record" in found.caption


def test_models_outside_the_plan_are_left_out(tmp_path: Path) -> None:
    run = clean_run({"original": [94.0, 94.1]})
    path = run.write(tmp_path)
    write_json(path / "models" / "stray.json", {"method": "original", "seed": 9, "clean_accuracy": 0.1})
    (found,) = table2.build(sort_results(load_run(path)))
    assert found.frame["mean"].tolist() == [pytest.approx(94.05)]


def test_no_training_records_no_table_2(tmp_path: Path) -> None:
    assert build(table2, FakeRun(survives, models=False), tmp_path) is None


VARIANT = {
    "title": "The title",
    "strategy": "feature density",
    "adaptive": True,
    "dynamic": False,
    "hyperparameters": "kappa and alpha",
    "cost": "a projection",
    "source": "Somebody & Else 2020, 1000 Units, Journal 12",
    "summary": "drops.",
    "site": "maps",
}


def test_table_1_has_a_row_for_each_dropout(tmp_path: Path) -> None:
    labels = ["none", "fdd-2d", "fdd-2d-positive", "theirs", "old"]
    run = FakeRun(
        survives,
        methods=[(label, label.upper()) for label in labels],
        dropouts={"fdd-2d-positive": "fdd-2d"},
        placements={"fdd-2d-positive": "stages"},
        options={"fdd-2d-positive": {"kappa": 0.8}},
        variants={"fdd-2d": VARIANT, "fdd-2d-positive": VARIANT, "none": {**VARIANT, "strategy": ""}},
    )
    found = build(table1, run, tmp_path)
    assert found is not None
    assert found.rows == (
        (
            "The title: fdd-2d, fdd-2d-positive",
            "feature density",
            "yes",
            "no",
            "kappa and alpha",
            "a projection",
            "last feature maps; maps after each stage",
            "Somebody & Else 2020",
        ),
    )
    assert found.frame["method"].tolist() == ["fdd-2d", "fdd-2d-positive"]
    assert found.frame["placement"].tolist() == ["last", "stages"]


def test_older_runs_have_no_table_1(tmp_path: Path) -> None:
    assert build(table1, FakeRun(survives), tmp_path) is None


def paper_run(attack: str, norm: str, eps: Sequence[float], dataset: str) -> FakeRun:
    data = {"name": dataset, "title": "Data", "sha256": "ab" * 32}
    study = {"dataset": dataset, "normalization": "zero-one"}
    return FakeRun(survives, attacks={attack: "A"}, eps={norm: eps}, manifest={"dataset": data}, study=study)


def test_table_3_has_the_published_radii_of_a_study_with_more(tmp_path: Path) -> None:
    paper = published.load()
    dataset = "fashion-mnist"
    cells = [cell for cell in paper.cells_of(dataset, "table3") if cell.attack == "fgsm"]
    radii = sorted({cell.eps_normalized for cell in cells})
    assert radii
    more = [*radii, 2 * max(radii)]
    found = build(table3, paper_run("fgsm", "linf", more, dataset), tmp_path / "more")
    assert found is not None
    assert found.frame["attack"].tolist() == ["clean", *["fgsm"] * len(radii), *["worst-case"] * len(radii)]
    assert found.frame["eps_normalized"].tolist() == [0, *radii, *radii]
    falling = [90.0 - 10 * (i + 1) for i in range(len(radii))]
    assert found.frame["none"].tolist() == [90.0, *falling, *falling]
    assert "Attacks, radii and layout: Table 3 of Ke et al. (2020)." in found.caption
    # The main table is that table already, or has none of its rows, or measures other balls.
    assert build(table3, paper_run("fgsm", "linf", radii, dataset), tmp_path / "same") is None
    assert build(table3, paper_run("fgsm", "linf", [max(more) * 3], dataset), tmp_path / "none") is None
    assert build(table3, paper_run("fgsm", "l2", more, dataset), tmp_path / "norm") is None
    assert build(table3, paper_run("fgsm", "linf", more, "toy"), tmp_path / "data") is None
    other = replace(paper_run("fgsm", "linf", more, dataset), study={"normalization": "z-score"})
    assert build(table3, other, tmp_path / "balls") is None


KAPPAS = {"fdd-1d": {"kappa": -0.8}, "fdd-1d-positive": {"kappa": 0.8, "alpha": 0.1}}


def test_figure_5_holds_both_signs_side_by_side(tmp_path: Path) -> None:
    percent = {
        "none": [94.0, 94.2],
        "sap": [1.0, 2.0],
        "original": [93.0, 93.4],
        "fdd-1d": [95.0, 95.2],
        "fdd-1d-positive": [94.5, 94.1],
    }
    found = build(figure5, clean_run(percent, options=KAPPAS), tmp_path)
    assert found is not None
    frame = found.frame.set_index("method")
    assert list(frame.index) == ["none", "original", "fdd-1d", "fdd-1d-positive"]
    assert frame["correlation"].tolist() == ["none", "none", "negative", "positive"]
    assert frame["mean"].tolist() == pytest.approx([94.1, 93.2, 95.1, 94.3])
    assert frame["std"].tolist() == pytest.approx([np.std(percent[label], ddof=1) for label in frame.index])
    assert "The vertical axis does not start at 0." in found.caption
    assert "sample standard deviation over seeds 0, 1; dots: single training runs." in found.caption
    assert found.figure is not None
    assert found.figure["png"].startswith(b"\x89PNG")
    assert found.figure["pdf"].startswith(b"%PDF")


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_sign_alone_makes_no_figure_5(tmp_path: Path, sign: int) -> None:
    run = clean_run({"original": [94.0], "fdd-1d": [95.0]}, options={"fdd-1d": {"kappa": 0.8 * sign}})
    assert build(figure5, run, tmp_path) is None


def test_figure_5_waits_for_both_to_be_trained(tmp_path: Path) -> None:
    run = clean_run({"fdd-1d": [95.0], "fdd-1d-positive": [None]}, options=KAPPAS)
    assert build(figure5, run, tmp_path) is None


def test_repeated_predictions_are_shown_with_their_spread(tmp_path: Path) -> None:
    def repeated(key: Key) -> list[float]:
        if key.method != "sap":
            return []
        return [0.5, 0.6, 0.7] if key.seed == 0 else [0.4, 0.4, 0.7]

    run = FakeRun(
        survives,
        methods=[("none", "None"), ("sap", "SAP")],
        eps={"linf": [1.0]},
        seeds=(0, 1),
        eot_samples={"sap": 8},
        repeated=repeated,
    )
    found = build(random_forward, run, tmp_path)
    assert found is not None
    # Means over the two seeds of: mean 60 and 50, deviation 10 and sqrt(300), smallest 50 and 40, largest 70 and 70.
    spread = f"{(10 + 300**0.5) / 2:.2f}"
    assert found.rows == (
        ("Clean", "–", "SAP", "0", "0", "8", "3", "90.00", "55.00", spread, "45.00", "70.00"),
        ("FGSM", "L∞", "SAP", "1", "0.25", "8", "3", "80.00", "55.00", spread, "45.00", "70.00"),
    )
    assert found.frame[["seed", "eps_pixel", "mean", "min"]].to_dict("list") == {
        "seed": [0, 1, 0, 1],
        "eps_pixel": [0.0, 0.0, 0.25, 0.25],
        "mean": pytest.approx([60.0, 50.0, 60.0, 50.0]),
        "min": pytest.approx([50.0, 40.0, 50.0, 40.0]),
    }
    assert "each figure the mean over them" in found.caption


def test_one_prediction_has_no_spread(tmp_path: Path) -> None:
    run = FakeRun(
        survives, methods=[("sap", "SAP")], eps={"linf": [1.0]}, eot_samples={"sap": 2}, repeated=lambda key: [0.5]
    )
    assert cells(build(random_forward, run, tmp_path), "Std") == ["–", "–"]


def test_deterministic_methods_have_no_repeated_predictions(tmp_path: Path) -> None:
    assert build(random_forward, FakeRun(survives), tmp_path) is None


def test_artefacts_reach_the_page_and_the_files(tmp_path: Path) -> None:
    percent = {"original": [94.0, 94.2], "fdd-1d": [95.0, 95.2], "fdd-1d-positive": [94.5, 94.1]}
    run = clean_run(percent, options=KAPPAS)
    index = write_report(run.write(tmp_path))
    names = ["table2-clean-accuracy", "figure5-sign-of-correlation"]
    found = [artefact.name for artefact in all_exhibits(sort_results(load_run(tmp_path)))]
    assert [name for name in found if name in names] == names
    text = index.read_text(encoding="utf-8")
    places = [text.index(f'id="exhibit-{name}"') for name in names]
    assert places == sorted(places)
    report = tmp_path / "report"
    assert {path.name for path in report.rglob("table2*")} == {f"{names[0]}.{kind}" for kind in ("csv", "md", "tex")}
    assert {path.name for path in report.rglob("figure5*")} == {f"{names[1]}.{kind}" for kind in ("csv", "png", "pdf")}
    assert r"\label{tab:table2-clean-accuracy}" in (report / "tables" / f"{names[0]}.tex").read_text(encoding="ascii")
