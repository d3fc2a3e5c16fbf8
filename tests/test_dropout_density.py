"""Feature density dropout against its definition: a plain NumPy reference, cases worked by hand, invariances."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustfdd.dropouts import FeatureDensityDropout, build_dropout, density, feature_density
from robustfdd.dropouts.density import axes_by_eigh, axes_by_squaring
from robustfdd.errors import ConfigurationError

Array = npt.NDArray[np.float64]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=["eigh", "squaring"])
def axes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Principal axes as the CPU finds them, and then as all other devices do."""
    if request.param == "squaring":
        monkeypatch.setattr(density, "axes_by_eigh", axes_by_squaring)


BOTH_AXES = pytest.mark.usefixtures("axes")


# --- the reference ---------------------------------------------------------------------------------------------------


def reference_points(sample: Array, k: int) -> tuple[Array, Array]:
    """Points (C, k) of one sample and all its singular values, by the singular value decomposition."""
    if sample.ndim == 1:
        return sample[:, None], np.ones(1)
    maps = sample.reshape(len(sample), -1)
    centred = maps - maps.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:k].T, singular


def reference_density(points: Array, n_bins: int, has_range: list[bool]) -> list[int]:
    """Count by explicit loops: two units share a cell if they share the interval in every dimension."""
    cells = []
    for point in points:
        cell = []
        for r, value in enumerate(point):
            low, high = points[:, r].min(), points[:, r].max()
            if not has_range[r]:
                cell.append(0)
            elif value == high:
                cell.append(n_bins - 1)
            else:
                cell.append(math.floor((value - low) / ((high - low) / n_bins)))
        cells.append(tuple(cell))
    return [cells.count(cell) for cell in cells]


def is_decidable(points: Array, singular: Array, n_bins: int, sample: Array, has_range: list[bool], eps: float) -> bool:
    """Whether arithmetic of precision eps is good enough to tell the cell of every unit of a sample.

    The error of a computed principal axis is eps times the largest eigenvalue over the gap to its neighbours; the
    error of a coordinate is that times the length of the vectorised map, in units of a cell's width.
    """
    length = np.sqrt((sample.reshape(len(sample), -1) ** 2).sum(axis=1)).max()
    variances = np.append(singular**2, 0)
    for r in range(points.shape[1]):
        if not has_range[r]:
            continue
        span = points[:, r].max() - points[:, r].min()
        inner = (points[:, r] - points[:, r].min()) / (span / n_bins)
        error = eps * length / span
        if sample.ndim > 1:
            gaps = np.abs(np.diff(variances))[max(r - 1, 0) : r + 1]
            error *= variances[0] / max(gaps.min(), 1e-300)
        distance = min((np.abs(inner - border).min() for border in range(1, n_bins)), default=math.inf)
        if distance < max(1e-5 if eps > 1e-10 else 1e-12, 16 * n_bins * error):
            return False
    return True


def draw_sample(rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: type) -> npt.NDArray[np.floating]:
    sample = rng.normal(size=shape)
    if kind == "sparse":  # as after a ReLU, with some dead units
        sample = np.maximum(sample, 0) * (rng.random((shape[0],) + (1,) * (len(shape) - 1)) < 0.7)
    elif kind == "offset":
        sample += 50
    elif kind == "rank one" and len(shape) > 1:
        sample = rng.normal(size=(shape[0], 1)) * rng.normal(size=(1, math.prod(shape[1:])))
    elif kind == "constant":
        sample = np.full(shape, rng.normal())
    return sample.reshape(shape).astype(dtype)


