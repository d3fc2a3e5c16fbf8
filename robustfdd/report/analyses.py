"""The tables that analyses of the trained models left in a run, and what the figures drawn from them share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from robustfdd.report.columns import check_columns
from robustfdd.report.exhibit import GAP
from robustfdd.report.results import Results
from robustfdd.report.study import Method
from robustfdd.rounding import Figure, mean, share, variance, with_spread

#: A method and its rows of a table.
MethodRows: TypeAlias = tuple[Method, pd.DataFrame]

#: What a caption says where figures of analyses are over several seeds.
SPREAD = " Mean ± sample standard deviation over seeds."


def analysis_table(results: Results, name: str, columns: Collection[str]) -> pd.DataFrame | None:
    """The rows of a table that belong to methods of the study, method by method and seed by seed.

    Args:
        results: the run.
        name: of the table.
        columns: what is read of it.

    Returns:
        At least one row; None where the run has none.

    Raises:
        RunDirectoryError: a column is missing, or holds something else than it should.
    """
    frame = results.run.analyses.get(name)
    if frame is None:
        return None
    check_columns(frame, name, results.run.path / "analysis", columns)
    order = {method.label: i for i, method in enumerate(results.study.methods)}
    frame = frame[frame["method"].isin(list(order))]
    position = pd.Series([order[label] for label in frame["method"]], index=frame.index)
    rows = frame.assign(_position=position).sort_values(["_position", "seed"], kind="stable").drop(columns="_position")
    return rows.reset_index(drop=True) if len(rows) else None


def methods_of(results: Results, frame: pd.DataFrame) -> list[Method]:
    """The methods that have rows, in the order of the study."""
    found = set(frame["method"])
    return [method for method in results.study.methods if method.label in found]


def by_method(results: Results, frame: pd.DataFrame) -> list[MethodRows]:
    """The methods that have rows, in the order of the study, each with its rows."""
    return [(method, frame[frame["method"] == method.label]) for method in methods_of(results, frame)]


def first_of(methods: Sequence[Method], dropout: str) -> Method | None:
    """Of the methods with that dropout and no recipe of their own: that under the dropout's own name, or the first."""
    found = [method for method in methods if method.dropout == dropout and not method.settings.get("recipe")]
    return next((method for method in found if method.label == dropout), found[0] if found else None)


def mean_and_spread(values: Sequence[Figure], decimals: int) -> str:
    """The mean over seeds, and the sample standard deviation where there are several."""
    if not all(math.isfinite(value) for value in values):
        return GAP
    return with_spread(mean(values), variance(values) if len(values) > 1 else None, decimals)


def shares(rows: pd.DataFrame, column: str) -> list[Fraction]:
    """The shares of a column as counts over all features of all images, one a model."""
    sizes = rows["n_images"] * rows["n_features"]
    return [share(value, int(of)) for value, of in zip(rows[column], sizes, strict=True)]


def seeds_of(frame: pd.DataFrame) -> list[int]:
    """The seeds that have rows, ascending."""
    return sorted({int(seed) for seed in frame["seed"]})


def cell_borders(axes: Axes, points: npt.NDArray[np.float64], n_bins: int) -> None:
    """Draw the borders of the cells in which density is counted.

    Args:
        axes: two principal components.
        points: shape (C, 2); their extremes are the outer borders.
        n_bins: number of cells in each dimension.
    """
    (left, bottom), (right, top) = points.min(0), points.max(0)
    look: dict[str, Any] = {"color": "#d1d5db", "linewidth": 0.8, "zorder": 0}
    axes.vlines(np.linspace(left, right, n_bins + 1), bottom, top, **look)
    axes.hlines(np.linspace(bottom, top, n_bins + 1), left, right, **look)
