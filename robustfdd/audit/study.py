"""The audits of all models of a run: those that are missing or stale are made, one failing leaves the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from robustfdd import records
from robustfdd.analysis.run import Note, trained_model
from robustfdd.audit.evidence import AuditedAttack
from robustfdd.audit.run import audit_code, audit_cost, audit_images
from robustfdd.audit.tables import discard_audit, has_audit, write_audit
from robustfdd.code_version import Part
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.errors import CheckpointError, DatasetError, OutOfSpaceError, RunDirectoryError
from robustfdd.models import Checkpoint, check_same_data, load_model, parts_of, read_checkpoint
from robustfdd.progress import Display
from robustfdd.records import Verdict
from robustfdd.sources import Candidate, Origin, origin_of
from robustfdd.specs import AUDITED_IMAGES, is_name, threat_of
from robustfdd.text import shown
from robustfdd.threat import Threat
from robustfdd.units import TestSet, content_digest, failure_of


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
        threat = threat_of(norm, float(eps), study["eps_unit"], scale)
        return AuditPlan(threat, attack, int(wanted.get("images") or AUDITED_IMAGES), scale)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise RunDirectoryError(f"the manifest lacks what an audit needs ({error!r})") from error


@dataclass(frozen=True)
class AuditSubject:
    """One model of a run that is to be audited.

    Attributes:
        method: label of its method.
        seed: of its training run.
        path: its checkpoint.
        eot_samples: passes that the audited attack averages; 0 for a deterministic forward.
        sibling: checkpoint of the network that examples are transferred from; None if there is none.
        key: what its audit depends on.
    """

    method: str
    seed: int
    path: Path
    eot_samples: int
    sibling: Path | None
    key: str

    @property
    def unit(self) -> str:
        """What failures call it."""
        return audit_name(self.method, self.seed)


def audit_name(method: str, seed: int) -> str:
    """What failures call the audit of a model."""
    return f"audit--{method}--seed{seed}"


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

    An audit is stale when it is of another checkpoint, sibling, data set, radius, attack or number of images, or was
    made by other code.

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
    manifest = records.read_manifest(run)
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


def _subjects(run: Path, manifest: Mapping[str, Any], plan: AuditPlan, notes: list[Note]) -> list[AuditSubject]:
    """The models of the study whose audit is missing or stale."""
    try:
        methods = [str(method["label"]) for method in manifest["study"]["methods"]]
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{run}: the manifest lacks what an audit needs ({error!r})") from error
    found = []
    for file in sorted((run / "models").glob("*.json"), key=lambda file: _position(file, methods)):
        model = records.read_model(file)
        try:
            method, seed, path = trained_model(run, model)
        except (KeyError, TypeError, ValueError) as error:
            raise RunDirectoryError(f"{file}: lacks what an audit needs ({error!r})") from error
        if method not in methods:
            continue
        try:
            subject = subject_of(run, manifest, plan, method, seed, path)
        except CheckpointError as error:
            notes.append(Note("skipped", "audit", method, seed, str(error)))
            continue
        if not is_audited(run, subject):
            found.append(subject)
    return found


def sibling_of(study: Mapping[str, Any], method: str, seed: int) -> Origin | None:
    """The network that an audit transfers examples from, which is that of attack ``transfer``.

    Args:
        study: as the manifest describes it.
        method: whose audit it is.
        seed: of its network.

    Raises:
        RunDirectoryError: the description lacks something.
    """
    try:
        origin = origin_of([_candidate(entry) for entry in study["methods"]], list(study["seeds"]), method, seed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(f"the manifest lacks what an audit needs ({error!r})") from error
    if origin is not None and not is_name(origin.method):
        raise RunDirectoryError(f"the manifest has a method {shown(origin.method)}, which is no name")
    return origin


def _candidate(method: Mapping[str, Any]) -> Candidate:
    """A method as the manifest describes it."""
    dynamic = (method.get("variant") or {}).get("dynamic", True)
    drops = dynamic and method.get("dropout") != "none" and (method.get("options") or {}).get("active") != "never"
    return Candidate(
        str(method["label"]),
        str(method.get("dropout")),
        bool(method.get("recipe")),
        bool(method.get("eot_samples")),
        bool(drops),
    )


def subject_of(
    run: Path, manifest: Mapping[str, Any], plan: AuditPlan, method: str, seed: int, path: Path
) -> AuditSubject:
    """A trained model of a run as the subject of an audit.

    Raises:
        CheckpointError: its checkpoint, or that of its sibling, is missing or damaged.
        RunDirectoryError: the manifest lacks something.
    """
    try:
        entry = next(m for m in manifest["study"]["methods"] if m["label"] == method)
        data_sha256 = manifest["dataset"]["sha256"]
    except (KeyError, TypeError, StopIteration) as error:
        raise RunDirectoryError(f"{run}: the manifest lacks what an audit needs ({error!r})") from error
    origin = sibling_of(manifest["study"], method, seed)
    sibling = None if origin is None else run / "models" / f"{origin.model}.safetensors"
    eot_samples = int(entry.get("eot_samples") or 0)
    checkpoint = read_checkpoint(path)
    other = None if sibling is None else read_checkpoint(sibling)
    parts = [part for of in (checkpoint, other) if of is not None for part in _parts(of)]
    depends_on = {
        "code": audit_code(*parts),
        "plan": [asdict(plan.threat), asdict(plan.attack), plan.images, plan.eps_scale],
        "model": [method, seed, checkpoint.sha256, eot_samples],
        "sibling": None if other is None else other.sha256,
        "data": data_sha256,
    }
    return AuditSubject(method, seed, path, eot_samples, sibling, content_digest(depends_on))


def _parts(checkpoint: Checkpoint) -> tuple[Part, ...]:
    """What the code of a checkpoint's network is made of; nothing for one that will be refused when it is loaded."""
    return () if checkpoint.config is None else parts_of(checkpoint.config.dropout)


