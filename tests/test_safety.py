"""Files of others run no code, write nothing outside their place, and their names are only shown."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import pickle
import re
import sys
import tarfile
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_runs
import torch
import torchvision.datasets
from conftest import ROOT, STUDY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from report_runs import FakeRun
from rich.console import Console
from typer.testing import CliRunner, Result

import robustfdd
from robustfdd import catalogue, records
from robustfdd.analysis import analyse_run
from robustfdd.audit import audit_run
from robustfdd.checksums import json_checksum
from robustfdd.cli import app, main
from robustfdd.datasets import Dataset, fashion_mnist, fashion_mnist_mini, load_dataset
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, DatasetError, RobustFDDError, RunDirectoryError
from robustfdd.manifest import command_line
from robustfdd.progress import Display
from robustfdd.records import Failure
from robustfdd.report import write
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.forms import to_csv, to_markdown
from robustfdd.report.latex import to_latex
from robustfdd.report.write import write_report
from robustfdd.text import on_one_screen, printable, shown
from robustfdd.threat import Threat

PACKAGE = ROOT / "robustfdd"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "TERM": "dumb"})


def refused(result: Result, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for part in says:
        assert part in result.output, result.output


# --------------------------------------------------------------------------------------------------------------------
# What the package itself calls


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls of a module by the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {keyword.arg or "**": ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_that_is_read_can_run_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {name.partition(".")[0] for name in imported}
    assert not names & {"pickle", "dill", "cloudpickle", "joblib", "yaml", "marshal", "shelve"}
    for name, call in calls(path):
        assert name not in {"eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp"}
        assert "shell" not in keywords(call)
        if name == "torch.load":
            assert keywords(call).get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert keywords(call).get("allow_pickle") == "False"
        if name.startswith("tempfile."):  # beside the file that it becomes, not where everybody may write
            assert "dir" in keywords(call)
    assert "/tmp" not in path.read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------------
# Weights


class Harmful:
    """What a pickle calls when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """A file that is there once a pickle ran."""
    path = tmp_path / "was-here"
    # That it would work.
    pickle.loads(pickle.dumps(Harmful(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.mark.parametrize("option", ["--weights", "--sibling-weights"])
@pytest.mark.parametrize("form", ["torch", "state", "plain", "old", "renamed"])
@pytest.mark.usefixtures("quarters_registered")
def test_a_pickle_among_weights_is_not_run(option: str, form: str, trace: Path, tmp_path: Path) -> None:
    Path(f"factory_{tmp_path.name.replace('-', '_')}.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    factory = f"factory_{tmp_path.name.replace('-', '_')}:f"
    weights = Path("evil.safetensors" if form == "renamed" else "evil.pt")
    if form in ("plain", "renamed"):
        weights.write_bytes(pickle.dumps(Harmful(trace)))
    else:
        content = {"state_dict": {"1.weight": Harmful(trace)}} if form == "state" else Harmful(trace)
        torch.save(content, weights, _use_new_zipfile_serialization=form != "old")
    common = ("--dataset", "quarters", "--linf", "0.1", "--out", "r")
    if option == "--weights":
        refused(invoke("attack", "--model", factory, option, weights, *common), f"--weights {weights}")
    else:
        line = ("audit", factory, "--sibling", factory, option, weights, *common, "--test-images", "8")
        refused(invoke(*line), f"--weights {weights}")
    assert not Path("r").exists()


@pytest.mark.usefixtures("quarters_registered")
def test_a_checkpoint_is_never_a_pickle(trace: Path) -> None:
    Path("evil.safetensors").write_bytes(pickle.dumps(Harmful(trace)))
    refused(invoke("attack", "--model", "evil.safetensors", "--dataset", "quarters", "--linf", "0.1", "--out", "r"))
    with pytest.raises(RobustFDDError):
        robustfdd.load_model("evil.safetensors")


# --------------------------------------------------------------------------------------------------------------------
# What a file can name

FOOLBOX_LINF = 'class = "LinfFastGradientAttack"\narguments = { random_start = false }'
MODEL = {"n_classes": 3, "image_shape": (1, 8, 8)}  # what is to be attacked
ART_L2 = 'class = "FastGradientMethod"\narguments = { norm = 2, eps = "$eps"'


def attack_file(engine: str, class_name: str, arguments: str = "{}") -> Path:
    text = (ROOT / "attacks" / "fgsm.toml").read_text(encoding="utf-8").partition("[engines.")[0]
    path = Path("attack.toml")
    path.write_text(f"{text}\n[engines.{engine}.linf]\nclass = {json.dumps(class_name)}\narguments = {arguments}\n")
    return path


@pytest.mark.parametrize("engine", ["art", "foolbox", "native"])
@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "os", "system", "builtins.exec", "exec", "eval", "__builtins__", "__import__", "__loader__"),
        *("../../os", "art.attacks.evasion.os.system", "evasion.os", "foolbox.attacks.__builtins__", "FGSM\n"),
        *("importlib", "projected_gradient_descent", "base", "Attack", "EvasionAttack", "type", "object", "module:f"),
        *("PGD.run", "LinfPGD.__init__", "ProjectedGradientDescent.generate", "_PGD", "", " PGD", "np", "torch", "Any"),
    ],
)
def test_an_attack_file_names_attacks_of_the_library_alone(engine: str, name: str) -> None:
    path = attack_file(engine, name)
    with pytest.raises(ConfigurationError, match=r"class") as error:
        get_engine(engine).check(catalogue.load_attack(path), Threat("linf", 0.1), **MODEL)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("engine", ["art", "foolbox"])
def test_a_class_that_is_not_the_librarys_own_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import art.attacks.evasion  # noqa: PLC0415
    import foolbox  # noqa: PLC0415

    library, base = {
        "art": (art.attacks.evasion, art.attacks.evasion.FastGradientMethod),
        "foolbox": (foolbox.attacks, foolbox.attacks.LinfFastGradientAttack),
    }[engine]
    monkeypatch.setattr(library, "Foreign", type("Foreign", (base,), {"__module__": "elsewhere"}), raising=False)
    with pytest.raises(ConfigurationError, match="no attack class 'Foreign'"):
        get_engine(engine).check(catalogue.load_attack(attack_file(engine, "Foreign")), Threat("linf", 0.1), **MODEL)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("relative_step = 1.0", 'relative_step = "1"', "relative_step must be a number, not '1'"),
        ("relative_step = 1.0", "relative_step = true", "relative_step must be a number, not True"),
        ("best_iterate = false", "best_iterate = 0", "best_iterate must be true or false, not 0"),
        ('loss = "ce"', "loss = 3", "loss 3; allowed: ce"),
        ("steps = 1,", 'steps = "1",', "steps must be a whole number from 1, not '1'"),
    ],
)
def test_arguments_of_our_own_attacks_are_of_their_kind(old: str, new: str, says: str) -> None:
    text = (ROOT / "attacks" / "fgsm.toml").read_text(encoding="utf-8")
    assert old in text
    Path("attack.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says):
        get_engine("native").check(catalogue.load_attack(Path("attack.toml")), Threat("linf", 0.1), **MODEL)


@pytest.mark.parametrize(
    ("engine", "name", "option"),
    [("art", "fgsm", "summary_writer"), ("foolbox", "hopskipjump", "tensorboard")],
)
def test_an_attack_file_has_the_library_write_nothing(engine: str, name: str, option: str) -> None:
    text = (ROOT / "attacks" / f"{name}.toml").read_text(encoding="utf-8")
    norm = "linf" if engine == "art" else "l2"
    for value in ('"elsewhere"', "true", '"$none"'):
        changed = text.replace(f"{option} = false", f"{option} = {value}")
        assert changed != text
        Path("attack.toml").write_text(changed, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=f"{option} would write files; allowed: false"):
            get_engine(engine).check(catalogue.load_attack(Path("attack.toml")), Threat(norm, 0.1), **MODEL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('methods = ["none",', 'methods = ["os:system",'),
        ('dropout = "fdd-2d"', 'dropout = "robustfdd.dropouts.density:FeatureDensityDropout"'),
        ('dataset = "quarters"', 'dataset = "os:system"'),
        ('name = "fgsm"', 'name = "os:system"'),
        ('eps_unit = "normalized"', 'eps_unit = "normalized"\nengines = ["os"]'),
        ("[model]", '[model]\nclass = "os:system"'),
        ("[model]", '[model]\nfactory = "os:system"'),
        ("[recipe]", '[recipe]\nschedule = "os:system"'),
    ],
)
@pytest.mark.usefixtures("quarters_registered")
def test_a_study_file_names_no_code(old: str, new: str) -> None:
    Path("s.toml").write_text(STUDY.replace(old, new), encoding="utf-8")
    assert old in STUDY
    refused(invoke("run", "s.toml", "--out", "r"), "s.toml")
    assert not Path("r").exists()


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\\\b", "..", ".hidden", "/etc/x", "c:x", "a\\u0000", "A", "x" * 49, ""]
)
@pytest.mark.parametrize("key", ["name", "label"])
@pytest.mark.usefixtures("quarters_registered")
def test_names_that_become_files_are_names(key: str, name: str) -> None:
    old = {"name": 'name = "small"', "label": 'label = "fdd-2d-inverted"'}[key]
    Path("s.toml").write_text(STUDY.replace(old, f'{key} = "{name}"'), encoding="utf-8")
    refused(invoke("run", "s.toml"), "s.toml", key)
    assert sorted(path.name for path in Path().iterdir()) == ["s.toml"]


