"""The dropout variants against references in NumPy: who is dropped, how often, what is kept and what is learned."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from robustfdd.dropouts import Dropout, build_dropout
from robustfdd.dropouts.biased import BiasedDropout
from robustfdd.dropouts.crossmap import CrossmapDropout
from robustfdd.dropouts.guided import GuidedDropout
from robustfdd.dropouts.jumpout import Jumpout
from robustfdd.dropouts.sap import StochasticActivationPruning
from robustfdd.errors import ConfigurationError

Array = npt.NDArray[Any]

SIGMAS = 5
#: Of a test of goodness of fit with a fixed seed: a wrong distribution gives far less.
ALPHA = 1e-3
COMMON = settings(max_examples=40, deadline=None, derandomize=True, database=None)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(generator: torch.Generator, *shape: int) -> Array:
    """The uniform numbers that a layer with this generator draws next."""
    return torch.empty(shape).uniform_(generator=generator).numpy().astype(np.float64)


def within(share: Tensor | float, p: Array | float, n: int) -> bool:
    """Whether an observed share of n draws is consistent with the probability p."""
    error = np.abs(np.asarray(share, dtype=np.float64) - p)
    return bool((error <= SIGMAS * np.sqrt(np.asarray(p) * (1 - np.asarray(p)) / n) + 1e-12).all())


# --- biased dropout --------------------------------------------------------------------------------------------------


def reference_biased(x: Array, p_strong: float, p_weak: float, share: float) -> Array:
    """Sort the units of each sample, the strongest first and equal ones as they come."""
    p = np.full(x.shape, p_weak)
    for sample, rates in zip(x.reshape(len(x), -1), p.reshape(len(x), -1), strict=True):
        ranked = sorted(range(len(sample)), key=lambda i: (-abs(sample[i]), i))
        rates[ranked[: math.floor(share * len(sample))]] = p_strong
    return p


@COMMON
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    few_values=st.booleans(),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    eighths=st.integers(0, 8),
    rescale=st.sampled_from(["none", "inverted"]),
)
def test_biased_dropout_equals_the_reference(
    seed: int, shape: tuple[int, ...], few_values: bool, rates: list[float], eighths: int, rescale: Any
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, shape).astype(np.float32) if few_values else rng.normal(size=shape).astype(np.float32)
    layer = BiasedDropout(rates[0], rates[1], eighths / 8, rescale=rescale, generator=seeded(seed % 1000))
    p = reference_biased(x, rates[0], rates[1], eighths / 8).astype(np.float32)
    assert np.array_equal(layer.drop_probability(torch.from_numpy(x)).numpy(), p)
    keep = uniform(seeded(seed % 1000), *shape) >= p
    with np.errstate(divide="ignore"):
        scale = 1 / (1 - p) if rescale == "inverted" else np.ones_like(p)
    expected = np.where(keep, x * np.where(keep, scale, 0), 0)
    np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), expected, rtol=1e-6)


def test_biased_dropout_by_hand() -> None:
    layer = BiasedDropout(0.1, 0.8)
    # Of five, the two strongest by magnitude; of the equal 2s the earlier one.
    assert layer.drop_probability(torch.tensor([[2.0, 0.5, -3.0, 2.0, 0.0]])).tolist() == [
        pytest.approx([0.1, 0.8, 0.1, 0.8, 0.8])
    ]
    # Sample by sample, whatever the others are.
    both = layer.drop_probability(torch.tensor([[1.0, 2.0], [40.0, 30.0]]))
    assert both.tolist() == [pytest.approx([0.8, 0.1]), pytest.approx([0.1, 0.8])]
    # The units of feature maps are their single elements, ranked over all maps.
    maps = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    assert layer.drop_probability(maps).flatten().tolist() == pytest.approx([0.8, 0.8, 0.1, 0.1])


def test_biased_dropout_drops_by_default_as_much_as_original_dropout_but_more_of_the_weak() -> None:
    n = 4000
    x = torch.arange(1.0, 11.0).expand(n, 10)
    dropped = (BiasedDropout(generator=seeded())(x) == 0).double().mean(0)
    assert within(dropped[:5], 0.6, n)
    assert within(dropped[5:], 0.4, n)
    assert within(dropped.mean(), 0.5, 10 * n)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"p_strong": 0.7, "p_weak": 0.3}, "p_strong must be at most p_weak"),
        ({"p_strong": -0.1}, "p_strong must be a probability"),
        ({"p_weak": 1.1}, "p_weak must be a probability"),
        ({"share_strong": 2}, "share_strong must be a probability"),
        ({"share_strong": "half"}, "share_strong must be a number"),
    ],
)
def test_wrong_options_of_biased_dropout_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"dropout 'biased': {says}"):
        build_dropout("biased", **options)


# --- crossmap dropout ------------------------------------------------------------------------------------------------


@COMMON
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 3),
    c=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    p=st.floats(0, 0.99),
)
def test_crossmap_dropout_equals_the_reference(seed: int, n: int, c: int, spatial: list[int], p: float) -> None:
    x = np.random.default_rng(seed).normal(size=(n, c, *spatial)).astype(np.float32)
    y = CrossmapDropout(p, generator=seeded(seed))(torch.from_numpy(x)).numpy()
    keep = uniform(seeded(seed), n, 1, *spatial) >= np.float32(p)
    np.testing.assert_allclose(y, x * np.repeat(keep, c, axis=1) / (1 - np.float32(p)), rtol=1e-6)


def test_crossmap_dropout_before_pooling_weakens_all_features_alike() -> None:
    """What tells it from spatial dropout, which before pooling is original dropout."""
    x = torch.rand(50, 6, 1, 1, generator=seeded(1)).expand(50, 6, 4, 4) + 0.1
    factor = CrossmapDropout(0.5, generator=seeded())(x).mean((2, 3)) / x.mean((2, 3))
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))
    # A position is worth 2 / 16: torch's scale for p = 0.5, times its share of the average.
    torch.testing.assert_close(factor * 8, (factor * 8).round())
    assert len(factor[:, 0].unique()) > 3


def test_crossmap_dropout_needs_maps() -> None:
    with pytest.raises(ConfigurationError, match=r"\(N, C, H, W\), not shape \(4, 8\)"):
        CrossmapDropout()(torch.ones(4, 8))
    with pytest.raises(ConfigurationError, match="dropout 'crossmap': p must be a probability"):
        build_dropout("crossmap", p=1.5)


# --- guided dropout --------------------------------------------------------------------------------------------------


def guided(strength: Array | list[float], **options: Any) -> GuidedDropout:
    layer = GuidedDropout(len(strength), **options)
    with torch.no_grad():
        layer.strength.copy_(torch.as_tensor(np.asarray(strength), dtype=torch.float32))
    return layer


@COMMON
@given(
    steps=st.lists(st.integers(-64, 64), min_size=1, max_size=40).filter(any),
    n_bins=st.sampled_from([1, 2, 8, 32, 64]),
    scale=st.sampled_from([0.25, 1.0, 8.0]),
)
def test_the_active_region_is_all_but_the_fullest_bin(steps: list[int], n_bins: int, scale: float) -> None:
    # Powers of two throughout, so that the many strengths on a border of bins are exactly on it.
    strength = scale * np.array([64, *steps]) / 64
    relative = np.abs(strength) / np.abs(strength).max()
    counts, borders = np.histogram(relative, n_bins, (0, 1))
    fullest = int(np.flatnonzero(counts == counts.max())[0])
    low, high = borders[fullest], borders[fullest + 1]
    inactive = (relative >= low) & ((relative < high) | (high == 1))
    assert inactive.sum() == counts.max()
    assert np.array_equal(guided(strength, n_bins=n_bins).active_region().numpy(), ~inactive)


@COMMON
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 200))
def test_the_active_region_in_a_hundred_bins(seed: int, n: int) -> None:
    strength = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    relative = np.abs(strength) / np.abs(strength).max()
    bins = np.minimum(np.floor(relative * np.float32(100)), 99).astype(int)
    fullest = np.bincount(bins).argmax()  # the first of equal ones
    assert np.array_equal(guided(strength).active_region().numpy(), bins != fullest)


def test_the_active_region_by_hand() -> None:
    #                 bin 99, 99, 50, 50, 50, 0: 50 is the fullest
    assert guided([1.0, -0.995, 0.5, 0.501, -0.505, 0.0]).active_region().tolist() == [1, 1, 0, 0, 0, 1]
    # Two bins of two: the one of the lowest strength is inactive.
    assert guided([1.0, 0.1, -0.1, 1.0]).active_region().tolist() == [1, 0, 0, 1]
    # Nobody stands out at the start, nor when all strengths are 0: nothing is dropped.
    for strength in ([1.0] * 5, [0.0] * 5, [0.3]):
        layer = guided(strength)
        assert not layer.active_region().any()
        assert torch.equal(layer(torch.ones(3, len(strength))), layer.strength.expand(3, -1))
    assert GuidedDropout(4).strength.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.5), (0.33, 0.5), (1 / 3, 0.4), (0.5, 0.4), (0.666, 0.4), (2 / 3, 0.3), (0.999, 0.3), (1.0, 0.3)],
)
def test_the_rate_of_guided_dropout_falls_by_thirds_of_training(progress: float, rate: float) -> None:
    layer = guided([1.0, 0.1, 0.1], p_first=0.5, p_second=0.4, p_third=0.3)
    assert layer.rate == 0.5
    layer.progress = progress
    assert layer.rate == rate
    assert layer.drop_probability(torch.ones(2, 3)).tolist() == [pytest.approx([rate, 0, 0])] * 2


def test_the_rate_follows_the_device_and_is_not_saved() -> None:
    layer = guided([1.0, 0.1, 0.1])
    layer.progress = 0.5
    # As the strengths do; the host is not asked for it in a forward pass.
    moved = copy.deepcopy(layer).to("meta")
    assert moved.drop_probability(torch.empty(2, 3, device="meta")).shape == (2, 3)
    assert list(layer.state_dict()) == ["strength"]


def test_the_default_rates_of_guided_dropout_are_the_sources() -> None:
    assert GuidedDropout(1).rates == (0.2, 0.15, 0.1)
    assert GuidedDropout(1).n_bins == 100


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("rescale", ["none", "inverted", "test"])
def test_guided_dropout_equals_the_reference_with_its_gradients(rescale: Any, maps: bool) -> None:
    rng = np.random.default_rng(4)
    strength = np.array([1.0, 0.5, -0.5, 0.9, -0.2], dtype=np.float32)
    active = np.array([1, 0, 0, 1, 1])
    x = rng.normal(size=(6, 5, 2, 3) if maps else (6, 5)).astype(np.float32)
    upstream = rng.normal(size=x.shape).astype(np.float32)
    p = np.tile(0.4 * active, (6, 1))
    keep = uniform(seeded(3), 6, 5) >= p.astype(np.float32)
    training = keep / (1 - p) if rescale == "inverted" else keep
    evaluation = 1 - p if rescale == "test" else np.ones_like(p)
    for mode, of_unit in ((True, training), (False, evaluation)):
        factor = of_unit.reshape(6, 5, *(1,) * (x.ndim - 2)) * np.ones_like(x)
        along = strength.reshape(5, *(1,) * (x.ndim - 2))
        layer = guided(strength, p_first=0.4, rescale=rescale, generator=seeded(3)).train(mode)
        xt = torch.from_numpy(x).requires_grad_()
        y = layer(xt)
        np.testing.assert_allclose(y.detach().numpy(), x * along * factor, rtol=1e-5)
        y.backward(torch.from_numpy(upstream))
        assert xt.grad is not None
        assert layer.strength.grad is not None
        np.testing.assert_allclose(xt.grad.numpy(), upstream * along * factor, rtol=1e-5)
        others = (0, *range(2, x.ndim))
        np.testing.assert_allclose(layer.strength.grad.numpy(), (upstream * x * factor).sum(others), rtol=1e-4)
        assert (~keep).any()


@pytest.mark.parametrize("active", ["train", "always", "never", "test"])
def test_strengths_multiply_whether_or_not_the_layer_drops(active: Any) -> None:
    strength = np.array([1.0, 0.5, 0.5, -0.9])
    x = torch.rand(300, 4, generator=seeded(2)) + 0.1
    for training in (True, False):
        y = guided(strength, active=active, rescale="none", generator=seeded()).train(training)(x)
        dropping = active in ("always", "train" if training else "test")
        assert bool((y == 0).any()) == dropping
        torch.testing.assert_close(y, torch.where(y == 0, 0.0, x * torch.tensor(strength, dtype=torch.float32)))


def test_measured_rates_of_guided_dropout() -> None:
    n = 4000
    layer = guided([1.0, 0.5, 0.5, -0.9], generator=seeded(6))
    for progress, rate in ((0.0, 0.2), (0.4, 0.15), (0.9, 0.1)):
        layer.progress = progress
        y = layer(torch.ones(n, 4)).detach()
        assert within((y == 0).double().mean(0), rate * np.array([1, 0, 0, 1]), n)
        torch.testing.assert_close(y[y[:, 0] != 0, 0].unique(), torch.tensor([1 / (1 - rate)]))


def test_guided_dropout_starts_as_it_is_told() -> None:
    layer = GuidedDropout(3000, start="uniform", generator=seeded(1))
    t = layer.strength.detach().numpy()
    assert 0 <= t.min() < t.max() < 1
    assert stats.kstest(t, "uniform").pvalue > ALPHA
    assert torch.equal(GuidedDropout(3000, start="uniform", generator=seeded(1)).strength, layer.strength)
    assert not torch.equal(GuidedDropout(3000, start="uniform", generator=seeded(2)).strength, layer.strength)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(GuidedDropout(3000, start="uniform").strength, layer.strength)
        state = torch.get_rng_state()
        GuidedDropout(3000)  # no number is drawn for strengths that are all 1
        assert torch.equal(torch.get_rng_state(), state)


def test_strengths_are_saved_and_loaded() -> None:
    layer = guided([1.0, 0.5, 0.5, -0.9])
    other = GuidedDropout(4)
    other.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["strength"]
    assert torch.equal(other.strength, layer.strength)
    assert torch.equal(other.active_region(), layer.active_region())
    assert list(map(id, layer.parameters())) == [id(layer.strength)]
    with pytest.raises(RuntimeError, match="size mismatch"):
        GuidedDropout(5).load_state_dict(layer.state_dict())


def test_wrong_options_of_guided_dropout_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'guided' must be told the number of its features or maps: n_units="):
        build_dropout("guided")
    for options, says in (
        ({"p_second": 2.0}, "p_second must be a probability"),
        ({"p_first": None}, "p_first must be a number"),
        ({"n_bins": 0}, "n_bins must be an integer from 1"),
        ({"n_bins": 2.5}, "n_bins must be an integer from 1"),
        ({"start": "zeros"}, "start must be one of ones, uniform"),
    ):
        with pytest.raises(ConfigurationError, match=f"dropout 'guided': {says}"):
            build_dropout("guided", n_units=3, **options)
    for wrong in (0, True, 2.0):
        with pytest.raises(ConfigurationError, match="n_units must be an integer from 1"):
            build_dropout("guided", n_units=wrong)  # type: ignore[arg-type]  # the mistake that is tested
    for shape in ((2, 4), (3,), (2, 2, 3)):
        with pytest.raises(ConfigurationError, match="built for 3 units; x has the shape"):
            GuidedDropout(3)(torch.ones(shape))


# --- stochastic activation pruning -----------------------------------------------------------------------------------


def sap(share: float = 1.0, **options: Any) -> StochasticActivationPruning:
    layer = StochasticActivationPruning(share, **options)
    assert isinstance(layer.eval(), StochasticActivationPruning)
    return layer


def draws_of(share: float, n: int) -> int:
    return max(1, round(share * n))


@COMMON
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    share=st.sampled_from([0.01, 0.3, 1.0, 2.5]),
    sparse=st.booleans(),
)
def test_the_drop_probability_of_sap_equals_the_reference(
    seed: int, shape: tuple[int, ...], share: float, sparse: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * (rng.random(shape) < 0.5 if sparse else 1)
    rows = np.abs(x).reshape(len(x), -1)
    r = draws_of(share, rows.shape[1])
    expected = []
    for row in rows:
        total = row.sum()
        expected.append((1 - row / total) ** r if total > 0 else np.zeros_like(row))
    p = sap(share).drop_probability(torch.from_numpy(x))
    assert p.dtype == torch.float32
    np.testing.assert_allclose(p.numpy(), np.reshape(expected, shape), rtol=1e-5, atol=1e-7)


@COMMON
@given(
    seed=st.integers(0, 1000),
    values=st.lists(st.lists(st.integers(-9, 9), min_size=5, max_size=5), min_size=1, max_size=4),
    share=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    rescale=st.sampled_from(["none", "inverted"]),
)
def test_sap_equals_the_reference(seed: int, values: list[list[int]], share: float, rescale: Any) -> None:
    # A sixth value makes the sum a power of two, so that no draw can fall on another side of a border by rounding.
    x = np.array([[*row, 64 - sum(map(abs, row))] for row in values], dtype=np.float64)
    x[0] *= seed % 3 > 0  # now and then a sample of zeros
    r = draws_of(share, 6)
    draws = uniform(seeded(seed), len(x), r)
    expected = x.copy()
    for row, sample, out in zip(draws, x, expected, strict=True):
        if not sample.any():
            continue  # nothing to draw from: the sample stays
        borders = np.cumsum(np.abs(sample)) / np.abs(sample).sum()
        drawn = {next(i for i, border in enumerate(borders) if u < border) for u in row}
        for i in range(6):
            keep_rate = 1 - (1 - abs(sample[i]) / 64) ** r
            scale = 1 / keep_rate if rescale == "inverted" and i in drawn else 1
            out[i] = sample[i] * scale if i in drawn else 0
    y = sap(share, rescale=rescale, generator=seeded(seed))(torch.from_numpy(x).view(-1, 2, 3))
    np.testing.assert_allclose(y.view(-1, 6).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_what_sap_keeps_has_the_distribution_of_a_multinomial_draw(share: float) -> None:
    """Whole sets of survivors, against NumPy: draws with replacement from one sample exclude each other."""
    n, r = 20000, draws_of(share, 5)
    a = np.array([3.0, -1.0, 0.5, 2.0, 1.5])
    kept = sap(share, generator=seeded(11))(torch.tensor(a).expand(n, 5)).numpy() != 0
    drawn = np.random.default_rng(0).multinomial(r, np.abs(a) / np.abs(a).sum(), size=n) > 0
    counts = np.stack([np.bincount(sets @ (1 << np.arange(5)), minlength=32) for sets in (kept, drawn)])
    assert (counts.sum(0) > 0).sum() > 4
    assert stats.chi2_contingency(counts[:, counts.sum(0) > 0]).pvalue > ALPHA
    # And so have independent decisions not, although each unit is kept as often.
    independent = np.random.default_rng(1).random((n, 5)) >= sap(share).drop_probability(torch.tensor(a)[None]).numpy()
    wrong = np.stack([counts[1], np.bincount(independent @ (1 << np.arange(5)), minlength=32)])
    assert stats.chi2_contingency(wrong[:, wrong.sum(0) > 0]).pvalue < 1e-9


def test_one_draw_keeps_one_activation_and_gives_it_the_weight_of_all() -> None:
    n = 20000
    a = torch.tensor([3.0, -1.0, 0.0, 4.0])
    y = sap(0.25, generator=seeded(5))(a.expand(n, 4))
    assert ((y != 0).sum(1) == 1).all()
    # a_i / p_i = sign(a_i) * sum |a|
    torch.testing.assert_close(y.sum(1).abs(), torch.full((n,), 8.0))
    assert torch.equal(y.sign().abs() * a.sign(), y.sign())
    hits = (y != 0).sum(0).numpy()
    assert hits[2] == 0
    assert stats.chisquare(hits[[0, 1, 3]], n * np.array([3, 1, 4]) / 8).pvalue > ALPHA


@pytest.mark.parametrize("share", [0.3, 1.0, 4.0])
def test_sap_keeps_the_expected_value(share: float) -> None:
    n = 20000
    a = torch.tensor([0.05, -0.2, 1.0, 0.0, 3.0, -0.7, 0.4, 2.0]).double()
    y = sap(share, generator=seeded(8))(a.expand(n, 8))
    p = sap(share).drop_probability(a[None])[0].double()
    keep = 1 - p
    spread = a.abs() * (p / keep.clamp_min(1e-12) / n).sqrt()
    assert ((y.mean(0) - a).abs() <= SIGMAS * spread + 1e-6).all()
    assert within((y != 0).double().mean(0), keep.numpy(), n)
    # Weak activations go first: the mask is not inverted.
    order = a.abs().argsort()
    assert (keep[order].diff() > 0).all()


def test_sap_leaves_a_sample_of_zeros_and_never_keeps_a_zero_by_its_share() -> None:
    x = torch.zeros(2, 3, 2, 2)
    x[0, 1, 0, 0] = 5.0
    y = sap(generator=seeded())(x)
    assert torch.equal(y, x)  # the only activation of the first has p_i = 1
    p = sap().drop_probability(x)
    assert p[0].flatten().tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    assert not p[1].any()


def test_no_draw_falls_on_an_activation_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws that are exactly on a border belong to the next activation that has a width: 0, 1/4, and almost 1."""
    draws = torch.tensor([[0.0] * 5, [0.25] * 5, [1 - 2.0**-24] * 5])
    layer = sap(rescale="none")
    monkeypatch.setattr(layer, "draw_uniform", lambda shape, device: draws)
    kept = layer(torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(3, 5)) != 0
    assert kept.long().argmax(1).tolist() == [1, 3, 3]
    assert layer.multiplier(torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(3, 5)).sum(1).tolist() == [1, 1, 1]


