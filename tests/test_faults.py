"""What ends a run in the middle loses nothing that was finished, and the run that goes on comes to the same records.

Each fault is tried a few times here, and many times by ``tox run -e faults``, which prints how often and what was lost.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from conftest import assert_same
from safetensors import SafetensorError, safe_open

from robustfdd.evaluation import run_evaluation
from robustfdd.executors import Inline, Processes
from robustfdd.locking import is_held
from robustfdd.records import read_json

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills groups of processes")

Tally: TypeAlias = Callable[[str, int, int], None]
State: TypeAlias = dict[Path, tuple[int, str]]

#: What is finished, and must be there and untouched ever after.
FINISHED = ("manifest.json", "models/*.json", "results/*.parquet", "analysis/*.parquet")


def state_of(run: Path) -> State:
    """Every finished file, with the time it was written and its content."""
    files = [path for pattern in FINISHED for path in run.glob(pattern)]
    # A training is finished when its history is there, which is written after the checkpoint.
    files += [path.with_suffix(".safetensors") for path in files if path.parent.name == "models"]
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def lost(before: State, after: State) -> int:
    """How many finished files are gone or were written again."""
    return sum(after.get(path) != value for path, value in before.items())


def _work(study: Path, run: Path, jobs: int, audit: bool) -> None:
    os.setsid()  # so that it can be killed with its workers, as when the machine goes off
    torch.set_num_threads(1)
    run_evaluation(study, out=run, executor=Processes(jobs) if jobs > 1 else Inline(), audit=audit)


@pytest.fixture(scope="module")
def server() -> Any:
    """Makes processes that have imported everything already, and share nothing else with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["robustfdd.evaluation", "art.attacks.evasion", "foolbox"])
    return context


def begin(server: Any, study: Path, run: Path, jobs: int = 1, *, audit: bool = False) -> BaseProcess:
    """The run in a process of its own, once it holds the run directory."""
    process: BaseProcess = server.Process(target=_work, args=(study, run, jobs, audit))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and not is_held(run):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def kill(process: BaseProcess) -> None:
    """Everything at once, without a warning."""
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize(
    ("jobs", "kills", "audit"),
    [
        pytest.param(1, 4, False, id="one process, a few times"),
        pytest.param(1, 50, False, id="one process", marks=pytest.mark.faults),
        pytest.param(3, 20, False, id="three processes", marks=pytest.mark.faults),
        pytest.param(1, 10, True, id="with audits", marks=pytest.mark.faults),
    ],
)
def test_a_killed_run_loses_nothing_that_was_finished(
    jobs: int, kills: int, audit: bool, server: Any, folder: Path, tmp_path: Path, tally: Tally
) -> None:
    rng = np.random.default_rng(kills)
    done = missing = runs = 0
    study, reference = folder / "s.toml", tmp_path / "reference"
    process = begin(server, study, reference, jobs, audit=audit)
    began = time.monotonic()
    process.join()
    undisturbed = time.monotonic() - began
    while done < kills:
        run = tmp_path / f"run{runs}"
        runs += 1
        finished: State = {}
        process = begin(server, study, run, jobs, audit=audit)
        while True:
            process.join(float(rng.uniform(0, undisturbed / 2)))
            if process.is_alive() and done < kills:
                kill(process)
                done += 1
            process.join()
            missing += lost(finished, finished := state_of(run))
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            process = begin(server, study, run, jobs, audit=audit)
        assert_same(run, reference)
        assert not list(run.glob("**/*.tmp"))
        assert not list(run.glob("models/*.partial.*"))
    what = f"{jobs} {'process' if jobs == 1 else 'processes'}{', with audits' if audit else ''}"
    tally(f"killed (SIGKILL) at a random moment, {what}", done, missing)
    assert missing == 0


