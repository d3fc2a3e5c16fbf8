"""Which cells of a run are cells of the paper: the same data set, method, attack, norm and radius."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from robustfdd.errors import ConfigurationError
from robustfdd.paper.published import Published, PublishedCell, agrees, eps_key
from robustfdd.report.results import Place, Results
from robustfdd.report.study import Method, norm_title, number
from robustfdd.report.tables import Entry, entry_at
from robustfdd.report.training import clean_entry, n_test_images
from robustfdd.rounding import exact

_NORMALIZATION = "study.normalization"
#: How the paper runs its attacks.
_PROTOCOL = "paper"


@dataclass(frozen=True)
class Pair:
    """One published figure and the run's own for the same thing.

    Attributes:
        published: as the paper has it.
        method: the method of the run.
        ours: mean and spread over the run's training seeds, in percent.
        n_images: the test images that the run's figure is over.
        reading_error: of the published figure, in percentage points; 0 if it is printed.
    """

    published: PublishedCell
    method: Method
    ours: Entry
    n_images: int
    reading_error: float

    @property
    def mean(self) -> Fraction:
        """The run's figure, in percent."""
        assert self.ours.mean is not None  # a gap makes no pair
        return self.ours.mean

    @property
    def theirs(self) -> Fraction:
        """The published figure, in percent."""
        return exact(self.published.accuracy_percent)

    @property
    def difference(self) -> Fraction:
        """The run's figure minus the published one, in percentage points."""
        return self.mean - self.theirs


@dataclass(frozen=True)
class NotRun:
    """One published figure that the run has nothing to hold against, and why."""

    published: PublishedCell
    reason: str


def run_dataset(results: Results) -> str:
    """The name of the data set of a run."""
    manifest = results.run.manifest
    return str((manifest.get("dataset") or {}).get("name") or manifest["study"].get("dataset"))


def published_dataset(results: Results, published: Published, stand_in: str | None = None) -> str:
    """The data set whose published figures a run is held against: its own, else ``stand_in``.

    Raises:
        ConfigurationError: there are no figures for it; the message names the data sets that have some.
    """
    own, allowed = run_dataset(results), ", ".join(published.datasets)
    if stand_in is not None and stand_in not in published.datasets:
        raise ConfigurationError(f"--as {stand_in}: no published figures for this data set; allowed: {allowed}")
    if own in published.datasets:
        return own
    if stand_in is None:
        raise ConfigurationError(
            f"{results.run.path}: there are no published figures for its data set {own!r}, only for: {allowed}; "
            "--as NAME holds the run against those of another data set all the same"
        )
    return stand_in


def altered(method: Method, published: Published) -> str | None:
    """What makes a method of a run another than the paper's, in words; None if it is the paper's.

    The method is known by its dropout, not by its label; every option that the manifest shows must have the stated
    value, or the default where the paper states none.
    """
    facts = published.methods.get(str(method.dropout))
    if facts is None:
        return "the paper has no figures for it"
    expected = {**facts.stated, **facts.open}
    changed = [
        f"{name} = {value} ({'a new option' if name not in expected else f'not {expected[name]}'})"
        for name, value in method.options.items()
        if name not in expected or not agrees(expected[name], value)
    ]
    if method.settings.get("recipe"):
        changed.append("a recipe of its own")
    placement = method.settings.get("placement")
    if facts.placement and placement not in (None, facts.placement):
        changed.append(f"placement = {placement} (not {facts.placement})")
    return ", ".join(changed) or None


def match_methods(results: Results, published: Published) -> tuple[dict[str, Method], list[tuple[Method, str]]]:
    """The methods of a run that are the paper's, by the name of the dropout, and the others, each with the reason."""
    matched: dict[str, Method] = {}
    left_out = []
    for method in results.study.methods:
        reason = altered(method, published)
        first = matched.get(str(method.dropout))
        if reason is None and first is not None:
            reason = f"{first.title} is the same method, and comes first"
        if reason is None:
            matched[str(method.dropout)] = method
        else:
            left_out.append((method, reason))
    return matched, left_out


def same_balls(results: Results, published: Published, dataset: str) -> bool:
    """Whether a normalised radius of the run is the paper's: both must normalise the data set in the same way."""
    stated = published.stated(_NORMALIZATION, dataset)
    known = results.study.eps_scale is not None
    return known and (stated is None or results.run.manifest["study"].get("normalization") == stated)


def _changed_parameters(results: Results, published: Published, attack: str) -> str:
    found = next((item.settings for item in results.study.attacks if item.name == attack), {})
    parameters = found.get("parameters") or {}
    return ", ".join(
        f"{name} = {parameters[name]} (not {value})"
        for name, value in published.attacks[attack].items()
        if name in parameters and not agrees(value, parameters[name])
    )


def _place(results: Results, published: Published, cell: PublishedCell, label: str) -> Place | str:
    """Where the run has the figure of a published cell, or why it cannot have it."""
    attack, norm = str(cell.attack), str(cell.norm)
    if cell.eps_normalized == 0:
        return results.clean_place(label, norm)
    if not same_balls(results, published, cell.dataset):
        return "the run normalises its images in another way, so the same ε is another ball"
    title = results.study.attack_title(attack)
    protocol = results.study.protocol
    changed = "" if protocol == _PROTOCOL else f"protocol {protocol}"
    changed = changed or _changed_parameters(results, published, attack)
    if changed:
        return f"the run has {title} with {changed}"
    grid = results.study.grid(attack, norm)
    if not grid:
        return f"the run has no {title} in {norm_title(norm)}"
    # The two normalise alike, so the run has radii in these units.
    radii = [eps.normalized or 0.0 for eps in grid]
    steps = {eps_key(eps): step for step, eps in enumerate(radii, start=1)}
    step = steps.get(eps_key(cell.eps_normalized))
    if step is None:
        return f"the run has {title} in {norm_title(norm)} at other ε: {', '.join(map(number, radii))}"
    return results.place(label, attack, norm, step)


def match_cells(results: Results, published: Published, dataset: str) -> Iterator[Pair | NotRun]:
    """Every published figure for a data set: with the run's own, or with the reason why there is none."""
    matched, left_out = match_methods(results, published)
    changed = {str(m.dropout): f"only as {m.title}: {why}" for m, why in reversed(left_out)}
    errors = {place.name: place.reading_error_points for place in published.places}
    n_test = n_test_images(results)
    for cell in published.cells_of(dataset):
        method = matched.get(cell.method)
        if method is None:
            yield NotRun(cell, f"the run has this method {changed.get(cell.method, 'not at all')}")
            continue
        if cell.attack is None:
            clean = clean_entry(results, method.label)
            if clean.mean is None or not n_test:
                yield NotRun(cell, "no model of it has a training record")
            else:
                yield Pair(cell, method, clean, n_test, errors[cell.place])
            continue
        place = _place(results, published, cell, method.label)
        if isinstance(place, str):
            yield NotRun(cell, place)
            continue
        ours = entry_at(results, place, "robust_accuracy")
        if ours.mean is None:
            yield NotRun(cell, "planned, but without a record")
            continue
        n_images = min(int(row["n_images"]) for row in results.rows(place).values())
        yield Pair(cell, method, ours, n_images, errors[cell.place])
