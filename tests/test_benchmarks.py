"""The benchmark runs end to end, compares like with like, and computes what its tables say. Nothing is timed here."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy import stats

# Last, so that the installed package comes before the one in the checkout.
sys.path.append(str(ROOT))

from benchmarks import sweep as sweep_module
from benchmarks import training as training_module
from benchmarks.__main__ import RESULTS, parser, settings_from
from benchmarks.cases import Case, all_cases
from benchmarks.cluster import METHODS, Size, _summary
from benchmarks.contenders import CONTENDERS, REFERENCE, Bare, Contender, Foolbox, OurNative
from benchmarks.progress import Bar
from benchmarks.run import Settings, benchmark
from benchmarks.statistics import COVERAGE, median_interval, paired_ratio
from benchmarks.subject import Subject, make_subject
from benchmarks.sweep import present, run_sweeps
from benchmarks.tables import Table, cluster_tables, fill_page, number, sweep_tables
from benchmarks.targets import Target, target_table
from benchmarks.usage import Usage, measured
from benchmarks.workers import Job, Worker, WorkerError, take_turns
from robustfdd.catalogue import load_study
from robustfdd.datasets.base import Dataset
from robustfdd.errors import ConfigurationError
from robustfdd.models import build_model
from robustfdd.specs import STRONG_RESTARTS, Recipe
from robustfdd.training import train

FGSM, BIM = (Case(name, "linf", "paper", (0.03, 0.1)) for name in ("fgsm", "bim"))
#: Contenders of the same answer that need no further library.
ALIKE = ["art", "foolbox", "robustfdd-art", "robustfdd-foolbox", "robustfdd-native"]


@pytest.fixture(scope="module")
def subject(quarters: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("subject")
    # Without the benchmark's augmentation: flipped, the classes of this data cannot be told apart.
    recipe = Recipe(epochs=8, batch_size=16, learning_rate=0.1, weight_decay=0)
    model = build_model(quarters, "none", width=4, normalization="zero-one", seed=2)
    return make_subject(
        quarters,
        train(model, quarters, recipe, seed=2, out=folder / "model.safetensors").path,
        folder=folder,
        width=4,
        epochs=0,
        n_images=16,
        batch_size=5,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "bim"])
def test_contenders_of_a_deterministic_attack_agree(attack: str, norm: str, subject: Subject) -> None:
    epsilons = (0.001, 0.1, 0.3) if norm == "linf" else (0.01, 0.5, 1.5)
    case = Case(attack, norm, "paper", epsilons)  # type: ignore[arg-type]
    answers = [CONTENDERS[name](subject).run(case) for name in ALIKE]
    first = answers[0]
    assert first is not None
    assert first.shape == (3, int(subject.correct.sum()))
    assert first[0].any()
    assert not first[-1].all()
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, first)


@pytest.mark.parametrize("name", ["art", "foolbox", "robustfdd-native"])
def test_a_random_start_gives_the_same_answer_twice(name: str, subject: Subject) -> None:
    case = Case("pgd", "linf", "strong", (0.1, 0.2))
    contender = CONTENDERS[name](subject)
    first, second = contender.run(case), contender.run(case)
    np.testing.assert_array_equal(first, second)


def test_the_strong_protocol_takes_longer_steps_from_several_starts() -> None:
    paper, strong = (Case("pgd", "linf", protocol, (0.1,)) for protocol in ("paper", "strong"))
    assert (paper.steps, paper.relative_step, paper.starts) == (10, 0.1, 1)
    assert (strong.steps, strong.relative_step, strong.starts) == (10, 0.25, STRONG_RESTARTS)
    assert Case("bim", "linf", "strong", (0.1,)).starts == 1


@pytest.mark.parametrize(("case", "passes"), [(FGSM, 1 + 2), (BIM, 2 * 10 + 2)])
def test_bare_passes_are_as_many_as_the_sweep_needs(case: Case, passes: int, subject: Subject) -> None:
    bare, calls = Bare(subject), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    bare.prepared.register_forward_hook(count)
    assert bare.run(case) is None
    n_batches = math.ceil(int(subject.correct.sum()) / subject.batch_size)
    assert calls == passes * n_batches


def test_what_is_not_installed_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Foolbox, "needs", ("no_such_module", "pip install it"))
    notes: list[str] = []
    assert [cls.name for cls in present(["art", "foolbox"], notes)] == ["art"]
    assert notes == ["foolbox is left out: it is not installed; pip install it"]


class FakeWorker:
    def __init__(self, name: str, log: list[str], fails_at: int = -1) -> None:
        self.name, self.log, self.fails_at, self.runs = name, log, fails_at, 0

    def run(self, task: object) -> Usage[object]:
        self.log.append(self.name)
        self.runs += 1
        if self.runs == self.fails_at:
            raise WorkerError("Traceback\nValueError: no")
        return Usage(float(self.runs), 0.0, None, task)


def test_workers_take_turns_and_the_warm_up_is_not_counted() -> None:
    log: list[str] = []
    notes: list[str] = []
    workers = {"a": FakeWorker("a", log), "b": FakeWorker("b", log), "c": FakeWorker("c", log, fails_at=2)}
    usages = take_turns(
        workers,  # type: ignore[arg-type]
        dict.fromkeys(workers, 1),
        repeats=2,
        label="x",
        bar=Bar(None),
        notes=notes,
    )
    assert "".join(log) == "abc" + "cba" + "ab"
    assert {name: [u.seconds for u in found] for name, found in usages.items()} == {"a": [2.0, 3.0], "b": [2.0, 3.0]}
    assert notes == ["x: c failed: ValueError: no"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_the_peak_is_what_the_work_allocates_and_not_what_was_there() -> None:
    def work() -> float:
        return float(torch.ones(2**24).sum())  # 64 MiB

    kept = torch.ones(2**24)
    for _ in range(2):
        usage = measured(work, torch.device("cpu"))
        assert usage.result == float(kept.sum())
        assert usage.peak_bytes is not None
        assert 0.9 * 2**26 < usage.peak_bytes < 1.5 * 2**26


@pytest.mark.parametrize("n", [6, 9, 25, 40])
def test_the_interval_of_a_median_is_the_shortest_that_covers_it(n: int) -> None:
    low, high = median_interval(list(np.random.default_rng(0).permutation(n).astype(float)))
    k = int(low) + 1  # the values are their own ranks
    assert high == n - k

    def coverage(k: int) -> float:
        return 1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5))

    assert coverage(k) >= COVERAGE > coverage(k + 1)


def test_few_values_give_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_ratios_are_of_pairs() -> None:
    ratio = paired_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 4.0)


def test_a_target_is_held_against_the_worst_case() -> None:
    found = pd.DataFrame({"where": ["a", "b"], "ratio": [4.0, 2.9], "low": [3.5, 2.0], "high": [5.0, 3.1]})
    row = Target("x", 3.0, at_least=True).judged(found)
    assert (row["measured"], row["worst_case"], row["met"], row["cases_met"]) == (2.9, "b", False, 1)
    assert row["within_interval"] is True
    row = Target("x", 3.0, at_least=False).judged(found)
    assert (row["measured"], row["worst_case"], row["met"], row["within_interval"]) == (4.0, "a", False, False)
    assert Target("x", 2.5, at_least=True).judged(found)["met"] is True


def test_targets_turn_the_ratio_to_the_bare_passes_round() -> None:
    rows = [
        {"case": FGSM.name, "title": FGSM.title, "contender": name, "ratio": r, "ratio_low": r, "ratio_high": r}
        for name, r in ((REFERENCE, 1.0), ("art", 4.0), ("bare", 0.8))
    ]
    table = target_table(pd.DataFrame(rows), None, None).set_index("what")
    assert table.loc[f"{REFERENCE} to the bare passes", "measured"] == pytest.approx(1.25)
    assert table.loc[f"FGSM: art to {REFERENCE}", "measured"] == 4.0
    assert list(table["met"]) == [True, False]
    assert len(table) == 2  # nothing was measured of the others


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (123.456, "123"), (0, "0"), (1.5, "1.50"), (math.nan, "–")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_page_gets_the_tables_there_are(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "a.md").write_text(Table("T", ["x", "y"], [["1", "2"]], "C.").markdown())
    page.write_text(
        "<!-- benchmark cpu/a -->\nold\n<!-- end -->\n<!-- benchmark gpu/a -->\nkept\n<!-- end -->\n"
        "<!-- benchmark cpu/none -->\nkept too\n<!-- end -->\n"
    )
    fill_page(page, tmp_path)
    assert page.read_text() == (
        "<!-- benchmark cpu/a -->\n**T**\n\n| x | y |\n| :--- | ---: |\n| 1 | 2 |\n\nC.\n<!-- end -->\n"
        "<!-- benchmark gpu/a -->\nkept\n<!-- end -->\n<!-- benchmark cpu/none -->\nkept too\n<!-- end -->\n"
    )


def test_the_page_shows_the_committed_results(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    places = re.findall(r"<!-- benchmark ([\w-]+)/(\w+) -->", text)
    assert {name for _, name in places} == {"targets", "sweep", "dropout", "training", "cluster", "hardware"}
    for run, name in places:
        assert (RESULTS / run / f"{name}.md").is_file()
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    fill_page(tmp_path / "page.md", RESULTS)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text


def test_a_cluster_is_compared_with_one_node_round_by_round() -> None:
    rounds = pd.DataFrame(
        {
            "round": [0, 0, 1, 1, 2, 2],
            "nodes": [1, 2, 2, 1, 1, 2],
            "units": 5,
            "seconds": [100.0, 60.0, 50.0, 80.0, 120.0, 66.0],
            "same": [True, True, True, True, True, False],
        }
    )
    found = _summary(rounds).set_index("nodes")
    assert list(found["ratio"]) == [1.0, 0.6]
    assert (found.loc[2, "ratio_low"], found.loc[2, "ratio_high"]) == (0.55, 0.625)
    assert list(found["seconds"]) == [100.0, 60.0]
    assert list(found["same"]) == [True, False]
    (target,) = target_table(None, None, None, found.reset_index()).to_dict("records")
    assert (target["measured"], target["met"]) == (0.6, True)
    assert "NO" in cluster_tables(found.reset_index(), 3)[0].markdown()


def test_the_study_of_the_cluster_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(Size("fashion-mnist-mini", 64, 16, 3).study(), encoding="utf-8")
    study = load_study(tmp_path / "study.toml")
    assert [method.label for method in study.methods] == list(METHODS)
    assert study.recipe.epochs == 3


def test_without_ray_the_cluster_is_left_out(
    quarters: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.run.find_spec", lambda _: None)
    out = benchmark(
        replace(SETTINGS, parts=("cluster",)),
        quarters,
        checkpoint=None,
        device=torch.device("cpu"),
        out=tmp_path / "tiny",
        command="python -m benchmarks",
    )
    (note,) = json.loads((out / "hardware.json").read_text(encoding="utf-8"))["notes"]
    assert "pip install 'robustfdd[ray]'" in note


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--contenders", "arts"], "arts"),
        (["--dropouts", "fdd"], "fdd"),
        (["--cases", "cw-*"], "cw-*"),
    ],
)
def test_an_unknown_name_is_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named.replace("*", r"\*")):
        settings_from(parser().parse_args(arguments), torch.device("cpu"))


def test_options_that_are_left_out_depend_on_quick_and_device() -> None:
    usual = settings_from(parser().parse_args([]), torch.device("cpu"))
    assert usual.cases == tuple(all_cases())
    assert not any("compiled" in name for name in usual.contenders)
    assert "robustfdd-native-compiled" in settings_from(parser().parse_args([]), torch.device("cuda")).contenders
    quick = settings_from(parser().parse_args(["--quick", "--images", "7"]), torch.device("cpu"))
    assert quick.images == 7
    assert {case.norm for case in quick.cases} == {"linf"}


SETTINGS = Settings(
    parts=("sweep", "dropout", "training"),
    cases=(FGSM,),
    contenders=("foolbox", "robustfdd-native", "bare"),
    images=8,
    batch_size=8,
    repeats=1,
    width=2,
    epochs=4,
    dropouts=("original", "fdd-1d"),
    dropout_widths=(2,),
    dropout_batches=(8,),
    dropout_steps=2,
    training_images=32,
    compiled=False,
    threads=1,
    cluster_epochs=1,
)


class WorkerAtHome:
    """A worker that is no process: importing torch in each takes longer than all the rest of a test."""

    def __init__(self, make: Callable[[], Job], *, device: str, threads: int) -> None:
        self.make, self.device = make, torch.device(device)

    def __enter__(self) -> WorkerAtHome:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ready(self) -> float:
        try:
            self.job = self.make()
        except Exception as error:
            raise WorkerError(f"Traceback\n{error}") from error
        return 1.0

    def run(self, task: object) -> Usage[Any]:
        return measured(partial(self.job.run, task), self.device)


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sweep_module, training_module):
        monkeypatch.setattr(module, "Worker", WorkerAtHome)


@pytest.mark.usefixtures("at_home")
def test_the_whole_benchmark_writes_what_it_measured(
    quarters: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "LOADER_WORKERS", (0,))
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark tiny/targets -->\n<!-- end -->\n")
    out = benchmark(
        SETTINGS,
        quarters,
        checkpoint=None,
        device=torch.device("cpu"),
        out=tmp_path / "tiny",
        command="python -m benchmarks",
        page=page,
    )
    for part in ("sweep", "dropout", "training"):
        assert (out / f"{part}.md").read_text(encoding="utf-8").startswith("### ")
        assert (out / f"{part}.png").read_bytes().startswith(b"\x89PNG")
    sweep = pd.read_csv(out / "sweep.csv")
    assert list(sweep["contender"]) == list(SETTINGS.contenders)
    assert float(sweep.set_index("contender").loc[REFERENCE, "ratio"]) == 1.0
    assert (sweep[["seconds", "cpu_seconds", "once_seconds"]] > 0).all(axis=None)
    answers = pd.read_csv(out / "sweep-answers.csv")
    assert len(answers) == 2 * len(FGSM.epsilons)
    assert set(answers["differing"]) == {0}
    by_contender = answers.pivot_table(index="eps", columns="contender", values="robust_accuracy")
    assert list(by_contender["foolbox"]) == list(by_contender[REFERENCE])
    assert len(pd.read_csv(out / "dropout.csv")) == 2
    training = pd.read_csv(out / "training.csv")
    assert set(training["contender"]) == {"robustfdd", "plain-0-workers"}
    assert np.isfinite(training["loss"]).all()
    record = json.loads((out / "hardware.json").read_text(encoding="utf-8"))
    assert record["notes"] == []
    assert record["hardware"]["threads"] == 1
    assert record["command"] == "python -m benchmarks"
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["subject"]["images"] == SETTINGS.images
    targets = pd.read_csv(out / "targets.csv")
    assert f"FGSM: foolbox to {REFERENCE}" in set(targets["what"])
    assert f"| FGSM: foolbox to {REFERENCE} |" in page.read_text()


@pytest.mark.usefixtures("at_home")
def test_a_contender_that_cannot_be_made_is_named_and_the_others_go_on(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(Bare, "__init__", cannot)
    found = run_sweeps(subject, [FGSM], ["bare", "robustfdd-native"], repeats=1, threads=1, bar=Bar(None))
    assert list(found.summary["contender"]) == ["robustfdd-native"]
    assert found.notes == ["bare is left out: no room"]


def test_workers_are_processes_that_give_the_same_answer_and_report_what_fails(subject: Subject) -> None:
    with (
        Worker(partial(OurNative, subject), device="cpu", threads=1) as good,
        Worker(partial(int, "7"), device="cpu", threads=1) as jobless,  # type: ignore[arg-type]
        Worker(partial(int, "x"), device="cpu", threads=1) as unmade,  # type: ignore[arg-type]
    ):
        with pytest.raises(WorkerError, match="invalid literal"):
            unmade.ready()
        with pytest.raises(WorkerError, match="ended"):
            unmade.run(FGSM)
        jobless.ready()
        for _ in range(2):
            with pytest.raises(WorkerError, match="no attribute 'run'"):
                jobless.run(FGSM)
        good.ready()
        np.testing.assert_array_equal(good.run(FGSM).result, OurNative(subject).run(FGSM))


def test_answers_that_differ_are_flagged() -> None:
    key = {"case": "c", "title": "C"}
    times = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_mib": math.nan, "once_seconds": 1.0, "cpu_ratio": 1.0}
    ratio = {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0}
    summary = pd.DataFrame([{**key, "contender": name, **times, **ratio} for name in (REFERENCE, "art")])
    answers = pd.DataFrame(
        [
            {**key, "contender": REFERENCE, "eps": 0.1, "robust_accuracy": 0.5, "differing": 0},
            {**key, "contender": "art", "eps": 0.1, "robust_accuracy": 0.5, "differing": 2},
        ]
    )
    rows = {row[0]: row for row in sweep_tables(summary, answers, 1)[-1].rows}
    assert rows[REFERENCE][-1] == "50.0"
    assert rows["art"][-1] == "50.0 ≠2"


def test_every_contender_has_a_name_of_its_own() -> None:
    assert all(issubclass(cls, Contender) and cls.name == name for name, cls in CONTENDERS.items())
    assert REFERENCE in CONTENDERS