@BOTH_AXES
def test_counts_equal_the_reference() -> None:
    seen: dict[type, list[bool]] = {np.float32: [], np.float64: []}
    several_cells = []

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        n=st.integers(1, 3),
        c=st.integers(1, 40),
        h=st.integers(1, 6),
        w=st.integers(1, 6),
        k=st.sampled_from([0, 1, 2, 3]),  # 0: features, whose only dimension is the activation
        n_bins=st.integers(1, 12),
        kind=st.sampled_from(["normal", "normal", "sparse", "offset", "rank one", "constant"]),
        dtype=st.sampled_from([np.float32, np.float64]),
    )
    def check(seed: int, n: int, c: int, h: int, w: int, k: int, n_bins: int, kind: str, dtype: type) -> None:
        rng = np.random.default_rng(seed)
        shape = (c, h, w) if k else (c,)
        batch = np.stack([draw_sample(rng, kind, shape, dtype) for _ in range(n)])
        counts = feature_density(torch.from_numpy(batch), k or 1, n_bins)
        assert counts.shape == (n, c)
        eps = float(np.finfo(dtype).eps)
        for sample, count in zip(batch.astype(np.float64), counts.tolist(), strict=True):
            points, singular = reference_points(sample, k or 1)
            share = singular[: points.shape[1]] ** 2 / max(singular[0] ** 2, 1e-300)
            floor = eps * max(c, h * w) if k else 0
            # A sample whose components are neither clearly there nor clearly rounding is left out, as is one with a
            # unit too near to a border of cells to tell.
            is_clear = bool(((share < floor / 100) | (share > floor * 10)).all())
            spans = np.ptp(points, axis=0) if kind != "constant" else np.zeros(points.shape[1])
            has_range = [bool(s > floor and span > 0) for s, span in zip(share, spans, strict=True)]
            decidable = is_clear and is_decidable(points, singular, n_bins, sample, has_range, eps)
            seen[dtype].append(decidable)
            if decidable:
                assert count == reference_density(points, n_bins, has_range)
                several_cells.append(len(set(count)) > 1)

    check()
    # In float64 next to nothing may be left out, and most of what was compared must have been a case at all.
    assert np.mean(seen[np.float64]) > 0.99
    assert np.mean(seen[np.float32]) > 0.9
    assert sum(several_cells) > 200


# --- worked by hand --------------------------------------------------------------------------------------------------


def test_counts_and_probabilities_worked_by_hand() -> None:
    x = torch.tensor([[0.0, 0.1, 0.2, 1.0]])  # two cells, [0, 0.5) and [0.5, 1]
    assert feature_density(x, 1, 2).tolist() == [[3, 3, 3, 1]]
    p = FeatureDensityDropout(1, 2).drop_probability(x)
    # kappa * rho / max(rho) + alpha with rho = 3 and 1
    torch.testing.assert_close(p, torch.tensor([[0.1, 0.1, 0.1, 0.9 - 0.8 / 3]]))
    assert p.dtype == torch.float32
    p = FeatureDensityDropout(1, 2, kappa=0.8, alpha=0.1).drop_probability(x)
    torch.testing.assert_close(p, torch.tensor([[0.9, 0.9, 0.9, 0.1 + 0.8 / 3]]))


@BOTH_AXES
def test_cells_in_the_plane_worked_by_hand() -> None:
    # Maps of two positions, four times as wide along the first: the principal axes are the positions themselves.
    # On a grid of 2 x 2 cells, three maps share a corner, two share another and two are alone.
    points = torch.tensor([[-8.0, -1], [-8, -1], [-6, -2], [8, -1], [8, 2], [7, 2], [-8, 2]])
    x = points.reshape(1, 7, 1, 2)
    assert feature_density(x, 2, 2).tolist() == [[3, 3, 3, 1, 2, 2, 1]]
    assert feature_density(x, 1, 2).tolist() == [[4, 4, 4, 3, 3, 3, 4]]


def test_the_maximum_belongs_to_the_last_cell() -> None:
    n_bins = 25
    x = torch.arange(n_bins + 1, dtype=torch.float32).flip(0).unsqueeze(0)
    # 0 to 25 in 25 cells: one each, but for 24 and 25 in the last.
    assert feature_density(x, 1, n_bins).tolist() == [[2, 2] + [1] * (n_bins - 1)]
    assert feature_density(-x, 1, n_bins).tolist() == [[1] * (n_bins - 1) + [2, 2]]


