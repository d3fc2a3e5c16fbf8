"""Table 3: accuracy under attack in L-infinity at the published radii, out of a study that has more of them."""

from __future__ import annotations

from dataclasses import replace

from robustfdd.paper import published
from robustfdd.paper.matching import run_dataset, same_balls
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.results import Results
from robustfdd.report.study import ZERO
from robustfdd.report.tables import LAYOUT, main_rows, main_table
from robustfdd.report.worst_case import NAME

ORDER = 30

_PLACE = "table3"
_NORM = "linf"


def build(results: Results) -> list[Exhibit]:
    """The rows of the main table whose attack and radius are published for the data set, and the worst case at these.

    None where no figures are published for it, where the run has none of their radii, and where it has no others: the
    main table then is this one.
    """
    paper = published.load()
    dataset = run_dataset(results)
    radii = {(cell.attack, published.eps_key(cell.eps_normalized)) for cell in paper.cells_of(dataset, _PLACE)}
    if _NORM not in results.study.norms or not same_balls(results, paper, dataset):
        return []
    rows = main_rows(results, "robust_accuracy", _NORM)
    attacked = [row for row in rows if row.attack != NAME]
    shown = [
        row
        for row in attacked
        if row.eps is ZERO or (row.attack, published.eps_key(row.eps.normalized or 0.0)) in radii
    ]
    if len(shown) in (1, len(attacked)) or not any(entry.mean is not None for row in shown for entry in row.entries):
        return []
    keys = {row.eps.key for row in shown if row.eps is not ZERO}
    shown += [row for row in rows if row.attack == NAME and row.eps.key in keys]
    made = main_table(results, "robust_accuracy", _NORM, rows, shown)
    title = f"Table 3: {made.title[0].lower()}{made.title[1:]}, at the published ε"
    caption = made.caption.replace(LAYOUT, f"Attacks, radii and layout: {LAYOUT.partition(': ')[2]}")
    return [replace(made, name="table3-robust-accuracy", title=title, caption=caption)]
