"""Whether two engines agree on the same attack: per sample, and in the headline figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, groupby
from typing import Any

import numpy as np
import pandas as pd

from robustfdd.records import Outcome
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Place, Results
from robustfdd.report.study import Epsilon, Study, norm_title, number, one_image, seed_text, signed
from robustfdd.rounding import fixed, mean

#: Two engines that run one deterministic attack on one model should find the same; more than this many percentage
#: points of robust accuracy between them is more than rounding can explain.
TOLERANCE_POINTS = 0.5


@dataclass(frozen=True)
class Agreement:
    """Two engines on one model, attack, norm and radius, over the test images that both have.

    Attributes:
        study: its name.
        method: the method's label; ``method_title`` is the one for people.
        seed: of the training run.
        attack: the attack's name; ``attack_title`` is the one for people.
        norm: ``"linf"`` or ``"l2"``.
        eps: the radius, in both units.
        engines: the two, in the study's order.
        deterministic: whether the attack is, and the model's forward pass.
        n_images: images that both engines have.
        n_attacked: images that both attacked.
        n_same: those of them with the same outcome.
        n_survived: of each engine, of ``n_images``.
        radius: in words, in every unit that there is.
    """

    study: str
    method: str
    method_title: str
    seed: int
    attack: str
    attack_title: str
    norm: str
    eps: Epsilon
    engines: tuple[str, str]
    deterministic: bool
    n_images: int
    n_attacked: int
    n_same: int
    n_survived: tuple[int, int]
    radius: str

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

    def __str__(self) -> str:
        first, second = self.engines
        return (
            f"{self.attack_title}, {norm_title(self.norm)}, eps {self.radius}, {self.method_title}, "
            f"{seed_text(self.seed)}: {second} differs from {first} by {signed(self.difference)} points of robust "
            f"accuracy on {self.n_images:,} images"
        )


def compare_engines(results: Results) -> list[Agreement]:
    """Compare every pair of engines at every radius where both have a record; empty with one engine."""
    study = results.study
    found = []
    for attack in study.attacks:
        for norm, grid in attack.eps.items():
            for engines in combinations(study.engines, 2):
                for step, eps in enumerate(grid, start=1):
                    for method in study.methods:
                        first, second = (
                            results.rows(Place(method.label, attack.name, norm, engine, step)) for engine in engines
                        )
                        for seed in sorted(first.keys() & second.keys()):
                            a, b = first[seed], second[seed]
                            _, i, j = np.intersect1d(
                                a["image_index"], b["image_index"], assume_unique=True, return_indices=True
                            )
                            if not len(i):
                                continue
                            outcome_a, outcome_b = np.asarray(a["outcome"])[i], np.asarray(b["outcome"])[j]
                            attacked = (outcome_a != Outcome.MISCLASSIFIED) & (outcome_b != Outcome.MISCLASSIFIED)
                            found.append(
                                Agreement(
                                    study=study.name,
                                    method=method.label,
                                    method_title=method.title,
                                    seed=seed,
                                    attack=attack.name,
                                    attack_title=attack.title,
                                    norm=norm,
                                    eps=eps,
                                    engines=engines,
                                    deterministic=all(
                                        cell["deterministic"] and not cell["eot_samples"] for cell in (a, b)
                                    ),
                                    n_images=len(i),
                                    n_attacked=int(attacked.sum()),
                                    n_same=int((outcome_a == outcome_b)[attacked].sum()),
                                    n_survived=(
                                        int((outcome_a == Outcome.SURVIVED).sum()),
                                        int((outcome_b == Outcome.SURVIVED).sum()),
                                    ),
                                    radius=study.radius(eps),
                                )
                            )
    return found


def _by_attack(agreements: Sequence[Agreement]) -> list[list[Agreement]]:
    groups = groupby(agreements, key=lambda item: (item.attack, item.norm, item.engines))
    return [list(group) for _, group in groups]


def _percent(share: Fraction | None) -> str:
    return GAP if share is None else fixed(100 * share, 2)


def _images(agreements: Sequence[Agreement]) -> str:
    counts = sorted({item.n_images for item in agreements})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


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


def summary_grid(agreements: Sequence[Agreement]) -> Grid:
    """One line for each attack, norm and pair of engines, over all methods, seeds and radii."""
    rows, alarms = [], set()
    for i, group in enumerate(_by_attack(agreements)):
        attacked = sum(item.n_attacked for item in group)
        same = Fraction(sum(item.n_same for item in group), attacked) if attacked else None
        n_flagged = sum(item.flagged for item in group)
        deterministic = all(item.deterministic for item in group)
        widest = max(group, key=lambda item: abs(item.difference))
        rows.append(
            (
                group[0].attack_title,
                norm_title(group[0].norm),
                f"{group[0].engines[1]} − {group[0].engines[0]}",
                "yes" if deterministic else "no",
                _images(group),
                str(len(group)),
                _percent(same),
                signed(mean([item.difference for item in group])),
                signed(widest.difference),
                f"DIFFERS ({n_flagged})" if n_flagged else ("0" if deterministic else GAP),
            )
        )
        if n_flagged:
            alarms.add(i)
    return Grid(
        name="agreement",
        title="Agreement of the engines",
        caption=_caption(agreements) + " Cells: combinations of method, seed and ε.",
        headers=(
            "Attack",
            "Norm",
            "Engines",
            "Deterministic",
            "Images",
            "Cells",
            "Same outcome (%)",
            "Mean difference",
            "Widest difference",
            "Flagged cells",
        ),
        rows=tuple(rows),
        n_text=4,
        alarms=frozenset(alarms),
    )


def detail_grid(agreements: Sequence[Agreement], study: Study) -> Grid:
    """One line for each method, seed, attack, norm, radius and pair of engines."""
    return Grid(
        name="agreement-cells",
        title="Agreement of the engines, cell by cell",
        caption=_caption(agreements),
        headers=(
            "Attack",
            "Norm",
            "Method",
            "Engines",
            "Seed",
            *(f"ε ({unit})" for unit in study.units_shown),
            "Images",
            "Attacked",
            "Same outcome (%)",
            "Difference",
            "Verdict",
        ),
        rows=tuple(
            (
                item.attack_title,
                norm_title(item.norm),
                item.method_title,
                f"{item.engines[1]} − {item.engines[0]}",
                str(item.seed) if item.seed >= 0 else seed_text(item.seed),
                *item.eps.texts(study.eps_unit),
                f"{item.n_images:,}",
                f"{item.n_attacked:,}",
                _percent(item.same_outcome),
                signed(item.difference),
                "DIFFERS" if item.flagged else ("ok" if item.deterministic else "random"),
            )
            for item in agreements
        ),
        n_text=4,
        rules=group_starts([f"{item.attack}\n{item.norm}\n{item.engines}" for item in agreements]),
        alarms=frozenset(i for i, item in enumerate(agreements) if item.flagged),
    )


def agreement_frame(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """The comparison as data, one row a cell; shares in [0, 1], the difference in percentage points."""
    records: list[dict[str, Any]] = [
        {
            "study": item.study,
            "method": item.method,
            "seed": item.seed,
            "attack": item.attack,
            "norm": item.norm,
            "eps_normalized": item.eps.normalized,
            "eps_pixel": item.eps.pixel,
            "deterministic": item.deterministic,
            "engine_a": item.engines[0],
            "engine_b": item.engines[1],
            "n_images": item.n_images,
            "n_attacked": item.n_attacked,
            "n_same": item.n_same,
            "same_outcome": None if item.same_outcome is None else float(item.same_outcome),
            "robust_accuracy_a": float(item.robust_accuracy[0]),
            "robust_accuracy_b": float(item.robust_accuracy[1]),
            "difference_points": float(item.difference),
            "flagged": item.flagged,
        }
        for item in agreements
    ]
    frame: pd.DataFrame = pd.DataFrame.from_records(records)
    return frame
