from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from robustfdd.errors import RunDirectoryError
from robustfdd.records import (
    FORMAT,
    SCHEMA,
    Cell,
    Failure,
    Outcome,
    load_run,
    read_cells,
    read_key,
    write_atomically,
    write_cells,
    write_failure,
    write_json,
)


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
    write_json(path / "manifest.json", {"format": FORMAT})
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


def test_records_from_before_there_was_a_choice_of_precision(tmp_path: Path) -> None:
    path = tmp_path / "u.parquet"
    write_cells(path, [make_cell([0, 1, 2]), make_cell([2, 2, 2], eps=0.3)], key="k")
    pq.write_table(pq.read_table(path).drop_columns(["precision"]), path)
    frame = read_cells(path)
    assert list(frame.columns) == SCHEMA.names
    assert frame.precision.tolist() == ["fp32", "fp32"]


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
    write_json(tmp_path / "models" / "m.json", {"method": "none"})
    write_failure(tmp_path, Failure("v", "attack", "none", 0, "ValueError", "why", "trace", "pgd", "l2", "art"))
    run = load_run(tmp_path)
    assert run.cells.unit.tolist() == ["u"]
    assert run.models == [{"method": "none"}]
    assert run.failures[0].message == "why"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "manifest.json").unlink(), "no manifest.json"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json: not readable as JSON"),
        (lambda p: (p / "manifest.json").write_text("[]"), "holds no JSON object"),
        (lambda p: (p / "manifest.json").write_text(json.dumps({"format": 99})), "format 99"),
        (lambda p: (p / "results" / "u.parquet").write_bytes(b"x"), "not readable as Parquet"),
        (lambda p: write_json(p / "failures" / "f.json", {"a": 1}), "other keys than a failure"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, says: str) -> None:
    make_run(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunDirectoryError, match=says):
        load_run(tmp_path)
