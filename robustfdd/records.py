"""The run directory: its manifest, its results and its failures, written atomically and checked when read.

A run directory holds::

    manifest.json            what was asked for, with what, on what
    models/NAME.safetensors  the checkpoints, and NAME.json, how each was trained
    results/UNIT.parquet     one unit a file, one row a cell, the per-sample outcomes packed in the row
    analysis/TABLE--METHOD--seedS.parquet
                             what an analysis of one model's checkpoint found, one of its tables a file
    failures/UNIT.json       a unit that failed: which, and why; it has no file under results/
    report/                  made from the above, never the other way round

A *unit* is one model under one attack, norm and engine; a *cell* is a unit at one epsilon. Every file carries a
checksum of its content, and one that is not as it was written is never used: whoever reads it is told, and the command
that wrote it writes it anew. This module imports neither torch nor the attack libraries, so reports can be made where
they are not installed.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robustfdd import files, schema
from robustfdd.checksums import column_types, json_checksum, table_digest
from robustfdd.errors import OutOfSpaceError, RunDirectoryError

#: Raised with every change of the columns or the manifest that an older reader would misread.
FORMAT = 3
#: The name of the file that makes a folder a run directory.
MANIFEST = "manifest.json"


class Outcome(IntEnum):
    """What became of one test image in one cell."""

    MISCLASSIFIED = 0
    """Wrong before any attack, and therefore not attacked."""
    SURVIVED = 1
    """Right before the attack and right after it."""
    BROKEN = 2
    """Right before the attack, and wrong on an image inside the budget and the box."""
    UNDEFINED = 3
    """Right before and after an attack that could not move it: a gradient of the image was NaN or infinite."""


#: Whether a robust accuracy can be believed, from best to worst; too few images give no verdict.
Verdict = Literal["believable", "no verdict", "suspicious", "not believable"]
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
        ("n_undefined", pa.int64()),  # attacked images whose gradient was NaN or infinite, and that were not broken
        ("clean_accuracy", pa.float64()),  # on the same images
        ("robust_accuracy", pa.float64()),  # over n_images; what is undefined does not count as robust
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

#: The most values that a table may have, over all of its columns; results of 10,000 images at 1,000 radii have half.
MAX_VALUES = 2**27

#: The columns with one entry an image.
PER_SAMPLE = ("image_index", "label", "clean_prediction", "prediction", "outcome", "distance")


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
        n_undefined = int((self.outcome == Outcome.UNDEFINED).sum())
        n_attacked = n_broken + n_survived + n_undefined
        values.update(
            n_images=n_images,
            n_attacked=n_attacked,
            n_broken=n_broken,
            n_undefined=n_undefined,
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

    Raises:
        OutOfSpaceError: the disk is full; the old file is still there.
        OSError: it cannot be written for another reason.
    """
    try:
        _write_atomically(path, write)
    except Exception as error:  # the libraries that write have an error of their own each
        if _is_out_of_space(error):
            raise OutOfSpaceError(
                f"{path}: no room is left to write it; what was finished before is whole. Make room, and the same "
                "command goes on"
            ) from error
        raise


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
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


def _is_out_of_space(error: Exception) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    # From C++ and Rust the message is all there is.
    return any(os.strerror(number) in str(error) or f"os error {number}" in str(error) for number in numbers)


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


def _damaged(path: Path, what: str) -> RunDirectoryError:
    """The error for a file of a run directory that cannot be used; it says what is wrong and what to do."""
    again = "restore it from a copy, or give the command that wrote it again, which makes it anew"
    advice = {
        "models": again,
        "results": again,
        "analysis": "remove it, and the next report or audit remakes it",
        "failures": "remove it",
    }
    folder = "" if path.name == MANIFEST else path.parent.name
    return RunDirectoryError(f"{path}: {what}; {advice.get(folder, 'restore it from a copy')}")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object with its checksum, which :func:`read_json` verifies; atomically.

    It is indented, with the keys in the order given and ``"checksum"`` as the last.

    Raises:
        ValueError: it holds NaN or an infinity, which are no JSON.
    """
    whole = {**content, "checksum": json_checksum(content)}
    write_text(path, json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that :func:`write_json` wrote; without its checksum.

    Raises:
        RunDirectoryError: the file is missing, not readable, or not as it was written; the message names it.
    """
    found = expected = None
    try:
        content: dict[str, Any] = json.loads(files.read_text(path, files.JSON))
        if isinstance(content, dict):
            found = content.pop("checksum", None)
            expected = json_checksum(content)
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: no such file") from None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"damaged: not readable as JSON ({error})") from error
    if expected is None:
        raise _damaged(path, "damaged: holds no JSON object")
    if found is None:
        raise _damaged(path, "damaged, or written by hand or by another version: it holds no checksum")
    if found != expected:
        raise _damaged(path, "damaged, or changed by hand: its content is not that of its checksum")
    return content


