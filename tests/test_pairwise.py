"""What pairwise testing leaves out costs no pair of values."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from pairwise import cover


@pytest.mark.parametrize("sizes", [(7, 4, 10), (7, 2, 7), (3, 2, 2, 5)], ids=str)
def test_every_pair_is_covered(sizes: tuple[int, ...]) -> None:
    """Few combinations have every pair of values, and the same ones are chosen each time."""
    everything = list(product(*map(range, sizes)))
    chosen = cover(everything)
    assert chosen == cover(everything)
    largest = max(sizes) * sorted(sizes)[-2]
    assert largest <= len(chosen) <= largest * 1.2
    for one, two in combinations(range(len(sizes)), 2):
        covered = {(everything[n][one], everything[n][two]) for n in chosen}
        assert covered == set(product(range(sizes[one]), range(sizes[two])))
