"""What the paper claims, and by which rule a run bears each claim out or not.

Each claim is decided by a rule written down here and shown with it, not by reading. A claim about accuracy under attack
is decided by the means over seeds; what a difference of that size is worth is in the tables themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any, Literal, NamedTuple, TypeAlias

from scipy.stats import ttest_1samp

from robustfdd.paper.matching import Pair, match_cells, run_dataset
from robustfdd.paper.published import load
from robustfdd.paper.statistics import LEVEL, compare
from robustfdd.report.analyses import analysis_table, shares
from robustfdd.report.results import Results
from robustfdd.report.study import Method, norm_title, number, signed
from robustfdd.report.tables import entry_at
from robustfdd.report.training import clean_accuracy
from robustfdd.rounding import Figure, exact, fixed, mean

Verdict = Literal["holds", "mostly holds", "mostly fails", "does not hold", "not decided"]

#: A share of the epoch up to which a cost is called negligible; the paper names none.
NEGLIGIBLE = 0.03

FDD = ("fdd-1d", "fdd-2d", "fdd-3d")
_TABLE3_BASELINES = ("none", "original", "spatial")
_FIGURE7_RIVALS = ("none", "original", "guided", "sap")
_ATTACKS = ("fgsm", "bim", "pgd")
#: The ablation of the sign, Figure 5.
_POSITIVE = {"kappa": 0.8, "alpha": 0.1}

#: Attack, norm and radius.
_Key: TypeAlias = tuple[str, str, str]
#: Accuracy in percent by method, then by attack, norm and radius.
Cells = Mapping[str, Mapping[_Key, Fraction]]


class Tally(NamedTuple):
    """How many differences are above 0, below 0 and 0."""

    above: int
    below: int
    ties: int

    @property
    def verdict(self) -> Verdict:
        """Whether all are above 0, or most of them; ties count for neither side."""
        if self.above + self.below == 0:
            return "not decided"
        if self.below == 0:
            return "holds"
        if self.above == 0:
            return "does not hold"
        return "mostly holds" if self.above > self.below else "mostly fails"

    @property
    def paper(self) -> Verdict | None:
        """The verdict, if there is anything to judge by."""
        return self.verdict if any(self) else None

    def text(self, word: str, things: str) -> str:
        """In words: how many of which are what."""
        return f"{word} {self.above} of {self.above + self.below} {things}{self.left_out}"

    @property
    def left_out(self) -> str:
        """How many ties there are, in words."""
        return f" ({self.ties} ties left out)" if self.ties else ""


def tally(differences: Iterable[Fraction]) -> Tally:
    """Count differences by their sign."""
    found = list(differences)
    return Tally(sum(d > 0 for d in found), sum(d < 0 for d in found), sum(d == 0 for d in found))


def _share(true: Iterable[bool]) -> Verdict:
    """The verdict on what is true of some."""
    found = list(true)
    return Tally(sum(found), len(found) - sum(found), 0).verdict


@dataclass(frozen=True)
class Finding:
    """What became of a claim, and the figures that say so.

    Attributes:
        verdict: by the claim's rule.
        evidence: the figures, in words.
        paper: the verdict of the same rule on the paper's own figures; None where they do not allow it.
    """

    verdict: Verdict
    evidence: str
    paper: Verdict | None = None


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        results: the run.
        methods: its methods that are the paper's, by dropout.
        ours: robust accuracy by place ("table3", "figure7"), over the seeds' mean, at the published radii, or at all
            where none are published for the data set.
        paper: the published figures in the same form; empty where there are none.
        clean: clean accuracy of the whole test split in percent, one for each seed.
    """

    results: Results
    methods: Mapping[str, Method]
    ours: Mapping[str, Cells]
    paper: Mapping[str, Cells]
    clean: Mapping[str, Sequence[Fraction]]

    def title(self, name: str) -> str:
        """The method as a reader knows it."""
        return self.methods[name].title if name in self.methods else DROPOUT_TITLES.get(name, name)

    def rows(self, frame: Any) -> dict[str, Any]:
        """The rows of an analysis for each method that is the paper's, by dropout."""
        groups = {str(label): rows for label, rows in frame.groupby("method")}
        return {name: groups[m.label] for name, m in self.methods.items() if m.label in groups}


