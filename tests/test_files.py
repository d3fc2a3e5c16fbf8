"""What never ends, or is larger than it can be, is refused before it is read, by every reader of a file."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from conftest import ROOT, STUDY
from PIL import Image
from test_cli import invoke, refused

import robustfdd
from robustfdd import catalogue, files, locking, records
from robustfdd.datasets import Dataset, fashion_mnist, load_dataset
from robustfdd.errors import CheckpointError, ConfigurationError, DatasetError, RunDirectoryError
from robustfdd.evaluation import done_already, prepare_evaluation, run_evaluation
from robustfdd.journal import Journal, read_journal
from robustfdd.locking import exclusive
from robustfdd.paper import published
from robustfdd.records import Failure, load_run, read_cells, write_analysis, write_failure
from robustfdd.specs import MAX_ATTACKS, MAX_METHODS, MAX_RADII, MAX_SEEDS, StudySpec

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="makes named pipes, and is woken by a signal")

#: Seconds in which every reader is done, many times over.
PATIENCE = 20


@contextmanager
def in_time() -> Iterator[None]:
    """Fails, where the code in it would wait for ever."""

    def wake(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    """As large as it can be, of nothing."""
    with path.open("wb") as stream:
        stream.truncate(2**40)


ENDLESS: list[Callable[[Path], None]] = [pipe, zeros, sparse, Path.mkdir]
endless = pytest.mark.parametrize("endless", ENDLESS, ids=lambda make: make.__name__)


def put(make: Callable[[Path], None], path: Path) -> None:
    """Something else in the place of a file."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


# --------------------------------------------------------------------------------------------------------------------
# The reader


def test_a_file_is_read_whole_up_to_its_limit_and_through_links(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"x\r\ny\rz\n")
    link.symlink_to(path)
    for name in (path, link):
        assert files.read_bytes(name, 7) == b"x\r\ny\rz\n"
        assert files.read_text(name, 7) == name.read_text() == "x\ny\nz\n"
        assert files.sha256(name, 7) == hashlib.sha256(b"x\r\ny\rz\n").hexdigest()
        with pytest.raises(OSError, match="larger than 6 bytes") as error:
            files.read_bytes(name, 6)
        assert error.value.filename == str(name)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "missing", 7)


def test_a_file_whose_size_is_not_told_has_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(files._BLOCK + 1))
    monkeypatch.setattr(files, "_check", lambda *_: None)  # as those of /proc, which are of size 0
    assert len(files.read_bytes(tmp_path / "file", files._BLOCK + 1)) == files._BLOCK + 1
    with pytest.raises(OSError, match="larger than 1 MiB"):
        files.read_bytes(tmp_path / "file", files._BLOCK)


@endless
@pytest.mark.parametrize("read", [files.check, files.opened, files.read_bytes, files.read_text, files.sha256])
def test_nothing_that_never_ends_is_read(endless: Callable[[Path], None], read: Callable, tmp_path: Path) -> None:
    endless(tmp_path / "x")
    with in_time(), pytest.raises(OSError, match=r"a named pipe|a device|larger than 1 MiB|a directory") as error:
        read(tmp_path / "x", 2**20)
    assert error.value.errno in (errno.EINVAL, errno.EISDIR)


def test_a_socket_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")  # relative, since such a name may have a hundred characters
        with pytest.raises(OSError, match="a socket, not a regular file"):
            files.read_bytes(Path("socket"), 10)


def test_what_takes_the_place_of_a_file_meanwhile_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe(tmp_path / "x")
    monkeypatch.setattr(files, "check", lambda *_: None)  # it was a file then
    with in_time(), pytest.raises(OSError, match="a named pipe"):
        files.read_bytes(tmp_path / "x", 10)


