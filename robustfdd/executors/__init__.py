"""Where the tasks of a study are performed: in this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

from robustfdd.executors.base import Advanced, Event, Executor, Finished, Started
from robustfdd.executors.coordinator import coordinate
from robustfdd.executors.inline import Inline
from robustfdd.executors.processes import Processes
from robustfdd.executors.ray import Ray

__all__ = [
    "Advanced",
    "Event",
    "Executor",
    "Finished",
    "Inline",
    "Processes",
    "Ray",
    "Started",
    "coordinate",
]
