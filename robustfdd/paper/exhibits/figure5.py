"""Figure 5: what the sign of the correlation between feature density and drop probability does to clean accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.paper.statistics import Summary, summarise
from robustfdd.report.artefact import Artefact
from robustfdd.report.figures import drawing, render
from robustfdd.report.results import Results
from robustfdd.report.study import Method
from robustfdd.report.style import Style, style
from robustfdd.report.tables import seeds_text
from robustfdd.report.training import clean_accuracy, n_test_images

ORDER = 50

_NAME = "figure5-sign-of-correlation"
_TITLE = "Figure 5: clean accuracy with negative and with positive correlation"
#: The methods that do not look at density, to which both signs are compared.
_BASELINES = ("none", "original", "spatial")
_LEGEND = {"none": "no density", "negative": "negative correlation", "positive": "positive correlation"}


@dataclass(frozen=True)
class _Entry:
    method: Method
    correlation: str
    values: dict[int, Fraction]

    @property
    def summary(self) -> Summary:
        return summarise(list(self.values.values()))


def _correlation(method: Method) -> str | None:
    """The sign of a method's kappa; "none" for a baseline, None for a method that is no part of this comparison."""
    kappa = method.options.get("kappa")
    if isinstance(kappa, int | float) and kappa:
        return "negative" if kappa < 0 else "positive"
    return "none" if method.dropout in _BASELINES and method.options.get("active") != "never" else None


def _looks() -> dict[str, Style]:
    return {correlation: style(i) for i, correlation in enumerate(_LEGEND)}


def _draw(entries: list[_Entry]) -> dict[str, bytes]:
    looks = _looks()
    with drawing():
        figure = Figure(figsize=(max(5.0, 1.0 + 0.85 * len(entries)), 4.2))
        axes = figure.add_subplot()
        for x, entry in enumerate(entries):
            look, summary = looks[entry.correlation], entry.summary
            values = list(map(float, entry.values.values()))
            axes.plot([x + 0.18] * len(values), values, linestyle="", marker=".", color=look.colour, alpha=0.5)
            axes.errorbar(
                x, float(summary.mean), yerr=summary.std, color=look.colour, marker=look.marker, capsize=4, linestyle=""
            )
        axes.set_xticks(range(len(entries)), [entry.method.title for entry in entries], rotation=30, ha="right")
        axes.set_xlim(-0.6, len(entries) - 0.4)
        axes.margins(y=0.15)
        axes.grid(True, axis="y")
        axes.set_ylabel("Clean accuracy (%); axis does not start at 0")
        shown = [correlation for correlation in _LEGEND if any(e.correlation == correlation for e in entries)]
        handles = [Line2D([], [], color=looks[c].colour, marker=looks[c].marker, linestyle="") for c in shown]
        figure.legend(handles, [_LEGEND[c] for c in shown], loc="outside upper center", ncols=len(shown))
        return render(figure)


def build(results: Results) -> list[Artefact]:
    """Clean accuracy of density dropout with both signs; none for a run that has not trained both."""
    entries = [
        _Entry(method, correlation, clean_accuracy(results, method.label))
        for method in results.study.methods
        if (correlation := _correlation(method)) is not None
    ]
    entries = [entry for entry in entries if entry.values]
    if not {"negative", "positive"} <= {entry.correlation for entry in entries}:
        return []
    n_test = n_test_images(results)
    seeds = results.study.trained_seeds
    several = any(len(entry.values) > 1 for entry in entries)
    spread = "Marks: mean and sample standard deviation over " if several else "Marks: "
    size = f"all {n_test:,} test images" if n_test else "all test images"
    caption = (
        f"{results.study.dataset}, {size}, before any attack. {spread}{seeds_text(seeds)}"
        f"{'; dots: single training runs' if several else ''}. The vertical axis does not start at 0. The drop "
        "probability falls with feature density under negative correlation (the published setting) and rises with it "
        "under positive correlation, as in Figure 5 of Ke et al. (2020)."
    )
    frame: pd.DataFrame = pd.DataFrame.from_records(
        [
            {
                "method": entry.method.label,
                "correlation": entry.correlation,
                "kappa": entry.method.options.get("kappa"),
                "alpha": entry.method.options.get("alpha"),
                "placement": entry.method.settings.get("placement"),
                "mean": float(entry.summary.mean),
                "std": entry.summary.std,
                "n_seeds": entry.summary.n,
            }
            for entry in entries
        ]
    )
    return [Artefact(_NAME, _TITLE, caption, frame, figure=_draw(entries))]
