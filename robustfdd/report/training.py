"""What the training records say of each method: its models and their accuracy over the whole test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pandas as pd

from robustfdd.report.exhibit import GAP, Column, Exhibit, table
from robustfdd.report.results import Results
from robustfdd.report.study import Method, seeds_text
from robustfdd.report.tables import Entry, aggregate
from robustfdd.rounding import exact, fixed, mean, share

_COLUMNS = ("method", "seed", "clean_accuracy", "n_test", "seconds", "parameters", "checkpoint", "sha256")


def planned_seeds(results: Results, method: str) -> tuple[int, ...]:
    """The training seeds that the plan has for a method, ascending; none for a model that was not trained here."""
    return tuple(sorted({u.seed for u in results.study.units if u.method == method and u.seed >= 0}))


def models_of(results: Results, method: str) -> list[Mapping[str, Any]]:
    """The training records of a method that belong to the plan, by ascending seed."""
    planned = planned_seeds(results, method)
    found = [model for model in results.run.models if model.get("method") == method and model.get("seed") in planned]
    return sorted(found, key=lambda model: int(model["seed"]))


def clean_accuracy(results: Results, method: str) -> dict[int, Fraction]:
    """Accuracy over the whole test split before any attack, in percent, for each seed that has a record."""
    return {
        int(model["seed"]): 100 * share(model["clean_accuracy"], int(model.get("n_test") or 0))
        for model in models_of(results, method)
        if model.get("clean_accuracy") is not None
    }


def clean_entry(results: Results, method: str) -> Entry:
    """Clean accuracy of a method over the whole test split, mean and spread over its training seeds."""
    values = [value / 100 for value in clean_accuracy(results, method).values()]
    return aggregate(values, len(planned_seeds(results, method)))


def n_test_images(results: Results) -> int | None:
    """The number of images in the whole test split; None where no training record says it."""
    sizes = [model.get("n_test") for method in results.study.methods for model in models_of(results, method.label)]
    return next((int(size) for size in sizes if size), None)


def over_test_split(n_test: int | None) -> str:
    """Over which images a clean accuracy is, in words."""
    return f"all {n_test:,} test images, before any attack" if n_test else "all test images, before any attack"


def _seconds(models: Sequence[Mapping[str, Any]]) -> str:
    """The mean time over models, with a comma between thousands."""
    seconds = [exact(model["seconds"]) for model in models if model.get("seconds") is not None]
    return f"{Decimal(fixed(mean(seconds), 1)):,}" if seconds else GAP


def training_table(results: Results) -> Exhibit:
    """Time and size of the models of every method; in the data one row a model, in the order of the study."""
    study = results.study
    models = [(method, models_of(results, method.label)) for method in study.methods]
    columns: list[Column[tuple[Method, list[Mapping[str, Any]]]]] = [
        Column("Method", lambda item: item[0].title, kind="name"),
        Column("Models", lambda item: str(len(item[1]))),
        Column("Training time (s)", lambda item: _seconds(item[1])),
        Column("Parameters", lambda item: next((f"{m['parameters']:,}" for m in item[1] if m.get("parameters")), GAP)),
    ]
    records = [{name: model.get(name) for name in _COLUMNS} for _, found in models for model in found]
    frame: pd.DataFrame = pd.DataFrame.from_records(records, columns=list(_COLUMNS))
    caption = f"{study.dataset}; time is the mean over models ({seeds_text(study.trained_seeds)})."
    return table("training", "Training", caption, models, columns, frame=frame)
