"""What the analyses compute, against independent NumPy and torch references."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_dataset
from torch import nn

from robustfdd.analysis import ANALYSES, TrainedModel, activations, cost, density_groups, planes
from robustfdd.analysis.base import (
    AnalysisUnavailableError,
    captured_inputs,
    images_of_different_classes,
    register,
)
from robustfdd.analysis.deconvolution import ChannelSums, deconvolve
from robustfdd.classifier import weights_digest
from robustfdd.datasets import Dataset
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import Dropout
from robustfdd.errors import ConfigurationError
from robustfdd.models import ResNet18, build_model
from robustfdd.specs import Recipe

RECIPE = Recipe(epochs=1, batch_size=16)


def trained(dataset: Dataset, dropout: str, *, width: int = 4, placement: str = "last", **options: object) -> ResNet18:
    """A network with batch-norm statistics and weights that are not those of the initialisation."""
    model = build_model(dataset, dropout, width=width, placement=placement, seed=2, **options)
    model.train()
    for start in range(0, 64, 32):
        model(to_pixels(dataset.train.images[start : start + 32]))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Dataset:
    # Large enough that the last maps have several positions.
    return make_dataset(size=16, channels=3)


@pytest.fixture(scope="module")
def plain(images: Dataset) -> TrainedModel:
    return TrainedModel(trained(images, "none"), images, RECIPE)


@pytest.fixture(scope="module")
def fdd(images: Dataset) -> TrainedModel:
    return TrainedModel(trained(images, "fdd-2d"), images, RECIPE)


def last_maps(model: ResNet18, images: torch.Tensor) -> np.ndarray:
    """The last feature maps by torchvision's own blocks, in double precision from there on."""
    with torch.no_grad():
        return model.stages(model.stem(model.normalize(to_pixels(images)))).double().numpy()


# --- activations


def test_the_histogram_and_the_shares_are_numpys() -> None:
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(0.1, 0.5, (50, 40)), 0.0)
    features[0, :4] = 0.25, 0.01, 1000.0, 20.0  # on borders of bins, and above all of them
    logits = rng.normal(0, 5, (50, 6))
    found = activations.tables(features, logits)
    bins, row = found["activations"], found["activation-summary"].iloc[0]
    edges = np.append(np.arange(activations.N_BINS + 1) * activations.BIN_WIDTH, 1e9)
    expected = np.histogram(features, edges)[0]
    assert bins["count"].sum() == features.size
    assert len(bins) == activations.N_BINS + 1
    assert np.array_equal(bins["count"], expected)
    assert bins["right"].iloc[-1] == np.inf
    assert row["share_near_zero"] == sum(v < 0.01 for v in features.ravel()) / features.size
    assert row["share_near_zero_relative"] == sum(v < 0.1 * features.mean() for v in features.ravel()) / features.size
    assert row["mean_max_abs_logit"] == pytest.approx(np.mean([max(abs(v) for v in line) for line in logits]))
    margins = [sorted(line)[-1] - sorted(line)[-2] for line in logits]
    assert row["mean_logit_margin"] == pytest.approx(np.mean(margins))


def test_the_relative_share_does_not_depend_on_the_scale_of_the_features_and_the_absolute_one_does() -> None:
    features = np.random.default_rng(1).exponential(1.0, (20, 30))
    large = activations.tables(features, np.eye(20))["activation-summary"].iloc[0]
    small = activations.tables(features / 16, np.eye(20))["activation-summary"].iloc[0]
    assert small["share_near_zero_relative"] == large["share_near_zero_relative"] > 0
    assert small["share_near_zero"] > large["share_near_zero"]