def test_sap_depends_on_relative_magnitudes_alone() -> None:
    x = torch.randn(4, 30, generator=seeded(3)).double()
    p = sap().drop_probability(x)
    torch.testing.assert_close(sap().drop_probability(-64 * x), p)
    kept = sap(generator=seeded(1))(x) != 0
    assert torch.equal(sap(generator=seeded(1))(-64 * x) != 0, kept)


def test_sap_acts_in_evaluation_only() -> None:
    x = torch.rand(4, 6, 3, 3, generator=seeded())
    layer = StochasticActivationPruning()
    assert layer.active == "test"
    assert layer.training
    assert layer(x) is x
    layer.eval()
    assert layer.random_in_evaluation
    assert not torch.equal(layer(x), layer(x))
    layer.active = "never"
    assert layer(x) is x
    layer.active = "train"
    assert layer(x) is x
    assert (layer.train()(x) == 0).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": 0}, "share must be a finite number above 0, not 0"),
        ({"share": -1.0}, "share must be a finite number above 0"),
        ({"share": math.inf}, "share must be a finite number above 0"),
        ({"share": math.nan}, "share must be a finite number above 0"),
        ({"share": "all"}, "share must be a number"),
        ({"rescale": "test"}, "rescale must be one of none, inverted, not 'test'"),
    ],
)
def test_wrong_options_of_sap_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"dropout 'sap': {says}"):
        build_dropout("sap", **options)


