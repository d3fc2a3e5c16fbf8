"""What the paper claims, and whether this run bears it out: one row a claim, with the figures that decide it.

Each claim is decided by a rule written down here and shown in the table, not by reading. A claim about accuracy under
attack is decided by the means over seeds; what a difference of that size is worth is in the tables themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import pandas as pd

from robustfdd.published import load
from robustfdd.report.analyses import analysis_table
from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import Grid
from robustfdd.report.matching import match_methods
from robustfdd.report.results import Place, Results
from robustfdd.report.statistics import compare
from robustfdd.report.study import Method, norm_title, signed
from robustfdd.report.tables import entry_at, seeds_text
from robustfdd.report.training import clean_accuracy

ORDER = 5

Verdict = Literal["holds", "holds in part", "does not hold", "not decided"]

#: A share of the epoch up to which a cost is called negligible; the paper names none.
NEGLIGIBLE = 0.03

_FDD = ("fdd-1d", "fdd-2d", "fdd-3d")
_TABLE3_BASELINES = ("none", "original", "spatial")
_FIGURE7_RIVALS = ("none", "original", "guided", "sap")


@dataclass(frozen=True)
class Finding:
    """What became of a claim, and the figures that say so."""

    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        place: the table or figure that it stands on.
        text: the claim, in our words.
        rule: when it counts as borne out.
        decide: from the run and its methods that are the paper's, by dropout; None where the run cannot decide it.
    """

    place: str
    text: str
    rule: str
    decide: Callable[[Results, Mapping[str, Method]], Finding | None]