def test_activations_are_those_before_any_dropout(images: Dataset) -> None:
    # rescale="test" multiplies by 1 - p = 0.25 in evaluation, after the features that are looked at.
    model = trained(images, "spatial", p=0.75, rescale="test")
    found = ANALYSES["activations"].compute(TrainedModel(model, images, RECIPE))
    row = found["activation-summary"].iloc[0]
    maps = last_maps(model, images.test.images)
    assert row["n_images"] == len(images.test.labels)
    assert row["mean"] == pytest.approx(maps.mean(), rel=1e-5)
    logits = 0.25 * maps.mean((2, 3)) @ model.classifier.weight.detach().double().numpy().T
    logits += model.classifier.bias.detach().double().numpy()
    assert row["mean_max_abs_logit"] == pytest.approx(np.abs(logits).max(1).mean(), rel=1e-4)


# --- planes


def test_the_plane_is_the_pca_of_the_channels_up_to_sign(fdd: TrainedModel) -> None:
    maps = torch.from_numpy(last_maps(fdd.model, fdd.dataset.test.images[:5])).float()
    found = planes.plane(maps, 3).numpy()
    for points, sample in zip(found, maps.flatten(2).double().numpy(), strict=True):
        centred = sample - sample.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        for r in range(3):
            expected = centred @ axes[r]
            expected *= np.sign(expected[np.abs(expected).argmax()])
            assert np.allclose(points[:, r], expected, atol=1e-4 * np.abs(centred).max())


def test_axes_that_do_not_exist_are_zero() -> None:
    maps = torch.rand(2, 6, 1, 1)  # one position: one axis
    found = planes.plane(maps, 3)
    assert found.shape == (2, 6, 3)
    assert found[:, :, 0].abs().amax() > 0
    assert found[:, :, 1:].abs().amax() == 0


def test_planes_of_fdd_follow_equation_1_and_the_draw_follows_its_probabilities(fdd: TrainedModel) -> None:
    rows = planes.compute(fdd)["planes"]
    assert rows["image"].nunique() == rows["class"].nunique() == planes.N_IMAGES
    for image, mine in rows.groupby("image"):
        assert mine["class"].iloc[0] == fdd.dataset.classes[fdd.dataset.test.labels[int(image)]]
        points = mine[["pc1", "pc2"]].to_numpy(dtype=float)
        cells = np.minimum(np.floor((points - points.min(0)) / (np.ptp(points, axis=0) / 5)), 4).astype(int)
        counts = [sum((cells == cell).all(1)) for cell in cells]
        # A map on the border of two cells may be counted in the other one.
        assert np.mean(np.array(counts) == mine["density"].to_numpy()) > 0.9
        expected = 0.9 - 0.8 * mine["density"] / mine["density"].max()
        assert np.allclose(mine["drop_probability"], expected)
    # The seeded draw is the same for whoever asks, and drops what its probabilities say, on the whole.
    again = planes.compute(fdd)["planes"]
    assert again["dropped"].equals(rows["dropped"])
    spread = np.sqrt((rows["drop_probability"] * (1 - rows["drop_probability"])).sum())
    assert abs(rows["dropped"].sum() - rows["drop_probability"].sum()) < 4 * spread


@pytest.mark.parametrize(
    ("dropout", "placement", "applies"),
    [
        ("spatial", "last", True),
        ("fdd-2d", "last", True),
        ("fdd-3d", "last", True),
        ("fdd-2d", "stages", False),
        ("fdd-1d", "last", False),
        ("crossmap", "last", False),  # decides over positions
        ("none", "last", False),
        ("guided", "last", False),
    ],
)
def test_planes_are_of_layers_that_drop_whole_last_maps(
    images: Dataset, dropout: str, placement: str, applies: bool
) -> None:
    config = build_model(images, dropout, width=2, placement=placement).config
    assert planes.drops_last_maps(config) is applies


# --- density groups


