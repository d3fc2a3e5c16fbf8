"""Every kind of file of a run that is damaged is noticed and named, never used, and made anew by what made it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pytest
from conftest import STUDY, registered
from test_cli import invoke, refused

from robustfdd import files
from robustfdd.analysis import analyse_run
from robustfdd.audit.run import Audit
from robustfdd.classifier import weights_digest
from robustfdd.datasets.base import Dataset
from robustfdd.errors import CheckpointError, RunDirectoryError
from robustfdd.evaluation import done_already, prepare_evaluation, run_evaluation
from robustfdd.models import load_model, read_checkpoint
from robustfdd.records import Failure, load_run, read_analysis, read_cells, read_json, write_failure

Tally: TypeAlias = Callable[[str, int, int], None]

MODEL, ATTACK, AUDIT = "none--seed0", "none--seed0--fgsm--linf--foolbox", "audit--none--seed0"
#: One file of every kind.
FILES = {
    "manifest": "manifest.json",
    "history of a training": f"models/{MODEL}.json",
    "checkpoint": f"models/{MODEL}.safetensors",
    "result": f"results/{ATTACK}.parquet",
    "analysis": f"analysis/activations--{MODEL}.parquet",
    "verdict of an audit": f"analysis/audit_verdict--{MODEL}.parquet",
    "indicators of an audit": f"analysis/audit_indicators--{MODEL}.parquet",
    "pictures of an audit": f"analysis/audit_pictures--{MODEL}.parquet",
    "failure": f"failures/analysis-cost--{MODEL}.json",
}
#: What a run that goes on computes again when a file of a kind is damaged.
TASKS = {
    "history of a training": MODEL,
    "checkpoint": MODEL,
    "result": ATTACK,
    "verdict of an audit": AUDIT,
    "indicators of an audit": AUDIT,
    "pictures of an audit": AUDIT,
}
TRAINED = {FILES[kind] for kind in ("history of a training", "checkpoint")}
AUDITED = {FILES[kind] for kind in FILES if kind.endswith("of an audit")}
#: The files that this writes.
WRITTEN = {MODEL: TRAINED, ATTACK: {FILES["result"]}, AUDIT: AUDITED}


@pytest.fixture(scope="module", autouse=True)
def _audited_once(quarters: Dataset) -> Iterator[None]:
    """The data set under its name, and an audit that is not made twice of the same weights."""
    module = sys.modules["robustfdd.audit.study"]
    real, found = module.audit_images, dict[str, Audit]()

    def once(model: Any, *arguments: Any, **options: Any) -> Audit:
        digest = weights_digest(model)
        if digest not in found:
            found[digest] = real(model, *arguments, **options)
        return found[digest]

    with registered(quarters), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "audit_images", once)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "small.toml"
    before, after = STUDY.index("methods = "), STUDY.index("eps_unit")
    path.write_text(f'{STUDY[:before]}methods = ["none"]\n{STUDY[after:]}\n[audit]\nimages = 4\n')
    return path


@pytest.fixture(scope="module")
def whole(study: Path, quarters: Dataset) -> Path:
    """A finished run that has a file of every kind."""
    run = run_evaluation(study, out=study.parent / "run", audit=True)
    assert analyse_run(run, dataset=quarters) == []
    write_failure(run, Failure(f"analysis-cost--{MODEL}", "analysis", "none", 0, "OSError", "why", "trace"))
    assert all((run / file).is_file() for file in FILES.values())
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def plain(value: Any, timed: bool = True) -> Any:
    """What was read, in a form whose ``repr`` tells everything of it; without wall times if not ``timed``."""
    if isinstance(value, pd.DataFrame):
        return {name: plain(value[name].tolist(), timed) for name in value if timed or name != "seconds"}
    if isinstance(value, dict):
        return {key: plain(entry, timed) for key, entry in value.items() if timed or key != "seconds"}
    if isinstance(value, list):
        return [plain(entry, timed) for entry in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value


def said(run: Path, timed: bool = True) -> str:
    """All that a run says."""
    found = {key: value for key, value in vars(load_run(run)).items() if key != "path"}
    return repr(plain({**found, "weights": read(run, "checkpoint")}, timed))


def times(run: Path) -> dict[Path, int]:
    """When each file of a run was written, but for its lock's, which are made and removed as a run comes and goes."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*.*") if path.name not in (".lock", ".lock.json")}


