"""What is left of the advantage of feature density dropout in the worst case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.report.analyses import first_of
from robustfdd.report.artefact import Artefact
from robustfdd.report.figures import drawing, legend, render
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Results
from robustfdd.report.study import Attack, Epsilon, Method, file_stem, norm_title, signed
from robustfdd.report.style import epsilon_axis, style
from robustfdd.report.tables import entry_at, seeds_text, worst_entry
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import explanation, worst_case
from robustfdd.rounding import mean, rounded

ORDER = 34

_NAME = "worst-case-advantage"
_BASELINES = ("none", "original", "spatial")
#: The attacks of the paper with several steps, and the one with one step, for radii that have no other.
_MULTI_STEP, _ONE_STEP = ("bim", "pgd"), "fgsm"


#: The figures of a method and of a baseline, exactly.
_Pair: TypeAlias = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class _Advantage:
    """One method against one baseline at one radius, mean over seeds, in percent and percentage points.

    Attributes:
        method: that may be better.
        baseline: what it is held against.
        eps: the radius.
        attack: the weakest of the paper's attacks with this radius; None where there is none.
        under_attack: robust accuracy of method and baseline under it; None for a gap.
        worst: likewise in the worst case.
    """

    method: Method
    baseline: Method
    eps: Epsilon
    attack: Attack | None
    under_attack: _Pair | None
    worst: _Pair | None

    @property
    def texts(self) -> tuple[str, str]:
        """The two advantages, in points."""
        return _signed(self.under_attack), _signed(self.worst)


def _signed(pair: _Pair | None) -> str:
    return GAP if pair is None else signed(pair[0] - pair[1], 1)


def _compared(results: Results) -> tuple[list[Method], list[Method]]:
    """The methods whose advantage is looked at, and the baselines: one is enough for a study without FDD."""
    methods = results.study.methods
    baselines = [found for name in _BASELINES if (found := first_of(methods, name)) is not None]
    density = [method for method in methods if str(method.dropout).startswith("fdd")]
    if density:
        return density, baselines
    return [method for method in methods if method not in baselines[:1]], baselines[:1]


def _pair(first: Fraction | None, second: Fraction | None) -> _Pair | None:
    return None if first is None or second is None else (first, second)


def _weakest(
    results: Results, norm: str, eps: Epsilon, methods: Sequence[Method]
) -> tuple[Attack, dict[str, Fraction | None]] | None:
    """Of the paper's attacks with several steps that have this radius, the one that leaves most images correct.

    Returns:
        The attack and the robust accuracy of each method under it, by label; FGSM's where no other has the radius.
    """
    found: list[tuple[Attack, dict[str, Fraction | None]]] = []
    for attack in results.study.attacks:
        steps = {other.key: step for step, other in enumerate(attack.eps.get(norm, ()), start=1)}
        if attack.name in (*_MULTI_STEP, _ONE_STEP) and eps.key in steps:
            places = {m.label: results.place(m.label, attack.name, norm, steps[eps.key]) for m in methods}
            found.append((attack, {label: entry_at(results, p, "robust_accuracy").mean for label, p in places.items()}))
    several = [item for item in found if item[0].name in _MULTI_STEP] or found
    shared = [label for label in (m.label for m in methods) if all(values[label] is not None for _, values in several)]
    if not several or not shared:
        return several[0] if several else None
    return max(several, key=lambda item: mean([item[1][label] or 0 for label in shared]))


def _advantages(results: Results, norm: str) -> list[_Advantage]:
    methods, baselines = _compared(results)
    worst = worst_case(results, norm)
    weakest = [_weakest(results, norm, eps, [*methods, *baselines]) for eps in worst.grid]
    found = []
    for method in methods:
        for baseline in baselines:
            for step, (eps, item) in enumerate(zip(worst.grid, weakest, strict=True), start=1):
                under = _pair(item[1][method.label], item[1][baseline.label]) if item else None
                both = [worst_entry(worst, m.label, step, "robust_accuracy").mean for m in (method, baseline)]
                attack = item[0] if item else None
                found.append(_Advantage(method, baseline, eps, attack, under, _pair(both[0], both[1])))
    return found


def _grid(found: Sequence[_Advantage], results: Results, name: str, title: str, caption: str) -> Grid:
    """One row for each method and baseline, one column for each radius."""
    radii = list(dict.fromkeys(item.eps for item in found))
    attacks = {item.eps: item.attack for item in found}
    by_label = {(item.method.label, item.baseline.label): (item.method.title, item.baseline.title) for item in found}
    cells: dict[tuple[str, str], list[str]] = {key: [] for key in by_label}
    for item in found:
        cells[item.method.label, item.baseline.label].append(" → ".join(item.texts))
    starts = group_starts([method for method, _ in cells])
    shown = [attacks[eps] for eps in radii]
    return Grid(
        name=name,
        title=title,
        caption=caption,
        headers=(
            "Method",
            "Against",
            *(
                f"{eps.texts(results.study.eps_unit)[0]} {attack.title if attack else GAP}"
                for eps, attack in zip(radii, shown, strict=True)
            ),
        ),
        rows=tuple(
            (by_label[key][0] if i == 0 or i in starts else "", by_label[key][1], *texts)
            for i, (key, texts) in enumerate(cells.items())
        ),
        n_text=2,
        rules=starts,
    )


def _draw(found: Sequence[_Advantage], results: Results, norm: str) -> dict[str, bytes]:
    """One panel for each baseline: the advantage of every method over epsilon, as published and in the worst case."""
    baselines = {item.baseline.label: item.baseline for item in found}
    methods = {item.method.label: item.method for item in found}
    order = [method.label for method in results.study.methods]
    axis = epsilon_axis(list(dict.fromkeys(item.eps for item in found)), results.study.eps_unit)
    with drawing():
        figure = Figure(figsize=(max(3.3 * len(baselines), 5.0), 3.7))
        panels = figure.subplots(1, len(baselines), squeeze=False, sharey=True)[0]
        for axes, (label, baseline) in zip(panels, baselines.items(), strict=True):
            axes.axhline(0, color="#6b7280", linewidth=0.8)
            for method in methods:
                mine = [item for item in found if (item.method.label, item.baseline.label) == (method, label)]
                look = style(order.index(method))
                for line, values in (
                    ("-", [_difference(item.under_attack) for item in mine]),
                    ((0, (4, 2)), [_difference(item.worst) for item in mine]),
                ):
                    axes.plot(
                        axis.positions[1:],
                        values,
                        color=look.colour,
                        linestyle=line,
                        marker=look.marker,
                        markerfacecolor=look.colour if line == "-" else "white",
                        linewidth=1.2,
                        markersize=4.5,
                    )
            axes.set_title(f"against {baseline.title}")
            axes.set_xlim(-0.02, 1.02)
            shown = axis.labelled(axis.labels[0], 33)
            axes.set_xticks(axis.positions, [text if i in shown else "" for i, text in enumerate(axis.labels[0])])
            axes.set_xlabel(axis.title)
            axes.grid(True)
        panels[0].set_ylabel(f"Advantage, {norm_title(norm)} (points)")
        handles = [
            Line2D([], [], color="#6b7280", linewidth=1.2),
            Line2D([], [], color="#6b7280", linewidth=1.2, linestyle=(0, (4, 2))),
        ]
        figure.axes[0].legend(handles, ["paper's attack", "worst case"], loc="best", fontsize=8)
        styles = [replace(style(order.index(label)), line="") for label in methods]
        titles = [method.title for method in methods.values()]
        legend(figure, styles, titles, marker=True, loc="outside lower center", ncols=min(len(titles), 6))
        return render(figure)


def _difference(pair: _Pair | None) -> float:
    return float("nan") if pair is None else float(pair[0] - pair[1])


def _frame(found: Sequence[_Advantage], norm: str) -> pd.DataFrame:
    def values(prefix: str, pair: _Pair | None) -> dict[str, float | None]:
        return {
            f"method_{prefix}": None if pair is None else rounded(pair[0], 9),
            f"baseline_{prefix}": None if pair is None else rounded(pair[1], 9),
            f"advantage_{prefix}": None if pair is None else rounded(pair[0] - pair[1], 4),
        }

    frame: pd.DataFrame = pd.DataFrame.from_records(
        [
            {
                "norm": norm,
                "method": item.method.label,
                "baseline": item.baseline.label,
                "eps_normalized": item.eps.normalized,
                "eps_pixel": item.eps.pixel,
                "attack": item.attack.name if item.attack else None,
                **values("paper_attack", item.under_attack),
                **values("worst_case", item.worst),
            }
            for item in found
        ]
    )
    return frame


def _caption(results: Results, norm: str) -> str:
    study = results.study
    means = "means over " if len(study.trained_seeds) > 1 else ""
    return (
        f"{study.dataset}; robust accuracy of the method minus that of the baseline, in points, {means}"
        f"{seeds_text(study.seeds)}; above 0 the method is better. Before the arrow: under the attack that is named, "
        "the weakest at that ε of the paper's attacks with several steps (FGSM where there is none); after it: in the "
        "worst case. An advantage that is gone there was one over the attack, not over adversarial examples. "
        f"ε in {study.units_shown[0]} units. {explanation(results, norm)} {marks_text(results, ())}"
    )


def build(results: Results) -> list[Artefact]:
    """A table and a figure for each norm; none without a baseline, or where one attack through one engine is all."""
    artefacts = []
    for norm in results.study.norms:
        found = _advantages(results, norm)
        run = {(unit.attack, unit.engine) for unit in results.study.units if unit.norm == norm}
        if len(run) < 2 or not any(item.worst or item.under_attack for item in found):
            continue
        who = "feature density dropout" if str(found[0].method.dropout).startswith("fdd") else "each method"
        name = file_stem(f"{_NAME}-{norm}")
        title = f"What is left of the advantage of {who} in the worst case, {norm_title(norm)}"
        caption = _caption(results, norm)
        grid, figure = _grid(found, results, name, title, caption), _draw(found, results, norm)
        artefacts.append(Artefact(name, title, caption, _frame(found, norm), grid, figure, section="robust"))
    return artefacts
