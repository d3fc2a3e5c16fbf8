"""What the paper claims, and by which rule a run bears each claim out or not.

Each claim is decided by a rule written down here and shown with it, not by reading. A claim about accuracy under attack
is decided by the means over seeds; what a difference of that size is worth is in the tables themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any, Literal

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

#: Accuracy in percent by method, then by attack, norm and radius.
Cells = Mapping[str, Mapping[tuple[str, str, str], Fraction]]


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


#: For methods that a run has not.
DROPOUT_TITLES = {name: facts.title for name, facts in load().methods.items()}


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
    decide: Callable[[Evidence], Finding | None]


def _counted(n_true: int, n_false: int) -> Verdict:
    """The verdict on comparisons that came out one way or the other; ties are in neither number."""
    if n_true + n_false == 0:
        return "not decided"
    if n_false == 0:
        return "holds"
    if n_true == 0:
        return "does not hold"
    return "mostly holds" if n_true > n_false else "mostly fails"


def _mean(values: Iterable[Figure]) -> Fraction:
    return mean(list(values))


def _p(value: float | None) -> str:
    return "no test" if value is None else "p < 0.001" if value < 0.001 else f"p = {fixed(value, 3)}"


def _tally(differences: Iterable[Fraction]) -> tuple[int, int, int]:
    """How many are above 0, below 0 and 0."""
    found = list(differences)
    return sum(d > 0 for d in found), sum(d < 0 for d in found), sum(d == 0 for d in found)


def _ties(n: int) -> str:
    return f" ({n} ties left out)" if n else ""


def _significantly_better(evidence: Evidence) -> Finding | None:
    values = evidence.clean
    ours = [name for name in FDD if name in values]
    if "original" not in values or not ours:
        return None
    found = {name: compare(values[name], values["original"]) for name in ours}
    text = "; ".join(
        f"{evidence.title(name)} {signed(item.difference)} points ({_p(item.student)})" for name, item in found.items()
    )
    reasons = {item.reason for item in found.values() if item.student is None}
    if reasons:
        return Finding("not decided", f"{text}: {'; '.join(sorted(reasons))}")
    n_better = sum(item.significantly_higher for item in found.values())
    return Finding(_counted(n_better, len(found) - n_better), text)


def _best_is_fdd(evidence: Evidence) -> Finding | None:
    def verdict(means: Mapping[str, Fraction]) -> Verdict | None:
        ours = [value for name, value in means.items() if name in FDD]
        rivals = [value for name, value in means.items() if name not in FDD]
        return _counted(*_tally([max(ours) - max(rivals)])[:2]) if ours and rivals else None

    means = {name: _mean(values) for name, values in evidence.clean.items()}
    found = verdict(means)
    if found is None:
        return None
    best = max((name for name in means if name in FDD), key=means.__getitem__)
    rival = max((name for name in means if name not in FDD), key=means.__getitem__)
    published = {
        cell.method: exact(cell.accuracy_percent) for cell in load().cells_of(run_dataset(evidence.results), "table2")
    }
    text = (
        f"best FDD: {evidence.title(best)} {fixed(means[best], 2)} %; "
        f"best other: {evidence.title(rival)} {fixed(means[rival], 2)} %"
    )
    return Finding(found, text, verdict(published))


def _better_under_attack(evidence: Evidence) -> Finding | None:
    def gaps(cells: Cells) -> dict[tuple[str, str, tuple[str, str, str]], Fraction]:
        return {
            (fdd, rival, key): value - cells[rival][key]
            for fdd in FDD
            for rival in _TABLE3_BASELINES
            for key, value in cells.get(fdd, {}).items()
            if key in cells.get(rival, {})
        }

    found = gaps(evidence.ours["table3"])
    if not found:
        return None
    higher, lower, ties = _tally(found.values())

    def told(which: tuple[str, str, tuple[str, str, str]]) -> str:
        fdd, rival, (attack, _, eps) = which
        title = evidence.results.study.attack_title(attack)
        return (
            f"{signed(found[which])} points ({evidence.title(fdd)} against {evidence.title(rival)}, {title}, ε = {eps})"
        )

    ends = f"from {told(min(found, key=found.__getitem__))} to {told(max(found, key=found.__getitem__))}"
    absent = [a for a in _ATTACKS if a not in {key[0] for _, _, key in found}]
    text = f"higher in {higher} of {higher + lower} comparisons{_ties(ties)}; {ends}"
    if absent:
        text += f"; not run: {', '.join(absent)}"
    paper = gaps(evidence.paper.get("table3", {}))
    verdict = _counted(higher, lower)
    if verdict == "holds" and absent:
        verdict = "mostly holds"
    return Finding(verdict, text, _counted(*_tally(paper.values())[:2]) if paper else None)


def _original_most_sensitive(evidence: Evidence) -> Finding | None:
    def lowest(cells: Cells) -> tuple[int, int, int]:
        # Spatial dropout on the last maps is original dropout again and can be neither better nor worse.
        others = [name for name in ("none", *FDD) if name in cells]
        shared = [key for key in cells.get("original", {}) if all(key in cells[name] for name in others)]
        return _tally(min(cells[name][key] for name in others) - cells["original"][key] for key in shared if others)

    below, above, ties = lowest(evidence.ours["table3"])
    if below + above + ties == 0:
        return None
    paper = lowest(evidence.paper.get("table3", {}))
    return Finding(
        _counted(below, above),
        f"lowest in {below} of {below + above} cells{_ties(ties)}",
        _counted(*paper[:2]) if sum(paper) else None,
    )


def _fdd_1d_on_top(evidence: Evidence) -> Finding | None:
    def on_top(cells: Cells, norm: str) -> tuple[int, int, int]:
        rivals = [name for name in _FIGURE7_RIVALS if cells.get(name)]
        keys = [key for key in cells.get("fdd-1d", {}) if key[1] == norm]
        shared = [key for key in keys if rivals and all(key in cells[name] for name in rivals)]
        return _tally(cells["fdd-1d"][key] - max(cells[name][key] for name in rivals) for key in shared)

    norms = evidence.results.study.norms
    ours = {norm: on_top(evidence.ours["figure7"], norm) for norm in norms}
    if not any(sum(counts) for counts in ours.values()):
        return None
    paper = [on_top(evidence.paper.get("figure7", {}), norm) for norm in norms]
    text = "; ".join(
        f"{norm_title(norm)}: highest at {higher} of {higher + lower} radii{_ties(ties)}"
        for norm, (higher, lower, ties) in ours.items()
        if higher + lower + ties
    )
    totals = [sum(counts[i] for counts in ours.values()) for i in range(2)]
    published = [sum(counts[i] for counts in paper) for i in range(2)]
    return Finding(_counted(*totals), text, _counted(*published) if any(published) else None)


def _sparser(evidence: Evidence) -> Finding | None:
    columns = ("share_near_zero_relative", "share_near_zero", "near_zero_relative", "n_images", "n_features")
    frame = analysis_table(evidence.results, "activation-summary", columns)
    if frame is None:
        return None
    labels = {method.label: name for name, method in evidence.methods.items()}
    frame = frame[frame["method"].isin(list(labels))]
    means = {
        column: {labels[str(label)]: _mean(shares(mine, column)) for label, mine in frame.groupby("method")}
        for column in columns[:2]
    }
    relative, absolute = means[columns[0]], means[columns[1]]
    ours = [name for name in FDD if name in relative]
    if "original" not in relative or not ours:
        return None
    shown = [name for name in ("none", "original", *ours) if name in relative]
    counts = [_tally(found[name] - found["original"] for name in ours) for found in (relative, absolute)]
    limit = float(frame["near_zero_relative"].iloc[0])
    text = f"below {limit:g} of the network's mean activation: " + "; ".join(
        f"{evidence.title(name)} {fixed(100 * relative[name], 1)} %" for name in shown
    )
    if _counted(*counts[0][:2]) != _counted(*counts[1][:2]):
        text += "; by an absolute limit the order is another"
    return Finding(_counted(*counts[0][:2]), text)


def _negative_is_better(evidence: Evidence) -> Finding | None:
    """Against the positive twin, and against the methods that do not look at density."""
    gaps, parts = [], []
    for name in FDD:
        method = evidence.methods.get(name)
        twin = next((m for m in evidence.results.study.methods if method and _is_positive_twin(m, method)), None)
        positive = list(clean_accuracy(evidence.results, twin.label).values()) if twin else []
        if name not in evidence.clean or not positive:
            continue
        own = _mean(evidence.clean[name])
        rivals = {"positive": _mean(positive)} | {
            rival: _mean(evidence.clean[rival]) for rival in _TABLE3_BASELINES if rival in evidence.clean
        }
        gaps += [own - value for value in rivals.values()]
        best = max((rival for rival in rivals if rival != "positive"), key=rivals.__getitem__, default=None)
        text = f"{evidence.title(name)} {signed(own - rivals['positive'])} points to positive"
        parts.append(text + (f", {signed(own - rivals[best])} to {evidence.title(best)}" if best else ""))
    if not gaps:
        return None
    higher, lower, ties = _tally(gaps)
    return Finding(_counted(higher, lower), "; ".join(parts) + _ties(ties))


def _is_positive_twin(candidate: Method, method: Method) -> bool:
    """Whether the two differ in the sign of the correlation, as in the paper's ablation, and in nothing else."""
    return (
        candidate.dropout == method.dropout
        and candidate.settings.get("placement") == method.settings.get("placement")
        and {**candidate.options} == {**method.options, **_POSITIVE}
    )


