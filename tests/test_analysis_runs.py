"""The analyses of a whole run: what is made, what is kept, what a failure or a missing file does."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_dataset
from rich.console import Console

from robustfdd import records
from robustfdd.analysis import analyse_run
from robustfdd.analysis.base import ANALYSES, Analysis, AnalysisUnavailableError, TrainedModel
from robustfdd.analysis.planes import drops_last_maps
from robustfdd.datasets import Dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import RunDirectoryError
from robustfdd.models import load_model, save_model

METHODS = ("none", "fdd-2d-inverted")


class Recorder:
    """An analysis that counts how often it is made, and does what it is told."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.error: Exception | None = None

    def __call__(self, trained: TrainedModel) -> dict[str, pd.DataFrame]:
        self.made.append(trained.model.config.dropout)
        if self.error is not None and trained.model.config.dropout == "none":
            raise self.error
        rows = {"value": [1.5, 2.5], "noise": torch.rand(2).numpy(), "list": [np.arange(3), np.arange(2)]}
        return {"numbers": pd.DataFrame(rows), "other": pd.DataFrame({"text": ["a"]})}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The only analysis that there is."""
    made = Recorder()
    analysis = Analysis("recorder", "a count", ("numbers", "other"), {"n": 2}, made)
    for module in ("robustfdd.analysis.run", "robustfdd.analysis.base"):
        monkeypatch.setattr(sys.modules[module], "ANALYSES", {"recorder": analysis})
    return made


def change(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Other settings, another rule of what it applies to."""
    known = sys.modules["robustfdd.analysis.run"].ANALYSES["recorder"]
    monkeypatch.setattr(sys.modules["robustfdd.analysis.run"], "ANALYSES", {"recorder": replace(known, **changes)})


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "analysis").glob("*"))


def test_every_analysis_of_every_model_is_made_and_read_back(run: Path, quarters: Dataset) -> None:
    pytest.importorskip("captum")
    assert analyse_run(run, dataset=quarters) == []
    loaded = records.load_run(run)
    expected = {
        "activations": set(METHODS),
        "activation-summary": set(METHODS),
        "density-groups": set(METHODS),
        "density-heatmaps": set(METHODS),
        "density-channels": set(METHODS),
        "density-images": set(METHODS),
        "planes": {"fdd-2d-inverted"},
        "cost": {"fdd-2d-inverted"},
    }
    assert {name: set(frame["method"]) for name, frame in loaded.analyses.items()} == expected
    for frame in loaded.analyses.values():
        assert list(frame.columns[:2]) == ["method", "seed"]
        assert set(frame["seed"]) == {0}
    assert set(expected) == {table for analysis in ANALYSES.values() for table in analysis.tables}
    assert loaded.failures == []
    size = sum(path.stat().st_size for path in (run / "analysis").iterdir())
    assert size < 300_000 * len(METHODS)
    assert not [name for name in files(run) if name.endswith(".tmp")]


