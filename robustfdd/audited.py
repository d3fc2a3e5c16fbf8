"""What an audit was of, and how many images its verdict needs: for those who make audits and those who read them.

This module imports neither torch nor the attack libraries, so reports can be made where they are not installed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from robustfdd.records import Status, Verdict

#: Margin, in percentage points of all images, by which an attack must beat another for an alarm. No plain and no
#: adversarially trained control lost as much to a loss that looks elsewhere; see the confusion table in the
#: documentation.
ALARM_POINTS = 10.0
#: How sure a verdict without an alarm must be that an effect of :data:`ALARM_POINTS` would have shown.
CONFIDENCE = 0.95
#: Images that are found broken and still count as none: of few images a single one decides nothing.
_TOLERATED = 1

_WORDS = re.compile(
    r"PGD on the cross-entropy, (?P<steps>\d+) steps of (?P<step>[\d.e+-]+) ε, (?P<no>no )?random start, "
    r"(?P<end>best|last) iterate"
)


@dataclass(frozen=True)
class PgdSettings:
    """What says which attack a figure is of: PGD on the cross-entropy, one run of it, at one radius.

    Attributes:
        steps: input gradients for each image.
        step: their length in units of the radius.
        random_start: whether it begins at a random point of the ball.
        best_iterate: whether the best iterate counts, or the last one.
    """

    steps: int
    step: float
    random_start: bool
    best_iterate: bool

    def __str__(self) -> str:
        begin = "random start" if self.random_start else "no random start"
        end = "best iterate" if self.best_iterate else "last iterate"
        return f"PGD on the cross-entropy, {self.steps} steps of {self.step:.9g} ε, {begin}, {end}"

    @classmethod
    def parse(cls, text: str) -> PgdSettings | None:
        """The settings that :meth:`__str__` wrote; None for a text that it did not write."""
        found = _WORDS.fullmatch(text)
        if found is None:
            return None
        try:
            step = float(found["step"])
        except ValueError:
            return None
        return cls(int(found["steps"]), step, found["no"] is None, found["end"] == "best")

    def same_as(self, other: PgdSettings) -> bool:
        """Whether both are one attack; lengths of steps that print alike are one."""
        return str(self) == str(other)


def settings_of(attack: Mapping[str, Any], protocol: str) -> PgdSettings | None:
    """What an attack of a study is, if it is what an audit audits: by its parameters, whatever it is called.

    Args:
        attack: as :func:`robustfdd.manifest.describe_attack` describes it.
        protocol: of the study. Under ``"strong"`` a figure is of several starts and of all smaller radii together,
            which no audit audits.
    """
    parameters = attack.get("parameters") or {}
    if (
        protocol != "paper"
        or attack.get("kind", "budget") != "budget"
        or attack.get("access", "gradient") != "gradient"
        or attack.get("source")
        or not attack.get("plain_pgd", True)
        or set(parameters) != {"steps", "relative_step"}
    ):
        return None
    return PgdSettings(
        int(parameters["steps"]),
        float(parameters["relative_step"]),
        random_start=not attack.get("deterministic"),
        best_iterate=False,
    )


def least_attacked(points: float = ALARM_POINTS, confidence: float = CONFIDENCE, tolerated: int = _TOLERATED) -> int:
    """The least number of attacked images on which nothing found says something.

    If a better attack broke a share of ``points`` percent of the attacked images, at most ``tolerated`` of n of them
    would be found broken with the probability of a binomial distribution. The least n is the one from which that is at
    most 1 - ``confidence``: from which the one-sided upper bound of Clopper and Pearson (1934) for the share, with that
    many found, is at most ``points``.

    Args:
        points: the share that must not be missed, in percent, between 0 and 100.
        confidence: the coverage of the one-sided interval.
        tolerated: images found broken that still count as none.
    """
    p, n = points / 100, tolerated
    while sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(tolerated + 1)) > 1 - confidence:
        n += 1
    return n


#: Images that must be attacked for a verdict that is not an alarm.
LEAST_ATTACKED = least_attacked()


def verdict_of(found: Collection[Status], n_attacked: int) -> Verdict:
    """What the indicators' findings come to, on that many attacked images.

    An alarm is a proof, on however few images: not believable. Without one, fewer than :data:`LEAST_ATTACKED` attacked
    images give no verdict; else any warning makes a number suspicious.
    """
    if "alarm" in found:
        return "not believable"
    if n_attacked < LEAST_ATTACKED:
        return "no verdict"
    return "suspicious" if "warning" in found else "believable"
