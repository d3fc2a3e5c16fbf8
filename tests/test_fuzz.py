"""Whatever is in a file or on the command line: it works, or one clear message says what is wrong. Never a traceback.

Nothing is trained or attacked here: what does the work is replaced, and everything before it is real.
"""

from __future__ import annotations

import copy
import datetime
import inspect
import json
import re
import shutil
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import typer.testing
from conftest import ROOT, STUDY, make_dataset, registered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from robustfdd import catalogue, cli, evaluation, report, training
from robustfdd.audit import write as audit_write
from robustfdd.cli import conclusion
from robustfdd.datasets import DATASETS
from robustfdd.errors import DatasetError, RobustFDDError
from robustfdd.models import build_model, save_model
from robustfdd.paper import compare

#: How many examples of each property are tried: a few, the same every time, by default, and many, new ones, by
#: `tox run -e faults`.
EXAMPLES = pytest.mark.parametrize("examples", [60, pytest.param(4000, marks=pytest.mark.faults)])
#: Of each command.
LINES = pytest.mark.parametrize("examples", [30, pytest.param(1500, marks=pytest.mark.faults)])
#: What fits a terminal of ordinary size when it is told.
SCREEN_LINES, SCREEN_CHARACTERS = 25, 4000


def hold(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Try a property on as many examples."""
    few = examples < 100

    @settings(
        max_examples=examples, derandomize=few, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def property_(example: Any) -> None:
        check(example)

    property_()


# --------------------------------------------------------------------------------------------------------------------
# Values and files


def toml_string(text: str) -> str:
    escaped = (f"\\U{ord(c):08X}" if not c.isprintable() or c in '"\\' else c for c in text)
    return f'"{"".join(escaped)}"'


def toml(value: Any) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml_string(key)} = {toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return repr(value)  # nan, inf, -0.0 and 1e+300 are TOML as they stand
    if isinstance(value, int):
        return str(value).lower() if isinstance(value, bool) or abs(value) < 10**40 else hex(abs(value))
    return str(value.isoformat())


def document(content: dict[str, Any]) -> str:
    return "".join(f"{toml_string(key)} = {toml(value)}\n" for key, value in content.items())


#: Texts that mean something to a file system, a terminal, a template or this package.
TEXTS = [
    *("", " ", ".", "..", "/", "../../x", "a/b", "a\\b", "~", "~nobody-of-that-name/x", "\0", "a\0b", "\n", "\x1b[31m"),
    *(
        "x" * 300,
        "x" * 100_000,
        "é" * 5000,
        "e\u0301",
        "\u202eabc",
        "\ufeff",
        "🦆",
        "con",
        "nul",
        "-",
        "--help",
        "None",
    ),
    *("[/]", "[red]", "[bold]x[/bold]", ":smile:", "{0}", "{x}", "%s", "%(x)s", "$", "$steps", "$none", "$components"),
    *("$" + "y" * 5000, "1 *", "* 2", "+", "2 * $steps", "-1", "1e5", "²", "9" * 5000, "nan", "inf", "true"),
    *("none", "fdd-2d", "guided", "sap", "fgsm", "pgd", "transfer", "quarters", "folder:", "folder:.", "folder:\0"),
    *(
        "fgsm.toml",
        "./fgsm.toml",
        "x.toml",
        "/",
        "/dev/null",
        "/dev/null/x.toml",
        "/" * 300 + "x.toml",
        "art",
        "native",
    ),
    *("n_units", "name", "generator", "dataset", "seed", "width", "self", "recipe", "options", "rescale", "active"),
    *("EvasionAttack", "AutoAttack", "BaseGradientDescent", "os", "np", "__doc__", "inf", "PGD", "LinfPGD", "ce"),
    *("<script>alert(1)</script>", r"\input{x}", "foolbox", "linf", "l2", "bf16", "strong", "cosine", "stages"),
]
TEXT = st.sampled_from(TEXTS) | st.text(max_size=60) | st.text(string.ascii_letters + ".-_/", max_size=20)
NUMBER = (
    # The last one has more digits than Python writes, so Hypothesis must not see it in a list.
    st.just(20_000).map(lambda bits: 1 << bits)
    | st.sampled_from([0, 1, 2, -1, 2**31, 2**31 - 1, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400])
    | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-320, 1e308, 0.5, 1.5])
    | st.integers(-10, 1000)
    | st.floats()
)
MOMENT = st.sampled_from([datetime.date(1979, 5, 27), datetime.time(7, 32), datetime.datetime(1979, 5, 27, 7, 32)])
SCALAR = TEXT | NUMBER | st.booleans() | MOMENT
VALUES = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(lambda t: len(t) < 400), inner, max_size=4),
    max_leaves=6,
) | st.sampled_from([[[[[[]]]]], [{}], [1, "a", {}], [0.1] * 3000, {str(k): k for k in range(500)}])
VALUE = VALUES.map(copy.deepcopy)  # what is sampled is changed below

Path_ = tuple[Any, ...]


def places(content: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Where there is a value, in tables and arrays."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*at, key))


def at(content: Any, place: Path_) -> Any:
    for key in place:
        content = content[key]
    return content


def in_place_of(value: Any) -> st.SearchStrategy[Any]:
    """Mostly something of the same kind, which only its meaning can be wrong with."""
    if isinstance(value, bool):
        return st.booleans() | VALUE
    if isinstance(value, (int, float)):
        return NUMBER | NUMBER | NUMBER | VALUE
    if isinstance(value, str):
        return TEXT | TEXT | TEXT | VALUE
    if isinstance(value, list) and value:
        return st.lists(st.sampled_from(value), max_size=4).map(copy.deepcopy) | VALUE
    return VALUE


@st.composite
def mutated(draw: st.DrawFn, original: dict[str, Any]) -> str:
    """A file in which one thing, or a few, are not as they were."""
    content = json.loads(json.dumps(original))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = draw(st.sampled_from(list(places(content)) or [("name",)]))
        table, key = at(content, place[:-1]), place[-1]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename"]))
        if isinstance(table, list):
            if action == "remove":
                del table[key]
            elif action == "replace":
                table[key] = draw(in_place_of(table[key]))
            else:
                table.append(draw(VALUE) if action == "add" else table[key])
        elif action == "add":
            table[draw(TEXT)] = draw(VALUE)
        elif action == "rename":
            table[draw(TEXT)] = table.pop(key, 0)
        elif action == "remove":
            table.pop(key, None)
        else:
            table[key] = draw(in_place_of(table.get(key)))
    return document(content)


@st.composite
def deep(draw: st.DrawFn) -> str:
    """Much inside much."""
    depth = draw(st.sampled_from([50, 500, 2000]))
    opening, closing = draw(st.sampled_from([("[", "]"), ("{a = ", "}"), ("[{a = ", "}]")]))
    nested = f"methods = {opening * depth}1{closing * depth}\n"
    dotted = f"{'.'.join(['a'] * depth)} = 1\n"
    return draw(st.sampled_from([nested, dotted, f"[{'.'.join(['a'] * depth)}]\n", f"[[{'.'.join(['a'] * depth)}]]\n"]))


BYTES = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode())
    | st.sampled_from([b"\xff\xfe", b"\xef\xbb\xbf", b"\0" * 100, b"\xef\xbb\xbf" + STUDY.encode(), b"name = '\xff'"])
    | st.sampled_from([STUDY.encode("utf-16"), b"a = " + b"1" * 5000, b"a = 1979-99-99", b"a = 0x" + b"f" * 9000])
    | st.integers(0, len(STUDY)).map(lambda n: STUDY.encode()[:n])
    | st.tuples(st.integers(0, len(STUDY)), st.binary(min_size=1, max_size=4)).map(
        lambda cut: STUDY.encode()[: cut[0]] + cut[1] + STUDY.encode()[cut[0] :]
    )
    | deep().map(str.encode)
)

STUDY_CONTENT = catalogue.tomllib.loads(STUDY) | {
    "seeds": [0, 1],
    "engines": ["foolbox", "art"],
    "protocol": "paper",
    "normalization": "z-score",
    "attack_precision": "fp32",
    "audit": {"norm": "linf", "eps": 0.1, "images": 8},
}
STUDY_CONTENT["recipe"] |= {"adversarial": {"attack": "pgd", "eps": 0.1, "steps": 2}, "schedule": "cosine"}
ATTACKS = {
    name: catalogue.tomllib.loads((ROOT / "attacks" / f"{name}.toml").read_text(encoding="utf-8"))
    for name in ("fgsm", "pgd", "art-autoattack", "square", "transfer")
}


# --------------------------------------------------------------------------------------------------------------------
# What is called


@contextmanager
def nothing_is_computed() -> Iterator[None]:
    """Only the checks before the work are real, and no data set is downloaded."""

    def offline(name: str) -> Callable[[Path], Any]:
        def load(root: Path) -> Any:
            raise DatasetError(f"{name}: neither found in {root} nor downloaded to it")

        return load

    def checked_only(study: str, *, out: Any, console: Any, resume: bool, **options: Any) -> Path:
        writable(evaluation.prepare_evaluation(study, out=out, **options))
        raise typer.Exit(0)

    def writable(prepared: evaluation.Prepared) -> float:
        """Make sure that the manifest could be written."""
        json.dumps(prepared.job.manifest, ensure_ascii=False, allow_nan=False).encode()
        return 1e-3

    def done(*_: Any, **__: Any) -> Any:
        raise typer.Exit(0)

    dataset = make_dataset(16, 24)
    with registered(dataset), pytest.MonkeyPatch.context() as patch:
        # Making the command anew for every call takes longer than most of the calls.
        command = typer.main.get_command(cli.app)
        patch.setattr(typer.testing, "_get_command", lambda app: command, raising=False)
        patch.setattr(evaluation, "seconds_per_pass", writable)
        patch.setattr(evaluation, "run_evaluation", checked_only)
        patch.setattr(training, "train", done)
        patch.setattr(evaluation, "attack_model", done)
        patch.setattr(audit_write, "audit", done)
        for name in ("analyse", "audit_models", "conclude"):
            patch.setattr(conclusion, name, lambda *_: None)
        patch.setattr(report, "write_report", lambda runs, out=None: Path("index.html"))
        patch.setattr(compare, "write_comparisons", lambda found, folder: Path(folder))
        unread = {n: SimpleNamespace(name=n, title=n, load=offline(n), summary="") for n in DATASETS}
        patch.setattr(DATASETS, "_parts", unread)
        yield


def invoke(*arguments: str) -> Any:
    # Click before 8.2 keeps standard error apart only when it is told to, and later ones cannot be told.
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(cli.app, list(arguments), env={"COLUMNS": "300", "TERM": "dumb"})


def is_clear(result: Any, *names: str) -> bool:
    """Check that a command worked or was refused in one message; whether it worked."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 2), result.output
    assert "Traceback" not in result.output
    if result.exit_code == 0:
        return True
    assert result.stderr.startswith(("error: ", "Usage: ")), result.output
    if result.stderr.startswith("Usage: "):  # typer's own, which repeats what was typed
        return False
    assert len(result.stderr.splitlines()) <= SCREEN_LINES, result.stderr
    assert len(result.stderr) <= SCREEN_CHARACTERS
    assert not any(ord(c) < 32 and c not in "\n\t" for c in result.stderr), result.stderr
    for name in names:
        assert name in result.stderr, result.stderr
    return False


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    """The working directory, with nothing of an earlier example in it."""
    with nothing_is_computed():
        yield tmp_path


def refusal(load: Callable[[Path], object], path: Path, content: str | bytes) -> str | None:
    """What a file of that content is refused with; None if it is not."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        load(path)
    except RobustFDDError as error:
        return str(error)
    return None


def check_study(content: str | bytes) -> None:
    message = refusal(catalogue.load_study, Path("study.toml"), content)
    worked = is_clear(invoke("plan", "./study.toml"), "study.toml" if message else "")
    if message is not None:
        assert "study.toml" in message
        assert not worked
    assert sorted(p.name for p in Path().iterdir()) == ["study.toml"]


def check_attack(content: str | bytes) -> None:
    message = refusal(catalogue.load_attack, Path("attack.toml"), content)
    attacks = [{"name": "./attack.toml", "eps": {"linf": [0.1]}}]
    study = {**STUDY_CONTENT, "engines": ["foolbox", "art", "native"], "attacks": attacks}
    Path("study.toml").write_text(document(study), encoding="utf-8")
    worked = is_clear(invoke("plan", "./study.toml"), *(["attack.toml", "attacks.0"] if message else []))
    if message is not None:
        assert "attack.toml" in message
        assert not worked


# --------------------------------------------------------------------------------------------------------------------
# Files


@EXAMPLES
def test_any_bytes_as_a_study(there: Path, examples: int) -> None:
    hold(examples, BYTES, check_study)


@EXAMPLES
def test_a_study_with_something_changed(there: Path, examples: int) -> None:
    hold(examples, mutated(STUDY_CONTENT), check_study)


@EXAMPLES
def test_any_bytes_as_an_attack(there: Path, examples: int) -> None:
    hold(examples, BYTES, check_attack)


@EXAMPLES
def test_an_attack_with_something_changed(there: Path, examples: int) -> None:
    hold(examples, st.sampled_from(list(ATTACKS.values())).flatmap(mutated), check_attack)


#: What once ended in a traceback, a message of many screens, or a manifest that could not be written.
FOUND = [
    ("epochs = 3", f"epochs = {'9' * 5000}", "not valid TOML"),
    ("epochs = 3", f"epochs = 0x{'f' * 5000}", r"recipe\.epochs: a whole number must be less than 2\*\*63"),
    ("epochs = 3", f"epochs = {2**31}", r"recipe\.epochs: .*less than or equal to 100000"),
    ("width = 2", "width = 1000000", r"model\.width: .*less than or equal to 1024"),
    ("epochs = 3", f"epochs = {'[' * 5000}{']' * 5000}", "nested too deeply"),
    ("parameters = {steps = 3}", "parameters = {steps = 5000000000}", "steps must be a number above 0 and below"),
    ("parameters = {steps = 3}", "parameters = {relative_step = inf}", "parameters.relative_step: .*finite number"),
    ('rescale = "inverted"', "kappa = nan", r"methods\.1\.options\.kappa: .*finite number"),
    ('rescale = "inverted"', "n_units = 3", "no option 'n_units'"),
    ('rescale = "inverted"', 'generator = "x"', "no option 'generator'"),
    ('description = "A study of seconds"', f"description = [{'1, ' * 9000}]", r"description: .*\.\.\."),
    ('name = "fgsm"', f'name = "{"x/" * 5000}"', r"/x\.\.\./x.*(cannot be read|no such attack file)"),
]


@pytest.mark.parametrize(("old", "new", "says"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_is_refused(old: str, new: str, says: str, there: Path) -> None:
    assert old in STUDY
    check_study(STUDY.replace(old, new))
    result = invoke("plan", "./study.toml")
    assert result.exit_code == 2
    assert re.search(says, result.stderr), result.stderr


def test_titles_are_no_markup(there: Path) -> None:
    Path("study.toml").write_text(STUDY.replace('title = "Small"', 'title = "[/] [red]x"'), encoding="utf-8")
    result = invoke("plan", "./study.toml")
    assert result.exit_code == 0, result.output
    assert "[/] [red]x" in result.output


# --------------------------------------------------------------------------------------------------------------------
# Command lines

#: What may stand for a file or a folder; made by the fixture `furnished`.
PLACES = [
    *("nowhere", "nowhere/x", "file", "file/x", "folder", "empty", "locked", "loop", ".", "..", "/", "", " ", "-"),
    *("study.toml", "./study.toml", "attack.toml", "m.safetensors", "bad.safetensors", "w.pt", "bad.pt", "run", "é"),
    *(
        "x" * 300,
        "a/" * 2000,
        "~nobody-of-that-name",
        "\udcff",
        "\x1b[31m",
        "new.safetensors",
        "a\nb",
        "run/manifest.json",
    ),
]
PLACE = st.sampled_from(PLACES)
WORD = st.sampled_from([text for text in TEXTS if "\0" not in text and len(text) < 400]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30
)
NUMERAL = st.sampled_from(
    [
        "0",
        "1",
        "2",
        "-1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e309",
        "9" * 30,
        "9" * 400,
        "",
        " ",
        "x",
        "0x10",
        "1_0",
        "²",
        "٣",
    ]
)
EPSILONS = st.sampled_from(
    [
        "0.1",
        "0,0.1",
        "0.1,0.2",
        "0.2,0.1",
        ",",
        "0.1,",
        "nan",
        "inf",
        "-0.1",
        "1e999",
        "9" * 400,
        "1e-320",
        "",
        "x",
        "0",
    ]
)
KEYS = [
    *("recipe.epochs", "epochs", "methods", "name", "seeds", "a.b.c", "", ".", "recipe", "recipe.adversarial.eps", "p"),
    *("attacks", "model.width", "title", "eps_unit", "dataset", "test_images", "learning_rate", "rescale", "kappa"),
    *("n_units", "generator", "seed", "width", "dropout", "placement", "normalization", "active"),
]
SETTING = st.tuples(
    st.sampled_from(KEYS),
    st.sampled_from(["=", "=", "=", "", "=="]),
    WORD | NUMERAL | VALUE.map(toml).filter(lambda text: "\0" not in text and len(text) < 2000) | deep(),
).map("".join)
DATASET = st.sampled_from(["fashion-mnist", "cifar10", "folder:folder", "folder:", "folder:é", "folder:\udcff"]) | WORD
STUDIES = st.sampled_from(["study.toml", "quickstart", "attack.toml"]) | PLACE | WORD
MODEL = st.sampled_from(["bad.safetensors", "w.pt", "os:system", "os:", ":", "sys:exit", "math:pi", "model:x"]) | PLACE
DEVICE = st.sampled_from(["cuda", "cuda:0", "cuda:-1", "cuda:99999999999", "meta", "cpu:7", "mps", "", "CPU"]) | WORD
LABEL = st.sampled_from(["a/b", "../x", "..", "", "X", "é", "a--b", "x" * 49]) | WORD
ENGINE = st.sampled_from(["foolbox", "art", "native"]) | WORD
ATTACK = st.sampled_from(["./study.toml", "transfer", "deepfool", "art-autoattack", "square"]) | PLACE | WORD
ADDRESS = st.sampled_from(["auto", "localhost:1", "ray://x:1", ""]) | WORD


@dataclass(frozen=True)
class Option:
    """An argument (without a name), an option or, where nothing is right, a switch."""

    name: str
    right: tuple[str, ...] = ()
    other: st.SearchStrategy[str] = WORD
    needed: bool = False

    def words(self, value: str) -> list[str]:
        if not self.name:
            return [value]
        return [f"{self.name}={value}"] if self.right else [self.name]


OUT = Option("--out", ("new", "empty"), PLACE)
DATA_ROOT = Option("--data-root", ("data-root",), PLACE)
EPS_UNIT = Option("--eps-unit", ("pixel", "normalized"))
SEED = Option("--seed", ("0", "3"), NUMERAL)
BATCH_SIZE = Option("--batch-size", ("8",), NUMERAL)
TEST_IMAGES = Option("--test-images", ("8",), NUMERAL)
EOT_SAMPLES = Option("--eot-samples", ("0",), NUMERAL)
SET_STUDY = Option("--set", ("recipe.epochs=1", "test_images=8"), SETTING)
ON = Option("--device", ("cpu",), DEVICE)
STUDY_OPTIONS = (
    Option("", ("./study.toml",), STUDIES, needed=True),
    *(SET_STUDY, ON, DATA_ROOT, BATCH_SIZE, Option("--only", ("none",), LABEL), Option("--no-audit")),
)
FOREIGN = (
    Option("--weights", ("weights.safetensors",), PLACE),
    Option("--label", ("mine",), LABEL),
    ON,
    SEED,
    DATA_ROOT,
)
RUN = Option("", ("run",), PLACE, needed=True)
COMMANDS: dict[str, tuple[Option, ...]] = {
    "run": (
        *(*STUDY_OPTIONS, OUT, Option("--no-resume"), Option("--jobs", ("1", "2"), NUMERAL)),
        Option("--executor", ("inline", "processes", "ray"), WORD),
        *(Option("--address", ("auto",), ADDRESS), Option("--gpus-per-unit", ("0.5",), NUMERAL)),
    ),
    "plan": (*STUDY_OPTIONS, Option("--out", ("run",), PLACE)),
    "status": (RUN,),
    "train": (
        Option("--dataset", ("quarters",), DATASET, needed=True),
        Option("--dropout", ("none", "fdd-2d", "guided"), WORD, needed=True),
        Option("--epochs", ("1",), NUMERAL, needed=True),
        Option("--out", ("new.safetensors", "folder/x.safetensors"), PLACE, needed=True),
        *(
            Option("--width", ("1",), NUMERAL, needed=True),
            Option("--placement", ("last",)),
            Option("--normalization", ("z-score",)),
        ),
        *(Option("--option", ("rescale=none",), SETTING), Option("--set", ("learning_rate=0.1",), SETTING)),
        *(SEED, ON, DATA_ROOT),
    ),
    "attack": (
        Option("--model", ("m.safetensors",), MODEL, needed=True),
        Option("--dataset", ("quarters",), DATASET, needed=True),
        Option("--out", ("new", "empty"), PLACE, needed=True),
        Option("--linf", ("0.1", "0,0.1,0.2"), EPSILONS, needed=True),
        *(Option("--l2", ("0.5",), EPSILONS), Option("--attack", ("fgsm", "pgd", "attack.toml"), ATTACK), EPS_UNIT),
        *(Option("--engine", ("art", "native"), ENGINE), Option("--protocol", ("strong",)), TEST_IMAGES, EOT_SAMPLES),
        *(BATCH_SIZE, Option("--precision", ("bf16",)), *FOREIGN),
    ),
    "audit": (
        Option("", ("m.safetensors", "m.safetensors", "run"), MODEL, needed=True),
        Option("--dataset", ("quarters",), DATASET, needed=True),
        Option("--linf", ("0.1",), NUMERAL, needed=True),
        *(
            Option("--l2", ("0.5",), NUMERAL),
            EPS_UNIT,
            Option("--sibling", ("m.safetensors",), MODEL),
            OUT,
            TEST_IMAGES,
        ),
        *(Option("--sibling-weights", ("weights.safetensors",), PLACE), Option("--steps", ("5",), NUMERAL)),
        *(Option("--relative-step", ("0.1",), NUMERAL), EOT_SAMPLES, BATCH_SIZE, *FOREIGN),
    ),
    "report": (RUN, Option("", ("run",), PLACE), OUT, DATA_ROOT),
    "compare": (
        RUN,
        Option("", ("run",), PLACE),
        OUT,
        Option("--as", ("cifar10", "fashion-mnist"), DATASET, needed=True),
    ),
    "list": (Option("", ("dropouts", "datasets")),),
}


@st.composite
def command_lines(draw: st.DrawFn, command: str) -> list[str]:
    """A command with its options and some more, nearly all of which are right; or something is missing, or too much."""
    options = COMMANDS[command]
    free = [option for option in options if not option.needed]
    chosen = [option for option in options if option.needed]
    chosen += draw(st.lists(st.sampled_from(free), max_size=3, unique=True)) if free else []
    wrong = draw(st.sampled_from([0, 1, 1, 1, 1, 2]))
    strange = draw(st.permutations(range(len(chosen))))[:wrong]
    line = []
    for position, option in enumerate(chosen):
        right = st.sampled_from(option.right or ("",))
        line += option.words(draw(option.other if position in strange and option.right else right))
    if line and not draw(st.integers(0, 19)):
        del line[draw(st.integers(0, len(line) - 1))]
    if not draw(st.integers(0, 19)):
        line.insert(draw(st.integers(0, len(line))), draw(WORD))
    return [command, *line]


@pytest.fixture(scope="session")
def furniture(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that a path on the command line can lead to."""
    folder = tmp_path_factory.mktemp("furniture")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    shutil.copy(ROOT / "attacks" / "fgsm.toml", folder / "attack.toml")
    save_model(build_model(make_dataset(16, 8), "none", width=1), folder / "m.safetensors", {})
    (folder / "bad.safetensors").write_bytes((folder / "m.safetensors").read_bytes()[:-9])
    (folder / "bad.pt").write_bytes(b"\x80\x02")
    (folder / "w.pt").write_bytes(b"")
    (folder / "file").write_text("x")
    (folder / "folder" / "x").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to("loop")
    shutil.copytree(finished_run, folder / "run")
    return folder


@LINES
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_any_command_line(command: str, furniture: Path, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    def check(line: list[str], right: bool = False) -> None:
        with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
            shutil.copytree(furniture, folder, symlinks=True, dirs_exist_ok=True)
            (Path(folder) / "locked").mkdir(mode=0o000)
            patch.chdir(folder)
            patch.setenv("ROBUSTFDD_DATA", str(Path(folder) / "data-root"))
            worked = is_clear(result := invoke(*line))
            assert worked or not right, result.output

    needed = [word for option in COMMANDS[command] if option.needed for word in option.words(option.right[0])]
    with nothing_is_computed():
        check([command, *needed], right=True)
        hold(examples, command_lines(command), check)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("attack --model m.safetensors --dataset quarters --linf 0.1 --out loop", "error: loop: "),
        (f"attack --model m.safetensors --dataset quarters --linf 0.1 --out {'a/' * 2000}", "a..."),
        (
            "train --dataset quarters --dropout none --epochs 1 --width 100000 --out x.safetensors",
            "train --width: width",
        ),
        ("train --dataset quarters --dropout none --epochs 1 --option seed=3 --out x.safetensors", "no option 'seed'"),
        ("train --dataset quarters --dropout none --epochs 1 --out \udcff.safetensors", "no UTF-8"),
        ("plan ./study.toml --set title=\udcff", "no UTF-8"),
    ],
)
def test_command_lines_that_were_found(
    line: str, says: str, furniture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(furniture, tmp_path / "here", symlinks=True))
    with nothing_is_computed():
        result = invoke(*line.split())
    assert not is_clear(result)
    assert says in result.stderr
