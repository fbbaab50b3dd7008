"""A ledger that is looked up when it is first used, and again for as long as it cannot be found."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from tao_flows.errors import LedgerError, TaoError
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.forward import Sink, sink_of
from tao_flows.ledger.wireformat import Entry

_BATCH: Final = 16
"""Until it is known what the ledger likes."""


class LateLedger:
    """Does all that the ledger does which ``find`` finds, where ``Ledger`` is asked for. Safe to share between threads.

    Args:
        url: what the settings call it, as it is shown to people.
        find: finds and opens it. It is called until it succeeds once.

    Raises (every method):
        LedgerError: what the ledger raises; or, with its code, what ``find`` raised.
    """

    def __init__(self, url: str, find: Callable[[], Ledger]) -> None:
        self.url = url
        self._find = find
        self._lock = threading.Lock()
        self._found: tuple[Ledger, Sink] | None = None

    @property
    def batch(self) -> int:
        """How many records it likes to be given at once."""
        return _BATCH if self._found is None else self._found[1].batch

    def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
        """As ``Sink.send``."""
        return self._look_up()[1].send(entries)

    def close(self) -> None:
        """Gives back what it holds, if it was ever found."""
        if self._found is not None:
            self._found[0].close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # nothing of ours: a copy or a check asks before there is anything to ask
        return getattr(self._look_up()[0], name)

    def _look_up(self) -> tuple[Ledger, Sink]:
        with self._lock:
            if self._found is None:
                try:
                    ledger = self._find()
                except TaoError as error:
                    raise LedgerError(error.code, error.summary, error.remedy) from error
                self._found = ledger, sink_of(ledger)
            return self._found
