"""The tables of a comparison with the paper, each with its data."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from robustfdd.paper.comparison import Comparison, Difference
from robustfdd.paper.matching import Pair
from robustfdd.paper.ordering import BASELINES, CLOSE_POINTS, Ordering, Summary, Versus, blocks
from robustfdd.paper.published import Place, PublishedCell, eps_key
from robustfdd.paper.statistics import p_text
from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, frame_of, shown, table
from robustfdd.report.study import count_text, norm_title, number, signed
from robustfdd.report.tables import INCOMPLETE, known_within, over_seeds, shown_decimals, worst_entry
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import TITLE, explanation, worst_case
from robustfdd.rounding import fixed, rounded


def block_titles(comparison: Comparison, cell: PublishedCell) -> tuple[str, str]:
    """The attack, with its norm where the table or figure has several, and the radius of a published figure."""
    if cell.attack is None:
        return "Clean", "0"
    norms = {other.norm for other in comparison.published.cells_of(cell.dataset, cell.place)}
    title = comparison.results.study.attack_title(cell.attack)
    # The run may lack the attack; the paper's names are those of the project in capitals.
    title = cell.attack.upper() if title == cell.attack else title
    return title + (f", {norm_title(str(cell.norm))}" if len(norms) > 1 else ""), number(cell.eps_normalized)


def _against(comparison: Comparison) -> str:
    study = comparison.results.study
    if comparison.stand_in:
        return f"Not the same data: {study.dataset} (run) beside {comparison.dataset} (paper)"
    return study.dataset


def _figures_caption(comparison: Comparison, place: Place, pairs: Sequence[Pair]) -> str:
    study = comparison.results.study
    images = [pair.n_images for pair in pairs]
    engines = study.engines_text(attacks={str(pair.published.attack) for pair in pairs})
    engines += "; " if engines else ""
    sentences = [
        f"{_against(comparison)}. {place.shows}.",
        f"Run: {count_text((min(images), max(images)))} test images, all in the denominator; {engines}"
        f"{over_seeds(study)}; {known_within(min(images))}.",
        f"Paper: {comparison.published.source.short}, {place.title}.",
        *place.notes,
        f"Difference: run minus paper, in points; bold: at most {number(CLOSE_POINTS)}. {GAP}: not published or not "
        "run. ε in normalised units.",
    ]
    norm = _worst_norm(place, pairs)
    if norm:
        sentences.append(f"{explanation(comparison.results, norm)} The paper has no such figure.")
    if any(pair.ours.incomplete for pair in pairs):
        sentences.append(INCOMPLETE)
    sentences.append(marks_text(comparison.results, [pair.ours.verdict for pair in pairs]))
    return " ".join(sentences)


def _worst_norm(place: Place, pairs: Sequence[Pair]) -> str | None:
    """The norm of a printed table of accuracies under attack, whose layout has a place for the worst case."""
    norms = {pair.published.norm for pair in pairs if pair.published.attack}
    return next(iter(norms)) if len(norms) == 1 and not place.reading_error_points else None


@dataclass(frozen=True)
class _Line:
    """One line of a table of figures: what stands before them, the figures by dropout, and which are close."""

    names: tuple[str, str, str]
    cells: Mapping[str, str]
    block: Hashable
    close: Collection[str] = ()


def _block_lines(comparison: Comparison, place: Place, block: Sequence[Pair], decimals: int) -> list[_Line]:
    """The run's figures of one attack and radius, the paper's and the differences."""
    row, paper_decimals = block[0].published.row, 1 if place.reading_error_points else 2

    def published(cell: PublishedCell) -> str:
        spread = "" if cell.std_percent is None else f" ± {fixed(cell.std_percent, paper_decimals)}"
        return f"{fixed(cell.accuracy_percent, paper_decimals)}{spread}"

    cells = comparison.published.cells_of(comparison.dataset, place.name)
    pairs = {pair.published.method: pair for pair in block}
    differences = {name: signed(pair.difference, min(decimals, paper_decimals)) for name, pair in pairs.items()}
    close = [name for name, pair in pairs.items() if abs(pair.difference) <= CLOSE_POINTS]
    titles = block_titles(comparison, block[0].published)
    return [
        _Line((*titles, "run"), {name: pair.ours.text(decimals) for name, pair in pairs.items()}, row),
        _Line(("", "", "paper"), {cell.method: published(cell) for cell in cells if cell.row == row}, row),
        _Line(("", "", "difference"), differences, row, close),
    ]


def _worst_lines(comparison: Comparison, place: Place, pairs: Sequence[Pair], decimals: int) -> list[_Line]:
    """The run's worst case at the radii of a table; no line where the run has none."""
    norm = _worst_norm(place, pairs)
    if norm is None:
        return []
    worst = worst_case(comparison.results, norm)
    radii = {eps_key(pair.published.eps_normalized) for pair in pairs if pair.published.attack}
    lines: list[_Line] = []
    for step, eps in enumerate(worst.grid, start=1):
        if eps.normalized is not None and eps_key(eps.normalized) in radii:
            entries = {
                name: worst_entry(worst, method.label, step, "robust_accuracy").text(decimals)
                for name, method in comparison.matched.items()
            }
            lines.append(_Line(("" if lines else TITLE, number(eps.normalized), "run"), entries, TITLE))
    return lines


