"""The points of the curves: robust accuracy over epsilon, one panel for each attack and norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustfdd.report.results import Metric, Results
from robustfdd.report.study import Epsilon, Method, norm_title
from robustfdd.report.style import EpsilonAxis, Style, epsilon_axis, style
from robustfdd.report.tables import Entry, entry_at, worst_entry
from robustfdd.report.worst_case import NAME, TITLE, WorstCase, worst_case

#: How many characters are as long as the axis of the interactive figure on a narrow laptop screen.
_CHARACTERS = 70


@dataclass(frozen=True)
class Curve:
    """One method in one panel; the first entry is the clean accuracy, then one for each radius.

    ``worst`` is the worst case at the radii of the panel, the lower envelope of all attacks; empty in the panel that
    shows the worst case itself.
    """

    method: Method
    style: Style
    entries: tuple[Entry, ...]
    survival: tuple[Entry, ...]
    worst: tuple[Entry, ...]


@dataclass(frozen=True)
class Panel:
    """One attack in one norm, or the worst case over all of them."""

    attack: str
    norm: str
    title: str
    axis: EpsilonAxis
    curves: tuple[Curve, ...]


def _envelope(
    results: Results, worst: WorstCase, method: Method, grid: Sequence[Epsilon], metric: Metric
) -> tuple[Entry, ...]:
    """The worst case of a method before any attack and at some radii of the study."""
    steps = worst.steps()
    clean = entry_at(results, results.clean_place(method.label, worst.norm), metric)
    return clean, *(worst_entry(worst, method.label, steps[eps.key], metric) for eps in grid)


def panels(results: Results) -> list[Panel]:
    """Every attack in every norm that it is run in, norm by norm, and last in each norm the worst case."""
    study = results.study
    found = []
    for norm in study.norms:
        worst = worst_case(results, norm)
        for attack in study.attacks:
            grid = attack.eps.get(norm, ())
            if not grid:
                continue
            curves = []
            for i, method in enumerate(study.methods):
                places = [results.place(method.label, attack.name, norm, step) for step in range(len(grid) + 1)]
                curves.append(
                    Curve(
                        method,
                        style(i),
                        tuple(entry_at(results, place, "robust_accuracy") for place in places),
                        tuple(entry_at(results, place, "survival_rate") for place in places),
                        _envelope(results, worst, method, grid, "robust_accuracy"),
                    )
                )
            title = f"{attack.title}, {norm_title(norm)}"
            found.append(Panel(attack.name, norm, title, epsilon_axis(grid, study.eps_unit), tuple(curves)))
        if worst.grid:
            envelopes = tuple(
                Curve(
                    method,
                    style(i),
                    _envelope(results, worst, method, worst.grid, "robust_accuracy"),
                    _envelope(results, worst, method, worst.grid, "survival_rate"),
                    (),
                )
                for i, method in enumerate(study.methods)
            )
            title = f"{TITLE}, {norm_title(norm)}"
            found.append(Panel(NAME, norm, title, epsilon_axis(worst.grid, study.eps_unit), envelopes))
    return found


def _drawn(entry: Entry) -> float | None:
    """The mean as Plotly takes it: nothing for a gap."""
    return None if entry.mean is None else float(entry.mean)


def _hover(panel: Panel, curve: Curve, decimals: int) -> list[list[str]]:
    return [
        [radius, entry.text(decimals), survival.text(decimals)]
        for radius, entry, survival in zip(panel.axis.radii, curve.entries, curve.survival, strict=True)
    ]


def _plain(text: str) -> str:
    """A name as Plotly shows it unchanged; it would take tags and links in it for its own markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def interactive_figure(found: list[Panel], *, seeds: int, decimals: int) -> dict[str, Any]:
    """A Plotly figure as JSON: all methods of one panel, with a menu to choose the panel.

    There are two traces a method, its curve and the thin line of its worst case, and the menu replaces their points, so
    a method that the reader has switched off stays off in the next panel.

    Args:
        found: the panels, at least one.
        seeds: how many training seeds the study has; from two on, bars show their spread.
        decimals: of the percentages that are shown when the reader points at the figure.
    """

    def points(panel: Panel) -> dict[str, Any]:
        n = len(panel.curves)
        nothing: list[list[Any]] = [[] for _ in range(n)]
        return {
            "x": [list(panel.axis.positions) for _ in range(2 * n)],
            "y": [
                *([_drawn(entry) for entry in curve.entries] for curve in panel.curves),
                *([_drawn(entry) for entry in curve.worst] for curve in panel.curves),
            ],
            "error_y.array": [*([entry.std for entry in curve.entries] for curve in panel.curves), *nothing],
            "customdata": [*(_hover(panel, curve, decimals) for curve in panel.curves), *nothing],
        }

    def ticks(panel: Panel) -> dict[str, Any]:
        lines = panel.axis.labels if panel.axis.two_units else panel.axis.labels[:1]
        longest = [max(labels, key=len) for labels in zip(*lines, strict=True)]
        shown = panel.axis.labelled(longest, _CHARACTERS)
        return {
            "xaxis.tickvals": [panel.axis.positions[i] for i in shown],
            "xaxis.ticktext": ["<br>".join(labels[i] for labels in lines) for i in shown],
            "title.text": _plain(panel.title),
        }

    first = found[0]
    title = first.axis.title
    if first.axis.two_units:
        main, other = first.axis.units
        title = f"ε: {main} (upper line), {other} (lower line)"
    start, start_ticks = points(first), ticks(first)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": _plain(curve.method.title),
            "legendgroup": str(i),
            "x": start["x"][i],
            "y": start["y"][i],
            "customdata": start["customdata"][i],
            "error_y": {
                "type": "data",
                "array": start["error_y.array"][i],
                "visible": seeds > 1,
                "thickness": 1,
                "width": 3,
            },
            "line": {"color": curve.style.colour, "dash": curve.style.dash, "width": 2},
            "marker": {"symbol": curve.style.symbol, "size": 8, "color": curve.style.colour},
            "hovertemplate": (
                "ε = %{customdata[0]}<br>robust accuracy %{customdata[1]} %<br>survival rate %{customdata[2]} %"
            ),
        }
        for i, curve in enumerate(first.curves)
    ]
    # Hidden with the curve of the same method.
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _plain(f"{curve.method.title}: {TITLE.lower()}"),
            "legendgroup": str(i),
            "showlegend": False,
            "hoverinfo": "skip",
            "x": start["x"][len(first.curves) + i],
            "y": start["y"][len(first.curves) + i],
            "line": {"color": curve.style.colour, "width": 0.8},
        }
        for i, curve in enumerate(first.curves)
    ]
    menu = {
        "buttons": [
            {"label": _plain(panel.title), "method": "update", "args": [points(panel), ticks(panel)]} for panel in found
        ],
        "direction": "down",
        "showactive": True,
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
    }
    layout = {
        "template": {},
        "title": {"text": start_ticks["title.text"], "x": 0.5},
        "font": {"family": "system-ui, sans-serif", "size": 14},
        "height": 520,
        "margin": {"l": 60, "r": 20, "t": 70, "b": 80},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {
            "tickvals": start_ticks["xaxis.tickvals"],
            "ticktext": start_ticks["xaxis.ticktext"],
            "title": {"text": title},
            "range": [-0.03, 1.03],
            "gridcolor": "#e5e7eb",
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": "Robust accuracy (%)"},
            "range": [-2, 102],
            "gridcolor": "#e5e7eb",
            "zeroline": False,
        },
        "legend": {"title": {"text": "Method (click to hide)"}},
        "updatemenus": [menu] if len(found) > 1 else [],
    }
    return {"data": traces, "layout": layout}
