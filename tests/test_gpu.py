"""The same on a CUDA device as on the CPU. Run by ``tox run -e gpu`` where there is one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyNet, short

from robustfdd.datasets.base import Dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.evaluation import run_evaluation
from robustfdd.measure import attack
from robustfdd.models import build_model, load_model
from robustfdd.records import load_run
from robustfdd.specs import LIBRARIES
from robustfdd.threat import NORMS, Threat

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
