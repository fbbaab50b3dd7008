"""What the pages are made from: settings, ledger and signals, read in threads of our own and within a bound."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from airflow_plugin.settings import CONNECTIONS, watcher
from tao_flows.config import ConfigWatcher, TaoConfig
from tao_flows.errors import LedgerError, TaoError
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import Incident
from tao_flows.runtime import named_ledger, signal_board
from tao_flows.signals.board import SignalBoard

log = logging.getLogger("tao_flows.web")
T = TypeVar("T")

LIMIT_S: Final = 10.0
"""How long one page may take before whoever asked for it is told that the ledger does not answer."""
THREADS: Final = 4
"""Pages made at once. Airflow's own threads are never taken: a ledger that hangs costs the API server nothing else."""
SETTINGS_MAX_AGE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sources:
    """What one page reads."""

    config: TaoConfig
    ledger: Ledger
    board: SignalBoard | None


class DagLedger:
    """A ledger as the page of a run may read it, where ``Ledger`` is asked for.

    An incident names its run and no DAG, and another DAG may have a run of the same id: what is of a task that this run
    does not have is left out.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def incidents(self, run: RunRef | None = None) -> Sequence[Incident]:
        """Those of the run's own tasks, and of no task in particular; none without a run."""
        if run is None:
            return []
        tasks = {"", *(record.key.task for record in self._ledger.tasks(run))}
        return [incident for incident in self._ledger.incidents(run) if incident.task in tasks]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


class Reading:
    """This process's settings and ledger, opened when a page first asks and anew when the settings change.

    Args:
        make_watcher: where the settings come from.
        limit_s: how long one page may take.
    """

    def __init__(self, make_watcher: Callable[[], ConfigWatcher] = watcher, limit_s: float = LIMIT_S) -> None:
        self._make_watcher = make_watcher
        self._limit_s = limit_s
        self._watcher: ConfigWatcher | None = None
        self._sources: Sources | None = None
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "tao-flows-pages")

    async def within(self, read: Callable[[Sources], T]) -> T:
        """What ``read`` gives, in a thread of ours.

        Raises:
            LedgerError: what reading raised; LEDGER_SLOW after ``limit_s``.
            TaoError: the settings are wrong, or INTERNAL: a failure of ours, which is logged.
        """
        future = self._threads.submit(lambda: read(self._current()))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limit_s)
        except (asyncio.TimeoutError, TimeoutError):
            summary = f"the ledger has not answered for {self._limit_s:g} s"
            raise LedgerError("LEDGER_SLOW", summary, "check the ledger's server with `tao-flows doctor`") from None
        except TaoError:
            raise
        except Exception as error:
            log.exception("a page of tao-flows failed")
            said = f"{type(error).__name__}; the API server's log has the rest"
            raise TaoError("INTERNAL", f"the page could not be made: {said}", "please report this") from error

    def _current(self) -> Sources:
        with self._lock:
            self._watcher = self._watcher or self._make_watcher()
            config = self._watcher.get(SETTINGS_MAX_AGE_S).config
            if self._sources is None or self._sources.config is not config:
                ledger = named_ledger(config.ledger, CONNECTIONS)
                board = signal_board(config, ledger, None, CONNECTIONS.credentials)
                self._sources = Sources(config, ledger, board)
            return self._sources
