"""One run as the page shows it, and the page itself: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from robustfdd.records import Failure
from robustfdd.report.audit import ModelVerdict, percent_text
from robustfdd.report.exhibit import GAP, Exhibit
from robustfdd.report.notes import Note
from robustfdd.report.results import Results, UnitState
from robustfdd.report.study import (
    HALF_PRECISION,
    PROTOCOL_MEANINGS,
    VERDICT_MARKS,
    count_text,
    norm_title,
    seed_text,
    seeds_text,
)


@dataclass(frozen=True)
class Section:
    """What the page shows of a run.

    Attributes:
        results: the run.
        notes: the banner.
        verdicts: of the audits, one a model.
        tables: those that have a place of their own, by that place: ``"robust"`` and ``"survival"``, one a norm;
            ``"training"``; ``"agreement"``, in short and cell by cell.
        exhibits: the tables and figures that stand by themselves, by the section of the page that they belong to.
        interactive: the Plotly figure, or None without records.
        overview: the PNG of all panels, or None without records.
        training: the PNG of the training curves, or None.
        files: the paths of the files, relative to the page, by kind.
        links: the same by the name of the table or figure.
    """

    results: Results
    notes: Sequence[Note]
    verdicts: Sequence[ModelVerdict]
    tables: Mapping[str, Sequence[Exhibit]] = field(default_factory=dict)
    exhibits: Mapping[str, Sequence[Exhibit]] = field(default_factory=dict)
    interactive: Mapping[str, Any] | None = None
    overview: bytes | None = None
    training: bytes | None = None
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    links: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The measurement in a few words."""
        study = self.results.study
        images = self.results.counts("n_images")
        meaning = PROTOCOL_MEANINGS.get(study.protocol)
        parts = self.results.run.manifest.get("parts") or [self.results.run.manifest]
        attacks = [
            ("Test images attacked", count_text(images) if images else GAP),
            ("Attacks", ", ".join(attack.title for attack in study.attacks)),
            ("Norms", ", ".join(map(norm_title, study.norms))),
            ("Engines", self._engines),
            ("Protocol", study.protocol + (f": {meaning}" if meaning else "")),
            *([("Precision of attacks", HALF_PRECISION)] if study.attack_precision == "bf16" else []),
        ]
        return [
            ("Data set", study.dataset),
            *(attacks if study.attacks else ()),
            ("Training", seeds_text(study.seeds) or GAP),
            ("Run started", ", ".join(str(run.get("created") or GAP) for run in parts)),
        ]

    @property
    def _engines(self) -> str:
        """All engines of the plan; with several, those that tables and curves show."""
        study = self.results.study
        if len(study.engines) < 2:
            return ", ".join(study.engines)
        return f"{', '.join(study.engines)} (tables and curves: {study.engines_text()})"

    @property
    def failures(self) -> list[Failure]:
        """Units that failed."""
        return self.results.run.failures

    @property
    def not_run(self) -> list[UnitState]:
        """Planned units that have not all of their cells and did not fail."""
        return self.results.not_run()

    @property
    def settings(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The study as it was run: groups of (key, value)."""
        study, methods = self.results.run.manifest["study"], self.results.study.methods
        apart = ("methods", "attacks", "recipe", "model", "open_choices", "title", "description")
        groups = [("Study", flatten(self._told({k: v for k, v in study.items() if k not in apart})))]
        groups += [(key.capitalize(), flatten(study[key])) for key in ("recipe", "model") if study.get(key)]
        groups.append(("Methods", [(method.title, _in_one_line(method.settings)) for method in methods]))
        groups += [(f"Model of {m.title}", flatten(m.settings["model"])) for m in methods if m.settings.get("model")]
        for attack in self.results.study.attacks:
            rest = {key: value for key, value in attack.settings.items() if key != "title"}
            groups.append((f"Attack {attack.title}", flatten(rest)))
        return groups

    def _told(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with what only a reader of the records understands put in words, and nothing claimed unknown."""
        told = dict(settings)
        if told.get("seeds") is not None:
            told["seeds"] = seeds_text(told["seeds"]) or "none"
        if self.results.study.eps_scale is None and "eps_unit" in told:
            told |= {"normalization": "not known of every model", "eps_unit": "pixel"}
        return told

    @property
    def open_choices(self) -> list[tuple[str, str]]:
        """What the source of the study leaves open: (key, why it is set as it is)."""
        choices = self.results.run.manifest["study"].get("open_choices") or {}
        return [(str(key), str(reason)) for key, reason in choices.items()]

    @property
    def overrides(self) -> list[str]:
        """What was changed on the command line."""
        return [str(item) for item in self.results.run.manifest.get("overrides") or []]

    @property
    def provenance(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """On what, with what and from what the run was made: groups of (key, value)."""
        manifest = self.results.run.manifest
        keys = {"Data set": "dataset", "Versions": "versions", "Hardware": "hardware", "Code": "git"}
        groups = [(title, manifest[key]) for title, key in keys.items() if manifest.get(key)]
        parts = manifest.get("parts") or []
        groups += [(f"Run {part['name']}", self._of_part(part, parts)) for part in parts]
        known = self.results.study.eps_scale is not None
        run = ("command", "created", *(("eps_scale",) if known else ()), "format")
        groups.append(("Run", {key: manifest[key] for key in run if key in manifest}))
        hashes = {
            f"{model['method']}, {seed_text(model['seed'])}": str(model["sha256"])
            for model in self.results.run.models
            if model.get("sha256")
        }
        if hashes:
            groups.append(("Checkpoints (SHA-256)", hashes))
        return [(title, flatten(content)) for title, content in groups]

    def _of_part(self, part: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What is said of one of several runs: nothing that is the same for all parts, which stands once, above."""
        manifest = self.results.run.manifest
        own = self._told({key: value for key, value in part.items() if key not in ("name", "overrides")})
        own["normalization"] = own.get("normalization") or "not known"
        if all(other.get("normalization") == part.get("normalization") for other in parts):
            del own["normalization"]
        if (part.get("model") or {}).get("class") is None:  # what is trained here
            own.pop("model")
        return {key: value for key, value in own.items() if not (key in manifest and value == manifest[key])}


def flatten(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value) in their order."""
    if isinstance(content, Mapping):
        pairs = []
        for key, value in content.items():
            pairs += flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    if isinstance(content, list) and not any(isinstance(item, (Mapping, list)) for item in content):
        return [(prefix, ", ".join(_value(item) for item in content) or "none")]
    return [(prefix, _value(content))]


def _in_one_line(settings: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in settings.items() if key not in ("title", "variant", "model")}
    source = (settings.get("variant") or {}).get("source")
    return "; ".join(f"{key} = {value}" for key, value in flatten({**rest, **({"source": source} if source else {})}))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    # As in the study file: true, false, and numbers with all their digits.
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def render_page(section: Section) -> str:
    """The report as one HTML page.

    Everything it shows is inside: the style, the figures and, once, plotly.js. Text from the records is escaped.
    """
    environment = Environment(
        loader=PackageLoader("robustfdd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    environment.filters["norm_title"] = norm_title
    environment.filters["percent"] = percent_text
    environment.filters["seed_text"] = seed_text
    # The mark of a verdict stays beside the figure.
    environment.filters["unbroken"] = lambda text: re.sub(f" (?=[{''.join(VERDICT_MARKS.values())}]$)", "\u00a0", text)
    environment.filters["capital"] = lambda text: text[:1].upper() + text[1:]
    template = environment.get_template("page.html.j2")
    plotlyjs = get_plotlyjs() if section.interactive is not None else None
    return template.render(section=section, plotlyjs=plotlyjs)
