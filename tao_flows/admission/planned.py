"""When what waits is planned to start, read once for all that is decided anew together."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Final

from tao_flows.clock import Clock
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral
from tao_flows.units import NS_PER_S

KEPT_S: Final = 1.0
"""A read counts this long: what others plan meanwhile is met when a plan is written, which no slot is overfilled by."""


class PlannedStarts:
    """The starts of what waits. Safe to share between threads."""

    def __init__(self, store: DeferralStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._read_ns: int | None = None
        self._starts: dict[str, list[int]] = {}

    def besides(self, plan: Deferral) -> Callable[[str, int, int], Sequence[int]]:
        """``DeferralStore.planned`` of all but one plan, which does not take its own place from itself.

        Raises (what it gives):
            LedgerError: the ledger cannot be read.
        """

        def planned(pool: str, since_wall_ns: int, until_wall_ns: int) -> Sequence[int]:
            with self._lock:
                self._refresh()
                starts = self._starts.get(pool, [])
                found = starts[bisect_left(starts, since_wall_ns) : bisect_left(starts, until_wall_ns)]
            if plan.pool == pool:
                _take(found, plan.start_wall_ns)
            return found

        return planned

    def moved(self, before: Deferral, after: Deferral) -> None:
        """Takes note of a plan that has been moved by this process."""
        with self._lock:
            _take(self._starts.get(before.pool, []), before.start_wall_ns)
            insort(self._starts.setdefault(after.pool, []), after.start_wall_ns)

    def forget(self) -> None:
        """Has them read anew: what was known of them turned out to be wrong."""
        self._read_ns = None

    def _refresh(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._read_ns is None or now_ns - self._read_ns >= KEPT_S * NS_PER_S:
            self._starts = self._store.starts()
            self._read_ns = now_ns


def _take(starts: list[int], start_wall_ns: int) -> None:
    at = bisect_left(starts, start_wall_ns)
    if starts[at : at + 1] == [start_wall_ns]:
        del starts[at]