#: For methods that a run has not.
DROPOUT_TITLES = {name: facts.title for name, facts in load().methods.items()}


#: A rule; None where the run cannot decide it.
Decide: TypeAlias = Callable[[Evidence], Finding | None]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        place: the table or figure that it stands on.
        text: the claim, in our words.
        rule: when it counts as borne out.
        needs: the methods that it speaks of; without one of them it cannot hold altogether.
        decide: None where the run cannot decide it.
    """

    place: str
    text: str
    rule: str
    needs: tuple[str, ...]
    decide: Decide


#: All claims, in the order in which they are decided below.
CLAIMS: list[Claim] = []


def _claim(place: str, text: str, rule: str, *needs: str) -> Callable[[Decide], Decide]:
    """What a function decides."""

    def listed(decide: Decide) -> Decide:
        CLAIMS.append(Claim(place, text, rule, needs, decide))
        return decide

    return listed


def _mean(values: Iterable[Figure]) -> Fraction:
    return mean(list(values))


def _p(value: float | None) -> str:
    return "no test" if value is None else "p < 0.001" if value < 0.001 else f"p = {fixed(value, 3)}"


@_claim(
    "Table 2",
    "Every FDD recognises clean images significantly better than original dropout",
    "Student's t-test over seeds, p < 0.05, for each FDD",
    *("original", *FDD),
)
def _significantly_better(evidence: Evidence) -> Finding | None:
    values = evidence.clean
    if "original" not in values or not any(name in values for name in FDD):
        return None
    found = {name: compare(values[name], values["original"]) for name in FDD if name in values}
    text = "; ".join(
        f"{evidence.title(name)} {signed(item.difference)} points ({_p(item.student)})" for name, item in found.items()
    )
    reasons = {item.reason for item in found.values() if item.student is None}
    if reasons:
        return Finding("not decided", f"{text}: {'; '.join(sorted(reasons))}")
    return Finding(_share(item.significantly_higher for item in found.values()), text)


@_claim(
    "Table 2",
    "The most accurate method is an FDD",
    "mean over seeds above that of all others",
    *("none", "original", "biased", "spatial", "crossmap", *FDD),
)
def _best_is_fdd(evidence: Evidence) -> Finding | None:
    def best(means: Mapping[str, Fraction], *, fdd: bool) -> str | None:
        return max((name for name in means if (name in FDD) is fdd), key=means.__getitem__, default=None)

    def verdict(means: Mapping[str, Fraction]) -> Verdict | None:
        ours, rival = best(means, fdd=True), best(means, fdd=False)
        return tally([means[ours] - means[rival]]).verdict if ours and rival else None

    means = {name: _mean(values) for name, values in evidence.clean.items()}
    ours, rival = best(means, fdd=True), best(means, fdd=False)
    if not ours or not rival:
        return None
    cells = load().cells_of(run_dataset(evidence.results), "table2")
    text = (
        f"best FDD: {evidence.title(ours)} {fixed(means[ours], 2)} %; "
        f"best other: {evidence.title(rival)} {fixed(means[rival], 2)} %"
    )
    published = {cell.method: exact(cell.accuracy_percent) for cell in cells}
    return Finding(tally([means[ours] - means[rival]]).verdict, text, verdict(published))


@_claim(
    "Table 3",
    "Under FGSM, BIM and PGD every FDD is more accurate than no, original and spatial dropout",
    "each FDD against each of the three, mean over seeds, in every cell",
    *(*_TABLE3_BASELINES, *FDD),
)
def _better_under_attack(evidence: Evidence) -> Finding | None:
    def gaps(cells: Cells) -> dict[tuple[str, str, _Key], Fraction]:
        return {
            (fdd, rival, key): value - cells[rival][key]
            for fdd, rival in product(FDD, _TABLE3_BASELINES)
            for key, value in cells.get(fdd, {}).items()
            if key in cells.get(rival, {})
        }

    def told(which: tuple[str, str, _Key]) -> str:
        fdd, rival, (attack, _, eps) = which
        title = evidence.results.study.attack_title(attack)
        return (
            f"{signed(found[which])} points ({evidence.title(fdd)} against {evidence.title(rival)}, {title}, ε = {eps})"
        )

    found = gaps(evidence.ours["table3"])
    if not found:
        return None
    counts = tally(found.values())
    ends = f"from {told(min(found, key=found.__getitem__))} to {told(max(found, key=found.__getitem__))}"
    text = f"{counts.text('higher in', 'comparisons')}; {ends}"
    verdict = counts.verdict
    run = {attack for _, _, (attack, _, _) in found}
    if absent := [attack for attack in _ATTACKS if attack not in run]:
        text += f"; not run: {', '.join(absent)}"
        verdict = "mostly holds" if verdict == "holds" else verdict
    return Finding(verdict, text, tally(gaps(evidence.paper.get("table3", {})).values()).paper)


@_claim(
    "Table 3",
    "Original dropout is particularly sensitive to adversarial perturbations",
    "the lowest of no and original dropout and the FDDs, in every cell",
    *("none", "original", *FDD),
)
def _original_most_sensitive(evidence: Evidence) -> Finding | None:
    def lowest(cells: Cells) -> Tally:
        # Spatial dropout on the last maps is original dropout again and can be neither better nor worse.
        others = [name for name in ("none", *FDD) if name in cells]
        shared = [key for key in cells.get("original", {}) if others and all(key in cells[name] for name in others)]
        return tally(min(cells[name][key] for name in others) - cells["original"][key] for key in shared)

    found = lowest(evidence.ours["table3"])
    paper = lowest(evidence.paper.get("table3", {})).paper
    return Finding(found.verdict, found.text("lowest in", "cells"), paper) if any(found) else None


@_claim(
    "Figure 7",
    "Under FGSM, FDD-1D is above no, original and guided dropout and SAP",
    "at every radius above 0, in each norm",
    *(*_FIGURE7_RIVALS, "fdd-1d"),
)
def _fdd_1d_on_top(evidence: Evidence) -> Finding | None:
    def on_top(cells: Cells) -> dict[str, Tally]:
        rivals = [name for name in _FIGURE7_RIVALS if cells.get(name)]
        shared = {
            key: cells["fdd-1d"][key] - max(cells[name][key] for name in rivals)
            for key in cells.get("fdd-1d", {})
            if rivals and all(key in cells[name] for name in rivals)
        }
        norms = evidence.results.study.norms
        return {norm: tally(gap for key, gap in shared.items() if key[1] == norm) for norm in norms}

    def total(found: Mapping[str, Tally]) -> Tally:
        return Tally(sum(item.above for item in found.values()), sum(item.below for item in found.values()), 0)

    ours = {norm: counts for norm, counts in on_top(evidence.ours["figure7"]).items() if any(counts)}
    if not ours:
        return None
    texts = (f"{norm_title(norm)}: {counts.text('highest at', 'radii')}" for norm, counts in ours.items())
    return Finding(total(ours).verdict, "; ".join(texts), total(on_top(evidence.paper.get("figure7", {}))).paper)


@_claim(
    "Figure 4",
    "FDD makes more activations nearly zero than original dropout",
    "share of near-zero features, for each FDD",
    *("original", *FDD),
)
def _sparser(evidence: Evidence) -> Finding | None:
    columns = ("share_near_zero_relative", "share_near_zero", "near_zero_relative", "n_images", "n_features")
    frame = analysis_table(evidence.results, "activation-summary", columns)
    rows = {} if frame is None else evidence.rows(frame)
    ours = [name for name in FDD if name in rows]
    if "original" not in rows or not ours:
        return None
    relative, absolute = ({name: _mean(shares(mine, column)) for name, mine in rows.items()} for column in columns[:2])
    verdict, other = (tally(found[name] - found["original"] for name in ours).verdict for found in (relative, absolute))
    limit = float(next(iter(rows.values()))["near_zero_relative"].iloc[0])
    text = f"below {limit:g} of the network's mean activation: " + "; ".join(
        f"{evidence.title(name)} {fixed(100 * relative[name], 1)} %"
        for name in ("none", "original", *ours)
        if name in relative
    )
    return Finding(verdict, text if verdict == other else f"{text}; by an absolute limit the order is another")


@_claim(
    "Figure 5",
    "Negative correlation with density is better than positive and than the baselines",
    "clean accuracy, each FDD against its positive twin, no, original and spatial dropout",
    *(*_TABLE3_BASELINES, *FDD),
)
def _negative_is_better(evidence: Evidence) -> Finding | None:
    gaps: list[Fraction] = []
    parts = []
    for name in FDD:
        method = evidence.methods.get(name)
        twin = next((m for m in evidence.results.study.methods if method and _is_positive_twin(m, method)), None)
        positive = list(clean_accuracy(evidence.results, twin.label).values()) if twin else []
        if name not in evidence.clean or not positive:
            continue
        own = _mean(evidence.clean[name])
        rivals = {rival: _mean(evidence.clean[rival]) for rival in _TABLE3_BASELINES if rival in evidence.clean}
        gaps += [own - value for value in (_mean(positive), *rivals.values())]
        text = f"{evidence.title(name)} {signed(own - _mean(positive))} points to positive"
        if rivals:
            best = max(rivals, key=rivals.__getitem__)
            text += f", {signed(own - rivals[best])} to {evidence.title(best)}"
        parts.append(text)
    counts = tally(gaps)
    return Finding(counts.verdict, "; ".join(parts) + counts.left_out) if gaps else None


def _is_positive_twin(candidate: Method, method: Method) -> bool:
    """Whether the two differ in the sign of the correlation, as in the paper's ablation, and in nothing else."""
    return (
        candidate.dropout == method.dropout
        and candidate.settings.get("placement") == method.settings.get("placement")
        and {**candidate.options} == {**method.options, **_POSITIVE}
    )


