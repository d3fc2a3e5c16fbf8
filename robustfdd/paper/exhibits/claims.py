"""The paper's claims, in one run: one row a claim, with the figures that decide it."""

from __future__ import annotations

import pandas as pd

from robustfdd.paper.claims import CLAIMS, FDD, collect, judged
from robustfdd.paper.matching import match_methods
from robustfdd.paper.published import load
from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid
from robustfdd.report.results import Results
from robustfdd.report.tables import seeds_text

ORDER = 5


def build(results: Results) -> list[Artefact]:
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
    rows = [
        (claim.place, claim.text, claim.rule, finding.verdict, finding.paper or GAP, finding.evidence)
        for claim, finding in decided
    ]
    headers = ("Place", "Claim", "Holds if", "Here", "In the paper", "Figures")
    title = "The paper's claims, in this run"
    grid = Grid("claims", title, caption, headers, tuple(rows), n_text=len(headers), prose=frozenset({1, 2, 5}))
    columns = ["place", "claim", "rule", "verdict", "paper", "evidence"]
    return [Artefact("claims", title, caption, pd.DataFrame(rows, columns=columns), grid)]
