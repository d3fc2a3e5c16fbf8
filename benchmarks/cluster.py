"""A study on a Ray cluster of nodes with one core each, on one node and on several."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.progress import Bar
from benchmarks.statistics import paired_ratio
from robustfdd.evaluation import run_evaluation
from robustfdd.executors.ray import Ray
from robustfdd.records import Run, load_run

#: How many nodes a study is run on; the first is what the others are compared with.
NODES = (1, 2)

STUDY = """
name = "cluster"
title = "What a cluster is measured with"
description = "Trainings and attacks of like length"
dataset = "{dataset}"
methods = [{methods}]
eps_unit = "normalized"
test_images = {images}

[model]
width = {width}

[recipe]
epochs = {epochs}
batch_size = 64
learning_rate = 0.05

[[attacks]]
name = "pgd"
eps.linf = [0.1, 0.2, 0.4]
eps.l2 = [1.0, 2.0, 4.0]
"""
#: Of the study: one model each.
METHODS = ("original", "spatial", "crossmap", "fdd-2d")


@dataclass(frozen=True)
class Size:
    """How much the study computes.

    Attributes:
        dataset: by name.
        images: that are attacked.
        width: of the networks.
        epochs: of their training.
    """

    dataset: str
    images: int
    width: int
    epochs: int

    def study(self) -> str:
        """The study file."""
        return STUDY.format(**vars(self), methods=", ".join(f'"{method}"' for method in METHODS))


@contextmanager
def _cluster(n_nodes: int) -> Iterator[str]:
    """A cluster of so many nodes with one core each, beside the head; its address."""
    ray = importlib.import_module("ray")
    made: Any = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(n_nodes):
            made.add_node(num_cpus=1)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield str(made.address)
    finally:
        ray.shutdown()
        made.shutdown()


def _same(run: Run, other: Run) -> bool:
    """Whether two runs found the same for every image."""
    key = ["unit", "eps_pixel"]
    cells, others = (found.cells.sort_values(key).reset_index(drop=True) for found in (run, other))
    return (
        cells[key].equals(others[key])
        and all((a == b).all() for a, b in zip(cells["outcome"], others["outcome"], strict=True))
        and not (run.failures or other.failures)
    )


def run_cluster(size: Size, *, repeats: int, bar: Bar) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run the study on each number of nodes, one after the other, so many times.

    Args:
        size: of the study.
        repeats: rounds.
        bar: is advanced by each run.

    Returns:
        Every run (``round``, ``nodes``, ``units``, ``seconds``, ``same``), and for every number of nodes the median
        time, its ratio to that on one node, and whether all outcomes were the same.

    Raises:
        ImportError: Ray is not installed.
    """
    bar.begin("a study on nodes of a cluster", repeats * len(NODES))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study.toml"
        study.write_text(size.study(), encoding="utf-8")
        first: Run | None = None
        for number in range(repeats):
            for nodes in NODES if number % 2 == 0 else NODES[::-1]:
                with _cluster(nodes) as address:
                    began = time.perf_counter()
                    path = run_evaluation(study, out=Path(folder) / f"run{len(rows)}", executor=Ray(address))
                    seconds = time.perf_counter() - began
                found = load_run(path)
                first = first or found
                units = len(found.models) + found.cells["unit"].nunique()
                same = _same(found, first)
                rows.append({"round": number, "nodes": nodes, "units": units, "seconds": seconds, "same": same})
                bar.advance(f"{nodes} nodes, {seconds:.0f} s")
    rounds = pd.DataFrame(rows)
    return rounds, _summary(rounds)


def _summary(rounds: pd.DataFrame) -> pd.DataFrame:
    def of(nodes: int) -> Sequence[float]:
        chosen = rounds[rounds["nodes"] == nodes].sort_values("round")
        return [float(value) for value in chosen["seconds"]]

    rows = []
    for nodes in NODES:
        ratio = paired_ratio(of(nodes), of(NODES[0]))
        rows.append(
            {
                "nodes": nodes,
                "units": int(rounds["units"].iloc[0]),
                "seconds": statistics.median(of(nodes)),
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "same": bool(rounds.loc[rounds["nodes"] == nodes, "same"].all()),
            }
        )
    found: pd.DataFrame = pd.DataFrame(rows)
    return found