def read(run: Path, kind: str) -> str:
    """What a file of a run says."""
    path = run / FILES[kind]
    if kind == "checkpoint":
        return repr((weights_digest(load_model(path)), read_checkpoint(path).config, read_checkpoint(path).provenance))
    if path.suffix == ".json":
        return repr(read_json(path))
    return repr(plain(read_cells(path) if kind == "result" else read_analysis(path).to_pandas()))


def is_refused(run: Path, kind: str) -> bool:
    """Whether the reader of a file refuses it, in one line that names it."""
    message = ""
    try:
        read(run, kind)
    except (RunDirectoryError, CheckpointError) as error:
        message = str(error)
    assert not message or (message.startswith(str(run / FILES[kind])) and "\n" not in message)
    return bool(message)


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """One byte is another."""
    changed = bytearray(content)
    changed[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
    return bytes(changed)


def flip(run: Path, kind: str, seed: int = 0) -> None:
    """Damage a file by one byte so that it says something else."""
    path, rng = run / FILES[kind], np.random.default_rng(seed)
    content = path.read_bytes()
    while True:
        path.write_bytes(flipped(content, rng))
        if is_refused(run, kind):
            return


def halve(run: Path, kind: str) -> None:
    """Cut a file off."""
    path = run / FILES[kind]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_a_folder(run: Path, kind: str) -> None:
    """A folder of the name of a file."""
    (run / FILES[kind]).unlink()
    (run / FILES[kind]).mkdir()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("times", [12, pytest.param(500, marks=pytest.mark.faults)])
def test_what_is_damaged_is_never_used(run: Path, kind: str, times: int, tally: Tally) -> None:
    path, expected = run / FILES[kind], read(run, kind)
    content, rng = path.read_bytes(), np.random.default_rng(times)
    for cut in (0, 1, 12, len(content) // 2, len(content) - 4):
        path.write_bytes(content[:cut])
        assert is_refused(run, kind)
    noticed = used = 0
    for _ in range(times):
        path.write_bytes(flipped(content, rng))
        if is_refused(run, kind):
            noticed += 1
        else:  # a byte that nothing depends on: layout, or what Parquet notes for searching
            used += read(run, kind) != expected
    tally(f"one byte of a file changed: {kind}", times, used)
    assert used == 0
    assert noticed > 0


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "checkpoint"])
def test_reports_refuse_what_is_damaged(run: Path, kind: str) -> None:
    flip(run, kind)
    name = (run / FILES[kind]).name
    refused(invoke("report", run), f"error: {run / FILES[kind]}: damaged", name)
    if kind in ("manifest", "result"):
        refused(invoke("compare", run), name)
        refused(invoke("audit", run), name)
    assert not (run / "report").exists()


@pytest.mark.parametrize("kind", FILES)
def test_status_names_what_is_damaged(run: Path, kind: str) -> None:
    assert "to be done again" not in invoke("status", run).output
    flip(run, kind)
    result, name = invoke("status", run), (run / FILES[kind]).name
    if kind == "manifest":
        refused(result, name)
    elif kind in TASKS:
        (line,) = [line for line in result.output.splitlines() if line.startswith(f"to be done again: {TASKS[kind]}: ")]
        assert str(run / FILES[kind]) in line
    elif kind == "failure":
        assert f"failed: analysis-cost--{MODEL}: {run / FILES[kind]}: damaged" in result.output


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("damage", [halve, replace_by_a_folder], ids=lambda damage: damage.__name__)
def test_what_is_damaged_is_not_done(run: Path, study: Path, kind: str, damage: Callable[[Path, str], None]) -> None:
    prepared = prepare_evaluation(study, out=run, audit=True)
    every = {task.name for task in prepared.tasks}
    assert done_already(prepared) == every
    damage(run, kind)
    assert is_refused(run, kind)
    # What needs the model waits for it.
    assert done_already(prepared) == (set() if TASKS[kind] == MODEL else every - {TASKS[kind]})


