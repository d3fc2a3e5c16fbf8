"""What a reader must know before trusting the figures, taken from the records and the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby
from typing import Any, Literal

import pandas as pd

from robustfdd.audited import LEAST_ATTACKED
from robustfdd.report.agreement import TOLERANCE_POINTS, Agreement
from robustfdd.report.audit import coverage
from robustfdd.report.results import Results
from robustfdd.report.study import norm_title, number, one_image, seed_text, seeds_text, signed
from robustfdd.report.tables import known_within
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


_warning, _info = partial(Note, "warning"), partial(Note, "info")


def _titles(results: Results, labels: Iterable[str]) -> str:
    return ", ".join(map(results.study.method_title, labels))


def _disagreements(agreements: Sequence[Agreement]) -> Iterator[Note]:
    flagged = [item for item in agreements if item.flagged]
    for (_, norm, engines), group in groupby(flagged, key=lambda item: item.compared):
        cells = list(group)
        widest = max(cells, key=lambda item: abs(item.difference))
        n_compared = sum(item.compared == widest.compared for item in agreements)
        yield _warning(
            f"{engines[0]} and {engines[1]} disagree on {widest.attack.title}, {norm_title(norm)}",
            f"The attack is deterministic, yet in {len(cells)} of {n_compared} cells robust accuracy differs by "
            f"more than {number(TOLERANCE_POINTS)} points. Widest: {signed(widest.difference)} points "
            f"({engines[1]} minus {engines[0]}) for {widest.method.title}, "
            f"{seed_text(widest.seed)}, ε = {widest.radius}, on {widest.n_images:,} images "
            f"({one_image(widest.n_images)}).",
        )


def _gaps(results: Results) -> Iterator[Note]:
    failures = results.run.failures
    if failures:
        yield _warning(
            "1 unit failed" if len(failures) == 1 else f"{len(failures)} units failed",
            "What failed has no record and shows as a gap, never as a number. The failures are listed below.",
        )
    states, waiting = results.unit_states(), results.not_run()
    if not results.places and (states or not results.run.analyses):
        yield _warning("There are no results yet", f"The plan has {len(states)} units; none has a record.")
    elif waiting:
        yield _warning(
            f"{len(waiting)} of {len(states)} units not run, or not to the end",
            "What is missing shows as a gap. The units are listed below.",
        )
    if results.unplanned:
        yield _warning(
            f"{results.unplanned} records left out",
            "They belong to no unit or epsilon of the plan in manifest.json, so no table or figure shows them.",
        )


def _random_forwards(results: Results) -> Iterator[Note]:
    if unsteady := results.unsteady_methods():
        yield _warning(
            f"Random forward pass: {_titles(results, unsteady)}",
            "Predictions on clean images differ between units, although the forward pass is recorded as "
            "deterministic. An attack that takes one gradient of such a model sees noise, so its robust accuracy "
            "is an upper bound.",
        )
    groups: dict[tuple[int, ...], list[str]] = {}
    for label, numbers in results.eot_samples().items():
        groups.setdefault(numbers, []).append(label)
    for numbers, members in groups.items():
        title = f"Random forward pass: {_titles(results, members)}"
        if numbers[0] < 2:
            yield _warning(
                title,
                "Forward passes are random at test time, and the attacks took the gradient of one pass. To an attack "
                "such a gradient is noise, so robust accuracy is an upper bound: average many passes (expectation over "
                "transformation, EOT).",
            )
        else:
            yield _info(
                title,
                f"Forward passes are random at test time. Every gradient of the attacks is the mean over "
                f"{' or '.join(map(str, numbers))} passes (expectation over transformation, EOT); with more of them an "
                "attack may still find more.",
            )


def _audits(results: Results) -> Iterator[Note]:
    """What the audits say, of which figures, and what was not audited."""
    study, images = results.study, results.counts("n_images")
    for verdict, text in _VERDICT_TEXTS.items():
        items = [item for item in results.audits.values() if item.verdict == verdict]
        if items:
            named = _titles(results, dict.fromkeys(item.method for item in items))
            what = numbers_text(items, study, images)
            yield _warning(f"{verdict.capitalize()}: {named}", f"The audit of {what} {text}")
    without, partly = coverage(results)
    if without:
        everything = len(without) == len(study.methods) > 1 and not partly
        names = [
            # Of a method that was audited, some seeds are left.
            study.method_title(label) + (f" ({seeds_text(missing)})" if label in partly else "")
            for label, missing in without.items()
        ]
        what = numbers_text(results.audits.values(), study, images)
        elsewhere = f" What was audited is another number: {what}." if results.audits and not partly else ""
        yield _warning(
            f"Not audited: {'all methods' if everything else ', '.join(names)}",
            "That a model survives an attack can mean that it is robust, or that the attack does not work on it; "
            f"the figures look the same. An audit (robustfdd audit) tells the two apart.{elsewhere}",
        )
    if partly:
        what = numbers_text((item for item in results.audits.values() if item.method in partly), study, images)
        yield _info(
            "Only the marked figures were audited",
            f"A verdict is about one number: {what}. Of all other attacks, norms and radii of this report it says "
            "nothing.",
        )


def _worst_cases(results: Results) -> Iterator[Note]:
    """Where the worst case does not compare, and what several draws of a random forward pass do to it."""
    if not results.places:
        return
    for norm in results.study.norms:
        if lacking := spared(results.study, norm):
            yield _warning(
                f"The worst cases in {norm_title(norm)} rest on different attacks",
                " ".join(f"{attack} was not planned for {', '.join(of)}." for attack, of in lacking.items())
                + " The worst case of these may look better for this reason alone.",
            )
    if random := results.eot_samples():
        yield _info(
            f"The worst case of {_titles(results, random)} is pessimistic",
            "Forward passes are random at test time, and the worst case counts an image as broken if any draw of any "
            "attack, or of a prediction before it, failed: the more is run, the lower it gets, for this reason alone.",
        )


def _parts(parts: Sequence[Mapping[str, Any]]) -> Iterator[Note]:
    """What differs between runs that stand in one report without making them two studies."""

    def different(key: str) -> str:
        """The entries below a key that are not the same in all parts, each with its values."""
        tables = {str(part["name"]): part.get(key) or {} for part in parts}
        lines = []
        for entry in dict.fromkeys(entry for table in tables.values() for entry in table):
            values = {name: table.get(entry) for name, table in tables.items()}
            if any(value != next(iter(values.values())) for value in values.values()):
                lines.append(f"{entry}: " + ", ".join(f"{value} in {name}" for name, value in values.items()))
        return "; ".join(lines)

    if versions := different("versions"):
        text = f"{versions}. A difference between methods or seeds may come from these."
        yield _warning("The runs were made with different versions", text)
    if machines := different("hardware"):
        yield _info("The runs were made on different machines", f"{machines}. Times do not compare across them.")


def _limits(results: Results) -> Iterator[Note]:
    study, manifest = results.study, results.run.manifest
    for group in results.identical_methods():
        yield _info(
            f"{' and '.join(map(study.method_title, group))} are one result",
            "Their trained weights are the same, and so is every prediction: these columns are one network under "
            "several names, not results that confirm each other. (Spatial dropout on the last feature maps, "
            "followed by average pooling, drops the pooled features just as original dropout does.)",
        )
    images = results.counts("n_images")
    if images and images[0] < _FEW_IMAGES:
        yield _info(
            f"Only {images[0]:,} test images" if images[0] > 1 else "Only one test image",
            f"{one_image(images[0]).capitalize()}, and a figure is {known_within(images[0])}.",
        )
    if len(study.trained_seeds) == 1 and study.attacks:
        yield _info(
            "One training seed",
            "How much the figures vary from one training run to the next is not measured here, so a small "
            "difference between two methods may be chance.",
        )
    if overrides := manifest.get("overrides"):
        text = f"Overridden on the command line: {', '.join(map(str, overrides))}."
        yield _info("The study was run with changes", text)
    states = [part.get("git") or {} for part in manifest.get("parts") or [manifest]]
    if dirty := dict.fromkeys(str(state.get("commit")) for state in states if state.get("dirty")):
        yield _info("Uncommitted code", f"The code differs from the commit that is noted: {', '.join(dirty)}.")


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


def _undefined(results: Results) -> Iterator[Note]:
    return (_warning("Gradients that are no numbers", text) for text in undefined_gradients(results.run.cells))


def notes(results: Results, agreements: Sequence[Agreement]) -> list[Note]:
    """All remarks on a run, the gravest first.

    Args:
        results: the run.
        agreements: the comparison of its engines.
    """
    found = [
        *_disagreements(agreements),
        *_gaps(results),
        *_undefined(results),
        *_audits(results),
        *_random_forwards(results),
        *_worst_cases(results),
        *_parts(results.run.manifest.get("parts") or []),
        *_limits(results),
    ]
    return sorted(found, key=lambda note: note.level != "warning")
