"""The reports that come with the code: made from the records beside them, by the code as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from archive_run import without_folders
from conftest import ROOT
from fill_tables import filled

from robustfdd.paper.exhibits import claims, table1, table2, table3
from robustfdd.records import load_run
from robustfdd.report import combine
from robustfdd.report.exhibits import audit, minimum_norm, random_forward, worst_case_advantage
from robustfdd.report.forms import to_markdown
from robustfdd.report.results import Results, sort_results
from robustfdd.report.tables import main_tables

REPORTS = sorted(path.parent for path in (ROOT / "evaluations" / "reports").glob("*/records"))
PAGES = [
    ROOT / "evaluations" / "reports" / "fashion-mnist-slim" / "README.md",
    ROOT / "evaluations" / "reports" / "fashion-mnist-worst-case" / "README.md",
    ROOT / "docs" / "fdd-switches.md",
]


def results_of(report: Path) -> Results:
    return sort_results(combine([load_run(path) for path in sorted((report / "records").iterdir())]))


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.name)
def test_tables_are_those_of_the_records(report: Path) -> None:
    results = results_of(report)
    modules = (claims, table1, table2, table3, random_forward, worst_case_advantage, minimum_norm, audit)
    found = [artefact for module in modules for artefact in module.build(results)]
    tables = {exhibit.name: exhibit for exhibit in [*main_tables(results), *found] if exhibit.headers}
    assert {"claims", "table2-clean-accuracy", "robust-accuracy-linf"} <= set(tables)
    for name, exhibit in tables.items():
        assert (report / "report" / "tables" / f"{name}.md").read_text(encoding="utf-8") == to_markdown(exhibit)


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: path.name)
def test_nothing_failed_and_nothing_is_missing(report: Path) -> None:
    results = results_of(report)
    assert results.run.failures == []
    assert not any(state.missing for state in results.unit_states())
    assert results.unplanned == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_show_the_tables_as_they_are(page: Path) -> None:
    assert filled(page) == page.read_text(encoding="utf-8")


def test_an_archived_command_names_no_folders() -> None:
    short = without_folders
    assert short("robustfdd run /a/b/study.toml --set seeds=[0] --out /c/d e/f") == (
        "robustfdd run study.toml --set seeds=[0] --out d e/f"
    )
    assert short("robustfdd run x --data-root=/a/b") == "robustfdd run x --data-root=b"
