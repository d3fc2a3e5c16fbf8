"""The plan of a study as tasks, the lock of a run directory, what status says, and what the plan command prints."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import STUDY
from test_cli import invoke, refused

from robustfdd import locking, records, tasks, units
from robustfdd.errors import RunLockedError, Terminated, TrainingError
from robustfdd.evaluation import Prepared, prepare_evaluation
from robustfdd.journal import Journal, read_journal
from robustfdd.locking import exclusive, holder, is_held
from robustfdd.status import read_status

pytestmark = pytest.mark.usefixtures("quarters_registered")


def prepared(study_file: Path, run: Path) -> Prepared:
    return prepare_evaluation(study_file, out=run, audit=True)


def test_tasks_need_what_they_are_made_of(study_file: Path, tmp_path: Path) -> None:
    plan = prepared(study_file, tmp_path / "run").tasks
    by_name = {task.name: task for task in plan}
    assert len(by_name) == len(plan) == 2 + 12 + 2
    none, fdd = "none--seed0", "fdd-2d-inverted--seed0"
    assert by_name[none].needs == by_name[fdd].needs == ()
    assert by_name["none--seed0--pgd--l2--art"].needs == (none,)
    assert by_name["fdd-2d-inverted--seed0--fgsm--linf--foolbox"].needs == (fdd,)
    assert set(by_name["fdd-2d-inverted--seed0--transfer--l2--foolbox"].needs) == {fdd, none}
    assert set(by_name["none--seed0--transfer--l2--foolbox"].needs) == {fdd, none}
    assert set(by_name["audit--none--seed0"].needs) == {fdd, none}
    assert set(by_name["audit--fdd-2d-inverted--seed0"].needs) == {fdd, none}
    seen: set[str] = set()
    for task in plan:  # a single worker can go through it from the first to the last
        assert seen.issuperset(task.needs)
        seen.add(task.name)
        assert pickle.loads(pickle.dumps(task)) == task


def test_what_acts_at_test_time_waits_for_the_network_whose_weights_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    sap = '{dropout = "sap", placement = "stages", eot_samples = 2}'
    path.write_text(re.sub(r"methods = .*", f'methods = [{sap}, "none", "original"]', STUDY))
    by_name = {task.name: task for task in prepared(path, tmp_path / "run").tasks}
    assert by_name["sap--seed0"].needs == ("none--seed0",)
    assert by_name["sap--seed0"].weights_of == "none--seed0"
    assert by_name["original--seed0"].needs == ()


def test_a_job_can_be_sent_to_another_machine(study_file: Path, tmp_path: Path) -> None:
    job = prepared(study_file, tmp_path / "run").job
    assert job.run.is_absolute()
    assert pickle.loads(pickle.dumps(job)) == job


def test_a_task_whose_data_are_others_fails(study_file: Path, tmp_path: Path) -> None:
    planned = prepared(study_file, tmp_path / "run")
    planned.job.manifest["dataset"]["sha256"] = "1" * 64  # type: ignore[index]
    outcome = tasks.perform(planned.tasks[0], planned.context, lambda cost: None)
    assert isinstance(outcome, records.Failure)
    assert "not the one of the run" in outcome.message


# --- failures and what waits for them --------------------------------------------------------------------------------


def test_what_needs_a_failed_unit_is_listed_and_not_run(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tasks.train

    def fails_without_dropout(*arguments, label, **options):
        if label == "none":
            raise TrainingError("the loss is nan")
        return real(*arguments, label=label, **options)

    monkeypatch.setattr(tasks, "train", fails_without_dropout)
    monkeypatch.setattr(tasks, "audit_subject", lambda *arguments: "believable")
    result = invoke("run", study_file, "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "none--seed0: TrainingError: the loss is nan" in result.output
    blocked = ["none--seed0--fgsm--linf--art", "audit--none--seed0", "audit--fdd-2d-inverted--seed0"]
    for name in blocked:
        assert f"  {name}: none--seed0 failed\n" in result.output
    found = records.load_run(tmp_path / "r")
    assert set(found.cells.method) == {"fdd-2d-inverted"}
    shown = invoke("status", tmp_path / "r")
    assert shown.exit_code == 0
    assert "failed: none--seed0: TrainingError: the loss is nan" in shown.output
    assert "not run: audit--none--seed0: none--seed0 failed" in shown.output
    status = read_status(tmp_path / "r")
    assert [len(status.of(state)) for state in ("done", "failed", "blocked", "left")] == [5, 3, 8, 0]


# --- the lock --------------------------------------------------------------------------------------------------------

HOLD = """
import json, os, sys, time
from filelock import FileLock
with FileLock(sys.argv[1] + "/.lock"):
    with open(sys.argv[1] + "/.lock.json", "w") as note:
        json.dump({"host": "here", "pid": os.getpid(), "since": "today", "command": "robustfdd run x"}, note)
    print("held", flush=True)
    time.sleep(60)
