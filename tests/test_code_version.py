"""The version of code: blind to what computes nothing, not to what does."""

from __future__ import annotations

import pytest

from robustfdd.code_version import ATTACK, AUDIT, TRAINING, code_version, source_version

SOURCE = '''
"""A module."""
import math


class Circle:
    """A circle."""

    radius: float = 1.0
    """In metres."""

    def area(self, scale=2, *, unit=None):
        """Its area."""
        # Archimedes
        return math.pi * self.radius ** scale
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', ""),
        ('"""A circle."""', '"""A disc."""'),
        ('    """In metres."""\n', ""),
        ("        # Archimedes\n", ""),
        ("self.radius ** scale", "(self.radius**scale)"),
        ("\n\n\nclass", "\nclass"),
    ],
)
def test_what_computes_nothing_does_not_count(old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert source_version(changed) == source_version(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.pi * self", "math.pi / self"),
        ("self.radius ** scale", "self.radius * scale"),
        ("scale=2", "scale=3"),
        ("scale=2", "scale=2.0"),
        ("unit=None", "unit"),
        ("*, unit", "unit"),
        ("radius: float = 1.0", "radius: float = -1.0"),
        ("import math", "import cmath as math"),
        ("return math.pi", 'return "math.pi"; math.pi'),
        ("        return", "        if scale:\n            return"),
    ],
)
def test_what_computes_counts(old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert source_version(changed) != source_version(SOURCE)


def test_parts_are_told_apart_and_their_order_is_not() -> None:
    assert code_version("engines.art") != code_version("engines.foolbox")
    assert code_version("engines.art", "measure") == code_version("measure", "engines.art")
    assert code_version("dropouts") == code_version("dropouts", "dropouts.density")
    assert len({code_version(*parts) for parts in (TRAINING, ATTACK, AUDIT)}) == 3
    assert code_version("errors") == code_version("errors")
    with pytest.raises(ValueError, match=r"robustfdd\.engine: there is no such module"):
        code_version("engine")
