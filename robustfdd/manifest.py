"""The manifest of a run: what was asked for, on what data, with what, on what machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustfdd import plugins, provenance, records
from robustfdd.catalogue import resolve_attacks, sibling
from robustfdd.classifier import weights_digest
from robustfdd.datasets import Dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import RunDirectoryError
from robustfdd.locking import LOCK, NOTE
from robustfdd.models import ResNet18
from robustfdd.specs import AttackSpec, AttackUse, EngineName, EpsUnit, Method, Precision, Protocol, StudySpec
from robustfdd.text import printable
from robustfdd.threat import Norm
from robustfdd.units import AttackUnit, Subject


def _describe_dataset(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "title": dataset.title,
        "sha256": dataset.sha256,
        "n_train": len(dataset.train.labels),
        "n_test": len(dataset.test.labels),
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "mean": dataset.mean,
        "std": dataset.std,
        "source": dataset.source,
    }


def describe_attack(spec: AttackSpec, eps: Mapping[Norm, Sequence[float]], source: str | None = None) -> dict[str, Any]:
    """One attack of a study, with its epsilons in the study's unit, and the method it is crafted on if on another."""
    return {
        "name": spec.name,
        "title": spec.title,
        "reference": spec.reference,
        "deterministic": spec.deterministic,
        "eps": {norm: list(grid) for norm, grid in eps.items()},
        "parameters": dict(spec.parameters),
        "kind": spec.kind,
        "access": spec.access,
        **({"source": source} if source else {}),
        **({"note": spec.note} if spec.note else {}),
        # Left out where it is, as it is of every attack of this package with these parameters.
        **({} if _is_plain_pgd(spec) else {"plain_pgd": False}),
    }


#: The classes whose steps follow the gradient of the cross-entropy and are projected, nothing else.
_PGD = frozenset(
    {
        "PGD",
        "ProjectedGradientDescentPyTorch",
        *("LinfBasicIterativeAttack", "LinfProjectedGradientDescentAttack"),
        *("L2BasicIterativeAttack", "L2ProjectedGradientDescentAttack"),
    }
)


def _is_plain_pgd(spec: AttackSpec) -> bool:
    """Whether an attack with the parameters of PGD is projected ascent on the cross-entropy, which audits audit."""
    spelled = [spelling for norms in spec.engines.values() for spelling in norms.values()]
    if spec.access != "gradient" or set(spec.parameters) != {"steps", "relative_step"}:
        return True
    return all(spelling.class_ in _PGD and spelling.arguments.get("loss", "ce") == "ce" for spelling in spelled)


def _describe_method(method: Method) -> dict[str, Any]:
    spec = DROPOUTS[method.dropout]
    changes = method.recipe.given
    return {
        "label": method.label,
        "title": spec.title if method.label == method.dropout else method.label,
        "dropout": method.dropout,
        "placement": method.placement,
        "options": spec.settings(method.options),
        "eot_samples": method.eot_samples or 0,
        **({"recipe": changes} if changes else {}),
        "variant": {
            "title": spec.title,
            "site": spec.site,
            "strategy": spec.strategy,
            "adaptive": spec.adaptive,
            "dynamic": spec.dynamic,
            "hyperparameters": spec.hyperparameters,
            "cost": spec.cost,
            "source": spec.source,
            "summary": spec.summary,
        },
    }


def describe_study(study: StudySpec, n_classes: int | None = None) -> dict[str, Any]:
    """A study with everything it refers to spelled out, so that a report needs no other file.

    For ``n_classes`` see :func:`robustfdd.catalogue.resolve_attacks`.
    """
    crafted_on = sibling(study)
    return {
        "name": study.name,
        "title": study.title,
        "description": study.description,
        "dataset": study.dataset,
        "eps_unit": study.eps_unit,
        "normalization": study.normalization,
        "protocol": study.protocol,
        "engines": list(study.engines),
        "seeds": list(study.seeds),
        "test_images": study.test_images,
        "methods": [_describe_method(m) for m in study.methods],
        "model": {"architecture": "ResNet-18", **study.model.model_dump()},
        "recipe": study.recipe.model_dump(),
        "attacks": [
            describe_attack(spec, use.eps, crafted_on.label if crafted_on and spec.access == "transfer" else None)
            for use, spec in resolve_attacks(study, n_classes)
        ],
        "open_choices": dict(study.open_choices),
        # Left out where it is the default, so that the manifests of earlier runs still say the same.
        **({"attack_precision": study.attack_precision} if study.attack_precision != "fp32" else {}),
        **({"audit": study.audit.model_dump(exclude_none=True)} if study.audit else {}),
    }