#: What opens a file by itself, and where it may: after :func:`files.check`, to write, or what the system or the package
#: itself holds.
OPENERS = {
    *("open", "io.open", "os.open", "safe_open", "load_file", "FileLock", "torch.load", "Image.open", "np.load"),
    *("gzip.open", "tarfile.open", "zipfile.ZipFile", "pd.read_csv", "pd.read_parquet", "pq.read_table", "np.loadtxt"),
    *("np.fromfile", "tomllib.load", "json.load", "pq.ParquetFile", "read_image", "decode_image", "np.memmap"),
}
METHODS = {"open", "read_text", "read_bytes"}
ALLOWED = {
    "files.py": {"os.open"},
    "locking.py": {"FileLock", "(run / NOTE).open"},  # checked before; written
    "models.py": {"safe_open"},  # checked before
    "resume.py": {"safe_open"},  # checked before
    "status.py": {"safe_open"},  # checked before
    "foreign.py": {"safe_open", "load_file", "torch.load"},  # checked before
    "journal.py": {"self._path.open"},  # written
    "records.py": {"temporary.open", "pq.ParquetFile"},  # written; from memory
    "datasets/folder.py": {"Image.open"},  # from a stream
    "datasets/fashion_mnist_mini.py": {"FILE.read_bytes", "np.load"},  # of the package; from memory
    "batching.py": {"*.read_text"},  # of the system
    "provenance.py": {"*.read_text", "path.read_bytes"},  # of the system and the package
    "code_version.py": {"path.read_bytes"},  # of the package, and of modules that are loaded
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "robustfdd").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_files_are_opened_in_one_place(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(ROOT / "robustfdd").as_posix(), set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2]
        if name in OPENERS or (isinstance(node.func, ast.Attribute) and method in METHODS and "files." not in name):
            assert name in allowed or f"*.{method}" in allowed, f"{path}: {name}: read files by robustfdd.files"


# --------------------------------------------------------------------------------------------------------------------
# Run directories

MODEL, ATTACK = "none--seed0", "none--seed0--fgsm--linf--foolbox"
#: Of every kind one, and whether a report reads it.
FILES = {
    "manifest.json": True,
    f"models/{MODEL}.json": True,
    f"models/{MODEL}.safetensors": False,
    f"models/{MODEL}.partial.safetensors": False,
    f"results/{ATTACK}.parquet": True,
    f"analysis/activations--{MODEL}.parquet": True,
    f"failures/{ATTACK}.json": True,
    "journal.jsonl": False,
    ".lock": False,
    ".lock.json": False,
}
#: Nobody can say what the rest means, or who works there, so nothing goes on.
REFUSED = ("manifest.json", "journal.jsonl", ".lock", ".lock.json")


@pytest.fixture(autouse=True)
def _registered(quarters_registered: Dataset) -> None:
    pass


@pytest.fixture
def whole(run: Path) -> Path:
    """A finished run that has a file of every kind."""
    frame = pd.DataFrame({"layer": [1]})
    write_analysis(run, "activations", frame, method="none", seed=0, key="")
    write_failure(run, Failure(ATTACK, "attack", "none", 0, "OSError", "why", "trace"))
    return run


@pytest.mark.parametrize(
    ("name", "endless"),
    [
        pytest.param(
            name,
            endless,
            id=f"{name}-{endless.__name__}",
            marks=() if endless is pipe or name in ("manifest.json", ".lock") else pytest.mark.faults,
        )
        for name in FILES
        for endless in ENDLESS
    ],
)
def test_nothing_that_never_ends_holds_a_command_up(
    name: str, endless: Callable[[Path], None], whole: Path, study_file: Path
) -> None:
    run = whole
    put(endless, run / name)
    commands: list[tuple[bool, tuple[str | Path, ...]]] = [
        (name in REFUSED, ("status", run)),
        *([(True, (command, run)) for command in ("report", "compare", "audit")] if FILES[name] else []),
    ]
    if name in REFUSED and (name, endless) != ("journal.jsonl", sparse):  # that one is begun anew
        commands.append((True, ("run", study_file, "--out", run, "--no-audit")))
    for is_refused, command in commands:
        with in_time():
            result = invoke(*command)
        if is_refused:
            refused(result, str(run / name))
            assert any(w in result.output for w in ("a named pipe", "a device", "larger than", "a directory", "a link"))
        else:
            assert result.exit_code == 0, result.output
        assert len(result.output) < 4000
    with in_time():
        prepared = prepare_evaluation(study_file, out=run)
        if name == "manifest.json":
            with pytest.raises(RunDirectoryError, match=name):
                done_already(prepared)
        else:
            left = {task.name for task in prepared.tasks} - done_already(prepared)
            assert bool(left) == (name.startswith("results") or name in list(FILES)[1:3])