def _dense_is_dispersed(evidence: Evidence) -> Finding | None:
    definitions = ("average_entropy", "entropy_of_average")
    frame = analysis_table(evidence.results, "density-groups", ("group", *definitions))
    if frame is None:
        return None
    # One network counts once, under whatever names: with the weights of another, SAP has its maps too.
    weights = {(m.get("method"), m.get("seed")): m.get("weights_sha256") for m in evidence.results.run.models}
    networks = {
        weights.get((method.label, seed)) or (method.label, seed): (method.label, seed)
        for method in evidence.methods.values()
        for seed in sorted(set(frame["seed"]))
    }
    parts, verdicts = [], []
    for definition, words in zip(definitions, ("single maps", "average map"), strict=True):
        entropy: dict[Any, float] = frame.set_index(["method", "seed", "group"])[definition].to_dict()
        gaps = [
            entropy[label, seed, "high"] - entropy[label, seed, "low"]
            for label, seed in networks.values()
            if (label, seed, "high") in entropy and (label, seed, "low") in entropy
        ]
        if len(gaps) < 3:
            return None
        test = ttest_1samp(gaps, 0.0)
        parts.append(
            f"{words}: {fixed(_mean(gaps), 3, sign=True)} nats over {len(gaps)} networks ({_p(float(test.pvalue))})"
        )
        verdicts.append(bool(test.pvalue < LEVEL and _mean(gaps) > 0))
    published = load()
    paper = published.value("heat-map-entropy-high-density") - published.value("heat-map-entropy-low-density")
    text = f"high minus low, {'; '.join(parts)}; the paper's: {fixed(paper, 3, sign=True)}"
    return Finding(_counted(sum(verdicts), len(verdicts) - sum(verdicts)), text)


