from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustfdd.errors import RunDirectoryError
from robustfdd.records import (
    FORMAT,
    PER_SAMPLE,
    SCHEMA,
    Cell,
    Failure,
    Outcome,
    load_run,
    read_cells,
    read_json,
    read_key,
    write_atomically,
    write_cells,
    write_failure,
    write_json,
    write_table,
)

FAILURE: dict[str, Any] = {
    **{"unit": "v", "stage": "attack", "method": "none", "seed": 0, "error": "ValueError", "message": "why"},
    **{"traceback": "trace", "attack": "pgd", "norm": "l2", "engine": "art"},
}


def make_cell(outcome: list[int], eps: float = 0.1) -> Cell:
    n = len(outcome)
    return Cell(
        study="s",
        method="fdd-1d",
        dataset="d",
        seed=0,
        attack="fgsm",
        norm="linf",
        engine="art",
        protocol="paper",
        deterministic=True,
        eps_pixel=eps,
        eps_normalized=2 * eps,
        attack_seed=0,
        gradient_passes=n,
        seconds=0.5,
        image_index=np.arange(n, dtype=np.int32),
        label=np.zeros(n, np.int32),
        clean_prediction=np.zeros(n, np.int32),
        prediction=np.ones(n, np.int32),
        outcome=np.array(outcome, np.int8),
        distance=np.linspace(0, eps, n, dtype=np.float32),
    )


def make_run(path: Path) -> None:
    study = {
        "name": "s",
        "dataset": "d",
        "eps_unit": "pixel",
        "protocol": "paper",
        "engines": [],
        "methods": [{"label": "none"}],
        "attacks": [],
    }
    write_json(path / "manifest.json", {"format": FORMAT, "study": study, "eps_scale": 1.0, "units": []})
    write_cells(path / "results" / "u.parquet", [make_cell([0, 1, 1, 2])], key="k")


def test_both_denominators_by_hand() -> None:
    row = make_cell([Outcome.MISCLASSIFIED, Outcome.SURVIVED, Outcome.SURVIVED, Outcome.BROKEN, Outcome.BROKEN]).row()
    assert (row["n_images"], row["n_attacked"], row["n_broken"]) == (5, 4, 2)
    assert row["clean_accuracy"] == 4 / 5
    assert row["robust_accuracy"] == 2 / 5
    assert row["survival_rate"] == 2 / 4
    assert row["max_distance"] == pytest.approx(0.1)


def test_nothing_attacked_has_no_survival_rate() -> None:
    row = make_cell([0, 0]).row()
    assert row["robust_accuracy"] == 0
    assert row["survival_rate"] is None


def test_cells_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results" / "u.parquet"
    write_cells(path, [make_cell([0, 1, 2]), make_cell([2, 2, 2], eps=0.3)], key="a key")
    frame = read_cells(path)
    assert list(frame.columns) == SCHEMA.names
    assert frame.eps_pixel.tolist() == [0.1, 0.3]
    assert frame.outcome[0].tolist() == [0, 1, 2]
    assert frame.robust_accuracy.tolist() == [1 / 3, 0]
    assert read_key(path) == "a key"


def test_damaged_results_have_no_key_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    write_cells(path, [make_cell([1])], key="k")
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"PAR1" + bytes(len(whole) - 8) + b"PAR1"):
        path.write_bytes(broken)
        assert read_key(path) is None
        with pytest.raises(RunDirectoryError, match=r"u\.parquet"):
            read_cells(path)
    assert read_key(tmp_path / "missing.parquet") is None


def test_results_of_another_format_are_named(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    write_cells(path, [make_cell([1])], key="k")
    table = pq.ParquetFile(path).read()
    metadata = {**table.schema.metadata, b"robustfdd.format": b"2"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert read_key(path) is None
    with pytest.raises(RunDirectoryError, match=r"u\.parquet: no records of format"):
        read_cells(path)


@pytest.mark.parametrize("name", [*SCHEMA.names, "key"])
def test_no_value_of_results_can_be_changed_unseen(tmp_path: Path, name: str) -> None:
    """Neither in a column nor in the key, with everything else as it was written."""
    path = tmp_path / "u.parquet"
    write_cells(path, [make_cell([0, 1, 2]), make_cell([2, 2, 2], eps=0.3)], key="k")
    table = pq.ParquetFile(path).read()
    rows = table.to_pylist()
    metadata = dict(table.schema.metadata)
    if name == "key":
        metadata[b"robustfdd.key"] = b"l"
    elif name == "repeated_accuracy":
        rows[1][name] = [0.5]
    else:
        rows[1][name] = changed(rows[1][name])
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata)), path)
    assert read_key(path) is None
    with pytest.raises(RunDirectoryError, match=r"u\.parquet: damaged, or changed by hand"):
        read_cells(path)


