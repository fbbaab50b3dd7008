"""Exact non-dominated sorting; less is better in every objective."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import groupby

Vector = tuple[float, ...]


def dominates(one: Vector, other: Vector) -> bool:
    """Whether ``one`` is no worse anywhere and better somewhere."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def nondominated_sort(vectors: Sequence[Vector]) -> tuple[list[int], list[int]]:
    """The rank of each vector, 0 for the front, and what of the front dominates it, as the bits of a number.

    Equal vectors share a rank. Sets of vectors are the bits of whole numbers: those that dominate a vector are what
    the sets "no worse in this objective" have in common. In lexicographic order nothing is dominated by what comes
    later, so each vector goes to the first front that holds nothing better than it (efficient non-dominated sort:
    Zhang, Tian, Cheng and Jin 2015, IEEE TEVC 19:201).
    """
    above = _dominators(vectors)
    found = [0] * len(vectors)
    fronts: list[int] = []
    for index in sorted(range(len(vectors)), key=vectors.__getitem__):
        better = above[index]
        # What is dominated by one of a front is dominated by one of each front before it.
        rank = bisect_left(fronts, True, key=lambda front: not front & better)
        if rank == len(fronts):
            fronts.append(0)
        fronts[rank] |= 1 << index
        found[index] = rank
    return found, [better & fronts[0] for better in above] if fronts else []


def members(bits: int) -> Iterator[int]:
    """The numbers of the bits that are set, lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def staircase(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Which of a sequence are better in one of two costs than each one before them, by number.

    What comes later is worse in everything else, so that what is left out is dominated by one that is kept.
    """
    kept: list[int] = []
    corners: list[tuple[float, float]] = []  # undominated so far: the first cost rises, the second falls
    for number, (first, second) in enumerate(costs):
        place = bisect_right(corners, first, key=lambda corner: corner[0])
        if place and corners[place - 1][1] <= second:
            continue
        kept.append(number)
        corners[:] = [corner for corner in corners if corner[0] < first or corner[1] < second]
        insort(corners, (first, second))
    return kept


def _dominators(vectors: Sequence[Vector]) -> list[int]:
    """For each vector the set of those that dominate it."""
    everything = (1 << len(vectors)) - 1
    above = [everything] * len(vectors)
    order = list(range(len(vectors)))
    for objective in range(len(vectors[0]) if vectors else 0):
        no_worse = 0
        for _, group in groupby(
            sorted(order, key=lambda i: vectors[i][objective]), key=lambda i: vectors[i][objective]
        ):
            equal = list(group)
            no_worse |= sum(1 << index for index in equal)
            for index in equal:
                above[index] &= no_worse
    same: dict[Vector, int] = {}
    for index, vector in enumerate(vectors):
        same[vector] = same.get(vector, 0) | 1 << index
    return [better & ~same[vector] for better, vector in zip(above, vectors, strict=True)]