@pytest.mark.parametrize("width", [1, 41, 47])
def test_quantised_features_fall_in_the_cells_they_should(width: int) -> None:
    # Every second value is a border, which belongs to the cell above it; the quotients are exact in floating point.
    for n_bins in range(1, 60):
        x = torch.arange(n_bins, dtype=torch.float32)
        x = width * torch.cat([x, x + 0.5, torch.tensor([float(n_bins)])]).unsqueeze(0)
        assert feature_density(x, 1, n_bins).tolist() == [([2] * (n_bins - 1) + [3]) * 2 + [3]]


@pytest.mark.parametrize("kappa", [-0.8, 0.8])
def test_dense_units_are_dropped_less_if_and_only_if_kappa_is_negative(kappa: float) -> None:
    # Two tight bunches, of 60 and of 4 channels, that are far apart.
    labels = torch.arange(64) < 60
    centres = torch.where(labels, 0.0, 5.0)[:, None] * draw(1, 9, seed=3)
    x = (centres + 0.01 * draw(64, 9)).reshape(1, 64, 3, 3).expand(2000, -1, -1, -1) + 1.0
    layer = FeatureDensityDropout(2, 2, kappa, 0.5 - kappa / 2, generator=torch.Generator().manual_seed(0))
    p = layer.drop_probability(x)[0]
    dropped = (layer(x) == 0).flatten(2).all(2).double().mean(0)
    dense, rare = dropped[labels].mean(), dropped[~labels].mean()
    assert (dense < rare - 0.05) if kappa < 0 else (dense > rare + 0.05)
    assert (p[labels].mean() < p[~labels].mean()) == (kappa < 0)


def test_the_densest_cell_has_probability_kappa_plus_alpha() -> None:
    x = draw(5, 100, 4, 4)
    counts = feature_density(x, 2, 5)
    p = FeatureDensityDropout(2, 5, kappa=-0.6, alpha=0.7).drop_probability(x)
    assert (counts.amax(1) > counts.amin(1)).all()
    torch.testing.assert_close(p.amin(1), torch.full((5,), 0.1))
    torch.testing.assert_close(p, -0.6 * counts / counts.amax(1, keepdim=True) + 0.7)
    assert (p[counts == counts.amax(1, keepdim=True)] < 0.1 + 1e-6).all()


def test_one_cell_is_dropout_at_a_constant_rate() -> None:
    p = FeatureDensityDropout(2, 1).drop_probability(draw(3, 20, 4, 4))
    torch.testing.assert_close(p, torch.full((3, 20), 0.1))


@pytest.mark.parametrize(("kappa", "alpha"), [(-1.0, 1.0), (1.0, 0.0), (0.7 + 0.1, 0.1 + 0.1)])
def test_probabilities_stay_within_bounds_at_the_extreme_options(kappa: float, alpha: float) -> None:
    p = FeatureDensityDropout(1, 25, kappa, alpha).drop_probability(draw(20, 64))
    assert ((p >= 0) & (p <= 1)).all()


# --- components without range ----------------------------------------------------------------------------------------

ROUTES = pytest.mark.parametrize(("c", "h", "w"), [(64, 4, 4), (512, 4, 4), (20, 12, 12), (64, 14, 14), (3, 10, 10)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])


@BOTH_AXES
@DTYPES
@ROUTES
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.5])
def test_maps_that_are_all_the_same_share_one_cell(dtype: torch.dtype, c: int, h: int, w: int, value: float) -> None:
    x = (value * (1 + draw(2, 1, h, w).abs())).expand(2, c, h, w).to(dtype)
    for k in (1, 2, 3):
        assert (feature_density(x, k, 5) == c).all()


