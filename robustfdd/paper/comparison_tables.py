"""The tables of a comparison with the paper, as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from robustfdd.paper.comparison import Comparison
from robustfdd.paper.matching import Pair
from robustfdd.paper.ordering import BASELINES, CLOSE_POINTS, Ordering, Versus, blocks
from robustfdd.paper.published import Place, PublishedCell, eps_key
from robustfdd.report.grid import GAP, Grid
from robustfdd.report.study import norm_title, number, signed
from robustfdd.report.tables import count_text, half_width, seeds_text, shown_decimals, worst_entry
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import TITLE, explanation, worst_case
from robustfdd.rounding import fixed

_LINES = ("run", "paper", "difference")


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
    spread = "mean ± sample standard deviation over " if len(study.trained_seeds) > 1 else ""
    engines = study.engines_text(attacks={str(pair.published.attack) for pair in pairs})
    engines += "; " if engines else ""
    sentences = [
        f"{_against(comparison)}. {place.shows}.",
        f"Run: {count_text((min(images), max(images)))} test images, all in the denominator; {engines}"
        f"{spread}{seeds_text(study.seeds)}; known to within ±{fixed(half_width(min(images)), 1)} points at worst "
        "(binomial 95 % interval, Wilson).",
        f"Paper: {comparison.published.source.short}, {place.title}.",
        *place.notes,
        f"Difference: run minus paper, in points; bold: at most {number(CLOSE_POINTS)}. {GAP}: not published or not "
        "run. ε in normalised units.",
    ]
    norm = _worst_norm(place, pairs)
    if norm:
        sentences.append(f"{explanation(comparison.results, norm)} The paper has no such figure.")
    if any(pair.ours.incomplete for pair in pairs):
        sentences.append("‡ Some of the planned seeds are missing.")
    sentences.append(marks_text(comparison.results, [pair.ours.verdict for pair in pairs]))
    return " ".join(sentences)


def _columns(comparison: Comparison, place: Place) -> list[str]:
    """The methods that a table or figure has figures of, by dropout."""
    published = comparison.published.cells_of(comparison.dataset, place.name)
    return [name for name in comparison.published.methods if any(cell.method == name for cell in published)]


def _worst_norm(place: Place, pairs: Sequence[Pair]) -> str | None:
    """The norm of a printed table of accuracies under attack, whose layout has a place for the worst case."""
    norms = {pair.published.norm for pair in pairs if pair.published.attack}
    return next(iter(norms)) if len(norms) == 1 and not place.reading_error_points else None


def _worst_lines(
    comparison: Comparison, place: Place, pairs: Sequence[Pair], names: Sequence[str], decimals: int
) -> list[tuple[str, ...]]:
    """The run's worst case at the radii of a table; no line where the run has none."""
    norm = _worst_norm(place, pairs)
    if norm is None:
        return []
    worst = worst_case(comparison.results, norm)
    radii = {eps_key(pair.published.eps_normalized) for pair in pairs if pair.published.attack}
    lines: list[tuple[str, ...]] = []
    for step, eps in enumerate(worst.grid, start=1):
        if eps.normalized is None or eps_key(eps.normalized) not in radii:
            continue
        cells = []
        for name in names:
            method = comparison.matched.get(name)
            entry = worst_entry(worst, method.label, step, "robust_accuracy") if method else None
            cells.append(entry.text(decimals) if entry else GAP)
        lines.append(("" if lines else TITLE, number(eps.normalized), _LINES[0], *cells))
    return lines


def figures_grid(comparison: Comparison, place: Place) -> Grid:
    """One table or figure of the paper with the run's figures beside it, three lines for each attack and radius."""
    pairs = comparison.of(place)
    published = comparison.published.cells_of(comparison.dataset, place.name)
    names = _columns(comparison, place)
    decimals = shown_decimals(max(pair.n_images for pair in pairs))
    paper_decimals = 1 if place.reading_error_points else 2
    rows: list[tuple[str, ...]] = []
    marks, rules = set(), set()
    for block in blocks(pairs):
        attack, eps = block_titles(comparison, block[0].published)
        have = {pair.published.method: pair for pair in block}
        here = {cell.method: cell for cell in published if cell.row == block[0].published.row}
        if rows:
            rules.add(len(rows))
        lines: tuple[list[str], ...] = ([], [], [])
        for column, name in enumerate(names, start=3):
            cell, pair = here.get(name), have.get(name)
            spread = f" ± {fixed(cell.std_percent, paper_decimals)}" if cell and cell.std_percent is not None else ""
            lines[0].append(pair.ours.text(decimals) if pair else GAP)
            lines[1].append(f"{fixed(cell.accuracy_percent, paper_decimals)}{spread}" if cell else GAP)
            lines[2].append(signed(pair.difference, min(decimals, paper_decimals)) if pair else GAP)
            if pair and abs(pair.difference) <= CLOSE_POINTS:
                marks.add((len(rows) + 2, column))
        for i, (title, line) in enumerate(zip(_LINES, lines, strict=True)):
            rows.append((attack if i == 0 else "", eps if i == 0 else "", title, *line))
    worst = _worst_lines(comparison, place, pairs, names, decimals)
    if worst:
        rules.add(len(rows))
        rows += worst
    return Grid(
        name=f"compare-{place.name}",
        title=f"{place.title} of the paper and this run, accuracy (%)",
        caption=_figures_caption(comparison, place, pairs),
        headers=("Attack", "ε", "", *(_name(comparison, name) for name in names)),
        rows=tuple(rows),
        n_text=3,
        marks=frozenset(marks),
        rules=frozenset(rules),
    )