def figures_table(comparison: Comparison, place: Place) -> Exhibit:
    """One table or figure of the paper with the run's figures beside it, three lines for each attack and radius."""
    pairs = comparison.of(place)
    decimals = shown_decimals(max(pair.n_images for pair in pairs))
    there = {cell.method for cell in comparison.published.cells_of(comparison.dataset, place.name)}

    def column(name: str) -> Column[_Line]:
        title = comparison.published.methods[name].title
        return Column(title, lambda line: line.cells.get(name, GAP), bold=lambda line: name in line.close)

    columns: list[Column[_Line]] = [
        Column("Attack", lambda line: line.names[0], kind="name"),
        Column("ε", lambda line: line.names[1], kind="name"),
        Column("", lambda line: line.names[2], kind="name"),
        *(column(name) for name in comparison.published.methods if name in there),
    ]
    lines = [line for block in blocks(pairs) for line in _block_lines(comparison, place, block, decimals)]
    return table(
        f"compare-{place.name}",
        f"{place.title} of the paper and this run, accuracy (%)",
        _figures_caption(comparison, place, pairs),
        [*lines, *_worst_lines(comparison, place, pairs, decimals)],
        columns,
        frame=figures_frame(comparison, pairs),
        group=lambda line: line.block,
    )


#: What line of which table a published figure stands in, and the figure; of a pair, or of one that was not run.
_LINE = (
    "table=published.place dataset=published.dataset attack=published.attack norm=published.norm "
    "eps_normalized=published.eps_normalized"
)
_CELL = (
    f"{_LINE} method=published.method published_percent=published.accuracy_percent "
    "published_std_percent=published.std_percent"
)


