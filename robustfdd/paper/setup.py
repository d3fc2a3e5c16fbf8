"""What a run did differently from the paper, and what it chose where the paper is silent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustfdd.paper.matching import run_dataset
from robustfdd.paper.published import Published, Setting, agrees
from robustfdd.report.grid import GAP
from robustfdd.report.results import Results
from robustfdd.report.study import Method

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Difference:
    """One setting in which a run is not known to be as the paper.

    Attributes:
        key: in the manifest of the run; ``methods.LABEL`` for a method.
        title: for people.
        paper: as the paper has it, in words.
        ours: as the run has it, in words.
        kind: ``"differs"``, or ``"open"`` where the paper does not state it or the run does not record it.
    """

    key: str
    title: str
    paper: str
    ours: str
    kind: Literal["differs", "open"]


def _lookup(content: object, path: str) -> Any:
    for step in path.split("."):
        content = content.get(step) if isinstance(content, Mapping) else None
    return content


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_text(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(item) for item in value)
    return GAP if value is None else str(value)


def _compare(setting: Setting, dataset: str, content: Mapping[str, Any]) -> Difference | None:
    stated, found = setting.stated(dataset), _lookup(content, setting.key)
    if stated is not None and agrees(stated, found):
        return None
    paper = setting.text or (NOT_STATED if stated is None else _text(stated))
    kind: Literal["differs", "open"] = "open" if stated is None or found is None else "differs"
    return Difference(setting.key, setting.title, paper, _text(found), kind)


def _of_method(method: Method, published: Published) -> Iterable[Difference]:
    facts = published.methods[str(method.dropout)]
    chosen: dict[str, object] = {name: method.options[name] for name in facts.open if name in method.options}
    if facts.placement is None and len(facts.stated) + len(facts.open):
        chosen["placement"] = method.settings.get("placement")
    if method.eot_samples:
        chosen["eot_samples"] = method.eot_samples
    if chosen:
        yield Difference(f"methods.{method.label}", f"{method.title}: options", NOT_STATED, _text(chosen), "open")


def setup_differences(
    results: Results, published: Published, dataset: str, methods: Iterable[Method]
) -> list[Difference]:
    """Every setting that differs or that the paper leaves open, the differing ones first.

    Args:
        results: the run.
        published: what the paper states.
        dataset: the data set whose published figures are used.
        methods: the methods of the run that are compared.
    """
    images = results.counts("n_images")
    content = {**results.run.manifest, "records": {"n_images": images[0] if images else None}}
    found = [item for setting in published.settings if (item := _compare(setting, dataset, content))]
    own = run_dataset(results)
    if own != dataset:
        found.insert(0, Difference("dataset.name", "Data set", dataset, own, "differs"))
    for method in methods:
        found += _of_method(method, published)
    return sorted(found, key=lambda item: item.kind == "open")
