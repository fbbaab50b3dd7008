"""What is kept of runs, tasks and decisions: frozen records that cross every boundary. Times are ``*_wall_ns``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from tao_flows.figures import METHOD, Account, Figure, Measurement


@dataclass(frozen=True, slots=True)
class RunKey:
    """Names one try of one task, the same in every process and after every restart.

    ``instance`` is the task-run id in Prefect and the map index in Airflow; ``try_number`` starts at 1. Without a task
    it is a try of the whole run, where that is decided on before any of its tasks.
    """

    engine: str
    namespace: str
    flow: str
    run_id: str
    task: str
    instance: str
    try_number: int

    @property
    def task_flow(self) -> str:
        """The flow that ``task`` belongs to; empty in Prefect, where a task is a function that many flows may call.

        A whole run is its flow's in any engine.
        """
        return self.flow if self.engine == "airflow" or not self.task else ""


@dataclass(frozen=True, slots=True)
class Segment:
    """One process's part in a try. A try that defers and resumes elsewhere has several; they sum."""

    host: str
    boot_id: str
    pid: int
    process_started: int
    """Start time of the process in clock ticks since boot, so that a reused pid is not mistaken for it."""
    sequence: int = 0
    """Counts the times this process entered this try."""

    @property
    def id(self) -> str:
        """One text for the whole segment."""
        return f"{self.process}/{self.sequence}"

    @property
    def process(self) -> str:
        """One text for the process, the same in every try that it had a part in."""
        return f"{self.host}/{self.boot_id}/{self.pid}/{self.process_started}"


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a record belongs to; any of it may be empty."""

    team: str = ""
    owner: str = ""
    cluster: str = ""
    model_id: str = ""
    tags: tuple[str, ...] = ()

    @classmethod
    def of_tags(cls, tags: Iterable[str]) -> Who:
        """What an engine's tags say: ``team:ml``, ``owner:``, ``cluster:`` and ``model_id:`` name a field, all are kept."""
        tags = tuple(sorted(tags))
        named = dict(tag.split(":", 1) for tag in reversed(tags) if ":" in tag)
        known = {f.name: named[f.name].strip() for f in fields(cls) if f.name != "tags" and f.name in named}
        return cls(**known, tags=tags)

    def overlay(self, other: Who) -> Who:
        """``other`` over this: its non-empty fields win, tags are joined."""
        chosen: dict[str, Any] = {
            f.name: getattr(other, f.name) or getattr(self, f.name) for f in fields(self) if f.name != "tags"
        }
        return Who(**chosen, tags=tuple(dict.fromkeys((*self.tags, *other.tags))))


class TaskState(str, Enum):
    """How a try stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEFERRED = "deferred"
    """This process's part has ended, and the try goes on in another."""
    LOST = "lost"
    """Started, and its process is gone without an end: killed, or the host went down."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One segment of one try of one task, as the ledger keeps it."""

    key: RunKey
    segment: Segment
    state: TaskState
    started_wall_ns: int
    who: Who = Who()
    pool: str = ""
    budget: str = ""
    """The budget the task names."""
    task_label: str = ""
    """The name shown to people, where it differs from ``key.task``."""
    map_index: int | None = None
    ended_wall_ns: int | None = None
    measurement: Measurement | None = None
    """None while it runs, and for ever if it was lost."""
    method: str = METHOD
    budgets: tuple[str, ...] = ()
    """Every budget that is charged with it: the one it names, and those whose scope it falls under."""
    size: float | None = None
    """The user's hint of how much there is to do, such as a number of rows: joules are learned by it."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision about one try, as taken."""

    key: RunKey
    decided_wall_ns: int
    mode: str
    action: str
    pool: str
    reason: str
    request: Mapping[str, Any]
    """The whole request, so that the decision can be taken again."""
    answer: Mapping[str, Any]
    enforced: bool = False


@dataclass(frozen=True, slots=True)
class Deferral:
    """A task that waits for a better time, and by when it starts whatever happens."""

    key: RunKey
    pool: str
    """Where it will start."""
    ready_wall_ns: int
    start_wall_ns: int
    """When it is planned to start."""
    latest_wall_ns: int
    """When it starts at the latest."""
    reason: str
    state: str = "waiting"
    """``waiting``; ``released``, to start now; ``started``; or ``gone``, cancelled while it waited."""
    said_by: str = ""
    """Who released it, and why."""
    changed_wall_ns: int = 0


UNSEEN_RUN = "unseen"
"""State of a run of which only tasks were seen: a ledger never lets it take the place of any other."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of one flow."""

    engine: str
    namespace: str
    flow: str
    run_id: str
    state: str
    started_wall_ns: int
    segment: Segment
    """The process the flow runs in, so that a run whose process is gone is seen to be lost."""
    ended_wall_ns: int | None = None
    who: Who = Who()
    name: str = ""
    """The name shown to people, such as Prefect's ``amber-fox``."""


@dataclass(frozen=True, slots=True)
class HostAccount:
    """The account of one host over one run."""

    host: str
    account: Account
    wall_s: float
    window: str
    """Names the window, so that the same one written twice is one."""
    events: tuple[str, ...] = ()
    body: Figure | None = None
    """The flow's own code outside its tasks; it is in the account's tasks."""
    body_cpu_s: float | None = None
    overhead_cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class ProcessEnvironment:
    """What a process that is metered runs in: its machine, its packages, its settings; nothing secret."""

    segment: Segment
    """The process; its sequence says nothing."""
    seen_wall_ns: int
    body: Mapping[str, Any]
    """The same in every process alike, so that a ledger keeps it once."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A failure of ours, or a violation: logged, counted and shown; it never failed the task."""

    code: str
    summary: str
    remedy: str = ""
    wall_ns: int = 0
    count: int = 1
    run_id: str = ""
    task: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ``doctor`` says of one source: chosen, or rejected with the reason and the remedy."""

    id: str
    kind: str
    """``energy``, ``cpu_time`` or ``pressure``."""
    status: str
    """``ready``, ``denied``, ``absent`` or ``broken``."""
    code: str
    summary: str
    remedy: str = ""
    domains: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "id": self.id,
            "kind": self.kind,
            "status": self.status,
            "domains": list(self.domains),
            "code": self.code,
            "summary": self.summary,
            "remedy": self.remedy,
        }