def figures_frame(comparison: Comparison, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Figures that both have as data, one row each; ``dataset`` is the paper's, ``run_dataset`` the run's."""
    columns: list[Column[Pair]] = [
        *fields(_CELL),
        data("run_dataset", lambda _: comparison.results.study.dataset),
        *fields("label=method.label"),
        data("run_percent", lambda pair: rounded(pair.mean, 4)),
        data("run_std_percent", lambda pair: None if pair.ours.std is None else rounded(pair.ours.std, 4)),
        *fields("n_seeds=ours.n_seeds n_images"),
        data("difference_points", lambda pair: rounded(pair.difference, 4)),
    ]
    return frame_of(pairs, columns)


def _coefficient(value: float | None) -> str:
    return GAP if value is None else fixed(value, 2, sign=True).replace("-", "−")


def _names(comparison: Comparison, methods: Iterable[str]) -> str:
    """The paper's names of methods."""
    return ", ".join(comparison.published.methods[name].title for name in methods)


def _place_title(comparison: Comparison, name: str | None) -> str:
    return next((place.title for place in comparison.published.places if place.name == name), "All")


def ordering_table(comparison: Comparison) -> Exhibit:
    """Whether the methods come in the paper's order, one line for each attack and radius."""

    def best(item: Ordering, *, ours: bool) -> str:
        names = item.best(ours=ours)
        if item.spearman is None:
            return GAP
        return _names(comparison, names) if len(names) < 3 else f"{len(names)} equal"

    def order(item: Ordering, *, ours: bool) -> str:
        return " > ".join(" = ".join(names) for names in item.order(ours=ours))

    columns: list[Column[Ordering]] = [
        *fields(_LINE),
        Column("Table", lambda item: _place_title(comparison, item.place), kind="once"),
        Column("Attack", lambda item: block_titles(comparison, item.published)[0], kind="name"),
        Column("ε", lambda item: block_titles(comparison, item.published)[1], kind="name"),
        Column("Methods", lambda item: str(len(item.pairs)), "n_methods", lambda item: len(item.pairs)),
        shown("Spearman", "spearman", _coefficient),
        shown("p", "spearman_p", p_text),
        shown("Kendall", "kendall", _coefficient),
        shown("p", "kendall_p", p_text),
        Column("Best (paper)", lambda item: best(item, ours=False)),
        Column("Best (run)", lambda item: best(item, ours=True)),
        shown("Remark", "remark", str),
        data("published_order", lambda item: order(item, ours=False)),
        data("run_order", lambda item: order(item, ours=True)),
    ]
    caption = (
        f"{_against(comparison)}. Spearman's coefficient (equal figures share a rank) and Kendall's tau-b over the "
        "methods that both have, each with its p: two-sided, over all orders of the methods, without a correction "
        "for the number of lines. The order of figures closer than the reading error of a plot or the spread over "
        "seeds is chance."
    )
    title = "Order of the methods: rank correlation of this run with the paper"
    return table("ordering", title, caption, comparison.orderings, columns, group=lambda item: item.place)


def summary_table(comparison: Comparison) -> Exhibit:
    """The whole comparison in one line for each table and figure, and one over all, which the data calls ``all``."""

    def versus(i: int, name: str) -> list[Column[Summary]]:
        def of(summary: Summary) -> Versus:
            return summary.versus[i]

        return [
            Column(
                f"Beats {_names(comparison, [name])}",
                lambda s: f"{of(s).agreeing} of {of(s).decided}" if of(s).decided else GAP,
            ),
            data(f"agreeing_{name}", lambda s: of(s).agreeing),
            data(f"decided_{name}", lambda s: of(s).decided),
            data(f"tied_{name}", lambda s: of(s).tied),
        ]

    columns: list[Column[Summary]] = [
        Column("Table", lambda s: _place_title(comparison, s.place), "table", lambda s: s.place or "all", "name"),
        shown("Figures", "n_cells", str),
        shown("Median difference", "median_difference_points=median", lambda points: signed(points, 1)),
        shown("Mean |difference|", "mean_absolute_difference_points=mean_absolute", lambda points: fixed(points, 1)),
        Column("Close", lambda s: f"{s.n_close} of {s.n_cells}", "n_close", lambda s: s.n_close),
        shown("Spearman", "median_spearman=spearman", _coefficient),
        shown("Kendall", "median_kendall=kendall", _coefficient),
        Column("Same best", lambda s: f"{s.n_same_best} of {s.n_ordered}" if s.n_ordered else GAP),
        *fields("n_ordered n_same_best"),
        *(column for i, name in enumerate(BASELINES) for column in versus(i, name)),
    ]
    caption = (
        f"{_against(comparison)}. Differences: run minus paper, in points; close: at most {number(CLOSE_POINTS)}. "
        "Rank correlations: the median over attacks and radii; same best: in how many of them both have the same "
        "best method, a tied one counting. Beats: of the comparisons of a method with the baseline that are "
        "decided in both, how many come out the same way; undecided are equal figures, and on a plot those within "
        "twice its reading error. All: each measurement once, that of the earlier table."
    )
    title = "This run and the paper in short"
    return table("summary", title, caption, comparison.summaries, columns, group=lambda s: s.place is None)


def setup_table(comparison: Comparison) -> Exhibit:
    """What the run did differently, and what it chose where the paper is silent."""
    columns: list[Column[Difference]] = [
        *fields("key"),
        shown("Setting", "title", str, "name"),
        shown("Paper", "paper", str, "prose"),
        shown("This run", "ours", str, "prose"),
        shown("Kind", "kind", str, "name"),
    ]
    caption = (
        "Settings that differ, then those that the paper leaves open, with the choice of this run. What is not "
        "listed is as stated in the paper."
    )
    differs = "What differs from the paper"
    return table("setup", differs, caption, comparison.setup, columns, alarm=lambda item: item.kind == "differs")


def not_run_table(comparison: Comparison) -> Exhibit:
    """The published figures that the run has nothing for, those with one reason together; in the data one by one."""
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for item in comparison.not_run:
        attack, eps = block_titles(comparison, item.published)
        key = (_place_title(comparison, item.published.place), attack, item.published.method, item.reason)
        together.setdefault(key, []).append(eps)
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for (place, attack, method, reason), radii in together.items():
        rows.setdefault((place, attack, ", ".join(radii), reason), []).append(method)
    columns: list[Column[tuple[tuple[str, str, str, str], list[str]]]] = [
        Column("Table", lambda row: row[0][0], kind="name"),
        Column("Attack", lambda row: row[0][1], kind="name"),
        Column("ε", lambda row: row[0][2], kind="prose"),
        Column("Methods", lambda row: _names(comparison, row[1]), kind="prose"),
        Column("Why", lambda row: row[0][3], kind="prose"),
    ]
    title, frame = (
        "Published figures that this run has nothing for",
        frame_of(comparison.not_run, fields(f"{_CELL} reason")),
    )
    return table("not-run", title, "ε in normalised units.", list(rows.items()), columns, frame=frame)