def _coefficient(value: float | None) -> str:
    return GAP if value is None else fixed(value, 2, sign=True).replace("-", "−")


def _p(value: float | None) -> str:
    return GAP if value is None else "<0.001" if value < 0.001 else fixed(value, 3)


def _name(comparison: Comparison, name: str) -> str:
    """The paper's name of a method."""
    return comparison.published.methods[name].title


def _names(comparison: Comparison, methods: Iterable[str]) -> str:
    return ", ".join(_name(comparison, name) for name in methods)


def _best(comparison: Comparison, item: Ordering, *, ours: bool) -> str:
    names = item.best(ours=ours)
    if item.spearman is None:
        return GAP
    return _names(comparison, names) if len(names) < 3 else f"{len(names)} equal"


def _place_title(comparison: Comparison, name: str | None) -> str:
    return next((place.title for place in comparison.published.places if place.name == name), "All")


def ordering_grid(comparison: Comparison) -> Grid:
    """Whether the methods come in the paper's order, one line for each attack and radius."""
    rows, rules = [], set()
    for i, item in enumerate(comparison.orderings):
        new = i == 0 or comparison.orderings[i - 1].place != item.place
        if new and i:
            rules.add(i)
        rows.append(
            (
                _place_title(comparison, item.place) if new else "",
                *block_titles(comparison, item.pairs[0].published),
                str(len(item.pairs)),
                _coefficient(item.spearman),
                _p(item.spearman_p),
                _coefficient(item.kendall),
                _p(item.kendall_p),
                _best(comparison, item, ours=False),
                _best(comparison, item, ours=True),
                item.remark,
            )
        )
    return Grid(
        name="ordering",
        title="Order of the methods: rank correlation of this run with the paper",
        caption=(
            f"{_against(comparison)}. Spearman's coefficient (equal figures share a rank) and Kendall's tau-b over the "
            "methods that both have, each with its p: two-sided, over all orders of the methods, without a correction "
            "for the number of lines. The order of figures closer than the reading error of a plot or the spread over "
            "seeds is chance."
        ),
        headers=(
            *("Table", "Attack", "ε", "Methods", "Spearman", "p", "Kendall", "p"),
            *("Best (paper)", "Best (run)", "Remark"),
        ),
        rows=tuple(rows),
        n_text=3,
        rules=frozenset(rules),
    )


def _versus(item: Versus) -> str:
    return f"{item.agreeing} of {item.decided}" if item.decided else GAP


def summary_grid(comparison: Comparison) -> Grid:
    """The whole comparison in one line for each table and figure, and one over all."""
    return Grid(
        name="summary",
        title="This run and the paper in short",
        caption=(
            f"{_against(comparison)}. Differences: run minus paper, in points; close: at most {number(CLOSE_POINTS)}. "
            "Rank correlations: the median over attacks and radii; same best: in how many of them both have the same "
            "best method, a tied one counting. Beats: of the comparisons of a method with the baseline that are "
            "decided in both, how many come out the same way; undecided are equal figures, and on a plot those within "
            "twice its reading error. All: each measurement once, that of the earlier table."
        ),
        headers=(
            *(
                "Table",
                "Figures",
                "Median difference",
                "Mean |difference|",
                "Close",
                "Spearman",
                "Kendall",
                "Same best",
            ),
            *(f"Beats {_names(comparison, [name])}" for name in BASELINES),
        ),
        rows=tuple(
            (
                _place_title(comparison, item.place),
                str(item.n_cells),
                signed(item.median, 1),
                fixed(item.mean_absolute, 1),
                f"{item.n_close} of {item.n_cells}",
                _coefficient(item.spearman),
                _coefficient(item.kendall),
                f"{item.n_same_best} of {item.n_ordered}" if item.n_ordered else GAP,
                *(_versus(entry) for entry in item.versus),
            )
            for item in comparison.summaries
        ),
        n_text=1,
        rules=frozenset({len(comparison.summaries) - 1}),
    )


def setup_grid(comparison: Comparison) -> Grid:
    """What the run did differently, and what it chose where the paper is silent."""
    rows = tuple((item.title, item.paper, item.ours, item.kind) for item in comparison.setup)
    return Grid(
        name="setup",
        title="What differs from the paper",
        caption=(
            "Settings that differ, then those that the paper leaves open, with the choice of this run. What is not "
            "listed is as stated in the paper."
        ),
        headers=("Setting", "Paper", "This run", "Kind"),
        rows=rows,
        n_text=4,
        alarms=frozenset(i for i, item in enumerate(comparison.setup) if item.kind == "differs"),
        prose=frozenset({1, 2}),
    )


def not_run_grid(comparison: Comparison) -> Grid:
    """The published figures that the run has nothing for, those with one reason together."""
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for item in comparison.not_run:
        attack, eps = block_titles(comparison, item.published)
        key = (_place_title(comparison, item.published.place), attack, item.published.method, item.reason)
        together.setdefault(key, []).append(eps)
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for (place, attack, method, reason), radii in together.items():
        rows.setdefault((place, attack, ", ".join(radii), reason), []).append(method)
    return Grid(
        name="not-run",
        title="Published figures that this run has nothing for",
        caption="ε in normalised units.",
        headers=("Table", "Attack", "ε", "Methods", "Why"),
        rows=tuple(
            (place, attack, radii, _names(comparison, methods), reason)
            for (place, attack, radii, reason), methods in rows.items()
        ),
        n_text=5,
        prose=frozenset({2, 3, 4}),
    )
