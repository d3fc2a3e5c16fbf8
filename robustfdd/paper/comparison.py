"""A run beside the paper: every figure that both have, whether the methods come in the same order, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robustfdd.errors import RunDirectoryError
from robustfdd.paper.matching import NotRun, Pair, match_cells, match_methods, published_dataset, run_dataset
from robustfdd.paper.ordering import Ordering, Summary, blocks, order_block, summarise
from robustfdd.paper.published import Place, Published, load
from robustfdd.paper.setup import Difference, setup_differences
from robustfdd.report.results import Results
from robustfdd.report.study import Method

#: How many reasons a message gives, so that it stays on one screen.
_SHOWN_REASONS = 5


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
