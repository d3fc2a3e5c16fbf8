from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import resnet18

from robustfdd.checksums import json_checksum
from robustfdd.classifier import tensor_digest
from robustfdd.datasets.base import Dataset
from robustfdd.dropouts import DROPOUTS, Dropout, FeatureDensityDropout, OriginalDropout, SpatialDropout
from robustfdd.dropouts.biased import BiasedDropout
from robustfdd.dropouts.crossmap import CrossmapDropout
from robustfdd.dropouts.guided import GuidedDropout
from robustfdd.dropouts.jumpout import Jumpout
from robustfdd.dropouts.sap import StochasticActivationPruning
from robustfdd.errors import CheckpointError, ConfigurationError, DatasetError
from robustfdd.models import build_model, check_same_data, load_model, read_checkpoint, save_model


def test_it_is_torchvisions_resnet18_but_for_the_stem(quarters: Dataset) -> None:
    """With the same weights both give the same features, when torchvision's is given the small stem."""
    mine = build_model(quarters, "none", width=64, normalization="zero-one").eval()
    theirs = resnet18(num_classes=4).eval()
    theirs.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    names = {"stem.0": "conv1", "stem.1": "bn1", "classifier": "fc"}
    names |= {f"stages.stage{k}": f"layer{k}" for k in range(1, 5)}
    state = {}
    for key, value in mine.state_dict().items():
        for prefix, other in names.items():
            if key.startswith(prefix + "."):
                state[other + key[len(prefix) :]] = value
    theirs.load_state_dict(state)
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(mine(x), theirs(x), atol=1e-4)
    assert mine.classifier.in_features == 512