@pytest.mark.parametrize("kind", TASKS)
def test_a_run_that_goes_on_makes_it_anew_and_nothing_else(run: Path, whole: Path, study: Path, kind: str) -> None:
    flip(run, kind)
    before = times(run)
    run_evaluation(study, out=run, audit=True)
    changed = {path.relative_to(run).as_posix() for path, time in times(run).items() if time != before.get(path)}
    assert changed - {"journal.jsonl"} == WRITTEN[TASKS[kind]]
    assert said(run, timed=False) == said(whole, timed=False)


def test_a_damaged_analysis_is_made_anew_and_nothing_else(run: Path, whole: Path, quarters: Dataset) -> None:
    flip(run, "analysis")
    before = {path: path.stat().st_mtime_ns for path in run.glob("analysis/*")}
    assert analyse_run(run, dataset=quarters) == []
    changed = {path.name for path in run.glob("analysis/*") if path.stat().st_mtime_ns != before[path]}
    assert changed == {f"activations--{MODEL}.parquet", f"activation-summary--{MODEL}.parquet"}
    assert said(run, timed=False) == said(whole, timed=False)


@pytest.mark.parametrize("damage", [flip, halve, replace_by_a_folder], ids=lambda damage: damage.__name__)
def test_a_run_of_a_damaged_manifest_does_not_go_on(
    run: Path, study: Path, damage: Callable[[Path, str], None]
) -> None:
    damage(run, "manifest")
    before = times(run)
    refused(invoke("run", study, "--out", run), str(run / "manifest.json"), "restore it", "name another", "--out")
    assert times(run) == before


def test_a_damaged_failure_does_not_keep_a_run_from_going_on(run: Path, study: Path) -> None:
    path = run / "failures" / f"{ATTACK}.json"
    path.write_text("{")
    with pytest.raises(RunDirectoryError, match=path.name):
        load_run(run)
    run_evaluation(study, out=run, audit=True)
    assert not path.exists()


def test_a_folder_in_the_place_of_a_result_is_named_and_left_alone(run: Path, study: Path) -> None:
    replace_by_a_folder(run, "result")
    (run / FILES["result"] / "mine").write_text("x")
    refused(invoke("run", study, "--out", run), str(run / FILES["result"]))
    assert (run / FILES["result"] / "mine").read_text() == "x"


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "checkpoint"])
def test_what_may_not_be_read_is_named(run: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched, since nothing is forbidden to a superuser."""
    forbidden = run / FILES[kind]

    def but_forbidden(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Path, *arguments: Any, **options: Any) -> Any:
            if path == forbidden:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return read

    monkeypatch.setattr(files, "opened", but_forbidden(files.opened))
    with pytest.raises(RunDirectoryError, match=rf"{forbidden.name}: cannot be read \(.*Permission denied"):
        load_run(run)


def test_notes_for_people_may_be_damaged(run: Path, whole: Path, study: Path) -> None:
    for name in ("journal.jsonl", ".lock.json"):
        (run / name).write_bytes(bytes(range(256)))
    assert said(run) == said(whole)
    status = invoke("status", run)
    assert status.exit_code == 0
    assert "to be done again" not in status.output
    before = {path: path.stat().st_mtime_ns for path in run.glob("[mra]*/*")}
    run_evaluation(study, out=run, audit=True)
    assert {path: path.stat().st_mtime_ns for path in run.glob("[mra]*/*")} == before


@pytest.mark.parametrize("command", ["attack", "audit"])
def test_commands_on_a_damaged_checkpoint_refuse_it(run: Path, command: str) -> None:
    path = run / FILES["checkpoint"]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # the last bit of a weight
    model = ["--model", path, "--attack", "fgsm"] if command == "attack" else [path]
    out = run.parent / "out"
    refused(invoke(command, *model, "--dataset", "quarters", "--linf", "0.1", "--out", out), f"error: {path}: damaged")
    assert not out.exists()
