"""What all dropout layers share: modes, rescaling, randomness, gradients, copies; and the registry."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustfdd.dropouts
from robustfdd.dropouts import (
    DROPOUTS,
    Dropout,
    DropoutSpec,
    FeatureDensityDropout,
    OriginalDropout,
    SpatialDropout,
    build_dropout,
    register,
)
from robustfdd.errors import ConfigurationError

SIGMAS = 5
#: Every layer that drops by independent draws, with another p than the default where that is 0.5, which a test could
#: not tell from 1 - p. Those whose randomness is of another kind, or that learn, are in test_dropout_variants.py.
LAYERS: dict[str, dict[str, Any]] = {
    "original": {"p": 0.3},
    "biased": {"p_strong": 0.2, "p_weak": 0.7},
    "spatial": {"p": 0.3},
    "crossmap": {"p": 0.3},
    "fdd-1d": {},
    "fdd-2d": {},
    "fdd-3d": {},
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)
RESCALES = ("none", "inverted", "test")
EACH_RESCALE = pytest.mark.parametrize("rescale", RESCALES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, **options: Any) -> Dropout:
    layer = build_dropout(name, **LAYERS[name], **options)
    assert isinstance(layer, Dropout)
    return layer


def example(name: str, n: int = 6, c: int = 40, seed: int = 0) -> Tensor:
    """Positive input for a layer: a zero in the output is then a unit that was dropped."""
    shape = (n, c) if DROPOUTS[name].site == "features" else (n, c, 4, 4)
    return torch.rand(shape, generator=seeded(seed)) + 0.1


def as_units(p: Tensor, x: Tensor) -> Tensor:
    """Give a (N, C) tensor the dimensions of x."""
    return p.reshape(p.shape + (1,) * (x.ndim - p.ndim)).expand(x.shape)


# --- modes and rescaling ---------------------------------------------------------------------------------------------


@EACH_LAYER
def test_evaluation_returns_the_input_itself(name: str) -> None:
    x = example(name)
    for rescale in ("none", "inverted"):
        assert make(name, rescale=rescale).eval()(x) is x
    for rescale in RESCALES:
        never = make(name, rescale=rescale, active="never")
        assert never(x) is x
        assert never.eval()(x) is x
        assert not never.dropping
        assert not never.random_in_evaluation


@EACH_LAYER
@EACH_RESCALE
def test_always_drops_in_evaluation_as_in_training(name: str, rescale: str) -> None:
    x = example(name)
    training = make(name, rescale=rescale, generator=seeded())(x)
    layer = make(name, rescale=rescale, active="always", generator=seeded()).eval()
    assert not layer.training
    assert layer.dropping
    assert layer.random_in_evaluation
    assert torch.equal(layer(x), training)
    assert (training == 0).any()


@EACH_LAYER
@EACH_RESCALE
def test_test_drops_in_evaluation_as_in_training_and_not_in_training(name: str, rescale: str) -> None:
    x = example(name)
    training = make(name, rescale=rescale, generator=seeded())(x)
    layer = make(name, rescale=rescale, active="test", generator=seeded())
    assert layer.training
    assert layer(x) is x
    assert not layer.dropping
    layer.eval()
    assert layer.dropping
    assert layer.random_in_evaluation
    assert torch.equal(layer(x), training)


@EACH_LAYER
def test_active_can_be_changed_on_a_trained_layer(name: str) -> None:
    x = example(name)
    layer = make(name, generator=seeded()).eval()
    assert not layer.random_in_evaluation
    assert layer(x) is x
    layer.active = "always"
    assert (layer(x) == 0).any()
    layer.active = "never"
    assert layer.train()(x) is x
    layer.active = "test"
    assert layer.train()(x) is x
    assert (layer.eval()(x) == 0).any()
    layer.active = "never"
    with pytest.raises(ConfigurationError, match="active must be one of train, always, never, test, not 'eval'"):
        layer.active = "eval"  # type: ignore[assignment]  # the mistake that is tested
    with pytest.raises(ConfigurationError, match="rescale must be one of none, inverted, test, not 'train'"):
        layer.rescale = "train"  # type: ignore[assignment]  # the mistake that is tested
    assert layer.active == "never"


@EACH_LAYER
@EACH_RESCALE
def test_kept_units_have_the_value_that_rescale_gives_them(name: str, rescale: str) -> None:
    x = example(name)
    layer = make(name, rescale=rescale, generator=seeded())
    y = layer(x)
    kept = y != 0
    assert 0 < kept.double().mean() < 1
    scale = 1 / (1 - as_units(layer.drop_probability(x), x)) if rescale == "inverted" else torch.ones_like(x)
    torch.testing.assert_close(y[kept], (x * scale)[kept])


@EACH_LAYER
def test_rescale_test_multiplies_by_one_minus_p_in_evaluation(name: str) -> None:
    x = example(name)
    layer = make(name, rescale="test").eval()
    torch.testing.assert_close(layer(x), x * (1 - as_units(layer.drop_probability(x), x)))
    assert torch.equal(layer(x), layer(x))


@EACH_LAYER
@EACH_RESCALE
def test_drop_rates_and_mean_output(name: str, rescale: str) -> None:
    n = 4000
    one = example(name, n=1, c=24)
    x = one.expand(n, *one.shape[1:])
    layer = make(name, rescale=rescale, generator=seeded(1))
    p = as_units(layer.drop_probability(one), one)[0].double()
    y = layer(x).double()
    # Each unit of the n copies of a sample is dropped by a draw of its own, with probability p.
    n_dropped = (y == 0).double().sum(0)
    assert ((n_dropped - n * p).abs() <= SIGMAS * (n * p * (1 - p)).sqrt()).all()
    # The mean output is what evaluation gives, but for rescale = "none", where evaluation gives more.
    value = one[0].double() / (1 - p if rescale == "inverted" else 1)
    error = SIGMAS * value * (p * (1 - p) / n).sqrt()
    evaluation = layer.eval()(one)[0].double()
    assert ((y.mean(0) - (1 - p) * value).abs() <= error).all()
    if rescale == "none":
        assert (y.mean(0) < evaluation).all()
    else:
        assert ((y.mean(0) - evaluation).abs() <= error + 1e-6).all()


@EACH_LAYER
def test_units_and_samples_are_dropped_independently(name: str) -> None:
    n = 4000
    one = example(name, n=1, c=16)
    keep = (make(name, generator=seeded(2))(one.expand(n, *one.shape[1:])) != 0).double()
    if name == "crossmap":
        assert ((keep.mean(1) == 0) | (keep.mean(1) == 1)).all()  # positions go in all maps
        keep = keep[:, 0].flatten(1)
    elif DROPOUTS[name].site == "maps":
        assert ((keep.mean((2, 3)) == 0) | (keep.mean((2, 3)) == 1)).all()  # maps go whole
        keep = keep[:, :, 0, 0]
    between_units = torch.corrcoef(keep.T) - torch.eye(16)
    between_samples = torch.corrcoef(torch.stack([keep[:-1].flatten(), keep[1:].flatten()]))[0, 1]
    assert between_units.abs().max() <= SIGMAS / math.sqrt(n)
    # The units of a sample share their rates, which is a correlation; it is taken out.
    expected = keep.mean(0).var(correction=0) / keep.flatten().var(correction=0)
    assert (between_samples - expected).abs() <= SIGMAS / math.sqrt(keep.numel())


# --- randomness ------------------------------------------------------------------------------------------------------


@EACH_LAYER
def test_the_seed_alone_decides_the_mask(name: str) -> None:
    x = example(name)
    first = make(name, generator=seeded(7))
    again = make(name, generator=seeded(7))
    other = make(name, generator=seeded(8))
    one = first(x)
    assert torch.equal(again(x), one)
    assert not torch.equal(other(x), one)
    assert not torch.equal(first(x), one)  # the next draw is a new one


@EACH_LAYER
def test_without_a_generator_the_global_one_is_used(name: str) -> None:
    x = example(name)
    layer = make(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        one = layer(x)
        assert not torch.equal(layer(x), one)
        torch.manual_seed(3)
        assert torch.equal(layer(x), one)
        torch.manual_seed(3)
        own = make(name, generator=seeded(3))(x)
        assert torch.equal(own, one)


@EACH_LAYER
def test_a_layer_with_its_own_generator_leaves_the_global_one_alone(name: str) -> None:
    state = torch.get_rng_state()
    make(name, generator=seeded())(example(name))
    assert torch.equal(torch.get_rng_state(), state)


@EACH_LAYER
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_go_on_with_the_same_masks_on_their_own(name: str, duplicate: Any) -> None:
    x = example(name)
    layer = make(name, active="always", rescale="inverted", generator=seeded(4))
    layer(x)
    twin = duplicate(layer)
    expected = [layer(x), layer(x)]
    assert torch.equal(twin(x), expected[0])
    assert torch.equal(twin(x), expected[1])
    assert repr(twin) == repr(layer)
    assert twin.generator is not layer.generator
    assert duplicate(make(name)).generator is None


@EACH_LAYER
def test_layers_have_no_parameters_or_state(name: str) -> None:
    layer = make(name, generator=seeded())
    assert not layer.state_dict()
    assert not list(layer.parameters())
    layer.load_state_dict({})


# --- gradients and arithmetic ----------------------------------------------------------------------------------------


@EACH_LAYER
@EACH_RESCALE
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_is_what_the_input_was_multiplied_by(name: str, rescale: str, training: bool) -> None:
    x = example(name).requires_grad_()
    layer = make(name, rescale=rescale, active="train", generator=seeded(5)).train(training)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y / x).detach())
    if training:
        assert torch.equal(x.grad == 0, y == 0)
        assert (x.grad == 0).any()
    assert not layer.drop_probability(x).requires_grad


@pytest.mark.parametrize("layer_class", [OriginalDropout, SpatialDropout])
@EACH_RESCALE
def test_dropping_nothing_and_everything(layer_class: Any, rescale: str) -> None:
    x = torch.full((4, 8, 3, 3), 2.0, requires_grad=True)
    assert torch.equal(layer_class(0.0, rescale=rescale)(x), x)
    y = layer_class(1.0, rescale=rescale)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_density_dropout_that_drops_a_cell_for_certain() -> None:
    # kappa + alpha = 1: the densest cell always goes, and dividing by 1 - p must not give NaN.
    layer = FeatureDensityDropout(1, 2, kappa=0.6, alpha=0.4, rescale="inverted")
    y = layer(torch.tensor([[1.0, 1.1, 1.2, 2.0]]).expand(50, 4))
    assert torch.equal(y[:, :3], torch.zeros(50, 3))
    assert y.isfinite().all()


@EACH_LAYER
@EACH_RESCALE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_keep_theirs_and_drop_the_same_units(name: str, rescale: str, dtype: torch.dtype) -> None:
    x = example(name).to(dtype)
    y = make(name, rescale=rescale, generator=seeded())(x)
    assert y.dtype == dtype
    reference = make(name, rescale=rescale, generator=seeded())(x.float())
    torch.testing.assert_close(y, reference.to(dtype), rtol=2 * torch.finfo(dtype).eps + 1e-7, atol=0)
    evaluation = make(name, rescale=rescale).eval()(x)
    assert evaluation.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_rates_hold_in_half_precision_too(dtype: torch.dtype) -> None:
    n, p = 10**6, 1e-3
    n_dropped = int((OriginalDropout(p, generator=seeded())(torch.ones(n, dtype=dtype)) == 0).sum())
    assert abs(n_dropped - n * p) <= SIGMAS * math.sqrt(n * p * (1 - p))


@EACH_LAYER
def test_layers_work_in_any_model_and_under_autocast(name: str) -> None:
    pooled: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layer = make(name, active="always", generator=seeded())
    middle = [*pooled, layer] if DROPOUTS[name].site == "features" else [layer, *pooled]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), *middle, nn.Linear(12, 5))
    for n in (1, 4):
        x = torch.rand((n, 1, 8, 8), generator=seeded(n), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        logits.float().square().sum().backward()
        assert logits.shape == (n, 5)
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.any()
        with torch.inference_mode():
            assert model.eval()(x).isfinite().all()


@EACH_LAYER
def test_the_first_sample_of_a_batch_is_treated_as_if_alone(name: str) -> None:
    x = example(name).double()
    together = make(name, rescale="inverted", generator=seeded())(x)
    alone = make(name, rescale="inverted", generator=seeded())(x[:1])
    torch.testing.assert_close(alone, together[:1])


@pytest.mark.slow
@EACH_LAYER
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_layers_compile_in_one_graph_and_drop_the_same_units(name: str, backend: str) -> None:
    layer = make(name, rescale="inverted")
    options = {"fallback_random": True} if backend == "inductor" else None
    torch.compiler.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, options=options)
    with torch.random.fork_rng(devices=[]):
        for n in (6, 3):
            x = example(name, n=n)
            torch.manual_seed(0)
            y = compiled(x)
            torch.manual_seed(0)
            torch.testing.assert_close(y, layer(x))


# --- original and spatial dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "ours"), [(nn.Dropout, OriginalDropout), (nn.Dropout2d, SpatialDropout)])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_same_distribution_as_the_layers_of_torch(layer: Any, ours: Any, p: float) -> None:
    x = torch.ones(200, 40, 3, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs, mine = layer(p)(x), ours(p)(x)
    torch.testing.assert_close(mine.unique(), theirs.unique())
    kept_theirs, kept_mine = (theirs != 0).double(), (mine != 0).double()
    n_draws = x.numel() if layer is nn.Dropout else x[:, :, 0, 0].numel()
    error = SIGMAS * math.sqrt(2 * p * (1 - p) / n_draws)
    assert (kept_theirs.mean() - kept_mine.mean()).abs() <= error
    # Within a map, torch.nn.Dropout draws again at every position and torch.nn.Dropout2d does not.
    within_theirs, within_mine = (kept.flatten(2).var(2).mean() for kept in (kept_theirs, kept_mine))
    assert (within_theirs - within_mine).abs() <= error
    assert (within_mine == 0) == (layer is nn.Dropout2d)


@pytest.mark.parametrize(("p", "rescale"), [(0.5, "inverted"), (0.3, "none"), (0.25, "test")])
def test_spatial_dropout_before_average_pooling_is_original_dropout_after_it(p: float, rescale: Any) -> None:
    x = torch.rand(16, 32, 4, 4, generator=seeded())
    pooled = x.mean((2, 3))
    spatial = SpatialDropout(p, rescale=rescale, generator=seeded(9))
    original = OriginalDropout(p, rescale=rescale, generator=seeded(9))
    # Exactly: 0, 1 and 2 are the only factors here, and multiplying by them rounds nothing.
    assert torch.equal(spatial(x).mean((2, 3)), original(pooled))
    torch.testing.assert_close(spatial.eval()(x).mean((2, 3)), original.eval()(pooled))


@pytest.mark.parametrize("name", ["original", "spatial"])
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, "0.5", None, True])
def test_p_must_be_a_probability(name: str, p: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"dropout '{name}': p must be a .*not {p!r}"):
        build_dropout(name, p=p)


def test_spatial_dropout_needs_maps() -> None:
    with pytest.raises(ConfigurationError, match=r"\(N, C, H, W\), not shape \(4, 8\)"):
        SpatialDropout()(torch.ones(4, 8))


# --- the registry ----------------------------------------------------------------------------------------------------


def test_the_known_dropouts_and_their_order() -> None:
    expected = ["none", "original", "biased", "spatial", "crossmap", "guided", "sap", "jumpout"]
    expected += ["fdd-1d", "fdd-2d", "fdd-3d"]
    assert list(DROPOUTS) == expected
    assert {name: DROPOUTS[name].site for name in expected if name != "none"} == {
        "original": "features",
        "biased": "features",
        "spatial": "maps",
        "crossmap": "maps",
        "guided": "features",
        "sap": "maps",
        "jumpout": "maps",
        "fdd-1d": "features",
        "fdd-2d": "maps",
        "fdd-3d": "maps",
    }
    assert [name for name in expected if DROPOUTS[name].placements == ("last",)] == ["fdd-1d"]
    assert all(DROPOUTS[name].placements == ("last", "stages") for name in expected if name != "fdd-1d")
    assert [name for name in expected if DROPOUTS[name].needs_units] == ["guided"]
    assert [name for name in expected if not DROPOUTS[name].dynamic] == ["sap"]


@pytest.mark.parametrize("name", DROPOUTS)
def test_every_registered_dropout_keeps_the_contract(name: str) -> None:
    spec = DROPOUTS[name]
    assert spec.name == name
    assert spec.title
    assert spec.source
    assert spec.summary
    if name != "none":
        assert spec.strategy
        assert spec.hyperparameters
    assert "n_units" not in spec.options
    for n, training in itertools.product((1, 3), (True, False)):
        x = example(name, n=n)
        first, second = (build_dropout(name, n_units=x.shape[1]).train(training) for _ in range(2))
        assert first is not second
        y = copy.deepcopy(first)(x)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert y.isfinite().all()


@pytest.mark.parametrize("name", [name for name in DROPOUTS if "stages" in DROPOUTS[name].placements])
def test_dropouts_that_can_follow_a_stage_work_on_maps(name: str) -> None:
    x = torch.rand(2, 8, 6, 6, generator=seeded())
    assert build_dropout(name, n_units=8)(x).shape == x.shape


def test_no_dropout_is_the_identity() -> None:
    x = torch.rand(2, 3)
    layer = build_dropout("none")
    assert layer(x) is x
    assert layer.eval()(x) is x


def test_unknown_names_and_options_are_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown dropout 'fdd2d'; allowed: none, .*\(did you mean 'fdd-2d'"):
        build_dropout("fdd2d")
    with pytest.raises(ConfigurationError, match="unknown dropout 'xyzzy'; allowed: ") as caught:
        build_dropout("xyzzy")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in DROPOUTS)
    message = r"'fdd-2d' has no option 'kapa'; allowed: n_bins, kappa, .*generator \(did you mean 'kappa'\?\)"
    with pytest.raises(ConfigurationError, match=message):
        build_dropout("fdd-2d", kapa=1)
    # The dimension is what the name says; it is no option.
    with pytest.raises(ConfigurationError, match="'fdd-2d' has no option 'n_components'"):
        build_dropout("fdd-2d", n_components=3)
    with pytest.raises(ConfigurationError, match="'none' has no option 'p'; allowed: none"):
        build_dropout("none", p=0.5)


@EACH_LAYER
def test_wrong_values_are_refused_with_the_allowed_ones(name: str) -> None:
    for rescale in ("invert", None, 1):
        with pytest.raises(ConfigurationError, match=f"{name}.*rescale must be one of none, inverted, test, not "):
            make(name, rescale=rescale)
    for active in ("eval", True, "Always"):
        with pytest.raises(ConfigurationError, match=f"{name}.*active must be one of train, always, never, test, not "):
            make(name, active=active)
    with pytest.raises(ConfigurationError, match=f"{name}.*generator must be a torch.Generator, not 5"):
        make(name, generator=5)


class Halve(nn.Module):
    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


HALVE = DropoutSpec(
    name="halve",
    title="Halve",
    build=Halve,
    site="features",
    placements=("last",),
    source="this test",
    summary="Halves.",
    order=15,
)


@pytest.fixture
def halve(monkeypatch: pytest.MonkeyPatch) -> DropoutSpec:
    monkeypatch.setattr(DROPOUTS, "_parts", DROPOUTS._parts)  # put back at the end
    return register(HALVE)


def test_a_new_layer_is_built_by_its_name(halve: DropoutSpec) -> None:
    assert DROPOUTS["halve"] is halve
    names = list(DROPOUTS)
    assert names.index("original") < names.index("halve") < names.index("spatial")  # by its order
    assert halve.options == {"factor": 0.5}
    x = torch.ones(2, 3)
    assert torch.equal(build_dropout("halve")(x), x / 2)
    assert torch.equal(build_dropout("halve", factor=0.25)(x), x / 4)
    with pytest.raises(ConfigurationError, match="'halve' has no option 'p'; allowed: factor"):
        build_dropout("halve", p=0.5)


def test_a_name_is_registered_once(halve: DropoutSpec) -> None:
    before = dict(DROPOUTS)
    with pytest.raises(ConfigurationError, match="'halve' is registered already"):
        register(replace(halve, title="Another"))
    assert dict(DROPOUTS) == before


def test_specs_are_checked_and_frozen() -> None:
    with pytest.raises(ConfigurationError, match="'halve': site must be one of features, maps, not 'pixels'"):
        replace(HALVE, site="pixels")  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ConfigurationError, match="'halve': placements must be one of last, stages, not 'first'"):
        replace(HALVE, placements=("last", "first"))  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(ConfigurationError, match="'halve': placements must not be empty"):
        replace(HALVE, placements=())
    with pytest.raises(FrozenInstanceError):
        HALVE.name = "other"  # type: ignore[misc]  # the mistake that is tested
    with pytest.raises(TypeError):
        DROPOUTS["halve"] = HALVE  # type: ignore[index]  # the mistake that is tested


def test_a_new_layer_is_one_file(tmp_path: Path) -> None:
    package = Path(robustfdd.dropouts.__file__).parent
    shutil.copytree(package, tmp_path / "robustfdd" / "dropouts", ignore=shutil.ignore_patterns("__pycache__"))
    for needed in ("errors", "files", "plugins", "registry", "text"):
        shutil.copy(package.parent / f"{needed}.py", tmp_path / "robustfdd")
    (tmp_path / "robustfdd" / "__init__.py").touch()  # a package without it would yield to an installed one
    (tmp_path / "robustfdd" / "dropouts" / "identity.py").write_text(
        "from torch import nn\n"
        "from robustfdd.dropouts.base import DropoutSpec, register\n"
        "def build() -> nn.Module:\n"
        "    return nn.Identity()\n"
        "register(DropoutSpec('identity', 'Identity', build, 'maps', ('last',), 'a test', 'Nothing.', order=999))\n"
    )
    code = (
        "from robustfdd.dropouts import DROPOUTS, build_dropout; print(list(DROPOUTS)[-1], build_dropout('identity'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout.strip(), done.returncode) == ("identity Identity()", 0), done.stderr


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@EACH_LAYER
def test_a_seed_gives_the_same_mask_on_a_gpu(name: str) -> None:
    # In float64, where no unit is near enough to a border of cells for the two devices to differ about it.
    x = example(name, n=64, c=128).double()
    expected = make(name, rescale="inverted", generator=seeded())(x)
    y = make(name, rescale="inverted", generator=seeded())(x.cuda())
    assert y.is_cuda
    torch.testing.assert_close(y.cpu(), expected)
    own = make(name, generator=torch.Generator("cuda").manual_seed(0))
    twin = copy.deepcopy(own)
    assert torch.equal(own(x.cuda()), twin(x.cuda()))
    with torch.autocast("cuda", torch.float16):
        assert make(name)(x.cuda().half()).dtype == torch.float16
