"""Whether two engines agree on the same attack: per sample, and in the headline figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, groupby, product

import numpy as np

from robustfdd.records import Outcome
from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, frame_of, radius, table
from robustfdd.report.results import Place, Results
from robustfdd.report.study import (
    Attack,
    Epsilon,
    Method,
    Study,
    count_text,
    norm_title,
    number,
    one_image,
    seed_number,
    seed_text,
    signed,
)
from robustfdd.rounding import fixed, mean

#: Two engines that run one deterministic attack on one model should find the same; more than this many percentage
#: points of robust accuracy between them is more than rounding can explain.
TOLERANCE_POINTS = 0.5


@dataclass(frozen=True)
class Agreement:
    """Two engines on one model, attack, norm and radius, over the test images that both have.

    Attributes:
        study: what was planned.
        method: of the model.
        seed: of the training run.
        attack: the attack.
        norm: ``"linf"`` or ``"l2"``.
        eps: the radius, in both units.
        engines: the two, in the study's order.
        deterministic: whether the attack is, and the model's forward pass.
        n_images: images that both engines have.
        n_attacked: images that both attacked.
        n_same: those of them with the same outcome.
        n_survived: of each engine, of ``n_images``.
    """

    study: Study
    method: Method
    seed: int
    attack: Attack
    norm: str
    eps: Epsilon
    engines: tuple[str, str]
    deterministic: bool
    n_images: int
    n_attacked: int
    n_same: int
    n_survived: tuple[int, int]

    @property
    def compared(self) -> tuple[str, str, tuple[str, str]]:
        """What is compared, of whichever model and at whichever radius: attack, norm and engines."""
        return self.attack.name, self.norm, self.engines

    @property
    def radius(self) -> str:
        """The radius in words, in every unit that there is."""
        return self.study.radius(self.eps)

    @property
    def robust_accuracy(self) -> tuple[Fraction, Fraction]:
        """Of each engine, over ``n_images``, in [0, 1]."""
        first, second = self.n_survived
        return Fraction(first, self.n_images), Fraction(second, self.n_images)

    @property
    def same_outcome(self) -> Fraction | None:
        """The share of attacked images with the same outcome; None if none was attacked by both."""
        return Fraction(self.n_same, self.n_attacked) if self.n_attacked else None

    @property
    def difference(self) -> Fraction:
        """Robust accuracy of the second engine minus that of the first, in percentage points."""
        first, second = self.robust_accuracy
        return 100 * (second - first)

    @property
    def flagged(self) -> bool:
        """Whether the two differ although they should not."""
        return self.deterministic and abs(self.difference) > TOLERANCE_POINTS

    @property
    def verdict(self) -> str:
        """What the difference says, in a word."""
        return "DIFFERS" if self.flagged else "ok" if self.deterministic else "random"

    def __str__(self) -> str:
        first, second = self.engines
        return (
            f"{self.attack.title}, {norm_title(self.norm)}, eps {self.radius}, {self.method.title}, "
            f"{seed_text(self.seed)}: {second} differs from {first} by {signed(self.difference)} points of robust "
            f"accuracy on {self.n_images:,} images"
        )


def compare_engines(results: Results) -> list[Agreement]:
    """Compare every pair of engines at every radius where both have a record; empty with one engine."""
    study = results.study
    found = []
    for attack, norm in study.planes:
        radii = list(enumerate(attack.eps[norm], start=1))
        for engines, (step, eps), method in product(combinations(study.engines, 2), radii, study.methods):
            first, second = (results.rows(Place(method.label, attack.name, norm, name, step)) for name in engines)
            for seed in sorted(first.keys() & second.keys()):
                a, b = first[seed], second[seed]
                _, i, j = np.intersect1d(a["image_index"], b["image_index"], assume_unique=True, return_indices=True)
                if not len(i):
                    continue
                ours, theirs = np.asarray(a["outcome"])[i], np.asarray(b["outcome"])[j]
                attacked = (ours != Outcome.MISCLASSIFIED) & (theirs != Outcome.MISCLASSIFIED)
                found.append(
                    Agreement(
                        *(study, method, seed, attack, norm, eps, engines),
                        deterministic=all(cell["deterministic"] and not cell["eot_samples"] for cell in (a, b)),
                        n_images=len(i),
                        n_attacked=int(attacked.sum()),
                        n_same=int((ours == theirs)[attacked].sum()),
                        n_survived=(int((ours == Outcome.SURVIVED).sum()), int((theirs == Outcome.SURVIVED).sum())),
                    )
                )
    return found


def _percent(n_same: int, n_attacked: int) -> str:
    return fixed(Fraction(100 * n_same, n_attacked), 2) if n_attacked else GAP


def _images(agreements: Sequence[Agreement]) -> str:
    counts = [item.n_images for item in agreements]
    return count_text((min(counts), max(counts)))


def _flagged(group: Sequence[Agreement]) -> str:
    n_flagged = sum(item.flagged for item in group)
    return f"DIFFERS ({n_flagged})" if n_flagged else "0" if all(item.deterministic for item in group) else GAP


def _engines(item: Agreement) -> str:
    return f"{item.engines[1]} − {item.engines[0]}"


def _caption(agreements: Sequence[Agreement]) -> str:
    images = min((item.n_images for item in agreements), default=0)
    text = (
        "Same outcome: share of the images attacked by both engines that both left correct or both broke. "
        "Difference: robust accuracy of the second engine minus that of the first, in percentage points."
    )
    if images:
        text += f" With {images:,} images, {one_image(images)}."
    return text + (
        f" A deterministic attack that differs by more than {number(TOLERANCE_POINTS)} points is marked DIFFERS."
    )


def summary_table(agreements: Sequence[Agreement]) -> Exhibit:
    """One line for each attack, norm and pair of engines, over all methods, seeds and radii; its data has them all."""
    groups = [list(group) for _, group in groupby(agreements, key=lambda item: item.compared)]
    columns: list[Column[list[Agreement]]] = [
        Column("Attack", lambda group: group[0].attack.title, kind="name"),
        Column("Norm", lambda group: norm_title(group[0].norm), kind="name"),
        Column("Engines", lambda group: _engines(group[0]), kind="name"),
        Column("Deterministic", lambda group: "yes" if all(i.deterministic for i in group) else "no", kind="name"),
        Column("Images", _images),
        Column("Cells", lambda group: str(len(group))),
        Column(
            "Same outcome (%)", lambda group: _percent(sum(i.n_same for i in group), sum(i.n_attacked for i in group))
        ),
        Column("Mean difference", lambda group: signed(mean([item.difference for item in group]))),
        Column("Widest difference", lambda group: signed(max((item.difference for item in group), key=abs))),
        Column("Flagged cells", _flagged),
    ]
    return table(
        "agreement",
        "Agreement of the engines",
        _caption(agreements) + " Cells: combinations of method, seed and ε.",
        groups,
        columns,
        frame=frame_of(agreements, _DATA),
        alarm=lambda group: any(item.flagged for item in group),
    )


#: The comparison as data, one row a cell; shares in [0, 1], the difference in percentage points.
_DATA: list[Column[Agreement]] = [
    *fields("study=study.name method=method.label seed attack=attack.name norm"),
    *fields("eps_normalized=eps.normalized eps_pixel=eps.pixel deterministic"),
    data("engine_a", lambda item: item.engines[0]),
    data("engine_b", lambda item: item.engines[1]),
    *fields("n_images n_attacked n_same same_outcome"),
    data("robust_accuracy_a", lambda item: item.robust_accuracy[0]),
    data("robust_accuracy_b", lambda item: item.robust_accuracy[1]),
    *fields("difference_points=difference flagged"),
]


def detail_table(agreements: Sequence[Agreement], study: Study) -> Exhibit:
    """One line for each method, seed, attack, norm, radius and pair of engines."""
    columns: list[Column[Agreement]] = [
        Column("Attack", lambda item: item.attack.title, kind="name"),
        Column("Norm", lambda item: norm_title(item.norm), kind="name"),
        Column("Method", lambda item: item.method.title, kind="name"),
        Column("Engines", _engines, kind="name"),
        Column("Seed", lambda item: seed_number(item.seed)),
        *radius(study, lambda item: item.eps),
        Column("Images", lambda item: f"{item.n_images:,}"),
        Column("Attacked", lambda item: f"{item.n_attacked:,}"),
        Column("Same outcome (%)", lambda item: _percent(item.n_same, item.n_attacked)),
        Column("Difference", lambda item: signed(item.difference)),
        Column("Verdict", lambda item: item.verdict),
    ]
    return table(
        "agreement-cells",
        "Agreement of the engines, cell by cell",
        _caption(agreements),
        agreements,
        columns,
        frame=frame_of(agreements, _DATA),
        group=lambda item: item.compared,
        alarm=lambda item: item.flagged,
    )
