"""Dropout layers for image classifiers, by name.

Every module of this package that registers a layer is imported here, so that adding one is adding one file. The
layers work in any torch model: ``build_dropout("fdd-2d")`` stands wherever ``torch.nn.Dropout2d()`` would.
"""

from __future__ import annotations

import importlib
import pkgutil

from robustfdd.dropouts.base import DROPOUTS, Dropout, DropoutSpec, build_dropout, check_options, register
from robustfdd.dropouts.density import FeatureDensityDropout, feature_density
from robustfdd.dropouts.original import OriginalDropout
from robustfdd.dropouts.spatial import SpatialDropout

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DROPOUTS",
    "Dropout",
    "DropoutSpec",
    "FeatureDensityDropout",
    "OriginalDropout",
    "SpatialDropout",
    "build_dropout",
    "check_options",
    "feature_density",
    "register",
]
