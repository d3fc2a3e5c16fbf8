"""What the audits say, and of which figures.

A verdict belongs to a number: to one norm, radius and attack, and to the images that were looked at. It stands beside a
figure of a table where all of these are those that were audited, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from robustfdd.audited import LEAST_ATTACKED, PgdSettings
from robustfdd.errors import RunDirectoryError
from robustfdd.records import Verdict
from robustfdd.report.columns import check_columns
from robustfdd.report.study import VERDICT_MARKS, Epsilon, Study, count_text, norm_title
from robustfdd.rounding import share

if TYPE_CHECKING:
    from robustfdd.report.results import Results

#: The table of an audit with the verdict.
VERDICT_TABLE = "audit_verdict"
#: Different numbers that were audited up to which a caption names them.
_NAMED = 2

NOT_AUDITED = "Whether the figures can be believed was not tested (not audited)."


@dataclass(frozen=True)
class Audited:
    """The verdict on one model, and the number that it is about.

    Attributes:
        method: label of the model's method.
        seed: of its training; -1 for a model that was not trained here.
        verdict: on the number. ``"no verdict"`` also where an older audit gave one on too few images.
        norm: ``"linf"`` or ``"l2"``.
        eps: the radius.
        attack: in words.
        settings: the attack; None where the words are not this package's.
        n_images: how many test images the audit looked at.
        n_attacked: how many of them were classified correctly, and attacked.
        eot_samples: passes averaged for one gradient; 0 for a deterministic model.
        clean: accuracy before any attack, in [0, 1].
        audited: the accuracy under audit, in [0, 1].
        worst: the lowest that the audit found at that radius, in [0, 1].
        failed: names of the indicators that warn or alarm.
    """

    method: str
    seed: int
    verdict: Verdict
    norm: str
    eps: Epsilon
    attack: str
    settings: PgdSettings | None
    n_images: int
    n_attacked: int
    eot_samples: int
    clean: Fraction
    audited: Fraction
    worst: Fraction
    failed: tuple[str, ...]

    @property
    def gap(self) -> Fraction:
        """How far the accuracy under audit is above the lowest that was found, in percentage points."""
        return 100 * (self.audited - self.worst)

    def covers(self, norm: str, eps: Epsilon, settings: PgdSettings | None, *, n_images: int, eot_samples: int) -> bool:
        """Whether a figure is the number that was audited.

        The images of an audit and of a run are the first ones of one and the same order, so those of the smaller are
        among those of the larger. An audit of some of a figure's images is a sample of that figure; one that looked at
        images which the figure does not count is about another number.

        Args:
            norm: of the attack.
            eps: its radius.
            settings: the attack, if it is one that can be audited.
            n_images: over which the figure is.
            eot_samples: passes that the attack averaged for one gradient.
        """
        return (
            settings is not None
            and self.settings is not None
            and self.settings.same_as(settings)
            and (self.norm, self.eps.key, self.eot_samples) == (norm, eps.key, eot_samples)
            and self.n_images <= n_images
        )


def check_column(frame: pd.DataFrame, column: str, allowed: Collection[str], table: str, where: object) -> None:
    """Make sure that a column of a table of the audits holds only what is allowed.

    Raises:
        RunDirectoryError: it holds something else.
    """
    unknown = sorted({str(value) for value in frame[column]} - set(allowed))
    if unknown:
        raise RunDirectoryError(
            f"{where}: the files {table}--* have the {column} {unknown[0]!r}; allowed: {', '.join(allowed)}"
        )


def read_audits(study: Study, frame: pd.DataFrame | None, where: object) -> dict[tuple[str, int], Audited]:
    """The verdict on every audited model of a study, by label and seed; empty without audits.

    Args:
        study: as planned.
        frame: the table of verdicts; None without audits.
        where: the folder of the analyses, for messages.

    Raises:
        RunDirectoryError: a column is missing or of another type, or a verdict is unknown.
    """
    if frame is None:
        return {}
    check_columns(frame, VERDICT_TABLE, where)
    check_column(frame, "verdict", VERDICT_MARKS, VERDICT_TABLE, where)
    named = {method.label for method in study.methods}
    found = {}
    for row in frame.to_dict("records"):
        key = (str(row["method"]), int(row["seed"]))
        if key[0] in named:
            found[key] = _read(row, key, study)
    return found


def _read(row: Mapping[object, object], key: tuple[str, int], study: Study) -> Audited:
    """One row of the table of verdicts, whose columns were checked."""

    def number(name: str) -> float:
        return float(cast("float", row[name]))

    n_images, words = int(number("n_images")), str(row["attack"])
    clean, audited, worst = (share(number(f"{name}_accuracy"), n_images) for name in ("clean", "audited", "worst"))
    n_attacked = int(clean * n_images)
    verdict = cast("Verdict", row["verdict"])
    if verdict != "not believable" and n_attacked < LEAST_ATTACKED:
        verdict = "no verdict"
    known = study.eps_scale is not None
    return Audited(
        *key,
        verdict,
        str(row["norm"]),
        Epsilon(number("eps_normalized") if known else None, number("eps_pixel")),
        words,
        PgdSettings.parse(words),
        n_images,
        n_attacked,
        int(number("eot_samples")),
        clean,
        audited,
        worst,
        tuple(map(str, np.asarray(row["failed"] if row["failed"] is not None else ()).tolist())),
    )


def gravest(verdicts: Sequence[Verdict | None]) -> Verdict | None:
    """The verdict on a mean over several models, each with its own, or with None where it was not audited.

    What speaks against one of them speaks against the mean; for it, all of them must have been audited.
    """
    order = list(VERDICT_MARKS)
    worst = max((v for v in verdicts if v is not None), key=order.index, default=None)
    against = order.index("suspicious")
    return worst if worst is not None and (None not in verdicts or order.index(worst) >= against) else None


def under(item: Audited, study: Study) -> str:
    """The number that was audited, in words: attack, norm and radius."""
    return f"{item.attack}, {norm_title(item.norm)}, ε = {study.radius(item.eps)}"


def images_text(item: Audited, images: tuple[int, int] | None) -> str:
    """On which images a number was audited, in words.

    Args:
        item: the audit.
        images: smallest and largest number of images of the figures that it stands beside; None without any.
    """
    images_of = f"{item.n_images:,} image{'' if item.n_images == 1 else 's'}"
    if images is None:
        return f"on {images_of}"
    if item.n_images > images[0]:
        return f"on {images_of}, more than the {images[0]:,} here"
    if item.n_images == images[1]:
        return f"on the same {images_of}"
    return f"on {item.n_images:,} of the {count_text(images)} images"


def numbers_text(items: Iterable[Audited], study: Study, images: tuple[int, int] | None) -> str:
    """The numbers that were audited, in words, each once."""
    texts = list(dict.fromkeys(f"{under(item, study)}, {images_text(item, images)}" for item in items))
    return "; ".join(texts) if len(texts) <= _NAMED else f"{len(texts)} numbers, which the section Audit names"


def marks_text(results: Results, shown: Iterable[Verdict | None], norm: str | None = None) -> str:
    """What a caption says of the audits: what the marks beside its figures mean, or that none of them was audited.

    Args:
        results: the run.
        shown: the verdicts beside the figures; empty for a table of what is never audited.
        norm: of the figures, None for all.
    """
    audits = results.audits.values()
    if not audits:
        return NOT_AUDITED
    what = numbers_text(audits, results.study, results.counts("n_images", norm=norm))
    found = set(shown)
    used = [f"{mark} {verdict}" for verdict, mark in VERDICT_MARKS.items() if verdict in found]
    if not used:
        return f"Not audited here: the audit was of {what}."
    return f"Beside a figure: {', '.join(used)}, by the audit of {what}; figures without a mark were not audited here."
