"""Figure 7: accuracy under FGSM over epsilon, with the published curves behind the run's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.paper.matching import match_methods, run_dataset, same_balls
from robustfdd.paper.published import Published, PublishedCell, eps_key, load
from robustfdd.report.artefact import Artefact
from robustfdd.report.figures import THIN, drawing, legend, render
from robustfdd.report.results import Results
from robustfdd.report.study import ZERO, Epsilon, Method, norm_title
from robustfdd.report.style import EpsilonAxis, epsilon_axis, style
from robustfdd.report.tables import Entry, count_text, entry_at, seeds_text, worst_entry
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import worst_case

ORDER = 70

_NAME = "figure7-fgsm"
_TITLE = "Figure 7: accuracy under FGSM over ε, beside the paper"
_PLACE = "figure7"
_ATTACK = "fgsm"
#: Methods up to which the worst case is drawn too.
_N_ENVELOPES = 6
#: Opacity of the published curves.
_FAINT = 0.4


@dataclass(frozen=True)
class _Panel:
    """One norm: the run's radii and figures by method, the published ones, and the axis that has them all."""

    norm: str
    radii: tuple[Epsilon, ...]
    axis: EpsilonAxis
    places: dict[str, float]  # where each normalised radius stands on the axis
    ours: dict[str, tuple[Entry, ...]]
    worst: dict[str, tuple[Entry, ...]]  # the run's worst case at its radii; empty where it would hide the curves
    published: tuple[PublishedCell, ...]


def _panel(results: Results, cells: Sequence[PublishedCell], norm: str) -> _Panel:
    study = results.study
    scale = study.eps_scale or 1.0  # it is known: the radii are the paper's
    grid = study.grid(_ATTACK, norm)
    there = tuple(cell for cell in cells if cell.norm == norm)
    # By their text, so that a radius that both have is one tick.
    union = {eps_key(eps.normalized or 0.0): eps for eps in grid}
    for cell in there:
        if cell.eps_normalized > 0:
            eps = Epsilon(cell.eps_normalized, cell.eps_normalized * scale)
            union.setdefault(eps_key(cell.eps_normalized), eps)
    radii = sorted(union.values(), key=lambda eps: eps.pixel)
    axis = epsilon_axis(radii, study.eps_unit)
    keys = [eps_key(eps.normalized or 0.0) for eps in (ZERO, *radii)]
    ours = {
        method.label: tuple(
            entry_at(results, results.place(method.label, _ATTACK, norm, step), "robust_accuracy")
            for step in range(len(grid) + 1)
        )
        for method in study.methods
    }
    worst = worst_case(results, norm)
    steps = worst.steps()
    envelopes = {
        method.label: tuple(worst_entry(worst, method.label, steps[eps.key], "robust_accuracy") for eps in grid)
        for method in (study.methods if len(study.methods) <= _N_ENVELOPES else ())
    }
    places = dict(zip(keys, axis.positions, strict=True))
    return _Panel(norm, (ZERO, *grid), axis, places, ours, envelopes, there)


def _draw(axes: Axes, panel: _Panel, methods: Sequence[Method], matched: dict[str, Method]) -> None:
    labels = [method.label for method in methods]
    for name, method in matched.items():
        cells = sorted((c for c in panel.published if c.method == name), key=lambda cell: cell.eps_normalized)
        look = style(labels.index(method.label))
        x = [panel.places[eps_key(cell.eps_normalized)] for cell in cells]
        y = [cell.accuracy_percent for cell in cells]
        axes.plot(x, y, color=look.colour, linestyle=look.line, linewidth=1.0, alpha=_FAINT, zorder=1)
    x = [panel.places[eps_key(eps.normalized or 0.0)] for eps in panel.radii]
    for i, label in enumerate(labels):
        look = style(i)
        mean = np.array([entry.point for entry in panel.ours[label]])
        std = np.array([entry.spread for entry in panel.ours[label]])
        axes.plot(x, mean, color=look.colour, linestyle=look.line, marker=look.marker, clip_on=False, zorder=3)
        if label in panel.worst:
            low = [mean[0], *(entry.point for entry in panel.worst[label])]
            axes.plot(x, low, color=look.colour, linestyle=(0, (4, 3)), linewidth=THIN, zorder=2)
        if np.isfinite(std).any():
            axes.fill_between(x, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0, zorder=2)
    shown = panel.axis.labelled(panel.axis.labels[0], 33)
    axes.set_xticks(panel.axis.positions, [text if i in shown else "" for i, text in enumerate(panel.axis.labels[0])])
    axes.set_xlabel(panel.axis.title)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 100)
    axes.set_title(f"FGSM, {norm_title(panel.norm)}")
    axes.grid(True)


