"""Copy what a run directory says, without its weights, small enough to keep beside the code or a paper.

Copied are the manifest, the records, the histories of the models and the analyses: everything that ``robustfdd report``
needs. Checkpoints are left out; their hashes stay in the histories. Folders in the recorded command line are cut down
to their last part, since they say something of a machine and nothing of the run.

    python scripts/archive_run.py runs/fashion-mnist-slim evaluations/reports/fashion-mnist-slim/records

``--skip`` leaves out files that nothing shown is drawn from, such as the heat maps of all methods but one:
``--skip "analysis/density-heatmaps--[!n]*"``.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from robustfdd.records import load_run, read_json, write_json

KEPT = ("models/*.json", "results/*.parquet", "analysis/*.parquet", "failures/*.json")


def without_folders(command: str) -> str:
    """A command line whose absolute paths are cut down to their last part."""
    return re.sub(r"(?<![^\s=])/(?:[^\s/]+/)*([^\s/]+)", r"\1", command)


def archive(run: Path, target: Path, skip: Sequence[str] = ()) -> None:
    """Copy a run but for files whose path in it matches a pattern of ``skip``; ``target`` must be new or empty."""
    if target.exists() and any(target.iterdir()):
        raise SystemExit(f"{target}: is not empty")
    load_run(run)  # a damaged run is refused before anything is copied
    for pattern in KEPT:
        for file in sorted(run.glob(pattern)):
            if any(fnmatch(file.relative_to(run).as_posix(), skipped) for skipped in skip):
                continue
            place = target / file.relative_to(run)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    manifest = read_json(run / "manifest.json")
    if manifest.get("command"):
        manifest["command"] = without_folders(manifest["command"])
    write_json(target / "manifest.json", manifest)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("target", type=Path, help="a new folder")
    parser.add_argument("--skip", action="append", default=[], help="a pattern of files to leave out")
    arguments = parser.parse_args()
    archive(arguments.run, arguments.target, arguments.skip)
