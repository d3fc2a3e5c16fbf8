"""The files of the report: escaping, LaTeX that compiles, a page that loads nothing, the same bytes every time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import plotly.graph_objects as go
import pytest
from report_runs import FakeRun, Key

from robustfdd.errors import ConfigurationError, RunDirectoryError
from robustfdd.paper.exhibits import table2
from robustfdd.records import Failure, load_run
from robustfdd.report import write_report
from robustfdd.report.curves import interactive_figure, panels
from robustfdd.report.latex import escape, to_latex
from robustfdd.report.results import sort_results
from robustfdd.report.tables import main_tables

NASTY = r"a_b%c&d#e$f~g^h\i{j}k<script>alert(1)</script>|[l]*m`n`é κ--o"
PLAIN_LABEL = "fdd-2d"
FAILURE = Failure(
    "u0002",
    "attack",
    "_hidden",
    0,
    "EngineError",
    "3 images <b>outside</b> the budget",
    "Traceback:\n  <script>alert(2)</script>",
    "fgsm",
    "linf",
    "foolbox",
)

TRAINING_FAILURE = Failure("train-x", "train", PLAIN_LABEL, 7, "FloatingPointError", "the loss is NaN", "at epoch 2")


def counts(key: Key) -> tuple[int, int, int] | None:
    if key.method == "_hidden":
        return None
    if key.step == 0:
        return (100, 900, 0)
    survivors = 600 if key.method == NASTY else 500
    return (100, survivors - 10 * (key.engine == "art"), 900 - survivors + 10 * (key.engine == "art"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = FakeRun(
        counts,
        name=f"toy {NASTY}",
        title=f"Title {NASTY}",
        methods=[(NASTY, NASTY), ("_hidden", "_hidden title"), (PLAIN_LABEL, "FDD-2D")],
        engines=("foolbox", "art"),
        eps={"linf": [0.5]},
        failures=[FAILURE, TRAINING_FAILURE],
        manifest={"overrides": [f"recipe.note={NASTY}"]},
        study={"description": NASTY, "open_choices": {"recipe.epochs": "because & why"}},
    )
    return run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Path:
    index = write_report(run_dir)
    assert index == run_dir / "report" / "index.html"
    return index.parent


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load, link and show."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.hrefs: list[str] = []
        self.loaded: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not any(name.startswith("on") for name in values)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "br":
            self.texts.append("\n")
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        self.loaded += [values[name] or "" for name in ("src", "srcset", "data", "poster") if name in values]
        if "id" in values:
            self.ids.append(values["id"] or "")
        if tag == "a":
            self.hrefs.append(values["href"] or "")
        if tag == "script":
            self.scripts.append("")
            assert "src" not in values
        if "style" in values:
            self.styles.append(values["style"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))


def test_page_loads_nothing_from_anywhere(page: Page) -> None:
    assert page.loaded
    assert all(address.startswith("data:image/png;base64,") for address in page.loaded)
    assert not any(word in style for style in page.styles for word in ("url(", "@import", "http"))
    # The first script is plotly.js, which names addresses for map tiles that it loads only for maps.
    plotlyjs, *own = page.scripts
    assert "plotly.js v" in plotlyjs[:200]
    assert len(own) == 1
    assert "http" not in own[0]
    assert all(trace in ("scatter",) for trace in re.findall(r'"type": "(\w+)", "x"', own[0]))


def test_page_links_lead_somewhere(page: Page, report: Path) -> None:
    assert len(page.ids) == len(set(page.ids))
    files = set()
    for href in page.hrefs:
        if href.startswith("#"):
            assert href[1:] in page.ids
        else:
            assert (report / unquote(href)).is_file(), href
            files.add(href)
    written = {path.relative_to(report).as_posix() for path in report.rglob("*.*") if path.is_file()}
    assert written - files == {"index.html"}
    assert {Path(name).suffix for name in files} == {".csv", ".md", ".tex", ".png", ".pdf"}


def test_page_shows_names_and_messages_as_they_are(page: Page, report: Path) -> None:
    text = "".join(page.texts)
    assert text.count(f"Title {NASTY}") == 2
    assert f"recipe.note={NASTY}" in text
    assert FAILURE.message in text
    assert FAILURE.traceback in text
    failed = " ".join(text.split())
    assert "EngineError in the attack: _hidden title, seed 0, FGSM, L∞, foolbox 3 images <b>outside" in failed
    assert "FloatingPointError in training: FDD-2D, seed 7 the loss is NaN" in failed
    assert "because & why" in text
    assert "alert(" not in "".join(page.scripts[1:]).replace(r"\u003cscript\u003ealert(", "").replace(
        r"\u0026lt;script\u0026gt;alert(", ""
    )
    raw = (report / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "<pre>Traceback:" in raw


def test_page_says_what_is_in_doubt(page: Page) -> None:
    text = " ".join("".join(page.texts).split())
    assert "Warning: foolbox and art disagree on FGSM, L∞." in text
    assert "in 2 of 2 cells robust accuracy differs by more than 0.5 points" in text
    assert "Widest: −1.00 points (art minus foolbox)" in text
    assert "on 1,000 images (one image is 0.1 points)" in text
    assert "Warning: 2 units failed." in text
    assert "Note: One training seed." in text
    assert "DIFFERS (2)" in text
    for provenance in ("robustfdd run toy", "0123456789abcdef", "ab" * 32, "2024-05-06T07:08:09+00:00"):
        assert provenance in text


def test_markdown_escapes_names(report: Path) -> None:
    text = (report / "tables" / "robust-accuracy-linf.md").read_text(encoding="utf-8")
    header, align, clean, fgsm, worst = text.splitlines()[-5:]
    name = re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", NASTY)
    assert header == f"| Attack | ε (normalised) | ε (pixel) | {name} | \\_hidden title | FDD-2D |"
    assert align == "| :-- | --: | --: | --: | --: | --: |"
    assert clean == "| Clean | 0 | 0 | 90.0 | – | 90.0 |"
    assert fgsm == "| FGSM | 0.5 | 0.125 | **60.0** | – | 50.0 |"
    # Through the other engine one image in a hundred more is broken, and it is another one.
    assert worst == "| Worst case | 0.5 | 0.125 | **59.0** | – | 49.0 |"


def test_csv_files_hold_the_raw_figures(report: Path, run_dir: Path) -> None:
    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(StringIO((report / "tables" / name).read_text(encoding="utf-8")))

    wide = read("robust-accuracy-linf.csv")
    assert list(wide.columns) == ["attack", "norm", "eps_normalized", "eps_pixel", NASTY, "_hidden", PLAIN_LABEL]
    assert wide[NASTY].tolist() == [90.0, 60.0, 59.0]
    assert wide["_hidden"].isna().all()
    long = read("results.csv")
    assert len(long) == len(load_run(run_dir).cells) == 8
    row = long[(long["method"] == PLAIN_LABEL) & (long["engine"] == "art") & (long["eps_pixel"] > 0)].iloc[0]
    assert row[["seed", "eps_normalized", "eps_pixel", "n_images", "n_attacked", "n_broken"]].tolist() == [
        *(0, 0.5, 0.125, 1000, 900, 410),
    ]
    assert row["robust_accuracy"] == 0.49
    assert row["survival_rate"] == pytest.approx(490 / 900)
    agreement = read("agreement.csv")
    assert agreement["difference_points"].tolist() == [-1.0, -1.0]
    assert agreement["flagged"].tolist() == [True, True]
    assert read("training.csv")["seconds"].tolist() == [100.0, 110.0, 120.0]


def test_figures_are_sharp_and_their_fonts_embedded(report: Path) -> None:
    names = sorted(path.name for path in (report / "figures").iterdir())
    stems = ("overview", "robust-accuracy-fgsm-linf", "robust-accuracy-worst-case-linf", "training")
    assert names == [f"{stem}.{extension}" for stem in stems for extension in ("pdf", "png")]
    for path in (report / "figures").glob("*.png"):
        header = path.read_bytes()[:33]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(header[16:20], "big") >= 150 * 5  # at least 5 inches wide, at 150 dots an inch
    for path in (report / "figures").glob("*.pdf"):
        content = path.read_bytes()
        assert b"/FontFile2" in content  # TrueType, embedded
        assert b"/Type3" not in content
        assert b"/CreationDate" not in content


def test_the_same_records_give_the_same_bytes(run_dir: Path, report: Path, tmp_path: Path) -> None:
    """In another process, from another path and with another order of hashes."""
    copy = shutil.copytree(run_dir, tmp_path / "moved", ignore=shutil.ignore_patterns("report"))
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from robustfdd.report import write_report; write_report(sys.argv[1])",
            copy,
        ],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    first, second = contents(report), contents(copy / "report")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def document(report: Path, body: str) -> str:
    return "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + body + "\n\\end{document}\n"


@pytest.fixture
def pdflatex() -> str:
    found = shutil.which("pdflatex")
    if found is None:
        pytest.skip("pdflatex is not installed")
    return found


def test_latex_compiles_with_booktabs_alone(pdflatex: str, report: Path, tmp_path: Path) -> None:
    tables = sorted((report / "tables").glob("*.tex"))
    assert len(tables) == 5
    # Every character that a name may well hold, at the start of a row and twice in a row.
    names = [chr(code) for code in (*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x391, 0x3CA), 0x4E2D)]
    rows = "".join(f"{escape(name)} & {escape(f'{name}{name}')} \\\\\n" for name in names)
    body = "".join(path.read_text(encoding="ascii") for path in tables)
    body += f"\\begin{{itemize}}\\item\n{escape(''.join(names))}\n\\end{{itemize}}\n"
    body += f"\\clearpage\\begin{{tabular}}{{ll}}\n{rows[: len(rows) // 2]}\\end{{tabular}}\n"
    (tmp_path / "report.tex").write_text(document(report, body), encoding="ascii")
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_latex_tables_carry_caption_label_and_marks(report: Path) -> None:
    text = (report / "tables" / "robust-accuracy-linf.tex").read_text(encoding="ascii")
    assert r"\label{tab:robust-accuracy-linf}" in text
    assert r"\caption{Robust accuracy (\%), $L_\infty$. Toy images; 1,000 test images" in text
    assert r"FGSM & 0.5 & 0.125 & \textbf{60.0} & \textendash{} & 50.0 \\" in text
    # Words of a header stand one below the other, and are smaller where they are too long for the line.
    assert (
        r"\shortstack[r]{\tiny a\_b\%c\&d\#e\$f\textasciitilde{}g\textasciicircum{}h\textbackslash{}i\{j\}k"
        r"\textless{}script\textgreater{}alert(1)\textless{}/script"
        r"\textgreater{}\textbar{}{[}l{]}{*}m{`}n{`}\'{e} \\ \tiny $\kappa$-{}-o}"
    ) in text


def test_wide_tables_fit_a_plain_article(pdflatex: str, tmp_path: Path) -> None:
    """Eleven methods with their spread over seeds beside two columns of radii."""
    titles = ("Non-dropout", "Original", "Biased", "Spatial", "Crossmap", "Guided (DR)", "SAP", "Jumpout")
    run = FakeRun(
        lambda key: (790, 9210 - 123 * key.step - key.seed, 123 * key.step + key.seed),
        methods=[(title.lower(), title) for title in (*titles, "FDD-1D", "FDD-2D", "FDD-3D")],
        attacks={"fgsm": "FGSM", "bim": "BIM", "pgd": "PGD"},
        eps={"linf": [0.03, 0.06, 0.12]},
        seeds=(0, 1),
        epochs=1,
    )
    results = sort_results(load_run(run.write(tmp_path)))
    found = [*main_tables(results), *table2.build(results)]
    assert len(found) == 2
    assert "90.86 ± 0.01" in found[0].rows[1]
    body = "".join(to_latex(exhibit, label=exhibit.name) for exhibit in found)
    (tmp_path / "wide.tex").write_text(document(tmp_path, body), encoding="ascii")
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "wide.tex"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "Overfull" not in done.stdout
    assert "too large" not in done.stdout


def test_interactive_figure_is_valid_and_keeps_gaps(run_dir: Path, tmp_path: Path) -> None:
    nan = FakeRun(
        lambda key: None if key == Key("none", 0, "pgd", "linf", "foolbox", 1) else (0, 10 - key.step, key.step),
        attacks={"fgsm": "FGSM", "pgd": "PGD"},
    ).write(tmp_path)
    figure = interactive_figure(panels(sort_results(load_run(nan))), seeds=1, decimals=0)
    go.Figure(figure)  # Plotly checks every key and value
    curve, gap = [100.0, 90.0, 80.0], [100.0, None, None]
    # Two curves, then the thin lines of their worst cases, which belong to the same entries of the legend.
    assert [trace["y"] for trace in figure["data"]] == [curve, curve, gap, curve]
    assert [trace["legendgroup"] for trace in figure["data"]] == ["0", "1", "0", "1"]
    assert [trace.get("showlegend", True) for trace in figure["data"]] == [True, True, False, False]
    fgsm, pgd, worst = figure["layout"]["updatemenus"][0]["buttons"]
    assert (fgsm["label"], pgd["label"], worst["label"]) == ("FGSM, L∞", "PGD, L∞", "Worst case, L∞")
    assert pgd["args"][0]["y"] == [[100.0, None, 80.0], curve, gap, curve]
    assert worst["args"][0]["y"] == [gap, curve, [], []]
    assert pgd["args"][0]["customdata"][0][1] == ["0.5 normalised, 0.125 pixel", "–", "–"]
    assert pgd["args"][1]["title.text"] == "PGD, L∞"
    for button in (pgd, worst):
        go.Figure(figure).update(data=[{"x": x} for x in button["args"][0]["x"]], layout=button["args"][1])


def test_several_runs_share_one_page_and_its_tables(tmp_path: Path) -> None:
    paths = [
        FakeRun(
            lambda key: (0, 100, 0) if key.step == 0 else (0, 80 - 10 * key.seed, 20 + 10 * key.seed),
            methods=[("none", "None")],
            eps={"linf": [0.5]},
            seeds=(seed,),
            first_unit=10 * seed,
            manifest={"command": f"run the seed {seed}", "overrides": [f"seeds=[{seed}]"]},
        ).write(tmp_path / f"seed{seed}")
        for seed in (0, 1)
    ]
    index = write_report(paths, out=tmp_path / "out")
    page = Page(index.read_text(encoding="utf-8"))
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    frame = pd.read_csv(tmp_path / "out" / "tables" / "robust-accuracy-linf.csv")
    assert frame["none"].tolist() == [100.0, 75.0, 75.0]
    assert frame["none seeds"].tolist() == [2, 2, 2]
    text = "".join(page.texts)
    for words in ("run the seed 0", "run the seed 1", "seed0: seeds=[0]", "seed1: seeds=[1]", "75 ± 7"):
        assert words in text
    assert "One training seed" not in text


def test_a_run_without_results_still_has_a_report(tmp_path: Path) -> None:
    index = write_report(FakeRun(lambda key: None, models=False).write(tmp_path / "run"), out=tmp_path / "out")
    page = Page(index.read_text(encoding="utf-8"))
    text = " ".join("".join(page.texts).split())
    assert "There are no results yet" in text
    assert "2 of 2 units not run" in text
    assert page.scripts == []
    assert not (tmp_path / "out" / "figures").exists()


def test_by_default_the_report_goes_into_the_first_run(tmp_path: Path) -> None:
    paths = [
        FakeRun(lambda key: None, models=False, seeds=(seed,)).write(tmp_path / name)
        for seed, name in enumerate(("one", "two"))
    ]
    assert write_report(paths) == tmp_path / "one" / "report" / "index.html"
    assert not (tmp_path / "two" / "report").exists()


def test_the_folder_of_the_run_is_checked(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no manifest\.json"):
        write_report(tmp_path)
    with pytest.raises(ConfigurationError, match="at least one"):
        write_report([])
