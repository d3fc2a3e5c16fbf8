"""The points of the curves: robust accuracy over epsilon, one panel for each attack and norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustfdd.report.results import Metric, Results
from robustfdd.report.study import Attack, Epsilon, Method, norm_title
from robustfdd.report.style import EpsilonAxis, Style, epsilon_axis, style
from robustfdd.report.tables import Entry, entry_at, worst_entry
from robustfdd.report.worst_case import NAME, TITLE, WorstCase, worst_case

#: How many characters are as long as the axis of the interactive figure on a narrow laptop screen.
_CHARACTERS = 70
_HOVER = "ε = %{customdata[0]}<br>robust accuracy %{customdata[1]} %<br>survival rate %{customdata[2]} %"
_AXIS = {"gridcolor": "#e5e7eb", "zeroline": False}
_LAYOUT = {
    "template": {},
    "font": {"family": "system-ui, sans-serif", "size": 14},
    "height": 520,
    "margin": {"l": 60, "r": 20, "t": 70, "b": 80},
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "yaxis": {**_AXIS, "title": {"text": "Robust accuracy (%)"}, "range": [-2, 102]},
    "legend": {"title": {"text": "Method (click to hide)"}},
}
_MENU = {"direction": "down", "showactive": True, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


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


def _curve(results: Results, i: int, attack: Attack | None, worst: WorstCase, grid: Sequence[Epsilon]) -> Curve:
    """The curve of the method at a position of the study; of its worst case without an attack."""
    method = results.study.methods[i]

    def entries(metric: Metric) -> tuple[Entry, ...]:
        if attack is None:
            return _envelope(results, worst, method, grid, metric)
        places = (results.place(method.label, attack.name, worst.norm, step) for step in range(len(grid) + 1))
        return tuple(entry_at(results, place, metric) for place in places)

    envelope = () if attack is None else _envelope(results, worst, method, grid, "robust_accuracy")
    return Curve(method, style(i), entries("robust_accuracy"), entries("survival_rate"), envelope)


def panels(results: Results) -> list[Panel]:
    """Every attack in every norm that it is run in, norm by norm, and last in each norm the worst case."""
    study = results.study
    found = []
    for norm in study.norms:
        worst = worst_case(results, norm)
        for attack in (*study.attacks, None):
            grid = attack.eps.get(norm, ()) if attack else worst.grid
            if grid:
                name, title = (attack.name, attack.title) if attack else (NAME, TITLE)
                curves = tuple(_curve(results, i, attack, worst, grid) for i in range(len(study.methods)))
                axis = epsilon_axis(grid, study.eps_unit)
                found.append(Panel(name, norm, f"{title}, {norm_title(norm)}", axis, curves))
    return found


def _plain(text: str) -> str:
    """A name as Plotly shows it unchanged; it would take tags and links in it for its own markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _hover(panel: Panel, curve: Curve, decimals: int) -> list[list[str]]:
    return [
        [radius, entry.text(decimals), survival.text(decimals)]
        for radius, entry, survival in zip(panel.axis.radii, curve.entries, curve.survival, strict=True)
    ]


def _drawn(entries: Sequence[Entry]) -> list[float | None]:
    """The means as Plotly takes them: nothing for a gap."""
    return [None if entry.mean is None else float(entry.mean) for entry in entries]


def _points(panel: Panel, decimals: int) -> dict[str, list[Any]]:
    """What the menu replaces in the traces: the curves of all methods, then the lines of their worst cases."""
    nothing: list[list[Any]] = [[] for _ in panel.curves]
    return {
        "x": [list(panel.axis.positions) for _ in range(2 * len(panel.curves))],
        "y": [*(_drawn(curve.entries) for curve in panel.curves), *(_drawn(curve.worst) for curve in panel.curves)],
        "error_y.array": [*([entry.std for entry in curve.entries] for curve in panel.curves), *nothing],
        "customdata": [*(_hover(panel, curve, decimals) for curve in panel.curves), *nothing],
    }


def _ticks(panel: Panel) -> dict[str, Any]:
    lines = panel.axis.labels if panel.axis.two_units else panel.axis.labels[:1]
    longest = [max(labels, key=len) for labels in zip(*lines, strict=True)]
    shown = panel.axis.labelled(longest, _CHARACTERS)
    return {
        "xaxis.tickvals": [panel.axis.positions[i] for i in shown],
        "xaxis.ticktext": ["<br>".join(labels[i] for labels in lines) for i in shown],
        "title.text": _plain(panel.title),
    }


def _traces(panel: Panel, start: dict[str, list[Any]], *, seeds: int) -> list[dict[str, Any]]:
    """Two a method: its curve, and the line of its worst case, which is hidden with the curve."""
    curves, envelopes = [], []
    for i, curve in enumerate(panel.curves):
        look, title, j = curve.style, curve.method.title, len(panel.curves) + i
        shared = {"type": "scatter", "legendgroup": str(i)}
        spread = {"type": "data", "array": start["error_y.array"][i], "visible": seeds > 1, "thickness": 1, "width": 3}
        curves.append(
            {
                **shared,
                **{key: start[key][i] for key in ("x", "y", "customdata")},
                "mode": "lines+markers",
                "name": _plain(title),
                "error_y": spread,
                "line": {"color": look.colour, "dash": look.dash, "width": 2},
                "marker": {"symbol": look.symbol, "size": 8, "color": look.colour},
                "hovertemplate": _HOVER,
            }
        )
        envelopes.append(
            {
                **shared,
                **{key: start[key][j] for key in ("x", "y")},
                "mode": "lines",
                "name": _plain(f"{title}: {TITLE.lower()}"),
                "showlegend": False,
                "hoverinfo": "skip",
                "line": {"color": look.colour, "width": 0.8},
            }
        )
    return curves + envelopes


def interactive_figure(found: list[Panel], *, seeds: int, decimals: int) -> dict[str, Any]:
    """A Plotly figure as JSON: all methods of one panel, with a menu to choose the panel.

    There are two traces a method, its curve and the thin line of its worst case, and the menu replaces their points, so
    a method that the reader has switched off stays off in the next panel.

    Args:
        found: the panels, at least one.
        seeds: how many training seeds the study has; from two on, bars show their spread.
        decimals: of the percentages that are shown when the reader points at the figure.
    """
    changes = [(_points(panel, decimals), _ticks(panel)) for panel in found]
    start, ticks = changes[0]
    axis = found[0].axis
    title = f"ε: {axis.units[0]} (upper line), {axis.units[1]} (lower line)" if axis.two_units else axis.title
    buttons = [
        {"label": _plain(panel.title), "method": "update", "args": list(change)}
        for panel, change in zip(found, changes, strict=True)
    ]
    layout = {
        **_LAYOUT,
        "title": {"text": ticks["title.text"], "x": 0.5},
        "xaxis": {
            **_AXIS,
            "tickvals": ticks["xaxis.tickvals"],
            "ticktext": ticks["xaxis.ticktext"],
            "title": {"text": title},
            "range": [-0.03, 1.03],
        },
        "updatemenus": [{**_MENU, "buttons": buttons}] if len(found) > 1 else [],
    }
    return {"data": _traces(found[0], start, seeds=seeds), "layout": layout}
