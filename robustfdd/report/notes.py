"""What a reader must know before trusting the figures, taken from the records and the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any, Literal

import pandas as pd

from robustfdd.audited import LEAST_ATTACKED
from robustfdd.report.agreement import TOLERANCE_POINTS, Agreement
from robustfdd.report.audit import coverage
from robustfdd.report.results import Results
from robustfdd.report.study import norm_title, number, one_image, seed_text, signed
from robustfdd.report.tables import half_width, seeds_text
from robustfdd.report.verdicts import numbers_text
from robustfdd.report.worst_case import spared
from robustfdd.rounding import fixed

#: What a verdict means for the figure that it is about.
_VERDICT_TEXTS = {
    "not believable": (
        "broke far more images than the attack under audit, or found that this attack cannot work. That robust "
        "accuracy is a statement about the attack, not about the model: see Audit."
    ),
    "suspicious": "found signs that the attack does not work as it should: see Audit.",
    "no verdict": (
        f"attacked too few images: below {LEAST_ATTACKED} of them, finding nothing says nothing. Audit more images."
    ),
}
#: Below this, sampling alone can move a figure by more than 3 points.
_FEW_IMAGES = 1000


@dataclass(frozen=True)
class Note:
    """One remark; a ``"warning"`` puts figures in doubt, an ``"info"`` limits what they say."""

    level: Literal["warning", "info"]
    title: str
    text: str


def _disagreements(agreements: Sequence[Agreement]) -> list[Note]:
    flagged = [item for item in agreements if item.flagged]
    found = []
    for (attack, norm, engines), group in groupby(flagged, key=lambda item: (item.attack, item.norm, item.engines)):
        cells = list(group)
        compared = [item for item in agreements if (item.attack, item.norm, item.engines) == (attack, norm, engines)]
        widest = max(cells, key=lambda item: abs(item.difference))
        found.append(
            Note(
                "warning",
                f"{engines[0]} and {engines[1]} disagree on {widest.attack_title}, {norm_title(norm)}",
                f"The attack is deterministic, yet in {len(cells)} of {len(compared)} cells robust accuracy differs by "
                f"more than {number(TOLERANCE_POINTS)} points. Widest: {signed(widest.difference)} points "
                f"({engines[1]} minus {engines[0]}) for {widest.method_title}, "
                f"{seed_text(widest.seed)}, ε = {widest.radius}, on {widest.n_images:,} images "
                f"({one_image(widest.n_images)}).",
            )
        )
    return found


def _gaps(results: Results) -> list[Note]:
    found = []
    failures = results.run.failures
    if failures:
        found.append(
            Note(
                "warning",
                "1 unit failed" if len(failures) == 1 else f"{len(failures)} units failed",
                "What failed has no record and shows as a gap, never as a number. The failures are listed below.",
            )
        )
    states = results.unit_states()
    failed = {failure.unit for failure in failures}
    waiting = [state for state in states if state.missing and state.unit.unit not in failed]
    if not results.places and (states or not results.run.analyses):
        found.append(
            Note("warning", "There are no results yet", f"The plan has {len(states)} units; none has a record.")
        )
    elif waiting:
        found.append(
            Note(
                "warning",
                f"{len(waiting)} of {len(states)} units not run, or not to the end",
                "What is missing shows as a gap. The units are listed below.",
            )
        )
    if results.unplanned:
        found.append(
            Note(
                "warning",
                f"{results.unplanned} records left out",
                "They belong to no unit or epsilon of the plan in manifest.json, so no table or figure shows them.",
            )
        )
    return found


def _random_forwards(results: Results) -> list[Note]:
    found = []
    titles = {method.label: method.title for method in results.study.methods}
    unsteady = [titles[label] for label in results.unsteady_methods()]
    if unsteady:
        found.append(
            Note(
                "warning",
                f"Random forward pass: {', '.join(unsteady)}",
                "Predictions on clean images differ between units, although the forward pass is recorded as "
                "deterministic. An attack that takes one gradient of such a model sees noise, so its robust accuracy "
                "is an upper bound.",
            )
        )
    groups: dict[tuple[int, ...], list[str]] = {}
    for label, numbers in results.eot_samples().items():
        groups.setdefault(numbers, []).append(titles[label])
    for numbers, members in groups.items():
        title = f"Random forward pass: {', '.join(members)}"
        if numbers[0] < 2:
            text = (
                "Forward passes are random at test time, and the attacks took the gradient of one pass. To an attack "
                "such a gradient is noise, so robust accuracy is an upper bound: average many passes (expectation over "
                "transformation, EOT)."
            )
            found.append(Note("warning", title, text))
        else:
            passes = " or ".join(map(str, numbers))
            text = (
                f"Forward passes are random at test time. Every gradient of the attacks is the mean over {passes} "
                "passes (expectation over transformation, EOT); with more of them an attack may still find more."
            )
            found.append(Note("info", title, text))
    return found


def _audits(results: Results) -> list[Note]:
    """What the audits say, of which figures, and what was not audited."""
    found = []
    study, titles = results.study, {method.label: method.title for method in results.study.methods}
    images = results.counts("n_images")
    for verdict, text in _VERDICT_TEXTS.items():
        items = [item for item in results.audits.values() if item.verdict == verdict]
        if items:
            named = ", ".join(dict.fromkeys(titles[item.method] for item in items))
            what = numbers_text(items, study, images)
            found.append(Note("warning", f"{verdict.capitalize()}: {named}", f"The audit of {what} {text}"))
    without, partly = coverage(results)
    if without:
        everything = len(without) == len(study.methods) > 1 and not partly
        seeds = {label: missing for label, missing in without.items() if label in partly}
        names = [
            # Of a method that was audited, some seeds are left.
            titles[label] + (f" ({seeds_text(seeds[label])})" if label in seeds else "")
            for label in without
        ]
        what = numbers_text(results.audits.values(), study, images)
        elsewhere = f" What was audited is another number: {what}." if results.audits and not partly else ""
        found.append(
            Note(
                "warning",
                f"Not audited: {'all methods' if everything else ', '.join(names)}",
                "That a model survives an attack can mean that it is robust, or that the attack does not work on it; "
                f"the figures look the same. An audit (robustfdd audit) tells the two apart.{elsewhere}",
            )
        )
    if partly:
        what = numbers_text((item for item in results.audits.values() if item.method in partly), study, images)
        found.append(
            Note(
                "info",
                "Only the marked figures were audited",
                f"A verdict is about one number: {what}. Of all other attacks, norms and radii of this report it says "
                "nothing.",
            )
        )
    return found


def _worst_cases(results: Results) -> list[Note]:
    """Where the worst case does not compare, and what several draws of a random forward pass do to it."""
    found = []
    for norm in results.study.norms:
        lacking = spared(results.study, norm)
        if lacking and results.places:
            found.append(
                Note(
                    "warning",
                    f"The worst cases in {norm_title(norm)} rest on different attacks",
                    " ".join(f"{attack} was not planned for {', '.join(of)}." for attack, of in lacking.items())
                    + " The worst case of these may look better for this reason alone.",
                )
            )
    random = results.eot_samples()
    titles = [method.title for method in results.study.methods if method.label in random]
    if not titles or not results.places:
        return found
    return [
        *found,
        Note(
            "info",
            f"The worst case of {', '.join(titles)} is pessimistic",
            "Forward passes are random at test time, and the worst case counts an image as broken if any draw of any "
            "attack, or of a prediction before it, failed: the more is run, the lower it gets, for this reason alone.",
        ),
    ]


def _parts(parts: Sequence[Mapping[str, Any]]) -> list[Note]:
    """What differs between runs that stand in one report without making them two studies."""
    found = []
    names = [str(part["name"]) for part in parts]

    def different(key: str) -> list[str]:
        """The entries below a key that are not the same in all parts, each with its values."""
        tables = [part.get(key) or {} for part in parts]
        entries = list(dict.fromkeys(entry for table in tables for entry in table))
        lines = []
        for entry in entries:
            values = [table.get(entry) for table in tables]
            if any(value != values[0] for value in values):
                lines.append(f"{entry}: " + ", ".join(f"{v} in {n}" for v, n in zip(values, names, strict=True)))
        return lines

    versions = different("versions")
    if versions:
        found.append(
            Note(
                "warning",
                "The runs were made with different versions",
                "; ".join(versions) + ". A difference between methods or seeds may come from these.",
            )
        )
    machines = different("hardware")
    if machines:
        found.append(
            Note(
                "info",
                "The runs were made on different machines",
                "; ".join(machines) + ". Times do not compare across them.",
            )
        )
    return found


def _limits(results: Results) -> list[Note]:
    study, manifest = results.study, results.run.manifest
    found = []
    title_of = {method.label: method.title for method in study.methods}
    for group in results.identical_methods():
        titles = [title_of[label] for label in group]
        found.append(
            Note(
                "info",
                f"{' and '.join(titles)} are one result",
                "Their trained weights are the same, and so is every prediction: these columns are one network under "
                "several names, not results that confirm each other. (Spatial dropout on the last feature maps, "
                "followed by average pooling, drops the pooled features just as original dropout does.)",
            )
        )
    images = results.counts("n_images")
    if images and images[0] < _FEW_IMAGES:
        found.append(
            Note(
                "info",
                f"Only {images[0]:,} test images" if images[0] > 1 else "Only one test image",
                f"{one_image(images[0]).capitalize()}, and a figure is known to within "
                f"±{fixed(half_width(images[0]), 1)} points at worst (binomial 95 % interval, Wilson).",
            )
        )
    if len(study.trained_seeds) == 1 and study.attacks:
        found.append(
            Note(
                "info",
                "One training seed",
                "How much the figures vary from one training run to the next is not measured here, so a small "
                "difference between two methods may be chance.",
            )
        )
    overrides = manifest.get("overrides") or []
    if overrides:
        found.append(
            Note(
                "info",
                "The study was run with changes",
                "Overridden on the command line: " + ", ".join(map(str, overrides)) + ".",
            )
        )
    states = [part.get("git") or {} for part in manifest.get("parts") or [manifest]]
    dirty = dict.fromkeys(str(state.get("commit")) for state in states if state.get("dirty"))
    if dirty:
        found.append(
            Note(
                "info",
                "Uncommitted code",
                f"The code differs from the commit that is noted: {', '.join(dirty)}.",
            )
        )
    return found


def undefined_gradients(cells: pd.DataFrame) -> list[str]:
    """Where images had a gradient that is no number, in a sentence for each method, attack, norm and engine.

    Args:
        cells: the records, with the columns of :data:`robustfdd.records.SCHEMA`.
    """
    hurt = cells[cells["n_undefined"] > 0] if len(cells) else cells
    found = []
    names = ["method", "attack", "norm", "engine"]
    for _, group in hurt.groupby(names, sort=False):
        most = group.sort_values("n_undefined").iloc[-1]
        method, attack, norm, engine = (str(most[name]) for name in names)
        n, of = int(most["n_undefined"]), int(most["n_images"])
        found.append(
            f"{method} under {attack} in {norm_title(norm)} through {engine}: the gradient of up to {n} of {of} images "
            "was NaN or infinite, so that the attack could not move them. They count as not robust: robust accuracy is "
            f"at least what is shown, and at most {fixed(Fraction(100 * n, of), 1)} points more."
        )
    return found


def _undefined(results: Results) -> list[Note]:
    texts = undefined_gradients(results.run.cells)
    return [Note("warning", "Gradients that are no numbers", text) for text in texts]


def notes(results: Results, agreements: Sequence[Agreement]) -> list[Note]:
    """All remarks on a run, the gravest first.

    Args:
        results: the run.
        agreements: the comparison of its engines.
    """
    parts = results.run.manifest.get("parts") or []
    found = [
        *_disagreements(agreements),
        *_gaps(results),
        *_undefined(results),
        *_audits(results),
        *_random_forwards(results),
        *_worst_cases(results),
        *_parts(parts),
        *_limits(results),
    ]
    return sorted(found, key=lambda note: note.level != "warning")
