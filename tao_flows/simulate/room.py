"""Who holds which place when. A job holds its place from its start to its end, a planned one as well."""

from __future__ import annotations

from bisect import insort

from tao_flows.simulate.market import Place


class Room:
    """What is taken of the pools that can be full, in whole slots.

    Args:
        slot_ns: a place is held for a multiple of this.
    """

    def __init__(self, slot_ns: int) -> None:
        self._slot_ns = slot_ns
        self._held: dict[str, list[tuple[int, int, str]]] = {}
        self._of: dict[str, tuple[str, tuple[int, int, str]]] = {}

    def hold(self, job_id: str, place: Place, start_ns: int, length_ns: int) -> None:
        """Takes a place for a job, in exchange for what it held before."""
        held = self._of.pop(job_id, None)
        if held is not None:
            self._held[held[0]].remove(held[1])
        if place.capacity is not None:
            entry = (start_ns, start_ns + self._whole(length_ns), job_id)
            insort(self._held.setdefault(place.pool_id, []), entry)
            self._of[job_id] = (place.pool_id, entry)

    def forget_before(self, now_ns: int) -> None:
        """Drops what has ended."""
        for pool_id, entries in self._held.items():
            for entry in entries:
                if entry[1] <= now_ns:
                    self._of.pop(entry[2], None)
            self._held[pool_id] = [entry for entry in entries if entry[1] > now_ns]

    def fits(self, job_id: str, place: Place, start_ns: int, length_ns: int) -> bool:
        """Whether a place is free all through a run."""
        if place.capacity is None:
            return True
        end_ns = start_ns + self._whole(length_ns)
        spans = [(begin, end) for begin, end, other in self._held.get(place.pool_id, ()) if other != job_id]
        # The most at a time is reached where one begins.
        moments = [start_ns, *(begin for begin, _ in spans if start_ns < begin < end_ns)]
        return all(sum(begin <= moment < end for begin, end in spans) < place.capacity for moment in moments)

    def first_fit(self, job_id: str, place: Place, from_ns: int, length_ns: int) -> int:
        """The earliest start from then on with a place free all through."""
        ends = sorted(end for _, end, _ in self._held.get(place.pool_id, ()) if end > from_ns)
        return next(at for at in (from_ns, *ends) if self.fits(job_id, place, at, length_ns))

    def _whole(self, length_ns: int) -> int:
        return -(-length_ns // self._slot_ns) * self._slot_ns
