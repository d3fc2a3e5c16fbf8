"""The worst case per image, held against a count by hand; what is shown of it; several engines; smallest distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_runs import FakeRun, Key

from robustfdd.paper.compare import compare
from robustfdd.paper.comparison_tables import figures_table
from robustfdd.records import Outcome, Run, load_run, read_json, write_json
from robustfdd.report import combine, run_notes
from robustfdd.report.curves import panels
from robustfdd.report.exhibits import minimum_norm, worst_case_advantage
from robustfdd.report.exhibits.minimum_norm import median_distance
from robustfdd.report.figures import draw_overview
from robustfdd.report.notes import notes
from robustfdd.report.results import Results, sort_results
from robustfdd.report.tables import decimals_of, main_rows, main_tables
from robustfdd.report.worst_case import explanation, union_grid, worst_case

#: Grids of four attacks that share some radii; one has none in L2.
GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "fgsm": {"linf": [0.5, 1.0, 4.0], "l2": [1.0]},
    "bim": {"linf": [1.0, 2.0], "l2": [0.5, 2.0]},
    "pgd": {"linf": [0.25, 2.0], "l2": [2.0]},
    "square": {"linf": [1.0]},
}
N_IMAGES = 24


def random_run(seed: int, **changes: Any) -> FakeRun:
    """Outcomes by chance: the images misclassified before are those of the model, the rest is broken at random."""

    def counts(key: Key) -> list[int]:
        wrong = np.random.default_rng([seed, sum(map(ord, key.method)), key.seed]).random(N_IMAGES) < 0.2
        parts = [seed, *(sum(map(ord, text)) for text in (key.method, key.attack, key.norm, key.engine))]
        broken = np.random.default_rng([*parts, key.seed, key.step]).random(N_IMAGES) < 0.12 * (key.step > 0)
        return np.where(wrong, 0, np.where(broken, 2, 1)).tolist()

    return FakeRun(
        counts,
        attacks={name: name.upper() for name in GRIDS},
        eps={"linf": [], "l2": []},
        attack_settings={name: {"eps": grids} for name, grids in GRIDS.items()},
        engines=("foolbox", "art"),
        attack_engines={"square": ("art",)},
        seeds=(0, 1),
        **changes,
    )


def shuffled(run: Run, seed: int) -> Run:
    """The same records with the images of each in an order of its own, one image of every record left out."""
    rng = np.random.default_rng(seed)
    cells = run.cells.copy()
    for row in cells.index:
        kept = rng.permutation(len(cells.at[row, "image_index"]))[1:]
        for column in ("image_index", "label", "clean_prediction", "prediction", "outcome", "distance"):
            cells.at[row, column] = np.asarray(cells.at[row, column])[kept]
    return replace(run, cells=cells)


def by_hand(run: Run, method: str, seed: int, norm: str, eps: float) -> tuple[float, float]:
    """Robust accuracy and survival rate, image by image out of the records; epsilons normalised, which are exact."""
    mine = run.cells[
        (run.cells["method"] == method)
        & (run.cells["seed"] == seed)
        & (run.cells["norm"] == norm)
        & (run.cells["eps_normalized"] > 0)
    ]
    images = set.intersection(*(set(index) for index in mine["image_index"]))
    survived = attacked = 0
    for image in images:
        found = []
        for _, row in mine[mine["eps_normalized"] <= eps].iterrows():
            found += [int(o) for i, o in zip(row["image_index"], row["outcome"], strict=True) if i == image]
        survived += set(found) == {1}
        attacked += 0 not in found
    return survived / len(images), survived / attacked


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mixed", [False, True])
def test_it_is_the_count_by_hand(tmp_path: Path, seed: int, mixed: bool) -> None:
    run = load_run(random_run(seed).write(tmp_path))
    run = shuffled(run, seed) if mixed else run
    results = sort_results(run)
    for norm, radii in (("linf", [0.25, 0.5, 1.0, 2.0, 4.0]), ("l2", [0.5, 1.0, 2.0])):
        worst = worst_case(results, norm)
        assert [eps.normalized for eps in worst.grid] == radii
        for method in ("none", "fdd-2d"):
            found: dict[str, list[dict[int, float]]] = {
                metric: [worst.values(method, step, metric) for step in range(1, len(radii) + 1)]  # type: ignore[arg-type]
                for metric in ("robust_accuracy", "survival_rate")
            }
            for step, eps in enumerate(radii):
                for training_seed in (0, 1):
                    expected = by_hand(run, method, training_seed, norm, eps)
                    values = [found[metric][step][training_seed] for metric in found]
                    assert values == pytest.approx(expected, abs=1e-12)
            curve = [entry[0] for entry in found["robust_accuracy"]]
            assert curve == sorted(curve, reverse=True)
            assert curve[0] > curve[-1]


def test_it_is_the_last_block_of_the_tables_with_its_own_marks(tmp_path: Path) -> None:
    run = load_run(random_run(5).write(tmp_path))
    results = sort_results(run)
    for metric, column in (("robust_accuracy", 0), ("survival_rate", 1)):
        table = main_tables(results, metric)[0]  # type: ignore[arg-type]
        every = main_rows(results, metric, "linf")  # type: ignore[arg-type]
        rows = every[-5:]
        assert [(row.attack, row.title) for row in rows] == [("worst-case", "Worst case")] * 5
        assert all(row.attack != "worst-case" for row in every[:-5])
        for i, row in enumerate(rows, start=len(table.rows) - 5):
            means = []
            for method, entry in zip(("none", "fdd-2d"), row.entries, strict=True):
                expected = [by_hand(run, method, seed, "linf", row.eps.normalized)[column] for seed in (0, 1)]
                assert entry.mean == pytest.approx(100 * np.mean(expected))
                assert entry.std == pytest.approx(100 * np.std(expected, ddof=1))
                means.append(round(float(100 * np.mean(expected)), decimals_of(results, "linf")))
            best = {j for j, mean in enumerate(means) if mean == max(means)} if len(set(means)) > 1 else set()
            assert {j - 3 for k, j in table.marks if k == i} == best
        assert table.rows[-5][0] == "Worst case"
        assert "in L∞ through foolbox and art broke it at this ε or a smaller one" in table.caption
        assert "(FGSM, BIM, PGD, SQUARE)." in table.caption


def test_a_missing_record_leaves_a_gap_from_its_radius_on(tmp_path: Path) -> None:
    whole = random_run(1)
    lost = Key("none", 1, "bim", "linf", "art", 1)  # at 1.0, of the engine that the other rows do not show
    run = replace(whole, counts=lambda key: None if key == lost else whole.counts(key))
    worst = worst_case(sort_results(load_run(run.write(tmp_path))), "linf")
    assert [sorted(worst.values("none", step, "robust_accuracy")) for step in range(1, 6)] == [
        [0, 1],
        [0, 1],
        [0],
        [0],
        [0],
    ]
    assert all(worst.planned_seeds("none", step) == (0, 1) for step in range(1, 6))
    rows = main_rows(sort_results(load_run(tmp_path)), "robust_accuracy", "linf")[-5:]
    assert [row.entries[0].incomplete for row in rows] == [False, False, True, True, True]
    assert [row.entries[1].incomplete for row in rows] == [False] * 5


def test_an_image_that_any_unit_found_wrong_before_has_not_survived(tmp_path: Path) -> None:
    """Two draws of a random forward pass: they differ in which image is misclassified before the attack."""

    def counts(key: Key) -> list[int]:
        clean = [0, 1, 1, 1] if key.attack == "fgsm" else [1, 0, 1, 1]
        return clean if key.step == 0 else [c and [2, 1, 1, 2][i] for i, c in enumerate(clean)]

    run = FakeRun(
        counts,
        methods=[("sap", "SAP")],
        attacks={"fgsm": "FGSM", "pgd": "PGD"},
        eps={"linf": [1.0]},
        eot_samples={"sap": 4},
    )
    results = sort_results(load_run(run.write(tmp_path)))
    worst = worst_case(results, "linf")
    assert worst.outcomes["sap", 0, 1].tolist() == [0, 0, 1, 2]
    assert worst.values("sap", 1, "robust_accuracy") == {0: 0.25}
    assert worst.values("sap", 1, "survival_rate") == {0: 0.5}
    notes = {note.title: note for note in run_notes(results.run)}
    assert notes["The worst case of SAP is pessimistic"].level == "info"


def test_without_a_shared_image_there_is_nothing(tmp_path: Path) -> None:
    run = load_run(random_run(0).write(tmp_path))
    cells = run.cells.copy()
    row = cells.index[(cells["method"] == "none") & (cells["norm"] == "linf") & (cells["seed"] == 0)][1]
    cells.at[row, "image_index"] = np.asarray(cells.at[row, "image_index"]) + 1000
    worst = worst_case(sort_results(replace(run, cells=cells)), "linf")
    assert sorted(worst.values("none", 5, "robust_accuracy")) == [1]


def test_radii_in_both_units_are_one(tmp_path: Path) -> None:
    grids = {"fgsm": {"linf": [0.1, 0.3]}, "bim": {"linf": [0.1 + 1e-12, 0.1 * 3]}}
    run = FakeRun(
        lambda key: (0, 10 - key.step, key.step),
        attacks={"fgsm": "FGSM", "bim": "BIM"},
        attack_settings={name: {"eps": eps} for name, eps in grids.items()},
        eps={"linf": []},
    )
    assert len(union_grid(sort_results(load_run(run.write(tmp_path))).study, "linf")) == 2


def test_every_panel_has_the_envelope_and_the_last_one_is_it(tmp_path: Path) -> None:
    results = sort_results(load_run(random_run(2).write(tmp_path)))
    found = panels(results)
    titles = [panel.title for panel in found]
    assert titles == [
        *("FGSM, L∞", "BIM, L∞", "PGD, L∞", "SQUARE, L∞", "Worst case, L∞"),
        *("FGSM, L2", "BIM, L2", "PGD, L2", "Worst case, L2"),
    ]
    worst = found[4]
    assert len(worst.axis.positions) == 6
    for panel in found[:4]:
        for curve, envelope in zip(panel.curves, worst.curves, strict=True):
            assert envelope.worst == ()
            means = [entry.mean for entry in curve.entries]
            low = [entry.mean for entry in curve.worst]
            assert low[0] == means[0]
            assert all(a is not None and b is not None and b <= a for a, b in zip(means, low, strict=True))
            # The same figures as in the panel of the worst case, at the radii that the attack has.
            assert {round(v, 9) for v in low if v} <= {round(e.mean, 9) for e in envelope.entries if e.mean is not None}


def test_the_overview_wraps_and_explains_the_thin_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("robustfdd.report.figures.render", lambda figure: drawn.append(figure) or {})
    draw_overview(panels(sort_results(load_run(random_run(2).write(tmp_path)))))
    (figure,) = drawn
    shown = [axes.get_title() for axes in figure.axes if axes.axison]
    assert shown[4] == "Worst case, L∞"
    assert len(shown) == 9
    assert max(axes.get_subplotspec().colspan.stop for axes in figure.axes) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["No dropout", "FDD-2D", "worst case"]
    fgsm = next(axes for axes in figure.axes if axes.get_title() == "FGSM, L∞")
    thin = [line for line in fgsm.lines if line.get_linewidth() < 1]
    assert [line.get_marker() in ("", "None") for line in thin] == [True, True]
    bold = [line for line in fgsm.lines if line not in thin]
    assert [line.get_color() for line in thin] == [line.get_color() for line in bold]


def engines_run(**changes: Any) -> FakeRun:
    """Attacks through different engines: one through both, one through another first, one through a third alone."""
    survivors = {("fgsm", "foolbox"): 80, ("fgsm", "art"): 79, ("apgd", "art"): 60, ("apgd", "native"): 50}
    survivors |= {("square", "native"): 70}
    return FakeRun(
        lambda key: (0, 100, 0) if key.step == 0 else (0, (s := survivors[key.attack, key.engine]), 100 - s),
        methods=[("none", "None")],
        attacks={"apgd": "APGD", "square": "Square", "fgsm": "FGSM"},
        attack_engines={"apgd": ("native", "art"), "square": ("native",)},
        engines=("foolbox", "art"),
        eps={"linf": [1.0]},
        **changes,
    )


def test_every_attack_is_shown_through_its_first_engine(tmp_path: Path) -> None:
    results = sort_results(load_run(engines_run().write(tmp_path)))
    study = results.study
    assert study.engines == ("foolbox", "art", "native")
    # The study's own engines come first, in its order.
    assert [study.engine_of(attack, "linf") for attack in ("apgd", "square", "fgsm")] == ["art", "native", "foolbox"]
    (table,) = main_tables(results)
    assert [row[3] for row in table.rows] == ["100", "60", "70", "80", "50"]
    assert "; engine foolbox; APGD through art; Square through native; protocol" in table.caption
    assert results.unplanned == 0
    assert [[e.mean for e in panel.curves[0].entries] for panel in panels(results)] == [
        [100, 60],
        [100, 70],
        [100, 80],
        [100, 50],
    ]


def test_an_attack_may_have_another_engine_in_each_norm(tmp_path: Path) -> None:
    path = FakeRun(
        lambda key: (0, 9, 1),
        attacks={"bim": "BIM", "pgd": "PGD"},
        engines=("art", "foolbox"),
        eps={"linf": [1.0], "l2": [1.0]},
    ).write(tmp_path)
    run = load_run(path)
    run.manifest["units"] = [
        unit
        for unit in run.manifest["units"]
        if unit["engine"] == ("foolbox" if (unit["attack"], unit["norm"]) == ("bim", "l2") else "art")
    ]
    study = sort_results(run).study
    assert study.engines_text() == "engine art; BIM in L2 through foolbox"
    assert study.engines_text(norm="l2") == "engine art; BIM through foolbox"
    assert study.engines_text(norm="linf") == "engine art"


def test_transfer_has_a_gap_where_it_is_made(tmp_path: Path) -> None:
    run = FakeRun(
        lambda key: (
            (0, 100, 0)
            if key.step == 0
            else (0, 90 if key.attack == "transfer" else 95, 10)
            if key.attack == "transfer"
            else (0, 95, 5)
        ),
        attacks={"fgsm": "FGSM", "transfer": "Transfer"},
        sources={"transfer": "none"},
        eps={"linf": [1.0]},
    )
    results = sort_results(load_run(run.write(tmp_path)))
    (table,) = main_tables(results)
    assert [row[3:] for row in table.rows] == [("100", "100"), ("95", "95"), ("–", "90"), ("95", "90")]
    assert "Transfer: examples made on No dropout. Transfer was not planned for No dropout." in table.caption
    (note,) = (note for note in notes(results, []) if "rest on different attacks" in note.title)
    assert (note.level, note.title) == ("warning", "The worst cases in L∞ rest on different attacks")
    assert note.text.startswith("Transfer was not planned for No dropout. The worst case of these may look better")
    assert not any(state.missing for state in results.unit_states())
    assert explanation(results, "linf") in table.caption


MADE_ON = [
    ({"a": ("none", 0), "b": ("none", 0), "none": ("none", 1)}, "on N; for N on its own network of another seed"),
    ({"a": ("none", 0), "b": ("none", 0), "none": ("a", 0)}, "on N; for N on A"),
    ({"a": ("none", 0), "none": ("a", 0)}, "for A on N; for N on A"),
    ({"a": ("b", None), "b": ("b", None)}, "on B"),
    ({"a": ("none", 1), "b": ("none", 1), "none": ("none", 1)}, "on N of another seed; for N on its own network of "),
]


@pytest.mark.parametrize(("sources", "words"), MADE_ON)
def test_every_source_of_a_transfer_is_named(
    sources: dict[str, tuple[str, int | None]], words: str, tmp_path: Path
) -> None:
    methods = [(label, {"a": "A", "b": "B", "none": "N"}[label]) for label in sources]
    run = FakeRun(lambda key: (0, 95, 5), attacks={"transfer": "Transfer"}, methods=methods, eps={"linf": [1.0]})
    path = run.write(tmp_path)
    manifest = read_json(path / "manifest.json")
    for unit in manifest["units"]:
        source, seed = sources[unit["method"]]
        unit |= {"source": source, **({} if seed is None else {"source_seed": seed})}
    write_json(path / "manifest.json", manifest)
    results = sort_results(load_run(path))
    assert f"Transfer: examples made {words}" in explanation(results, "linf")
    assert not [note for note in notes(results, []) if "rest on different attacks" in note.title]


@pytest.mark.parametrize(("protocol", "words"), [("paper", "last iterate"), ("strong", "best iterate")])
def test_the_protocol_is_explained(tmp_path: Path, protocol: str, words: str) -> None:
    run = engines_run(study={"protocol": protocol})
    caption = main_tables(sort_results(load_run(run.write(tmp_path))))[0].caption
    assert f"protocol {protocol} (" in caption
    assert words in caption


def distances_run(eps_unit: str = "pixel", **changes: Any) -> FakeRun:
    """One minimum-norm attack on ten images, two of them wrong before, with chosen distances; and FGSM."""
    distances = {
        # Of eight attacked images seven broken: the middle ones are 0.3 and 0.5.
        ("a", 0): [0, 0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 9],
        # Half of them broken, the fourth at 0.4: half the images need that.
        ("a", 1): [0, 0, 0.4, 0.2, 0.1, 0.3, 9, 9, 9, 9],
        ("b", 0): [0, 0, 0.1, 9, 9, 9, 9, 9, 9, 9],
        ("b", 1): [0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
    }
    radii = [0.25, 0.75]

    def counts(key: Key) -> list[int]:
        eps = ([0, *radii] if key.attack == "fmn" else [0, 0.5])[key.step]
        return [0, 0] + [2 if d <= eps and key.step else 1 for d in distances[key.method, key.seed][2:]]

    return FakeRun(
        counts,
        methods=[("a", "A"), ("b", "B")],
        attacks={"fmn": "FMN", "fgsm": "FGSM"},
        eps={"l2": []},
        eps_unit=eps_unit,
        seeds=(0, 1),
        attack_settings={
            "fmn": {"kind": "minimum-norm", "eps": {"l2": radii}},
            "fgsm": {"kind": "budget", "eps": {"l2": [0.5]}},
        },
        distances=lambda key: distances[key.method, key.seed],
        **changes,
    )


def test_the_median_distance_of_minimum_norm_attacks(tmp_path: Path) -> None:
    (found,) = minimum_norm.build(sort_results(load_run(distances_run().write(tmp_path))))
    assert found.section == "robust"
    # Of A: halfway between the fourth and fifth of eight, and the fourth of the four that were broken.
    assert found.headers == ("Attack", "Norm", "A", "B")
    spread = f"{float(np.std([0.4, 0.4], ddof=1)):g}"
    assert found.rows == (("FMN", "L2", f"0.4 ± {spread}", "> 0.475"),)
    frame = found.frame.set_index(["method", "seed"])
    assert frame["median_pixel"].tolist() == pytest.approx([0.4, 0.4, math.nan, 0.2], nan_ok=True)
    assert frame.loc[("b", 0), "beyond_eps_pixel"] == 0.75
    assert frame["n_broken"].tolist() == [7, 4, 1, 8]
    assert "fewer than half are broken at the largest ε" in found.caption


def test_distances_are_in_the_unit_of_the_study(tmp_path: Path) -> None:
    run = distances_run()
    (pixel,) = minimum_norm.build(sort_results(load_run(run.write(tmp_path / "pixel"))))
    path = run.write(tmp_path / "normalized")
    loaded = load_run(path)
    loaded.manifest["study"]["eps_unit"] = "normalized"
    for attack in loaded.manifest["study"]["attacks"]:
        attack["eps"] = {norm: [4 * eps for eps in grid] for norm, grid in attack["eps"].items()}
    (normalized,) = minimum_norm.build(sort_results(loaded))
    assert pixel.rows[0][3] == "> 0.475"
    assert normalized.rows[0][3] == "> 1.9"
    pd.testing.assert_frame_equal(pixel.frame, normalized.frame)


def test_a_run_without_such_attacks_has_no_distances(tmp_path: Path) -> None:
    assert minimum_norm.build(sort_results(load_run(random_run(0).write(tmp_path)))) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_median_is_that_of_all_attacked_images(seed: int) -> None:
    """An unbroken image is infinitely far; numpy's median is the same wherever it is finite."""
    rng = np.random.default_rng(seed)
    for n in (1, 2, 7, 8):
        for n_broken in range(n + 1):
            distance = rng.random(n + 2)
            outcome = np.array([Outcome.BROKEN] * n_broken + [Outcome.SURVIVED] * (n - n_broken) + [0, 0])
            order = rng.permutation(n + 2)
            found = median_distance(outcome[order], distance[order])
            expected = np.median(np.where(outcome == Outcome.BROKEN, distance, np.inf)[:n])
            if 2 * n_broken == n:
                expected = distance[:n_broken].max()
            assert found == pytest.approx(expected)
    assert math.isnan(median_distance(np.zeros(3, dtype=int), np.zeros(3)))


