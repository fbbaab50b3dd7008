"""What an engine asks before a task runs, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tao_flows.budget import EnergyBudget
from tao_flows.controller.model import Action
from tao_flows.deadline import Deadline
from tao_flows.records import DecisionRecord, Deferral, RunKey, Who
from tao_flows.rules import Mode, Subject


class Noted(Protocol):
    """Where failures of ours go."""

    def note(self, code: str, summary: str, *, remedy: str = "", run_id: str = "", task: str = "") -> None:
        """Records one."""
        ...

    def note_error(self, doing: str, error: BaseException, *, run_id: str = "", task: str = "") -> None:
        """Records an exception."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """What an engine asks before a task runs. None: the task's code does not say. Durations are seconds."""

    key: RunKey
    home_pool: str
    ready_wall_ns: int
    who: Who = Who()
    trigger: str = ""
    operator: str = ""
    sensor: bool = False
    budget: EnergyBudget | str | None = None
    deadline: Deadline | None = None
    latest_end_wall_ns: int | None = None
    """By when the engine itself wants it ended, such as a time-out of the whole run."""
    run_start: datetime | None = None
    queued: datetime | None = None
    data_interval_end: datetime | None = None
    max_defer_s: float | None = None
    deferrable: bool | None = None
    reroutable: bool | None = None
    allowed_zones: tuple[str, ...] | None = None
    requires: tuple[str, ...] = ()
    allowed_orgs: tuple[str, ...] | None = None
    """Other organisations that may be given the work."""
    size: float | None = None
    can_defer: bool = False
    """The engine can have it wait."""
    can_reroute: bool = False
    """The engine can send it to another pool."""
    reaches: Callable[[str], bool] | None = None
    """Whether the engine can send it to a pool; None: to any that is ours."""
    engine_latency_s: float = 0.0
    min_dwell_s: float = 0.0
    ahead: bool = False
    """It is asked again where it runs: nothing is reserved now, and only what has it wait or moves it is written down."""

    @property
    def budget_name(self) -> str:
        """The budget that the task's code names, or of its own; empty for none."""
        if self.budget is None:
            return ""
        name = self.budget.name if isinstance(self.budget, EnergyBudget) else self.budget
        return name or f"task:{self.key.task}"

    def subject(self) -> Subject:
        """What rules look at."""
        return Subject(
            engine=self.key.engine,
            flow=self.key.flow,
            task=self.key.task,
            tags=self.who.tags,
            owner=self.who.owner,
            operator=self.operator,
            pool=self.home_pool,
            trigger=self.trigger,
            sensor=self.sensor,
            deferrable=self.deferrable,
            reroutable=self.reroutable,
            budgeted=self.budget is not None,
            max_defer_s=self.max_defer_s,
            allowed_orgs=self.allowed_orgs,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the engine is to do with a task, and what its record is to say."""

    mode: Mode
    pool: str
    """Where it runs: its home pool, unless it is rerouted."""
    action: Action = "run"
    budgets: tuple[str, ...] = ()
    """What it is charged to."""
    decision: DecisionRecord | None = None
    """As taken; in a mode other than ``enforce`` it can say another action than the verdict's."""
    deferral: Deferral | None = None
    """The plan, where the action is to defer."""