def test_a_killed_training_goes_on_after_its_last_whole_epoch(
    server: Any, folder: Path, tmp_path: Path, tally: Tally
) -> None:
    study = tmp_path / "long.toml"
    text = (folder / "s.toml").read_text().replace("epochs = 3", "epochs = 60")
    study.write_text(re.sub("methods = .*", 'methods = ["fdd-3d"]', text))
    reference = run_evaluation(study, out=tmp_path / "reference")
    run, kills = tmp_path / "run", (5, 21)
    for epoch in kills:
        process = begin(server, study, run)
        while _epochs(run) < epoch:
            assert process.is_alive()
        kill(process)
    run_evaluation(study, out=run)
    assert_same(run, reference)
    resumed = read_json(run / "models/fdd-3d--seed0.json")["resumed_after"]
    begun_anew = sum(found < wanted for found, wanted in zip(resumed, kills, strict=True))
    tally("killed (SIGKILL) in a training; results: its whole epochs", len(kills), begun_anew)
    assert begun_anew == 0


def _epochs(run: Path) -> int:
    """After how many epochs the training of the only model left its last snapshot."""
    try:
        with safe_open(run / "models/fdd-3d--seed0.partial.safetensors", framework="pt") as file:
            return len(json.loads(file.metadata()["robustfdd.snapshot"])["epochs"])
    except (OSError, SafetensorError):
        return 0


def _cramped(study: Path, run: Path, room: int, said: Any) -> None:
    """Run with files of so many bytes at most, and say how it ended."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    torch.set_num_threads(1)
    try:
        run_evaluation(study, out=run)
    except BaseException as error:
        said.send((type(error).__name__, str(error)))
    else:
        said.send(("nothing", ""))


@pytest.mark.parametrize(
    "kilobytes",
    [
        pytest.param(1, marks=pytest.mark.faults),
        pytest.param(5, id="not for the manifest", marks=pytest.mark.faults),
        pytest.param(12, id="not for a checkpoint"),
        pytest.param(80, id="not for a snapshot", marks=pytest.mark.faults),
    ],
)
def test_no_room_for_a_file_is_told_and_what_was_finished_stays(
    kilobytes: int, server: Any, folder: Path, reference: Path, tmp_path: Path, tally: Tally
) -> None:
    run, (mine, theirs) = tmp_path / "run", server.Pipe()
    process = server.Process(target=_cramped, args=(folder / "s.toml", run, 1024 * kilobytes, theirs))
    process.start()
    error, message = mine.recv()
    process.join()
    finished = state_of(run)
    assert error == "OutOfSpaceError"
    assert "no room is left" in message
    assert str(run) in message
    assert not list(run.glob("failures/*"))
    run_evaluation(folder / "s.toml", out=run)
    missing = lost(finished, state_of(run))
    tally("no room for a file", 1, missing)
    assert missing == 0
    assert_same(run, reference)


ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 77
{python} -m robustfdd run {study} --out {disk}/run --no-audit
echo "first exit code: $?" >&2
cp -a {disk}/run/. {before}
mount -o remount,size=64m {disk}
{python} -m robustfdd run {study} --out {disk}/run --no-audit
echo "second exit code: $?" >&2
cp -a {disk}/run/. {after}
"""


@pytest.mark.faults
@pytest.mark.parametrize("size", [16, 150, 250, 400, 1000, 3000])
def test_a_full_disk_is_told_and_what_was_finished_stays(
    size: int, folder: Path, reference: Path, tmp_path: Path, tally: Tally
) -> None:
    disk, before, after = (tmp_path / name for name in ("disk", "before", "after"))
    for place in (disk, before, after):
        place.mkdir()
    script = ON_A_SMALL_DISK.format(
        size=size, disk=disk, before=before, after=after, python=sys.executable, study=folder / "s.toml"
    )
    found = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    if found.returncode == 77 or "unshare:" in found.stderr:
        pytest.skip("no file system can be mounted here")
    first, second = found.stderr.split("first exit code: ")
    assert second.startswith("2\n")
    assert "no room is left" in first
    assert "Traceback" not in found.stderr
    assert "second exit code: 0" in second
    finished, then = (
        {path.relative_to(top): value for path, value in state_of(top).items()} for top in (before, after)
    )
    missing = lost(finished, then)
    tally("disk full", 1, missing)
    assert missing == 0
    assert_same(after, reference)
