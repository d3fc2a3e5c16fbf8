"""The indicators, one module each. A new one is one new module that registers it."""

from __future__ import annotations

import pkgutil
from importlib import import_module

for _found in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