ADVANTAGE = {
    # Survivors of 100 at the two radii: under PGD, under BIM, and in the worst case through another attack.
    "none": {"pgd": (40, 20), "bim": (30, 10), "square": (60, 50)},
    "original": {"pgd": (41, 21), "bim": (31, 11), "square": (60, 50)},
    "fdd-1d": {"pgd": (70, 60), "bim": (72, 62), "square": (35, 10)},
    "fdd-2d": {"pgd": (65, 55), "bim": (66, 56), "square": (60, 50)},
}


def advantage_run(methods: Sequence[str] = tuple(ADVANTAGE), **changes: Any) -> FakeRun:
    def counts(key: Key) -> list[int]:
        survivors = 100 if key.step == 0 else ADVANTAGE[key.method][key.attack][key.step - 1]
        # PGD and BIM break from the end, the other attack from the start: what both leave is the overlap.
        outcome = [Outcome.SURVIVED] * survivors + [Outcome.BROKEN] * (100 - survivors)
        return [int(o) for o in (outcome[::-1] if key.attack == "square" else outcome)]

    return FakeRun(
        counts,
        methods=[(name, name.upper()) for name in methods],
        attacks={"pgd": "PGD", "bim": "BIM", "square": "Square"},
        eps={"linf": [0.5, 1.0]},
        **changes,
    )


