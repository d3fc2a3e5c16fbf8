"""A run beside the paper: every figure that both have, whether the methods come in the same order, what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robustfdd.errors import RunDirectoryError
from robustfdd.paper.matching import NotRun, Pair, match_cells, match_methods, published_dataset, run_dataset
from robustfdd.paper.ordering import Ordering, Summary, blocks, order_block, summarise
from robustfdd.paper.published import Place, Published, Setting, agrees, load
from robustfdd.report.exhibit import GAP
from robustfdd.report.results import Results
from robustfdd.report.study import Method

#: How many reasons a message gives, so that it stays on one screen.
_SHOWN_REASONS = 5
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


def _of_method(method: Method, published: Published) -> list[Difference]:
    facts = published.methods[str(method.dropout)]
    chosen: dict[str, object] = {name: method.options[name] for name in facts.open if name in method.options}
    if facts.placement is None and len(facts.stated) + len(facts.open):
        chosen["placement"] = method.settings.get("placement")
    if method.eot_samples:
        chosen["eot_samples"] = method.eot_samples
    title = f"{method.title}: options"
    return [Difference(f"methods.{method.label}", title, NOT_STATED, _text(chosen), "open")] if chosen else []


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


@dataclass(frozen=True)
class Comparison:
    """A run, or several as one, held against the published figures for a data set.

    Attributes:
        results: the run.
        published: all that is published.
        dataset: the data set whose figures are used.
        pairs: every figure that both have, in the order of the paper.
        not_run: every published figure that the run has nothing for.
        matched: the methods of the run that are the paper's, by dropout.
        left_out: methods of the run that are not the paper's, with the reason.
        orderings: the order of the methods, block by block.
        summaries: for each table and figure that has pairs, and over all.
        setup: in what the run is not known to be as the paper.
    """

    results: Results
    published: Published
    dataset: str
    pairs: tuple[Pair, ...]
    not_run: tuple[NotRun, ...]
    matched: Mapping[str, Method]
    left_out: tuple[tuple[Method, str], ...]
    orderings: tuple[Ordering, ...]
    summaries: tuple[Summary, ...]
    setup: tuple[Difference, ...]

    @property
    def stand_in(self) -> bool:
        """Whether the published figures are of another data set than the run."""
        return self.dataset != run_dataset(self.results)

    @property
    def places(self) -> tuple[Place, ...]:
        """The tables and figures that the run has something of."""
        present = {pair.published.place for pair in self.pairs}
        return tuple(place for place in self.published.places if place.name in present)

    def of(self, place: Place) -> list[Pair]:
        """The pairs of one table or figure."""
        return [pair for pair in self.pairs if pair.published.place == place.name]


def compare(results: Results, *, as_dataset: str | None = None) -> Comparison:
    """Hold a run against the paper.

    Args:
        results: the run; the figures of its primary engine are used.
        as_dataset: the data set whose published figures are taken where there are none for the run's own.

    Raises:
        ConfigurationError: there are no published figures for the data set.
        RunDirectoryError: the run has no records, or none that a published figure belongs to.
    """
    published = load()
    dataset = published_dataset(results, published, as_dataset)
    if not results.places and not results.run.models:
        raise RunDirectoryError(f"{results.run.path}: there are no records yet, so there is nothing to compare")
    found = list(match_cells(results, published, dataset))
    pairs = tuple(item for item in found if isinstance(item, Pair))
    not_run = tuple(item for item in found if isinstance(item, NotRun))
    if not pairs:
        reasons = list(dict.fromkeys(item.reason for item in not_run))
        raise RunDirectoryError(
            f"{results.run.path}: none of the {len(not_run)} published figures for {dataset} is in this run: "
            + "; ".join(reasons[:_SHOWN_REASONS])
        )
    matched, left_out = match_methods(results, published)
    orderings = tuple(order_block(block) for block in blocks(pairs))
    return Comparison(
        results=results,
        published=published,
        dataset=dataset,
        pairs=pairs,
        not_run=not_run,
        matched=matched,
        left_out=tuple(left_out),
        orderings=orderings,
        summaries=tuple(summarise(orderings)),
        setup=tuple(setup_differences(results, published, dataset, matched.values())),
    )
