"""Which network of a study the examples of a transfer are made on, for each of the others.

A comparison needs the same attacks on all of its methods. Most are attacked with examples made on the network without
dropout; that one itself, on which they would be plain BIM, with examples made on another network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Origin(NamedTuple):
    """The network that examples are made on.

    Attributes:
        method: its label.
        seed: of its training.
    """

    method: str
    seed: int

    @property
    def model(self) -> str:
        """The name of the network, which is that of its training."""
        return f"{self.method}--seed{self.seed}"


@dataclass(frozen=True)
class Candidate:
    """A method of a study, as far as it matters here.

    Attributes:
        label: of the method.
        dropout: its name.
        own_recipe: whether it is trained otherwise than the study says.
        random: whether its network is random in evaluation; nothing can be made on such a one.
        drops: whether it drops in training. Without, its network is that of the method without dropout.
    """

    label: str
    dropout: str
    own_recipe: bool
    random: bool
    drops: bool


def undropped(methods: Sequence[Candidate]) -> str | None:
    """The method whose networks examples are made on: without dropout and trained as the study says; None without."""
    return next((method.label for method in methods if method.dropout == "none" and not method.own_recipe), None)


def origin_of(methods: Sequence[Candidate], seeds: Sequence[int], label: str, seed: int) -> Origin | None:
    """The network on which the examples are made that a method's network is attacked with.

    That is the network of the same seed without dropout. For that one itself it is, as far as there is one:

    1. the same method's network of the study's next seed, after the last the first;
    2. with a single seed, the one with original dropout, trained as the study says;
    3. any other that drops, is deterministic in evaluation and trained as the study says, in the study's order;
    4. the same, trained otherwise.

    Args:
        methods: of the study, in its order.
        seeds: of the study.
        label: of the method that is attacked.
        seed: of its network.

    Returns:
        None where the study has no method without dropout, or no other network for it.
    """
    plain = undropped(methods)
    if plain is None:
        return None
    if label != plain:
        return Origin(plain, seed)
    if len(seeds) > 1:
        return Origin(plain, seeds[(list(seeds).index(seed) + 1) % len(seeds)])
    others = [m for m in methods if m.label != plain and not m.random and (m.drops or m.own_recipe)]
    others.sort(key=lambda method: (method.own_recipe, method.dropout != "original"))
    return Origin(others[0].label, seed) if others else None
