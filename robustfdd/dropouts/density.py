"""Feature density dropout (FDD): units in dense regions of feature space are dropped less often than lone ones.

Source: Ke, Wen, Xie, Wang, Shen 2020, "Group-Wise Dynamic Dropout Based on Latent Semantic Variations" (AAAI),
Algorithm 1 and equations 1 to 3. For each sample by itself, every unit (a neuron or a feature map) is a point f in k
dimensions: its activation (k = 1), or the projection of the vectorised map on the first k principal axes over the
maps of that sample. Each dimension is cut into B equal cells between its extremes; rho is the number of units in the
cell that a unit falls in; then equation 1,

    p = kappa * rho / max(rho) + alpha,   kappa = -0.8, alpha = 0.9,

and one Bernoulli draw multiplies the whole unit. B is 25, 5 and 3 for k = 1, 2 and 3.

What the paper leaves open, and what is done here:

* *Which way the draw goes.* The paper calls p the dropout probability, but draws the factor m from Bernoulli(p) (after
  equation 2); read literally, that keeps dense units rarely. Here p is the probability to drop, so that dense units
  are kept, which is what its abstract, its text and its ablation of the correlation say.
* *Rescaling.* None is stated, so ``rescale="none"`` is the default. It matters: with p between 0.1 and 0.9 in
  training, evaluation sees many more active units than training did. ``"inverted"`` and ``"test"`` make up for it.
* *Which PCA.* The columns are centred over the maps of the sample, as PCA has it; the paper does not say so.
* *The last cell.* By the paper's formula a unit at the maximum would fall in cell B + 1; it belongs to the last one.
* *A dimension in which all units agree* has cells of no width; all units are put in the first one. In floating point
  such a dimension has a range of rounding noise, which must not be cut into cells: see :func:`feature_density`.
* *The gradient.* None passes through p. Nothing is lost: the counts are piecewise constant, so the derivative of p
  is zero wherever it exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from robustfdd.dropouts.base import (
    Active,
    Dropout,
    DropoutSpec,
    Placement,
    Rescale,
    Site,
    check_count,
    check_number,
    register,
)
from robustfdd.errors import ConfigurationError

#: A range of at most this many units in the last place of the largest point is rounding noise: each of the two
#: extremes is rounded at least once on its way here, and the values that are compared were sums of rounded ones.
RANGE_ULPS = 4
# How often a matrix is squared between two divisions by its largest entry, which keep it from growing out of float32.
_SQUARINGS_A_ROUND = 3
# The types of device that know autocast, without which turning it off raises. Asked once and not in every call, as
# torch.compile cannot trace the question in older versions.
_AUTOCAST_DEVICES = frozenset(name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name))


def feature_density(x: Tensor, n_components: int, n_bins: int) -> Tensor:
    """Count, for each unit of each sample, the units of that sample in the same cell of feature space.

    The principal axes come from the smaller of the D x D covariance of the positions and the C x C Gram matrix of
    the maps, D = H * W, so that early stages with their large maps are affordable too. The counts do not depend on
    the signs of the axes, which are arbitrary, except for units exactly on the border of two cells.

    A component counts as having no range, and all units fall in its first cell, if

    * its variance is at most max(C, D) * eps times that of the first component: the usual rule for the numerical
      rank of a C x D matrix, applied to the matrix that is decomposed. Its eigenvalues carry an error of that size,
      so below it the very direction of the axis is rounding noise. In float32, for 512 maps, that is a standard
      deviation of 0.8 % of the first component's. Components beyond the D-th do not exist and count likewise;
    * its range is at most :data:`RANGE_ULPS` * eps times the largest Euclidean norm of a unit, as for maps that are
      all the same. Here eps is that of the dtype of x, so that rounding to half precision is recognised too.

    Everything else is computed in float32, or in float64 if x is, autocast or not. The result carries no gradient. A
    sample with values that are not finite has meaningless counts and disturbs no other sample. The host does not wait
    for the device, and ``torch.compile`` traces it in one graph.

    Args:
        x: features, shape (N, C), or feature maps, shape (N, C, H, W) or with any other number of spatial
            dimensions from 1; floating point.
        n_components: number k of dimensions of feature space, at least 1; for (N, C) features only 1, the
            activation itself.
        n_bins: number B of cells a dimension is cut into, at least 1. A table of N * B**k counts is held in memory.

    Returns:
        Counts from 1 to C, shape (N, C), int64.

    Raises:
        ConfigurationError: an argument is out of its range, or x does not have the dimensions it must have.
    """
    _check_grid(n_components, n_bins)
    if x.ndim < 2:
        raise ConfigurationError(f"feature density needs (N, C) features or (N, C, H, W) maps, not {tuple(x.shape)}")
    if x.ndim == 2 and n_components > 1:
        raise ConfigurationError(
            f"n_components must be 1 for (N, C) features, not {n_components}: "
            f"principal components need feature maps, (N, C, H, W); x has the shape {tuple(x.shape)}"
        )
    # Under autocast the products would be taken in half precision.
    device_type = x.device.type
    in_full = torch.autocast(device_type, enabled=False) if device_type in _AUTOCAST_DEVICES else nullcontext()
    with torch.no_grad(), in_full:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.ndim == 2:
            points, largest = values.unsqueeze(1), values.abs().amax(1)
        else:
            maps = values.flatten(2)
            # Not torch.linalg.vector_norm, which on the CPU takes many times as long over so few positions.
            points, largest = _coordinates(maps, n_components), maps.square().sum(2).amax(1).sqrt()
        cells = _cell_indices(points, n_bins, RANGE_ULPS * torch.finfo(x.dtype).eps * largest)
        table = cells.new_zeros(cells.shape[0], n_bins**n_components)
        return table.scatter_add_(1, cells, torch.ones_like(cells)).gather(1, cells)


def principal_coordinates(maps: Tensor, n_components: int) -> Tensor:
    """Coordinates of the C rows of each sample on its first principal axes.

    Args:
        maps: shape (N, C, D).
        n_components: number k of axes.

    Returns:
        Shape (N, C, k'), k' = min(k, C, D), in no particular order; zero for components without variance.
    """
    return _coordinates(maps, n_components).mT


def _coordinates(maps: Tensor, n_components: int) -> Tensor:
    """What :func:`principal_coordinates` returns, shape (N, k', C): a component in one piece of memory.

    Work on it then runs along C, which is long, and not along k, which is short.
    """
    n_channels, n_positions = maps.shape[1:]
    centred = maps - maps.mean(1, keepdim=True)
    by_position = n_positions <= n_channels
    scatter = centred.mT @ centred if by_position else centred @ centred.mT
    # eigh refuses the whole batch for one value that is not finite; a diverged sample must not hide the others.
    scatter = scatter.nan_to_num(0.0, 0.0, 0.0)
    # eigh asks the device whether it came to an end, for which the host would wait.
    principal_axes = axes_by_eigh if maps.device.type == "cpu" else axes_by_squaring
    variances, axes = principal_axes(scatter, min(n_components, n_channels, n_positions))
    rank_eps = max(n_channels, n_positions) * torch.finfo(maps.dtype).eps
    has_variance = (variances > rank_eps * variances.amax(1, keepdim=True)).unsqueeze(2)
    if by_position:
        return torch.where(has_variance, axes, torch.zeros_like(axes)) @ centred.mT
    # The eigenvectors of the Gram matrix are the left singular vectors of the maps: coordinates but for their scale.
    scaled = axes * variances.clamp_min(0).sqrt().unsqueeze(2)
    return torch.where(has_variance, scaled, torch.zeros_like(scaled))


def axes_by_eigh(scatter: Tensor, n_axes: int) -> tuple[Tensor, Tensor]:
    """The eigenvectors of the largest eigenvalues of symmetric positive semidefinite matrices, by LAPACK.

    Args:
        scatter: finite, shape (N, D, D).
        n_axes: number k of eigenvectors, at most D.

    Returns:
        The eigenvalues, shape (N, k), in no particular order, and eigenvectors of unit length, shape (N, k, D).
    """
    variances, vectors = torch.linalg.eigh(scatter)
    return variances[:, -n_axes:], vectors[:, :, -n_axes:].mT


def axes_by_squaring(scatter: Tensor, n_axes: int) -> tuple[Tensor, Tensor]:
    """What :func:`axes_by_eigh` returns, in as many matrix products whatever the values are.

    So nothing has to be read by the host on the way. The largest eigenvalue of a matrix that is squared again and
    again outgrows all others, until every column is a multiple of its eigenvector: the power method (Golub & Van Loan,
    Matrix Computations, section 8.2) at 2**s steps for s squarings. Then the axis is taken out of the matrix, and the
    next one is found in what is left.

    s squarings leave (1 - g)**(2**s) of the eigenvector of an eigenvalue that is smaller by a relative gap of g. s is
    such that this is eps at g = 64 * eps. At gaps so small, rounding turns the axes of any method, by about eps / g
    times a small number. The squarings add no more than that: what the j-th one rounds off is divided by a gap that
    has grown to 2**j * g by then. Where the gap is smaller still, the axes are some of the space that both belong to,
    which are as right; those of a matrix of zeros are zero.

    Args:
        scatter: finite, shape (N, D, D), D up to 2**15.
        n_axes: number k of eigenvectors, at most D.

    Returns:
        The eigenvalues, shape (N, k), the largest first but for rounding, and the eigenvectors, shape (N, k, D).
    """
    size = scatter.shape[1]
    limits = torch.finfo(scatter.dtype)
    n_rounds = math.ceil(math.log2(-math.log(limits.eps) / (64 * limits.eps)) / _SQUARINGS_A_ROUND)
    variances: list[Tensor] = []
    axes: list[Tensor] = []
    # Products need not be symmetric to the last bit; of what is left of rounding alone, that may be the larger part,
    # and the square of an antisymmetric matrix has no eigenvalue above 0.
    rest = (scatter + scatter.mT) / 2
    for _ in range(n_axes):
        # By their largest entry, eigenvalues lie in [0, D] and the largest is at least 1: in a round of squarings it
        # neither vanishes nor reaches more than D**8. What is left over of rounding may be below 0 at first.
        power = rest / rest.abs().amax((1, 2), keepdim=True).clamp_min(limits.tiny)
        for _ in range(n_rounds):
            power = torch.linalg.matrix_power(power, 2**_SQUARINGS_A_ROUND)
            diagonal = power.flatten(1)[:, :: size + 1]
            power = power / diagonal.amax(1).clamp_min(limits.tiny).view(-1, 1, 1)
        # The column of the largest entry on the diagonal, which is the longest one.
        column = power.flatten(1)[:, :: size + 1].argmax(1).view(-1, 1, 1)
        axis = power.gather(2, column.expand(-1, size, 1))
        for earlier in axes:
            axis = axis - earlier * (earlier.mT @ axis)
        axis = axis / torch.linalg.vector_norm(axis, dim=1, keepdim=True).clamp_min(limits.tiny)
        image = rest @ axis
        variance = axis.mT @ image
        outer = axis @ (image - variance / 2 * axis).mT
        rest = rest - (outer + outer.mT)  # (I - a a') R (I - a a')
        variances.append(variance.view(-1, 1))
        axes.append(axis)
    return torch.cat(variances, 1), torch.cat(axes, 2).mT


def _cell_indices(points: Tensor, n_bins: int, noise: Tensor) -> Tensor:
    """The cell of each point on a grid between the extremes of each sample, numbered through all dimensions.

    Args:
        points: shape (N, k, C).
        n_bins: number of cells in each dimension.
        noise: ranges up to this one are none, shape (N,).

    Returns:
        Shape (N, C), int64.
    """
    low = points.amin(2, keepdim=True)
    span = points.amax(2, keepdim=True) - low
    # Divided by the width, as the paper has it, not multiplied by a reciprocal: values on a regular lattice, as of
    # counts or quantised features, then fall in the cells they should. A width of infinity puts all in cell 0.
    width = torch.where(span > noise.view(-1, 1, 1), span / n_bins, torch.full_like(span, torch.inf))
    # The lower bound only concerns NaN, of which the conversion to an integer is not defined.
    indices = ((points - low) / width).int().clamp(0, n_bins - 1)
    cells = indices[:, 0].long()
    for r in range(1, points.shape[1]):
        cells = cells * n_bins + indices[:, r]
    return cells


class FeatureDensityDropout(Dropout):
    """Drop each unit with a probability that follows the density of units around it, per sample.

    Features (N, C) are dropped one by one, feature maps (N, C, H, W) whole. The published variants are
    ``(n_components=1, n_bins=25)`` on features and ``(2, 5)`` and ``(3, 3)`` on maps.

    Args:
        n_components: number k of dimensions of feature space, at least 1; more than 1 needs feature maps.
        n_bins: number of cells in each dimension, at least 1.
        kappa: slope of the drop probability over the relative density, rho / max(rho) in (0, 1]. Negative: dense
            units are dropped less.
        alpha: drop probability in the limit of zero density. alpha and kappa + alpha must lie in [0, 1].
        rescale: see :class:`~robustfdd.dropouts.base.Dropout`.
        active: see :class:`~robustfdd.dropouts.base.Dropout`.
        generator: see :class:`~robustfdd.dropouts.base.Dropout`.

    Raises:
        ConfigurationError: an option is out of its range.
    """

    def __init__(
        self,
        n_components: int,
        n_bins: int,
        kappa: float = -0.8,
        alpha: float = 0.9,
        rescale: Rescale = "none",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        _check_grid(n_components, n_bins)
        # The slack is for sums such as 0.7 + 0.2 + 0.1 that rounding lifts above 1; drop_probability cuts it off.
        slack = 1e-9
        check_number("kappa", kappa)
        check_number("alpha", alpha)
        for description, value in (("alpha", alpha), ("kappa + alpha", kappa + alpha)):
            if not -slack <= value <= 1 + slack:
                raise ConfigurationError(
                    f"{description} must lie in [0, 1], so that the drop probability "
                    f"kappa * rho / max(rho) + alpha does, not {value!r} (kappa {kappa!r}, alpha {alpha!r})"
                )
        self.n_components = n_components
        self.n_bins = n_bins
        self.kappa = kappa
        self.alpha = alpha

    def drop_probability(self, x: Tensor) -> Tensor:
        """Equation 1 of the paper, for each unit of each sample.

        Args:
            x: features, shape (N, C), or feature maps, shape (N, C, H, W).

        Returns:
            Shape (N, C), float32, between alpha and kappa + alpha; the latter in the densest cell of a sample.

        Raises:
            ConfigurationError: x is (N, C) and n_components is not 1.
        """
        density = feature_density(x, self.n_components, self.n_bins).float()
        return (self.kappa * (density / density.amax(1, keepdim=True)) + self.alpha).clamp(0, 1)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        grid = f"n_components={self.n_components}, n_bins={self.n_bins}"
        return f"{grid}, kappa={self.kappa}, alpha={self.alpha}, {super().extra_repr()}"


def _check_grid(n_components: int, n_bins: int) -> None:
    for option, value in (("n_components", n_components), ("n_bins", n_bins)):
        check_count(option, value)


def _builder(n_components: int, default_bins: int) -> Callable[..., nn.Module]:
    """A function that makes the layer for a fixed number of components, which is thus not an option."""

    def build(
        *,
        n_bins: int = default_bins,
        kappa: float = -0.8,
        alpha: float = 0.9,
        rescale: Rescale = "none",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> FeatureDensityDropout:
        return FeatureDensityDropout(
            n_components, n_bins, kappa, alpha, rescale=rescale, active=active, generator=generator
        )

    return build


def _register(n_components: int, n_bins: int, site: Site, placements: tuple[Placement, ...], summary: str) -> None:
    register(
        DropoutSpec(
            name=f"fdd-{n_components}d",
            title=f"FDD-{n_components}D",
            build=_builder(n_components, n_bins),
            site=site,
            placements=placements,
            source="Ke et al. 2020, Group-Wise Dynamic Dropout Based on Latent Semantic Variations, AAAI",
            summary=summary,
            order=100 + n_components,
            strategy="Feature density",
            adaptive=True,
            hyperparameters="Slope and intercept of the probability over density; number of cells",
            cost="Density on a grid" if n_components == 1 else "Principal components and density on a grid",
        )
    )


_register(
    n_components=1,
    n_bins=25,
    site="features",
    placements=("last",),
    summary="A feature is dropped less often, the more features of the sample are about as active.",
)
_register(
    n_components=2,
    n_bins=5,
    site="maps",
    placements=("last", "stages"),
    summary="A feature map is dropped less often, the more maps lie near it in two principal components.",
)
_register(
    n_components=3,
    n_bins=3,
    site="maps",
    placements=("last", "stages"),
    summary="A feature map is dropped less often, the more maps lie near it in three principal components.",
)
