"""The engines: libraries that run an attack specification. A library is imported when its engine is first asked for."""

from __future__ import annotations

from robustfdd.engines.base import Engine, FirstGradient, Perturb
from robustfdd.errors import ConfigurationError
from robustfdd.specs import ENGINES

__all__ = ["ENGINES", "Engine", "FirstGradient", "Perturb", "get_engine"]


def get_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        ConfigurationError: there is no such engine.
    """
    if name == "foolbox":
        from robustfdd.engines.foolbox import FoolboxEngine  # noqa: PLC0415 - importing a library takes seconds

        return FoolboxEngine()
    if name == "art":
        from robustfdd.engines.art import ArtEngine  # noqa: PLC0415 - as above

        return ArtEngine()
    if name == "native":
        from robustfdd.engines.native import NativeEngine  # noqa: PLC0415 - like the others

        return NativeEngine()
    raise ConfigurationError(f"unknown engine {name!r}; allowed: {', '.join(ENGINES)}")
