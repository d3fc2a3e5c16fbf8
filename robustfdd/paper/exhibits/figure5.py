"""Figure 5: what the sign of the correlation between feature density and drop probability does to clean accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from matplotlib.figure import Figure

from robustfdd.paper.statistics import Summary, summarise
from robustfdd.report.exhibit import Column, Exhibit, data, fields, frame_of
from robustfdd.report.figures import drawn, legend
from robustfdd.report.results import Results
from robustfdd.report.study import Method, seeds_text
from robustfdd.report.style import style
from robustfdd.report.training import clean_accuracy, n_test_images, over_test_split

ORDER = 50

#: The methods that do not look at density, to which both signs are compared.
_BASELINES = ("none", "original", "spatial")
_LEGEND = {"none": "no density", "negative": "negative correlation", "positive": "positive correlation"}


@dataclass(frozen=True)
class _Entry:
    method: Method
    correlation: str
    values: Sequence[Fraction]

    @property
    def summary(self) -> Summary:
        return summarise(self.values)


def _correlation(method: Method) -> str | None:
    """The sign of a method's kappa; "none" for a baseline, None for a method that is no part of this comparison."""
    kappa = method.options.get("kappa")
    if isinstance(kappa, int | float) and kappa:
        return "negative" if kappa < 0 else "positive"
    return "none" if method.dropout in _BASELINES and method.options.get("active") != "never" else None


@drawn
def _draw(entries: list[_Entry]) -> Figure:
    looks = {correlation: style(i) for i, correlation in enumerate(_LEGEND)}
    figure = Figure(figsize=(max(5.0, 1.0 + 0.85 * len(entries)), 4.2))
    axes = figure.add_subplot()
    for x, entry in enumerate(entries):
        look, summary, values = looks[entry.correlation], entry.summary, list(map(float, entry.values))
        axes.plot([x + 0.18] * len(values), values, linestyle="", marker=".", color=look.colour, alpha=0.5)
        mean, std = float(summary.mean), summary.std
        axes.errorbar(x, mean, yerr=std, color=look.colour, marker=look.marker, capsize=4, linestyle="")
    axes.set_xticks(range(len(entries)), [entry.method.title for entry in entries], rotation=30, ha="right")
    axes.set_xlim(-0.6, len(entries) - 0.4)
    axes.margins(y=0.15)
    axes.grid(True, axis="y")
    axes.set_ylabel("Clean accuracy (%); axis does not start at 0")
    there = {entry.correlation for entry in entries}
    shown = [(_LEGEND[correlation], look) for correlation, look in looks.items() if correlation in there]
    legend(figure, shown, line=False, loc="outside upper center", ncols=len(shown))
    return figure


#: The data, one row a method.
_DATA: list[Column[_Entry]] = [
    *fields("method=method.label correlation"),
    data("kappa", lambda entry: entry.method.options.get("kappa")),
    data("alpha", lambda entry: entry.method.options.get("alpha")),
    data("placement", lambda entry: entry.method.settings.get("placement")),
    *fields("mean=summary.mean std=summary.std n_seeds=summary.n"),
]


def build(results: Results) -> list[Exhibit]:
    """Clean accuracy of density dropout with both signs; none for a run that has not trained both."""
    entries = [
        _Entry(method, correlation, list(values.values()))
        for method in results.study.methods
        if (correlation := _correlation(method)) and (values := clean_accuracy(results, method.label))
    ]
    if not {"negative", "positive"} <= {entry.correlation for entry in entries}:
        return []
    several = any(len(entry.values) > 1 for entry in entries)
    spread = "Marks: mean and sample standard deviation over " if several else "Marks: "
    size = over_test_split(n_test_images(results))
    caption = (
        f"{results.study.dataset}, {size}. {spread}{seeds_text(results.study.trained_seeds)}"
        f"{'; dots: single training runs' if several else ''}. The vertical axis does not start at 0. The drop "
        "probability falls with feature density under negative correlation (the published setting) and rises with it "
        "under positive correlation, as in Figure 5 of Ke et al. (2020)."
    )
    title = "Figure 5: clean accuracy with negative and with positive correlation"
    frame, figure = frame_of(entries, _DATA), _draw(entries)
    return [Exhibit("figure5-sign-of-correlation", title, caption, frame, figure=figure)]