# --- jumpout ---------------------------------------------------------------------------------------------------------


def rates(layer: Jumpout, n: int) -> Array:
    return np.array([float(layer.draw_rate(torch.device("cpu"))) for _ in range(n)])


def test_the_rate_of_jumpout_is_drawn_from_half_a_gaussian() -> None:
    drawn = rates(Jumpout(0.05, 0.1, 0.99, generator=seeded(2)), 4000)
    assert stats.kstest(drawn, stats.halfnorm(loc=0.1, scale=0.05).cdf).pvalue > ALPHA
    assert drawn.min() >= 0.1
    # Small rates are the most frequent: a monotone decreasing density.
    counts = np.histogram(drawn, 5, (0.1, 0.25))[0]
    assert (np.diff(counts) < 0).all()


def test_the_rate_of_jumpout_is_cut_off() -> None:
    n = 4000
    drawn = rates(Jumpout(0.2, 0.1, 0.3, generator=seeded(3)), n)
    assert drawn.max() == pytest.approx(0.3)
    assert within(float((drawn == drawn.max()).mean()), float(stats.halfnorm.sf(0.2 / 0.2)), n)
    below = drawn[drawn < drawn.max()]
    cut = stats.halfnorm(loc=0.1, scale=0.2)
    assert stats.kstest(below, lambda p: cut.cdf(p) / cut.cdf(0.3)).pvalue > ALPHA
    assert rates(Jumpout(0.0, 0.2), 5).tolist() == pytest.approx([0.2] * 5)


