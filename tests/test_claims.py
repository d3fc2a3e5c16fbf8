"""The paper's claims: each is decided as its rule says, both ways, and not at all where the run has nothing on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_runs import FakeRun, Key

from robustfdd.paper.claims import CLAIMS
from robustfdd.paper.exhibits import claims
from robustfdd.paper.published import load
from robustfdd.records import load_run
from robustfdd.report.results import sort_results

#: Robust accuracy in percent at the two radii; every FDD above, and original lowest, as the paper has it.
AS_CLAIMED = {
    "none": (40, 20),
    "original": (30, 10),
    "biased": (36, 16),
    "spatial": (35, 15),
    "crossmap": (37, 17),
    "guided": (38, 18),
    "sap": (39, 19),
    "fdd-1d": (60, 50),
    "fdd-2d": (55, 45),
    "fdd-3d": (57, 47),
}
FDD = ("fdd-1d", "fdd-2d", "fdd-3d")
CLEAN = {name: (95.0, 95.1) if name in FDD else (94.0, 94.1) for name in AS_CLAIMED}
ATTACKS = {"fgsm": "FGSM", "bim": "BIM", "pgd": "PGD"}


def run_with(
    robust: Mapping[str, Sequence[int]] = AS_CLAIMED,
    clean: Mapping[str, Sequence[float]] = CLEAN,
    n_seeds: int = 2,
    attacks: Mapping[str, str] = ATTACKS,
    **changes: Any,
) -> FakeRun:
    def counts(key: Key) -> tuple[int, int, int]:
        survived = 94 if key.step == 0 else robust[key.method][key.step - 1]
        return 6, survived, 94 - survived

    return FakeRun(
        counts,
        methods=[(name, name.upper()) for name in robust],
        attacks=attacks,
        eps={"linf": [0.5, 1.0], "l2": [0.5, 1.0]},
        seeds=range(n_seeds),
        clean_accuracy=lambda method, seed: clean[method][seed] / 100,
        **changes,
    )


def decided(run: FakeRun, path: Path, **tables: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Verdict and evidence of every claim that the run decides, by its text."""
    loaded = replace(load_run(run.write(path)), analyses={name.replace("_", "-"): t for name, t in tables.items()})
    found = claims.build(sort_results(loaded))
    if not found:
        return {}
    frame = found[0].frame
    return {row.claim: (row.verdict, row.evidence) for row in frame.itertuples()}


def named(part: str) -> str:
    (text,) = (claim.text for claim in CLAIMS if part in claim.text)
    return text


SIGNIFICANT, BEST = named("significantly"), named("most accurate")
UNDER_ATTACK, SENSITIVE, FIGURE7 = named("FGSM, BIM"), named("sensitive"), named("FDD-1D is above")
SPARSE, SIGN, DISPERSED, COST = named("nearly zero"), named("Negative"), named("dispersed"), named("next to nothing")


def without(*names: str) -> dict[str, tuple[int, int]]:
    return {name: values for name, values in AS_CLAIMED.items() if name not in names}


def test_claims_that_are_borne_out_hold(tmp_path: Path) -> None:
    found = decided(run_with(), tmp_path)
    for claim in (SIGNIFICANT, BEST, UNDER_ATTACK, SENSITIVE, FIGURE7):
        assert found[claim][0] == "holds", claim
    # 3 FDDs against 3 others under 3 attacks at 2 radii in L-infinity; L2 is no part of Table 3.
    assert "higher in 54 of 54" in found[UNDER_ATTACK][1]
    assert "+15.00 points (FDD-2D against NONE, FGSM, ε = 0.5)" in found[UNDER_ATTACK][1]
    assert "+40.00 points (FDD-1D against ORIGINAL, FGSM, ε = 1)" in found[UNDER_ATTACK][1]
    assert found[FIGURE7][1] == "L∞: highest at 2 of 2 radii; L2: highest at 2 of 2 radii"
    assert "FDD-1D +1.00 points" in found[SIGNIFICANT][1]