@pytest.mark.parametrize(
    "endless", [pipe, pytest.param(zeros, marks=pytest.mark.faults)], ids=lambda make: make.__name__
)
def test_a_run_that_goes_on_makes_anew_what_can_be_made(
    endless: Callable[[Path], None], whole: Path, study_file: Path
) -> None:
    for name in FILES:
        if name not in REFUSED and not name.startswith("analysis"):
            put(endless, whole / name)
    with in_time():
        run_evaluation(study_file, out=whole)
    assert load_run(whole).failures == []
    assert not (whole / f"models/{MODEL}.partial.safetensors").is_symlink()


def test_the_lock_never_empties_another_file(run: Path, tmp_path: Path) -> None:
    """A lock that is a link would be emptied where it leads to."""
    precious = tmp_path / "precious"
    precious.write_text("much work")
    for name in (locking.LOCK, locking.NOTE):
        put(lambda path: path.symlink_to(precious), run / name)
        with pytest.raises(RunDirectoryError, match=rf"{name}: cannot be used \(a link, not a regular file\); remove"):
            exclusive(run).__enter__()
        assert precious.read_text() == "much work"
        (run / name).unlink()


def test_a_journal_does_not_grow_for_ever(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "JOURNAL", 4000)
    for _ in range(50):
        Journal(run).begin([{"name": "a", "kind": "train", "cost": 1.0}])
        Journal(run).end()
        assert (run / "journal.jsonl").stat().st_size < 4000
        assert list(read_journal(run).tasks) == ["a"]
        assert read_journal(run).ended