@_claim(
    "Figure 3",
    "Maps of high density look at more dispersed parts of the image than those of low density",
    "entropy of the heat maps, by two definitions: above 0 over the networks, t-test, p < 0.05",
)
def _dense_is_dispersed(evidence: Evidence) -> Finding | None:
    definitions = {"average_entropy": "single maps", "entropy_of_average": "average map"}
    frame = analysis_table(evidence.results, "density-groups", ("group", *definitions))
    if frame is None:
        return None
    # One network counts once, under whatever names: with the weights of another, SAP has its maps too.
    weights = {(m.get("method"), m.get("seed")): m.get("weights_sha256") for m in evidence.results.run.models}
    models = product((method.label for method in evidence.methods.values()), sorted(set(frame["seed"])))
    networks = {weights.get(model) or model: model for model in models}
    parts, verdicts = [], []
    for definition, words in definitions.items():
        entropy: dict[Any, float] = frame.set_index(["method", "seed", "group"])[definition].to_dict()
        both = [(entropy.get((*model, "high")), entropy.get((*model, "low"))) for model in networks.values()]
        gaps = [high - low for high, low in both if high is not None and low is not None]
        if len(gaps) < 3:
            return None
        p = float(ttest_1samp(gaps, 0.0).pvalue)
        parts.append(f"{words}: {fixed(_mean(gaps), 3, sign=True)} nats over {len(gaps)} networks ({_p(p)})")
        verdicts.append(p < LEVEL and _mean(gaps) > 0)
    published = load()
    paper = published.value("heat-map-entropy-high-density") - published.value("heat-map-entropy-low-density")
    text = f"high minus low, {'; '.join(parts)}; the paper's: {fixed(paper, 3, sign=True)}"
    return Finding(_share(verdicts), text)


