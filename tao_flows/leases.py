"""Keeps what running tasks have reserved from running out, for as long as their process lives."""

from __future__ import annotations

import logging
import threading
from typing import Final

from tao_flows.errors import TaoError
from tao_flows.ledger.budgets import BudgetStore

log = logging.getLogger("tao_flows.leases")

LEASE_S: Final = 600.0
"""A process that dies gives its tasks' reservations back this long after it last renewed them."""
RENEW_S: Final = 120.0
"""Renewed this often: four renewals may fail before a lease runs out."""


class Leases:
    """Renews reservations in a thread that lives while there are any. It belongs to the process that made it.

    Args:
        store: the budgets.
        lease_s: how long a renewal lasts.
        renew_s: seconds between two renewals.
    """

    def __init__(self, store: BudgetStore, lease_s: float = LEASE_S, renew_s: float = RENEW_S) -> None:
        self._store, self._lease_s, self._renew_s = store, lease_s, renew_s
        self._lock = threading.Lock()
        self._holders: set[str] = set()
        self._thread: threading.Thread | None = None

    def keep(self, holder: str) -> None:
        """Renews a holder's reservations until ``drop``."""
        with self._lock:
            self._holders.add(holder)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="tao-flows-leases", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads are to be had: the next one tries again
                    log.debug("leases cannot be renewed: %s", error)
                    return
                self._thread = thread

    def drop(self, holder: str) -> None:
        """Renews them no more: the task has settled, or is gone."""
        with self._lock:
            self._holders.discard(holder)

    def _run(self) -> None:
        idle = threading.Event()
        while True:
            idle.wait(self._renew_s)
            with self._lock:
                holders = sorted(self._holders)
                if not holders:
                    self._thread = None
                    return
            for holder in holders:
                self._renew(holder)

    def _renew(self, holder: str) -> None:
        try:
            # What has settled meanwhile has nothing left to renew, which is no error.
            self._store.renew(holder, self._lease_s)
        except TaoError as error:
            log.debug("a lease could not be renewed: %s", error)