def test_the_rate_of_jumpout_is_normalised_by_the_share_of_active_units() -> None:
    layer = Jumpout(p_max=0.6)
    x = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])  # 2 of 8 are above 0
    assert float(layer.normalized(torch.tensor(0.1), x)) == pytest.approx(0.4)
    assert float(layer.normalized(torch.tensor(0.3), x)) == pytest.approx(0.6)  # at most p_max
    assert float(layer.normalized(torch.tensor(0.3), x.abs() + 1)) == pytest.approx(0.3)
    assert float(layer.normalized(torch.tensor(0.3), torch.zeros(2, 4))) == pytest.approx(0.3)


def test_as_many_active_units_go_as_the_rate_says_however_few_there_are() -> None:
    """Of all units, the share that are active and dropped is the rate."""
    n = 200000
    for share in (0.25, 0.5, 1.0):
        x = (torch.arange(n) < share * n).float().reshape(100, -1)
        y = Jumpout(0.0, 0.15, generator=seeded(4))(x)
        gone = (x > 0) & (y == 0)
        assert within(gone.double().mean(), 0.15, n)


@COMMON
@given(
    seed=st.integers(0, 10000),
    shape=SHAPES,
    sigma=st.floats(0, 0.5),
    p_min=st.floats(0, 0.3),
    p_max=st.floats(0.3, 0.95),
    exponent=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    rescale=st.sampled_from(["none", "inverted"]),
)
def test_jumpout_equals_the_reference(
    seed: int, shape: tuple[int, ...], sigma: float, p_min: float, p_max: float, exponent: float, rescale: Any
) -> None:
    x = np.maximum(np.random.default_rng(seed).normal(size=shape), 0)
    generator = seeded(seed)
    rate = min(p_min + sigma * float(stats.halfnorm.ppf(uniform(generator)[()])), p_max)
    share = (x > 0).mean()
    p = min(rate / share if share > 0 else rate, p_max)
    draws = uniform(generator, *shape)
    undecided = np.abs(draws - p) < 1e-5  # where the arithmetic of float32 may find otherwise
    expected = np.where(draws >= p, x * ((1 - p) ** -exponent if rescale == "inverted" else 1), 0)
    y = Jumpout(sigma, p_min, p_max, exponent, rescale=rescale, generator=seeded(seed))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y[~undecided], expected[~undecided], rtol=1e-4)