@pytest.mark.parametrize("normalization", ["z-score", "zero-one"])
def test_normalisation_is_inside_and_has_one_scale(quarters: Dataset, normalization: str) -> None:
    model = build_model(quarters, "none", width=1, normalization=normalization)
    x = quarters.train.images.float() / 255
    z = model.normalize(x)
    if normalization == "zero-one":
        assert torch.equal(z, x)
        assert (model.config.mean, model.config.std) == (0, 1)
    else:
        assert float(z.double().mean()) == pytest.approx(0, abs=1e-5)
        assert float(z.double().std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", list(DROPOUTS))
def test_every_dropout_in_every_placement_trains_and_says_whether_it_is_random_in_evaluation(
    name: str, quarters: Dataset
) -> None:
    x = quarters.train.images[:6].float() / 255
    for placement in DROPOUTS[name].placements:
        model = build_model(quarters, name, width=4, placement=placement)
        logits = model(x)
        assert logits.shape == (6, 4)
        logits.sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        layers = [module for module in model.modules() if isinstance(module, Dropout)]
        assert len(layers) == (0 if name == "none" else 1 if placement == "last" else 4)
        is_random = any(layer.random_in_evaluation for layer in layers)
        assert is_random == (name == "sap")
        model.eval()
        assert torch.equal(model(x), model(x)) != is_random


def test_each_dropout_sits_where_its_source_puts_it(quarters: Dataset) -> None:
    slots = {
        "original": ("feature_dropout", OriginalDropout),
        "biased": ("feature_dropout", BiasedDropout),
        "guided": ("feature_dropout", GuidedDropout),
        "crossmap": ("map_dropout", CrossmapDropout),
        "sap": ("map_dropout", StochasticActivationPruning),
        "jumpout": ("map_dropout", Jumpout),
        "fdd-1d": ("feature_dropout", FeatureDensityDropout),
        "spatial": ("map_dropout", SpatialDropout),
        "fdd-2d": ("map_dropout", FeatureDensityDropout),
        "fdd-3d": ("map_dropout", FeatureDensityDropout),
    }
    for name, (slot, kind) in slots.items():
        model = build_model(quarters, name, width=2)
        assert [n for n, m in model.named_modules() if isinstance(m, kind)] == [slot]
    staged = build_model(quarters, "spatial", width=2, placement="stages")
    assert [n for n, m in staged.named_modules() if isinstance(m, SpatialDropout)] == [
        f"stages.dropout{k}" for k in range(1, 5)
    ]


def test_a_layer_that_learns_is_told_how_many_units_it_has(quarters: Dataset) -> None:
    assert build_model(quarters, "guided", width=2).feature_dropout.strength.shape == (16,)
    staged = build_model(quarters, "guided", width=2, placement="stages")
    strengths = {key: tuple(value.shape) for key, value in staged.state_dict().items() if key.endswith("strength")}
    assert strengths == {f"stages.dropout{k}.strength": (2**k,) for k in range(1, 5)}


def test_spatial_before_pooling_is_original_after_it(quarters: Dataset) -> None:
    """The same draws drop the same features: the two differ in name only, at the last maps."""
    x = quarters.train.images[:32].float() / 255
    logits = []
    for name in ("original", "spatial"):
        model = build_model(quarters, name, width=4).train()
        torch.manual_seed(9)
        logits.append(model(x))
    assert torch.allclose(*logits, atol=1e-6)
    plain = build_model(quarters, "none", width=4).train()
    assert not torch.allclose(plain(x), logits[0], atol=1e-2)


def test_options_reach_the_layer(quarters: Dataset) -> None:
    model = build_model(quarters, "fdd-2d", width=2, kappa=0.8, alpha=0.1, rescale="inverted")
    assert (model.map_dropout.kappa, model.map_dropout.alpha, model.map_dropout.rescale) == (0.8, 0.1, "inverted")


def test_the_seed_decides_the_weights_and_the_global_state_is_left(quarters: Dataset) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, again, other = (build_model(quarters, "none", width=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fdd-4d", {}), "fdd-4d"),
        (("fdd-1d", {"placement": "stages"}), "no placement 'stages'; allowed: last"),
        (("fdd-2d", {"kapa": 1.0}), "kapa"),
        (("none", {"width": 0}), "width"),
        (("none", {"normalization": "minmax"}), "z-score, zero-one"),
    ],
)
def test_wrong_choices_are_named(quarters: Dataset, arguments, says: str) -> None:
    name, options = arguments
    with pytest.raises(ConfigurationError, match=says):
        build_model(quarters, name, **{"width": 2, **options})


def test_a_checkpoint_gives_the_same_model_back(quarters: Dataset, tmp_path: Path) -> None:
    model = build_model(quarters, "fdd-3d", width=2, rescale="test", seed=4).train()
    x = quarters.test.images[:5].float() / 255
    model(x)  # moves the batch-norm statistics
    path = tmp_path / "m.safetensors"
    checkpoint = save_model(model, path, {"seed": 4})
    loaded = load_model(path)
    assert not loaded.training
    assert loaded.config == model.config == read_checkpoint(path).config
    assert read_checkpoint(path).provenance == {"seed": 4}
    assert torch.equal(loaded(x), copy.deepcopy(model).eval()(x))
    again = save_model(model, tmp_path / "again.safetensors", {"seed": 4})
    assert again.sha256 == checkpoint.sha256


def test_broken_checkpoints_are_named(quarters: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(build_model(quarters, "none", width=1), path, {})
    whole = path.read_bytes()
    tensors, header = load_file(path), read_header(path)

    def refused(says: str) -> None:
        with pytest.raises(CheckpointError, match=says) as caught:
            load_model(path)
        assert "m.safetensors" in str(caught.value)

    path.unlink()
    refused("no such checkpoint")
    for broken in (b"", whole[:100], whole[:-50], b"not safetensors at all"):
        path.write_bytes(broken)
        refused("damaged")
    save_file(tensors, path)
    refused("no checkpoint of robustfdd")

    def save(changed: Mapping[str, Tensor], **changes: object) -> None:
        content = {key: value for key, value in {**header, **changes}.items() if key != "checksum"}
        sealed = {**content, "checksum": json_checksum(content)}
        save_file(dict(changed), path, metadata={"robustfdd": json.dumps(sealed)})

    save(tensors)
    load_model(path)
    save(tensors, format=99)
    refused("format 99")
    save(tensors, config={"width": 1})
    refused("damaged")
    wrong = {**tensors, "classifier.weight": torch.zeros(4, 9)}
    save(wrong)
    refused("not that of its digest")
    save(wrong, weights_sha256=tensor_digest(dict(sorted(wrong.items()))))
    refused("do not fit")
    for width in (2, 10**6, 10**18, 10**30):  # of the largest no network could be built to see it
        save(tensors, config={**header["config"], "width": width})
        refused("do not fit")
    save_file(tensors, path, metadata={"robustfdd": json.dumps({**header, "provenance": {"seed": 5}})})
    refused("not that of its digest")


def read_header(path: Path) -> dict[str, object]:
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["robustfdd"])


def test_a_model_of_other_data_is_refused(quarters: Dataset) -> None:
    from dataclasses import replace  # noqa: PLC0415

    config = build_model(quarters, "none", width=1).config
    check_same_data(config, quarters, "m")
    with pytest.raises(DatasetError, match=r"trained for 'quarters' \(4 classes, images 1x8x8"):
        check_same_data(config, replace(quarters, classes=("a", "b", "c", "d")), "m")
