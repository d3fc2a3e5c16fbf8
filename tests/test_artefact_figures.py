"""The figures and tables that a report makes from the analyses of the models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from report_runs import FakeRun

from robustfdd.errors import RunDirectoryError
from robustfdd.paper.exhibits import cost, figure2, figure3, figure4, figure6
from robustfdd.paper.published import load
from robustfdd.records import load_run, write_analysis
from robustfdd.report.analyses import mean_and_spread
from robustfdd.report.exhibit import GAP, Exhibit
from robustfdd.report.forms import to_markdown
from robustfdd.report.latex import to_latex
from robustfdd.report.results import Results, sort_results

METHODS = (("none", "No dropout"), ("original", "Original"), ("spatial", "Spatial"), ("fdd-2d", "FDD-2D"))
SEEDS = (0, 1)
SIZE = (6, 5)

#: A table of one model from its method and seed; None for a model without it.
Make = Callable[[str, int], pd.DataFrame | None]


def results(tmp_path: Path, tables: Mapping[str, Make], *, methods: tuple[tuple[str, str], ...] = METHODS) -> Results:
    """A run whose models have these analyses."""
    run = FakeRun(lambda key: (1, 2, 1), methods=methods, seeds=SEEDS).write(tmp_path / "run")
    for table, make in tables.items():
        for method in [*(label for label, _ in methods), "unplanned"]:
            for seed in SEEDS:
                frame = make(method, seed)
                if frame is not None:
                    write_analysis(run, table, frame, method=method, seed=seed, key="key")
    return sort_results(load_run(run))


def check_files(artefact: Exhibit) -> None:
    """PNG and PDF for a figure, Markdown and LaTeX for a table, and data of moderate size for both."""
    assert artefact.caption.endswith(".")
    assert "nan" not in artefact.caption.lower().split()
    assert len(artefact.frame)
    assert len(artefact.frame.to_csv(index=False)) < 200_000
    if artefact.figure is not None:
        assert artefact.figure["png"].startswith(b"\x89PNG")
        assert artefact.figure["pdf"].startswith(b"%PDF")
        assert set(artefact.figure) == {"png", "pdf"}
    else:
        assert artefact.headers
        assert all(len(row) == len(artefact.headers) for row in artefact.rows)
        assert artefact.title in to_markdown(artefact)
        assert r"\end{tabular}" in to_latex(artefact, label=artefact.name)


def number_of(method: str) -> int:
    return [label for label, _ in METHODS].index(method) if method != "unplanned" else 9


# --- figure 4


def histogram(method: str, seed: int) -> pd.DataFrame:
    """Bins of 0.01: many zeros, and a tail that reaches further from method to method."""
    n = 100 + 50 * number_of(method)
    count = np.concatenate(([1000 + 100 * seed], np.arange(n, 1, -1)))
    left = np.arange(len(count)) * 0.01
    return pd.DataFrame({"left": left, "right": left + 0.01, "count": count})


def statistics(method: str, seed: int) -> pd.DataFrame:
    i = number_of(method)
    return pd.DataFrame(
        [
            {
                "n_images": 500,
                "n_features": 64,
                "mean": 0.5 + i,
                "std": 0.25,
                "near_zero": 0.01,
                "share_near_zero": min(0.1 * i, 0.9) + 0.02 * seed,
                "near_zero_relative": 0.1,
                "share_near_zero_relative": min(0.2 + 0.1 * i, 0.9) + 0.02 * seed,
                "mean_max_abs_logit": 10.0 * (i + 1),
                "mean_logit_margin": 5.0,
            }
        ]
    )


ACTIVATIONS: dict[str, Make] = {"activations": histogram, "activation-summary": statistics}


def test_figure_4_shows_the_shares_of_both_seeds_together(tmp_path: Path) -> None:
    figure, _ = figure4.build(results(tmp_path, ACTIVATIONS))
    check_files(figure)
    frame = figure.frame
    assert frame["method"].unique().tolist() == [label for label, _ in METHODS]
    for method, rows in frame.groupby("method"):
        assert rows["share"].sum() == pytest.approx(1)
        counts = sum(histogram(str(method), seed)["count"].to_numpy() for seed in SEEDS)
        merged = round((rows["right"] - rows["left"]).iloc[0] / 0.01)
        for bar, (_, row) in enumerate(rows.iterrows()):
            assert row["share"] == pytest.approx(counts[bar * merged : (bar + 1) * merged].sum() / counts.sum())
    edges = [rows[["left", "right"]].to_numpy() for _, rows in frame.groupby("method")]
    assert all(np.array_equal(edges[0], other) for other in edges[1:])


def test_figure_4_says_what_lies_beyond_its_axis(tmp_path: Path) -> None:
    def with_outlier(method: str, seed: int) -> pd.DataFrame:
        frame = histogram(method, seed)
        if method == "fdd-2d":
            beyond = {"left": [5.0, 20.0], "right": [5.01, np.inf], "count": [1, 1]}
            frame = pd.concat([frame, pd.DataFrame(beyond)], ignore_index=True)
            frame["count"] = frame["count"].astype(int)
            frame.loc[0, "count"] = 1_000_000
        return frame

    figure, _ = figure4.build(results(tmp_path, {**ACTIVATIONS, "activations": with_outlier}))
    end = figure.frame["right"].max()
    assert end < 5
    counts = with_outlier("fdd-2d", 0)
    inside = counts[counts["left"] < end - 1e-9]["count"].sum() / counts["count"].sum()
    assert inside < 1
    assert figure.frame[figure.frame["method"] == "fdd-2d"]["share"].sum() == pytest.approx(inside)
    assert "lie beyond the axis" in figure.caption


def test_the_table_of_figure_4_has_mean_and_spread(tmp_path: Path) -> None:
    _, table = figure4.build(results(tmp_path, ACTIVATIONS))
    check_files(table)
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == [title for _, title in METHODS]
    # 50 and 52 %: mean 51, sample standard deviation 1.4; the largest logit is 40 in both.
    assert rows["FDD-2D"][1:] == ("51.0 ± 1.4", "31.0 ± 1.4", "3.500 ± 0.000", "40.00 ± 0.00", "5.00 ± 0.00")
    assert "below 0.1 of the mean" in table.caption
    assert "500 test images; seeds 0, 1" in table.caption


# --- figure 6


def plane(method: str, seed: int) -> pd.DataFrame | None:
    if method not in ("spatial", "fdd-2d"):
        return None
    rng = np.random.default_rng(seed)
    n = 40
    frame = pd.DataFrame(
        {
            "image": np.repeat([7, 3], n),
            "class": np.repeat(["boot", "coat"], n),
            "channel": np.tile(np.arange(n), 2),
            **{f"pc{axis}": rng.normal(size=2 * n) for axis in (1, 2, 3)},
            "density": np.tile(np.repeat([30, 10], [30, 10]), 2),
            "drop_probability": 0.5,
            "dropped": np.tile(np.arange(n) % 3 == 0, 2) if method == "spatial" else np.tile(np.arange(n) >= 30, 2),
            "n_bins": 5,
        }
    )
    frame["dropped"] ^= seed > 0  # the other seed says the opposite
    return frame


def test_figure_6_sets_spatial_dropout_beside_fdd_2d(tmp_path: Path) -> None:
    (figure,) = figure6.build(results(tmp_path, {"planes": plane}))
    check_files(figure)
    assert figure.frame["method"].unique().tolist() == ["spatial", "fdd-2d"]
    assert set(figure.frame["image"]) == {7}
    assert set(figure.frame["seed"]) == {0}
    assert len(figure.frame) == 80
    assert (
        "Spatial dropped 33 % of the 30 maps in the densest cell and 40 % of the 10 maps in the other" in figure.caption
    )
    assert "FDD-2D dropped 0 % of the 30 maps in the densest cell and 100 % of the 10 maps" in figure.caption
    assert "test image 7 (boot)" in figure.caption


def test_figure_6_shows_what_there_is(tmp_path: Path) -> None:
    methods = (("none", "No dropout"), ("fdd-3d", "FDD-3D"))
    make: Make = lambda method, seed: plane("fdd-2d", seed) if method == "fdd-3d" else None  # noqa: E731
    (figure,) = figure6.build(results(tmp_path, {"planes": make}, methods=methods))
    assert figure.frame["method"].unique().tolist() == ["fdd-3d"]
    check_files(figure)


# --- figures 2 and 3


def heat(rng: np.random.Generator) -> np.ndarray:
    return rng.dirichlet(np.ones(SIZE[0] * SIZE[1])).astype(np.float32)


def heatmaps(method: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(number_of(method))
    places = [(image, group, rank) for image in (4, 9) for group in ("low", "high") for rank in (1, 2, 3)]
    return pd.DataFrame(
        {
            "image": [image for image, _, _ in places],
            "group": [group for _, group, _ in places],
            "rank": [rank for _, _, rank in places],
            "channel": range(len(places)),
            "response": 1.0,
            "entropy": 3.0 + number_of(method),
            "height": SIZE[0],
            "width": SIZE[1],
            "heatmap": [heat(rng) for _ in places],
        }
    )


def channels(method: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    group = np.repeat(["low", "high"], [4, 12])
    return pd.DataFrame(
        {
            "image": np.repeat([4, 9], 16),
            "channel": np.tile(np.arange(16), 2),
            "pc1": rng.normal(size=32),
            "pc2": rng.normal(size=32),
            "density": 3,
            "n_bins": 5,
            "group": np.tile(group, 2),
        }
    )


def pictures(n_channels: int) -> Make:
    def make(method: str, seed: int) -> pd.DataFrame:
        pixels = np.random.default_rng(0).integers(0, 256, (2, n_channels * SIZE[0] * SIZE[1])).astype(np.uint8)
        return pd.DataFrame(
            {
                "image": [4, 9],
                "class": ["coat", "boot"],
                "channels": n_channels,
                "height": SIZE[0],
                "width": SIZE[1],
                "pixels": list(pixels),
            }
        )

    return make


def groups(method: str, seed: int) -> pd.DataFrame:
    """No medium group; a spread of 0.2 / sqrt(2) over the seeds."""
    rng = np.random.default_rng(number_of(method))
    names = ["low", "high", "all"]
    return pd.DataFrame(
        {
            "group": names,
            "n_images": 16,
            "of_images": 16,
            "n_top": 3,
            "n_heatmaps": [48, 48, 96],
            "share_of_maps": [0.2, 0.8, 1.0],
            "average_entropy": [2.0 + 0.2 * seed, 3.0, 2.5],
            "entropy_of_average": [2.5, 3.2, 3.0],
            "grey_level_entropy_of_average": 6.0,
            "height": SIZE[0],
            "width": SIZE[1],
            "heatmap": [heat(rng) for _ in names],
        }
    )


def heat_tables(n_channels: int = 1) -> dict[str, Make]:
    return {"density-heatmaps": heatmaps, "density-channels": channels, "density-images": pictures(n_channels)}


def test_figure_2_is_of_the_network_without_dropout(tmp_path: Path) -> None:
    (figure,) = figure2.build(results(tmp_path, heat_tables(3)))
    check_files(figure)
    assert set(figure.frame["method"]) == {"none"}
    assert set(figure.frame["seed"]) == {0}
    assert set(figure.frame["entropy"]) == {3.0}
    assert "heatmap" not in figure.frame
    assert f"at most {np.log(30):.2f}" in figure.caption
    assert "No dropout, seed 0" in figure.caption


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_pixels_are_colours_or_grey(n_channels: int) -> None:
    row = pictures(n_channels)("none", 0).iloc[0]
    found = figure2._pixels(row)
    planes = row["pixels"].reshape(n_channels, *SIZE) / 255
    assert found.shape == (*SIZE, 3)
    for colour in range(3):
        assert np.allclose(found[:, :, colour], planes[colour] if n_channels == 3 else planes.mean(0))


def test_figure_2_of_another_network_where_all_have_dropout(tmp_path: Path) -> None:
    (figure,) = figure2.build(results(tmp_path, heat_tables(), methods=METHODS[2:]))
    assert set(figure.frame["method"]) == {"spatial"}


def test_figure_3_stands_beside_the_published_entropies(tmp_path: Path) -> None:
    figure, table = figure3.build(results(tmp_path, {"density-groups": groups}))
    check_files(figure)
    check_files(table)
    published = load()
    low, high = (published.value(f"heat-map-entropy-{level}-density") for level in ("low", "high"))
    assert f"low {low:.3f}, high {high:.3f}" in figure.caption
    rows = table.rows
    assert rows[-1][2:] == (f"{low:.3f}", GAP, f"{high:.3f}", GAP)
    assert rows[0] == (
        "No dropout",
        "mean of single maps, nats",
        "2.100 ± 0.141",
        GAP,
        "3.000 ± 0.000",
        "2.500 ± 0.000",
    )
    assert len(rows) == 3 * len(METHODS) + 1
    assert table.rules == {3, 6, 9, 12}
    assert "the 3 feature maps with the largest response" in table.caption
    assert f"at most {np.log(30):.3f} nats" in table.caption
    assert figure.frame["method"].unique().tolist() == ["none", "fdd-2d"]
    assert set(figure.frame["seed"]) == {0}
    assert set(table.frame["seed"]) == set(SEEDS)


# --- cost


def costs(method: str, seed: int) -> pd.DataFrame | None:
    if method == "none":
        return None
    row = {
        "layers": 1,
        "batch_size": 64,
        "steps_per_epoch": 100,
        "step_seconds": 20.0,
        "estimate_seconds": 0.0123 + 0.001 * seed,
        "mask_seconds": 0.5,
        "estimate_share": 0.0124 / 20,
        "mask_share": 0.5 / 20,
        "repetitions": 7,
        "hardware": "A machine",
        "device": "cpu",
        "threads": 1,
    }
    return pd.DataFrame([row])


def test_cost_stands_beside_the_published_figure(tmp_path: Path) -> None:
    (table,) = cost.build(results(tmp_path, {"cost": costs}))
    check_files(table)
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows)[:-1] == ["Original", "Spatial", "FDD-2D"]
    assert rows["FDD-2D"] == ("20 ± 0", "0.013 ± 0.001", "0.062 ± 0.000", "0.50 ± 0.00", "2.5 ± 0.0")
    assert table.rows[-1][2] == f"{load().value('pca-seconds-per-epoch'):g}"
    assert "A machine, 1 CPU thread;" in table.caption


# --- all


@pytest.mark.parametrize("module", [figure2, figure3, figure4, figure6, cost])
def test_nothing_is_made_of_a_run_without_analyses(tmp_path: Path, module: ModuleType) -> None:
    assert module.build(results(tmp_path, {})) == []
    tables = {**ACTIVATIONS, **heat_tables(), "density-groups": groups, "planes": plane, "cost": costs}
    of_others = {
        name: lambda method, seed, make=make: make("fdd-2d", seed) if method == "unplanned" else None
        for name, make in tables.items()
    }
    assert module.build(results(tmp_path / "other", of_others)) == []


def test_a_table_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    found = results(tmp_path, {"planes": lambda method, seed: pd.DataFrame({"image": [1]})})
    with pytest.raises(RunDirectoryError, match=r"planes--\* have no column .*channel, class"):
        figure6.build(found)


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.25], 2) == "1.25"
    assert mean_and_spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
