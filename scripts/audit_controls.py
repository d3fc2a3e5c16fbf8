"""Audit the known cases and count how often the verdict is right.

    python scripts/audit_controls.py --cache controls --out controls.csv

Trains each control of controls.py that is not in the cache yet, audits it, writes one row a control and
seed and prints the confusion tables as Markdown: those that the thresholds were chosen with and those held out apart.

    python scripts/audit_controls.py --tables controls.csv held-out.csv --page docs/audit.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from controls import CONTROLS, EPS, Control, Kind
from rich.console import Console

from robustfdd.audit import audit
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.records import Verdict, write_text
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
        "data_set": dataset.name,
        "width": arguments.width,
        "seed": seed,
        "images": found.n_images,
        "eps": arguments.eps,
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
    rows = [list(shown.columns), ["---"] * len(shown.columns), *shown.fillna("").to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def page_tables(rows: pd.DataFrame) -> str:
    """The confusion tables, those that the thresholds were chosen with and those held out apart, and every audit."""
    texts = []
    parts = {"Looked at while the thresholds were chosen": ~rows["held_out"], "Held out": rows["held_out"]}
    for title, chosen in parts.items():
        if chosen.any():
            texts.append(f"{title}: {int(chosen.sum())} audits.\n\n{markdown(confusion(rows[chosen]))}")
    columns = ["control", "kind", "data_set", "width", "seed", "images", "clean_accuracy", "audited_accuracy"]
    texts.append(markdown(rows[[*columns, "worst_accuracy", "verdict", "alarms", "warnings"]]))
    return "\n\n".join(texts)


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """How many audits of each kind of control came to each verdict."""
    kinds, verdicts = get_args(Kind), get_args(Verdict)
    counts = pd.crosstab(rows["kind"], rows["verdict"]).reindex(index=kinds, columns=verdicts, fill_value=0)
    return counts.rename_axis(columns=None).reset_index()


def read(paths: list[Path]) -> pd.DataFrame:
    """The audits of several files as one frame."""
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


def audit_all(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row an audit; written after each of them, since all of them take long."""
    dataset = load_dataset(arguments.dataset)
    rows: list[dict[str, object]] = []
    for name in arguments.only:
        for seed in arguments.seeds:
            rows.append(audited(CONTROLS[name], dataset, seed, arguments))
            if arguments.out:
                write_text(arguments.out, pd.DataFrame(rows).to_csv(index=False))
            print(" ".join(f"{key}={value}" for key, value in list(rows[-1].items())[:15]), flush=True)
    return pd.DataFrame(rows)


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
    parser.add_argument("--out", type=Path, help="table of all audits, CSV")
    parser.add_argument("--only", nargs="+", choices=list(CONTROLS), metavar="NAME", default=list(CONTROLS))
    parser.add_argument("--threads", type=int, help="processor threads of torch")
    parser.add_argument("--tables", type=Path, nargs="+", metavar="CSV", help="make the tables of these, audit nothing")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the tables into, see docs/audit.md")
    parser.add_argument("--verbose", action="store_true", help="show progress")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    frame = read(arguments.tables) if arguments.tables else audit_all(arguments)
    text = page_tables(frame)
    print(f"\n{text}")
    if arguments.page:
        page = arguments.page.read_text(encoding="utf-8")
        place = re.compile(r"(<!-- controls -->\n).*?(<!-- end -->)", re.DOTALL)
        write_text(arguments.page, place.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page))


if __name__ == "__main__":
    main()
