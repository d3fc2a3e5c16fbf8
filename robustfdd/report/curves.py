"""The points of the curves: robust accuracy over epsilon, one panel for each attack and norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robustfdd.report.results import Place, Results
from robustfdd.report.study import Method, norm_title
from robustfdd.report.style import EpsilonAxis, Style, epsilon_axis, style
from robustfdd.report.tables import Entry, entry_at

#: How many characters are as long as the axis of the interactive figure on a narrow laptop screen.
_CHARACTERS = 70


@dataclass(frozen=True)
class Curve:
    """One method in one panel; the first entry is the clean accuracy, then one for each radius."""

    method: Method
    style: Style
    entries: tuple[Entry, ...]
    survival: tuple[Entry, ...]


@dataclass(frozen=True)
class Panel:
    """One attack in one norm."""

    attack: str
    norm: str
    title: str
    axis: EpsilonAxis
    curves: tuple[Curve, ...]


def panels(results: Results) -> list[Panel]:
    """Every attack in every norm that it is run in, norm by norm, from the records of the primary engine."""
    study = results.study
    found = []
    for norm in study.norms:
        for attack in study.attacks:
            grid = attack.eps.get(norm, ())
            if not grid:
                continue
            curves = []
            for i, method in enumerate(study.methods):
                places = [Place(method.label, attack.name, norm, study.engine, step) for step in range(len(grid) + 1)]
                curves.append(
                    Curve(
                        method,
                        style(i),
                        tuple(entry_at(results, place, "robust_accuracy") for place in places),
                        tuple(entry_at(results, place, "survival_rate") for place in places),
                    )
                )
            title = f"{attack.title}, {norm_title(norm)}"
            found.append(Panel(attack.name, norm, title, epsilon_axis(grid, study.eps_unit), tuple(curves)))
    return found


def _hover(panel: Panel, curve: Curve, decimals: int) -> list[list[str]]:
    return [
        [main, other, entry.text(decimals), survival.text(decimals)]
        for main, other, entry, survival in zip(*panel.axis.labels, curve.entries, curve.survival, strict=True)
    ]


def _plain(text: str) -> str:
    """A name as Plotly shows it unchanged; it would take tags and links in it for its own markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def interactive_figure(found: list[Panel], *, seeds: int, decimals: int) -> dict[str, Any]:
    """A Plotly figure as JSON: all methods of one panel, with a menu to choose the panel.

    There is one trace a method, and the menu replaces its points, so a method that the reader has switched off
    stays off in the next panel.

    Args:
        found: the panels, at least one.
        seeds: how many training seeds the study has; from two on, bars show their spread.
        decimals: of the percentages that are shown when the reader points at the figure.
    """

    def points(panel: Panel) -> dict[str, Any]:
        return {
            "x": [list(panel.axis.positions) for _ in panel.curves],
            "y": [[entry.mean for entry in curve.entries] for curve in panel.curves],
            "error_y.array": [[entry.std for entry in curve.entries] for curve in panel.curves],
            "customdata": [_hover(panel, curve, decimals) for curve in panel.curves],
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
    main, other = first.axis.units
    title = f"ε: {main} (upper line), {other} (lower line)" if first.axis.two_units else first.axis.title
    start, start_ticks = points(first), ticks(first)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": _plain(curve.method.title),
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
                f"ε = %{{customdata[0]}} {main}, %{{customdata[1]}} {other}<br>"
                "robust accuracy %{customdata[2]} %<br>survival rate %{customdata[3]} %"
            ),
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
