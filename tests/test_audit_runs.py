"""The audits of a whole run and the command line: what is made, what is kept, what a mistake or a failure does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_dataset
from test_cli import invoke
from torch import nn

from robustfdd import records
from robustfdd.audit import AuditedAttack, audit_run
from robustfdd.audit.base import Finding, Line
from robustfdd.audit.evidence import Evidence
from robustfdd.audit.study import plan_of
from robustfdd.datasets import Dataset
from robustfdd.errors import RunDirectoryError
from robustfdd.models import load_model, save_model

METHODS = ("none", "fdd-2d-inverted")


class Counter:
    """The only indicator that there is: counts how often it is asked, and fails where it is told to."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.error: Exception | None = None
        self.fails_on: Callable[[nn.Module], bool] = lambda model: True

    def __call__(self, evidence: Evidence) -> Finding:
        self.asked.append(evidence.threat.eps)
        if self.error is not None and self.fails_on(evidence.model.model):  # within what asks it
            raise self.error
        return Finding("warning", 1.5, "As told.", (0,))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    made = Counter()
    module = sys.modules["robustfdd.audit.run"]
    only = {"noise": module.INDICATORS["noise"].__class__(**{**vars(module.INDICATORS["noise"]), "compute": made})}
    monkeypatch.setattr(module, "INDICATORS", only)
    monkeypatch.setattr(module, "lines", lambda evidence: [Line("unbounded", "as told", [1], [0], "x", "y", "As told")])
    monkeypatch.setattr(Evidence, "worst", property(lambda evidence: evidence.survivors))
    return made


def few_images(run: Path) -> Path:
    """Say in the study that eight images are enough."""
    manifest = records.read_json(run / "manifest.json")
    manifest["study"]["audit"] = {"images": 8}
    records.write_json(run / "manifest.json", manifest)
    return run


def test_every_model_is_audited_once(run: Path, quarters: Dataset, counter: Counter) -> None:
    few_images(run)
    assert audit_run(run, dataset=quarters) == []
    assert len(counter.asked) == 2
    found = records.load_run(run).analyses
    assert sorted(found["audit_verdict"]["method"]) == sorted(METHODS)
    assert set(found["audit_verdict"]["verdict"]) == {"no verdict"}  # eight images are too few for one
    assert set(found["audit_verdict"]["n_images"]) == {8}
    assert audit_run(run, dataset=quarters) == []
    assert len(counter.asked) == 2


def test_another_checkpoint_is_audited_anew(run: Path, quarters: Dataset, counter: Counter) -> None:
    few_images(run)
    audit_run(run, dataset=quarters)
    path = run / "models" / "fdd-2d-inverted--seed0.safetensors"
    model = load_model(path)
    with torch.no_grad():
        model.classifier.bias.add_(0.01)
    save_model(model, path, {})
    audit_run(run, dataset=quarters)
    assert len(counter.asked) == 4
    # Each of the two is what the other's examples are transferred from.
    path = run / "models" / "none--seed0.safetensors"
    model = load_model(path)
    with torch.no_grad():
        model.classifier.bias.add_(0.01)
    save_model(model, path, {})
    audit_run(run, dataset=quarters)
    assert len(counter.asked) == 6


def test_a_failure_leaves_the_others_and_no_number(run: Path, quarters: Dataset, counter: Counter) -> None:
    few_images(run)
    counter.error = RuntimeError("out of memory")
    counter.fails_on = lambda model: model.config.dropout == "none"
    (note,) = audit_run(run, dataset=quarters)
    assert (note.kind, note.method) == ("failed", "none")
    found = records.load_run(run)
    assert list(found.analyses["audit_verdict"]["method"]) == ["fdd-2d-inverted"]
    assert [(f.unit, f.stage, f.message) for f in found.failures] == [("audit--none--seed0", "audit", "out of memory")]
    counter.error = None
    assert audit_run(run, dataset=quarters) == []
    assert records.load_run(run).failures == []


def test_a_damaged_checkpoint_is_named(run: Path, quarters: Dataset, counter: Counter) -> None:
    few_images(run)
    (run / "models" / "fdd-2d-inverted--seed0.safetensors").write_bytes(b"x")
    notes = audit_run(run, dataset=quarters)  # of it, and of the one that its examples are transferred to
    assert [(note.kind, note.method) for note in notes] == [("skipped", "none"), ("skipped", "fdd-2d-inverted")]
    assert all("fdd-2d-inverted--seed0.safetensors" in note.message for note in notes)


def test_other_data_are_not_used(run: Path, counter: Counter) -> None:
    other = make_dataset(n_test=40)
    object.__setattr__(other, "sha256", "1" * 64)
    (note,) = audit_run(few_images(run), dataset=other)
    assert "not the one of the run" in note.message
    assert counter.asked == []