# --------------------------------------------------------------------------------------------------------------------
# Data


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The data root, with no network and without Debian's folder."""

    def none(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", none)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    root = tmp_path / "data-root"
    root.mkdir()
    return root


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
@pytest.mark.parametrize("what", ["batches", "meta", "archive"])
def test_pickles_of_cifar_are_read_only_with_their_md5(name: str, what: str, offline: Path, trace: Path) -> None:
    cls = getattr(torchvision.datasets, name)
    names = [file for file, _ in cls.train_list + cls.test_list]
    files = {file: pickle.dumps(Harmful(trace)) for file in [*names, cls.meta["filename"]]}
    if what == "archive":
        with tarfile.open(offline / cls.filename, "w:gz") as archive:
            for file, content in {**files, "../../was-here": b""}.items():
                member = tarfile.TarInfo(f"{cls.base_folder}/{file}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        (offline / cls.base_folder).mkdir()
        for file, content in files.items():
            if (file == cls.meta["filename"]) <= (what == "meta"):
                (offline / cls.base_folder / file).write_bytes(content)
    before = sorted(offline.rglob("*"))
    with pytest.raises(DatasetError, match="wrong MD5 sum"):
        load_dataset(name.lower(), root=offline)
    assert sorted(offline.rglob("*")) == before  # nothing was unpacked


def test_the_names_of_cifars_classes_are_read_only_with_their_md5(
    offline: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = torchvision.datasets.CIFAR10
    (offline / cls.base_folder).mkdir()
    (offline / cls.base_folder / cls.meta["filename"]).write_bytes(pickle.dumps(Harmful(trace)))
    entry = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
    (offline / cls.base_folder / "batch").write_bytes(pickle.dumps(entry))
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(cls, attribute, [["batch", None]])  # as if these had theirs
    with pytest.raises(DatasetError, match="wrong MD5 sum"):
        load_dataset("cifar10", root=offline)


def test_a_foreign_archive_of_fashion_mnist_is_not_unpacked(offline: Path) -> None:
    raw = offline / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in fashion_mnist.SHA256:
        (raw / f"{name}.gz").write_bytes(b"\x1f\x8b not what it should be")
    with pytest.raises(DatasetError, match="MD5"):
        load_dataset("fashion-mnist", root=offline)
    assert {path.suffix for path in raw.iterdir()} == {".gz"}


def test_every_byte_of_the_shipped_data_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = Path(str(fashion_mnist_mini.FILE)).read_bytes()
    damaged = tmp_path / "mini.npz"
    monkeypatch.setattr(fashion_mnist_mini, "FILE", damaged)
    damaged.write_bytes(content)
    load_dataset("fashion-mnist-mini")
    for position in (0, 9, len(content) // 2, len(content) - 1):  # byte 9: a field that no reader looks at
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DatasetError, match="SHA-256"):
            load_dataset("fashion-mnist-mini")


def folder_of_images(name: str | bytes = "light") -> None:
    for split in ("train", "test"):
        for of_class in ("dark", name):
            folder = Path(split) / (
                of_class if isinstance(of_class, str) else of_class.decode("utf-8", "surrogateescape")
            )
            folder.mkdir(parents=True)
            Image.new("L", (8, 8), 60 if of_class == "dark" else 180).save(folder / "0.png")


def test_an_image_that_is_a_program_is_refused() -> None:
    folder_of_images()
    Image.new("L", (8, 8)).save("train/dark/1.png", format="EPS")
    with pytest.raises(DatasetError, match=r"train/dark/1\.png: .*EPS"):
        load_dataset("folder:.")


@pytest.mark.parametrize("name", [b"\xff", b"a\x1b[31m", b"a\nb"])
def test_classes_have_names_that_can_be_written(name: bytes) -> None:
    try:
        folder_of_images(name)
    except OSError:
        pytest.skip("the file system has no such names")
    with pytest.raises(DatasetError, match="control characters"):
        load_dataset("folder:.")


# --------------------------------------------------------------------------------------------------------------------
# Names from files on a page

#: Texts that would do something if they were not escaped.
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</script><script>alert(4)</script>",
    "</style><svg onload=alert(5)>",
    "<!--<script>",
    "]]><a href=javascript:alert(6)>x</a>",
    "{{ 7 * 7 }}{% raw %}",
    r"\input{/etc/passwd}",
    r"\write18{id}\end{table}\catcode`\%=0",
    "^^5cinput{x} ~ $x$ & 50 % # _",
    "a|b | c\\| d\n\n# e\r\n| f |",
    "\x1b[31m\0\x7f\x9b",
    "[x](javascript:alert(7)) ![y](z) `k` *l* <m@n.o>",
    "%{customdata[0]} \u2028 \u202e",
    "=cmd|' /C calc'!A0",
]
TEXTS = st.sampled_from(PAYLOADS) | st.text(max_size=40) | st.text("<>\"'&\\|{}$%#_^~`[]*/ \n", max_size=20)


class Page(HTMLParser):
    """Whatever in a page could do something: tags with their attributes, and scripts."""

    TAGS = frozenset(
        {"html", "head", "meta", "title", "style", "body", "header", "main", "nav", "div", "span", "h1", "h2", "h3"}
        | {"p", "a", "b", "em", "br", "ul", "li", "dl", "dt", "dd", "code", "pre", "details", "summary", "noscript"}
        | {"table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "script"}
    )

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.TAGS
        for name, value in attrs:
            assert re.fullmatch(r"[a-z-]+", name), name
            assert not name.startswith("on")
            if name == "src":
                assert tag == "img"
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value or "")
            if name == "href":
                assert re.fullmatch(r"#[a-z-]+|(tables|figures)/[a-z0-9-]+\.(csv|md|tex|png|pdf)", value or ""), value
            if name in ("id", "class"):
                assert re.fullmatch(r"[a-z0-9 -]*", value or ""), value
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.TAGS
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")


def strings(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for item in content.values() if isinstance(content, dict) else content:
            yield from strings(item)


def assert_inert(page: str) -> Page:
    found = Page(page)
    plotly, figure = found.scripts
    assert "plotly.js" in plotly[:200]
    # As long as there is no "<" in it, nothing in it ends the script.
    assert "<" not in figure
    decoder = json.JSONDecoder()
    position = figure.index(",") + 1
    for _ in range(2):  # what is drawn, and how it is laid out
        position = figure.index("[" if _ == 0 else "{", position)
        content, position = decoder.raw_decode(figure, position)
        for text in strings(content):  # Plotly knows some tags
            assert not re.search(r"<(?!br>)", text.replace("<extra></extra>", "")), text
    return found


def commands(text: str) -> set[str]:
    """The control sequences of LaTeX; what follows a per cent sign is a comment."""
    return set(re.findall(r"\\(?:[A-Za-z]+|[^A-Za-z])", text))


def assert_only_text(latex: str, n_columns: int | None = None) -> None:
    assert latex.isascii()
    assert commands(latex) <= COMMANDS, commands(latex) - COMMANDS
    assert "^^" not in latex
    plain = re.sub(r"\\[^A-Za-z]", "", latex)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    comments = [line for line in plain.splitlines() if "%" in line]
    assert all(line in ("% needs \\usepackage{booktabs}", "  \\makebox[\\linewidth][c]{%") for line in comments)
    rows = plain.partition(r"\midrule")[2].partition(r"\bottomrule")[0].splitlines()
    for row in rows:
        if n_columns and "&" in row:
            assert row.count("&") == n_columns - 1


#: What a table of ours is made of, and what stands for characters of text.
COMMANDS = {
    *(
        r"\begin",
        r"\end",
        r"\centering",
        r"\caption",
        r"\label",
        r"\vspace",
        r"\small",
        r"\footnotesize",
        r"\scriptsize",
    ),
    *(
        r"\setlength",
        r"\tabcolsep",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\linewidth",
        r"\raggedright",
        r"\textbf",
    ),
    *(
        r"\shortstack",
        r"\tabularnewline",
        r"\makebox",
        r"\tiny",
        "\\\\",
        r"\usepackage",
        r"\textbackslash",
        r"\{",
        r"\}",
    ),
    *(
        r"\begin",
        r"\_",
        r"\%",
        r"\&",
        r"\#",
        r"\$",
        r"\textasciitilde",
        r"\textasciicircum",
        r"\textless",
        r"\textgreater",
    ),
    *(
        r"\textbar",
        r"\textendash",
        r"\textemdash",
        r"\pm",
        r"\times",
        r"\cdot",
        r"\dagger",
        r"\ddagger",
        r"\leq",
        r"\geq",
    ),
    *(
        r"\infty",
        r"\varepsilon",
        r"\to",
        r"\surd",
        r"\`",
        r"\'",
        r"\^",
        r"\~",
        r"\=",
        r"\u",
        r"\.",
        '\\"',
        r"\r",
        r"\H",
    ),
    *(r"\v", r"\c", r"\ss", r"\ae", r"\AE", r"\oe", r"\OE", r"\o", r"\O", r"\l", r"\L"),
    *(r"\alpha", r"\beta", r"\gamma", r"\delta", r"\zeta", r"\eta", r"\theta", r"\iota", r"\kappa", r"\lambda", r"\mu"),
    *(
        r"\nu",
        r"\xi",
        r"\pi",
        r"\rho",
        r"\sigma",
        r"\tau",
        r"\upsilon",
        r"\phi",
        r"\chi",
        r"\psi",
        r"\omega",
        r"\Gamma",
    ),
    *(r"\Delta", r"\Theta", r"\Lambda", r"\Xi", r"\Pi", r"\Sigma", r"\Upsilon", r"\Phi", r"\Psi", r"\Omega"),
}


def assert_one_table(markdown: str, n_columns: int) -> None:
    """A Markdown table whose cells hold nothing but text."""
    assert not re.search(r"(?<!\\)(?:\\\\)*[<`\[\]]", markdown)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    for line in table:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == n_columns + 1, line


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.lists(TEXTS, min_size=3, max_size=3), TEXTS, TEXTS, st.booleans())
def test_any_text_in_a_table_is_text(cells: list[str], title: str, caption: str, prose: bool) -> None:
    wrapped = frozenset({0} if prose else ())
    table = Exhibit("x", title, caption, pd.DataFrame(), tuple(cells), (tuple(cells),), 1, prose=wrapped)
    assert_only_text(to_latex(table, label="x"), 3)
    assert_one_table(to_markdown(table), 3)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(TEXTS, st.lists(st.one_of(TEXTS, st.none(), st.integers(-5, 5)), min_size=1, max_size=4), st.lists(st.floats()))
def test_any_text_in_csv_is_read_back_as_it_is_shown(
    name: str, cells: list[str | int | None], figures: list[float]
) -> None:
    figures = (figures + [0.5] * len(cells))[: len(cells)]
    frame = pd.DataFrame({f"n{name}": pd.Series(cells, dtype=object), "figure": figures})
    header, *rows = csv.reader(io.StringIO(to_csv(frame), newline=""))
    assert header == [printable(f"n{name}"), "figure"]
    shown_as = ["" if cell is None else printable(cell) if isinstance(cell, str) else str(cell) for cell in cells]
    assert [row[0] for row in rows] == shown_as
    assert not any(c < " " and c not in "\n\t" for row in rows for c in row[0])
    for row, figure in zip(rows, figures, strict=True):
        assert row[1] == "" if math.isnan(figure) else float(row[1]) == figure


#: Where a run directory holds text: everywhere but in what has a few allowed values.
def hostile(texts: Callable[[], str], folder: Path) -> Path:
    """A run directory of somebody who means no good, written by hand: its checksums are right."""

    def name() -> str:
        """A name that stands in Parquet, which holds Unicode alone, and is there once."""
        return texts().encode(errors="ignore").decode() + str(next(numbers))

    numbers = iter(range(1000))
    methods = [(name(), texts()), (f"../../{name()}", texts()), (name(), texts())]
    attacks = {name(): texts(), f"../x{name()}": texts()}
    norm = name()
    failure = Failure("u", "attack", methods[0][0], 0, texts(), texts(), texts(), next(iter(attacks)), norm, texts())
    variant = dict.fromkeys(("title", "site", "strategy", "hyperparameters", "cost", "source", "summary"), texts())
    run = FakeRun(
        lambda key: (20, 60 - 10 * key.step, 20 + 10 * key.step),
        name=name(),
        title=texts(),
        methods=methods,
        attacks=attacks,
        eps={norm: [0.5], "linf": [0.5]},
        engines=(name(), name()),
        failures=[replace(failure, unit="u0"), replace(failure, unit="u1", stage=texts(), method=texts())],
        variants={methods[0][0]: {**variant, "adaptive": True, "dynamic": True}},
        options={methods[0][0]: {texts(): texts()}},
        manifest={
            "overrides": [texts()],
            "command": texts(),
            "created": texts(),
            "versions": {texts(): texts()},
            "hardware": {texts(): texts(), "device": texts()},
            "git": {"commit": texts(), "dirty": True},
            "dataset": {"name": texts(), "title": texts(), "sha256": texts(), "classes": [texts(), texts()]},
        },
        study={
            "description": texts(),
            "dataset": texts(),
            "protocol": texts(),
            "open_choices": {texts(): texts()},
            "recipe": {texts(): texts()},
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (records, report_runs):
            patch.setattr(module, "write_json", write_ascii)
        return run.write(folder)


def write_ascii(path: Path, content: Mapping[str, object]) -> None:
    """JSON that can hold everything, also what no file of this package has in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "checksum": json_checksum(content)}), encoding="ascii")


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def assert_report_is_inert(top: Path) -> Page:
    """Make the report of ``top/a/b/run``, check that it does nothing, and that nothing else was written."""
    run = top / "a" / "b" / "run"
    before = files_below(top)
    index = write_report(run)
    made = files_below(top) - before
    assert index.relative_to(top) in made
    for path in made:
        assert re.fullmatch(r"a/b/run/report/(index\.html|(tables|figures)/[a-z0-9-]+\.\w+)", path.as_posix()), path
    for path in index.parent.glob("tables/*.tex"):
        assert_only_text(path.read_text(encoding="utf-8"))
    for path in index.parent.glob("tables/*.md"):
        assert not re.search(r"(?<!\\)(?:\\\\)*[<`\[\]]", path.read_text(encoding="utf-8"))
    return assert_inert(index.read_text(encoding="utf-8"))


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures hold no text that a reader of the page obeys, and take long to draw."""
    picture = {"png": b"png", "pdf": b"pdf"}
    for name in ("draw_overview", "draw_panel", "draw_training"):
        monkeypatch.setattr(write, name, lambda *_: picture)
    real = write.all_exhibits
    monkeypatch.setattr(write, "all_exhibits", lambda results: [a for a in real(results) if a.figure is None])


def numbered(payload: str) -> Callable[[], str]:
    """The same text with another number each time."""
    numbers = iter(range(10_000))
    return lambda: f"{payload}{next(numbers)}"


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("part", range(4))
def test_a_report_of_somebody_elses_run_shows_names_and_does_nothing(part: int, tmp_path: Path) -> None:
    payload = " ".join(PAYLOADS[part::4])
    hostile(numbered(payload), tmp_path / "a" / "b" / "run")
    text = "".join(assert_report_is_inert(tmp_path).text)
    assert text.count(payload.replace("\r\n", "\n")) > 20


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    hostile(numbered("\ud800"), tmp_path / "run")
    refused(invoke("report", tmp_path / "run"), "manifest.json", "as a unicode string")


@pytest.mark.faults
@pytest.mark.usefixtures("without_figures")
def test_a_report_of_any_run_does_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def inert(data: st.DataObject) -> None:
        top = tmp_path_factory.mktemp("any")
        hostile(lambda: data.draw(TEXTS), top / "a" / "b" / "run")
        assert_report_is_inert(top)

    inert()


@pytest.mark.filterwarnings("ignore:Glyph .* missing from:UserWarning")
@pytest.mark.faults
@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_names_in_pictures_are_drawn_as_they_are(payload: str, tmp_path: Path) -> None:
    hostile(numbered(payload), tmp_path / "a" / "b" / "run")
    assert_report_is_inert(tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Names from files as parts of paths


@pytest.fixture
def tampered(run: Path) -> Callable[..., None]:
    """Changes what a finished run says of a model, and writes the checksum that goes with it."""

    def tamper(method: str = "none", **changes: object) -> None:
        path = run / "models" / "none--seed0.json"
        records.write_json(path, {**records.read_json(path), "method": method, **changes})
        manifest = records.read_json(run / "manifest.json")
        manifest["study"]["methods"][0]["label"] = method
        records.write_json(run / "manifest.json", manifest)

    return tamper


OUTSIDE = ["../../../up", "/absolute", "a/b", "..", "a\\b", "\0", "x" * 300, "<b>", ""]


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
@pytest.mark.parametrize("key", ["method", "checkpoint"])
@pytest.mark.parametrize("work", [analyse_run, audit_run])
def test_names_in_somebody_elses_run_lead_nowhere(
    work: Callable[..., object],
    key: str,
    name: str,
    run: Path,
    quarters: Dataset,
    tampered: Callable[..., None],
    tmp_path: Path,
) -> None:
    (run.parent / "up.safetensors").write_bytes((run / "models" / "none--seed0.safetensors").read_bytes())
    tampered(**{key: name + ".safetensors" if key == "checkpoint" else name})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        RunDirectoryError,
        match=r"allowed: the name of a \.safetensors file|which is no name|should have at least 1 character",
    ):
        work(run, dataset=quarters)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_sibling_is_named_by_a_name(run: Path, quarters: Dataset) -> None:
    manifest = records.read_json(run / "manifest.json")
    plain = {**manifest["study"]["methods"][0], "label": "../../up"}
    manifest["study"]["methods"].insert(0, plain)
    records.write_json(run / "manifest.json", manifest)
    with pytest.raises(RunDirectoryError, match="which is no name"):
        audit_run(run, dataset=quarters)


# --------------------------------------------------------------------------------------------------------------------
# Text on a terminal

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r"


def assert_steers_nothing(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("command", ["report", "status"])
def test_names_do_not_steer_the_terminal(command: str, tmp_path: Path) -> None:
    folder = hostile(numbered(ESCAPES + "[/]"), tmp_path / "run")
    result = invoke(command, folder)
    assert result.exit_code == 0, result.output
    assert r"\x1b]0;title" in result.output
    assert_steers_nothing(result.output)


@pytest.mark.usefixtures("quarters_registered")
def test_output_that_knows_ascii_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("s.toml").write_text(STUDY.replace('title = "Small"', 'title = "Robustness over ε"'), encoding="utf-8")
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        patch.setattr(sys, "argv", ["robustfdd", "plan", "s.toml"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code in (None, 0)
    streams["stdout"].seek(0)
    assert r"Robustness over \u03b5" in streams["stdout"].read()


def test_a_refusal_does_not_steer_the_terminal() -> None:
    Path("s.toml").write_text(STUDY + f"\n[{json.dumps(ESCAPES)}]\n", encoding="utf-8")
    result = invoke("run", "s.toml")
    refused(result, r"\x1b]0;title")
    assert_steers_nothing(result.output)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_titles_as_they_are(terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=200, color_system=None)
    with Display(2, console) as display:
        for title in (f"[/red] {ESCAPES}", "[bold]x"):
            display.start(title, 1)
            display.finish("[/]" + ESCAPES)
    assert r"[/red] \x1b]0;title" in output.getvalue()
    assert "\x1b]0;" not in output.getvalue()


def test_a_command_line_of_any_bytes_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["robustfdd", "run", "s", "--out", b"r\xff".decode("utf-8", "surrogateescape")])
    records.write_json(tmp_path / "x.json", {"command": command_line()})
    assert records.read_json(tmp_path / "x.json")["command"] == r"robustfdd run s --out r\udcff"


@given(st.text(st.characters(), max_size=50))
def test_printable_text_has_no_control_characters_and_can_be_encoded(text: str) -> None:
    found = printable(text)
    found.encode()
    assert_steers_nothing(found)
    assert len(found) >= len(text)
    if text.isprintable():
        assert found == text


@given(st.text(st.characters(), max_size=3000), st.integers(1, 100))
def test_a_message_fits_a_screen(text: str, times: int) -> None:
    found = on_one_screen("\n".join([text] * times))
    assert len(found.split("\n")) <= 20
    assert all(len(line) <= 300 for line in found.split("\n"))


def test_values_of_any_size_can_be_shown() -> None:
    assert shown("x" * 1000) == "'" + "x" * 86 + "..." + "x" * 29 + "'"
    assert shown([1 << 20_000]) == "a number of thousands of digits"
    assert shown(0.5) == "0.5"