def describe_model(
    model: nn.Module,
    subject: Subject,
    dataset: Dataset,
    attacks: Sequence[tuple[AttackUse, AttackSpec]],
    *,
    engines: Sequence[EngineName],
    eps_unit: EpsUnit,
    test_images: int | None,
    protocol: Protocol,
    source: str | None,
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """The attack on one model that was not trained here, in the form of :func:`describe_study`.

    ``source`` is what a transfer attack is crafted on, in words.
    """
    label = subject.method
    return {
        "name": label,
        "title": f"Robustness of {label}",
        "description": "",
        "dataset": dataset.name,
        "eps_unit": eps_unit,
        # Of a model that is not this package's, it is somewhere in its code.
        "normalization": model.config.normalization if isinstance(model, ResNet18) else None,
        "protocol": protocol,
        "engines": list(engines),
        "seeds": [subject.seed],
        "test_images": test_images,
        "methods": [
            {
                "label": label,
                "title": label,
                "dropout": None,
                "placement": None,
                "options": {},
                "eot_samples": subject.eot_samples,
                "variant": None,
            }
        ],
        "model": {
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "sha256": subject.identity,
            "weights_sha256": weights_digest(model),
        },
        "recipe": None,
        "attacks": [
            describe_attack(spec, use.eps, source if spec.access == "transfer" else None) for use, spec in attacks
        ],
        "open_choices": {},
        **({"attack_precision": precision} if precision != "fp32" else {}),
    }


def _differences(old: object, new: object, at: str = "") -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif old != new:
        yield at


def check_run_directory(run: Path) -> None:
    """Make sure that a run directory can be begun or gone on with there.

    Raises:
        RunDirectoryError: it holds something else.
    """
    if (run / records.MANIFEST).exists() or not run.exists():
        return
    if not run.is_dir() or any(path.name not in (LOCK, NOTE) for path in run.iterdir()):
        raise RunDirectoryError(f"{run}: exists and is no run directory; name an empty or a new one with --out")


def _identity(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of a manifest what must be the same for a run to be the same."""
    hardware = content.get("hardware") or {}
    return {
        "format": content.get("format"),
        "study": content.get("study"),
        "dataset": (content.get("dataset") or {}).get("sha256"),
        "device": str(hardware.get("device")).partition(":")[0],
        # Records of several versions under one manifest would be credited to the first. Of this package what counts is
        # the code of the parts that a result used, which is part of its key; so it is with plug-ins.
        "versions": {
            name: version
            for name, version in (content.get("versions") or {}).items()
            if name not in ("python", "robustfdd", "robustfdd source") and not name.startswith("plug-in ")
        },
    }


def check_same_run(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest found in a run directory, which must be of the same run; None where there is none yet.

    Raises:
        RunDirectoryError: it holds something else.
    """
    check_run_directory(run)
    path = run / records.MANIFEST
    if not path.exists():
        return None
    try:
        found = records.read_manifest(run)
    except RunDirectoryError as error:
        raise RunDirectoryError(f"{error}, or name another directory with --out") from error
    # Through JSON, so that what was written and what would be written are compared in the same form.
    different = list(_differences(_identity(found), json.loads(json.dumps(_identity(manifest)))))
    if different:
        shown = ", ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")
        raise RunDirectoryError(f"{run}: holds another run (different: {shown}); name another directory with --out")
    return found


def open_run(run: Path, manifest: Mapping[str, Any], *, resume: bool) -> None:
    """Begin a run directory, or make sure that the one found holds the same run.

    Raises:
        RunDirectoryError: it holds something else; nothing in it is touched.
    """
    path = run / records.MANIFEST
    found = check_same_run(run, manifest)
    if found is None:
        records.write_json(path, manifest)
        return
    if not resume:
        raise RunDirectoryError(f"{run}: holds this run already; resume it, or name another directory with --out")
    if found["versions"].get("robustfdd source") != manifest["versions"].get("robustfdd source"):
        # Whatever of it is not of this code is about to be computed anew, and other code may plan otherwise.
        renewed = {name: manifest[name] for name in ("units", "versions", "git")}
        records.write_json(path, {**found, **renewed})


def make_manifest(
    study: dict[str, Any],
    dataset: Dataset,
    units: Sequence[AttackUnit],
    *,
    eps_scale: float,
    overrides: Sequence[str],
    command: str | None,
    device: torch.device,
    hardware: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a run that is about to begin.

    Args:
        study: from :func:`describe_study`, or the same form.
        dataset: what is trained and attacked on.
        units: the whole plan.
        eps_scale: pixel epsilon = normalised epsilon times this.
        overrides: what was changed in the study from outside its file.
        command: the command line, if there was one.
        device: where it is computed.
        hardware: the machine that computes; this one when None.
    """
    return {
        "format": records.FORMAT,
        "study": study,
        "overrides": list(overrides),
        "eps_scale": eps_scale,
        "dataset": _describe_dataset(dataset),
        "units": [unit.entry() for unit in units],
        "command": command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": provenance.versions() | plugins.versions(),
        "hardware": provenance.hardware(device) if hardware is None else dict(hardware),
        "git": provenance.git(),
    }


def command_line() -> str:
    """The command that is running, for the manifest."""
    program = Path(sys.argv[0]).name
    # A file name that is not UTF-8 has lone surrogates here, which no JSON file can hold.
    return printable(" ".join(["python -m robustfdd" if program == "__main__.py" else program, *sys.argv[1:]]))