@_claim(
    "text on cost",
    "The density estimation costs next to nothing in training",
    f"at most {100 * NEGLIGIBLE:g} % of an epoch, for each FDD",
    *FDD,
)
def _cheap(evidence: Evidence) -> Finding | None:
    frame = analysis_table(evidence.results, "cost", ("estimate_share",))
    rows = {} if frame is None else evidence.rows(frame)
    found = {name: _mean(rows[name]["estimate_share"]) for name in FDD if name in rows}
    if not found:
        return None
    text = "; ".join(f"{evidence.title(name)} {fixed(100 * share, 2)} %" for name, share in found.items())
    verdict = _share(share <= NEGLIGIBLE for share in found.values())
    return Finding(verdict, f"density estimation, share of an epoch: {text}")


def _own_cells(results: Results, methods: Mapping[str, Method], attacks: Iterable[str], norms: Iterable[str]) -> Cells:
    """Robust accuracy in percent at every radius above 0 that has a record."""
    found: dict[str, dict[_Key, Fraction]] = {}
    for (name, method), attack, norm in product(methods.items(), attacks, norms):
        for step, eps in enumerate(results.study.grid(attack, norm), start=1):
            figure = entry_at(results, results.place(method.label, attack, norm, step), "robust_accuracy").mean
            if figure is not None:
                found.setdefault(name, {})[attack, norm, eps.texts("normalized")[0]] = figure
    return found


