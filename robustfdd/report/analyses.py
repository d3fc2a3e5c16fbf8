"""The tables that analyses of the trained models left in a run, and what the figures drawn from them share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from robustfdd.errors import RunDirectoryError
from robustfdd.report.results import Results
from robustfdd.report.study import Method


def analysis_table(results: Results, name: str, columns: Collection[str]) -> pd.DataFrame | None:
    """The rows of a table that belong to methods of the study, method by method and seed by seed.

    Args:
        results: the run.
        name: of the table.
        columns: what is read of it.

    Returns:
        At least one row; None where the run has none.

    Raises:
        RunDirectoryError: a column is missing.
    """
    frame = results.run.analyses.get(name)
    if frame is None:
        return None
    missing = sorted(set(columns) - set(frame.columns))
    if missing:
        raise RunDirectoryError(
            f"{results.run.path / 'analysis'}: the files {name}--* have no column {', '.join(missing)}; remove them, "
            "and the next analysis remakes them"
        )
    order = {method.label: i for i, method in enumerate(results.study.methods)}
    frame = frame[frame["method"].isin(list(order))]
    position = pd.Series([order[label] for label in frame["method"]], index=frame.index)
    rows = frame.assign(_position=position).sort_values(["_position", "seed"], kind="stable").drop(columns="_position")
    return rows.reset_index(drop=True) if len(rows) else None


def methods_of(results: Results, frame: pd.DataFrame) -> list[Method]:
    """The methods that have rows, in the order of the study."""
    found = set(frame["method"])
    return [method for method in results.study.methods if method.label in found]


def first_of(methods: Sequence[Method], dropout: str) -> Method | None:
    """Of the methods with that dropout and no recipe of their own: that under the dropout's own name, or the first."""
    found = [method for method in methods if method.dropout == dropout and not method.settings.get("recipe")]
    return next((method for method in found if method.label == dropout), found[0] if found else None)


def mean_and_spread(values: Sequence[float], decimals: int) -> str:
    """The mean over seeds, and the sample standard deviation where there are several."""
    spread = f" ± {np.std(values, ddof=1):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


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