def _cheap(evidence: Evidence) -> Finding | None:
    frame = analysis_table(evidence.results, "cost", ("estimate_share",))
    if frame is None:
        return None
    found = {
        name: _mean(mine["estimate_share"])
        for name in FDD
        if name in evidence.methods and len(mine := frame[frame["method"] == evidence.methods[name].label])
    }
    if not found:
        return None
    text = "; ".join(f"{evidence.title(name)} {fixed(100 * share, 2)} %" for name, share in found.items())
    n_cheap = sum(share <= NEGLIGIBLE for share in found.values())
    return Finding(_counted(n_cheap, len(found) - n_cheap), f"density estimation, share of an epoch: {text}")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Table 2",
        "Every FDD recognises clean images significantly better than original dropout",
        "Student's t-test over seeds, p < 0.05, for each FDD",
        ("original", *FDD),
        _significantly_better,
    ),
    Claim(
        "Table 2",
        "The most accurate method is an FDD",
        "mean over seeds above that of all others",
        ("none", "original", "biased", "spatial", "crossmap", *FDD),
        _best_is_fdd,
    ),
    Claim(
        "Table 3",
        "Under FGSM, BIM and PGD every FDD is more accurate than no, original and spatial dropout",
        "each FDD against each of the three, mean over seeds, in every cell",
        (*_TABLE3_BASELINES, *FDD),
        _better_under_attack,
    ),
    Claim(
        "Table 3",
        "Original dropout is particularly sensitive to adversarial perturbations",
        "the lowest of no and original dropout and the FDDs, in every cell",
        ("none", "original", *FDD),
        _original_most_sensitive,
    ),
    Claim(
        "Figure 7",
        "Under FGSM, FDD-1D is above no, original and guided dropout and SAP",
        "at every radius above 0, in each norm",
        (*_FIGURE7_RIVALS, "fdd-1d"),
        _fdd_1d_on_top,
    ),
    Claim(
        "Figure 4",
        "FDD makes more activations nearly zero than original dropout",
        "share of near-zero features, for each FDD",
        ("original", *FDD),
        _sparser,
    ),
    Claim(
        "Figure 5",
        "Negative correlation with density is better than positive and than the baselines",
        "clean accuracy, each FDD against its positive twin, no, original and spatial dropout",
        (*_TABLE3_BASELINES, *FDD),
        _negative_is_better,
    ),
    Claim(
        "Figure 3",
        "Maps of high density look at more dispersed parts of the image than those of low density",
        "entropy of the heat maps, by two definitions: above 0 over the networks, t-test, p < 0.05",
        (),
        _dense_is_dispersed,
    ),
    Claim(
        "text on cost",
        "The density estimation costs next to nothing in training",
        f"at most {100 * NEGLIGIBLE:g} % of an epoch, for each FDD",
        FDD,
        _cheap,
    ),
)