def _cells(pairs: Iterable[Pair], place: str, of: Callable[[Pair], Fraction]) -> Cells:
    """The figures of one table or figure at radii above 0."""
    found: dict[str, dict[_Key, Fraction]] = {}
    for pair in pairs:
        cell = pair.published
        if cell.place == place and cell.eps_normalized > 0:
            key = (str(cell.attack), str(cell.norm), number(cell.eps_normalized))
            found.setdefault(cell.method, {})[key] = of(pair)
    return found


def collect(results: Results, methods: Mapping[str, Method]) -> Evidence:
    """What the rules look at, of a run and of its methods that are the paper's, by dropout."""
    published, dataset = load(), run_dataset(results)
    paper: dict[str, Cells] = {}
    if published.cells_of(dataset, "table3"):
        pairs = [item for item in match_cells(results, published, dataset) if isinstance(item, Pair)]
        ours = {place: _cells(pairs, place, lambda pair: pair.mean) for place in ("table3", "figure7")}
        paper = {place: _cells(pairs, place, lambda pair: pair.theirs) for place in ("table3", "figure7")}
    else:
        ours = {
            "table3": _own_cells(results, methods, _ATTACKS, ["linf"]),
            "figure7": _own_cells(results, methods, ["fgsm"], results.study.norms),
        }
    clean = {name: values for name, m in methods.items() if (values := list(clean_accuracy(results, m.label).values()))}
    return Evidence(results, methods, ours, paper, clean)


def judged(claim: Claim, evidence: Evidence) -> Finding | None:
    """The finding on a claim, which cannot hold altogether where a method that it speaks of was not run."""
    finding = claim.decide(evidence)
    absent = [evidence.title(name) for name in claim.needs if name not in evidence.clean]
    if finding is None or not absent:
        return finding
    verdict: Verdict = "mostly holds" if finding.verdict == "holds" else finding.verdict
    return replace(finding, verdict=verdict, evidence=f"{finding.evidence}; not run: {', '.join(absent)}")
