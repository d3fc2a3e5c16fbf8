"""The columns of the tables that analyses and audits leave in a run, so that nobody's file is taken for one of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd
from pandas.api import types

from robustfdd.errors import RunDirectoryError

#: What the cells of a column hold.
Kind = Literal["text", "count", "number", "share", "truth", "numbers", "texts"]


def _kinds(text: str = "", **columns: str) -> Mapping[str, Kind]:
    """Columns by kind, as names with blanks between them."""
    found: dict[str, Kind] = dict.fromkeys(text.split(), "text")
    for kind, names in columns.items():
        found |= dict.fromkeys(names.split(), kind)  # type: ignore[arg-type]
    return MappingProxyType(found)


#: The columns of every table that the report reads.
COLUMNS: Mapping[str, Mapping[str, Kind]] = {
    "audit_verdict": _kinds(
        "verdict norm attack",
        number="eps_pixel eps_normalized seconds",
        count="n_images gradient_passes forward_passes eot_samples",
        share="clean_accuracy audited_accuracy worst_accuracy",
        texts="failed",
    ),
    "audit_indicators": _kinds(
        "name title status unit threshold source advice finding", count="number", number="value", numbers="images"
    ),
    "audit_pictures": _kinds("picture series x_title y_title title", numbers="x y z"),
    "activations": _kinds(number="left right", count="count"),
    "activation-summary": _kinds(
        count="n_images n_features",
        number="mean std near_zero near_zero_relative mean_max_abs_logit mean_logit_margin",
        share="share_near_zero share_near_zero_relative",
    ),
    "cost": _kinds(
        "hardware device",
        count="layers batch_size steps_per_epoch repetitions threads",
        number="step_seconds estimate_seconds mask_seconds estimate_share mask_share",
    ),
    "density-channels": _kinds("group", count="image channel density n_bins", number="pc1 pc2"),
    "density-groups": _kinds(
        "group",
        count="n_images of_images n_top n_heatmaps height width",
        number="share_of_maps average_entropy entropy_of_average grey_level_entropy_of_average",
        numbers="heatmap",
    ),
    "density-heatmaps": _kinds(
        "group", count="image rank channel height width", number="response entropy", numbers="heatmap"
    ),
    "density-images": _kinds("class", count="image channels height width", numbers="pixels"),
    "planes": _kinds(
        "class", count="image channel density n_bins", number="pc1 pc2 pc3 drop_probability", truth="dropped"
    ),
}

#: Of lists, the columns whose product is their length; without that they cannot be drawn.
_LENGTHS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("density-groups", "heatmap"): ("height", "width"),
    ("density-heatmaps", "heatmap"): ("height", "width"),
    ("density-images", "pixels"): ("channels", "height", "width"),
}
#: Columns of counts that are at least 1.
_AT_LEAST_ONE = frozenset({"n_images", "n_features", "n_bins", "height", "width", "channels", "n_top", "rank"})


def listed(value: Any) -> list[Any]:
    """A list in a cell of an analysis, which comes back as an array, or as nothing where it was empty."""
    return [] if value is None or (isinstance(value, float) and pd.isna(value)) else list(value)


def _every(test: Callable[[Any], bool]) -> Callable[[pd.Series[Any]], bool]:
    return lambda column: all(test(value) for value in column)


def _is_number(column: pd.Series[Any]) -> bool:
    return types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype)


def _is_count(column: pd.Series[Any]) -> bool:
    return types.is_integer_dtype(column.dtype) and bool((column >= 0).all())


def _is_share(column: pd.Series[Any]) -> bool:
    return _is_number(column) and bool(column.astype(np.float64).between(0, 1).all())


def _is_list(value: Any, of: tuple[type, ...], kinds: str) -> bool:
    """Whether a cell holds a list of such entries; an empty one may have come back as nothing."""
    if isinstance(value, np.ndarray) and value.dtype.kind in kinds:
        return value.ndim == 1
    whole = isinstance(value, np.ndarray | list | None) or (isinstance(value, float) and pd.isna(value))
    return whole and all(isinstance(item, of) for item in listed(value))


#: How a message names each kind, and what a column of it must pass.
_KINDS: Mapping[Kind, tuple[str, Callable[[pd.Series[Any]], bool]]] = {
    "text": ("text", _every(lambda value: isinstance(value, str))),
    "count": ("whole numbers from 0", _is_count),
    "number": ("numbers", _is_number),
    "share": ("shares from 0 to 1", _is_share),
    "truth": ("true or false", lambda column: types.is_bool_dtype(column.dtype)),
    "numbers": ("lists of numbers", _every(lambda value: _is_list(value, (int, float, np.number), "biuf"))),
    "texts": ("lists of text", _every(lambda value: _is_list(value, (str,), "U"))),
}


def check_columns(frame: pd.DataFrame, table: str, where: object, columns: Collection[str] | None = None) -> None:
    """Make sure that a table of an analysis has the columns that are read of it, and in them what belongs there.

    Args:
        frame: the rows of all models.
        table: its name, a key of :data:`COLUMNS`.
        where: the folder of the analyses, for messages.
        columns: those that are read; all when None, but for advice, which earlier audits did not give.

    Raises:
        RunDirectoryError: a column is missing, or holds something else.
    """
    kinds = COLUMNS[table]
    wanted = [name for name in kinds if name != "advice"] if columns is None else list(columns)

    files, again = f"the files {table}--*", "remove them, and the next analysis or audit remakes them"

    def refuse(what: str) -> NoReturn:
        raise RunDirectoryError(f"{where}: {what}; {again}")

    if missing := sorted(set(wanted) - set(frame.columns)):
        refuse(f"{files} have no column {', '.join(missing)}")
    for name in (name for name in kinds if name in frame.columns):
        words, test = _KINDS[kinds[name]]
        if not test(frame[name]):
            refuse(f"the column {name} of {files} must hold {words}")
        if name in _AT_LEAST_ONE and bool((frame[name] < 1).any()):
            refuse(f"the column {name} of {files} must be at least 1")
    for (owner, name), sizes in _LENGTHS.items():
        if owner == table and {name, *sizes} <= set(frame.columns):
            lengths = [len(listed(value)) for value in frame[name]]
            if lengths != frame[list(sizes)].prod(axis="columns").tolist():
                refuse(f"the lists in the column {name} of {files} must have {' times '.join(sizes)} entries")
