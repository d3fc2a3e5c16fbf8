"""The audit of one model as a run directory, from which a report is made like any other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from robustfdd import catalogue
from robustfdd.audit.evidence import AuditedAttack
from robustfdd.audit.run import Audit, audit, audit_code, check_radius, clean_of
from robustfdd.audit.tables import has_audit, write_audit
from robustfdd.classifier import device_of
from robustfdd.datasets import Dataset
from robustfdd.identity import function_digest
from robustfdd.manifest import describe_model, make_manifest, open_run
from robustfdd.models import parts_of
from robustfdd.specs import AUDITED_IMAGES, EpsUnit, Method, eps_in
from robustfdd.threat import Threat
from robustfdd.units import Subject, TestSet, content_digest


def audit_model(
    model: nn.Module,
    dataset: Dataset,
    threat: Threat,
    *,
    out: str | Path,
    label: str = "model",
    eps_scale: float = 1.0,
    eps_unit: EpsUnit = "pixel",
    attack: AuditedAttack | None = None,
    sibling: nn.Module | None = None,
    test_images: int = AUDITED_IMAGES,
    eot_samples: int = 0,
    seed: int = 0,
    batch_size: int = 128,
    console: Console | None = None,
    command: str | None = None,
) -> Path:
    """Audit a model and write a run directory, from which :func:`robustfdd.write_report` makes a report.

    Args:
        model: as for :func:`robustfdd.audit`, like all that is not named here.
        dataset: a data set.
        threat: norm and radius, above 0, in pixel units.
        out: the run directory. An audit of the same that is found there is not made again.
        label: what tables call the model.
        eps_scale: pixel epsilon = normalised epsilon times this.
        eps_unit: the unit that the report names first.
        attack: whose figure is audited.
        sibling: a model without the defence.
        test_images: how many test images are looked at.
        eot_samples: passes that the audited attack averages for one gradient of a random model.
        seed: of every random draw.
        batch_size: images attacked at once.
        console: where to show progress; nowhere when None.
        command: the command line, for the manifest.

    Returns:
        The run directory.

    Raises:
        ConfigurationError: the label or the radius is wrong.
        ModelContractError: the model does not keep the contract; nothing is written.
        RunDirectoryError: ``out`` holds another run.
    """
    check_radius(threat)
    catalogue.parse(Method, {"dropout": label}, "audit: label")
    audited = attack or AuditedAttack()
    data = dataset.to(device_of(model))
    test = TestSet.choose(data, min(test_images, len(data.test.labels)))
    identity = function_digest(model, clean_of(model, test, eot_samples, batch_size))
    subject = Subject(label, label, -1, eps_scale, identity, eot_samples)
    study = describe_model(
        model,
        subject,
        data,
        [],
        engines=["native"],
        eps_unit=eps_unit,
        test_images=len(test.index),
        protocol="paper",
        source=None,
    )
    study["title"] = f"Audit of {label}"
    study["audit"] = {
        "norm": threat.norm,
        "eps": eps_in(threat, eps_unit, eps_scale),
        "images": len(test.index),
        "attack": asdict(audited),
        "sibling": None if sibling is None else type(sibling).__name__,
    }
    manifest = make_manifest(
        study, data, [], eps_scale=eps_scale, overrides=[], command=command, device=device_of(model)
    )
    run = Path(out)
    open_run(run, manifest, resume=True)
    networks = [model, *([sibling] if sibling is not None else [])]
    code = audit_code(*(part for network in networks for part in parts_of(network)))
    key = _key(study, code, sibling, test, seed, eot_samples, batch_size)
    if has_audit(run, label, -1, key):
        return run
    found: Audit = audit(
        model,
        data,
        threat,
        attack=audited,
        sibling=sibling,
        test_images=test_images,
        eot_samples=eot_samples,
        seed=seed,
        batch_size=batch_size,
        console=console,
    )
    write_audit(run, found.frames(eps_scale), method=label, seed=-1, key=key)
    return run


def _key(
    study: dict[str, Any],
    code: str,
    sibling: nn.Module | None,
    test: TestSet,
    seed: int,
    eot_samples: int,
    batch_size: int,
) -> str:
    """A hash of everything that the audit depends on."""
    content = {
        "code": code,
        "study": study,
        "sibling": None
        if sibling is None
        else function_digest(sibling, clean_of(sibling, test, eot_samples=0, batch_size=batch_size)),
        "data": test.dataset.sha256,
        "seed": seed,
        "eot_samples": eot_samples,
    }
    return content_digest(content)