@DTYPES
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.5])
def test_features_that_differ_by_a_rounding_share_one_cell(dtype: torch.dtype, value: float) -> None:
    x = torch.full((2, 32), value, dtype=dtype)
    assert (feature_density(x, 1, 25) == 32).all()
    x[:, ::3] *= 1 + torch.finfo(dtype).eps
    assert (feature_density(x, 1, 25) == 32).all()
    # Ten times the tolerance is a range: in a grid of two cells, those above and those below.
    x = torch.full((1, 32), 1.0, dtype=dtype)
    x[:, :10] += 40 * torch.finfo(dtype).eps
    assert feature_density(x, 1, 2).tolist() == [[10] * 10 + [22] * 22]


@BOTH_AXES
@DTYPES
@ROUTES
@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("rank", [1, 2])
def test_components_beyond_the_rank_are_not_cut_into_cells(
    dtype: torch.dtype, c: int, h: int, w: int, offset: float, rank: int
) -> None:
    maps = draw(4, c, rank, seed=1, dtype=torch.float64) @ draw(4, rank, h * w, seed=2, dtype=torch.float64)
    x = (maps + offset).reshape(4, c, h, w).to(dtype)
    # Where all further components lie in cell 0, the counts are those of the grid over the first ones alone.
    expected = feature_density(x, rank, 4)
    for k in range(rank + 1, 4):
        torch.testing.assert_close(feature_density(x, k, 4), expected)


@BOTH_AXES
@pytest.mark.parametrize(("c", "h", "w"), [(64, 4, 4), (512, 4, 4), (20, 12, 12), (64, 14, 14)])
def test_a_weak_component_above_the_rounding_is_cut_into_cells(c: int, h: int, w: int) -> None:
    first, second = torch.linalg.qr(draw(h * w, 2, dtype=torch.float64)).Q.T
    across = torch.linspace(-1, 1, c, dtype=torch.float64)
    # Orthogonal to the first coordinate by its symmetry, with a standard deviation of a thirtieth of that.
    weak = 0.03 * (across**2 - (across**2).mean())
    x = (across[:, None] * first + weak[:, None] * second).reshape(1, c, h, w)
    counts = feature_density(x.float(), 2, 2)
    torch.testing.assert_close(counts, feature_density(x, 2, 2))
    assert not torch.equal(counts, feature_density(x.float(), 1, 2))


@BOTH_AXES
def test_components_that_do_not_exist_count_as_without_range() -> None:
    x = draw(2, 30, 1, 1)
    torch.testing.assert_close(feature_density(x, 3, 5), feature_density(x.flatten(1), 1, 5))
    x = draw(2, 2, 4, 4)  # two maps span one axis
    assert feature_density(x, 3, 5).tolist() == [[1, 1]] * 2
    assert feature_density(draw(2, 1, 4, 4), 2, 5).tolist() == [[1]] * 2


# --- invariances -----------------------------------------------------------------------------------------------------

GRIDS = pytest.mark.parametrize(("k", "n_bins"), [(1, 25), (2, 5), (3, 3)])


@BOTH_AXES
@GRIDS
def test_a_sample_does_not_depend_on_its_batch(k: int, n_bins: int) -> None:
    x = draw(9, 40, 4, 4, dtype=torch.float64)
    together = feature_density(x, k, n_bins)
    for i in range(9):
        torch.testing.assert_close(feature_density(x[i : i + 1], k, n_bins), together[i : i + 1])
    torch.testing.assert_close(feature_density(x.flip(0), k, n_bins), together.flip(0))


@BOTH_AXES
@GRIDS
def test_counts_follow_the_channels_and_ignore_everything_else_that_pca_ignores(k: int, n_bins: int) -> None:
    x = draw(4, 40, 4, 4, dtype=torch.float64)
    counts = feature_density(x, k, n_bins)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(feature_density(x[:, order], k, n_bins), counts[:, order])
    torch.testing.assert_close(feature_density(x.flatten(2).flip(2), k, n_bins), counts)
    torch.testing.assert_close(feature_density(-3 * x, k, n_bins), counts)
    torch.testing.assert_close(feature_density(x + draw(4, 1, 4, 4, seed=5), k, n_bins), counts)
    rotation = torch.linalg.qr(draw(16, 16, seed=6, dtype=torch.float64)).Q
    torch.testing.assert_close(feature_density(x.flatten(2) @ rotation, k, n_bins), counts)