def write_cells(path: Path, cells: Sequence[Cell], *, key: str) -> None:
    """Write the cells of one unit atomically.

    Args:
        path: the Parquet file.
        cells: the rows, at least one.
        key: what the result depends on, in short; :func:`read_key` gives it back.
    """
    write_table(path, pa.Table.from_pylist([cell.row() for cell in cells], schema=SCHEMA), key=key)


def write_table(path: Path, table: pa.Table, *, key: str) -> None:
    """Write a table with format, key and the digest of all that it says, which every reader verifies; atomically."""
    metadata = {"format": str(FORMAT), "key": key, "digest": table_digest(table, str(FORMAT), key)}
    table = table.replace_schema_metadata({f"robustfdd.{name}": value for name, value in metadata.items()})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _read_table(path: Path) -> tuple[pa.Table, str]:
    """A table and its key.

    Raises:
        RunDirectoryError: it is missing, not readable, of another format, or not as it was written.
    """
    try:
        content = pq.ParquetFile(pa.BufferReader(files.read_bytes(path, files.TABLE)))
        _check_extent(content.metadata)
        table = content.read()
        said = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        form, key, digest = (said.get(f"robustfdd.{name}") for name in ("format", "key", "digest"))
        whole = key is not None and digest == table_digest(table, str(form), key)
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: no such file") from None
    except OSError as error:
        # Those of Arrow have no number.
        damaged = error.errno is None
        what = (
            f"damaged: not readable as Parquet ({_first_line(error)})"
            if damaged
            else f"cannot be read ({error.strerror})"
        )
        raise _damaged(path, what) from error
    except Exception as error:  # what is in a damaged file makes its readers raise errors of any kind
        raise _damaged(path, f"damaged: not readable as Parquet ({_first_line(error)})") from error
    if form != str(FORMAT):
        raise _damaged(path, f"no records of format {FORMAT}, which this version reads")
    if key is None or not whole:
        raise _damaged(path, "damaged, or changed by hand: its content is not that of its digest")
    return table, key


