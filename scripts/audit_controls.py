"""Audit the known cases and count how often the verdict is right.

    python scripts/audit_controls.py --cache controls --out controls.csv

Trains each control of robustfdd.audit.controls that is not in the cache yet, audits it, writes one row a control and
seed (CSV, or Markdown where the name ends in .md) and prints the confusion tables as Markdown: those that the
thresholds were chosen with and those held out apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from rich.console import Console

from robustfdd.audit import audit
from robustfdd.audit.controls import CONTROLS, EPS, Control, Kind
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.records import Verdict
from robustfdd.threat import Threat


def audited(control: Control, dataset: Dataset, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One row of the table."""
    model = control.build(dataset, seed, arguments.width, cache=arguments.cache)
    sibling = CONTROLS["none"].build(dataset, seed, arguments.width, cache=arguments.cache)
    found = audit(
        model,
        dataset,
        Threat("linf", arguments.eps),
        test_images=arguments.images,
        eot_samples=control.eot_samples,
        sibling=None if control.name == "none" else sibling,
        seed=seed,
        batch_size=arguments.batch_size,
        console=Console(stderr=True) if arguments.verbose else None,
    )
    return {
        "control": control.name,
        "kind": control.kind,
        "held_out": control.held_out,
        "seed": seed,
        "verdict": found.verdict,
        "clean_accuracy": found.clean_accuracy,
        "audited_accuracy": found.audited_accuracy,
        "worst_accuracy": found.worst_accuracy,
        "alarms": " ".join(i.name for i in found.indicators if i.status == "alarm"),
        "warnings": " ".join(i.name for i in found.indicators if i.status == "warning"),
        "seconds": round(found.seconds, 1),
        **{f"{i.name} value": i.value for i in found.indicators},
    }


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, accuracies in percent."""
    shown = frame.copy()
    for column in shown.columns:
        if str(column).endswith("accuracy"):
            shown[column] = [f"{100 * value:.1f}" for value in shown[column]]
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """How many audits of each kind of control came to each verdict."""
    kinds, verdicts = get_args(Kind), get_args(Verdict)
    counts = pd.crosstab(rows["kind"], rows["verdict"]).reindex(index=kinds, columns=verdicts, fill_value=0)
    return counts.rename_axis(columns=None).reset_index()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="fashion-mnist-mini")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=100, help="test images that are looked at")
    parser.add_argument("--eps", type=float, default=EPS, help="radius in L-infinity, in pixel units")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--cache", type=Path, help="folder of the trained weights")
    parser.add_argument("--out", type=Path, help="table of all audits: .csv, or Markdown as .md")
    parser.add_argument("--only", nargs="+", choices=list(CONTROLS), metavar="NAME", default=list(CONTROLS))
    parser.add_argument("--threads", type=int, help="processor threads of torch")
    parser.add_argument("--verbose", action="store_true", help="show progress")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dataset = load_dataset(arguments.dataset)
    rows: list[dict[str, object]] = []
    for name in arguments.only:
        for seed in arguments.seeds:
            rows.append(audited(CONTROLS[name], dataset, seed, arguments))
            frame = pd.DataFrame(rows)
            if arguments.out:  # after each of them, since all of them take long
                of_all = markdown(frame) + "\n" if arguments.out.suffix == ".md" else frame.to_csv(index=False)
                arguments.out.write_text(of_all, encoding="utf-8")
            print(" ".join(f"{key}={value}" for key, value in list(rows[-1].items())[:11]), flush=True)
    for title, part in (("Tuned", frame[~frame["held_out"]]), ("Held out", frame[frame["held_out"]])):
        if len(part):
            print(f"\n{title} ({len(part)} audits)\n\n{markdown(confusion(part))}")


if __name__ == "__main__":
    main()
