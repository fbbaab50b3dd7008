"""Completes records whose figures come late, so that no task waits for them.

A node agent tells ordinary users what a task cost about a second after its end. Until then the task's record says so;
then a thread, which lives as long as there is something to complete, writes it anew.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from tao_flows.agent.client import FIGURE_S

MOST_WAITING: Final = 1_000
"""Beyond it a record is completed by its own task's thread."""
REPORT_S: Final = FIGURE_S + 1.0
"""How long after a task's end its figure is waited for by who asks for it."""


class Settler:
    """Runs what is left to do in the order in which it was given, on one thread.

    That thread is no daemon: the interpreter's end waits for it, so that a process which lives for one task loses
    nothing. What it is given must not raise, and must end within about ``FIGURE_S`` of being given.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._at_work = False

    def later(self, job: Callable[[], None]) -> None:
        """Has ``job`` done soon; now, if there is no thread to be had for it."""
        with self._lock:
            full = len(self._jobs) >= MOST_WAITING
            if not full:
                self._jobs.append(job)
            start = not self._at_work and not full
            self._at_work = self._at_work or start
        if full:
            job()
        elif start:
            try:
                threading.Thread(target=self._work, name="tao-flows-settler").start()
            except RuntimeError:  # the interpreter is ending, or there may be no more threads
                self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._at_work = False
                    return
                job = self._jobs.popleft()
            job()


settler = Settler()


def _renew() -> None:
    global settler
    settler = Settler()


# A forked child has neither the thread nor the records.
os.register_at_fork(after_in_child=_renew)


def settle_later(job: Callable[[], None]) -> None:
    """Has ``job`` done soon, by this process's settler."""
    settler.later(job)