def test_the_reverse_does_not_hold(tmp_path: Path) -> None:
    robust = {name: tuple(94 - value for value in values) for name, values in AS_CLAIMED.items()}
    clean = {name: tuple(180 - value for value in values) for name, values in CLEAN.items()}
    found = decided(run_with(robust, clean), tmp_path)
    for claim in (SIGNIFICANT, BEST, UNDER_ATTACK, SENSITIVE, FIGURE7):
        assert found[claim][0] == "does not hold", claim


def test_the_majority_says_mostly_and_ties_are_left_out(tmp_path: Path) -> None:
    robust = {**AS_CLAIMED, "fdd-1d": (40, 50), "fdd-2d": (55, 5)}
    found = decided(run_with(robust), tmp_path)
    # Of 54 comparisons FDD-1D ties with none at the first radius and FDD-2D is below all three at the second.
    assert found[UNDER_ATTACK][0] == "mostly holds"
    assert "higher in 42 of 51 comparisons (3 ties left out)" in found[UNDER_ATTACK][1]
    assert found[SENSITIVE] == ("mostly fails", "lowest in 3 of 6 cells")  # as often lowest as not
    assert found[FIGURE7] == (
        "holds",
        "L∞: highest at 1 of 1 radii (1 ties left out); L2: highest at 1 of 1 radii (1 ties left out)",
    )


def test_nothing_but_ties_decides_nothing(tmp_path: Path) -> None:
    found = decided(run_with(dict.fromkeys(AS_CLAIMED, (0, 0)), dict.fromkeys(AS_CLAIMED, (94.0, 94.0))), tmp_path)
    for claim in (BEST, UNDER_ATTACK, SENSITIVE, FIGURE7):
        assert found[claim][0] == "not decided", claim


@pytest.mark.parametrize(
    ("claim", "absent", "title"),
    [
        (SIGNIFICANT, "fdd-2d", "FDD-2D"),
        (BEST, "crossmap", "Crossmap"),
        (UNDER_ATTACK, "spatial", "Spatial"),
        (SENSITIVE, "none", "Non-dropout"),
        (FIGURE7, "guided", "Guided"),
    ],
)
def test_a_claim_does_not_hold_altogether_of_what_was_not_run(
    tmp_path: Path, claim: str, absent: str, title: str
) -> None:
    verdict, evidence = decided(run_with(without(absent)), tmp_path)[claim]
    assert verdict == "mostly holds"
    assert evidence.endswith(f"not run: {title}")


def test_nor_of_attacks_that_were_not_run(tmp_path: Path) -> None:
    verdict, evidence = decided(run_with(attacks={"fgsm": "FGSM", "pgd": "PGD"}), tmp_path)[UNDER_ATTACK]
    assert verdict == "mostly holds"
    assert evidence.endswith("not run: bim")


def test_better_but_not_significantly_does_not_hold(tmp_path: Path) -> None:
    clean = {**CLEAN, "fdd-1d": (93.0, 95.5), "fdd-2d": (93.5, 95.0), "fdd-3d": (93.5, 95.0)}
    assert decided(run_with(clean=clean), tmp_path)[SIGNIFICANT][0] == "does not hold"


def test_one_seed_decides_no_significance_and_says_why(tmp_path: Path) -> None:
    verdict, evidence = decided(run_with(n_seeds=1), tmp_path)[SIGNIFICANT]
    assert verdict == "not decided"
    assert "at least two" in evidence


@pytest.mark.parametrize(("share", "verdict"), [(0.2, "holds"), (0.05, "mostly holds")])
def test_sparseness_is_compared_with_original_dropout(tmp_path: Path, share: float, verdict: str) -> None:
    relative = [0.5, 0.1, 0.3, 0.3, share]
    table = pd.DataFrame(
        {
            "method": ["none", "original", *FDD],
            "seed": 0,
            "share_near_zero_relative": relative,
            "share_near_zero": [value / 2 for value in relative],
            "near_zero_relative": 0.1,
            "n_images": 100,
            "n_features": 512,
        }
    )
    found = decided(run_with(), tmp_path, activation_summary=table)
    assert found[SPARSE][0] == verdict
    assert "ORIGINAL 10.0 %" in found[SPARSE][1]


