"""The pictures of a comparison with the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfdd.paper.comparison import Comparison
from robustfdd.paper.comparison_tables import block_titles
from robustfdd.paper.matching import Pair
from robustfdd.paper.ordering import CLOSE_POINTS
from robustfdd.report.figures import drawing, legend, render
from robustfdd.report.study import Method
from robustfdd.report.style import Style, style

_PAPER = "Paper (%)"


def _styles(comparison: Comparison) -> dict[str, Style]:
    """The look that each method of the run has in every figure, by label."""
    return {method.label: style(i) for i, method in enumerate(comparison.results.study.methods)}


def _methods(comparison: Comparison) -> list[Method]:
    compared = {pair.method.label for pair in comparison.pairs}
    return [method for method in comparison.results.study.methods if method.label in compared]


def _run_name(comparison: Comparison) -> str:
    study = comparison.results.study
    return f"This run, {study.dataset}" if comparison.stand_in else "This run"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.05 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _scatter(axes: Axes, pairs: Sequence[Pair], looks: dict[str, Style]) -> None:
    reach: list[float] = []
    for pair in pairs:
        x, y, look = pair.published.accuracy_percent, float(pair.mean), looks[pair.method.label]
        x_error, y_error = pair.published.std_percent or 0.0, pair.ours.std or 0.0
        axes.errorbar(
            x, y, xerr=x_error or None, yerr=y_error or None, color=look.colour, marker=look.marker, elinewidth=0.8
        )
        reach += [x - x_error, x + x_error, y - y_error, y + y_error]
    limits = _limits(reach)
    axes.plot(limits, limits, color="#6b7280", linewidth=0.8, zorder=0)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.grid(True)


def draw_scatter(comparison: Comparison) -> dict[str, bytes]:
    """The run's figures over the published ones, one panel for each table or figure; equal ones are on the diagonal.

    Returns:
        The files by extension, ``png`` and ``pdf``.
    """
    looks, methods, places = _styles(comparison), _methods(comparison), comparison.places
    with drawing():
        figure = Figure(figsize=(max(3.4 * len(places), 5.0), 4.3))
        for i, (place, axes) in enumerate(zip(places, figure.subplots(1, len(places), squeeze=False)[0], strict=True)):
            _scatter(axes, comparison.of(place), looks)
            axes.set_title(place.title)
            axes.set_xlabel(f"{_PAPER}, {comparison.dataset}" if comparison.stand_in else _PAPER)
            if i == 0:
                axes.set_ylabel(f"{_run_name(comparison)} (%)")
        _legend(figure, comparison, methods)
        return render(figure)


def _legend(figure: Figure, comparison: Comparison, methods: Sequence[Method]) -> None:
    looks = _styles(comparison)
    legend(
        figure,
        [replace(looks[method.label], line="") for method in methods],
        [method.title for method in methods],
        marker=True,
        loc="outside lower center",
        ncols=min(len(methods), 5),
    )


def draw_differences(comparison: Comparison) -> dict[str, bytes]:
    """The run minus the paper, one line for each attack and radius, one mark for each method.

    The band holds what counts as close.

    Returns:
        The files by extension, ``png`` and ``pdf``.
    """
    looks, methods, places = _styles(comparison), _methods(comparison), comparison.places
    counts = [sum(item.place == place.name for item in comparison.orderings) for place in places]
    with drawing():
        figure = Figure(figsize=(7.2, 0.26 * sum(counts) + 0.7 * len(places) + 1.2))
        # A line is as high in a short panel as in a long one.
        grid = figure.subplots(len(places), 1, squeeze=False, sharex=True, height_ratios=[n + 0.6 for n in counts])
        for place, axes in zip(places, grid[:, 0], strict=True):
            found = [item for item in comparison.orderings if item.place == place.name]
            axes.axvspan(-CLOSE_POINTS, CLOSE_POINTS, color="#e5e7eb", linewidth=0)
            axes.axvline(0, color="#6b7280", linewidth=0.8)
            for height, item in enumerate(found):
                differences = [pair.difference for pair in item.pairs]
                axes.plot([min(0, *differences), max(0, *differences)], [height] * 2, color="#9ca3af", linewidth=0.8)
                for pair, difference in zip(item.pairs, differences, strict=True):
                    look = looks[pair.method.label]
                    axes.plot(difference, height, color=look.colour, marker=look.marker, clip_on=False)
            titles = [block_titles(comparison, item.pairs[0].published) for item in found]
            labels = [f"{attack}, ε = {eps}" for attack, eps in titles]
            axes.set_yticks(np.arange(len(found)), labels)
            axes.set_ylim(len(found) - 0.5, -0.5)
            axes.set_title(place.title)
        grid[-1, 0].set_xlabel(f"{_run_name(comparison)} minus paper (percentage points)")
        _legend(figure, comparison, methods)
        return render(figure)