def test_the_advantage_before_and_in_the_worst_case(tmp_path: Path) -> None:
    (found,) = worst_case_advantage.build(sort_results(load_run(advantage_run().write(tmp_path))))
    assert found.name == "worst-case-advantage-linf"
    assert found.section == "robust"
    # The weakest is the one that leaves most: over these methods PGD at both radii, (216 against 199), (156 : 139).
    assert found.headers == ("Method", "Against", "0.5 PGD", "1 PGD")

    def left(method: str, step: int) -> int:
        survivors = ADVANTAGE[method]
        from_end = min(*survivors["pgd"][: step + 1], *survivors["bim"][: step + 1], 100)
        return max(from_end - (100 - min(survivors["square"][: step + 1])), 0)

    def cell(method: str, baseline: str, step: int) -> str:
        before = ADVANTAGE[method]["pgd"][step] - ADVANTAGE[baseline]["pgd"][step]
        after = left(method, step) - left(baseline, step)
        texts = ["0.0" if value == 0 else f"{value:+.1f}".replace("-", "−") for value in (before, after)]
        return " → ".join(texts)

    assert found.rows == (
        ("FDD-1D", "NONE", cell("fdd-1d", "none", 0), cell("fdd-1d", "none", 1)),
        ("", "ORIGINAL", cell("fdd-1d", "original", 0), cell("fdd-1d", "original", 1)),
        ("FDD-2D", "NONE", cell("fdd-2d", "none", 0), cell("fdd-2d", "none", 1)),
        ("", "ORIGINAL", cell("fdd-2d", "original", 0), cell("fdd-2d", "original", 1)),
    )
    assert found.rows[0][2] == "+30.0 → +5.0"
    assert found.rows[2][3] == "+35.0 → +5.0"
    row = found.frame.set_index(["method", "baseline", "eps_normalized"]).loc[("fdd-1d", "none", 0.5)]
    assert row[["attack", "method_paper_attack", "baseline_paper_attack", "advantage_paper_attack"]].tolist() == [
        *("pgd", 70.0, 40.0, 30.0),
    ]
    assert row[["method_worst_case", "baseline_worst_case", "advantage_worst_case"]].tolist() == [5.0, 0.0, 5.0]
    assert found.figure is not None
    assert found.figure["png"].startswith(b"\x89PNG")


