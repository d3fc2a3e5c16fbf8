"""Results as text: Markdown tables beside the CSV files, on the terminal, and in a page of the documentation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.contenders import REFERENCE
from benchmarks.statistics import COVERAGE


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: above it.
        columns: their headings.
        rows: of as many cells; the first is set to the left, the others to the right.
        caption: below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def markdown(self) -> str:
        """The table for a Markdown page, with its title as a heading."""
        return f"### {self.title}\n\n{self.body()}\n" + (f"\n{self.caption}\n" if self.caption else "")

    def body(self) -> str:
        """The table itself."""
        rule = [":---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in [self.columns, rule, *self.rows])

    def print(self, console: Console) -> None:
        """The table on a terminal."""
        table = RichTable(title=self.title, caption=self.caption or None, title_justify="left", caption_justify="left")
        for index, name in enumerate(self.columns):
            table.add_column(name, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table, markup=False)


def number(value: object, digits: int = 3) -> str:
    """A number to so many significant digits, without an exponent; a dash for none."""
    x = float("nan") if value is None else float(str(value))
    if math.isnan(x):
        return "–"
    if x == 0:
        return "0"
    return f"{x:.{max(digits - 1 - math.floor(math.log10(abs(x))), 0)}f}"


def _with_interval(row: pd.Series) -> str:
    return f"{number(row['ratio'])} ({number(row['ratio_low'])}–{number(row['ratio_high'])})"


def _interval_words(n: int) -> str:
    covered = 1 - 2 * 0.5**n
    if covered >= COVERAGE:
        return f"its interval of at least {COVERAGE:.0%} from the order statistics"
    return f"the range of all {n}, too few for an interval of {COVERAGE:.0%}"


def sweep_tables(summary: pd.DataFrame, answers: pd.DataFrame, n_rounds: int) -> list[Table]:
    """All cases in one table of ratios, then each case with times, memory and answers."""
    tables = [_ratios(summary, n_rounds), _ratios(summary, n_rounds, cpu=True)] if "ratio" in summary else []
    for case, rows in summary.groupby("case", sort=False):
        found = answers[answers["case"] == case] if len(answers) else answers
        epsilons = list(dict.fromkeys(found["eps"])) if len(found) else []
        lines = []
        for _, row in rows.iterrows():
            times = [number(row[name]) for name in ("seconds", "cpu_seconds", "peak_mib", "once_seconds")]
            ratio = [_with_interval(row)] if "ratio" in row and not math.isnan(row["ratio"]) else ["–"]
            mine = found[found["contender"] == row["contender"]] if len(found) else found
            by_eps = {answer["eps"]: _answer(answer) for _, answer in mine.iterrows()}
            lines.append([str(row["contender"]), *ratio, *times, *(by_eps.get(eps, "–") for eps in epsilons)])
        columns = ["contender", f"time / {REFERENCE}", "seconds", "CPU s", "peak MiB", "once s"]
        tables.append(
            Table(
                title=str(rows["title"].iloc[0]),
                columns=[*columns, *(f"eps {eps:g}" for eps in epsilons)],
                rows=lines,
                caption="Once: making it, with imports and the preparation of the network. Under eps: robust accuracy "
                f"in %; ≠n: n images come out differently from {REFERENCE}.",
            )
        )
    return tables


def _answer(row: pd.Series) -> str:
    accuracy = f"{100 * row['robust_accuracy']:.1f}"
    different = row["differing"]
    return accuracy if math.isnan(different) or different == 0 else f"{accuracy} ≠{int(different)}"


def _ratios(summary: pd.DataFrame, n_rounds: int, *, cpu: bool = False) -> Table:
    contenders = list(dict.fromkeys(summary["contender"]))
    column, what = ("cpu_ratio", "CPU time") if cpu else ("ratio", "Time")
    rows = []
    for _, found in summary.groupby("case", sort=False):
        ratios: Mapping[str, str] = {row["contender"]: number(row[column]) for _, row in found.iterrows()}
        rows.append([str(found["title"].iloc[0]), *(ratios.get(name, "–") for name in contenders)])
    caption = f"Medians of the ratios of {n_rounds} rounds in which all take turns."
    if cpu:
        caption += " CPU time is that of all threads; waiting for a GPU counts in it."
    else:
        caption += f" The tables of the sweeps give {_interval_words(n_rounds)}, and the answers."
    title = f"{what} of an epsilon sweep, in units of {REFERENCE}"
    return Table(title=title, columns=["sweep", *contenders], rows=rows, caption=caption)


def dropout_tables(dropout: pd.DataFrame) -> list[Table]:
    """One row for each width, batch size and dropout."""
    rows = [
        [
            str(row["dropout"]),
            str(row["width"]),
            str(row["batch_size"]),
            number(1000 * row["step_seconds"]),
            number(1000 * row["none_seconds"]),
            _added(row),
            number(1000 * row["layer_seconds"]),
            f"{100 * row['layer_share']:.2f}",
        ]
        for _, row in dropout.iterrows()
    ]
    n_pairs = int(dropout["pairs"].iloc[0])
    columns = ["dropout", "width", "batch", "step ms", "without ms", "added %", "layer ms", "layer %"]
    caption = (
        f"Added: the median over {n_pairs} pairs of steps, with {_interval_words(n_pairs)}. Layer: its forward pass by "
        "itself, and that in units of the step without."
    )
    return [Table("A training step with a dropout", columns, rows, caption)]


def _added(row: pd.Series) -> str:
    median, low, high = (f"{100 * (row[name] - 1):+.1f}" for name in ("ratio", "ratio_low", "ratio_high"))
    return f"{median} ({low} to {high})"


def training_tables(training: pd.DataFrame, n_rounds: int) -> list[Table]:
    """One row for each precision and way to train."""
    rows = [
        [
            str(row["contender"]),
            str(row["precision"]),
            number(row["images_per_second"]),
            _with_interval(row) if "ratio" in row else "–",
            number(row["cpu_seconds"]),
            number(row["peak_mib"]),
            number(row["loss"]),
        ]
        for _, row in training.iterrows()
    ]
    columns = ["trained by", "precision", "images / s", "to the plain loop", "CPU s", "peak MiB", "last loss"]
    caption = (
        f"Epochs of {int(training['images'].iloc[0])} images, {n_rounds} counted. To the plain loop: the median ratio "
        f"of images a second to the faster plain loop of that precision, with {_interval_words(n_rounds)}."
    )
    return [Table("Training throughput", columns, rows, caption)]


def cluster_tables(cluster: pd.DataFrame, n_rounds: int) -> list[Table]:
    """One row for each number of nodes."""
    rows = [
        [str(row["nodes"]), number(row["seconds"]), _with_interval(row), "yes" if row["same"] else "NO"]
        for _, row in cluster.iterrows()
    ]
    columns = ["nodes of one core", "seconds", "to one node", "same outcomes"]
    caption = (
        f"A study of {int(cluster['units'].iloc[0])} units, {n_rounds} times on each cluster, with the time that "
        f"workers take to start; to one node: the median ratio, with {_interval_words(n_rounds)}."
    )
    return [Table("A study on a Ray cluster", columns, rows, caption)]


def target_tables(targets: pd.DataFrame) -> list[Table]:
    """One row for each target."""
    rows = [
        [
            str(row["what"]),
            str(row["target"]),
            f"{number(row['measured'])} ({number(row['low'])}–{number(row['high'])})",
            ("yes" if row["met"] else "no") + (", within the interval" if row["within_interval"] else ""),
            f"{row['cases_met']} of {row['cases']}",
            str(row["worst_case"]),
        ]
        for _, row in targets.iterrows()
    ]
    columns = ["ratio", "target", "measured", "met", "cases that meet it", "worst case"]
    return [Table("Targets", columns, rows, "Measured: in the worst case. Met: in all cases.")]


def write_tables(folder: Path, name: str, frame: pd.DataFrame, tables: Sequence[Table]) -> None:
    """The numbers as CSV, the tables as Markdown."""
    frame.to_csv(folder / f"{name}.csv", index=False)
    (folder / f"{name}.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")


def fill_page(page: Path, results: Path) -> None:
    """Put tables into a Markdown page, between ``<!-- benchmark RUN/TABLES -->`` and ``<!-- end -->``.

    Args:
        page: changed in place; places of what there is no file for stay as they are.
        results: the folder of all results, with ``RUN/TABLES.md`` in it.
    """

    def filled(found: re.Match[str]) -> str:
        file = results / found[2] / f"{found[3]}.md"
        if not file.is_file():
            return found[0]
        # The page has headings of its own.
        body = re.sub(r"^### (.*)$", r"**\1**", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return f"{found[1]}{body.strip()}\n{found[4]}"

    pattern = r"(<!-- benchmark ([\w-]+)/(\w+) -->\n).*?(<!-- end -->)"
    text = re.sub(pattern, filled, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")
