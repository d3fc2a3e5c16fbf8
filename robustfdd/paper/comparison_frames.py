"""A comparison with the paper as data: one frame for each of its CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustfdd.paper.comparison import Comparison
from robustfdd.paper.ordering import Ordering
from robustfdd.paper.published import PublishedCell
from robustfdd.rounding import rounded


def _cell_record(cell: PublishedCell) -> dict[str, Any]:
    return {
        "table": cell.place,
        "dataset": cell.dataset,
        "attack": cell.attack,
        "norm": cell.norm,
        "eps_normalized": cell.eps_normalized,
        "method": cell.method,
        "published_percent": cell.accuracy_percent,
        "published_std_percent": cell.std_percent,
    }


def _frame(records: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    frame: pd.DataFrame = pd.DataFrame.from_records(records, columns=list(columns))
    return frame


_CELL = tuple(_cell_record(PublishedCell(place="", dataset="", method="", accuracy_percent=0.0)))


def figures_frame(comparison: Comparison) -> pd.DataFrame:
    """Every figure that both have, one row each; ``dataset`` is the paper's, ``run_dataset`` the run's."""
    records = [
        {
            **_cell_record(pair.published),
            "run_dataset": comparison.results.study.dataset,
            "label": pair.method.label,
            "run_percent": rounded(pair.mean, 4),
            "run_std_percent": None if pair.ours.std is None else rounded(pair.ours.std, 4),
            "n_seeds": pair.ours.n_seeds,
            "n_images": pair.n_images,
            "difference_points": rounded(pair.difference, 4),
        }
        for pair in comparison.pairs
    ]
    own = ("run_dataset", "label", "run_percent", "run_std_percent", "n_seeds", "n_images", "difference_points")
    return _frame(records, [*_CELL, *own])


def _order_text(item: Ordering, *, ours: bool) -> str:
    return " > ".join(" = ".join(names) for names in item.order(ours=ours))


def ordering_frame(comparison: Comparison) -> pd.DataFrame:
    """The rank correlations as data, with the two orders spelled out."""
    records = [
        {
            **{key: _cell_record(item.pairs[0].published)[key] for key in _CELL[:5]},
            "n_methods": len(item.pairs),
            "spearman": item.spearman,
            "spearman_p": item.spearman_p,
            "kendall": item.kendall,
            "kendall_p": item.kendall_p,
            "remark": item.remark,
            "published_order": _order_text(item, ours=False),
            "run_order": _order_text(item, ours=True),
        }
        for item in comparison.orderings
    ]
    return _frame(records, list(records[0]))


def summary_frame(comparison: Comparison) -> pd.DataFrame:
    """The summary as data; the row over all tables and figures is called ``all``."""
    records = [
        {
            "table": item.place or "all",
            "n_cells": item.n_cells,
            "median_difference_points": float(item.median),
            "mean_absolute_difference_points": float(item.mean_absolute),
            "n_close": item.n_close,
            "median_spearman": item.spearman,
            "median_kendall": item.kendall,
            "n_ordered": item.n_ordered,
            "n_same_best": item.n_same_best,
            **{
                f"{column}_{entry.baseline}": getattr(entry, column)
                for entry in item.versus
                for column in ("agreeing", "decided", "tied")
            },
        }
        for item in comparison.summaries
    ]
    return _frame(records, list(records[0]))


def setup_frame(comparison: Comparison) -> pd.DataFrame:
    """The differences of set-up as data."""
    return _frame([vars(item) for item in comparison.setup], ("key", "title", "paper", "ours", "kind"))


def not_run_frame(comparison: Comparison) -> pd.DataFrame:
    """Every published figure that the run has nothing for, one row each."""
    records = [{**_cell_record(item.published), "reason": item.reason} for item in comparison.not_run]
    return _frame(records, [*_CELL, "reason"])
