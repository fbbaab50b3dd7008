"""Who uses the host's processors: CPU nanoseconds by party, for the node agent.

A party is a group of threads with everything that they start: a command, a thread that runs one task, an engine's
process. A thread is in one party at most, so that parties never share a CPU second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PartyCpu:
    """Cumulative CPU time at one moment; none of it ever falls."""

    at_ns: int
    """Monotonic nanoseconds."""
    cpu_ns: dict[int, int]
    """By party, of all that have not been removed."""
    busy_ns: int | None
    """The whole host's, or None when it cannot be read."""


class PartyCounter(Protocol):
    """Counts CPU time by party. Construction raises SourceError; one thread calls it."""

    @property
    def source(self) -> str:
        """``ebpf``, ``perf`` or ``polling``."""
        ...

    @property
    def lower_bound(self) -> bool:
        """True when CPU time can have been missed."""
        ...

    @property
    def moves_threads(self) -> bool:
        """True when a thread may be added to a party while it is in another that is no part of it."""
        ...

    @property
    def max_parties(self) -> int:
        """More cannot be counted at once."""
        ...

    def add(self, party: int, tids: Iterable[int], *, within: int | None = None, stays_over_exec: bool = True) -> None:
        """Puts threads into a party, with all that they start from now on.

        Args:
            party: a number from 0 on below ``max_parties``, not in use; or one in use, to add threads to it.
            tids: threads, numbered as this process's ``/proc`` numbers them. One that is gone is passed over.
            within: the party they were in, and are in again when this one is removed; None for none.
            stays_over_exec: False for parties that a thread leaves, for none, when it runs another program.

        Raises:
            SourceError: nothing was counted from now on for it (PARTY_GONE: no such thread; PARTY_FAILED).
        """
        ...

    def remove(self, party: int) -> None:
        """Ends a party: what ``add`` named goes back to ``within``, what these started meanwhile to none.

        The number may be used again at once. Never raises.
        """
        ...

    def party_of(self, tid: int) -> int | None:
        """The party that a thread is in, by name or by descent; None for none, and where that cannot be told."""
        ...

    def read(self) -> PartyCpu:
        """Reads all of it now, the slices in progress included. Never raises."""
        ...

    def problems(self) -> tuple[str, ...]:
        """Codes of what went wrong since the last call, such as ``PARTY_TABLE_FULL``; empty for nothing."""
        ...

    def close(self) -> None:
        """Gives back what it holds. May be called twice."""
        ...