def test_jumpout_draws_one_rate_a_call_and_a_new_one_in_the_next() -> None:
    layer = Jumpout(0.1, 0.05, generator=seeded(1))
    x = torch.ones(50, 8, 4, 4)
    scales = [layer(x).unique() for _ in range(3)]
    assert all(len(found) == 2 for found in scales)  # 0, and one factor for all units and samples
    assert len({float(found[1]) for found in scales}) == 3
    kept = layer.drop_probability(x)
    assert kept.shape == x.shape
    assert len(kept.unique()) == 1
    assert float(Jumpout(0.0, 0.4)(x).max()) == pytest.approx(0.6**-0.75)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sigma": -0.1}, "sigma must be a finite number from 0"),
        ({"sigma": math.nan}, "sigma must be a finite number from 0"),
        ({"exponent": math.inf}, "exponent must be a finite number from 0"),
        ({"p_min": 0.7}, r"p_max must lie in \[p_min, 1\), not 0.6 \(p_min 0.7\)"),
        ({"p_max": 1.0}, r"p_max must lie in \[p_min, 1\), not 1.0"),
        ({"p_max": 1.5}, "p_max must be a probability"),
        ({"p_min": "0"}, "p_min must be a number"),
        ({"rescale": "test"}, "rescale must be one of none, inverted, not 'test'"),
    ],
)
def test_wrong_options_of_jumpout_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"dropout 'jumpout': {says}"):
        build_dropout("jumpout", **options)