@pytest.mark.parametrize(
    ("high", "verdict"),
    [((3.0, 3.1, 2.9), "holds"), ((1.0, 1.1, 0.9), "does not hold"), ((2.1, 1.8, 2.2), "does not hold")],
)
def test_dispersion_is_high_density_minus_low_beyond_chance(
    tmp_path: Path, high: Sequence[float], verdict: str
) -> None:
    names = ("none", "original", "fdd-1d")
    rows = [
        {"method": name, "seed": 0, "group": group, "average_entropy": value, "entropy_of_average": value}
        for name, value in zip(names, high, strict=True)
        for group, value in (("low", 2.0), ("high", value))
    ]
    found = decided(run_with(), tmp_path, density_groups=pd.DataFrame(rows))
    assert found[DISPERSED][0] == verdict
    assert f"single maps: {sum(high) / 3 - 2:+.3f} nats over 3 networks" in found[DISPERSED][1]
    published = load()
    gap = published.value("heat-map-entropy-high-density") - published.value("heat-map-entropy-low-density")
    assert f"the paper's: {gap:+.3f}" in found[DISPERSED][1]


@pytest.mark.parametrize(("share", "verdict"), [(0.02, "holds"), (0.04, "mostly holds")])
def test_cost_is_a_share_of_the_epoch(tmp_path: Path, share: float, verdict: str) -> None:
    table = pd.DataFrame({"method": list(FDD), "seed": 0, "estimate_share": [0.001, 0.002, share]})
    assert decided(run_with(), tmp_path, cost=table)[COST][0] == verdict


def with_twin(positive: float, options: Mapping[str, float]) -> FakeRun:
    return run_with(
        {**AS_CLAIMED, "other": (50, 40)},
        {**CLEAN, "other": (positive, positive)},
        dropouts={"other": "fdd-1d"},
        options={"other": options},
    )


@pytest.mark.parametrize(("positive", "verdict"), [(94.0, "holds"), (96.0, "mostly holds")])
def test_negative_correlation_is_held_against_its_twin_and_the_baselines(
    tmp_path: Path, positive: float, verdict: str
) -> None:
    found = decided(with_twin(positive, {"kappa": 0.8, "alpha": 0.1}), tmp_path)
    assert found[SIGN][0] == verdict  # above the three baselines in any case
    assert (
        f"FDD-1D {95.05 - positive:+.2f} points to positive".replace("-", "−").replace("FDD−1D", "FDD-1D")
        in found[SIGN][1]
    )


def test_only_the_papers_ablation_is_a_twin(tmp_path: Path) -> None:
    assert SIGN not in decided(with_twin(94.0, {"kappa": 0.8, "alpha": 0.2}), tmp_path / "a")
    assert SIGN not in decided(run_with(), tmp_path / "b")


def test_the_papers_own_figures_meet_the_rules_on_its_main_data_set(tmp_path: Path) -> None:
    """On Fashion-MNIST; elsewhere its figures do not meet all of them, which the table then shows."""
    dataset = {"name": "fashion-mnist", "title": "Fashion-MNIST"}
    run = run_with(manifest={"dataset": dataset}, study={"normalization": "zero-one"})
    run = replace(run, eps={"linf": [0.02, 0.03], "l2": [0.08, 0.16]})
    (artefact,) = claims.build(sort_results(load_run(run.write(tmp_path))))
    paper = dict(zip(artefact.frame.claim, artefact.frame.paper, strict=True))
    assert paper[BEST] == paper[UNDER_ATTACK] == paper[SENSITIVE] == paper[FIGURE7] == "holds"


def test_what_a_run_has_nothing_on_is_named_and_not_judged(tmp_path: Path) -> None:
    run = run_with()
    found = decided(run, tmp_path)
    assert {SPARSE, SIGN, DISPERSED, COST}.isdisjoint(found)
    (artefact,) = claims.build(sort_results(load_run(tmp_path)))
    assert all(text in artefact.caption for text in (SPARSE, SIGN, DISPERSED, COST))


def test_a_run_without_the_papers_fdd_makes_no_table(tmp_path: Path) -> None:
    run = run_with({"none": (40, 20)}, {"none": (94.0, 94.1)})
    assert decided(run, tmp_path) == {}
