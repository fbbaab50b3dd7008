"""Work that a decision does not wait for: at most one thread a key, and none that outlives its process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple


class _Flight(NamedTuple):
    begun_s: float
    done: threading.Event


class _State:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.flights: dict[Hashable, _Flight] = {}


class Background:
    """Starts work in daemon threads. A child that is forked meanwhile begins with none under way."""

    def __init__(self) -> None:
        self._state = _State()

    def start(self, key: Hashable, work: Callable[[], None]) -> None:
        """Starts ``work``, which does not raise, unless that of the same key is under way.

        Raises:
            RuntimeError: no thread can be started.
        """
        state = self._mine()
        with state.lock:
            if key in state.flights:
                return
            flight = state.flights[key] = _Flight(time.monotonic(), threading.Event())

        def run() -> None:
            try:
                work()
            finally:
                self._land(state, key, flight)

        try:
            threading.Thread(target=run, name="tao-flows-signals", daemon=True).start()
        except BaseException:
            self._land(state, key, flight)
            raise

    def wait(self, keys: Iterable[Hashable], wait_s: float) -> None:
        """Waits for work of these keys, each no longer than ``wait_s`` after its own beginning.

        So work that hangs holds up its callers once, not each of them anew.
        """
        state = self._mine()
        with state.lock:
            flights = [state.flights[key] for key in keys if key in state.flights]
        for flight in flights:
            flight.done.wait(max(0.0, flight.begun_s + wait_s - time.monotonic()))

    def _mine(self) -> _State:
        if self._state.pid != os.getpid():
            self._state = _State()
        return self._state

    @staticmethod
    def _land(state: _State, key: Hashable, flight: _Flight) -> None:
        with state.lock:
            state.flights.pop(key, None)
        flight.done.set()