def test_without_fdd_every_other_method_is_held_against_the_baseline(tmp_path: Path) -> None:
    run = advantage_run(["original", "none"])
    (found,) = worst_case_advantage.build(sort_results(load_run(run.write(tmp_path))))
    assert [row[:2] for row in found.rows] == [("ORIGINAL", "NONE")]
    assert "each method" in found.title


def test_a_method_with_its_own_recipe_is_no_baseline(tmp_path: Path) -> None:
    path = advantage_run(["original", "none"], dropouts={"original": "none"}).write(tmp_path)
    run = load_run(path)
    run.manifest["study"]["methods"][1]["recipe"] = {"adversarial": {"attack": "pgd"}}
    (found,) = worst_case_advantage.build(sort_results(run))
    assert [row[:2] for row in found.rows] == [("NONE", "ORIGINAL")]


def test_one_attack_alone_leaves_nothing_to_compare(tmp_path: Path) -> None:
    run = replace(advantage_run(), attacks={"pgd": "PGD"})
    assert worst_case_advantage.build(sort_results(load_run(run.write(tmp_path)))) == []


def test_the_printed_table_of_a_comparison_ends_with_the_worst_case(tmp_path: Path) -> None:
    def counts(key: Key) -> tuple[int, int, int]:
        return (
            (0, 100, 0)
            if key.step == 0
            else (0, 60 if key.attack == "fgsm" else 40, 40 if key.attack == "fgsm" else 60)
        )

    data = {"name": "fashion-mnist", "title": "Fashion-MNIST", "n_test": 10_000}
    run = FakeRun(
        counts,
        methods=[("none", "None"), ("original", "Original")],
        attacks={"fgsm": "FGSM", "bim": "BIM"},
        eps={"linf": [0.01, 0.03]},
        study={"dataset": "fashion-mnist", "normalization": "zero-one"},
        manifest={"dataset": data},
    )
    comparison = compare(sort_results(load_run(run.write(tmp_path))))
    table3, figure7 = (
        figures_table(comparison, place) for place in comparison.places if place.name in ("table3", "figure7")
    )
    assert table3.rows[-1][:5] == ("Worst case", "0.03", "run", "40", "40")
    assert set(table3.rows[-1][5:]) == {"–"}
    assert "The paper has no such figure." in table3.caption
    assert not any(row[0] == "Worst case" for row in figure7.rows)


