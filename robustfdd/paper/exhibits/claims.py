"""The paper's claims, in one run: one row a claim, with the figures that decide it."""

from __future__ import annotations

from robustfdd.paper.claims import CLAIMS, FDD, Claim, Finding, collect, judged
from robustfdd.paper.matching import match_methods
from robustfdd.paper.published import load
from robustfdd.report.exhibit import GAP, Column, Exhibit, table
from robustfdd.report.results import Results
from robustfdd.report.study import seeds_text

ORDER = 5

_COLUMNS: list[Column[tuple[Claim, Finding]]] = [
    Column("Place", lambda item: item[0].place, "place", kind="name"),
    Column("Claim", lambda item: item[0].text, "claim", kind="prose"),
    Column("Holds if", lambda item: item[0].rule, "rule", kind="prose"),
    Column("Here", lambda item: item[1].verdict, "verdict", kind="name"),
    Column("In the paper", lambda item: item[1].paper or GAP, "paper", kind="name"),
    Column("Figures", lambda item: item[1].evidence, "evidence", kind="prose"),
]


def build(results: Results) -> list[Exhibit]:
    """The claims that the run has something on; none for a run that has no FDD of the paper's."""
    methods, _ = match_methods(results, load())
    if not any(name in methods for name in FDD):
        return []
    evidence = collect(results, methods)
    found = [(claim, judged(claim, evidence)) for claim in CLAIMS]
    decided = [(claim, finding) for claim, finding in found if finding is not None]
    if not decided:
        return []
    untold = [f"{claim.text} ({claim.place})" for claim, finding in found if finding is None]
    caption = (
        f"{results.study.dataset}; {seeds_text(results.study.seeds)}; with the network and the recipe of this run, "
        "which are not the paper's in all (see the settings below). Methods are those with the options that the paper "
        "states, and with our defaults for what it leaves open. Each claim is decided by its rule, on means over seeds "
        "where it names no test; it mostly holds or fails where some comparisons, or some of what it speaks of, say "
        "otherwise or were not run. In the paper: the same rule on the published figures. That a claim on accuracy "
        "under attack holds does not say why: weak gradients would look the same."
    )
    if untold:
        caption += f" This run says nothing on: {'; '.join(untold)}."
    return [table("claims", "The paper's claims, in this run", caption, decided, _COLUMNS)]
