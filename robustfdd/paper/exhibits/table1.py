"""Table 1: the dropouts of a run, and in what they differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, frame_of, table
from robustfdd.report.results import Results
from robustfdd.report.study import Method

ORDER = 10

_FACTS = ("strategy", "adaptive", "dynamic", "hyperparameters", "cost", "source", "summary")
_WHERE = {("features", "last"): "pooled features", ("maps", "last"): "last feature maps"}


def _where(method: Method) -> str:
    site, placement = method.settings["variant"].get("site"), str(method.settings.get("placement"))
    if placement == "stages":
        return "maps after each stage"
    return _WHERE.get((site, placement), "end of the network" if placement == "last" else placement)


def _name(members: list[Method]) -> str:
    """The dropout's title, and the labels that it has in the study beside its own name."""
    dropout = str(members[0].dropout)
    title = str(members[0].settings["variant"].get("title") or dropout)
    if [method.label for method in members] == [dropout]:
        return title
    return f"{title}: {', '.join(method.label for method in members)}"


def _cited(source: str | None) -> str:
    """Authors and year of a source."""
    found = re.match(r".*?\b\d{4}\b", source or GAP)
    return found[0] if found else source or GAP


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _variant(key: str, text: Callable[[Any], str]) -> Callable[[list[Method]], str]:
    return lambda members: text(members[0].settings["variant"].get(key))


_COLUMNS: list[Column[list[Method]]] = [
    Column("Dropout", _name, kind="prose"),
    Column("Strategy", _variant("strategy", str), kind="prose"),
    Column("Adaptive", _variant("adaptive", _yes), kind="name"),
    Column("Dynamic", _variant("dynamic", _yes), kind="name"),
    Column("Hyper-parameters", _variant("hyperparameters", lambda text: text or GAP), kind="prose"),
    Column("Cost", _variant("cost", lambda text: text or GAP), kind="prose"),
    Column("Acts on", lambda members: "; ".join(dict.fromkeys(map(_where, members))), kind="prose"),
    Column("Source", _variant("source", _cited), kind="prose"),
]


def _fact(name: str) -> Column[Method]:
    return data(name, lambda method: method.settings["variant"].get(name))


#: The data, one row a method.
_DATA: list[Column[Method]] = [
    *fields("method=label title dropout"),
    data("placement", lambda method: method.settings.get("placement")),
    data("acts_on", _where),
    data("options", lambda method: "; ".join(f"{key} = {value}" for key, value in method.options.items())),
    *map(_fact, _FACTS),
]


def build(results: Results) -> list[Exhibit]:
    """The dropouts of the run, one row each, from what the manifest says of their methods; none of older runs."""
    # What drops nothing has no strategy, and there is nothing to compare.
    methods = [m for m in results.study.methods if (m.settings.get("variant") or {}).get("strategy")]
    if not methods:
        return []
    members: dict[str, list[Method]] = {}
    for method in methods:
        members.setdefault(str(method.dropout), []).append(method)
    caption = (
        "In the columns of Table 1 of Ke et al. (2020). Adaptive: the drop probability is not the same for every unit "
        "and input. Dynamic: it drops in training. Cost: beyond drawing a mask. The options and the full sources are "
        "with the settings of the run."
    )
    title, frame = "Table 1: the dropouts compared", frame_of(methods, _DATA)
    return [table("table1-dropout-variants", title, caption, list(members.values()), _COLUMNS, frame=frame)]
