"""What is swept: an attack, a norm, a protocol and the epsilons; the attack's own file says the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from robustfdd.catalogue import load_attack
from robustfdd.measure import n_starts
from robustfdd.specs import AttackSpec, Protocol
from robustfdd.threat import NORMS, Norm, Threat

#: The radii of a sweep, in pixel units: those of the paper's BIM and PGD figures, and its L2 grid with steps between.
EPSILONS: dict[Norm, tuple[float, ...]] = {
    "linf": (0.005, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035),
    "l2": (0.08, 0.16, 0.24, 0.32, 0.40, 0.52, 0.64),
}


@dataclass(frozen=True)
class Case:
    """One sweep.

    Attributes:
        attack: ``"fgsm"``, ``"bim"`` or ``"pgd"``.
        norm: of the ball.
        protocol: ``"paper"`` or ``"strong"``.
        epsilons: in pixel units, ascending, above 0.
    """

    attack: str
    norm: Norm
    protocol: Protocol
    epsilons: tuple[float, ...]

    @property
    def name(self) -> str:
        """For options and files, e.g. ``pgd-linf-strong``."""
        return f"{self.attack}-{self.norm}-{self.protocol}"

    @property
    def title(self) -> str:
        """For tables, e.g. ``PGD-10, linf, strong``."""
        steps = f"-{self.steps}" if self.steps > 1 else ""
        return f"{self.spec.title}{steps}, {self.norm}, {self.protocol}"

    @cached_property
    def spec(self) -> AttackSpec:
        """The attack as its file and the protocol have it."""
        spec = load_attack(self.attack)
        return spec.strengthened() if self.protocol == "strong" else spec

    @property
    def steps(self) -> int:
        """Gradients for each image and epsilon, in one run."""
        return self.spec.n_gradients

    @property
    def relative_step(self) -> float:
        """Length of a step in units of the radius."""
        return float(self.spec.parameters.get("relative_step", 1.0))

    @property
    def random_start(self) -> bool:
        """Whether the attack begins at a random point of the ball."""
        return not self.spec.deterministic

    @property
    def starts(self) -> int:
        """How often it begins."""
        return n_starts(self.spec, self.protocol)

    @property
    def threats(self) -> list[Threat]:
        """The epsilons as threats."""
        return [Threat(self.norm, eps) for eps in self.epsilons]


#: The attacks of each protocol; FGSM has one step and no random start, so under ``strong`` it would be the same.
_ATTACKS: dict[Protocol, tuple[str, ...]] = {"paper": ("fgsm", "bim", "pgd"), "strong": ("bim", "pgd")}


def all_cases() -> list[Case]:
    """Every attack in every norm, under each of its protocols."""
    return [
        Case(attack, norm, protocol, EPSILONS[norm])
        for protocol, attacks in _ATTACKS.items()
        for norm in NORMS
        for attack in attacks
    ]
