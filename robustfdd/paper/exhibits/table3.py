"""Table 3: accuracy under attack in L-infinity at the published radii, out of a study that has more of them."""

from __future__ import annotations

from dataclasses import replace

from robustfdd.paper import published
from robustfdd.paper.matching import run_dataset, same_balls
from robustfdd.report.artefact import Artefact
from robustfdd.report.results import Results
from robustfdd.report.tables import LAYOUT, main_tables
from robustfdd.report.worst_case import NAME

ORDER = 30

_PLACE = "table3"
_NORM = "linf"


def build(results: Results) -> list[Artefact]:
    """The rows of the main table whose attack and radius are published for the data set, and the worst case at these.

    None where no figures are published for it, where the run has none of their radii, and where it has no others: the
    main table then is this one.
    """
    paper = published.load()
    dataset = run_dataset(results)
    radii = {(cell.attack, published.eps_key(cell.eps_normalized)) for cell in paper.cells_of(dataset, _PLACE)}
    tables = [table for table in main_tables(results) if table.norm == _NORM]
    if not tables or not same_balls(results, paper, dataset):
        return []
    (table,) = tables
    attacked = [row for row in table.rows if row.attack != NAME]
    rows = [
        row
        for row in attacked
        if row.eps is None or (row.attack, published.eps_key(row.eps.normalized or 0.0)) in radii
    ]
    if len(rows) in (1, len(attacked)) or not any(entry.mean is not None for row in rows for entry in row.entries):
        return []
    shown = {row.eps.key for row in rows if row.eps}
    worst = (row for row in table.rows if row.attack == NAME and row.eps and row.eps.key in shown)
    compact = replace(table, rows=(*rows, *worst))
    title = f"Table 3: {compact.grid.title[0].lower()}{compact.grid.title[1:]}, at the published ε"
    caption = compact.caption.replace(LAYOUT, f"Attacks, radii and layout: {LAYOUT.partition(': ')[2]}")
    return [Artefact("table3-robust-accuracy", title, caption, compact.frame(), compact.grid)]
