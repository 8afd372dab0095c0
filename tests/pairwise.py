"""Pairwise testing: of a product of three or more axes, keep as few combinations as cover every pair of values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations

import pytest

__all__ = ["cover", "thin_out"]

Combination = Sequence[Hashable]
"""One value for each axis; combinations of one product have their axes in one order."""


def thin_out(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return the items to run, in their order, and those that a test marked `pairwise` can do without.

    The same items give the same choice in every process.
    """
    products: defaultdict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            products[item.nodeid.partition("[")[0]].append(item)
    dropped = set[str]()
    for product in products.values():
        kept = cover([_combination(item) for item in product])
        dropped |= {item.nodeid for number, item in enumerate(product) if number not in kept}
    return [i for i in items if i.nodeid not in dropped], [i for i in items if i.nodeid in dropped]


def cover(product: Sequence[Combination]) -> list[int]:
    """Return the positions of combinations that have every pair of values between them.

    Each choice is the first combination that adds the most pairs.
    """
    pairs = [set(combinations(enumerate(combination), 2)) for combination in product]
    missing = set().union(*pairs)
    chosen: list[int] = []
    while missing:
        best = max(range(len(product)), key=lambda number: len(pairs[number] & missing))
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def _combination(item: pytest.Function) -> Combination:
    values = dict(item.callspec.params)
    axes: list[tuple[str, ...]] = []
    for mark in item.iter_markers("parametrize"):  # what one of these sets together is one axis
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        axes.append(tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names))
    axes += [(name,) for name in values if not any(name in axis for axis in axes)]  # parameters of fixtures
    return [tuple(id(values[name]) for name in axis) for axis in sorted(axes)]
