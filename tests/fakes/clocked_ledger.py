"""A ledger whose database has a clock that the test sets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tao_flows.ledger.base import Ledger, Transaction


class ClockedLedger:
    """Lets a test pass the time by: all goes to ``inner`` but the question what time it is."""

    def __init__(self, inner: Ledger) -> None:
        self.inner = inner
        self.now_ns = time.time_ns()

    def pass_s(self, duration_s: float) -> None:
        self.now_ns += round(duration_s * 1e9)

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Any]:
        with self.inner.transaction(write=write) as tx:
            yield _Clocked(tx, self.now_ns)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Clocked:
    def __init__(self, inner: Transaction, now_ns: int) -> None:
        self.dialect, self.for_update = inner.dialect, inner.for_update
        self.execute, self.change = inner.execute, inner.change
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns
