"""The known parts of one kind, such as the dropouts, by name: those of this package and those of plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from robustfdd import plugins
from robustfdd.errors import ConfigurationError


class Named(Protocol):
    """What can be registered."""

    @property
    def name(self) -> str:
        """How it is asked for."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """Parts by name, in the order in which they are listed. It follows later registrations.

    Plug-ins (:mod:`robustfdd.plugins`) are loaded when something is first looked up, and not when this is imported:
    a plug-in may import anything of this package.

    Args:
        kind: what its parts are, in the singular, for messages.
        order: sorts them; without it they stay in the order of registration.
        claims: what else besides its name a part must have for itself alone, e.g. the names of its tables.
    """

    def __init__(
        self,
        kind: str,
        *,
        order: Callable[[T], Any] | None = None,
        claims: Callable[[T], set[str]] = lambda part: set(),  # noqa: ARG005 - nothing but its name
    ) -> None:
        self._kind, self._order, self._claims = kind, order, claims
        self._parts: dict[str, T] = {}

    def register(self, part: T) -> T:
        """Make a part known under its name.

        Returns:
            The part.

        Raises:
            ConfigurationError: the name, or something else that the part claims for itself, is taken.
        """
        if part.name in self._parts:
            raise ConfigurationError(f"a {self._kind} named {part.name!r} is registered already")
        for known in self._parts.values():
            if common := self._claims(known) & self._claims(part):
                raise ConfigurationError(
                    f"{self._kind} {part.name!r}: {', '.join(sorted(common))} is of {self._kind} {known.name!r} already"
                )
        parts = [*self._parts.values(), part]
        if self._order is not None:
            parts.sort(key=self._order)
        self._parts = {known.name: known for known in parts}
        return part

    def __getitem__(self, name: str) -> T:
        plugins.load()
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        plugins.load()
        return iter(self._parts)

    def __len__(self) -> int:
        plugins.load()
        return len(self._parts)

    def __repr__(self) -> str:
        return f"<{len(self)} of {self._kind}: {', '.join(self)}>"
