"""What the scheduler's database knows of tasks that are queued. Read in a thread, in a session of its own."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from airflow_plugin import _compat
from airflow_plugin.facts import Facts, options_of, run_key
from airflow_plugin.latest import after_s, latest_end_wall_ns
from airflow_plugin.places import ExecutorSpec, pool_of
from tao_flows.admission import LEDGER_S
from tao_flows.errors import LedgerError
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.turns import within
from tao_flows.profiles import Profiles
from tao_flows.records import RunKey
from tao_flows.units import NS_PER_S

_MOST_DAGS: Final = 256
"""Versions of DAGs that are kept."""
_PATHS_TTL_S: Final = 300.0
"""How long it is kept how long what follows a task takes."""


@dataclass(frozen=True, slots=True)
class TaskShape:
    """What a DAG says of one task."""

    queue: str
    executor: str | None
    operator: str
    owner: str
    sensor: bool
    downstream: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DagShape:
    """What is needed of one version of a DAG."""

    tags: tuple[str, ...]
    timeout_s: float | None
    """The run's time-out."""
    tasks: Mapping[str, TaskShape]

    @classmethod
    def of(cls, dag: Any) -> DagShape:
        """That of a DAG as Airflow serializes it."""
        tasks = {task.task_id: _shape(task) for task in dag.tasks}
        timeout_s = None if dag.dagrun_timeout is None else dag.dagrun_timeout.total_seconds()
        return cls(tuple(sorted(map(str, dag.tags or ()))), timeout_s, tasks)


@dataclass(frozen=True, slots=True)
class Queued:
    """A task instance that is queued."""

    row: Any
    """As the database has it."""
    facts: Facts
    """Its pool is its home: where its DAG has it run, whereto we may have moved it before."""
    home: tuple[str | None, str | None]
    """Its home's queue, and what its row names as the executor there."""

    @property
    def seen_wall_ns(self) -> int:
        """When its process last gave a sign of life, in this try or an earlier one; 0: never."""
        return _ns(self.row.last_heartbeat_at) or 0

    @property
    def resumes(self) -> bool:
        """Whether it comes back from a deferral of its author's."""
        return self.row.next_method is not None

    @property
    def may_wait(self) -> bool:
        """Whether it can wait now as far as Airflow is concerned.

        A sensor that looks again has begun already, and the failure of a trigger is told at once. An event without
        content could not be handed on by ours, which says why its wait was over then.
        """
        if self.resumes:
            return self.row.next_method != "__fail__" and _compat.event_of(self.row.next_kwargs) is not None
        return not self.row.looks