def test_the_strong_protocol_is_not_the_papers(tmp_path: Path) -> None:
    data = {"name": "fashion-mnist", "title": "Fashion-MNIST", "n_test": 10_000}
    run = FakeRun(
        lambda key: (0, 9, 1),
        methods=[("none", "None")],
        eps={"linf": [0.03]},
        study={"dataset": "fashion-mnist", "normalization": "zero-one", "protocol": "strong"},
        manifest={"dataset": data},
    )
    comparison = compare(sort_results(load_run(run.write(tmp_path))))
    assert {pair.published.eps_normalized for pair in comparison.pairs} == {0.0}
    assert "the run has FGSM with protocol strong" in {item.reason for item in comparison.not_run}


def test_the_worst_case_of_a_combination_is_that_of_one_run(tmp_path: Path) -> None:
    whole = random_run(4)
    parts = [
        replace(whole, seeds=(seed,), study={"seeds": [seed]}, first_unit=100 * seed).write(tmp_path / str(seed))
        for seed in (0, 1)
    ]
    results: list[Results] = [
        sort_results(combine([load_run(part) for part in parts])),
        sort_results(load_run(whole.write(tmp_path / "whole"))),
    ]
    found, expected = (main_tables(item)[0].frame for item in results)
    pd.testing.assert_frame_equal(found, expected)
