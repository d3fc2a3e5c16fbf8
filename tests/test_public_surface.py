"""The exported names are decided, not accidental."""

from __future__ import annotations

import doctest
import subprocess
import sys

import robustfdd

EXPECTED = {
    *("AttackSpec", "Checkpoint", "Dataset", "FeatureDensityDropout", "OriginalDropout", "Outcome", "Recipe"),
    *(
        "SpatialDropout",
        "StudySpec",
        "Threat",
        "Audit",
        "AuditedAttack",
        "attack",
        "audit",
        "build_dropout",
        "build_model",
        "evaluate",
    ),
    *("feature_density", "get_engine", "load_attack", "load_dataset", "load_model", "load_run", "load_study"),
    *("run_evaluation", "train", "write_report"),
    *("RobustFDDError", "ConfigurationError", "DatasetError", "CheckpointError", "ModelContractError"),
    *("RunDirectoryError", "UnitError", "TrainingError", "EngineError"),
}


def test_exported_names() -> None:
    assert set(robustfdd.__all__) == EXPECTED
    for name in EXPECTED:
        assert (getattr(robustfdd, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_the_example_of_the_package_is_true() -> None:
    assert doctest.testmod(robustfdd).attempted > 0
    assert doctest.testmod(robustfdd).failed == 0


def test_importing_does_not_import_the_attack_libraries() -> None:
    """They take seconds; an engine imports its library when it is first asked for."""
    code = "import robustfdd, sys; print([m for m in ('art', 'foolbox') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