def test_a_few_bytes_of_parquet_are_not_more_than_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros that take no room in the file, and all of it once they are read."""
    path = run / "results" / f"{ATTACK}.parquet"
    records.pq.write_table(pa.table({"a": [0] * 10**6, "b": [0] * 10**6}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(records, "MAX_VALUES", 10**6)
    monkeypatch.setattr(records.pq.ParquetFile, "read", lambda _: pytest.fail("it is read"))
    with pytest.raises(RunDirectoryError, match=rf"{path.name}: damaged: .*2000000 values, and at most 1000000 are"):
        read_cells(path)


# --------------------------------------------------------------------------------------------------------------------
# Files that are named on the command line


@endless
def test_studies_and_attacks(endless: Callable[[Path], None]) -> None:
    put(endless, Path("x.toml"))
    for load in (catalogue.load_study, catalogue.load_attack):
        with in_time(), pytest.raises(ConfigurationError, match=r"x\.toml: (not a file|cannot be read \(larger than)"):
            load("x.toml")


@endless
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights(endless: Callable[[Path], None], suffix: str) -> None:
    path = Path(f"w{suffix}")
    put(endless, path)
    Path(f"factory{suffix[1]}.py").write_text("from torch import nn\ndef f():\n    return nn.Flatten()\n")
    attack = ("attack", "--dataset", "quarters", "--linf", "0.1", "--out", "r", "--model")
    with in_time():
        refused(invoke(*attack, f"factory{suffix[1]}:f", "--weights", path), f"--weights {path}: ")
        if suffix == ".safetensors":
            refused(invoke(*attack, path), f"error: {path}: cannot be read (")
            with pytest.raises(CheckpointError, match="cannot be read"):
                robustfdd.load_model(path)
    assert not Path("r").exists()


@endless
def test_published_figures(endless: Callable[[Path], None], tmp_path: Path) -> None:
    folder = shutil.copytree(published.folder(), tmp_path / "published")
    for name in sorted(path.name for path in folder.iterdir() if path.suffix in (".csv", ".toml")):
        put(endless, folder / name)
        with in_time(), pytest.raises(ConfigurationError, match=name):
            published.load(folder)
        if (folder / name).is_dir():
            (folder / name).rmdir()
        else:
            (folder / name).unlink()
        shutil.copy(published.folder() / name, folder / name)


@endless
def test_images(endless: Callable[[Path], None]) -> None:
    for kind in ("train", "test"):
        for label in "ab":
            Path(kind, label).mkdir(parents=True)
            Image.new("L", (4, 4)).save(Path(kind, label, "0.png"))
    put(endless, Path("train/b/0.png"))
    with in_time(), pytest.raises(DatasetError, match=r"train/b/0\.png: not readable as an image"):
        load_dataset("folder:.")


@pytest.mark.parametrize("endless", ENDLESS[:2], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar100", "cifar-100-python/meta"),
        ("svhn", "test_32x32.mat"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("fashion-mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
    ],
)
def test_data_sets(
    endless: Callable[[Path], None], name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise AssertionError("it is downloaded into that")

    monkeypatch.setattr("urllib.request.urlopen", none)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    put(endless, tmp_path / file)
    with in_time(), pytest.raises(DatasetError, match=rf"{Path(file).name}: cannot be read \(a .*; remove it"):
        load_dataset(name, root=tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Files with much in them

MANY = 30_000


def many(line: str) -> str:
    """As many lines as fit a file."""
    return "".join(line.format(k) for k in range(MANY))[: files.SPECIFICATION - 5000].rpartition("\n")[0] + "\n"


LABELS = ", ".join(f'{{dropout = "none", label = "m{k}"}}' for k in range(199))
SEEDS = f"seeds = {list(range(1000))}\neps_unit ="
#: What is put in the place of something in the study, and what is said of it.
MUCH = {
    "keys": ("", many("k{} = 1\n"), "unknown key 'k0'|20000 keys"),
    "keys of a table": ("[recipe]\n", "[recipe]\n" + many("k{} = 1\n"), "unknown key|20000 keys"),
    "tables": ("", many("[t{}]\n"), "20000 keys|unknown key|not valid TOML"),
    "norms": ("eps.l2 = [0.5]\n", many("eps.n{} = [1]\n"), "attacks.1.eps|20000 keys"),
    "seeds": ("eps_unit =", f"seeds = {list(range(9000))}\neps_unit =", f"seeds: .* {MAX_SEEDS} entries"),
    "seeds and seeds": ("eps_unit =", f"seeds = {[0] * MANY}\neps_unit =", "20000 keys"),
    "methods": ('"none",', '"none", ' * 9000, f"methods: .* {MAX_METHODS} entries"),
    "radii": ("[0, 0.1, 0.8]", str([k / 5000 for k in range(5000)]), f"eps.linf: .* {MAX_RADII} entries"),
    "texts for radii": ("[0, 0.1, 0.8]", str(["a"] * 19_000), "attacks.0.eps.linf.0: .* number"),
    "attacks": ("[model]", '[[attacks]]\nname="fgsm"\neps.l2=[1]\n' * 3000 + "[model]", f" {MAX_ATTACKS} entries"),
    "engines": ("eps_unit =", f"engines = {['art'] * 9000}\neps_unit =", "engines: .* 3 entries"),
    "options": ("options = {", "options = {" + "".join(f"k{k} = 1, " for k in range(9000)), "options: .* 200 entries"),
    "parameters": ("parameters = {", "parameters = {" + "".join(f"k{k} = 1, " for k in range(9000)), "200 entries"),
    "choices": ('"recipe.epochs" =', "".join(f"k{k} = 'x'\n" for k in range(9000)) + "x =", "200 entries"),
    "parts of a key": ("", ".".join("a" * MANY) + " = 1\n", "a key has at most 64 parts"),
    "parts of a table": ("[model]", "[" + " . ".join(['"a"'] * 15_000) + "]\n[model]", "a key has at most 64 parts"),
    "parts of a key within": ("options = {", "options = {" + ".".join("b" * MANY) + " = 1, ", "at most 64 parts"),
}


@pytest.mark.parametrize("what", MUCH)
def test_files_with_much_in_them_are_refused_at_once(what: str) -> None:
    old, new, says = MUCH[what]
    assert old in STUDY
    text = STUDY.replace(old, new) if old else new + STUDY
    assert len(text) <= files.SPECIFICATION
    Path("s.toml").write_text(text)
    began = time.monotonic()
    with in_time(), pytest.raises(ConfigurationError, match=f"(?s){says}") as error:
        catalogue.load_study("s.toml")
    assert time.monotonic() - began < 6  # a tenth of it where nothing else runs
    assert len(str(error.value).splitlines()) <= 14
    refused(invoke("plan", "s.toml"), "s.toml")


def test_a_study_has_not_more_units_than_a_run_directory_can_hold() -> None:
    text = STUDY.replace('"none",', f"{LABELS},").replace("eps_unit =", SEEDS)
    Path("s.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"200000 models .* 6 attack runs each .* more than 20000 units; make"):
        catalogue.load_study("s.toml")
    Path("s.toml").write_text(STUDY.replace("eps_unit =", SEEDS))
    assert len(catalogue.load_study("s.toml").seeds) == 1000  # 2,000 models, 8 units each


def test_a_study_may_be_as_large_as_the_limits_say() -> None:
    seeds = list(range(MAX_SEEDS))
    radii = [(k + 1) / MAX_RADII for k in range(MAX_RADII)]
    text = STUDY.replace("eps_unit =", f"seeds = {seeds}\neps_unit =").replace("[0, 0.1, 0.8]", str(radii))
    Path("s.toml").write_text(text)
    study = catalogue.load_study("s.toml")
    assert (list(study.seeds), list(study.attacks[0].eps["linf"])) == (seeds, radii)
    content = {**study.model_dump(by_alias=True), "seeds": [0], "attacks": [{"name": "fgsm", "eps": {"l2": [1.0]}}]}
    content["methods"] = [{"dropout": "none", "label": f"m{k}"} for k in range(MAX_METHODS)]
    assert len(catalogue.parse(StudySpec, content, "it").methods) == MAX_METHODS


def test_prose_is_no_long_key() -> None:
    prose = "It is so. " * 100 + "e.g. i.e. " * 10 + "1.5 2.5 " * 100 + "... " * 100
    Path("s.toml").write_text(STUDY.replace("A study of seconds", prose))
    assert catalogue.load_study("s.toml").description == prose


def test_a_manifest_of_the_largest_study_can_be_read(tmp_path: Path) -> None:
    entry = {
        "unit": "x" * 140, "method": "m" * 48, "seed": 2**31, "attack": "a" * 48, "norm": "linf", "engine": "foolbox",
        "source": "m" * 48,
    }  # fmt: skip
    size = len(json.dumps({"units": [entry] * 10}, indent=2)) / 10
    assert size * catalogue.MAX_UNITS < files.JSON / 2


def test_sizes_in_words() -> None:
    assert [files.size_in_words(n) for n in (7, 2**10, 256 * 2**10, 3 * 2**19, 2**30)] == [
        "7 bytes", "1 KiB", "256 KiB", "1.5 MiB", "1 GiB",
    ]  # fmt: skip