@BOTH_AXES
@GRIDS
def test_both_ways_to_the_principal_axes_agree(k: int, n_bins: int) -> None:
    x = draw(4, 12, 3, 3, dtype=torch.float64)  # 9 positions: their covariance is the smaller
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))  # 16 positions, of which 7 say nothing: the Gram matrix is
    torch.testing.assert_close(feature_density(padded, k, n_bins), feature_density(x, k, n_bins))


@BOTH_AXES
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_sample_disturbs_no_other(value: float) -> None:
    for k, x in ((1, draw(3, 20)), (2, draw(3, 20, 4, 4)), (3, draw(3, 8, 4, 4))):
        expected = feature_density(x, k, 4)
        x[1].view(-1)[7] = value
        torch.testing.assert_close(feature_density(x, k, 4)[[0, 2]], expected[[0, 2]])


def test_half_precision_and_autocast_count_as_float32_does() -> None:
    for k, x in ((1, draw(4, 64)), (2, draw(4, 64, 4, 4)), (3, draw(4, 12, 4, 4))):
        for dtype in (torch.float16, torch.bfloat16):
            torch.testing.assert_close(feature_density(x.to(dtype), k, 5), feature_density(x.to(dtype).float(), k, 5))
        expected = feature_density(x, k, 5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(feature_density(x, k, 5), expected)


def test_nothing_depends_on_the_values_on_the_host() -> None:
    # On the meta device there are no values: reading one, as .item() and bool() do, raises.
    for k, shape in ((1, (4, 8)), (2, (4, 8, 3, 3)), (3, (4, 8, 3, 2)), (2, (0, 8, 3, 3))):
        x = torch.empty(shape, device="meta")
        assert feature_density(x, k, 5).shape == shape[:2]
        assert FeatureDensityDropout(k, 5, active="always", rescale="inverted").eval()(x).shape == shape


# --- the axes --------------------------------------------------------------------------------------------------------

SIZES = (2, 3, 16, 49, 128)
#: Spectra with clear gaps between the first three, with ties, without some or all ranks; cut to the size.
SPECTRA: dict[str, list[float]] = {
    "geometric": [2.0**-i for i in range(128)],
    "close": [1 - 1e-3, 1 - 2e-3, 1 - 3e-3, *[0.5] * 125],
    "weak": [1.0, 1e-2, 1e-4, *[0.0] * 125],
    "first two tie": [1.0, 1.0, 0.5, *[0.1] * 125],
    "last two tie": [1.0, 0.5, 0.5, *[0.1] * 125],
    "all tie": [1.0] * 128,
    "rank one": [1.0, *[0.0] * 127],
    "zero": [0.0] * 128,
}


def symmetric(spectrum: list[float], n: int, seed: int = 0) -> Tensor:
    """Random matrices with these eigenvalues, shape (n, D, D), float64."""
    size = len(spectrum)
    vectors = torch.linalg.qr(draw(n, size, size, seed=seed, dtype=torch.float64)).Q
    matrices = (vectors * torch.tensor(spectrum, dtype=torch.float64)) @ vectors.mT
    return (matrices + matrices.mT) / 2


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-12), (torch.float32, 1e12), (torch.float64, 1.0)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SPECTRA)
def test_squaring_finds_the_axes_of_eigh(name: str, size: int, dtype: torch.dtype, scale: float) -> None:
    k = min(3, size)
    spectrum = SPECTRA[name][:size]
    matrices = (scale * symmetric(spectrum, 8)).to(dtype)
    variances, found = axes_by_squaring(matrices, k)
    assert (variances.dtype, variances.shape) == (dtype, (8, k))
    assert (found.dtype, found.shape) == (dtype, (8, k, size))
    # The errors that a backward stable method makes: of a variance eps, of an axis eps over the gap, in units of the
    # largest variance, times a modest number.
    rounding = 20 * torch.finfo(dtype).eps
    expected, vectors = torch.linalg.eigh(matrices.double())
    expected, vectors = expected.flip(1), vectors.flip(2).mT
    assert ((variances - expected[:, :k]).abs() <= rounding * scale).all()
    for r in range(k):
        if expected[0, r] <= 1e-6 * scale:
            continue  # of a variance that is rounding noise no axis is asked for
        torch.testing.assert_close(torch.linalg.vector_norm(found[:, r], dim=1), torch.ones(8, dtype=dtype))
        # An axis lies in the space of all eigenvectors whose variance is its own, where there are several.
        own = [i for i, value in enumerate(spectrum) if value == spectrum[r]]
        gap = min((abs(value - spectrum[r]) for value in spectrum if value != spectrum[r]), default=1.0)
        outside = found[:, r].double() - ((vectors[:, own] @ found[:, r, :, None].double()).mT @ vectors[:, own])[:, 0]
        assert torch.linalg.vector_norm(outside, dim=1).max() <= rounding / gap
    kept = expected[0, :k] > 1e-6 * scale
    angles = (found @ found.mT)[:, kept][:, :, kept]
    torch.testing.assert_close(angles, torch.eye(len(angles[0]), dtype=dtype).expand_as(angles), atol=rounding, rtol=0)


