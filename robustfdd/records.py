"""The run directory: its manifest, its results and its failures, written atomically and checked when read.

A run directory holds::

    manifest.json            what was asked for, with what, on what
    models/NAME.safetensors  the checkpoints, and NAME.json, how each was trained
    results/UNIT.parquet     one unit a file, one row a cell, the per-sample outcomes packed in the row
    analysis/TABLE--METHOD--seedS.parquet
                             what an analysis of one model's checkpoint found, one of its tables a file
    failures/UNIT.json       a unit that failed: which, and why; it has no file under results/
    report/                  made from the above, never the other way round

A *unit* is one model under one attack, norm and engine; a *cell* is a unit at one epsilon. This module imports
neither torch nor the attack libraries, so reports can be made where they are not installed.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustfdd.errors import RunDirectoryError

#: Raised with every change of the columns or the manifest that an older reader would misread.
FORMAT = 2


class Outcome(IntEnum):
    """What became of one test image in one cell."""

    MISCLASSIFIED = 0
    """Wrong before any attack, and therefore not attacked."""
    SURVIVED = 1
    """Right before the attack and right after it."""
    BROKEN = 2
    """Right before the attack, and wrong on an image inside the budget and the box."""


#: Whether a robust accuracy can be believed, from best to worst.
Verdict = Literal["believable", "suspicious", "not believable"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
#: What one indicator of an audit says.
Status = Literal["passed", "warning", "alarm", "not applicable"]
STATUSES: tuple[Status, ...] = get_args(Status)


#: The columns of a results file. Accuracies are fractions in [0, 1]; distances are in pixel units.
SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("method", pa.string()),  # the label of the regulariser in the study, e.g. "fdd-2d"
        ("dataset", pa.string()),
        ("seed", pa.int64()),  # of the training run; -1 for a model that was not trained here
        ("attack", pa.string()),
        ("norm", pa.string()),
        ("engine", pa.string()),
        ("protocol", pa.string()),
        ("deterministic", pa.bool_()),  # whether the attack is, given the model
        ("eps_pixel", pa.float64()),
        ("eps_normalized", pa.float64()),
        ("attack_seed", pa.int64()),
        ("n_images", pa.int64()),
        ("n_attacked", pa.int64()),  # images classified correctly before the attack
        ("n_broken", pa.int64()),
        ("clean_accuracy", pa.float64()),  # on the same images
        ("robust_accuracy", pa.float64()),  # over n_images
        ("survival_rate", pa.float64()),  # over n_attacked; null when that is 0
        ("max_distance", pa.float64()),
        ("gradient_passes", pa.int64()),  # images times input-gradient evaluations
        ("seconds", pa.float64()),
        ("image_index", pa.list_(pa.int32())),  # position in the test split
        ("label", pa.list_(pa.int32())),
        ("clean_prediction", pa.list_(pa.int32())),
        ("prediction", pa.list_(pa.int32())),  # after the attack; the clean one where not attacked
        ("outcome", pa.list_(pa.int8())),  # see Outcome
        ("distance", pa.list_(pa.float32())),  # of the perturbation; 0 where not attacked
        # Passes of the model that an attack averages for one gradient (expectation over transformation); 0 for a model
        # whose forward is deterministic in evaluation, which needs none.
        ("eot_samples", pa.int32()),
        # Robust accuracy of each of several repeated predictions of the same perturbed images, the recorded one first;
        # empty for a deterministic forward, whose predictions repeat exactly. Only what the recorded clean prediction
        # had right is attacked and counted, so that above epsilon 0 an image must be right in two draws.
        ("repeated_accuracy", pa.list_(pa.float64())),
        ("precision", pa.string()),  # of the passes that the attack made; predictions are always in single precision
    ]
)


@dataclass(frozen=True)
class Cell:
    """One row of a results file; the fields are the columns of :data:`SCHEMA`, which says their units.

    The figures that follow from the per-sample outcomes are computed here and cannot be set.
    """

    study: str
    method: str
    dataset: str
    seed: int
    attack: str
    norm: str
    engine: str
    protocol: str
    deterministic: bool
    eps_pixel: float
    eps_normalized: float
    attack_seed: int
    gradient_passes: int
    seconds: float
    image_index: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    clean_prediction: npt.NDArray[np.int32]
    prediction: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int8]
    distance: npt.NDArray[np.float32]
    eot_samples: int = 0
    repeated_accuracy: tuple[float, ...] = ()
    precision: str = "fp32"

    def row(self) -> dict[str, Any]:
        """The cell as a mapping from every column of :data:`SCHEMA` to its value."""
        values = dict(vars(self))
        n_images = len(self.outcome)
        n_broken = int((self.outcome == Outcome.BROKEN).sum())
        n_survived = int((self.outcome == Outcome.SURVIVED).sum())
        n_attacked = n_broken + n_survived
        values.update(
            n_images=n_images,
            n_attacked=n_attacked,
            n_broken=n_broken,
            clean_accuracy=n_attacked / n_images,
            robust_accuracy=n_survived / n_images,
            survival_rate=n_survived / n_attacked if n_attacked else None,
            max_distance=float(self.distance.max(initial=0.0)),
            repeated_accuracy=list(self.repeated_accuracy),
        )
        return {name: values[name] for name in SCHEMA.names}


@dataclass(frozen=True)
class Failure:
    """One unit that has no result, and why."""

    unit: str
    stage: str  # "train", "attack" or "analysis"
    method: str
    seed: int
    error: str  # the type of the exception
    message: str
    traceback: str
    attack: str | None = None
    norm: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class Run:
    """Everything a run directory says, read and checked.

    Attributes:
        path: the run directory.
        manifest: the content of ``manifest.json``.
        models: one mapping for each trained model, the content of ``models/*.json``.
        cells: one row a cell, with the columns of :data:`SCHEMA` and ``unit``; empty lists stay lists.
        failures: the units that failed.
        analyses: what the analyses of the checkpoints found: by the name of the table, the rows of all models, whose
            first columns are ``method`` and ``seed``.
    """

    path: Path
    manifest: dict[str, Any]
    models: list[dict[str, Any]]
    cells: pd.DataFrame
    failures: list[Failure]
    analyses: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file, then put it in place of ``path`` in one step.

    A reader, or a process killed in the middle, sees the old file or the new one, never a part of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files private; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Make sure that a file can be written there, before the work whose result it is to hold.

    Raises:
        OSError: it is a directory, or its directory cannot be made or written to; the message names it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, indented, with the keys in the order given. NaN is refused: it is no JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunDirectoryError: the file is missing or not a JSON object; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise RunDirectoryError(f"{path}: holds no JSON object")
    return content


def write_cells(path: Path, cells: Sequence[Cell], *, key: str) -> None:
    """Write the cells of one unit atomically.

    Args:
        path: the Parquet file.
        cells: the rows, at least one.
        key: what the result depends on, in short; :func:`read_key` gives it back.
    """
    table = pa.Table.from_pylist([cell.row() for cell in cells], schema=SCHEMA)
    table = table.replace_schema_metadata({"robustfdd.format": str(FORMAT), "robustfdd.key": key})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_key(path: Path) -> str | None:
    """The key that a results file was written with; None if it is missing, damaged or of another format."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    if metadata.get(b"robustfdd.format") != str(FORMAT).encode():
        return None
    key = metadata.get(b"robustfdd.key")
    return key.decode() if key is not None else None


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of one unit, one row a cell, with the columns of :data:`SCHEMA`.

    Raises:
        RunDirectoryError: the file is damaged or has other columns; the message names it.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{path}: not readable as Parquet ({error})") from error
    if table.schema.names == SCHEMA.names[:-1]:  # of a version that had no other precision
        table = table.append_column(SCHEMA.field("precision"), pa.array(["fp32"] * table.num_rows))
    if table.schema.names != SCHEMA.names:
        raise RunDirectoryError(f"{path}: has other columns than a results file of format {FORMAT}")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def is_whole(path: Path) -> bool:
    """Whether a results file can be read to its end; its key is at the end, and says nothing of the middle."""
    try:
        read_cells(path)
    except RunDirectoryError:
        return False
    return True


def analysis_path(run: Path, table: str, method: str, seed: int) -> Path:
    """Where a table of an analysis of one model lies."""
    return run / "analysis" / f"{table}--{method}--seed{seed}.parquet"


def write_analysis(run: Path, table: str, frame: pd.DataFrame, *, method: str, seed: int, key: str) -> Path:
    """Write a table of an analysis of one model atomically.

    Args:
        run: the run directory.
        table: the name of the table, without ``--`` in it.
        frame: its rows, at least one; a column may hold one-dimensional NumPy arrays.
        method: label of the model's method; becomes the first column.
        seed: of the model's training run; becomes the second column.
        key: what the result depends on, in short; :func:`read_key` gives it back.
    """
    path = analysis_path(run, table, method, seed)
    whole = pd.concat([pd.DataFrame({"method": method, "seed": seed}, index=frame.index), frame], axis="columns")
    content = pa.Table.from_pandas(whole, preserve_index=False)
    content = content.replace_schema_metadata({"robustfdd.format": str(FORMAT), "robustfdd.key": key})
    write_atomically(path, lambda temporary: pq.write_table(content, temporary, compression="zstd"))
    return path


def read_analysis(path: Path) -> pa.Table:
    """A table of an analysis of one model.

    Raises:
        RunDirectoryError: the file is damaged, of another format, or does not begin with method and seed; the message
            names it.
    """
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{path}: not readable as Parquet ({error})") from error
    if (content.schema.metadata or {}).get(b"robustfdd.format") != str(FORMAT).encode():
        raise RunDirectoryError(f"{path}: no analysis of format {FORMAT}; remove it, and the next analysis remakes it")
    if content.schema.names[:2] != ["method", "seed"]:
        raise RunDirectoryError(f"{path}: an analysis must begin with the columns method and seed")
    return content


def _read_analyses(run: Path) -> dict[str, pd.DataFrame]:
    """The tables of all analyses by name, those of all models in one.

    Raises:
        RunDirectoryError: a file is damaged, or has other columns than those of the same table of other models.
    """
    tables: dict[str, list[pa.Table]] = {}
    for path in sorted((run / "analysis").glob("*.parquet")):
        content = read_analysis(path)
        others = tables.setdefault(path.stem.partition("--")[0], [])
        if others and not content.schema.equals(others[0].schema, check_metadata=False):
            raise RunDirectoryError(f"{path}: has other columns than the same table of other models")
        others.append(content)
    return {
        name: pa.concat_tables([t.replace_schema_metadata(None) for t in found]).to_pandas()
        for name, found in tables.items()
    }


def write_failure(run: Path, failure: Failure) -> None:
    """Note a unit that failed."""
    write_json(run / "failures" / f"{failure.unit}.json", asdict(failure))


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Raises:
        RunDirectoryError: it is no run directory, or one of its files is damaged.
    """
    path = Path(path)
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise RunDirectoryError(f"{path}: no run directory (there is no manifest.json in it)")
    manifest = read_json(manifest_path)
    if manifest.get("format") != FORMAT:
        raise RunDirectoryError(f"{manifest_path}: format {manifest.get('format')!r}; this version reads {FORMAT}")
    models = [read_json(file) for file in sorted((path / "models").glob("*.json"))]
    frames = []
    for file in sorted((path / "results").glob("*.parquet")):
        frame = read_cells(file)
        frame.insert(0, "unit", file.stem)
        frames.append(frame)
    cells = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["unit", *SCHEMA.names])
    try:
        failures = [Failure(**read_json(file)) for file in sorted((path / "failures").glob("*.json"))]
    except TypeError as error:
        raise RunDirectoryError(f"{path / 'failures'}: a file has other keys than a failure ({error})") from error
    return Run(path, manifest, models, cells, failures, _read_analyses(path))
