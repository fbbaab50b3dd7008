"""How long a thread may be kept waiting by a ledger, whatever it asks of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tao_flows.errors import LedgerError

_QUICK_S: Final = 0.1
"""What fails faster than this may be asked again at once."""
_ANSWERED: Final = frozenset({"LEDGER_BAD_RECORD", "LEDGER_FAILED", "LEDGER_PAUSED"})
"""The ledger said what is wrong with what it was asked, however long that took."""
_own: Final = threading.local()


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    """What this thread asks of ledgers inside waits for them no longer than this in all, and one call more."""
    before: float | None = getattr(_own, "until_s", None)
    until_s = time.monotonic() + limit_s
    _own.until_s = until_s if before is None else min(before, until_s)
    try:
        yield
    finally:
        _own.until_s = before


def left_s() -> float | None:
    """Seconds that this thread may still wait; None: nobody has said."""
    until_s: float | None = getattr(_own, "until_s", None)
    return None if until_s is None else max(0.0, until_s - time.monotonic())


@dataclass
class Turns:
    """Threads ask one after another, and after one that waited in vain none does for a while.

    A ledger has one connection a process. Without this a hundred tasks would each find out for themselves, and one
    after the other, that it does not answer.
    """

    asking: threading.Lock = field(default_factory=threading.Lock)
    asked_again_s: float = 0.0
    """On the monotonic clock: nothing is asked before."""

    @contextmanager
    def turn(self, pause_s: float) -> Iterator[None]:
        """One thread's turn.

        Raises:
            LedgerError: LEDGER_BUSY, it did not come in the time the thread has; LEDGER_PAUSED, the ledger has just
                kept another waiting in vain.
        """
        patience_s = left_s()
        if not self.asking.acquire(timeout=-1 if patience_s is None else patience_s):
            raise LedgerError("LEDGER_BUSY", "other threads of this process kept the ledger too long")
        begun_s = time.monotonic()
        try:
            self._refuse_while_paused(begun_s)
            yield
        except LedgerError as error:
            # What others write at the moment is worth another try, for as long as there is time for it.
            gave_up = left_s() == 0.0 if error.code == "LEDGER_BUSY" else time.monotonic() - begun_s > _QUICK_S
            if gave_up and error.code not in _ANSWERED:
                self.asked_again_s = time.monotonic() + pause_s
            raise
        finally:
            self.asking.release()

    def _refuse_while_paused(self, now_s: float) -> None:
        if now_s < self.asked_again_s:
            summary = f"the ledger did not answer, and is asked again in {self.asked_again_s - now_s:.1f} s"
            raise LedgerError("LEDGER_PAUSED", summary)