# --- what guided dropout, SAP and jumpout share with the layers of test_dropouts.py ----------------------------------

EACH = pytest.mark.parametrize("name", ["guided", "sap", "jumpout"])


def make(name: str, **options: Any) -> Dropout:
    if name == "guided":
        layer: nn.Module = build_dropout(name, n_units=20, p_first=0.5, **options)
        with torch.no_grad():
            layer.strength.copy_(torch.linspace(0.2, 1, 20))  # type: ignore[operator]  # a Parameter
    else:
        more: dict[str, Any] = {"sigma": 0.0, "p_min": 0.4} if name == "jumpout" else {}
        layer = build_dropout(name, **more, **options)
    assert isinstance(layer, Dropout)
    return layer


def example(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(n, 20, 3, 3, generator=seeded(9)) + 0.1).to(dtype)


@EACH
def test_the_seed_alone_decides_the_mask(name: str) -> None:
    x = example()
    first = make(name, active="always", generator=seeded(7))
    state = torch.get_rng_state()
    one = first(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make(name, active="always", generator=seeded(7))(x), one)
    assert not torch.equal(make(name, active="always", generator=seeded(8))(x), one)
    assert not torch.equal(first(x), one)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        assert torch.equal(make(name, active="always")(x), one)


# Older versions of torch warn of themselves when a parameter is unpickled.
@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")
@EACH
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_go_on_with_the_same_masks_on_their_own(name: str, duplicate: Any) -> None:
    x = example()
    layer = make(name, active="always", generator=seeded(4))
    layer.progress = 0.5
    layer(x)
    twin = duplicate(layer)
    expected = [layer(x), layer(x)]
    assert torch.equal(twin(x), expected[0])
    assert torch.equal(twin(x), expected[1])
    assert repr(twin) == repr(layer)
    assert twin.progress == 0.5
    assert twin.generator is not layer.generator
    assert duplicate(make(name)).generator is None