def _own_cells(results: Results, methods: Mapping[str, Method], attacks: Iterable[str], norms: Iterable[str]) -> Cells:
    """Robust accuracy in percent at every radius above 0 that has a record."""
    found: dict[str, dict[tuple[str, str, str], Fraction]] = {name: {} for name in methods}
    for (name, method), attack, norm in product(methods.items(), attacks, norms):
        for step, eps in enumerate(results.study.grid(attack, norm), start=1):
            figure = entry_at(results, results.place(method.label, attack, norm, step), "robust_accuracy").mean
            if figure is not None:
                found[name][attack, norm, eps.texts("normalized")[0]] = figure
    return {name: cells for name, cells in found.items() if cells}


def collect(results: Results, methods: Mapping[str, Method]) -> Evidence:
    """What the rules look at, of a run and of its methods that are the paper's, by dropout."""
    published = load()
    dataset = run_dataset(results)
    ours: dict[str, Cells] = {}
    paper: dict[str, Cells] = {}
    if dataset in published.datasets and any(c.place == "table3" for c in published.cells_of(dataset)):
        pairs = [item for item in match_cells(results, published, dataset) if isinstance(item, Pair)]
        for place in ("table3", "figure7"):
            here = [pair for pair in pairs if pair.published.place == place and pair.published.eps_normalized > 0]
            for source, value in ((ours, "ours"), (paper, "paper")):
                cells: dict[str, dict[tuple[str, str, str], Fraction]] = {}
                for pair in here:
                    cell = pair.published
                    key = (str(cell.attack), str(cell.norm), number(cell.eps_normalized))
                    figure = pair.mean if value == "ours" else pair.theirs
                    cells.setdefault(cell.method, {})[key] = figure
                source[place] = cells
    else:
        ours["table3"] = _own_cells(results, methods, _ATTACKS, ["linf"])
        ours["figure7"] = _own_cells(results, methods, ["fgsm"], results.study.norms)
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
