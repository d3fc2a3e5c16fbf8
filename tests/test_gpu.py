"""The same on a CUDA device as on the CPU. Run by ``tox run -e gpu`` where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet, short

from robustfdd.datasets.base import Dataset
from robustfdd.dropouts import DROPOUTS, build_dropout, feature_density
from robustfdd.dropouts.density import axes_by_squaring
from robustfdd.evaluation import run_evaluation
from robustfdd.measure import attack
from robustfdd.models import build_model, load_model
from robustfdd.records import load_run
from robustfdd.specs import LIBRARIES, Recipe
from robustfdd.threat import NORMS, Threat
from robustfdd.training import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize(
    ("name", "norm", "engine"),
    [
        *itertools.product(("fgsm", "bim", "pgd"), NORMS, LIBRARIES),
        *itertools.product(("apgd-ce", "apgd-dlr"), NORMS, ("art", "native")),
        *[(name, norm, "foolbox") for name in ("deepfool", "noise-uniform") for norm in NORMS],
        ("square", "linf", "art"),
        ("ddn", "l2", "foolbox"),
    ],
)
def test_attacks_find_the_same_images_on_both_devices(name: str, norm: str, engine: str, tiny_net: TinyNet) -> None:
    """The random start is drawn on the host for both; rounding may flip a vanishing gradient here and there."""
    x, y = torch.rand(12, 1, 10, 10, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    threat = Threat(norm, 0.1 if norm == "linf" else 0.8)
    spec = short(name)
    on_cpu = attack(tiny_net, x, y, spec, threat, engine=engine, seed=5)
    on_gpu = attack(tiny_net.cuda(), x.cuda(), y.cuda(), spec, threat, engine=engine, seed=5).cpu()
    tiny_net.cpu()
    with torch.no_grad():
        assert tiny_net(on_gpu).argmax(1).tolist() == tiny_net(on_cpu).argmax(1).tolist()
    assert float((on_gpu - on_cpu).abs().flatten(1).amax(1).median()) < 1e-4


@pytest.mark.parametrize("name", list(DROPOUTS))
def test_dropouts_have_the_same_probabilities_on_both_devices(name: str, quarters: Dataset) -> None:
    model = build_model(quarters, name, width=8).eval()
    x = quarters.test.images[:8].float() / 255
    on_cpu = model(x)
    on_gpu = model.cuda()(x.cuda())
    assert on_gpu.is_cuda
    assert torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-3)
    model.train()
    assert bool(torch.isfinite(model(x.cuda())).all())


@pytest.mark.usefixtures("quarters_registered")
def test_a_study_on_the_gpu(study_file: Path, tmp_path: Path) -> None:
    run = run_evaluation(study_file, out=tmp_path / "run", device="cuda")
    found = load_run(run)
    assert found.failures == []
    assert found.manifest["hardware"]["gpu"] == torch.cuda.get_device_name()
    cells = found.cells
    deterministic = cells[cells.deterministic]
    wide = deterministic.pivot_table(
        index=["method", "norm", "eps_pixel"], columns="engine", values="robust_accuracy", aggfunc="first"
    )
    assert np.abs(wide.art - wide.foolbox).max() <= 1 / 24 + 1e-9
    load_model(run / "models" / "none--seed0.safetensors", "cuda")


# --- the host runs ahead of the device ------------------------------------------------------------------------------

# torch says so once, whatever it is used for.
IGNORE_PROTOTYPE = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device in here raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@IGNORE_PROTOTYPE
def test_waiting_is_noticed() -> None:
    x = torch.ones(3, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        x.sum().item()


@IGNORE_PROTOTYPE
@pytest.mark.parametrize("rescale", ["none", "inverted"])
@pytest.mark.parametrize("name", [name for name in DROPOUTS if name != "none"])
def test_no_dropout_makes_the_host_wait(name: str, rescale: str) -> None:
    shape = (16, 64) if DROPOUTS[name].site == "features" else (16, 64, 4, 4)
    layer = build_dropout(name, n_units=64, rescale=rescale).cuda()
    layer.train(DROPOUTS[name].dynamic)  # what drops at test time only drops in evaluation
    x = torch.rand(shape, device="cuda").add(0.1).requires_grad_()
    layer(x).sum().backward()  # libraries are loaded at the first call
    with no_waiting():
        layer.progress = 0.5
        y = layer(x)
        y.sum().backward()
    assert name == "guided" or bool((y == 0).any())


@IGNORE_PROTOTYPE
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "adversarial", [None, {"attack": "fast", "eps": 0.05}, {"attack": "pgd", "norm": "l2", "eps": 0.5, "steps": 2}]
)
@pytest.mark.parametrize(("name", "placement"), [("guided", "last"), ("fdd-1d", "last"), ("fdd-3d", "stages")])
def test_no_step_of_a_training_makes_the_host_wait(
    name: str, placement: Any, adversarial: dict[str, Any] | None, precision: str, quarters: Dataset
) -> None:
    model = build_model(quarters, name, width=8, placement=placement).cuda()
    recipe = Recipe(epochs=1, batch_size=32, augmentation="crop-flip", precision=precision, adversarial=adversarial)
    seen = 0

    def advance(n: int) -> None:
        nonlocal seen
        seen += n
        # From the end of the first step to the end of the last one; after that the host reads the loss.
        torch.cuda.set_sync_debug_mode("error" if seen < 160 else "default")

    try:
        history = fit(model, quarters.train.to("cuda"), recipe, seed=0, advance=advance)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == 160
    assert history[0].loss > 0


# --- densities ------------------------------------------------------------------------------------------------------


def maps_after_a_relu(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    strength, profile, noise = (torch.randn(n, *shape, generator=generator) for shape in ((128, 1), (1, 16), (128, 16)))
    return (strength.abs() * profile.abs() + 0.5 * noise).relu().view(n, 128, 4, 4)


@pytest.mark.parametrize(("k", "n_bins"), [(1, 25), (2, 5), (3, 3)])
def test_densities_are_the_same_on_both_devices(k: int, n_bins: int) -> None:
    maps = maps_after_a_relu(64)
    double = maps.double()
    assert torch.equal(feature_density(double.cuda(), k, n_bins).cpu(), feature_density(double, k, n_bins))
    # In single precision a unit on the border of two cells, to rounding, takes some others with it.
    same = feature_density(maps.cuda(), k, n_bins).cpu() == feature_density(maps, k, n_bins)
    assert same.all(1).double().mean() > 0.9
    assert same.double().mean() > 0.99


def test_axes_are_as_exact_as_single_precision_is() -> None:
    maps = maps_after_a_relu(64).flatten(2)
    centred = maps - maps.mean(1, keepdim=True)
    scatter = centred.mT @ centred
    variances, vectors = torch.linalg.eigh(scatter.double())
    _, found = axes_by_squaring(scatter.cuda(), 3)
    for r, gap in ((0, variances[:, -1] - variances[:, -2]), (1, variances[:, -2] - variances[:, -3])):
        exact, axis = vectors[:, :, -1 - r], found[:, r].cpu().double()
        outside = axis - (axis * exact).sum(1, keepdim=True) * exact
        bound = 20 * torch.finfo(torch.float32).eps * variances[:, -1] / gap
        assert (torch.linalg.vector_norm(outside, dim=1) <= bound).all()


# Compilers warn of themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["guided", "fdd-1d", "fdd-2d", "fdd-3d"])
def test_compiled_training_draws_the_same_on_the_gpu(name: str, quarters: Dataset) -> None:
    losses = {}
    for run, seed, compiled in (("plain", 0, False), ("compiled", 0, True), ("other seed", 1, False)):
        model = build_model(quarters, name, width=8).cuda()
        recipe = Recipe(epochs=1, batch_size=160, augmentation="crop-flip")
        losses[run] = fit(model, quarters.train.to("cuda"), recipe, seed=seed, compile=compiled)[0].loss
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=5e-3)
    assert abs(losses["other seed"] - losses["plain"]) > 2 * abs(losses["compiled"] - losses["plain"])