def _counted(n_true: int, n: int) -> Verdict:
    return "holds" if n_true == n else "does not hold" if n_true == 0 else "holds in part"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _significantly_better(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    values = {name: list(clean_accuracy(results, method.label).values()) for name, method in methods.items()}
    if not values.get("original") or not any(values.get(name) for name in _FDD):
        return None
    found = {name: compare(values[name], values["original"]) for name in _FDD if values.get(name)}
    evidence = "; ".join(
        f"{methods[name].title} {signed(item.difference)} points ({_p(item.student)})" for name, item in found.items()
    )
    reasons = {item.reason for item in found.values() if item.student is None}
    if reasons:
        return Finding("not decided", f"{evidence}: {'; '.join(sorted(reasons))}")
    return Finding(_counted(sum(item.significantly_higher for item in found.values()), len(found)), evidence)


def _p(value: float | None) -> str:
    return "no test" if value is None else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _best_is_fdd(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    means = {
        name: _mean(found) for name, m in methods.items() if (found := list(clean_accuracy(results, m.label).values()))
    }
    rivals = {name: value for name, value in means.items() if name not in _FDD}
    ours = {name: value for name, value in means.items() if name in _FDD}
    if not rivals or not ours:
        return None
    best, rival = max(ours, key=lambda name: ours[name]), max(rivals, key=lambda name: rivals[name])
    return Finding(
        "holds" if ours[best] > rivals[rival] else "does not hold",
        f"best FDD: {methods[best].title} {ours[best]:.2f} %; best other: {methods[rival].title} {rivals[rival]:.2f} %",
    )


def _cells(results: Results, method: Method, attacks: Iterable[str], norms: Iterable[str]) -> dict[Place, float]:
    """Robust accuracy in percent at every radius above 0 that has a record, by its place without the method."""
    found = {}
    for attack, norm in product(attacks, norms):
        for step in range(1, len(results.study.grid(attack, norm)) + 1):
            place = Place(method.label, attack, norm, results.study.engine, step)
            mean = entry_at(results, place, "robust_accuracy").mean
            if mean is not None:
                found[Place("", attack, norm, results.study.engine, step)] = mean
    return found


def _better_under_attack(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    attacks = ("fgsm", "bim", "pgd")
    ours = {n: _cells(results, methods[n], attacks, ["linf"]) for n in _FDD if n in methods}
    rivals = {n: _cells(results, methods[n], attacks, ["linf"]) for n in _TABLE3_BASELINES if n in methods}
    gaps = [
        (mean - theirs[place], place, fdd, rival)
        for fdd, cells in ours.items()
        for place, mean in cells.items()
        for rival, theirs in rivals.items()
        if place in theirs
    ]
    if not gaps:
        return None
    n_better = sum(gap > 0 for gap, *_ in gaps)
    ends = [min(gaps, key=lambda item: item[0]), max(gaps, key=lambda item: item[0])]
    texts = [
        f"{signed(gap)} points ({methods[fdd].title} against {methods[rival].title}, "
        f"{results.study.attack_title(place.attack)}, ε = "
        f"{results.study.grid(place.attack, place.norm)[place.step - 1].texts('normalized')[0]})"
        for gap, place, fdd, rival in ends
    ]
    return Finding(
        _counted(n_better, len(gaps)), f"{n_better} of {len(gaps)} comparisons; from {texts[0]} to {texts[1]}"
    )


def _original_most_sensitive(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    names = [name for name in (*_TABLE3_BASELINES, *_FDD) if name in methods]
    cells = {name: _cells(results, methods[name], ("fgsm", "bim", "pgd"), ["linf"]) for name in names}
    # Spatial dropout on the last maps is original dropout again and cannot be better or worse than it.
    others = [name for name in names if name not in ("original", "spatial")]
    if "original" not in cells or not others:
        return None
    shared = [place for place in cells["original"] if all(place in cells[name] for name in others)]
    if not shared:
        return None
    lowest = sum(all(cells["original"][p] < cells[name][p] for name in others) for p in shared)
    return Finding(_counted(lowest, len(shared)), f"lowest in {lowest} of {len(shared)} cells")


def _fdd_1d_on_top(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    rivals = [name for name in _FIGURE7_RIVALS if name in methods]
    if "fdd-1d" not in methods or not rivals:
        return None
    parts, n_on_top, n = [], 0, 0
    for norm in results.study.norms:
        ours = _cells(results, methods["fdd-1d"], ["fgsm"], [norm])
        theirs = [_cells(results, methods[name], ["fgsm"], [norm]) for name in rivals]
        shared = [place for place in ours if all(place in cells for cells in theirs)]
        on_top = sum(all(ours[place] > cells[place] for cells in theirs) for place in shared)
        if shared:
            parts.append(f"{norm_title(norm)}: highest at {on_top} of {len(shared)} radii")
        n_on_top, n = n_on_top + on_top, n + len(shared)
    return Finding(_counted(n_on_top, n), "; ".join(parts)) if n else None


def _sparser(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    frame = analysis_table(results, "activation-summary", ("share_near_zero_relative", "near_zero_relative"))
    if frame is None or "original" not in methods:
        return None
    means = frame.groupby("method")["share_near_zero_relative"].mean()
    found = {name: float(means[m.label]) for name, m in methods.items() if m.label in means.index}
    ours = [name for name in _FDD if name in found]
    if "original" not in found or not ours:
        return None
    limit = float(frame["near_zero_relative"].iloc[0])
    shown = [name for name in ("none", "original", *ours) if name in found]
    evidence = "; ".join(f"{methods[name].title} {100 * found[name]:.1f} %" for name in shown)
    verdict = _counted(sum(found[name] > found["original"] for name in ours), len(ours))
    return Finding(verdict, f"below {limit:g} of the mean activation: {evidence}")


def _negative_beats_positive(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    parts, n_better, n = [], 0, 0
    for name in _FDD:
        twins = [m for m in results.study.methods if m.dropout == name and (m.options.get("kappa") or 0) > 0]
        if name not in methods or not twins:
            continue
        negative = list(clean_accuracy(results, methods[name].label).values())
        positive = list(clean_accuracy(results, twins[0].label).values())
        if negative and positive:
            gap = _mean(negative) - _mean(positive)
            parts.append(f"{methods[name].title} {signed(gap)} points")
            n_better, n = n_better + (gap > 0), n + 1
    return Finding(_counted(n_better, n), "negative minus positive: " + "; ".join(parts)) if n else None


def _dense_is_dispersed(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    columns = ("group", "average_entropy", "entropy_of_average")
    frame = analysis_table(results, "density-groups", columns)
    if frame is None:
        return None
    gaps = []
    for column in columns[1:]:
        means: dict[Any, float] = frame.groupby(["method", "group"])[column].mean().to_dict()
        for method in methods.values():
            high, low = means.get((method.label, "high")), means.get((method.label, "low"))
            gaps += [high - low] if high is not None and low is not None else []
    if not gaps:
        return None
    n_higher = sum(gap > 0 for gap in gaps)
    published = load()
    paper = published.value("heat-map-entropy-high-density") - published.value("heat-map-entropy-low-density")
    return Finding(
        _counted(n_higher, len(gaps)),
        f"high minus low: {min(gaps):+.3f} to {max(gaps):+.3f} nats over the methods and two definitions, above 0 in "
        f"{n_higher} of {len(gaps)}; the paper's: {paper:+.3f}",
    )


def _cheap(results: Results, methods: Mapping[str, Method]) -> Finding | None:
    frame = analysis_table(results, "cost", ("estimate_share",))
    if frame is None:
        return None
    means = frame.groupby("method")["estimate_share"].mean()
    found = {name: float(means[m.label]) for name in _FDD if (m := methods.get(name)) and m.label in means.index}
    if not found:
        return None
    evidence = "; ".join(f"{methods[name].title} {100 * share:.2f} %" for name, share in found.items())
    verdict = _counted(sum(share <= NEGLIGIBLE for share in found.values()), len(found))
    return Finding(verdict, f"density estimation, share of an epoch: {evidence}")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Table 2",
        "Every FDD recognises clean images significantly better than original dropout",
        "Student's t-test over seeds, p < 0.05, for each FDD",
        _significantly_better,
    ),
    Claim("Table 2", "The most accurate method is an FDD", "mean over seeds above that of all others", _best_is_fdd),
    Claim(
        "Table 3",
        "Under FGSM, BIM and PGD every FDD is more accurate than no, original and spatial dropout",
        "each FDD against each of the three, at every L∞ radius run",
        _better_under_attack,
    ),
    Claim(
        "Table 3",
        "Original dropout is particularly sensitive to adversarial perturbations",
        "the lowest of no and original dropout and the FDDs, at every L∞ radius run",
        _original_most_sensitive,
    ),
    Claim(
        "Figure 7",
        "Under FGSM, FDD-1D is above no, original and guided dropout and SAP",
        "at every radius run, in each norm",
        _fdd_1d_on_top,
    ),
    Claim(
        "Figure 4",
        "FDD makes more activations nearly zero than original dropout",
        "share of near-zero features, for each FDD",
        _sparser,
    ),
    Claim(
        "Figure 5",
        "Negative correlation with density is better than positive",
        "clean accuracy, for each FDD",
        _negative_beats_positive,
    ),
    Claim(
        "Figure 3",
        "Maps of high density look at more dispersed parts of the image than those of low density",
        "entropy of the heat maps, for each method",
        _dense_is_dispersed,
    ),
    Claim(
        "text on cost",
        "The density estimation costs next to nothing in training",
        f"at most {100 * NEGLIGIBLE:g} % of an epoch, for each FDD",
        _cheap,
    ),
)


def build(results: Results) -> list[Artefact]:
    """The claims that the run has something on; none for a run that has no FDD of the paper's."""
    methods, _ = match_methods(results, load())
    if not any(name in methods for name in _FDD):
        return []
    found = [(claim, claim.decide(results, methods)) for claim in CLAIMS]
    decided = [(claim, finding) for claim, finding in found if finding is not None]
    if not decided:
        return []
    untold = [f"{claim.text} ({claim.place})" for claim, finding in found if finding is None]
    caption = (
        f"{results.study.dataset}; {seeds_text(results.study.seeds)}; with the network and the recipe of this run, "
        "which are not the paper's in all (see the settings below). Methods are those with the paper's options. A "
        "claim holds if its rule is met everywhere, and in part if somewhere. That a claim on accuracy under attack "
        "holds does not say why: weak gradients would look the same."
    )
    if untold:
        caption += f" This run says nothing on: {'; '.join(untold)}."
    rows = [(claim.place, claim.text, claim.rule, finding.verdict, finding.evidence) for claim, finding in decided]
    headers = ("Place", "Claim", "Holds if", "Verdict", "Here")
    title = "The paper's claims, in this run"
    grid = Grid("claims", title, caption, headers, tuple(rows), n_text=len(headers), prose=frozenset({1, 2, 4}))
    frame = pd.DataFrame(rows, columns=["place", "claim", "rule", "verdict", "evidence"])
    return [Artefact("claims", title, caption, frame, grid)]
