"""The flow runs that wait, as the ledger has them: whose plans they are, and whose time has come. Asks no server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tao_flows.prefect.facts import Facts
from tao_flows.records import Deferral
from tao_flows.runtime import Tao
from tao_flows.waiting import Waitlist, Why

MOST_MOVES: Final = 8
"""A process of ours puts one run off so often at most; then the time counts that the server has."""


@dataclass(eq=False)
class Wait:
    """One flow run that waits."""

    facts: Facts
    deferral: Deferral
    """The plan as it was when it was met; the ledger has the present one."""
    due_wall_ns: int
    """When the server hands it to a worker by itself."""
    moves: int = 0
    cancel: Callable[[], bool] | None = None
    why: Why | None = None
    """Why the wait is over; None: it is not."""

    @property
    def run_id(self) -> str:
        """Names it in here."""
        return self.deferral.key.run_id


class Waits:
    """What waits and is known here. One thread at a time uses it.

    Args:
        tao: this process's.
    """

    def __init__(self, tao: Tao) -> None:
        self._tao = tao
        self._store = tao.admission.deferrals
        self._list = Waitlist(self._store, tao.clock)
        self._waits: dict[str, Wait] = {}
        self._ended: deque[Wait] = deque()

    def __len__(self) -> int:
        return len(self._waits)

    def rows(self) -> Mapping[str, Deferral]:
        """By run id, the whole flow runs that wait by the ledger, in whatever pool.

        Raises:
            LedgerError: it cannot be read.
        """
        namespace = self._tao.config.namespace
        return {
            row.key.run_id: row
            for row in self._store.open()
            if row.key.engine == "prefect" and not row.key.task and row.key.namespace == namespace
        }

    def add(self, facts: Facts, deferral: Deferral, due_wall_ns: int) -> None:
        """Takes up a wait, or notes that the server has another time for it."""
        known = self._waits.get(deferral.key.run_id)
        if known is not None and known.deferral.key == deferral.key and known.why is None:
            known.moves += known.due_wall_ns != due_wall_ns
            known.due_wall_ns = due_wall_ns
            return
        self.forget(deferral.key.run_id)
        wait = Wait(facts, deferral, due_wall_ns)
        ask = facts.ask(self._tao.config, deferral.ready_wall_ns)
        reconsider = self._tao.admission.reconsider(ask, lambda: self._tao.config, deferral)

        def ended(why: Why) -> None:
            wait.why = why
            self._ended.append(wait)

        wait.cancel = self._list.add(deferral, ended, reconsider)
        self._waits[wait.run_id] = wait

    def get(self, run_id: str) -> Wait | None:
        """A wait that is known here."""
        return self._waits.get(run_id)

    def all(self) -> list[Wait]:
        """Every wait that is known here."""
        return list(self._waits.values())

    def forget(self, run_id: str) -> None:
        """Waits for a run no more, without a word to the ledger."""
        wait = self._waits.pop(run_id, None)
        if wait is not None and wait.cancel is not None:
            wait.cancel()

    def poll(self) -> None:
        """Reads clocks, ledger and signals for all that waits. Never raises."""
        self._list.expire()
        self._list.poll()
        self._list.expire()

    def over(self) -> list[Wait]:
        """The waits that have ended since this was last asked; what was started or cancelled elsewhere is forgotten."""
        ended = []
        while self._ended:
            wait = self._ended.popleft()
            if wait.why is not None and wait.why.starts:
                ended.append(wait)
            elif self._waits.get(wait.run_id) is wait:
                del self._waits[wait.run_id]
        return ended