@pytest.mark.parametrize("gap", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_squaring_is_as_exact_as_eigh_where_two_variances_are_close(gap: float) -> None:
    matrices = symmetric([1.0, 1 - gap, *[0.3] * 14], 200).float()
    exact = torch.linalg.eigh(matrices.double()).eigenvectors[:, :, -2:].flip(2).mT
    plane = torch.eye(16, dtype=torch.float64) - exact.mT @ exact
    errors = []
    for method in (axes_by_squaring, axes_by_eigh):
        variances, found = method(matrices, 2)
        found = found.gather(1, variances.argsort(1, descending=True).unsqueeze(2).expand(-1, -1, 16)).double()
        # However small the gap is, the plane of the two is right.
        assert torch.linalg.vector_norm(found @ plane, dim=2).max() < 1e-5
        outside = found - (found * exact).sum(2, keepdim=True) * exact
        errors.append(torch.linalg.vector_norm(outside, dim=2).mean())
    assert errors[0] <= errors[1]


def test_a_matrix_of_zeros_and_an_empty_batch_have_axes_of_no_variance() -> None:
    for n in (0, 3):
        variances, found = axes_by_squaring(torch.zeros(n, 5, 5), 2)
        assert torch.equal(variances, torch.zeros(n, 2))
        assert torch.equal(found, torch.zeros(n, 2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_that_is_left_of_a_matrix_without_rank_has_axes_too(dtype: torch.dtype) -> None:
    left, noise = draw(500, 20, 1, dtype=dtype), draw(500, 20, 20, seed=1, dtype=dtype)
    # A product need not be symmetric to the last bit; of rank one, nothing but rounding is left after one axis.
    matrices = left @ left.mT + torch.finfo(dtype).eps * (noise - noise.mT)
    variances, found = axes_by_squaring(matrices, 3)
    assert found.isfinite().all()
    assert (variances[:, 1:].abs() <= 100 * torch.finfo(dtype).eps * variances[:, :1]).all()


def test_both_axes_give_the_same_counts_on_maps_of_a_network() -> None:
    # Positive, sparse and with one strong component, as after a ReLU, where gaps are clear.
    maps = (draw(64, 128, 1, 1).abs() * draw(64, 1, 4, 4, seed=1).abs() + 0.5 * draw(64, 128, 4, 4, seed=2)).relu()
    for k, n_bins in ((1, 25), (2, 5), (3, 3)):
        by_eigh = feature_density(maps, k, n_bins)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(density, "axes_by_eigh", axes_by_squaring)
            by_squaring = feature_density(maps, k, n_bins)
        # A unit on the border of two cells, to rounding, takes some others with it.
        assert (by_eigh == by_squaring).all(1).double().mean() > 0.9
        assert (by_eigh == by_squaring).double().mean() > 0.99


def test_only_the_cpu_asks_lapack_which_the_host_would_have_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(density, "axes_by_eigh", refuse)
    assert feature_density(torch.empty((4, 8, 3, 3), device="meta"), 2, 5).shape == (4, 8)
    with pytest.raises(AssertionError):
        feature_density(draw(4, 8, 3, 3), 2, 5)


# --- torch.compile ---------------------------------------------------------------------------------------------------


@BOTH_AXES
@GRIDS
def test_the_layer_is_one_graph(k: int, n_bins: int) -> None:
    layer = FeatureDensityDropout(k, n_bins, rescale="inverted")
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = draw(6, 40, 4, 4).abs() + 0.1
    gradients, outputs = [], []
    for call in (compiled, layer):
        leaf = x.clone().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append(call(leaf))
        gradients.append(torch.autograd.grad(outputs[-1].sum(), leaf)[0])
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
    assert 0 < (outputs[0] == 0).double().mean() < 1


# --- options ---------------------------------------------------------------------------------------------------------


def test_published_grids() -> None:
    for name, k, n_bins in (("fdd-1d", 1, 25), ("fdd-2d", 2, 5), ("fdd-3d", 3, 3)):
        layer = build_dropout(name)
        assert isinstance(layer, FeatureDensityDropout)
        assert (layer.n_components, layer.n_bins, layer.kappa, layer.alpha) == (k, n_bins, -0.8, 0.9)
        assert (layer.rescale, layer.active) == ("none", "train")
        layer = build_dropout(name, n_bins=7, kappa=0.8, alpha=0.1, rescale="test", active="always")
        assert isinstance(layer, FeatureDensityDropout)
        assert (layer.n_components, layer.n_bins, layer.kappa, layer.alpha) == (k, 7, 0.8, 0.1)
        assert (layer.rescale, layer.active) == ("test", "always")
        assert f"n_components={k}, n_bins=7, kappa=0.8, alpha=0.1, rescale='test', active='always'" in repr(layer)


def test_features_have_no_principal_components() -> None:
    with pytest.raises(ConfigurationError, match=r"n_components must be 1 for \(N, C\) features, not 2.*\(4, 8\)"):
        feature_density(draw(4, 8), 2, 5)
    with pytest.raises(ConfigurationError, match="n_components must be 1"):
        FeatureDensityDropout(3, 3)(draw(4, 8))
    with pytest.raises(ConfigurationError, match=r"not \(8,\)"):
        feature_density(draw(8), 1, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -0.8, "alpha": 0.7}, r"kappa \+ alpha must lie in \[0, 1\]"),
        ({"kappa": 0.8, "alpha": 0.9}, r"kappa \+ alpha must lie in \[0, 1\]"),
        ({"kappa": -0.8, "alpha": 1.1}, r"alpha must lie in \[0, 1\]"),
        ({"kappa": 0.8, "alpha": -0.1}, r"alpha must lie in \[0, 1\]"),
        ({"kappa": math.nan}, r"kappa \+ alpha must lie in \[0, 1\]"),
        ({"alpha": math.nan}, r"alpha must lie in \[0, 1\]"),
        ({"alpha": "0.9"}, "alpha must be a number"),
        ({"kappa": None}, "kappa must be a number"),
        ({"n_bins": 0}, "n_bins must be an integer from 1, not 0"),
        ({"n_bins": 2.5}, "n_bins must be an integer from 1, not 2.5"),
        ({"n_bins": True}, "n_bins must be an integer from 1, not True"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_dropout("fdd-2d", **options)


def test_a_space_without_dimensions_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="n_components must be an integer from 1, not 0"):
        FeatureDensityDropout(0, 5)
    with pytest.raises(ConfigurationError, match="n_components must be an integer from 1, not 0"):
        feature_density(draw(4, 8), 0, 5)
