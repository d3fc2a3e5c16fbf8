"""The pictures of a comparison with the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfdd.paper.comparison import Comparison
from robustfdd.paper.comparison_tables import block_titles
from robustfdd.paper.matching import Pair
from robustfdd.paper.ordering import CLOSE_POINTS, Ordering
from robustfdd.report.figures import GREY, drawn, legend, looks
from robustfdd.report.style import Style

_PAPER = "Paper (%)"


def _run_name(comparison: Comparison) -> str:
    study = comparison.results.study
    return f"This run, {study.dataset}" if comparison.stand_in else "This run"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.05 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _scatter(axes: Axes, pairs: Sequence[Pair], look_of: Mapping[str, tuple[str, Style]]) -> None:
    reach: list[float] = []
    for pair in pairs:
        _, look = look_of[pair.method.label]
        x, x_error = pair.published.accuracy_percent, pair.published.std_percent or 0.0
        y, y_error = float(pair.mean), pair.ours.std or 0.0
        axes.errorbar(
            x, y, xerr=x_error or None, yerr=y_error or None, color=look.colour, marker=look.marker, elinewidth=0.8
        )
        reach += [x - x_error, x + x_error, y - y_error, y + y_error]
    limits = _limits(reach)
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.grid(True)


def _legend(figure: Figure, comparison: Comparison) -> None:
    compared = {pair.method.label for pair in comparison.pairs}
    entries = [entry for label, entry in looks(comparison.results.study).items() if label in compared]
    legend(figure, entries, line=False, loc="outside lower center", ncols=min(len(entries), 5))


@drawn
def draw_scatter(comparison: Comparison) -> Figure:
    """The run's figures over the published ones, one panel for each table or figure; equal ones are on the diagonal."""
    look_of, places = looks(comparison.results.study), comparison.places
    figure = Figure(figsize=(max(3.4 * len(places), 5.0), 4.3))
    grid = figure.subplots(1, len(places), squeeze=False)[0]
    for place, axes in zip(places, grid, strict=True):
        _scatter(axes, comparison.of(place), look_of)
        axes.set_title(place.title)
        axes.set_xlabel(f"{_PAPER}, {comparison.dataset}" if comparison.stand_in else _PAPER)
    grid[0].set_ylabel(f"{_run_name(comparison)} (%)")
    _legend(figure, comparison)
    return figure


def _differences(axes: Axes, found: Sequence[Ordering], comparison: Comparison) -> None:
    """One line for each attack and radius, one mark for each method."""
    look_of = looks(comparison.results.study)
    axes.axvspan(-CLOSE_POINTS, CLOSE_POINTS, color="#e5e7eb", linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for height, item in enumerate(found):
        differences = [float(pair.difference) for pair in item.pairs]
        axes.plot([min(0, *differences), max(0, *differences)], [height] * 2, color="#9ca3af", linewidth=0.8)
        for pair, difference in zip(item.pairs, differences, strict=True):
            _, look = look_of[pair.method.label]
            axes.plot(difference, height, color=look.colour, marker=look.marker, clip_on=False)
    titles = (block_titles(comparison, item.pairs[0].published) for item in found)
    axes.set_yticks(np.arange(len(found)), [f"{attack}, ε = {eps}" for attack, eps in titles])
    axes.set_ylim(len(found) - 0.5, -0.5)


@drawn
def draw_differences(comparison: Comparison) -> Figure:
    """The run minus the paper, one line for each attack and radius, one mark for each method.

    The band holds what counts as close.
    """
    places = comparison.places
    found = [[item for item in comparison.orderings if item.place == place.name] for place in places]
    counts = list(map(len, found))
    figure = Figure(figsize=(7.2, 0.26 * sum(counts) + 0.7 * len(places) + 1.2))
    # A line is as high in a short panel as in a long one.
    grid = figure.subplots(len(places), 1, squeeze=False, sharex=True, height_ratios=[n + 0.6 for n in counts])[:, 0]
    for place, axes, orderings in zip(places, grid, found, strict=True):
        _differences(axes, orderings, comparison)
        axes.set_title(place.title)
    grid[-1].set_xlabel(f"{_run_name(comparison)} minus paper (percentage points)")
    _legend(figure, comparison)
    return figure