def _check_extent(metadata: pq.FileMetaData) -> None:
    """Make sure that a table fits the memory: a few bytes of Parquet can stand for any number of values.

    Raises:
        ValueError: it has more than :data:`MAX_VALUES`.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    n_values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    if n_values > MAX_VALUES:
        raise ValueError(f"{n_values} values, and at most {MAX_VALUES} are read")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def read_key(path: Path) -> str | None:
    """The key that results or an analysis were written with; None if the file is not there, whole and as written."""
    try:
        return _read_table(path)[1]
    except RunDirectoryError:
        return None


def read_cells(path: Path) -> pd.DataFrame:
    """The cells of one unit, one row a cell, with the columns of :data:`SCHEMA`.

    Raises:
        RunDirectoryError: the file is missing, damaged, has other columns, or says what cannot be; the message names
            it.
    """
    table, _ = _read_table(path)
    if "n_undefined" not in table.schema.names and "n_broken" in table.schema.names:
        # Records from before there was this outcome, which none of their images has.
        none = pa.array(np.zeros(table.num_rows, dtype=np.int64))
        table = table.add_column(table.schema.names.index("n_broken") + 1, "n_undefined", none)
    if column_types(table.schema) != column_types(SCHEMA):
        raise _damaged(path, f"has other columns than a results file of format {FORMAT}")
    frame: pd.DataFrame = table.to_pandas()
    mistake = _gap(table) or _contradiction(frame)
    if mistake:
        raise _damaged(path, mistake)
    return frame


def _gap(table: pa.Table) -> str | None:
    """Where a value is missing in the columns of results that must have one, in words."""
    for name, column in zip(table.schema.names, table.columns, strict=True):
        inside = pc.list_flatten(column).null_count if pa.types.is_list(column.type) else 0
        if name != "survival_rate" and column.null_count + inside:
            return f"a value of {name} is missing"
    return None


def _contradiction(frame: pd.DataFrame) -> str | None:
    """The first thing in results that cannot be, in words: what follows from the outcomes is computed again."""
    given = [each.name for each in fields(Cell)]
    follows = [name for name in SCHEMA.names if name not in given]
    for row in frame.to_dict("records"):
        lengths = {len(row[name]) for name in PER_SAMPLE}
        if len(lengths) > 1 or lengths == {0}:
            return "the lists of a row have no entries, or one has more than another"
        if len(np.unique(row["image_index"])) < len(row["image_index"]):
            return "an image is there twice in one row"
        numbers = [row["eps_pixel"], row["eps_normalized"], row["seconds"], *row["distance"], *row["repeated_accuracy"]]
        if not (np.isfinite(numbers).all() and min(numbers) >= 0 and max(row["repeated_accuracy"], default=0) <= 1):
            return "a radius, a distance, a time or an accuracy is no number, or out of its range"
        if not np.isin(row["outcome"], list(Outcome)).all():
            return f"an outcome is none of {', '.join(str(int(outcome)) for outcome in Outcome)}"
        expected = Cell(**{name: row[name] for name in given}).row()
        for name in follows:
            # A rate that there is not is NaN in a table.
            found = None if name == "survival_rate" and np.isnan(row[name]) else row[name]
            if found != expected[name]:
                return f"{name} is {found}, where the outcomes give {expected[name]}"
    return None


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
    write_table(path, content, key=key)
    return path


def read_analysis(path: Path) -> pa.Table:
    """A table of an analysis of one model.

    Raises:
        RunDirectoryError: the file is missing, damaged, of another format, does not begin with method and seed, or is
            of another model than its name says; the message names it.
    """
    content, _ = _read_table(path)
    if column_types(content.schema)[:2] != [("method", "string"), ("seed", "int64")]:
        raise _damaged(path, "an analysis must begin with the columns method and seed")
    models = set(zip(content["method"].to_pylist(), content["seed"].to_pylist(), strict=True))
    table = path.stem.partition("--")[0]
    if [analysis_path(path.parent.parent, table, *model).name for model in models] != [path.name]:
        raise _damaged(path, "is not of the one model that its name says")
    return content


def _read_analyses(run: Path) -> dict[str, pd.DataFrame]:
    """The tables of all analyses by name, those of all models in one.

    Raises:
        RunDirectoryError: a file is damaged, or has other columns than those of the same table of other models.
    """
    tables: dict[str, list[pa.Table]] = {}
    for path in _files(run / "analysis", ".parquet"):
        content = read_analysis(path)
        content = content.replace_schema_metadata(None)
        others = tables.setdefault(path.stem.partition("--")[0], [])
        if others and column_types(content.schema) != column_types(others[0].schema):
            raise RunDirectoryError(f"{path}: has other columns than the same table of other models")
        # Versions of pandas have text in one of two types.
        others.append(content.cast(others[0].schema) if others else content)
    return {name: pa.concat_tables(found).to_pandas() for name, found in tables.items()}


def write_failure(run: Path, failure: Failure) -> None:
    """Note a unit that failed."""
    write_json(run / "failures" / f"{failure.unit}.json", asdict(failure))


def read_failure(path: Path) -> Failure:
    """A failure.

    Raises:
        RunDirectoryError: the file is missing, damaged, or holds something else; the message names it.
    """
    return Failure(**read_checked(path, schema.Failure))


def read_checked(path: Path, kind: type[schema.Part]) -> dict[str, Any]:
    """The content of a JSON file of a run directory, which is known to hold what belongs there.

    Args:
        path: the file.
        kind: what it is.

    Raises:
        RunDirectoryError: it is missing, damaged, or holds something else; the message names file, key and what belongs
            there.
    """
    content = read_json(path)
    wrong = schema.mistake(kind, content)
    if wrong is not None:
        raise _damaged(path, wrong)
    return content


def read_manifest(run: Path) -> dict[str, Any]:
    """What a run is, from its ``manifest.json``: the one way to read it.

    Raises:
        RunDirectoryError: it is no run directory, or its manifest is damaged, of another format, or holds something
            else; the message names file, key and what belongs there.
    """
    path = run / MANIFEST
    if not path.exists():
        raise RunDirectoryError(f"{run}: no run directory (there is no {MANIFEST} in it)")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise RunDirectoryError(f"{path}: format {manifest.get('format')!r}; this version reads {FORMAT}")
    wrong = schema.mistake(schema.Manifest, manifest)
    if wrong is not None:
        raise _damaged(path, wrong)
    return manifest


def _files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder of a run that end so, by name; none where there is no such folder.

    Raises:
        RunDirectoryError: it is there and cannot be read; the message names it.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirectoryError(f"{folder}: cannot be read ({error.strerror})") from error


def read_models(run: Path) -> list[dict[str, Any]]:
    """How the models of a run were trained: the content of ``models/*.json``, by the names of the files.

    Raises:
        RunDirectoryError: one of them is damaged; the message names it.
    """
    return [read_model(path) for path in _files(run / "models", ".json")]


def read_model(path: Path) -> dict[str, Any]:
    """How a model was trained.

    Raises:
        RunDirectoryError: the file is missing, damaged, or holds something else; the message names it.
    """
    return read_checked(path, schema.Model)


def load_run(path: str | Path) -> Run:
    """Read a run directory.

    Raises:
        RunDirectoryError: it is no run directory, or one of its files is missing, damaged or changed by hand; the
            message names it.
    """
    path = Path(path)
    manifest = read_manifest(path)
    models = read_models(path)
    frames = []
    for file in _files(path / "results", ".parquet"):
        frame = read_cells(file)
        frame.insert(0, "unit", file.stem)
        frames.append(frame)
    cells = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["unit", *SCHEMA.names])
    failures = [read_failure(file) for file in _files(path / "failures", ".json")]
    return Run(path, manifest, models, cells, failures, _read_analyses(path))