@EACH
def test_modes(name: str) -> None:
    x = example()
    plain = make(name, active="never")(x)
    for active in ("train", "always", "test", "never"):
        for training in (True, False):
            layer = make(name, active=active, generator=seeded()).train(training)
            drops = active in ("always", "train" if training else "test")
            assert layer.dropping == drops
            y = layer(x)
            assert bool((y == 0).any()) == drops
            if not drops:
                assert torch.equal(y, plain)
                assert name == "guided" or y is x
        assert layer.random_in_evaluation == (active in ("always", "test"))


@EACH
def test_the_gradient_is_what_the_input_was_multiplied_by(name: str) -> None:
    x = example().requires_grad_()
    layer = make(name, active="always", generator=seeded(5))
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y / x).detach())
    assert (x.grad == 0).any()
    assert not layer.drop_probability(x).requires_grad


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_keep_theirs_and_drop_the_same_units(name: str, dtype: torch.dtype) -> None:
    x = example(dtype=dtype)
    y = make(name, active="always", generator=seeded())(x)
    assert y.dtype == dtype
    reference = make(name, active="always", generator=seeded())(x.float())
    assert torch.equal(y == 0, reference == 0)
    torch.testing.assert_close(y, reference.to(dtype), rtol=4 * torch.finfo(dtype).eps + 1e-6, atol=0)