def test_a_dropout_of_another_process_is_skipped_and_keeps_its_results(
    run: Path, quarters: Dataset, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was registered from Python is not there when the command line makes a report."""
    assert analyse_run(run, dataset=quarters) == []
    before = files(run)
    change(monkeypatch, applies=drops_last_maps)
    # Taken out of the registry and put back, it would be the last in the lists of every test that comes after.
    without = {name: spec for name, spec in DROPOUTS.items() if name != "fdd-2d"}
    monkeypatch.setattr(DROPOUTS, "_parts", without)
    (note,) = [note for note in analyse_run(run, dataset=quarters) if note.method == METHODS[1]]
    assert note.kind == "skipped"
    assert "its dropout 'fdd-2d' is not registered in this process" in note.message
    assert {name for name in before if METHODS[1] in name} <= set(files(run))


def test_what_is_written_is_read(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    assert analyse_run(run, dataset=quarters) == []
    assert files(run) == sorted(f"{t}--{m}--seed0.parquet" for t in ("numbers", "other") for m in METHODS)
    frame = records.load_run(run).analyses["numbers"]
    assert frame["method"].tolist() == ["fdd-2d-inverted"] * 2 + ["none"] * 2
    assert frame["value"].tolist() == [1.5, 2.5] * 2
    assert [values.tolist() for values in frame["list"]] == [[0, 1, 2], [0, 1]] * 2
    # Seeded, whatever the global random state is, which is left alone.
    noise = frame["noise"].tolist()
    assert noise[:2] == noise[2:]
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    for name in files(run):
        (run / "analysis" / name).unlink()
    analyse_run(run, dataset=quarters)
    assert torch.equal(torch.rand(1), expected)
    assert records.load_run(run).analyses["numbers"]["noise"].tolist() == noise


def test_what_is_there_is_kept(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    analyse_run(run, dataset=quarters)
    assert len(recorder.made) == 2
    before = {name: (run / "analysis" / name).read_bytes() for name in files(run)}
    output = io.StringIO()
    assert analyse_run(run, dataset=quarters, console=Console(file=output)) == []
    assert len(recorder.made) == 2
    assert output.getvalue() == ""
    assert {name: (run / "analysis" / name).read_bytes() for name in files(run)} == before


def test_a_run_whose_results_are_all_there_needs_no_data(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    analyse_run(run, dataset=quarters)
    assert analyse_run(run) == []  # the data set "quarters" is not registered here


@pytest.mark.parametrize("changed", ["code", "settings", "file", "table", "checkpoint"])
def test_what_is_stale_is_made_again(
    run: Path, quarters: Dataset, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    analyse_run(run, dataset=quarters)
    expected = ["fdd-2d", "none"]
    path = run / "analysis" / "other--none--seed0.parquet"
    if changed == "code":
        monkeypatch.setattr("robustfdd.analysis.run.code_version", lambda *_, **__: "other")
    elif changed == "settings":
        change(monkeypatch, settings={"n": 3})
    elif changed == "file":
        path.unlink()
        expected = ["none"]
    elif changed == "table":
        path.write_bytes(path.read_bytes()[:-40] + path.read_bytes()[-8:])
        expected = ["none"]
    else:
        checkpoint = run / "models" / "none--seed0.safetensors"
        save_model(load_model(checkpoint), checkpoint, {"another": "one"})
        expected = ["none"]
    recorder.made.clear()
    assert analyse_run(run, dataset=quarters) == []
    assert sorted(recorder.made) == expected
    recorder.made.clear()
    analyse_run(run, dataset=quarters)
    assert recorder.made == []


def test_a_duration_belongs_to_the_type_of_device(
    run: Path, quarters: Dataset, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> set[str | None]:
        return {records.read_key(run / "analysis" / name) for name in files(run)}

    analyse_run(run, dataset=quarters)
    anywhere = keys()
    change(monkeypatch, per_device=True)
    analyse_run(run, dataset=quarters)
    assert len(recorder.made) == 4
    assert not keys() & anywhere


def test_results_that_no_longer_concern_a_model_are_removed(
    run: Path, quarters: Dataset, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyse_run(run, dataset=quarters)
    change(monkeypatch, applies=lambda config: config.dropout == "none")
    assert analyse_run(run, dataset=quarters) == []
    assert files(run) == ["numbers--none--seed0.parquet", "other--none--seed0.parquet"]


def test_a_failing_analysis_is_noted_and_leaves_the_others(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    analyse_run(run, dataset=quarters)
    (run / "analysis" / "other--none--seed0.parquet").unlink()
    (run / "analysis" / "other--fdd-2d-inverted--seed0.parquet").unlink()
    recorder.error = ValueError("no such luck")
    output = io.StringIO()
    (note,) = analyse_run(run, dataset=quarters, console=Console(file=output, width=200))
    assert (note.kind, note.analysis, note.method, note.seed) == ("failed", "recorder", "none", 0)
    assert "ValueError: no such luck" in str(note)
    assert "FAILED: ValueError: no such luck" in output.getvalue()
    (failure,) = records.load_run(run).failures
    assert failure == note.failure
    assert (failure.stage, failure.method, failure.seed) == ("analysis", "none", 0)
    assert "no such luck" in failure.traceback
    # No table of an earlier state stands for the one that failed; those of the other model are made.
    assert files(run) == ["numbers--fdd-2d-inverted--seed0.parquet", "other--fdd-2d-inverted--seed0.parquet"]
    recorder.error = None
    assert analyse_run(run, dataset=quarters) == []
    assert records.load_run(run).failures == []
    assert len(files(run)) == 4


def test_a_missing_optional_package_is_no_failure(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    recorder.error = AnalysisUnavailableError("needs Captum: pip install 'robustfdd[captum]'")
    (note,) = analyse_run(run, dataset=quarters)
    assert note.kind == "skipped"
    assert str(note) == "analysis recorder of none seed 0 skipped: needs Captum: pip install 'robustfdd[captum]'"
    assert records.load_run(run).failures == []
    assert len(files(run)) == 2


def test_without_captum_all_other_analyses_are_made(
    run: Path, quarters: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    notes = analyse_run(run, dataset=quarters)
    assert {(note.kind, note.analysis, note.method) for note in notes} == {
        ("skipped", "density-groups", method) for method in METHODS
    }
    assert set(records.load_run(run).analyses) == {"activations", "activation-summary", "planes", "cost"}


def test_a_missing_or_damaged_checkpoint_is_skipped(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    path = run / "models" / "none--seed0.safetensors"
    path.unlink()
    (note,) = analyse_run(run, dataset=quarters)
    assert (note.kind, note.analysis, note.method) == ("skipped", None, "none")
    assert str(path) in note.message
    path.write_bytes(b"no checkpoint")
    (note,) = analyse_run(run, dataset=quarters)
    assert str(path) in note.message
    assert recorder.made == ["fdd-2d"]


def test_a_missing_data_set_is_a_note(run: Path, recorder: Recorder) -> None:
    (note,) = analyse_run(run)
    assert (note.kind, note.analysis, note.method) == ("skipped", None, None)
    assert "quarters" in note.message
    assert recorder.made == []


def test_another_data_set_of_that_name_is_refused(run: Path, recorder: Recorder) -> None:
    (note,) = analyse_run(run, dataset=replace(make_dataset(), sha256="1" * 64))
    assert "is not the one of the run" in note.message
    assert recorder.made == []


def test_a_run_without_models_has_nothing_to_analyse(run: Path, recorder: Recorder) -> None:
    for path in (run / "models").iterdir():
        path.unlink()
    assert analyse_run(run) == []


def test_a_manifest_without_what_is_needed_is_named(run: Path, quarters: Dataset, recorder: Recorder) -> None:
    path = run / "manifest.json"
    manifest = records.read_json(path)
    del manifest["study"]["recipe"]
    records.write_json(path, manifest)
    with pytest.raises(RunDirectoryError, match=r"run: .*recipe"):
        analyse_run(run, dataset=quarters)
    with pytest.raises(RunDirectoryError, match="no run directory"):
        analyse_run(run / "nowhere")


# --- the files


def write(run: Path, method: str, frame: pd.DataFrame, table: str = "numbers") -> Path:
    return records.write_analysis(run, table, frame, method=method, seed=3, key="the key")


def test_an_analysis_file_keeps_key_types_and_order(run: Path) -> None:
    frame = pd.DataFrame(
        {"value": np.array([1, 2], dtype=np.int32), "heat": [np.ones(2, np.float32)] * 2}, index=[4, 9]
    )
    path = write(run, "a--b", frame)
    assert path == run / "analysis" / "numbers--a--b--seed3.parquet"
    assert records.read_key(path) == "the key"
    write(run, "none", frame.iloc[:1])
    loaded = records.load_run(run).analyses
    assert set(loaded) == {"numbers"}
    assert loaded["numbers"]["method"].tolist() == ["a--b", "a--b", "none"]
    assert loaded["numbers"]["seed"].tolist() == [3, 3, 3]
    assert loaded["numbers"]["value"].dtype == np.int32
    assert loaded["numbers"]["heat"].iloc[2].dtype == np.float32
    assert list(loaded["numbers"].index) == [0, 1, 2]


def test_a_run_without_analyses_has_none(run: Path) -> None:
    assert records.load_run(run).analyses == {}


def test_an_analysis_file_must_be_of_the_model_that_its_name_says(run: Path) -> None:
    path = write(run, "none", pd.DataFrame({"value": [1.0]}))
    other = path.rename(path.with_name("numbers--original--seed3.parquet"))
    assert records.read_key(other) == "the key"
    with pytest.raises(RunDirectoryError, match=rf"{other.name}: is not of the one model that its name says"):
        records.read_analysis(other)


def test_analyses_with_text_of_two_types_are_one_table(run: Path) -> None:
    """Versions of pandas write one or the other."""
    paths = [write(run, method, pd.DataFrame({"value": ["x"]})) for method in ("a", "b")]
    for path, kind in zip(paths, (pa.string(), pa.large_string()), strict=True):
        table = pq.read_table(path)
        schema = pa.schema([f.with_type(kind if f.name != "seed" else f.type) for f in table.schema])
        records.write_table(path, table.cast(schema), key="k")
    assert records.load_run(run).analyses["numbers"]["value"].tolist() == ["x", "x"]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "columns", "types"])
def test_a_damaged_analysis_file_is_named(run: Path, damage: str) -> None:
    write(run, "none", pd.DataFrame({"value": [1.0]}))
    path = write(run, "original", pd.DataFrame({"value": [1.0]}))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    elif damage == "columns":
        write(run, "original", pd.DataFrame({"another": [1.0]}))
    else:
        write(run, "original", pd.DataFrame({"value": ["text"]}))
    with pytest.raises(RunDirectoryError, match=path.name):
        records.load_run(run)


def test_an_analysis_file_must_say_method_and_seed(run: Path) -> None:
    path = write(run, "none", pd.DataFrame({"value": [1.0]}))
    records.write_table(path, pq.read_table(path).select(["value", "method", "seed"]), key="k")
    with pytest.raises(RunDirectoryError, match="begin with the columns method and seed"):
        records.read_analysis(path)