def test_groups_are_thirds_of_the_occupied_cells() -> None:
    rng = np.random.default_rng(3)
    densities = []
    for _ in range(20):
        cells = rng.choice(25, 64, p=rng.dirichlet(np.full(25, 0.4)))
        densities.append([int((cells == cell).sum()) for cell in cells])
    found = density_groups.group_of(torch.tensor(densities)).numpy()
    for density, groups in zip(densities, found, strict=True):
        cells = sorted(v for v in set(density) for _ in range(density.count(v) // v))
        for value, group in zip(density, groups, strict=True):
            places = [i for i, other in enumerate(cells) if other == value]
            middle = (places[0] + places[-1] + 1) / 2
            assert group == min(int(3 * middle / len(cells)), 2)
    assert set(found.ravel()) == {0, 1, 2}


def test_groups_by_hand() -> None:
    # Cells with 1, 2 and 6 maps: one a group. Of two equal cells, neither is in another group.
    assert density_groups.group_of(torch.tensor([[6, 6, 6, 6, 6, 6, 1, 2, 2]])).tolist() == [[2] * 6 + [0, 1, 1]]
    assert density_groups.group_of(torch.tensor([[2, 2, 2, 2]])).tolist() == [[1] * 4]


def test_entropies_of_maps_known_in_closed_form() -> None:
    uniform = np.full((4, 8), 1 / 32)
    assert density_groups.entropy(uniform) == pytest.approx(np.log(32))
    point = np.zeros((4, 8))
    point[1, 2] = 1.0
    assert density_groups.entropy(point) == 0.0
    assert density_groups.entropy(np.array([0.5, 0.25, 0.25])) == pytest.approx(1.5 * np.log(2))
    # Grey levels: all pixels of one level; half black, half white; four levels of a quarter each, wherever they are.
    assert density_groups.grey_level_entropy(uniform) == pytest.approx(0.0)
    assert density_groups.grey_level_entropy(np.array([[0.0, 0.5], [0.5, 0.0]])) == pytest.approx(1.0)
    assert density_groups.grey_level_entropy(np.array([0.4, 0.3, 0.2, 0.1])) == pytest.approx(2.0)


@pytest.fixture(scope="module")
def groups(plain: TrainedModel) -> dict[str, pd.DataFrame]:
    pytest.importorskip("captum")
    return dict(density_groups.compute(plain))


def test_heat_maps_are_those_of_the_strongest_maps_of_each_group(
    plain: TrainedModel, groups: dict[str, pd.DataFrame]
) -> None:
    heat, channels, pictures = (groups[f"density-{name}"] for name in ("heatmaps", "channels", "images"))
    assert len(pictures) == density_groups.N_SHOWN
    for _, picture in pictures.iterrows():
        image = int(picture["image"])
        assert np.array_equal(picture["pixels"], plain.dataset.test.images[image].numpy().ravel())
        maps = last_maps(plain.model, plain.dataset.test.images[image : image + 1])[0]
        response = maps.sum((1, 2))
        rows = channels[channels["image"] == image]
        for group in density_groups.GROUPS:
            mine = rows[rows["group"] == group]["channel"].tolist()
            strongest = sorted((c for c in mine if response[c] > 0), key=lambda c: -response[c])[: density_groups.N_TOP]
            shown = heat[(heat["image"] == image) & (heat["group"] == group)].sort_values("rank")
            assert shown["channel"].tolist() == strongest
            assert np.allclose(shown["response"], response[strongest], rtol=1e-4)
    for values, entropy in zip(heat["heatmap"], heat["entropy"], strict=True):
        assert values.sum() == pytest.approx(1, abs=1e-5)
        assert entropy == pytest.approx(-(values[values > 0] * np.log(values[values > 0])).sum(), abs=1e-4)


def test_averages_are_over_all_heat_maps_of_a_group() -> None:
    rng = np.random.default_rng(5)
    heat = rng.dirichlet(np.full(12, 0.3), 6).reshape(6, 3, 4)
    chosen = {"image": [0, 0, 1, 1, 1, 2], "group": [0, 2, 0, 2, 2, 2]}
    group = torch.tensor([[0, 2, 2, 2], [0, 0, 2, 2], [2, 2, 2, 2]])
    rows = density_groups._averages(pd.DataFrame(chosen), heat, group).set_index("group")
    assert list(rows.index) == ["low", "high", "all"]  # nobody is in the medium group
    low, high = heat[[0, 2]], heat[[1, 3, 4, 5]]
    assert np.allclose(rows.at["low", "heatmap"], low.mean(0).ravel())
    assert rows.at["high", "average_entropy"] == pytest.approx(np.mean([-(h * np.log(h)).sum() for h in high]))
    average = high.mean(0)
    assert rows.at["high", "entropy_of_average"] == pytest.approx(-(average * np.log(average)).sum())
    assert rows.at["all", "n_heatmaps"] == 6
    assert rows.at["low", "n_images"] == 2
    assert rows.at["low", "share_of_maps"] == 3 / 12


# --- deconvolution


class ReferenceRelu(torch.autograd.Function):
    """A ReLU whose backward passes the positive part of the gradient, whatever the sign of its input was."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clamp_min(0)


def reference(model: ResNet18, x: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Deconvolution by plain autograd, the network spelled out."""
    relu = ReferenceRelu.apply
    x = x.clone().requires_grad_()
    model = copy.deepcopy(model).eval()
    conv, norm, _ = model.stem
    values = relu(norm(conv(model.normalize(x))))
    for stage in model.stages:
        for block in stage:
            shortcut = values if block.downsample is None else block.downsample(values)
            inner = relu(block.bn1(block.conv1(values)))
            values = relu(block.bn2(block.conv2(inner)) + shortcut)
    values.sum((2, 3)).gather(1, channels[:, None]).sum().backward()
    return x.grad


def test_the_copy_for_captum_gives_the_same_maps_to_the_bit(plain: TrainedModel) -> None:
    x = to_pixels(plain.dataset.test.images[:8])
    sums = ChannelSums(plain.model)
    with torch.no_grad():
        expected = plain.model.feature_maps(x)
        assert torch.equal(sums.network.feature_maps(x), expected)
        assert torch.equal(sums(x), expected.sum((2, 3)))
        assert torch.equal(sums.network(x), plain.model(x))
    relus = [module for module in sums.modules() if isinstance(module, nn.ReLU)]
    assert len(relus) == 17  # one in the stem, two in each of the eight blocks
    assert not any(relu.inplace for relu in relus)


def test_deconvolution_passes_the_positive_part_of_what_comes_back(plain: TrainedModel) -> None:
    pytest.importorskip("captum")
    x = to_pixels(plain.dataset.test.images[:6])
    channels = torch.tensor([0, 5, 9, 14, 20, 31])
    found = deconvolve(ChannelSums(plain.model), x, channels)
    expected = reference(plain.model, x, channels)
    assert found.abs().amax() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().amax()))
    # The plain gradient is something else, so that the test can tell.
    plain_gradient = x.clone().requires_grad_()
    ChannelSums(plain.model)(plain_gradient).gather(1, channels[:, None]).sum().backward()
    assert not torch.allclose(plain_gradient.grad, expected, rtol=0.1, atol=0.1 * float(expected.abs().amax()))


