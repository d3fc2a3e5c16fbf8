"""The audits of all models of a run: those that are missing or stale are made, one failing leaves the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from robustfdd import records
from robustfdd.analysis.run import Note
from robustfdd.audit.evidence import AuditedAttack
from robustfdd.audit.run import IMAGES, VERSION, audit_cost, audit_images
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.errors import CheckpointError, DatasetError, RunDirectoryError
from robustfdd.models import check_same_data, load_model, own_config, read_checkpoint
from robustfdd.progress import Display
from robustfdd.specs import pixel_eps
from robustfdd.threat import Threat
from robustfdd.units import TestSet, content_digest, failure_of

TABLES = ("audit_verdict", "audit_indicators", "audit_pictures")


@dataclass(frozen=True)
class AuditPlan:
    """What is audited in a study.

    Attributes:
        threat: norm and radius, in pixel units.
        attack: whose figure is audited.
        images: how many test images are looked at.
        eps_scale: pixel epsilon = normalised epsilon times this.
    """

    threat: Threat
    attack: AuditedAttack
    images: int
    eps_scale: float


def plan_of(manifest: Mapping[str, Any]) -> AuditPlan:
    """The threat, the attack and the images of a study's audit.

    The study's ``[audit]`` says them. What it leaves open: the study's first norm, the radius that most of its attacks
    share in it (the largest of several), and the last of its attacks that takes steps along the gradient, as the
    study's protocol runs it.

    Raises:
        RunDirectoryError: the manifest lacks something.
    """
    try:
        study = manifest["study"]
        wanted = study.get("audit") or {}
        attacks = [attack for attack in study["attacks"] if attack.get("kind", "budget") == "budget"] or study[
            "attacks"
        ]
        norm = wanted.get("norm") or next(iter(attacks[0]["eps"]))
        eps = wanted.get("eps")
        if eps is None:
            radii = [eps for attack in attacks for eps in attack["eps"].get(norm, ()) if eps > 0]
            eps = max(radii, key=lambda radius: (radii.count(radius), radius))
        scale = float(manifest["eps_scale"])
        climbing = [
            attack
            for attack in attacks
            if norm in attack["eps"]
            and "steps" in attack["parameters"]
            and "relative_step" in attack["parameters"]
            and not attack.get("source")
        ]
        attack = AuditedAttack()
        if study["protocol"] == "paper" and climbing:
            chosen = climbing[-1]
            attack = AuditedAttack(
                steps=int(chosen["parameters"]["steps"]),
                relative_step=float(chosen["parameters"]["relative_step"]),
                random_start=not chosen["deterministic"],
                best_iterate=False,
            )
        threat = Threat(norm, pixel_eps(float(eps), study["eps_unit"], scale))
        return AuditPlan(threat, attack, int(wanted.get("images") or IMAGES), scale)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise RunDirectoryError(f"the manifest lacks what an audit needs ({error!r})") from error


@dataclass(frozen=True)
class _Subject:
    """One model of the run that is to be audited."""

    method: str
    seed: int
    path: Path
    eot_samples: int
    sibling: Path | None
    key: str


def audit_run(
    run: Path,
    *,
    data_root: Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 128,
    console: Console | None = None,
    dataset: Dataset | None = None,
) -> list[Note]:
    """Audit the models of a run whose audit is missing or stale.

    An audit is stale when it is of another checkpoint, sibling, data set, version, radius, attack or number of images.

    Args:
        run: the run directory.
        data_root: where data sets lie or are downloaded to; see :func:`robustfdd.load_dataset`.
        device: where to compute.
        batch_size: images attacked at once.
        console: where to show progress; nowhere when None.
        dataset: the run's data set, if it is loaded already.

    Returns:
        What was not audited, and why; empty when everything is there.

    Raises:
        RunDirectoryError: it is no run directory, or its manifest or the JSON file of a model is damaged.
    """
    manifest = records.read_json(run / "manifest.json")
    plan = plan_of(manifest)
    notes: list[Note] = []
    subjects = _subjects(run, manifest, plan, notes)
    if not subjects:
        return notes
    try:
        data = dataset if dataset is not None else load_dataset(manifest["study"]["dataset"], root=data_root)
    except DatasetError as error:
        return [*notes, Note("skipped", "audit", None, None, f"the data set cannot be loaded: {error}")]
    if data.sha256 != manifest["dataset"]["sha256"]:
        return [*notes, Note("skipped", "audit", None, None, "the data set on this machine is not the one of the run")]
    n = min(plan.images, len(data.test.labels))
    test = TestSet.choose(data.to(device), n)
    with Display(len(subjects) * audit_cost(n), console) as display:
        for subject in subjects:
            display.start(f"audit {subject.method} seed {subject.seed}", audit_cost(n))
            note = _audit(run, subject, plan, test, torch.device(device), batch_size, display)
            notes += [note] if note else []
    return notes


def _subjects(run: Path, manifest: Mapping[str, Any], plan: AuditPlan, notes: list[Note]) -> list[_Subject]:
    """The models of the study whose audit is missing or stale."""
    try:
        methods = {method["label"]: method for method in manifest["study"]["methods"]}
        data_sha256 = manifest["dataset"]["sha256"]
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{run}: the manifest lacks what an audit needs ({error!r})") from error
    plain = [label for label, m in methods.items() if m.get("dropout") == "none" and not m.get("recipe")]
    found = []
    for file in sorted((run / "models").glob("*.json"), key=lambda file: _position(file, list(methods))):
        model = records.read_json(file)
        try:
            method, seed, path = str(model["method"]), int(model["seed"]), run / "models" / str(model["checkpoint"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunDirectoryError(f"{file}: lacks what an audit needs ({error!r})") from error
        if method not in methods:
            continue
        sibling = run / "models" / f"{plain[0]}--seed{seed}.safetensors" if plain and method != plain[0] else None
        try:
            identity = read_checkpoint(path).sha256
            sibling_identity = read_checkpoint(sibling).sha256 if sibling is not None else None
        except CheckpointError as error:
            notes.append(Note("skipped", "audit", method, seed, str(error)))
            continue
        eot_samples = int(methods[method].get("eot_samples") or 0)
        depends_on = {
            "version": VERSION,
            "plan": [asdict(plan.threat), asdict(plan.attack), plan.images, plan.eps_scale],
            "model": [method, seed, identity, eot_samples],
            "sibling": sibling_identity,
            "data": data_sha256,
        }
        key = content_digest(depends_on)
        paths = [records.analysis_path(run, table, method, seed) for table in TABLES]
        if not all(records.read_key(table) == key for table in paths[:2]):  # no pictures where nothing was attacked
            found.append(_Subject(method, seed, path, eot_samples, sibling, key))
    return found


def _position(file: Path, methods: list[str]) -> tuple[int, str]:
    label = file.stem.rpartition("--seed")[0]
    return (methods.index(label) if label in methods else len(methods), file.stem)


def _audit(
    run: Path,
    subject: _Subject,
    plan: AuditPlan,
    test: TestSet,
    device: torch.device,
    batch_size: int,
    display: Display,
) -> Note | None:
    """Audit one model and write its tables; None, or what kept it from being audited."""
    unit = f"audit--{subject.method}--seed{subject.seed}"
    try:
        model = _loaded(subject.path, test, device)
        sibling = None if subject.sibling is None else _loaded(subject.sibling, test, device)
        found = audit_images(
            model,
            test,
            plan.threat,
            attack=plan.attack,
            sibling=sibling,
            eot_samples=subject.eot_samples,
            seed=subject.seed,
            batch_size=batch_size,
            advance=display.advance,
        )
    except Exception as error:  # one failing audit must not take the others with it
        failure = failure_of(unit, "audit", subject.method, subject.seed, error)
        records.write_failure(run, failure)
        for table in TABLES:  # what an earlier checkpoint gave is not this one's
            records.analysis_path(run, table, subject.method, subject.seed).unlink(missing_ok=True)
        display.finish(f"FAILED: {failure.error}: {failure.message}")
        message = f"{failure.error}: {failure.message}"
        return Note("failed", "audit", subject.method, subject.seed, message, failure)
    # The verdict last: it is what says that the audit is there.
    for table, frame in reversed(found.frames(plan.eps_scale).items()):
        records.write_analysis(run, table, frame, method=subject.method, seed=subject.seed, key=subject.key)
    (run / "failures" / f"{unit}.json").unlink(missing_ok=True)
    display.finish(found.verdict)
    return None


def _loaded(path: Path, test: TestSet, device: torch.device) -> nn.Module:
    check_same_data(own_config(read_checkpoint(path)), test.dataset, path)
    return load_model(path, device)
