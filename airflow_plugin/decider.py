"""What becomes of tasks that are queued, decided in a thread beside the scheduler: run, wait, or go elsewhere.

This is a look ahead. The worker asks again right before it runs a task, and that question is the one that reserves and
is recorded; here only what has a task wait, or moves it, is written down. All that is changed in Airflow's database is
changed on condition that the task is still queued as it was read, so that whoever else acts on it is never overruled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any, Final, Protocol

from airflow_plugin import _compat
from airflow_plugin.holding import AWAY, HOME, Case, Onward
from airflow_plugin.places import ExecutorSpec, Place, place_of, pool_of, spec_named
from airflow_plugin.scheduler_facts import Queued, QueuedReader
from tao_flows.admission import LEDGER_S
from tao_flows.config import TaoConfig
from tao_flows.errors import LedgerError
from tao_flows.ledger.turns import within
from tao_flows.records import Deferral, RunKey
from tao_flows.runtime import Tao
from tao_flows.waiting import Why

log = logging.getLogger("tao_flows.airflow")

ENGINE_LATENCY_S: Final = 5.0
"""From the end of a wait until the task runs: the triggerer and the scheduler each look about once a second, what is
queued is held up to 2 s, and a process starts."""
MIN_DWELL_S: Final = 5.0
"""No wait is shorter: a trigger takes a second or two to begin."""


class Board(Protocol):
    """What the scheduler's thread and the deciding one know together."""

    def executor_of(self, spec: ExecutorSpec) -> Any | None:
        """The executor of this scheduler that can be handed a task; None where that is none of ours."""
        ...

    def leave_alone(self, workload: Any, settings: TaoConfig) -> None:
        """Takes note that such tasks need not be held, as long as these settings stand."""
        ...


