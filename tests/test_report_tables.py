"""The figures of the report's tables, held against ones worked out by hand or by another library."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import FakeRun, Key
from rich.console import Console
from scipy.stats import norm as gaussian

from robustfdd.errors import RunDirectoryError
from robustfdd.records import Failure, load_run
from robustfdd.report import disagreements, main_table_text, run_notes
from robustfdd.report.agreement import compare_engines, summary_table
from robustfdd.report.curves import panels
from robustfdd.report.results import Results, sort_results
from robustfdd.report.style import style
from robustfdd.report.tables import best, half_width, main_rows, main_tables, shown_decimals
from robustfdd.report.training import clean_entry, training_table

THOUSAND = {
    ("none", 0): (100, 900, 0),
    ("none", 1): (100, 363, 537),
    ("none", 2): (100, 20, 880),
    ("fdd-2d", 0): (80, 920, 0),
    ("fdd-2d", 1): (80, 549, 371),
    ("fdd-2d", 2): (80, 284, 636),
}


def plain(key: Key) -> tuple[int, int, int]:
    return THOUSAND[key.method, key.step]


def results_of(run: FakeRun, path: Path) -> Results:
    return sort_results(load_run(run.write(path)))


def texts(results: Results, metric: str = "robust_accuracy", table: int = 0) -> list[tuple[str, ...]]:
    """The rows of a table above those of the worst case."""
    assert metric in ("robust_accuracy", "survival_rate")
    rows = list(main_tables(results, metric)[table].rows)  # type: ignore[arg-type]
    return rows[: [row[0] for row in rows].index("Worst case")]


def test_robust_accuracy_is_over_all_images_and_survival_over_those_attacked(tmp_path: Path) -> None:
    results = results_of(FakeRun(plain), tmp_path)
    assert texts(results) == [
        ("Clean", "0", "0", "90.0", "92.0"),
        ("FGSM", "0.5", "0.125", "36.3", "54.9"),
        ("", "1", "0.25", "2.0", "28.4"),
    ]
    # 363 / 900, 549 / 920, 20 / 900, 284 / 920
    assert texts(results, "survival_rate") == [
        ("FGSM", "0.5", "0.125", "40.3", "59.7"),
        ("", "1", "0.25", "2.2", "30.9"),
    ]
    frame = main_tables(results)[0].frame
    assert frame.to_dict("list") == {
        "attack": ["clean", "fgsm", "fgsm", "worst-case", "worst-case"],
        "norm": ["linf"] * 5,
        "eps_normalized": [0.0, 0.5, 1.0, 0.5, 1.0],
        "eps_pixel": [0.0, 0.125, 0.25, 0.125, 0.25],
        "none": [90.0, 36.3, 2.0, 36.3, 2.0],
        "fdd-2d": [92.0, 54.9, 28.4, 54.9, 28.4],
    }


def test_caption_says_what_a_reader_needs(tmp_path: Path) -> None:
    robust, survival = (
        main_tables(results_of(FakeRun(plain), tmp_path / metric), metric)[0].caption
        for metric in ("robust_accuracy", "survival_rate")
    )
    for word in ("Toy images", "1,000 test images, all of them", "foolbox", "protocol paper", "seed 0", "±3.1 points"):
        assert word in robust
    assert "900 to 920 of 1,000 test images" in survival


def test_studies_in_pixel_units_show_both_their_own_first(tmp_path: Path) -> None:
    """The scale of the toy data set is 1/4."""
    run = FakeRun(plain, eps_unit="pixel", eps={"l2": [0.5, 1.0]})
    rows = texts(results_of(run, tmp_path))
    assert [row[1:3] for row in rows] == [("0", "0"), ("0.5", "2"), ("1", "4")]
    panel, _ = panels(sort_results(load_run(tmp_path)))
    assert panel.axis.units == ("pixel", "normalised")
    assert panel.axis.labels == (("0", "0.5", "1"), ("0", "2", "4"))
    assert [row[3:] for row in rows] == [("90.0", "92.0"), ("36.3", "54.9"), ("2.0", "28.4")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], [0, 1, 2]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [2, 3, 4]),
        ([5.0, 3.0, 3.0, 3.0, 1.0], [0, 1, 2, 3]),  # ties with the third are all marked
        ([5.0, 5.0, 5.0, 5.0, 1.0], [0, 1, 2, 3]),
        ([4.0, 4.0, 4.0, 4.0], []),  # all equal: nothing is best
        ([0.0, 0.0, 0.0, 0.0], []),
        ([3.0, 0.0, 0.0, 0.0], [0]),  # nothing left is nobody's best
        ([5.0, None, 3.0, 2.0, 1.0], [0, 2, 3]),
        ([None, None, 3.0, None], []),
        ([5.0, 4.0, 3.0], [0, 1]),  # of three, marking all would say nothing
        ([5.0, 4.0], [0]),
        ([5.0], []),
        ([5.04, 4.0, 3.01, 2.94, 1.0], [0, 1, 2]),
        ([5.04, 4.0, 3.01, 2.99, 1.0], [0, 1, 2, 3]),  # 3.0 and 3.0 to a reader
    ],
)
def test_marks(values: list[float | None], expected: list[int]) -> None:
    assert best(values, decimals=1) == expected


def test_marks_reach_the_table(tmp_path: Path) -> None:
    survivors = {"a": 50, "b": 40, "c": 30, "d": 30, "e": 10}
    run = FakeRun(
        lambda key: (0, 100, 0) if key.step == 0 else (0, survivors[key.method], 100 - survivors[key.method]),
        methods=[(name, name.upper()) for name in survivors],
        eps={"linf": [0.5]},
    )
    table = main_tables(results_of(run, tmp_path))[0]
    # None in the clean row, where all are equal; and in the worst case, the row after, as under the only attack.
    assert table.marks == {(row, column) for row in (1, 2) for column in range(3, 7)}


def test_seeds_give_mean_and_sample_standard_deviation(tmp_path: Path) -> None:
    survivors = {0: 363, 1: 401, 2: 377}
    run = FakeRun(
        lambda key: (100, 900, 0) if key.step == 0 else (100, survivors[key.seed], 900 - survivors[key.seed]),
        seeds=(0, 1, 2),
        methods=[("none", "None")],
        eps={"linf": [0.5]},
    )
    results = results_of(run, tmp_path)
    table = main_tables(results)[0]
    entry = main_rows(results, "robust_accuracy", "linf")[1].entries[0]
    percent = [value / 10 for value in survivors.values()]
    assert entry.mean == pytest.approx(np.mean(percent), abs=1e-12)
    assert entry.std == pytest.approx(statistics.stdev(percent), abs=1e-12)
    assert table.rows[1][3] == "38.0 ± 1.9"
    assert table.frame["none std"].tolist()[:2] == [0.0, round(statistics.stdev(percent), 4)]
    rate = main_rows(results, "survival_rate", "linf")[0].entries[0]
    assert rate.std == pytest.approx(np.std([value / 9 for value in survivors.values()], ddof=1), abs=1e-12)
    assert "mean ± sample standard deviation over seeds 0, 1, 2" in table.caption
    assert clean_entry(results, "none").text(2) == "90.10 ± 0.10"
    assert training_table(results).frame["seconds"].tolist() == [100.0, 101.0, 102.0]


def test_a_missing_seed_is_pointed_out(tmp_path: Path) -> None:
    run = FakeRun(lambda key: None if key.seed == 2 else plain(key), seeds=(0, 1, 2), eps={"linf": [0.5]})
    table = main_tables(results_of(run, tmp_path))[0]
    assert table.rows[1][3:] == ("36.3 ± 0.0‡", "54.9 ± 0.0‡")
    assert "‡ Some of the planned seeds are missing." in table.caption
    assert table.frame["none seeds"].tolist() == [2, 2, 2]


def test_a_gap_is_no_number(tmp_path: Path) -> None:
    gap = Key("fdd-2d", 0, "fgsm", "linf", "foolbox", 1)
    results = results_of(FakeRun(lambda key: None if key == gap else plain(key)), tmp_path)
    table = main_tables(results)[0]
    assert [row[4] for row in texts(results)] == ["92.0", "–", "28.4"]
    assert pd.isna(table.frame["fdd-2d"]).tolist()[:3] == [False, True, False]
    assert [entry.mean for entry in panels(results)[0].curves[1].entries] == pytest.approx([92.0, None, 28.4])
    assert [state.missing for state in results.unit_states()] == [0, 1]


def test_no_image_attacked_means_no_survival_rate(tmp_path: Path) -> None:
    run = FakeRun(lambda key: (50, 0, 0), methods=[("none", "None")], eps={"linf": [0.5]})
    results = results_of(run, tmp_path)
    assert texts(results)[1][3] == "0"
    assert texts(results, "survival_rate")[0][3] == "–"


def test_clean_accuracy_survives_the_failure_of_one_attack(tmp_path: Path) -> None:
    run = FakeRun(
        lambda key: None if (key.attack, key.norm) == ("fgsm", "linf") else plain(key),
        attacks={"fgsm": "FGSM", "pgd": "PGD"},
        eps={"linf": [0.5], "l2": [0.5]},
    )
    rows = texts(results_of(run, tmp_path))
    assert [row[3] for row in rows] == ["90.0", "–", "36.3"]


def test_tables_show_the_primary_engine_and_each_norm_its_own(tmp_path: Path) -> None:
    survivors = {("foolbox", "linf"): 400, ("foolbox", "l2"): 300, ("art", "linf"): 200, ("art", "l2"): 100}
    run = FakeRun(
        lambda key: (
            (0, 1000, 0)
            if key.step == 0
            else (0, survivors[key.engine, key.norm], 1000 - survivors[key.engine, key.norm])
        ),
        engines=("foolbox", "art"),
        eps={"linf": [0.5], "l2": [2.0]},
    )
    results = results_of(run, tmp_path)
    assert [texts(results, table=i)[1][3] for i in (0, 1)] == ["40.0", "30.0"]
    assert [table.name for table in main_tables(results)] == ["robust-accuracy-linf", "robust-accuracy-l2"]
    assert [panel.title for panel in panels(results)] == ["FGSM, L∞", "Worst case, L∞", "FGSM, L2", "Worst case, L2"]
    long = results.long_table()
    assert len(long) == 2 * 2 * 2 * 2
    assert sorted(set(long["robust_accuracy"])) == [0.1, 0.2, 0.3, 0.4, 1.0]


@pytest.mark.parametrize("n", [1, 99, 100, 1000, 10_000])
def test_half_width_is_wilsons(n: int) -> None:
    z, p = gaussian.ppf(0.975), (n // 2) / n
    expected = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert half_width(n) == pytest.approx(100 * expected, rel=1e-9)


def test_no_more_decimals_than_images_can_tell_apart() -> None:
    assert [shown_decimals(n) for n in (0, 1, 50, 100, 101, 1000, 1001, 10_000, 60_000)] == [0, 0, 0, 0, 1, 1, 2, 2, 2]


def engines_apart(broken_more: int, attack: str = "fgsm") -> FakeRun:
    """ART breaks some images more than Foolbox, and as many others that Foolbox breaks it leaves: 2 more differ."""

    def counts(key: Key) -> tuple[int, int, int] | list[int]:
        if key.step == 0:
            return (100, 900, 0)
        if key.engine == "foolbox":
            return [0] * 100 + [1] * 500 + [2] * 400
        return [0] * 100 + [1] * (500 - broken_more - 1) + [2] * (broken_more + 1) + [1] + [2] * 399

    return FakeRun(
        counts,
        engines=("foolbox", "art"),
        methods=[("none", "None")],
        eps={"linf": [0.5]},
        attacks={attack: attack.upper()},
        random_attacks=("pgd",),
    )


@pytest.mark.parametrize(("apart", "flagged"), [(4, False), (5, False), (6, True)])
def test_engines_are_flagged_above_half_a_point(tmp_path: Path, apart: int, flagged: bool) -> None:
    run = load_run(engines_apart(apart).write(tmp_path))
    results = sort_results(run)
    (agreement,) = compare_engines(results)
    assert agreement.engines == ("foolbox", "art")
    assert agreement.robust_accuracy == (Fraction(1, 2), Fraction(500 - apart, 1000))
    assert agreement.difference == Fraction(-apart, 10)
    assert agreement.n_images == 1000
    assert agreement.n_attacked == 900
    assert agreement.n_same == 900 - apart - 2
    assert agreement.same_outcome == Fraction(900 - apart - 2, 900)
    assert agreement.flagged is flagged
    assert len(disagreements(run)) == flagged
    titles = [note.title for note in run_notes(run)]
    assert ("foolbox and art disagree on FGSM, L∞" in titles) is flagged
    (row,) = summary_table([agreement]).rows
    assert row[4:9] == ("1,000", "1", f"{(898 - apart) / 9:.2f}", f"−0.{apart}0", f"−0.{apart}0")
    assert row[9] == ("DIFFERS (1)" if flagged else "0")


def test_the_message_for_the_command_line_names_the_cell(tmp_path: Path) -> None:
    (found,) = disagreements(load_run(engines_apart(6).write(tmp_path)))
    assert str(found) == (
        "FGSM, L∞, eps 0.5 normalised (0.125 pixel), None, seed 0: art differs from foolbox by −0.60 points of robust "
        "accuracy on 1,000 images"
    )


def test_random_attacks_are_compared_but_not_flagged(tmp_path: Path) -> None:
    run = load_run(engines_apart(60, attack="pgd").write(tmp_path))
    (agreement,) = compare_engines(sort_results(run))
    assert agreement.difference == -6.0
    assert disagreements(run) == []


def test_engines_are_compared_image_by_image_not_row_by_row(tmp_path: Path) -> None:
    """With every second image in one engine only, the comparison is over those that both have."""
    both = [1, 1, 2, 2, 1, 2, 0, 1]
    run = FakeRun(
        lambda key: both[:5] if key.engine == "art" else both,
        engines=("foolbox", "art"),
        methods=[("none", "None")],
        eps={"linf": [0.5]},
    )
    (agreement,) = compare_engines(results_of(run, tmp_path))
    assert (agreement.n_images, agreement.n_attacked, agreement.n_same, agreement.difference) == (5, 5, 5, 0.0)


def notes_of(run: FakeRun, path: Path) -> dict[str, str]:
    """The notes but for the one that a run was not audited."""
    notes = run_notes(load_run(run.write(path)))
    return {note.title: note.text for note in notes if not note.title.startswith("Not audited: ")}


def test_notes(tmp_path: Path) -> None:
    quiet = FakeRun(plain, seeds=(0, 1))
    assert notes_of(quiet, tmp_path / "quiet") == {}
    few = notes_of(FakeRun(lambda key: (10, 90 - (key.method == "none"), key.method == "none")), tmp_path / "few")
    assert list(few) == ["Only 100 test images", "One training seed"]
    assert few["Only 100 test images"].startswith("One image is 1 point, ")
    changed = FakeRun(plain, seeds=(0, 1), manifest={"overrides": ["recipe.epochs=1"], "git": {"dirty": True}})
    assert list(notes_of(changed, tmp_path / "changed")) == ["The study was run with changes", "Uncommitted code"]
    empty = notes_of(FakeRun(lambda key: None, seeds=(-1,)), tmp_path / "empty")
    assert empty == {"There are no results yet": "The plan has 2 units; none has a record."}


def test_methods_that_are_the_same_function_are_named(tmp_path: Path) -> None:
    methods = [("none", "No dropout"), ("original", "Original"), ("spatial", "Spatial")]

    def counts(key: Key) -> tuple[int, int, int]:
        # One image of one cell tells "none" from the others, and nothing tells those apart.
        return (100, 899, 1) if (key.method, key.step, key.seed) == ("none", 2, 1) else (100, 900, 0)

    weights = dict.fromkeys(("none", "original", "spatial"), "ab" * 32)
    same = notes_of(FakeRun(counts, seeds=(0, 1), methods=methods, weights=weights), tmp_path / "same")
    assert list(same) == ["Original and Spatial are one result"]
    # Networks that learned nothing predict alike, too.
    assert notes_of(FakeRun(counts, seeds=(0, 1), methods=methods), tmp_path / "alike") == {}
    gap = FakeRun(
        lambda key: None if (key.method, key.step) == ("spatial", 2) else counts(key),
        seeds=(0, 1),
        methods=methods,
        weights=weights,
    )
    assert not any("one result" in title for title in notes_of(gap, tmp_path / "gap"))


def test_unsteady_clean_predictions_are_noticed(tmp_path: Path) -> None:
    def counts(key: Key) -> tuple[int, int, int]:
        wrong = 101 if (key.method, key.attack) == ("fdd-2d", "pgd") else 100
        return (wrong, 1000 - wrong, 0)

    run = FakeRun(counts, seeds=(0, 1), attacks={"fgsm": "FGSM", "pgd": "PGD"})
    notes = notes_of(run, tmp_path)
    assert list(notes) == ["Random forward pass: FDD-2D"]
    assert notes["Random forward pass: FDD-2D"].startswith("Predictions on clean images differ between units")


@pytest.mark.parametrize(
    ("samples", "level", "words"), [(1, "warning", "upper bound"), (2, "info", "mean over 2 passes")]
)
def test_a_declared_random_forward_is_a_warning_without_eot_only(
    tmp_path: Path, samples: int, level: str, words: str
) -> None:
    def counts(key: Key) -> tuple[int, int, int]:
        wrong = 101 if (key.method, key.attack) == ("sap", "pgd") else 100  # a random forward is expected to do this
        return (wrong, 1000 - wrong, 0)

    run = FakeRun(
        counts,
        seeds=(0, 1),
        methods=[("none", "None"), ("sap", "SAP")],
        attacks={"fgsm": "FGSM", "pgd": "PGD"},
        eot_samples={"sap": samples},
    )
    note, _ = sorted(
        (note for note in run_notes(load_run(run.write(tmp_path))) if "SAP" in note.title), key=lambda n: n.title
    )
    assert (note.title, note.level) == ("Random forward pass: SAP", level)
    assert words in note.text


def test_engines_need_not_agree_on_a_random_forward(tmp_path: Path) -> None:
    run = replace(engines_apart(60), eot_samples={"none": 4})
    (agreement,) = compare_engines(results_of(run, tmp_path))
    assert agreement.difference == -6.0
    assert not agreement.flagged


def test_failed_and_missing_units_are_counted_apart(tmp_path: Path) -> None:
    failure = Failure("u0000", "attack", "none", 0, "EngineError", "why", "trace", "fgsm", "linf", "foolbox")
    run = FakeRun(
        lambda key: None if key.method == "none" or key.step == 2 else plain(key), seeds=(0, 1), failures=[failure]
    )
    assert list(notes_of(run, tmp_path)) == ["1 unit failed", "3 of 4 units not run, or not to the end"]


def test_records_outside_the_plan_are_left_out_and_counted(tmp_path: Path) -> None:
    path = FakeRun(plain, seeds=(0, 1)).write(tmp_path)
    FakeRun(plain, seeds=(0, 1), eps={"linf": [0.5]}).write(tmp_path / "smaller")
    (tmp_path / "smaller" / "manifest.json").replace(path / "manifest.json")
    results = sort_results(load_run(path))
    assert results.unplanned == 4
    assert [row[1] for row in texts(results)] == ["0", "0.5"]
    assert "4 records left out" in [note.title for note in run_notes(results.run)]


def test_two_records_for_one_cell_are_an_error(tmp_path: Path) -> None:
    path = FakeRun(plain).write(tmp_path)
    (path / "results" / "copy.parquet").write_bytes((path / "results" / "u0000.parquet").read_bytes())
    with pytest.raises(RunDirectoryError, match=r"copy\.parquet and u0000\.parquet both hold none"):
        sort_results(load_run(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": None}, "units should be a valid list, not None"),
        ({"eps_scale": 0}, "eps_scale should be greater than 0, not 0"),
        ({"study": {"name": "x"}}, r"study\.dataset is missing"),
    ],
)
def test_damaged_manifest(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = FakeRun(plain, manifest=change).write(tmp_path)
    with pytest.raises(RunDirectoryError, match=rf"manifest\.json: {message}"):
        load_run(path)


def test_terminal_table_shows_names_as_they_are(tmp_path: Path) -> None:
    run = load_run(FakeRun(plain, methods=[("none", "[red]No[/red]"), ("fdd-2d", "FDD-2D")]).write(tmp_path))
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        console = Console(width=120, record=True, file=file, force_terminal=True, color_system="standard")
        console.print(main_table_text(run))
    text = console.export_text(styles=True)
    assert "[red]No[/red]" in text
    assert re.search(r"\x1b\[1m *54\.9", text)
    assert re.search(r"  36\.3 ", text)
    assert not re.search(r"\x1b\[1m *36\.3", text)


def test_geometric_grids_are_evenly_spaced_and_arithmetic_ones_linear(tmp_path: Path) -> None:
    def positions(grid: list[float]) -> tuple[float, ...]:
        run = FakeRun(lambda key: (0, 10, 0), eps={"linf": grid})
        return panels(results_of(run, tmp_path / str(grid[0])))[0].axis.positions

    assert positions([2.0**-i for i in range(6, -1, -1)]) == pytest.approx([i / 7 for i in range(8)])
    assert positions([0.1, 0.2, 0.3, 0.4]) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    # Nearer to doubling than to even steps; 0.03 and 0.06 lie log(3) and log(6) above 0.01, in steps of log(6) / 2.
    octave = np.log(6) / 2
    assert positions([0.01, 0.03, 0.06]) == pytest.approx([0, 1 / 3, (1 + np.log(3) / octave) / 3, 1])
    assert positions([0.3]) == (0.0, 1.0)


def test_one_axis_where_the_two_units_are_one(tmp_path: Path) -> None:
    for scale, title in ((1.0, "ε (normalised = pixel)"), (0.25, "ε (normalised)")):
        run = FakeRun(plain, manifest={"eps_scale": scale})
        axis = panels(results_of(run, tmp_path / str(scale)))[0].axis
        assert axis.two_units is (scale != 1)
        assert axis.title == title


def test_labels_that_have_no_room_are_left_out(tmp_path: Path) -> None:
    run = FakeRun(lambda key: (0, 10, 0), eps={"linf": [2.0**-i for i in range(6, -1, -1)]})
    axis = panels(results_of(run, tmp_path))[0].axis
    labels = ["0", *["0.125"] * 7]
    assert axis.labelled(labels, 70) == list(range(8))
    assert axis.labelled(labels, 30) == [0, 1, 3, 5, 7]
    assert axis.labelled(labels, 1) == [0, 7]


def test_every_method_has_its_own_look() -> None:
    styles = [style(i) for i in range(28)]
    assert len({(item.colour, item.line) for item in styles}) == len(styles)
    assert len({item.marker for item in styles[:11]}) == 11
    assert len({(item.symbol, item.dash) for item in styles}) == len(styles)
