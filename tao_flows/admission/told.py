"""Failures that every task of a process meets alike: told once a while, not once a task."""

from __future__ import annotations

import threading
from typing import Final

from tao_flows.admission.ask import Noted
from tao_flows.clock import Clock
from tao_flows.errors import TaoError
from tao_flows.units import NS_PER_S

TELL_S: Final = 60.0
_MOST: Final = 1_000
"""Told apart; beyond it all are told anew."""


class Told:
    """Says what goes wrong, the same at most once in ``TELL_S``."""

    def __init__(self, noted: Noted, clock: Clock) -> None:
        self._noted, self._clock = noted, clock
        self._lock = threading.Lock()
        self._at_ns: dict[tuple[str, str], int] = {}

    def tell(self, problem: TaoError, doing: str = "") -> None:
        """Notes a problem that is no single task's."""
        summary = f"{doing}: {problem.summary}" if doing else problem.summary
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            told_ns = self._at_ns.get((problem.code, summary))
            if told_ns is not None and now_ns - told_ns < TELL_S * NS_PER_S:
                return
            if len(self._at_ns) >= _MOST:
                self._at_ns.clear()
            self._at_ns[problem.code, summary] = now_ns
        self._noted.note(problem.code, summary, remedy=problem.remedy)
