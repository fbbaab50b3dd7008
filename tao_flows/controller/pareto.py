"""Exact non-dominated sorting; less is better in every objective."""

from __future__ import annotations

from collections.abc import Sequence

Vector = tuple[float, ...]


def dominates(one: Vector, other: Vector) -> bool:
    """Whether ``one`` is no worse anywhere and better somewhere."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def ranks(vectors: Sequence[Vector]) -> list[int]:
    """The rank of each vector, 0 for the front; equal vectors share one.

    Efficient non-dominated sort: in lexicographic order nothing is dominated by what comes later, so each vector
    goes to the first front that holds nothing better than it (Zhang, Tian, Cheng and Jin 2015, IEEE TEVC 19:201).
    """
    found = [0] * len(vectors)
    fronts: list[list[Vector]] = []
    for index in sorted(range(len(vectors)), key=vectors.__getitem__):
        vector = vectors[index]
        rank = next((r for r, front in enumerate(fronts) if not any(dominates(v, vector) for v in front)), len(fronts))
        if rank == len(fronts):
            fronts.append([])
        fronts[rank].append(vector)
        found[index] = rank
    return found
