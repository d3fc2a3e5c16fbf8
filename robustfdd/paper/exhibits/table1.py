"""Table 1: the dropouts of a run, and in what they differ."""

from __future__ import annotations

import re

import pandas as pd

from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid
from robustfdd.report.results import Results
from robustfdd.report.study import Method

ORDER = 10

_NAME = "table1-dropout-variants"
_FACTS = ("strategy", "adaptive", "dynamic", "hyperparameters", "cost", "source", "summary")
_WHERE = {
    ("features", "last"): "pooled features",
    ("maps", "last"): "last feature maps",
}


def _where(method: Method) -> str:
    site, placement = method.settings["variant"].get("site"), str(method.settings.get("placement"))
    if placement == "stages":
        return "maps after each stage"
    return _WHERE.get((site, placement), "end of the network" if placement == "last" else placement)


def _name(dropout: str, members: list[Method]) -> str:
    """The dropout's title, and the labels that it has in the study beside its own name."""
    title = str(members[0].settings["variant"].get("title") or dropout)
    if [method.label for method in members] == [dropout]:
        return title
    return f"{title}: {', '.join(method.label for method in members)}"


def _cited(source: str) -> str:
    """Authors and year of a source."""
    found = re.match(r".*?\b\d{4}\b", source)
    return found[0] if found else source


def _yes(value: object) -> str:
    return "yes" if value else "no"


def build(results: Results) -> list[Artefact]:
    """The dropouts of the run, one row each, from what the manifest says of their methods; none of older runs."""
    # What drops nothing has no strategy, and there is nothing to compare.
    methods = [m for m in results.study.methods if (m.settings.get("variant") or {}).get("strategy")]
    if not methods:
        return []
    rows = []
    for dropout in dict.fromkeys(str(method.dropout) for method in methods):
        members = [method for method in methods if str(method.dropout) == dropout]
        variant = members[0].settings["variant"]
        rows.append(
            (
                _name(dropout, members),
                variant["strategy"],
                _yes(variant.get("adaptive")),
                _yes(variant.get("dynamic")),
                variant.get("hyperparameters") or GAP,
                variant.get("cost") or GAP,
                "; ".join(dict.fromkeys(map(_where, members))),
                _cited(variant.get("source") or GAP),
            )
        )
    title = "Table 1: the dropouts compared"
    caption = (
        "In the columns of Table 1 of Ke et al. (2020). Adaptive: the drop probability is not the same for every unit "
        "and input. Dynamic: it drops in training. Cost: beyond drawing a mask. The options and the full sources are "
        "with the settings of the run."
    )
    headers = ("Dropout", "Strategy", "Adaptive", "Dynamic", "Hyper-parameters", "Cost", "Acts on", "Source")
    frame: pd.DataFrame = pd.DataFrame.from_records(
        [
            {
                "method": method.label,
                "title": method.title,
                "dropout": method.dropout,
                "placement": method.settings.get("placement"),
                "acts_on": _where(method),
                "options": "; ".join(f"{key} = {value}" for key, value in method.options.items()),
                **{fact: method.settings["variant"].get(fact) for fact in _FACTS},
            }
            for method in methods
        ]
    )
    grid = Grid(_NAME, title, caption, headers, tuple(rows), n_text=len(headers), prose=frozenset({0, 1, 4, 5, 6, 7}))
    return [Artefact(_NAME, title, caption, frame, grid)]