@EACH
def test_layers_work_in_any_model_and_under_autocast(name: str) -> None:
    layer = make(name, active="always", generator=seeded())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 20, 3), nn.ReLU(), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)
        )
    for n in (1, 4):
        x = torch.rand((n, 1, 8, 8), generator=seeded(n), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        logits.float().square().sum().backward()
        assert logits.shape == (n, 5)
        for gradient in (x.grad, *(parameter.grad for parameter in layer.parameters())):
            assert gradient is not None
            assert gradient.dtype == torch.float32
            assert gradient.isfinite().all()
            assert gradient.any()
        with torch.inference_mode():
            assert model.eval()(x).isfinite().all()


@EACH
def test_wrong_words_are_refused(name: str) -> None:
    for option, wrong, says in (
        ("active", "eval", "active must be one of train, always, never, test, not 'eval'"),
        ("rescale", "invert", "rescale must be one of none, inverted"),
        ("generator", 5, "generator must be a torch.Generator, not 5"),
    ):
        with pytest.raises(ConfigurationError, match=f"'{name}': {says}"):
            make(name, **{option: wrong})


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_layers_compile_in_one_graph_and_drop_the_same_units(name: str, backend: str) -> None:
    layer = make(name, active="always")
    options = {"fallback_random": True} if backend == "inductor" else None
    torch.compiler.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True, options=options)
    with torch.random.fork_rng(devices=[]):
        for n in (5, 3):
            x = example(n)
            torch.manual_seed(0)
            y = compiled(x)
            torch.manual_seed(0)
            torch.testing.assert_close(y, layer(x))


@pytest.mark.gpu
@EACH
def test_a_seed_gives_the_same_mask_on_a_gpu(name: str) -> None:
    x = example(64, torch.float64)
    expected = make(name, active="always", generator=seeded())(x)
    y = make(name, active="always", generator=seeded()).cuda()(x.cuda())
    assert y.is_cuda
    torch.testing.assert_close(y.cpu(), expected)
