"""Transfer: crafted on one model, measured on another; planned where a study has a model without dropout."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUDY, TinyNet, registered
from torch import nn

import robustfdd
from robustfdd import tasks
from robustfdd.catalogue import load_attack, load_study, study_names
from robustfdd.datasets.base import Dataset, to_pixels
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, ModelContractError
from robustfdd.evaluation import evaluate, plan, prepare_evaluation, run_evaluation
from robustfdd.measure import attack, clean_outcome, measure
from robustfdd.models import build_model, load_model
from robustfdd.records import Outcome, load_run
from robustfdd.specs import LIBRARIES
from robustfdd.threat import NORMS, Threat
from robustfdd.units import TestSet

TRANSFER = load_attack("transfer")


@pytest.fixture
def sibling(tiny_net: TinyNet) -> TinyNet:
    """A network that computes something alike."""
    net = copy.deepcopy(tiny_net)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return net


def images(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(0, 256, (25, 1, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = net(to_pixels(x)).argmax(1)
    y[::6] = (y[::6] + 1) % 4
    return x, y


@pytest.mark.parametrize("engine", LIBRARIES)
@pytest.mark.parametrize("norm", NORMS)
def test_transfer_is_crafting_by_hand(norm: str, engine: str, tiny_net: TinyNet, sibling: TinyNet) -> None:
    x, y = images(tiny_net)
    clean = clean_outcome(tiny_net, x, y, n_classes=4, batch_size=8)
    threat = Threat(norm, 0.2 if norm == "linf" else 1.5)
    result = measure(tiny_net, clean, TRANSFER, threat, engine=get_engine(engine), batch_size=7, source=sibling)
    bim = load_attack("bim").with_parameters({"steps": 20, "relative_step": 0.125})
    by_hand = attack(sibling, to_pixels(x), y, bim, threat, engine=engine)
    with torch.no_grad():
        prediction = torch.where(clean.correct, tiny_net(by_hand).argmax(1), clean.prediction)
    assert result.prediction.tolist() == prediction.tolist()
    assert result.gradient_passes == 20 * int(clean.correct.sum())
    broken = result.outcome == Outcome.BROKEN
    assert broken.any()
    # Crafted on the model itself it is another attack.
    own = measure(tiny_net, clean, TRANSFER, threat, engine=get_engine(engine), source=tiny_net)
    assert (own.outcome == Outcome.BROKEN).sum() > broken.sum()
    same = attack(tiny_net, to_pixels(x), y, "transfer", threat, engine=engine, source=sibling)
    assert torch.allclose(same, by_hand, atol=1e-6)


def test_a_random_model_is_attacked_through_its_sibling_without_averaging(quarters: Dataset) -> None:
    noisy = build_model(quarters, "original", width=1, active="always")
    plain = build_model(quarters, "none", width=1, seed=1)
    clean = TestSet.choose(quarters, 16).clean(noisy, 8, 4)
    threat = Threat("linf", 0.05)
    result = measure(noisy, clean, TRANSFER, threat, engine=get_engine("foolbox"), source=plain)
    assert result.gradient_passes == 20 * int(clean.correct.sum())
    assert result.repeated_accuracy[0] == result.robust_accuracy
    assert len(result.repeated_accuracy) == len(clean.repeated_accuracy)
    # The sibling has to be deterministic.
    with pytest.raises(ModelContractError, match="random in evaluation mode"):
        measure(
            plain,
            TestSet.choose(quarters, 16).clean(plain, 8),
            TRANSFER,
            threat,
            engine=get_engine("art"),
            source=noisy,
        )


def test_a_source_is_asked_for_and_refused(tiny_net: TinyNet, sibling: TinyNet, quarters: Dataset) -> None:
    x, y = images(tiny_net)
    clean = clean_outcome(tiny_net, x, y, n_classes=4, batch_size=8)
    threat, engine = Threat("l2", 0.5), get_engine("foolbox")
    with pytest.raises(ConfigurationError, match=r"'transfer' is crafted on another model .* give that as source"):
        attack(tiny_net, to_pixels(x), y, "transfer", threat)
    with pytest.raises(ConfigurationError, match="give that as source"):
        measure(tiny_net, clean, TRANSFER, threat, engine=engine)
    with pytest.raises(ConfigurationError, match="give that as source"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), quarters, ["fgsm", "transfer"], [threat])
    with pytest.raises(ConfigurationError, match="'ddn' looks for the boundary"):
        attack(tiny_net, to_pixels(x), y, "ddn", threat, source=sibling)
    five = nn.Sequential(nn.Flatten(), nn.Linear(100, 5))
    with pytest.raises(ModelContractError, match="must return 4 logits"):
        measure(tiny_net, clean, TRANSFER, threat, engine=engine, source=five)


def test_evaluate_with_a_source(quarters: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, source = (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for _ in range(2))
    threats = [Threat("linf", 0.05)]
    options = {"source": source, "test_images": 16}
    frame = evaluate(model, quarters, ["fgsm", "transfer"], threats, **options)
    written = evaluate(model, quarters, ["fgsm", "transfer"], threats, out=tmp_path / "run", **options)
    assert frame.robust_accuracy.tolist() == written.robust_accuracy.tolist()
    found = load_run(tmp_path / "run").manifest
    assert [a.get("source") for a in found["study"]["attacks"]] == [None, "source"]
    assert [u.get("source") for u in found["units"]] == [None, "source"]
    # Another source is another result.
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "results").iterdir()}
    with torch.no_grad():
        source[1].weight.neg_()
    evaluate(model, quarters, ["fgsm", "transfer"], threats, out=tmp_path / "run", **options)
    changed = {p.name for p in (tmp_path / "run" / "results").iterdir() if p.stat().st_mtime_ns != before[p.name]}
    assert changed == {"model--transfer--linf--foolbox.parquet"}


def test_a_study_has_it_of_every_method(run: Path, quarters: Dataset) -> None:
    found = load_run(run)
    (entry,) = (a for a in found.manifest["study"]["attacks"] if a["name"] == "transfer")
    assert (entry["source"], entry["access"], entry["kind"]) == ("none", "transfer", "budget")
    assert entry["eps"] == {"linf": [0, 0.1, 0.8], "l2": [0.5]}
    mine = [u for u in found.manifest["units"] if u["attack"] == "transfer"]
    pairs = [("fdd-2d-inverted", "none"), ("none", "fdd-2d-inverted")]
    assert {(u["method"], u["norm"], u["engine"], u["source"], u["source_seed"]) for u in mine} == {
        (method, norm, "foolbox", source, 0) for norm in NORMS for method, source in pairs
    }
    assert not any("source" in u for u in found.manifest["units"] if u not in mine)

    for pair in pairs:
        model, source = (load_model(run / "models" / f"{method}--seed0.safetensors") for method in pair)
        clean = TestSet.choose(quarters, 24).clean(model, 8)
        threat = Threat("linf", 0.8 * quarters.std)
        x_adv = attack(source, to_pixels(clean.images), clean.labels, "transfer", threat, source=source)
        with torch.no_grad():
            wrong = (model(x_adv).argmax(1) != clean.labels) & clean.correct
        cells = found.cells[(found.cells.attack == "transfer") & (found.cells.method == pair[0])]
        for outcome in cells[cells.eps_normalized == 0.8].outcome:
            assert (np.asarray(outcome) == Outcome.BROKEN).tolist() == wrong.tolist()
    assert robustfdd.records.read_json(run / "manifest.json")["study"]["attacks"][-1] == entry


def test_the_sibling_is_trained_first_wherever_it_stands(quarters: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    methods = 'methods = ["original", "none"]'
    path.write_text(methods.join(part for part in [STUDY.split("methods = ")[0], "\n" + STUDY.split("]\n", 1)[1]]))
    with registered(quarters):
        found = load_run(run_evaluation(path, out=tmp_path / "run", overrides=["recipe.epochs=1", "engines=['art']"]))
    assert found.failures == []
    assert set(found.cells[found.cells.attack == "transfer"].method) == {"original", "none"}
    assert [u["method"] for u in found.manifest["units"]] == ["original"] * 4 + ["none"] * 4


def sources(text: str, tmp_path: Path, only: tuple[str, ...] = ()) -> dict[str, set[str | None]]:
    path = tmp_path / "s.toml"
    path.write_text(text)
    found: dict[str, set[str | None]] = {}
    for unit in plan(load_study(path, only=only)):
        found.setdefault(unit.method, set()).add(unit.source)
    return found


def test_what_has_no_sibling_has_no_transfer(tmp_path: Path) -> None:
    both = {"none": {None, "fdd-2d-inverted"}, "fdd-2d-inverted": {None, "none"}}
    assert sources(STUDY, tmp_path) == both
    assert sources(STUDY, tmp_path, only=("fdd-2d-inverted",)) == {"fdd-2d-inverted": {None}}
    assert sources(STUDY, tmp_path, only=("none",)) == {"none": {None}}
    # Trained otherwise, it is no sibling, but has one.
    other = STUDY.replace('"none",', '{dropout = "none", label = "long", recipe = {epochs = 9}}, "none",')
    assert sources(other, tmp_path) == {"long": {None, "none"}, **both}
    alone = STUDY.replace('"none",', '{dropout = "none", label = "long", recipe = {epochs = 9}},')
    assert sources(alone, tmp_path) == {"long": {None}, "fdd-2d-inverted": {None}}
    transfer = '\n[[attacks]]\nname = "transfer"\neps.l2 = [0.1]\n'
    with pytest.raises(ConfigurationError, match=r"attacks\.2: attack 'transfer' is crafted on the model of a method"):
        sources(alone + transfer, tmp_path)
    with pytest.raises(ConfigurationError, match=r"attacks\.2: .* the study has a single one; add a method, or a sec"):
        sources(STUDY + transfer, tmp_path, only=("none",))


def origins(methods: str, seeds: list[int], tmp_path: Path, only: tuple[str, ...] = ()) -> dict[tuple[str, int], str]:
    """What each network is attacked with, by its method and seed, in a study of these methods and seeds."""
    path = tmp_path / "s.toml"
    path.write_text(re.sub("methods = .*", f"methods = {methods}\nseeds = {seeds}", STUDY))
    units = plan(load_study(path, only=only))
    return {(u.method, u.seed): f"{u.source} {u.source_seed}" for u in units if u.attack.name == "transfer"}


NEVER = '{dropout = "original", label = "rests", options = {active = "never"}}'
RANDOM = '{dropout = "original", label = "draws", options = {active = "always"}, eot_samples = 2}'
SAP = '{dropout = "sap", placement = "stages", eot_samples = 2}'
LONG = '{dropout = "fdd-1d", label = "long", recipe = {epochs = 9}}'


@pytest.mark.parametrize(
    ("others", "seeds", "expected"),
    [
        ('"original"', [0, 5, 3], {("none", 0): "none 5", ("none", 5): "none 3", ("none", 3): "none 0"}),
        ('"fdd-1d", "spatial", "original"', [4], {("none", 4): "original 4"}),
        (f'{RANDOM}, {NEVER}, {SAP}, {LONG}, "fdd-1d", "spatial"', [4], {("none", 4): "fdd-1d 4"}),
        (f"{RANDOM}, {NEVER}, {LONG}", [4], {("none", 4): "long 4"}),
        (f"{RANDOM}, {NEVER}, {SAP}", [4], {}),
    ],
)
def test_the_network_without_dropout_is_attacked_from_another(
    others: str, seeds: list[int], expected: dict[tuple[str, int], str], tmp_path: Path
) -> None:
    found = origins(f'["none", {others}]', seeds, tmp_path)
    assert {network: origin for network, origin in found.items() if network[0] == "none"} == expected
    assert all(found[network] == f"none {network[1]}" for network in found if network[0] != "none")


def test_a_single_method_is_attacked_from_its_other_seeds(tmp_path: Path) -> None:
    expected = {("none", 0): "none 1", ("none", 1): "none 0"}
    assert origins('["none", "original"]', [0, 1], tmp_path, only=("none",)) == expected


@pytest.mark.parametrize("overrides", [[], ["seeds=[0]"]], ids=["as it is", "one seed"])
def test_every_method_of_a_study_has_the_same_attacks(overrides: list[str]) -> None:
    """Of the studies that come with the package, none spares a method an attack."""
    for name in study_names():
        units = plan(load_study(name, overrides))
        attacks: dict[tuple[str, int], set[tuple[str, str, str]]] = {}
        for unit in units:
            attacks.setdefault((unit.method, unit.seed), set()).add((unit.attack.name, unit.norm, unit.engine))
            if unit.source is not None:
                assert (unit.source, unit.source_seed) != (unit.method, unit.seed)
        assert len(set(map(frozenset, attacks.values()))) == 1, name


def test_examples_come_from_another_seed_and_belong_to_it(quarters: Dataset, tmp_path: Path) -> None:
    path, run = tmp_path / "s.toml", tmp_path / "run"
    path.write_text(STUDY.replace('methods = ["none",', 'seeds = [0, 1, 2]\nmethods = ["none",'))
    options = {"overrides": ["recipe.epochs=1", "engines=['foolbox']", "methods=['none']"]}
    with registered(quarters):
        prepared = prepare_evaluation(path, out=run, audit=True, **options)
        run_evaluation(path, out=run, **options)
        found = load_run(run)
        assert found.failures == []
        seen: set[str] = set()
        for task in prepared.tasks:  # what examples are made on is trained before
            assert seen.issuperset(task.needs)
            seen.add(task.name)
        needs = {task.name: set(task.needs) for task in prepared.tasks}
        assert needs["none--seed2--transfer--l2--foolbox"] == {"none--seed2", "none--seed0"}
        assert needs["audit--none--seed1"] == {"none--seed1", "none--seed2"}

        for seed in (0, 1, 2):
            networks = [load_model(run / "models" / f"none--seed{s}.safetensors") for s in (seed, (seed + 1) % 3)]
            clean = TestSet.choose(quarters, 24).clean(networks[0], 8)
            threat = Threat("linf", 0.8 * quarters.std)
            x_adv = attack(networks[1], to_pixels(clean.images), clean.labels, "transfer", threat, source=networks[1])
            with torch.no_grad():
                wrong = (networks[0](x_adv).argmax(1) != clean.labels) & clean.correct
            cells = found.cells[(found.cells.attack == "transfer") & (found.cells.seed == seed)]
            (outcome,) = cells[cells.eps_normalized == 0.8].outcome
            assert (np.asarray(outcome) == Outcome.BROKEN).tolist() == wrong.tolist()

        # Another network of seed 1 makes its own results stale, and those that were made on it.
        before = {p.name: p.stat().st_mtime_ns for p in (run / "results").iterdir()}
        checkpoint = run / "models" / "none--seed1.safetensors"
        checkpoint.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "train", functools.partial(slower, tasks.train))
            run_evaluation(path, out=run, **options)
    changed = {p.name for p in (run / "results").iterdir() if p.stat().st_mtime_ns != before[p.name]}
    own = {name for name in before if name.startswith("none--seed1--")}
    assert changed == own | {f"none--seed0--transfer--{norm}--foolbox.parquet" for norm in NORMS}


def slower(train: Callable[..., object], model: nn.Module, *arguments: object, **options: object) -> object:
    """Trains, from weights that are a little smaller."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    return train(model, *arguments, **options)


def test_a_study_may_say_how_it_transfers(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'{STUDY}\n[[attacks]]\nname = "transfer"\neps.l2 = [0.1]\nparameters = {{steps = 40}}\n')
    mine = [unit for unit in plan(load_study(path)) if unit.attack.name == "transfer"]
    assert {(u.method, u.norm, u.eps, u.source) for u in mine} == {
        ("fdd-2d-inverted", "l2", (0.1,), "none"),
        ("none", "l2", (0.1,), "fdd-2d-inverted"),
    }
    assert {u.attack.parameters["steps"] for u in mine} == {40}
