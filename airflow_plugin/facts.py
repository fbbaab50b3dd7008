"""What is known of one try of a task, however it was learned: from a running task, or from the scheduler's database.

Facts cross processes as JSON: a trigger carries them to the triggerer, which decides anew on what waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from tao_flows.options import OFF, TaoOptions, made
from tao_flows.records import RunKey, Who
from tao_flows.units import NS_PER_S

if TYPE_CHECKING:
    from tao_flows.admission import Ask
    from tao_flows.ledger.base import RunRef

ENGINE: Final = "airflow"
CONFIG_KEY: Final = "tao_flows"
"""Under it a task's ``executor_config`` holds what its author asked of us, as it was written: it reaches the scheduler
with every task instance."""
_TRIGGERS: Final = {
    "scheduled": "scheduled",
    "manual": "manual",
    "backfill": "backfill",
    "asset_triggered": "asset",
    "asset_materialization": "asset",
    "operator_triggered": "event",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """One try of one task instance. Times are nanoseconds since 1970; None and empty: not known."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    pool: str
    """Where it would run, as ``places`` names it."""
    ready_wall_ns: int
    operator: str = ""
    """The operator's class."""
    sensor: bool = False
    owner: str = ""
    tags: tuple[str, ...] = ()
    """The DAG's."""
    run_type: str = ""
    """As Airflow says it."""
    run_start_wall_ns: int | None = None
    queued_wall_ns: int | None = None
    data_interval_end_wall_ns: int | None = None
    latest_end_wall_ns: int | None = None
    """By when it must have ended for the run to keep its time-out and its Deadline Alerts, all that follows counted."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The author's, as written; keyword arguments of ``make_options``."""

    def key(self, namespace: str) -> RunKey:
        """Names the try in the ledger."""
        return run_key(self, namespace)

    @property
    def given(self) -> TaoOptions:
        """The author's options, checked.

        Raises:
            InputError: one is malformed.
        """
        return made(self.options)

    def ask(self, namespace: str, deployment: Who, **engine_can: Any) -> Ask:
        """The question to ask of the decision.

        Args:
            namespace: of the ledger.
            deployment: whom the deployment belongs to.
            engine_can: ``can_defer``, ``can_reroute``, ``engine_latency_s`` and ``min_dwell_s`` of ``Ask``.

        Raises:
            InputError: an option is malformed.
        """
        from tao_flows.admission import Ask  # the DAG processor has these facts, too, and decides nothing

        options = self.given
        return Ask(
            key=self.key(namespace),
            home_pool=self.pool,
            ready_wall_ns=self.ready_wall_ns,
            who=self.who(deployment),
            trigger=_TRIGGERS.get(self.run_type, ""),
            operator=self.operator,
            sensor=self.sensor,
            budget=options.budget,
            deadline=options.deadline,
            latest_end_wall_ns=self.latest_end_wall_ns,
            run_start=_moment(self.run_start_wall_ns),
            queued=_moment(self.queued_wall_ns),
            data_interval_end=_moment(self.data_interval_end_wall_ns),
            max_defer_s=options.max_defer_s,
            deferrable=options.deferrable,
            reroutable=options.reroutable,
            allowed_zones=options.allowed_zones,
            requires=options.requires,
            allowed_orgs=options.allowed_orgs,
            size=options.size,
            **engine_can,
        )

    def who(self, deployment: Who) -> Who:
        """Whom its record belongs to: the deployment, the DAG's tags, the task's owner and options, nearest last."""
        return deployment.overlay(Who.of_tags(self.tags)).overlay(Who(owner=self.owner)).overlay(self.given.who)

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        return {**asdict(self), "tags": list(self.tags), "options": dict(self.options)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Facts:
        """The facts of ``to_json``; what a later version wrote besides is left out."""
        known = {each.name for each in fields(cls)}
        given = {name: value for name, value in stored.items() if name in known}
        return cls(**{**given, "tags": tuple(given.get("tags", ()))})


def run_key(ti: Any, namespace: str) -> RunKey:
    """Names a try in the ledger, from any of Airflow's task instances, or from facts."""
    return RunKey(
        engine=ENGINE,
        namespace=namespace,
        flow=ti.dag_id,
        run_id=ti.run_id,
        task=ti.task_id,
        instance=str(ti.map_index if ti.map_index is not None else -1),
        try_number=max(1, ti.try_number),
    )


def run_ref(dag_id: str, run_id: str, namespace: str) -> RunRef:
    """Names a DAG run in the ledger: run ids are unique within a DAG only."""
    from tao_flows.ledger.base import RunRef

    return RunRef(ENGINE, namespace, run_id, dag_id)


def options_of(executor_config: object) -> Mapping[str, Any]:
    """The author's options in a task's ``executor_config``; none where there are none."""
    given = executor_config.get(CONFIG_KEY) if isinstance(executor_config, Mapping) else None
    return given if isinstance(given, Mapping) else {}


def opted_out(executor_config: object) -> bool:
    """Whether the author asked for a task to be left alone."""
    return options_of(executor_config).get(OFF) is True


def _moment(wall_ns: int | None) -> datetime | None:
    return None if wall_ns is None else datetime.fromtimestamp(wall_ns / NS_PER_S, timezone.utc)
