"""The pictures of the audit: small multiples, one panel a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from robustfdd.report.columns import listed
from robustfdd.report.figures import drawn, named, small_multiples
from robustfdd.report.study import Method, number
from robustfdd.report.style import style

#: The pictures in their order, and how each is read.
PICTURES = {
    "loss-along-attack": (
        "An attack that works raises the loss from the first step on and levels out before the last. A line that stays "
        "flat has no gradient to follow; one that still rises at the end has too few steps; one that jumps up and down "
        "has too long ones."
    ),
    "loss-surface": (
        "Over a plane through one test image, which is in the middle; bright is high, each panel has its own scale, "
        "given above it; the thick line is 0. Gradients lead up a smooth slope; on a plateau, or among peaks without "
        "order, they lead nowhere."
    ),
    "unbounded": (
        "With a budget as large as the box every image can be turned into any other, so the accuracy must fall to 0. "
        "Where it does not, the attack fails, and so do its figures at smaller budgets."
    ),
    "steps": "Where more steps still lower the accuracy, the attack under audit has too few of them.",
    "logit-scale": (
        "The attack with the logits divided by a number: predictions are the same, only the gradients that the attack "
        "follows differ. A figure that depends on this number is one of the attack, not of the model."
    ),
}
#: Pictures of accuracy, whose x axis is logarithmic, from its smallest value above 0 where it has a 0.
_LOGARITHMIC = ("unbounded", "steps", "logit-scale")
#: Lines up to which each has its own colour and a place in the legend.
_N_NAMED = 8
_BOLD: dict[str, Any] = {"linewidth": 1.3, "marker": ".", "markersize": 4}
_FINE: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6}
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")


def _panels(n: int, *, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    figure, grid = small_multiples(n, width=2.7, height=height, least=4.2, rest=0.7, **shared)
    for axes in grid:
        axes.tick_params(labelsize=8)
    return figure, grid


def _label(figure: Figure, rows: pd.DataFrame) -> None:
    figure.supxlabel(str(rows["x_title"].iloc[0]), fontsize=10)
    figure.supylabel(str(rows["y_title"].iloc[0]), fontsize=10)


def _scale(axes: Axes, kind: str, x: Sequence[float]) -> None:
    """The x axis of a picture, with a tick at every value where there is room."""
    values = sorted({value for value in x if math.isfinite(value)})
    positive = [value for value in values if value > 0]
    if kind not in _LOGARITHMIC or len(positive) < 2:
        return
    if positive == values:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        axes.set_xlim(left=values[0])
    stride = math.ceil(len(values) / 7)
    ticks = values[::-1][::stride][::-1]
    axes.set_xticks(ticks, [number(value, 2) for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


@drawn
def draw_lines(methods: Sequence[Method], rows: pd.DataFrame, kind: str) -> Figure:
    """Lines by colour, the first seed solid, the further ones dashed.

    Args:
        methods: that have rows, in the order of the study.
        rows: of one picture, one row a line.
        kind: of the picture.
    """
    series = list(dict.fromkeys(map(str, rows["series"])))
    several = len(series) <= _N_NAMED
    colours = {name: style(i + 3 if several else 0).colour for i, name in enumerate(series)}
    accuracy = kind in _LOGARITHMIC
    figure, grid = _panels(len(methods), height=2.1, sharex=True, sharey=accuracy)
    lines: dict[str, Line2D] = {}
    for axes, method in zip(grid, methods, strict=True):
        mine = rows[rows["method"] == method.label]
        seeds = sorted(set(mine["seed"]))
        for row in mine.to_dict("records"):
            name = str(row["series"])
            look = {"color": colours[name], "linestyle": _DASHES[seeds.index(row["seed"]) % len(_DASHES)]}
            look |= _BOLD if several else _FINE
            (line,) = axes.plot(listed(row["x"]), listed(row["y"]), clip_on=False, **look)
            lines.setdefault(name, line)
        axes.set_title(method.title, fontsize=10)
        axes.grid(True)
    if accuracy:
        grid[0].set_ylim(bottom=0)  # of all panels, once they have all their lines
    _scale(grid[0], kind, [value for values in rows["x"] for value in listed(values)])
    _label(figure, rows)
    if several and len(series) > 1:
        handles = [lines[name] for name in series]
        named(figure, handles, series, loc="outside upper center", ncols=min(len(series), 4), fontsize=9)
    return figure


@drawn
def draw_surfaces(methods: Sequence[Method], rows: pd.DataFrame) -> Figure:
    """Surfaces as heat maps with contour lines, each on a scale of its own.

    Args:
        methods: that have rows, in the order of the study.
        rows: of one picture, one row a surface.
    """
    titles = {method.label: method.title for method in methods}
    records = sorted(rows.to_dict("records"), key=lambda row: list(titles).index(row["method"]))
    figure, grid = _panels(len(records), height=2.4)
    for axes, row in zip(grid, records, strict=True):
        x, y, z = (np.asarray(listed(row[axis]), dtype=np.float64) for axis in "xyz")
        surface = np.ma.masked_invalid(z.reshape(len(y), len(x)))
        low, high = (float(surface.min()), float(surface.max())) if surface.count() else (0.0, 0.0)
        axes.pcolormesh(x, y, surface, shading="nearest", cmap="viridis", rasterized=True)
        if low < high and min(surface.shape) > 1:
            axes.contour(x, y, surface, levels=8, colors="white", linewidths=0.4)
            if low < 0 < high:
                axes.contour(x, y, surface, levels=[0.0], colors="white", linewidths=1.8, linestyles="-")
        name = titles[row["method"]] + (f", {row['series']}" if len(records) > len(methods) else "")
        reach = f"{number(low, 3)} to {number(high, 3)}".replace("-", "−")
        axes.set_title(f"{name}\n{reach}", fontsize=9)
        axes.tick_params(labelbottom=True)
    _label(figure, rows)
    return figure