class QueuedReader:
    """Reads facts of queued tasks. Belongs to one thread.

    Args:
        profiles: how long tasks take.
        ledger: where it is looked up whether we moved a task.
        specs: the deployment's executors.
    """

    def __init__(self, profiles: Profiles, ledger: Ledger, specs: Sequence[ExecutorSpec]) -> None:
        self._profiles, self._ledger, self._specs = profiles, ledger, specs
        self._dags: OrderedDict[tuple[str, str | None], DagShape] = OrderedDict()
        self._paths: dict[tuple[str, str | None, str], tuple[float, float]] = {}

    def read(
        self, session: Any, workloads: Iterable[Any], namespace: str, failed: Callable[[Any, Exception], None]
    ) -> dict[str, Queued]:
        """The task instances of workloads, by id; what is no longer queued, or cannot be read, is left out.

        Args:
            session: Airflow's.
            workloads: as they were queued.
            namespace: of the ledger.
            failed: told of what of one task cannot be read.
        """
        instances = {str(workload.ti.id): workload.ti for workload in workloads}
        rows = _compat.queued_rows(session, [ti.id for ti in instances.values()])
        rows = [row for row in rows if row.state == "queued"]
        alerts = _compat.deadline_alerts(session, [row.dag_run for row in rows])
        found = {}
        for row in rows:
            try:
                with within(LEDGER_S):
                    ti, dag = instances[str(row.id)], self._dag(session, row)
                    found[str(row.id)] = self._queued(row, dag, ti, alerts.get(row.dag_run), namespace)
            except Exception as error:  # noqa: BLE001 - the others are read all the same
                failed(row, error)
        return found

    def _queued(self, row: Any, dag: DagShape, ti: Any, alert: datetime | None, namespace: str) -> Queued:
        task = dag.tasks[row.task_id]
        home = self._home(row, task, run_key(row, namespace))
        facts = Facts(
            dag_id=row.dag_id,
            run_id=row.run_id,
            task_id=row.task_id,
            map_index=row.map_index,
            try_number=row.try_number,
            pool=pool_of(*home, self._specs),
            ready_wall_ns=_ns(row.scheduled_dttm) or _ns(row.queued_dttm) or time.time_ns(),
            operator=task.operator,
            sensor=task.sensor,
            owner=task.owner,
            tags=dag.tags,
            run_type=str(getattr(row.run_type, "value", row.run_type)),
            run_start_wall_ns=_ns(row.run_start),
            queued_wall_ns=_ns(row.queued_at),
            data_interval_end_wall_ns=_ns(row.data_interval_end),
            latest_end_wall_ns=self._latest_end_ns(row, dag, alert),
            options=options_of(ti.executor_config),
        )
        return Queued(row, facts, home)

    def _home(self, row: Any, task: TaskShape, key: RunKey) -> tuple[str | None, str | None]:
        """Where its DAG has it run, if it was us who moved it; else where it is: a policy may have put it there."""
        there = pool_of(row.queue, row.executor, self._specs)
        if there == pool_of(task.queue, task.executor, self._specs) or not _was_moved(self._ledger, key, there):
            return row.queue, row.executor
        return task.queue, task.executor

    def _latest_end_ns(self, row: Any, dag: DagShape, alert: datetime | None) -> int | None:
        begun_ns = _ns(row.run_start)
        over_ns = None
        if dag.timeout_s is not None and begun_ns is not None:
            over_ns = begun_ns + round(dag.timeout_s * NS_PER_S)
        ends_ns = (over_ns, _ns(alert))
        if ends_ns == (None, None):
            return None
        return latest_end_wall_ns(ends_ns, self._after_s(row, dag))

    def _after_s(self, row: Any, dag: DagShape) -> float:
        key, now_s = (str(row.dag_version_id), row.dag_hash, row.task_id), time.monotonic()
        kept = self._paths.get(key)
        if kept is not None and now_s - kept[0] < _PATHS_TTL_S:
            return kept[1]
        path_s = after_s(
            row.task_id, {name: task.downstream for name, task in dag.tasks.items()}, self._p95_s(dag, row.dag_id)
        )
        if len(self._paths) >= _MOST_DAGS * 16:
            self._paths.clear()
        self._paths[key] = (now_s, path_s)
        return path_s

    def _p95_s(self, dag: DagShape, dag_id: str) -> Callable[[str], float | None]:
        now_ns = time.monotonic_ns()

        def p95_s(task_id: str) -> float | None:
            task = dag.tasks[task_id]
            pool = pool_of(task.queue, task.executor, self._specs)
            known = self._profiles.of(task_id, pool, now_ns, flow=dag_id).runtime
            return None if known is None else known.p95

        return p95_s

    def _dag(self, session: Any, row: Any) -> DagShape:
        key = (str(row.dag_version_id), row.dag_hash)
        shape = self._dags.get(key)
        if shape is None:
            shape = self._dags[key] = DagShape.of(_compat.serialized_dag(session, row.dag_version_id))
            if len(self._dags) > _MOST_DAGS:
                self._dags.popitem(last=False)
        self._dags.move_to_end(key)
        return shape


def _shape(task: Any) -> TaskShape:
    return TaskShape(
        queue=task.queue,
        executor=task.executor,
        operator=task.task_type,
        owner=task.owner or "",
        # What is left of a sensor in every version: it may be scheduled to look again.
        sensor=any(type(each).__name__ == "ReadyToRescheduleDep" for each in task.deps),
        downstream=tuple(sorted(task.downstream_task_ids)),
    )


def _was_moved(ledger: Ledger, key: RunKey, pool: str) -> bool:
    """Whether a try of a task instance was sent to a pool by us; also where the ledger does not say."""
    try:
        with ledger.transaction(write=False) as transaction:
            return bool(
                transaction.execute(
                    """SELECT 1 FROM decisions WHERE engine = :engine AND namespace = :namespace AND flow = :flow
                        AND run_id = :run_id AND task = :task AND instance = :instance
                        AND action = 'reroute' AND mode = 'enforce' AND pool = :pool LIMIT 1""",
                    engine=key.engine, namespace=key.namespace, flow=key.flow, run_id=key.run_id, task=key.task,
                    instance=key.instance, pool=pool,
                )
            )  # fmt: skip
    except LedgerError:
        return False


def _ns(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * NS_PER_S)
