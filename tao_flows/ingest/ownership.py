"""Whose record it is: a token of one team writes nothing into another's runs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.wireformat import Entry, RefusedError
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunRecord, TaskRecord

_MOST_REMEMBERED: Final = 10_000


class Ownership:
    """Admits records of a team to its own runs, and to runs that are nobody's yet. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: OrderedDict[tuple[str, RunRef], None] = OrderedDict()

    def admit(self, ledger: Ledger, entry: Entry, team: str) -> Entry:
        """The entry as the team's: a run or a task that names no team is the token's.

        Args:
            ledger: where runs and tasks say whose they are.
            entry: what came in.
            team: the token's.

        Raises:
            RefusedError: TEAM_OF_ANOTHER, it says that it is another team's; RUN_OF_ANOTHER, its run is.
            LedgerError: the ledger cannot say.
        """
        record = entry.record
        if isinstance(record, (RunRecord, TaskRecord)):
            if record.who.team not in ("", team):
                summary = f"a record of team {record.who.team!r:.80} came with a token of {team!r}"
                raise RefusedError("TEAM_OF_ANOTHER", summary, "use that team's token")
            entry = replace(entry, record=replace(record, who=replace(record.who, team=team)))
        run = _run_of(entry)
        if run.run_id and not self._is_known(team, run) and _is_another_teams(ledger, run, team):
            summary = f"the run {run.run_id!r:.80} is another team's"
            raise RefusedError("RUN_OF_ANOTHER", summary, "give each team a namespace of its own: TAO_FLOWS_NAMESPACE")
        return entry

    def written(self, entry: Entry, team: str) -> None:
        """Remembers that the ledger now knows a run as the team's."""
        if isinstance(entry.record, (RunRecord, TaskRecord)):
            with self._lock:
                self._own[team, _run_of(entry)] = None
                if len(self._own) > _MOST_REMEMBERED:
                    self._own.popitem(last=False)

    def _is_known(self, team: str, run: RunRef) -> bool:
        with self._lock:
            return (team, run) in self._own


def _is_another_teams(ledger: Ledger, run: RunRef, team: str) -> bool:
    named = {"engine": run.engine, "namespace": run.namespace, "flow": run.flow, "run_id": run.run_id}
    named = {name: value for name, value in named.items() if value}
    is_run = " AND ".join(f"{name} = :{name}" for name in named)
    # An incident knows the run's id alone, by which tasks are not indexed.
    tables = ("runs", "tasks") if run.engine else ("runs",)
    teams: set[str] = set()
    with ledger.transaction(write=False) as transaction:
        for table in tables:
            rows = transaction.execute(f"SELECT DISTINCT team FROM {table} WHERE {is_run}", **named)
            teams.update(name for (name,) in rows)
    # Where engines reuse run ids, a run of the same name can be the team's own beside another's.
    return bool(teams - {"", team}) and team not in teams


def _run_of(entry: Entry) -> RunRef:
    record = entry.record
    if isinstance(record, (TaskRecord, DecisionRecord)):
        key = record.key
        return RunRef(key.engine, key.namespace, key.run_id, key.flow)
    if isinstance(record, RunRecord):
        return RunRef(record.engine, record.namespace, record.run_id, record.flow)
    if isinstance(record, HostAccount) and entry.run is not None:
        return entry.run
    return RunRef("", "", record.run_id if isinstance(record, Incident) else "")
