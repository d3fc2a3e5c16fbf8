"""An epsilon sweep through every contender, by turns: time, CPU time, memory, and the answer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.cases import Case
from benchmarks.contenders import CONTENDERS, REFERENCE, Contender, Survivors
from benchmarks.progress import Bar
from benchmarks.statistics import paired_ratio
from benchmarks.subject import Subject
from benchmarks.usage import mib
from benchmarks.workers import Worker, WorkerError, last_line, take_turns


@dataclass(frozen=True)
class SweepResults:
    """What the sweeps took, and what they found.

    Attributes:
        rounds: one row for each case, contender and counted round: ``seconds``, ``cpu_seconds``, ``peak_mib``.
        summary: one row for each case and contender: medians over the rounds; ``once_seconds``, what making the
            contender took; and ``ratio``, ``ratio_low``, ``ratio_high``: its time in units of the reference's, the
            median over the rounds with its interval; ``cpu_ratio``: likewise in CPU time, which other programs on the
            machine disturb less. Missing where the reference has no result.
        answers: one row for each case, contender and epsilon: ``robust_accuracy`` over all images, and
            ``differing``, the number of images on which it disagrees with the reference.
        notes: who is left out, and why.
    """

    rounds: pd.DataFrame
    summary: pd.DataFrame
    answers: pd.DataFrame
    notes: list[str]


def present(names: Sequence[str], notes: list[str]) -> list[type[Contender]]:
    """Those of the contenders whose library is installed; a note for each other."""
    chosen = []
    for name in names:
        missing = CONTENDERS[name].missing()
        if missing is None:
            chosen.append(CONTENDERS[name])
        else:
            notes.append(f"{name} is left out: it is not installed; {missing}")
    return chosen


def run_sweeps(
    subject: Subject, cases: Sequence[Case], contenders: Sequence[str], *, repeats: int, threads: int, bar: Bar
) -> SweepResults:
    """Sweep each case through each contender that has it.

    Args:
        subject: the network and the images.
        cases: what to sweep.
        contenders: names of :data:`benchmarks.contenders.CONTENDERS`.
        repeats: rounds that are counted.
        threads: of torch, in every worker.
        bar: told of what is done.
    """
    notes: list[str] = []
    classes = present(contenders, notes)
    bar.begin("sweep", sum(cls.offers(case) for cls in classes for case in cases) * (repeats + 1))
    rounds: list[dict[str, object]] = []
    summary: list[dict[str, object]] = []
    answers: list[dict[str, object]] = []
    with ExitStack() as stack:
        workers = {
            cls.name: stack.enter_context(Worker(partial(cls, subject), device=subject.device, threads=threads))
            for cls in classes
        }
        once: dict[str, float] = {}
        for name, worker in workers.items():
            try:
                once[name] = worker.ready()
            except WorkerError as error:
                notes.append(f"{name} is left out: {last_line(error)}")
        for case in cases:
            taking_part = [cls.name for cls in classes if cls.name in once and cls.offers(case)]
            usages = take_turns(
                workers,
                dict.fromkeys(taking_part, case),
                repeats=repeats,
                label=case.title,
                bar=bar,
                notes=notes,
            )
            reference = usages.get(REFERENCE)
            for name, found in usages.items():
                key = {"case": case.name, "title": case.title, "contender": name}
                rounds += [
                    {
                        **key,
                        "round": i,
                        "seconds": u.seconds,
                        "cpu_seconds": u.cpu_seconds,
                        "peak_mib": mib(u.peak_bytes),
                    }
                    for i, u in enumerate(found, start=1)
                ]
                row = {
                    **key,
                    "seconds": statistics.median(u.seconds for u in found),
                    "cpu_seconds": statistics.median(u.cpu_seconds for u in found),
                    "peak_mib": statistics.median(mib(u.peak_bytes) for u in found),
                    "once_seconds": once[name],
                }
                if reference is not None:
                    ratio = paired_ratio([u.seconds for u in found], [u.seconds for u in reference])
                    row |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
                    cpu = paired_ratio([u.cpu_seconds for u in found], [u.cpu_seconds for u in reference])
                    row["cpu_ratio"] = cpu.median
                summary.append(row)
                answers += _answers(case, key, found[0].result, reference[0].result if reference else None, subject)
    return SweepResults(pd.DataFrame(rounds), pd.DataFrame(summary), pd.DataFrame(answers), notes)


def _answers(
    case: Case, key: dict[str, str], survivors: Survivors | None, reference: Survivors | None, subject: Subject
) -> list[dict[str, object]]:
    if survivors is None:
        return []
    return [
        {
            **key,
            "eps": eps,
            "robust_accuracy": int(survivors[k].sum()) / len(subject.labels),
            "differing": np.nan if reference is None else int((survivors[k] != reference[k]).sum()),
        }
        for k, eps in enumerate(case.epsilons)
    ]