"""


def held_by_another(run: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_told_who_holds_the_directory(run: Path, study_file: Path) -> None:
    process = held_by_another(run)
    try:
        files = [*run.glob("*/*"), run / "manifest.json"]
        before = {p: p.stat().st_mtime_ns for p in files}
        refused(invoke("run", study_file, "--out", run), "in use by process", f"process {process.pid} on", "--out")
        assert {p: p.stat().st_mtime_ns for p in [*run.glob("*/*"), run / "manifest.json"]} == before
        assert is_held(run)
        status = invoke("status", run)
        assert status.exit_code == 0
        assert f"in use by process {process.pid}" in status.output
    finally:
        process.kill()
        process.communicate()
    # The kernel has let go; the note is of one that is no more.
    assert holder(run) is not None
    assert not is_held(run)
    with exclusive(run):
        who = holder(run)
        assert who is not None
        assert who.pid == os.getpid()
        with exclusive(run):
            pass
        assert is_held(run)
    assert not is_held(run)
    assert holder(run) is None


def test_what_killed_writers_left_is_removed(run: Path) -> None:
    names = ("results/.x.parquet.abc.tmp", "models/.y.safetensors.def.tmp", ".manifest.json.1.tmp")
    left = [run / name for name in names]
    for path in left:
        path.write_bytes(b"half")
    kept = sorted(run.glob("results/*.parquet"))
    with exclusive(run):
        pass
    assert not any(path.exists() for path in left)
    assert sorted(run.glob("results/*.parquet")) == kept


def test_a_lock_without_a_note_is_still_a_lock(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_PATIENCE", 0.1)
    process = held_by_another(run)
    try:
        (run / locking.NOTE).write_text("{")
        with pytest.raises(RunLockedError, match="in use by another process"), exclusive(run):
            pass
    finally:
        process.kill()
        process.communicate()


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_of_a_finished_run(run: Path) -> None:
    status = read_status(run)
    assert {entry.state for entry in status.tasks} == {"done"}
    assert len(status.tasks) == 2 + 12
    result = invoke("status", run)
    assert result.exit_code == 0
    assert "complete" in result.output
    next(run.glob("results/*")).unlink()
    (run / "journal.jsonl").unlink()  # as one of an earlier version
    assert [len(read_status(run).of(state)) for state in ("done", "left")] == [13, 1]
    refused(invoke("status", run / "results"), "no run directory")


def test_status_of_a_run_that_goes_on_and_of_one_that_was_cut_off(run: Path) -> None:
    journal = Journal(run)
    train, attack = (
        {"name": "none--seed0", "kind": "train", "cost": 300.0},
        {"name": "x", "kind": "attack", "cost": 100.0},
    )
    journal.begin([train, attack])
    journal.tell("started", "none--seed0", worker="here:1")
    journal.tell("done", "none--seed0")
    journal.tell("started", "x", worker="here:2")
    journal.tell("advanced", "x", cost=50.0)
    with (run / "journal.jsonl").open("a") as stream:
        stream.write('\n{"at": "2026-01-01T00:00:00+00:00", "event": "do')
    journal.tell("advanced", "x", cost=60.0)
    process = held_by_another(run)
    try:
        status = read_status(run)
    finally:
        process.kill()
        process.communicate()
    (x,) = status.of("running")
    assert (x.worker, x.done_cost) == ("here:2", 60.0)
    assert status.begun is not None
    assert status.seconds_left is not None
    elapsed = time.time() - status.begun.timestamp()
    assert status.seconds_left <= elapsed * 40 / 360
    assert [entry.state for entry in read_status(run).tasks] == ["done", "left"]
    assert "cut off" in invoke("status", run).output
    assert read_journal(run).ended is False


# --- the plan command ------------------------------------------------------------------------------------------------


def test_the_plan_names_every_unit_and_what_is_done(study_file: Path, run: Path, tmp_path: Path) -> None:
    result = invoke("plan", study_file, "--no-audit")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "runs").exists()
    rows = [line for line in result.output.splitlines() if "--seed0" in line]
    assert len(rows) == 2 + 12
    planned = prepare_evaluation(study_file, out=run).tasks
    assert f"{len(planned)} units" in result.output
    assert "estimate" in result.output
    victim = next(run.glob("results/*fgsm*art*"))
    victim.unlink()
    before = sorted(run.rglob("*"))
    result = invoke("plan", study_file, "--no-audit", "--out", run)
    states = [line.split()[-2] for line in result.output.splitlines() if "--seed0" in line]
    assert (states.count("done"), states.count("left")) == (13, 1)
    assert sorted(run.rglob("*")) == before
    refused(invoke("plan", study_file, "--out", tmp_path / "nowhere"), "nowhere", "no run directory")
    refused(invoke("plan", study_file, "--out", run, "--set", "recipe.epochs=4"), "holds another run")


# --- ending in order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_being_asked_to_end_is_an_interruption(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    def asked(*arguments, **options):
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(units, "measure_sweep", asked)
    before = signal.getsignal(signal.SIGTERM)
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    of_ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = invoke("run", study_file, "--out", "r")
    finally:
        signal.signal(signal.SIGINT, of_ctrl_c)
    assert result.exit_code == code
    assert "the same command goes on" in result.output
    assert signal.getsignal(signal.SIGTERM) is before
    assert not is_held(Path("r"))
    assert "stopped" in invoke("status", "r").output
    assert issubclass(Terminated, KeyboardInterrupt)