def is_audited(run: Path, subject: AuditSubject) -> bool:
    """Whether the audit is there, whole and of the same key."""
    return has_audit(run, subject.method, subject.seed, subject.key)


def _position(file: Path, methods: list[str]) -> tuple[int, str]:
    label = file.stem.rpartition("--seed")[0]
    return (methods.index(label) if label in methods else len(methods), file.stem)


def _audit(
    run: Path,
    subject: AuditSubject,
    plan: AuditPlan,
    test: TestSet,
    device: torch.device,
    batch_size: int,
    display: Display,
) -> Note | None:
    """Audit one model and write its tables; None, or what kept it from being audited."""
    try:
        verdict = audit_subject(run, subject, plan, test, device, batch_size, display.advance)
    except OutOfSpaceError:  # the others would fare no better
        raise
    except Exception as error:  # one failing audit must not take the others with it
        failure = failure_of(subject.unit, "audit", subject.method, subject.seed, error)
        records.write_failure(run, failure)
        discard_audit(run, subject.method, subject.seed)
        display.finish(f"FAILED: {failure.error}: {failure.message}")
        message = f"{failure.error}: {failure.message}"
        return Note("failed", "audit", subject.method, subject.seed, message, failure)
    (run / "failures" / f"{subject.unit}.json").unlink(missing_ok=True)
    display.finish(verdict)
    return None


def audit_subject(
    run: Path,
    subject: AuditSubject,
    plan: AuditPlan,
    test: TestSet,
    device: torch.device,
    batch_size: int,
    advance: Callable[[float], None],
) -> Verdict:
    """Audit one model of a run and write its tables.

    Args:
        run: the run directory.
        subject: the model.
        plan: what is audited.
        test: the images, on the device.
        device: where to compute.
        batch_size: images attacked at once.
        advance: called with the cost of each step, for a progress bar.
    """
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
        advance=advance,
    )
    tables = found.frames(plan.eps_scale)
    write_audit(run, tables, method=subject.method, seed=subject.seed, key=subject.key)
    return found.verdict


def _loaded(path: Path, test: TestSet, device: torch.device) -> nn.Module:
    model = load_model(path, device)
    check_same_data(model.config, test.dataset, path)
    return model