class Decider:
    """Decides on what one executor holds. Belongs to one thread.

    Args:
        tao: this process's.
        board: of the executor.
        specs: the deployment's executors.
    """

    def __init__(self, tao: Tao, board: Board, specs: Sequence[ExecutorSpec]) -> None:
        self._tao, self._board, self._specs = tao, board, specs
        self._reader = QueuedReader(tao.profiles, tao.ledger, specs)

    def decide(self, cases: Sequence[Case]) -> None:
        """Settles each case.

        Raises:
            Exception: Airflow's database cannot be read.
        """
        config = self._tao.config
        with _session() as session:
            found = self._reader.read(session, [case.workload for case in cases], config.namespace, self._unreadable)
        waits = self._waits([queued.facts.key(config.namespace) for queued in found.values()])
        for case in cases:
            queued = found.get(str(case.workload.ti.id))
            if queued is not None:
                try:
                    self._decide(case, queued, config, waits)
                except Exception as ours:  # noqa: BLE001 - it goes where it would have gone
                    self._failed("deciding on a queued task", ours, queued.row)
            case.settle(HOME)

    def _waits(self, keys: Sequence[RunKey]) -> Callable[[], Mapping[RunKey, Deferral]]:
        """Gives what is known of waits of these tries: read at the first call, once for all."""

        @cache
        def read() -> Mapping[RunKey, Deferral]:
            with within(LEDGER_S):
                return self._tao.admission.deferrals.states_of(keys)

        return read

    def _decide(
        self, case: Case, queued: Queued, config: TaoConfig, waits: Callable[[], Mapping[RunKey, Deferral]]
    ) -> None:
        ask = queued.facts.ask(
            config.namespace,
            config.who,
            can_reroute=True,
            reaches=lambda pool: self._way_to(pool, queued) is not None,
            engine_latency_s=ENGINE_LATENCY_S,
            min_dwell_s=MIN_DWELL_S,
            ahead=True,
        )
        ruling = config.rules.ruling(ask.subject(), config.mode)
        if ruling.mode != "enforce" or not (ruling.deferrable or ruling.reroutable):
            self._board.leave_alone(case.workload, config)
            return
        self._take_back(case, queued)
        if ruling.deferrable and queued.may_wait:
            waited = _waited(waits().get(ask.key), queued)
            ask = replace(ask, can_defer=True) if waited is None else replace(ask, ready_wall_ns=waited.ready_wall_ns)
        verdict = self._tao.admission.ask(ask, config)
        if verdict.deferral is not None:
            self._defer(case, queued, verdict.deferral)
        elif verdict.action != "deny":
            self._send(case, queued, verdict.pool)

    def _take_back(self, case: Case, queued: Queued) -> None:
        """Takes back what Airflow has noted too early of a task that is still here.

        With the id by which an executor will know a task, the scheduler that takes over from one that was killed would
        wait for a task that was never sent. And a wait of ours leaves an argument behind that, for a task which does not
        resume, would keep Airflow from noting when it begins.
        """
        row = queued.row
        values: dict[str, Any] = {} if row.external_executor_id is None else {"external_executor_id": None}
        if not queued.resumes and row.next_kwargs:
            values["next_kwargs"] = None
        if values:
            self._change(case, queued, **values)

    def _defer(self, case: Case, queued: Queued, deferral: Deferral) -> None:
        from airflow_plugin.triggers import TaoTrigger, deferral_json

        waits = False
        try:
            payload = _compat.event_of(queued.row.next_kwargs) if queued.resumes else None
            trigger = TaoTrigger(queued.facts.to_json(), deferral_json(deferral), payload)
            with case.writing() as mine:
                if mine:
                    with _session() as session:
                        waits = _compat.defer_queued(session, queued.row, trigger, queued.home[0])
                        if not waits:
                            session.rollback()
            if waits:
                case.settle(AWAY)
                log.info("tao-flows: %s waits: %s", _name(queued.row), deferral.reason)
        finally:
            if not waits:
                self._tao.admission.over([deferral.key], Why.GONE)

    def _send(self, case: Case, queued: Queued, pool: str) -> None:
        """Sends it to a pool, unless it is on its way there."""
        row = queued.row
        if pool == pool_of(row.queue, row.executor, self._specs):
            return
        way = self._way_to(pool, queued)
        if way is None:
            return
        executor, queue, name = way
        if self._change(case, queued, queue=queue, executor=name, external_executor_id=None):
            case.settle(Onward(executor, queue))
            log.info("tao-flows: %s goes to %s", _name(row), pool)

    def _way_to(self, pool: str, queued: Queued) -> tuple[Any, str | None, str | None] | None:
        """The executor that serves a pool, and what a row says of queue and executor there; None: nobody serves it."""
        queue, name = queued.home
        home = spec_named(name, self._specs)
        place = Place(home, queue) if pool == queued.facts.pool and home else place_of(pool, home, self._specs)
        executor = None if place is None else self._board.executor_of(place.executor)
        if place is None or executor is None:
            return None
        return executor, place.queue or queue, name if place.executor == home else place.executor.alias

    def _change(self, case: Case, queued: Queued, **values: Any) -> bool:
        with case.writing() as mine:
            if not mine:
                return False
            with _session() as session:
                return _compat.change_queued(session, queued.row, **values)

    def _unreadable(self, row: Any, error: Exception) -> None:
        self._failed("reading about a queued task", error, row)

    def _failed(self, doing: str, error: Exception, row: Any) -> None:
        if isinstance(error, LedgerError):
            return  # the worker, which asks again, tells of it
        self._tao.incidents.note_error(doing, error, run_id=row.run_id, task=row.task_id)


def _waited(wait: Deferral | None, queued: Queued) -> Deferral | None:
    """The wait from which it comes; None where it has run since, or never waited."""
    return None if wait is None or queued.seen_wall_ns > wait.changed_wall_ns else wait


def _session() -> AbstractContextManager[Any]:
    from airflow.utils.session import create_session

    session: AbstractContextManager[Any] = create_session(scoped=False)
    return session


def _name(row: Any) -> str:
    instance = "" if row.map_index < 0 else f"[{row.map_index}]"
    return f"{row.dag_id}.{row.task_id}{instance} of {row.run_id}, try {row.try_number},"
