"""Can the number be believed? Indicators of gradient masking and of weak attacks, and a verdict on a model."""

from __future__ import annotations

from robustfdd.audit import indicators as _indicators
from robustfdd.audit.base import INDICATORS, Finding, Indicator, Line, register
from robustfdd.audit.evidence import AuditedAttack, Evidence
from robustfdd.audit.run import VERSION, Audit, IndicatorResult, audit, audit_cost, audit_images
from robustfdd.audit.study import audit_run
from robustfdd.audit.write import audit_model

__all__ = [
    "INDICATORS",
    "VERSION",
    "Audit",
    "AuditedAttack",
    "Evidence",
    "Finding",
    "Indicator",
    "IndicatorResult",
    "Line",
    "audit",
    "audit_cost",
    "audit_images",
    "audit_model",
    "audit_run",
    "register",
]

del _indicators
