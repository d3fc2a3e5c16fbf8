"""RobustFDD: the adversarial robustness of dropout-regularised image classifiers.

>>> import torch, robustfdd
>>> model = robustfdd.build_model("fashion-mnist-mini", "fdd-2d", width=8)
>>> x, y = torch.rand(2, 1, 28, 28), torch.tensor([3, 5])
>>> threat = robustfdd.Threat("linf", 8 / 255)
>>> x_adv = robustfdd.attack(model, x, y, "pgd", threat, engine="foolbox")
>>> bool(threat.within(x, x_adv).all())
True
"""

from __future__ import annotations

__version__ = "0.1.0"

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustfdd.audit import Audit, AuditedAttack, audit
    from robustfdd.catalogue import load_attack, load_study
    from robustfdd.datasets import Dataset, load_dataset
    from robustfdd.dropouts import (
        FeatureDensityDropout,
        OriginalDropout,
        SpatialDropout,
        build_dropout,
        feature_density,
    )
    from robustfdd.engines import get_engine
    from robustfdd.errors import (
        CheckpointError,
        ConfigurationError,
        DatasetError,
        EngineError,
        ModelContractError,
        RobustFDDError,
        RunDirectoryError,
        TrainingError,
        UnitError,
    )
    from robustfdd.evaluation import evaluate, run_evaluation
    from robustfdd.measure import attack
    from robustfdd.models import Checkpoint, build_model, load_model
    from robustfdd.records import Outcome, load_run
    from robustfdd.report import write_report
    from robustfdd.specs import AttackSpec, Recipe, StudySpec
    from robustfdd.threat import Threat
    from robustfdd.training import train

__all__ = [
    "AttackSpec",
    "Audit",
    "AuditedAttack",
    "Checkpoint",
    "CheckpointError",
    "ConfigurationError",
    "Dataset",
    "DatasetError",
    "EngineError",
    "FeatureDensityDropout",
    "ModelContractError",
    "OriginalDropout",
    "Outcome",
    "Recipe",
    "RobustFDDError",
    "RunDirectoryError",
    "SpatialDropout",
    "StudySpec",
    "Threat",
    "TrainingError",
    "UnitError",
    "attack",
    "audit",
    "build_dropout",
    "build_model",
    "evaluate",
    "feature_density",
    "get_engine",
    "load_attack",
    "load_dataset",
    "load_model",
    "load_run",
    "load_study",
    "run_evaluation",
    "train",
    "write_report",
]

#: Where the names are from, which are imported when they are first asked for: torch and its kin take seconds.
_HOMES = {
    "audit": "Audit AuditedAttack audit",
    "catalogue": "load_attack load_study",
    "datasets": "Dataset load_dataset",
    "dropouts": "FeatureDensityDropout OriginalDropout SpatialDropout build_dropout feature_density",
    "engines": "get_engine",
    "errors": "CheckpointError ConfigurationError DatasetError EngineError "
    "ModelContractError RobustFDDError RunDirectoryError TrainingError UnitError",
    "evaluation": "evaluate run_evaluation",
    "measure": "attack",
    "models": "Checkpoint build_model load_model",
    "records": "Outcome load_run",
    "report": "write_report",
    "specs": "AttackSpec Recipe StudySpec",
    "threat": "Threat",
    "training": "train",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name != "audit":
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package, in which the function ``audit`` is not replaced when the part of the same name is imported."""

    @property
    def audit(self) -> Any:
        return __getattr__("audit")

    @audit.setter
    def audit(self, part: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