def changed(value: Any) -> Any:
    """A value as like it as can be."""
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    return float(np.nextafter(np.float32(value), np.float32(9))) if isinstance(value, float) else value + 1


def test_the_digest_is_of_the_content_and_not_of_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    write_cells(path, [make_cell([0, 1, 2]), make_cell([2, 2, 2], eps=0.3), make_cell([0, 0, 0], eps=0.4)], key="k")
    table = pq.ParquetFile(path).read()
    pq.write_table(table, path, row_group_size=1, compression="none", use_dictionary=False)
    assert read_key(path) == "k"
    wide = pa.schema([f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f for f in table.schema])
    pq.write_table(table.cast(wide.with_metadata(table.schema.metadata)), path)
    assert read_cells(path).outcome[1].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("outcome", [0, 1, 4], "an outcome is none of 0, 1, 2, 3"),
        ("label", [0, 0], "has more than another"),
        ("label", [0, 0, None], "a value of label is missing"),
        ("engine", None, "a value of engine is missing"),
        ("n_broken", 2, "n_broken is 2, where the outcomes give 1"),
        ("survival_rate", None, "survival_rate is None, where the outcomes give 0.5"),
        ("robust_accuracy", 0.5, "robust_accuracy is 0.5"),
        ("max_distance", float("nan"), "max_distance is nan"),
    ],
)
def test_what_cannot_be_is_refused_whatever_the_digest(tmp_path: Path, column: str, value: Any, says: str) -> None:
    path = tmp_path / "u.parquet"
    row = {**make_cell([0, 1, 2]).row(), column: value}
    write_table(path, pa.Table.from_pylist([row], schema=SCHEMA), key="k")
    with pytest.raises(RunDirectoryError, match=rf"u\.parquet: .*{says}"):
        read_cells(path)


def test_results_without_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    row = {**make_cell([1]).row(), **{name: [] for name in PER_SAMPLE}}
    write_table(path, pa.Table.from_pylist([row], schema=SCHEMA), key="k")
    with pytest.raises(RunDirectoryError, match="have no entries"):
        read_cells(path)


def test_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    table = pa.Table.from_pylist([make_cell([1]).row()], schema=SCHEMA)
    position = SCHEMA.names.index("outcome")
    write_table(path, table.set_column(position, "outcome", pa.array([["survived"]])), key="k")
    with pytest.raises(RunDirectoryError, match=r"u\.parquet: has other columns"):
        read_cells(path)


def test_json_comes_back_as_it_was_and_not_if_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    content = {"ε": [1, 1.0, 1e-300, None, True, 'a\u2028"b'], "b": {"z": {}, "a": [[]]}}
    write_json(path, content)
    assert read_json(path) == content
    assert list(json.loads(path.read_text())) == ["ε", "b", "checksum"]
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)))  # laid out in another way
    assert read_json(path) == content
    for old, new in (("1e-300", "1e-301"), ("true", "false"), ("true", "1"), ('"z"', '"y"'), ("sha256:", "sha255:")):
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        with pytest.raises(RunDirectoryError, match=r"m\.json: damaged, or changed by hand"):
            read_json(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    make_run(tmp_path)
    write_json(tmp_path / "models" / "m.json", {"method": "none", "seed": 0})
    write_failure(tmp_path, Failure(**FAILURE))
    run = load_run(tmp_path)
    assert run.cells.unit.tolist() == ["u"]
    assert run.models == [{"method": "none", "seed": 0}]
    assert run.failures[0].message == "why"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "manifest.json").unlink(), "no manifest.json"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json: damaged: not readable as JSON"),
        (lambda p: (p / "manifest.json").write_text("[]"), "holds no JSON object"),
        (lambda p: (p / "manifest.json").write_text("[" * 100_000), "manifest.json: damaged: not readable as JSON"),
        (lambda p: (p / "manifest.json").write_text(json.dumps({"format": FORMAT})), "holds no checksum"),
        (lambda p: write_json(p / "manifest.json", {"format": 99}), "format 99"),
        (lambda p: (p / "results" / "u.parquet").write_bytes(b"x"), "not readable as Parquet"),
        (
            lambda p: (p / "results" / "u.parquet").unlink() or (p / "results" / "u.parquet").mkdir(),
            "a directory, not",
        ),
        (lambda p: (p / "analysis").write_text("x"), "analysis: cannot be read"),
        (lambda p: write_json(p / "failures" / "f.json", {"a": 1}), "f.json: unit is missing"),
        (
            lambda p: write_json(p / "failures" / "f.json", {**FAILURE, "seed": "0"}),
            "f.json: seed should be a valid integer, not '0'",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, says: str) -> None:
    make_run(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunDirectoryError, match=says):
        load_run(tmp_path)
