"""The results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.contenders import CONTENDERS, REFERENCE


def _saved(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _ratio_axis(axes: Any, label: str, at: float) -> None:
    axes.axvline(at, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_axisbelow(True)


def sweep_figure(summary: pd.DataFrame, path: Path) -> None:
    """Time of each contender in units of the reference's; one group of bars a sweep."""
    titles = list(dict.fromkeys(summary["title"]))
    names = [name for name in CONTENDERS if name != REFERENCE and name in set(summary["contender"])]
    figure = Figure(figsize=(7, 0.6 + 0.16 * len(titles) * (len(names) + 1)))
    axes = figure.add_subplot()
    height = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        rows = summary[summary["contender"] == name].set_index("title")
        at = [i for i, title in enumerate(titles) if title in rows.index]
        found = rows.loc[[titles[i] for i in at]]
        errors = np.stack([found["ratio"] - found["ratio_low"], found["ratio_high"] - found["ratio"]])
        where = np.array(at) + k * height
        axes.barh(where, found["ratio"], height * 0.9, label=name)
        axes.errorbar(found["ratio"], where, xerr=errors, fmt="none", ecolor="black", elinewidth=0.7)
    axes.set_yticks(np.arange(len(titles)) + height * (len(names) - 1) / 2, titles)
    axes.invert_yaxis()
    _ratio_axis(axes, f"time / time of {REFERENCE}", 1.0)
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    figure.set_layout_engine("constrained")
    _saved(figure, path)


def dropout_figure(dropout: pd.DataFrame, path: Path) -> None:
    """What each dropout adds to a training step, in per cent, with its interval."""
    names = list(dict.fromkeys(dropout["dropout"]))
    groups = list(dropout.groupby(["width", "batch_size"], sort=True))
    figure = Figure(figsize=(6, 0.8 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for k, ((width, size), rows) in enumerate(groups):
        by_name = rows.set_index("dropout").loc[names]
        middle, low, high = (100 * (by_name[c] - 1) for c in ("ratio", "ratio_low", "ratio_high"))
        at = np.arange(len(names)) + 0.6 * ((k + 0.5) / len(groups) - 0.5)
        errors = np.stack([middle - low, high - middle])
        axes.errorbar(middle, at, xerr=errors, fmt="o", markersize=4, label=f"width {width}, batch {size}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _ratio_axis(axes, "added to a training step, %", 0.0)
    axes.legend(fontsize="small")
    _saved(figure, path)


def training_figure(training: pd.DataFrame, path: Path) -> None:
    """Images a second of each way to train."""
    figure = Figure(figsize=(6, 0.8 + 0.3 * len(training)), layout="constrained")
    axes = figure.add_subplot()
    labels = training["contender"] + ", " + training["precision"]
    axes.barh(range(len(training)), training["images_per_second"], 0.7)
    axes.set_yticks(range(len(training)), list(labels))
    axes.invert_yaxis()
    _ratio_axis(axes, "images a second", 0.0)
    _saved(figure, path)
