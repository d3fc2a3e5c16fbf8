"""The command that shows what can be named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, get_args

import typer
from rich.table import Table

from robustfdd.cli.base import command, out_console

Kind = Literal["dropouts", "datasets", "attacks", "studies"]
#: Of a table: its columns and its rows.
Listing = tuple[Sequence[str], Sequence[Sequence[str]]]


@command("list")
def list_(what: Annotated[Kind | None, typer.Argument(help="Only this.")] = None) -> None:
    """Show the dropouts, data sets, attacks and studies that can be named."""
    for kind in get_args(Kind) if what is None else (what,):
        columns, rows = _LISTINGS[kind]()
        table = Table(title=kind, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, no_wrap=index == 0)
        for row in rows:
            table.add_row(*row)
        out_console.print(table)


def _dropouts() -> Listing:
    from robustfdd.dropouts import DROPOUTS

    rows = [
        (
            d.name,
            d.site,
            ", ".join(d.placements),
            d.summary,
            ", ".join(f"{key}={value}" for key, value in d.settings({}).items()),
        )
        for d in DROPOUTS.values()
    ]
    return ("dropout", "works on", "placement", "what it does", "options"), rows


def _datasets() -> Listing:
    from robustfdd.datasets import DATASETS

    rows = [(d.name, d.summary) for d in DATASETS.values()]
    return ("data set", "what it is"), [*rows, ("folder:PATH", "your images: train/<class>/*, test/<class>/*")]


def _attacks() -> Listing:
    from robustfdd.catalogue import attack_names, load_attack

    rows = [(a.name, a.kind, a.access, a.offer, a.summary) for a in map(load_attack, attack_names())]
    return ("attack", "kind", "access", "engines and norms", "what it does"), rows


def _studies() -> Listing:
    from robustfdd.catalogue import load_study, study_names

    studies = map(load_study, study_names())
    rows = [(s.name, s.dataset, str(len(s.methods) * len(s.seeds)), s.description) for s in studies]
    return ("study", "data set", "models", "what it is for"), rows


_LISTINGS: Mapping[Kind, Callable[[], Listing]] = {
    "dropouts": _dropouts,
    "datasets": _datasets,
    "attacks": _attacks,
    "studies": _studies,
}
