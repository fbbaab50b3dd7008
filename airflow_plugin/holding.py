"""Workloads that are held for a moment, while a thread decides where they go.

Two threads meet here. The scheduler's hands workloads in, and takes those back that are decided or have been held long
enough; it never waits. The other does all that takes time. Each workload is taken back exactly once, whatever becomes of
the deciding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

HOLD_S: Final = 2.0
"""Nothing is held longer than this from when it may be decided on, unless the thread gets on with others before it,"""
WRITE_S: Final = 10.0
"""or its row is being changed: that is waited for this long in all."""
_CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Onward:
    """Where a workload goes."""

    executor: Any = None
    """The executor that is to have it; None: the one that held it."""
    queue: str | None = None
    """Set on it before; None: its own stays."""
    away: bool = False
    """It goes nowhere: its task waits, and is queued anew later."""


HOME: Final = Onward()
"""Where it would have gone without us."""
AWAY: Final = Onward(away=True)


class Case:
    """One workload, as the deciding thread sees it."""

    __slots__ = ("_desk", "is_written", "onward", "since_s", "workload")

    def __init__(self, desk: Desk, workload: Any) -> None:
        self._desk = desk
        self.workload = workload
        self.since_s: float | None = None
        """Since when it may be decided on; None: not yet."""
        self.is_written = False
        """Its row is being changed."""
        self.onward: Onward | None = None
        """Where it goes, once that is settled."""

    @contextmanager
    def writing(self) -> Iterator[bool]:
        """While its row is changed, so that it is not handed on meanwhile; False: it has been, change nothing."""
        try:
            yield self._desk.begin_to_write(self)
        finally:
            self.is_written = False

    def settle(self, onward: Onward) -> None:
        """Says where it goes. The first word holds."""
        self.onward = self.onward or onward
        self._desk.advanced()

    def is_due(self, now_s: float) -> bool:
        """Whether it is not to be held any longer."""
        if self.onward is not None:
            return True
        if self.since_s is None:
            return False
        held_s, stalled_s = now_s - self.since_s, now_s - max(self.since_s, self._desk.got_on_s)
        return held_s >= WRITE_S or (stalled_s >= HOLD_S and not self.is_written)


class Desk:
    """What one executor holds. A forked child has none of it.

    Args:
        decide: decides on several at once, in the thread, and settles them. What it leaves unsettled, or raises over,
            goes where it would have gone.
        failed: told what it raised.
        name: of the thread.
    """

    def __init__(
        self, decide: Callable[[Sequence[Case]], None], failed: Callable[[BaseException], None], name: str
    ) -> None:
        self._decide, self._failed, self._name = decide, failed, name
        self._lock = threading.Lock()
        self._cases: dict[Hashable, Case] = {}
        self._ready: list[Case] = []
        self._wake, self._closing = threading.Event(), threading.Event()
        self._busy_since_s: float | None = None
        """Since when the thread has been about one case; None: it waits for some."""
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._cases)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._cases

    def hold(self, workload: Any) -> bool:
        """Holds a workload; False where none is held at present, since nobody would decide on it in time."""
        busy_since_s = self._busy_since_s
        if busy_since_s is not None and time.monotonic() - busy_since_s > HOLD_S:
            return False
        if not self._is_attended():
            return False
        with self._lock:
            # Of one that is queued anew the earlier workload counts no more, as in Airflow's own executors.
            self._cases[workload.ti.key] = Case(self, workload)
        return True

    def release(self) -> None:
        """Lets the thread decide on what was handed in so far: the transaction that queued it has been committed."""
        now_s = time.monotonic()
        with self._lock:
            fresh = [case for case in self._cases.values() if case.since_s is None]
            for case in fresh:
                case.since_s = now_s
            self._ready += fresh
        if fresh:
            self._wake.set()

    def collect(self, *, everything: bool = False) -> list[tuple[Any, Onward]]:
        """Takes back what is decided or has been held long enough, in order; or everything there is."""
        now_s = time.monotonic()
        with self._lock:
            due = [key for key, case in self._cases.items() if everything or case.is_due(now_s)]
            cases = [self._cases.pop(key) for key in due]
        return [(case.workload, case.onward or HOME) for case in cases]

    def drop(self, key: Hashable) -> None:
        """Forgets one that is no longer to run."""
        with self._lock:
            self._cases.pop(key, None)

    def close(self) -> None:
        """Ends the thread, and waits for it, 2 s at most. What is held can still be collected."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def begin_to_write(self, case: Case) -> bool:
        """Whether a case is still held; then it stays so while its row is changed."""
        with self._lock:
            case.is_written = self._holds(case) and not case.is_due(time.monotonic())
            return case.is_written

    @property
    def got_on_s(self) -> float:
        """When the thread was last through with a case; 0: it waits for some."""
        return self._busy_since_s or 0.0

    def advanced(self) -> None:
        """Takes note that the thread is through with a case."""
        self._busy_since_s = time.monotonic()

    def _holds(self, case: Case) -> bool:
        return self._cases.get(case.workload.ti.key) is case

    def _is_attended(self) -> bool:
        if self._thread is None and not self._closing.is_set():
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads are to be had
                self._failed(error)
                return False
            self._thread = thread
        return self._thread is not None and self._thread.is_alive() and not self._closing.is_set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                # What was held too long while we were busy with others has gone its way.
                cases, self._ready = [case for case in self._ready if self._holds(case)], []
            if cases and not self._closing.is_set():
                self._attend(cases)

    def _attend(self, cases: Sequence[Case]) -> None:
        self.advanced()
        try:
            self._decide(cases)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the next ones are decided on, too
            self._failed(error)
        finally:
            for case in cases:
                case.settle(HOME)
            self._busy_since_s = None