def test_deconvolution_of_a_net_by_hand() -> None:
    pytest.importorskip("captum")
    rng = np.random.default_rng(7)
    first, second = rng.normal(size=(5, 6)), rng.normal(size=(3, 5))
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.from_numpy(first))
        net[3].weight.copy_(torch.from_numpy(second))
    x = torch.from_numpy(rng.normal(size=(3, 1, 2, 3))).float()
    found = deconvolve(net, x, torch.tensor([0, 1, 2])).reshape(3, 6).numpy()
    assert np.allclose(found, np.maximum(second, 0) @ first, atol=1e-5)


def test_without_captum_the_analysis_says_what_to_install(plain: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(AnalysisUnavailableError, match=r"pip install 'robustfdd\[captum\]'"):
        density_groups.compute(plain)


# --- cost


@pytest.mark.parametrize("dropout", ["fdd-2d", "original", "guided", "sap"])
def test_cost_is_of_an_epoch(images: Dataset, dropout: str) -> None:
    recipe = replace_batch(48)
    found = TrainedModel(trained(images, dropout, width=2), images, recipe)
    row = ANALYSES["cost"].compute(found)["cost"].iloc[0]
    assert row["steps_per_epoch"] == 4  # 160 images, the last batch smaller
    assert row["layers"] == 1
    for name in ("step", "estimate", "mask"):
        assert row[f"{name}_seconds"] > 0
    assert row["mask_share"] == pytest.approx(row["mask_seconds"] / row["step_seconds"])
    assert row["estimate_share"] == pytest.approx(row["estimate_seconds"] / row["step_seconds"])


def replace_batch(size: int) -> Recipe:
    return RECIPE.model_copy(update={"batch_size": size})


def test_cost_counts_the_layers_of_all_stages(images: Dataset) -> None:
    found = TrainedModel(trained(images, "fdd-2d", width=2, placement="stages"), images, RECIPE)
    assert ANALYSES["cost"].compute(found)["cost"].iloc[0]["layers"] == 4


def test_medians_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    work = {"a": (lambda: calls.append("a"), 1), "b": (lambda: calls.append("b"), 2)}
    found = cost.medians(work, torch.device("cpu"), 3)
    assert "".join(calls) == "abb" * 4
    assert set(found) == {"a", "b"}


def test_the_network_without_dropout_has_none_and_the_same_weights(images: Dataset) -> None:
    model = trained(images, "fdd-3d", placement="stages")
    bare = cost.without_dropout(model)
    assert not any(isinstance(module, Dropout) for module in bare.modules())
    assert sum(isinstance(module, Dropout) for module in model.modules()) == 4
    assert weights_digest(bare) == weights_digest(model)


# --- what holds for all


@pytest.mark.parametrize("name", sorted(ANALYSES))
@pytest.mark.parametrize("dropout", ["fdd-2d", "sap"])
def test_no_analysis_changes_the_model(images: Dataset, name: str, dropout: str) -> None:
    if name == "density-groups":
        pytest.importorskip("captum")
    model = trained(images, dropout, width=2)
    analysis = ANALYSES[name]
    if not analysis.applies(model.config):
        pytest.skip("nothing to see in this network")
    model.stem.train()  # a mixture of modes, to see that each is given back
    model.classifier.weight.requires_grad_(False)
    model.classifier.bias.grad = torch.ones_like(model.classifier.bias)

    def state() -> tuple[object, ...]:
        return (
            weights_digest(model),
            [module.training for module in model.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
            [type(m) for m in model.modules()],
            [(m.active, m.generator) for m in model.modules() if isinstance(m, Dropout)],
        )

    before = state()
    tables = analysis.compute(TrainedModel(model, images, RECIPE))
    assert state() == before
    assert set(tables) == set(analysis.tables)
    assert all(len(frame) for frame in tables.values())


def test_captured_inputs_leave_nothing_behind() -> None:
    layer = nn.Linear(2, 2)
    x = torch.rand(3, 2)
    with captured_inputs(layer) as found:
        layer(x)
    assert torch.equal(found[layer], x)
    assert not layer._forward_pre_hooks


def test_images_of_different_classes() -> None:
    labels = torch.tensor([2, 2, 0, 1, 4, 3, 0, 2])
    assert images_of_different_classes(labels, 3).tolist() == [2, 0, 4]
    assert images_of_different_classes(labels, 9).tolist() == [2, 3, 0, 5, 4]


def test_names_of_analyses_and_tables_are_taken_once() -> None:
    with pytest.raises(ConfigurationError, match="cost"):
        register(ANALYSES["cost"])
    with pytest.raises(ConfigurationError, match="another"):
        register(replace(ANALYSES["cost"], name="another"))
