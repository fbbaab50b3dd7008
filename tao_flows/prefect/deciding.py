"""Which of the flow runs that are about to start go on, wait, or run elsewhere: the part that asks no server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from tao_flows.admission import Verdict
from tao_flows.errors import LedgerError
from tao_flows.ledger.turns import within
from tao_flows.prefect.facts import Facts, waits
from tao_flows.prefect.waits import MOST_MOVES, Waits
from tao_flows.records import Deferral
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S

SOON_S: Final = 15.0
"""What the server hands to a worker within this need not be brought forward."""
LEDGER_S: Final = 5.0
"""How long all that is decided together waits for the ledger, at most."""
AT_IT_S: Final = 10.0
"""A run that was planned by another desk is left to it for so long: two calls of the API take less."""
_DECIDED_S: Final = 60.0
"""A run that is to go on is not asked about again for so long, while it is in the same state."""
_MOST_KEPT: Final = 10_000


@dataclass(frozen=True)
class Case:
    """A run on which is decided."""

    facts: Facts
    verdict: Verdict | None = None
    """None: it goes on."""
    waited: Deferral | None = None
    """The wait that is over."""
    at_it: bool = False
    """Another desk has just planned it, and is about to put it off."""


class Deciding:
    """Decides on flow runs, in a thread beside the event loop; one thread at a time.

    Args:
        tao: this process's.
        waits: what waits and is known here.
    """

    def __init__(self, tao: Tao, waits: Waits) -> None:
        self._tao, self._waits = tao, waits
        self._decided: dict[tuple[UUID, UUID | None], float] = {}
        """By run and state, when it was decided that it goes on, on the monotonic clock."""
        self.unmoved: set[str] = set()
        """Runs that were planned here to wait, and of which the server did not hear."""

    def is_decided(self, run: FlowRun) -> bool:
        """Whether it has been decided of late that a run goes on."""
        decided_s = self._decided.get((run.id, run.state_id))
        return decided_s is not None and time.monotonic() - decided_s < _DECIDED_S

    def decide(self, cases: Sequence[Case]) -> list[Case]:
        """What becomes of each; of none where the ledger cannot be read, and then they go on."""
        if not cases:
            return []
        with within(LEDGER_S):
            config = self._tao.config
            try:
                keys = [case.facts.key(config.namespace) for case in cases]
                known = self._tao.admission.deferrals.states_of(keys)
            except LedgerError as error:
                self._tao.incidents.note_error("reading what waits", error)
                return []  # without its record a wait could not be ended
            return [self._decide_one(case, known.get(key)) for case, key in zip(cases, keys, strict=True)]

    def _decide_one(self, case: Case, row: Deferral | None) -> Case:
        """Decides on a run: whether it has waited, is to wait on, or is to wait at all."""
        facts, config = case.facts, self._tao.config
        waiting = row is not None and row.state == "waiting"
        if row is not None and waiting and waits(facts.run) and is_later(row, self._tao.clock.wall_ns()):
            wait = self._waits.get(row.key.run_id)
            ruling = facts.ruling(config)
            if ruling.mode == "enforce" and ruling.deferrable and (wait is None or wait.moves < MOST_MOVES):
                return replace(case, verdict=Verdict("enforce", row.pool, "defer", deferral=row))
        anew = waiting and str(facts.run.id) in self.unmoved
        if row is not None and waiting and not anew and self._is_at_it(row) and not waits(facts.run):
            return replace(case, at_it=True)
        # Somebody has started what waited, or died before it was put off: either way it goes on.
        waited = waits(facts.run) or (row is not None and not anew)
        ready_ns = row.ready_wall_ns if row is not None else facts.due_wall_ns or self._tao.clock.wall_ns()
        if waited and not facts.siblings:
            verdict = None
        else:
            verdict = self._tao.admission.ask(facts.ask(config, ready_ns, can_defer=not waited), config)
        if verdict is None or verdict.action not in {"defer", "reroute"}:
            self.keep_decided(facts.run)
        return replace(case, verdict=verdict, waited=row if waited else None)

    def keep_decided(self, run: FlowRun) -> None:
        """Takes note that a run goes on."""
        if len(self._decided) >= _MOST_KEPT:
            self._decided.clear()
        self._decided[run.id, run.state_id] = time.monotonic()

    def _is_at_it(self, row: Deferral) -> bool:
        return 0 <= self._tao.clock.wall_ns() - row.changed_wall_ns < AT_IT_S * NS_PER_S


def is_later(row: Deferral, than_wall_ns: int) -> bool:
    """Whether a plan is later than a moment, by more than ``SOON_S``."""
    return min(row.start_wall_ns, row.latest_wall_ns) - than_wall_ns > SOON_S * NS_PER_S