def test_what_is_audited(run: Path) -> None:
    manifest = records.read_json(run / "manifest.json")
    plan = plan_of(manifest)
    # The first norm, and of its radii the largest that most attacks share; there it has no attack with steps.
    assert (plan.threat.norm, plan.threat.eps) == ("linf", pytest.approx(0.8 * manifest["eps_scale"]))
    assert plan.attack == AuditedAttack()
    manifest["study"]["audit"] = {"norm": "l2", "eps": 0.5, "images": 7}
    plan = plan_of(manifest)
    assert (plan.threat.norm, plan.threat.eps) == ("l2", pytest.approx(0.5 * manifest["eps_scale"]))
    assert plan.attack == AuditedAttack(steps=3, relative_step=0.1, random_start=True, best_iterate=False)
    assert plan.images == 7
    manifest["study"]["protocol"] = "strong"
    assert plan_of(manifest).attack == AuditedAttack()
    del manifest["study"]["attacks"]
    with pytest.raises(RunDirectoryError, match="attacks"):
        plan_of(manifest)


@pytest.fixture
def known(quarters: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    for module in ("robustfdd.audit.study", "robustfdd.datasets", "robustfdd.evaluation", "robustfdd.analysis.run"):
        monkeypatch.setattr(sys.modules[module], "load_dataset", lambda name, root=None: quarters)
    return quarters


def test_the_command_on_a_checkpoint(run: Path, known: Dataset, counter: Counter, tmp_path: Path) -> None:
    model = run / "models" / "fdd-2d-inverted--seed0.safetensors"
    arguments = ["audit", model, "--dataset", "quarters", "--linf", 0.05, "--test-images", 10, "--out", tmp_path / "a"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "no verdict" in result.output
    assert (tmp_path / "a" / "report" / "index.html").is_file()
    assert counter.asked == [0.05]
    assert invoke(*arguments).exit_code == 0
    assert counter.asked == [0.05]
    arguments[5] = 0.06
    other = invoke(*arguments)
    assert other.exit_code == 2
    assert "study.audit.eps" in other.output
    verdict = records.load_run(tmp_path / "a").analyses["audit_verdict"].iloc[0]
    assert verdict["eps_pixel"] == 0.05


def test_the_command_on_a_run(run: Path, known: Dataset, counter: Counter) -> None:
    result = invoke("audit", few_images(run))
    assert result.exit_code == 0, result.output
    assert len(counter.asked) == 2
    assert (run / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "--dataset is missing"),
        (["--dataset", "quarters"], "--linf or with --l2"),
        (["--dataset", "quarters", "--linf", 0.1, "--l2", 0.1], "--linf or with --l2"),
        (["--dataset", "quarters", "--linf", -0.1], "at least 0"),
        (["--dataset", "quarters", "--linf", 0], "radius above 0"),
        (["--dataset", "quarters", "--linf", 0.1, "--weights", "w.pt"], "--weights goes with"),
        (["--dataset", "quarters", "--linf", 0.1, "--label", "My model"], "audit: label"),
        (["--dataset", "quarters", "--linf", 0.1, "--sibling", "nothing.safetensors"], "nothing.safetensors"),
        (["--dataset", "quarters", "--linf", 0.1, "--relative-step", -1], "relative"),
    ],
)
def test_mistakes_on_the_command_line(
    run: Path, known: Dataset, tmp_path: Path, extra: list[object], message: str
) -> None:
    model = run / "models" / "none--seed0.safetensors"
    result = invoke("audit", model, *extra, "--out", tmp_path / "a")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not list(tmp_path.glob("a/*"))


def test_a_run_directory_has_its_own_settings(run: Path, known: Dataset) -> None:
    result = invoke("audit", run, "--linf", 0.1)
    assert result.exit_code == 2
    assert "--linf" in result.output


def test_a_model_without_logits_is_named_and_nothing_is_written(
    known: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def probabilities():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1))\n"
    )
    result = invoke("audit", "mine:probabilities", "--dataset", "quarters", "--linf", 0.1, "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "returns probabilities" in result.output
    assert not (tmp_path / "a").exists()


def test_a_run_without_audit_says_so(study_file: Path, known: Dataset, counter: Counter, tmp_path: Path) -> None:
    result = invoke("run", study_file, "--out", tmp_path / "r", "--no-audit")
    assert result.exit_code == 0, result.output
    assert counter.asked == []
    assert "not audited" in result.output
    assert "not audited" in (tmp_path / "r" / "report" / "index.html").read_text(encoding="utf-8").lower()
    again = invoke("run", study_file, "--out", tmp_path / "r")
    assert again.exit_code == 0, again.output
    assert len(counter.asked) == 2
    page = (tmp_path / "r" / "report" / "index.html").read_text(encoding="utf-8").lower()
    assert "no verdict" in page  # of so few images
    json.loads((tmp_path / "r" / "manifest.json").read_text())


def test_networks_of_others_can_be_siblings(known: Dataset, counter: Counter, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    sys.modules.pop("theirs", None)
    common = ["--dataset", "quarters", "--linf", 0.1, "--test-images", 8]
    result = invoke("audit", "theirs:net", *common, "--sibling", "theirs:net", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    manifest = records.read_json(tmp_path / "a" / "manifest.json")
    assert manifest["study"]["audit"]["sibling"] == nn.Sequential.__name__
