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
from test_executors import gone

from robustfdd.ending import INTERRUPTED
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


def children(pid: int) -> list[int]:
    """The worker processes of a process, and nothing else that it has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def left_after(pids: list[int], seconds: float) -> int:
    """How many processes are still there after so long."""
    deadline = time.monotonic() + seconds
    while (left := sum(not gone(pid) for pid in pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


#: What has workers, is killed, and what its workers do: import for long, or compute without ever letting go.
PARENT = """
import multiprocessing, time
from robustfdd.ending import call_in_worker
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=call_in_worker, args=("worker:work",), daemon=True)
    process.start()
    print(process.pid, flush=True)
    time.sleep(120)
"""
WORKERS = {
    "imports": "import pathlib, time\npathlib.Path('began').touch()\ntime.sleep(100)",
    "holds the interpreter": """
import itertools, pathlib
def work():
    pathlib.Path("began").touch()
    sum(itertools.repeat(0, 10**12))
""",
}


@pytest.mark.parametrize("what", WORKERS)
@pytest.mark.parametrize("when", ["at once", "in the middle"])
def test_a_worker_ends_with_its_parent_whatever_it_does(what: str, when: str, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "worker.py").write_text(WORKERS[what])
    process = subprocess.Popen([sys.executable, "parent.py"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        worker = int(said.readline())
    try:
        deadline = time.monotonic() + 60
        while when != "at once" and not (tmp_path / "began").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        # One that has not begun yet looks for its parent first, which takes as long as Python takes to start.
        assert left_after([worker], 2 if when != "at once" else 15) == 0
    finally:
        if not gone(worker):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.faults
def test_no_worker_outlives_a_coordinator_that_is_killed(
    server: Any, folder: Path, tmp_path: Path, tally: Tally
) -> None:
    """At random moments from the first one of the workers on: most of these seconds they import."""
    rng, tries, left = np.random.default_rng(21), 25, 0
    study = tmp_path / "long.toml"
    study.write_text((folder / "s.toml").read_text().replace("epochs = 3", "epochs = 5000"))
    for k in range(tries):
        process = begin(server, study, tmp_path / f"run{k}", 2)
        assert process.pid is not None
        deadline = time.monotonic() + 120
        while len(workers := children(process.pid)) < 2:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 8)))
        os.kill(process.pid, signal.SIGKILL)  # it alone
        process.join()
        left += left_after(workers, 1.0) > 0
        assert not is_held(tmp_path / f"run{k}")
        for pid in workers:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
    tally("coordinator of two workers killed alone; results: times that a worker was there a second later", tries, left)
    assert left == 0


# --------------------------------------------------------------------------------------------------------------------
# Signals


def listens(pid: int) -> bool:
    """Whether a process has its own answer to SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("command", "moments"),
    [
        pytest.param(["list"], [(signal.SIGTERM, 0.0), (signal.SIGINT, 0.5)], id="list, a few"),
        *(
            pytest.param(
                command,
                [(number, 0.35 * k) for k in range(20) for number in (signal.SIGTERM, signal.SIGINT)],
                id=command[0],
                marks=pytest.mark.faults,
            )
            for command in (["list"], ["run", "quickstart", "--set", "recipe.epochs=1"])
        ),
    ],
)
def test_a_signal_ends_a_command_in_order_from_its_first_moment(
    command: list[str], moments: list[tuple[signal.Signals, float]], tmp_path: Path, tally: Tally
) -> None:
    wrong = []
    for number, moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustfdd", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while not listens(process.pid):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        last = said.strip().rpartition("\n")[2]
        in_order = process.returncode == 128 + number and last == INTERRUPTED
        finished = process.returncode == 0 and command == ["list"]  # it was done before
        if "Traceback" in said or not (in_order or finished):
            wrong.append((number.name, moment, process.returncode, said))
    tally(f"SIGTERM or SIGINT in the first seconds of `robustfdd {command[0]}`", len(moments), len(wrong))
    assert wrong == []


END = """
import atexit, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
from robustfdd import ending
ending.take_over()
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})  # as the interpreter comes down
def of_a_library():
    os.kill(os.getpid(), signal.{number})
late = sys.late = Late()
if {during}:
    atexit.register(of_a_library)
print("done")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("during", [False, True], ids=["after everything", "at exit"])
def test_a_signal_at_the_very_end(number: signal.Signals, during: bool) -> None:
    code = END.format(number=number.name, during=during)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "done\n"
    # Nothing is left to be interrupted, and what the command came to is its exit code.
    assert (done.returncode, done.stderr) == ((128 + number, f"{INTERRUPTED}\n") if during else (0, ""))


TWICE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # as above
from robustfdd import ending
class Stop(KeyboardInterrupt): pass
class Finalised:
    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)
with ending.in_order(Stop):
    if {swallowed}:
        thing = Finalised(); del thing
        print("it goes on")
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        print("it goes on")
"""


@pytest.mark.parametrize("swallowed", [False, True], ids=["a second one", "one in a finaliser"])
def test_a_signal_is_neither_lost_nor_waits_for_what_hangs(swallowed: bool) -> None:
    code = TWICE.format(swallowed=swallowed)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", f"{INTERRUPTED}\n", 143)


def test_what_is_ignored_stays_ignored() -> None:
    """Ctrl-C is not for what a shell has put into the background."""
    code = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from robustfdd import ending
ending.take_over()
with ending.in_order(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


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