def _figure(panels: Sequence[_Panel], methods: Sequence[Method], matched: dict[str, Method]) -> dict[str, bytes]:
    with drawing():
        figure = Figure(figsize=(max(4.4 * len(panels), 5.6), 4.4))
        for i, (axes, panel) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
            _draw(axes, panel, methods, matched)
            if i == 0:
                axes.set_ylabel("Accuracy (%)")
        faint = Line2D([], [], color="#000000", linewidth=1.0, alpha=_FAINT)
        figure.axes[0].legend([faint], ["paper"], loc="upper right")
        styles = [style(i) for i in range(len(methods))]
        titles = [method.title for method in methods]
        legend(figure, styles, titles, marker=True, loc="outside lower center", ncols=min(len(methods), 6))
        return render(figure)


def _frame(results: Results, panels: Sequence[_Panel]) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    for panel in panels:
        for method in results.study.methods:
            for eps, entry in zip(panel.radii, panel.ours[method.label], strict=True):
                records.append(
                    {
                        "source": "run",
                        "norm": panel.norm,
                        "method": method.label,
                        "dropout": method.dropout,
                        "eps_normalized": eps.normalized,
                        "eps_pixel": eps.pixel,
                        "accuracy_percent": None if entry.mean is None else float(entry.mean),
                        "std_percent": entry.std,
                        "n_seeds": entry.n_seeds,
                    }
                )
        for cell in panel.published:
            records.append(
                {
                    "source": "paper",
                    "norm": panel.norm,
                    "method": cell.method,
                    "dropout": cell.method,
                    "eps_normalized": cell.eps_normalized,
                    "eps_pixel": cell.eps_normalized * (results.study.eps_scale or 1.0),
                    "accuracy_percent": cell.accuracy_percent,
                    "std_percent": None,
                    "n_seeds": None,
                }
            )
    frame: pd.DataFrame = pd.DataFrame.from_records(records).astype({"n_seeds": "Int64", "std_percent": "float64"})
    return frame


def _caption(results: Results, published: Published, matched: dict[str, Method], drawn: set[str]) -> str:
    study = results.study
    place = next(place for place in published.places if place.name == _PLACE)
    images = results.counts("n_images")
    sentences = [
        f"{study.dataset}; {f'{count_text(images)} test images, ' if images else ''}all of them in the denominator; "
        f"{study.engines_text(attacks={_ATTACK})}; protocol {study.protocol}; {seeds_text(study.seeds)}."
    ]
    if len(study.trained_seeds) > 1:
        sentences.append("Bands: one sample standard deviation over training seeds.")
    names = ", ".join(method.title for name, method in matched.items() if name in drawn)
    sentences.append(
        f"Faint lines of the same colour, without marks: {published.source.short}, {place.title}, for {names}."
        if names
        else f"No method of this run is one of {published.source.short}, {place.title}."
    )
    if len(study.methods) <= _N_ENVELOPES:
        sentences.append("Thin dashed lines: the worst case of this run over all its attacks up to each ε.")
    sentences.append(marks_text(results, ()))
    absent = [published.methods[name].title for name in published.methods if name in drawn and name not in matched]
    if absent:
        sentences.append(f"Published, but not drawn, since this run has no such method: {', '.join(absent)}.")
    return " ".join([*sentences, "Of the published figures:", *place.notes])


def build(results: Results) -> list[Artefact]:
    """FGSM in each norm that the run has, with the published curves; none where there are none for the data set.

    Published radii are normalised ones, so a run that normalises its images in another way than the paper has none
    either.
    """
    published = load()
    dataset = run_dataset(results)
    cells = published.cells_of(dataset, _PLACE)
    norms = [norm for norm in results.study.norms if results.study.grid(_ATTACK, norm)]
    if not any(cell.norm in norms for cell in cells) or not same_balls(results, published, dataset):
        return []
    matched, _ = match_methods(results, published)
    panels = [_panel(results, cells, norm) for norm in norms]
    if not any(entry.mean is not None for panel in panels for entries in panel.ours.values() for entry in entries):
        return []
    drawn = {cell.method for cell in cells if cell.norm in norms}
    figure = _figure(panels, results.study.methods, matched)
    caption = _caption(results, published, matched, drawn)
    return [Artefact(_NAME, _TITLE, caption, _frame(results, panels), figure=figure)]
