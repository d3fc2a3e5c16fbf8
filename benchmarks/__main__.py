"""``python -m benchmarks``: measure, print and write."""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import all_cases
from benchmarks.contenders import CONTENDERS
from benchmarks.run import PARTS, Settings, benchmark
from robustfdd.datasets import load_dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import ConfigurationError, RobustFDDError
from robustfdd.evaluation import resolve_device

RESULTS = Path(__file__).resolve().parent / "results"
#: Columns of tables that are not written to a terminal.
PIPED_WIDTH = 200


def parser() -> argparse.ArgumentParser:
    """The options; those that are left out depend on the device and on ``--quick``."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure RobustFDD against ART, Foolbox, adv-lib and plain PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = options.add_argument
    none = argparse.SUPPRESS
    add("--quick", action="store_true", help="few images, steps and rounds, L-infinity only: to see that it works")
    add("--device", default="cpu", help="cpu, cuda or cuda:INDEX")
    add("--threads", type=_count, default=torch.get_num_threads(), help="of torch, in every process")
    add("--only", action="append", choices=PARTS, default=none, help="a part; may be repeated; all by default")
    add("--out", type=Path, default=RESULTS, help="folder of all results")
    add("--name", default=none, help="folder of this run; the device by default, with -quick where it is")
    add("--page", type=Path, default=none, help="Markdown page whose tables of this run are filled in")
    add("--dataset", default="fashion-mnist-mini", help="what to train on and to attack")
    add("--checkpoint", "--model", type=Path, default=none, help="a trained .safetensors; one is trained by default")
    add("--width", type=_count, default=16, help="of the network that is swept and trained")
    add("--epochs", type=_count, default=none, help="of the network that is swept (default: 4, quick 1)")
    add("--images", type=_count, default=none, help="test images of a sweep (default: 128, CUDA 1000, quick 24)")
    add("--batch-size", type=_count, default=128, help="images attacked at once, by all")
    add("--repeats", type=_count, default=none, help="counted rounds (default: 6, quick 2)")
    add("--cases", nargs="+", metavar="PATTERN", default=["*"], help=f"of {', '.join(c.name for c in all_cases())}")
    add("--contenders", nargs="+", metavar="NAME", default=none, help=f"of {', '.join(CONTENDERS)}, or all")
    add("--dropouts", nargs="+", metavar="NAME", default=[], help="all where left out")
    add("--dropout-widths", nargs="+", type=_count, default=none, help="(default: 16 64, quick 16)")
    add("--dropout-batches", nargs="+", type=_count, default=[64], help="images a step")
    add("--dropout-steps", type=_count, default=none, help="pairs of steps (default: 25, quick 6)")
    add("--training-images", type=_count, default=none, help="images of an epoch (default: 3000, CUDA all, quick 512)")
    add("--cluster-epochs", type=_count, default=none, help="of each of four networks (default: 6, quick 1)")
    add("--compile", action="store_true", help="on the CPU too, measure what goes through torch.compile")
    return options


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def settings_from(given: argparse.Namespace, device: torch.device) -> Settings:
    """The settings, with what was left out.

    Raises:
        ConfigurationError: a name or pattern is unknown.
    """
    quick, cuda = given.quick, device.type == "cuda"
    cases = [case for case in all_cases() if any(fnmatch.fnmatch(case.name, pattern) for pattern in given.cases)]
    if quick:
        cases = [case for case in cases if case.norm == "linf"]
    if not cases:
        raise ConfigurationError(f"--cases: none of {', '.join(c.name for c in all_cases())} fits {given.cases}")
    compiled = given.compile or cuda
    contenders = getattr(given, "contenders", None) or [
        name for name, cls in CONTENDERS.items() if cls.by_default or (compiled and "compiled" in name)
    ]
    contenders = list(CONTENDERS) if contenders == ["all"] else contenders
    for option, names, allowed in (
        ("--contenders", contenders, list(CONTENDERS)),
        ("--dropouts", given.dropouts, list(DROPOUTS)),
    ):
        for name in names:
            if name not in allowed:
                raise ConfigurationError(f"{option} {name}: allowed: {', '.join(allowed)}")

    return Settings(
        parts=tuple(getattr(given, "only", PARTS)),
        cases=tuple(cases),
        contenders=tuple(contenders),
        images=getattr(given, "images", 24 if quick else 1000 if cuda else 128),
        batch_size=given.batch_size,
        repeats=getattr(given, "repeats", 2 if quick else 6),
        width=given.width,
        epochs=getattr(given, "epochs", 1 if quick else 4),
        dropouts=tuple(given.dropouts),
        dropout_widths=tuple(getattr(given, "dropout_widths", (16,) if quick else (16, 64))),
        dropout_batches=tuple(given.dropout_batches),
        dropout_steps=getattr(given, "dropout_steps", 6 if quick else 25),
        training_images=getattr(given, "training_images", 512 if quick else 10**9 if cuda else 3000),
        compiled=compiled,
        threads=given.threads,
        cluster_epochs=getattr(given, "cluster_epochs", 1 if quick else 6),
    )


def main() -> int:
    """Run what the command line asks for."""
    given = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, emoji=False)
    try:
        device = resolve_device(given.device)
        name = getattr(given, "name", device.type + ("-quick" if given.quick else ""))
        out = benchmark(
            settings_from(given, device),
            load_dataset(given.dataset),
            checkpoint=getattr(given, "checkpoint", None),
            device=device,
            out=given.out / name,
            # Without folders, which are nobody's business.
            command=" ".join(["python -m benchmarks", *(re.sub(r"[^\s=]*/", "", word) for word in sys.argv[1:])]),
            page=getattr(given, "page", None),
            console=console,
        )
    except RobustFDDError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
