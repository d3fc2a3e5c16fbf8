"""What the training records say of each method: its models and their accuracy over the whole test split."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pandas as pd

from robustfdd.report.grid import GAP, Grid
from robustfdd.report.results import Results
from robustfdd.report.tables import Entry, aggregate, seeds_text
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


def _thousands(text: str) -> str:
    """A figure with a comma between thousands."""
    whole, _, decimals = text.partition(".")
    return f"{int(whole):,}.{decimals}"


def training_grid(results: Results) -> Grid:
    """Time and size of the models of every method, as a table."""
    rows = []
    for method in results.study.methods:
        models = models_of(results, method.label)
        seconds = [exact(model["seconds"]) for model in models if model.get("seconds") is not None]
        parameters = [f"{model['parameters']:,}" for model in models if model.get("parameters")]
        rows.append(
            (
                method.title,
                str(len(models)),
                _thousands(fixed(mean(seconds), 1)) if seconds else GAP,
                parameters[0] if parameters else GAP,
            )
        )
    caption = f"{results.study.dataset}; time is the mean over models ({seeds_text(results.study.trained_seeds)})."
    headers = ("Method", "Models", "Training time (s)", "Parameters")
    return Grid("training", "Training", caption, headers, tuple(rows), n_text=1)


def training_frame(results: Results) -> pd.DataFrame:
    """The training records as data, one row a model, in the order of the study."""
    models = [model for method in results.study.methods for model in models_of(results, method.label)]
    frame: pd.DataFrame = pd.DataFrame.from_records(
        [{column: model.get(column) for column in _COLUMNS} for model in models], columns=list(_COLUMNS)
    )
    return frame
