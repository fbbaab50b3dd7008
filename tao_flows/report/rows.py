"""The parts of a report, each with its JSON form: energies in joules, null for unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Account, Figure
from tao_flows.records import RunKey, TaskRecord, TaskState, Who


@dataclass(frozen=True, slots=True)
class Span:
    """One segment on the time line."""

    started_wall_ns: int
    ended_wall_ns: int | None
    power_w: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The last decision about a try."""

    action: str
    pool: str
    reason: str
    mode: str
    enforced: bool
    regime: str | None
    penalty: float | None
    utilisation: float | None

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract, with the penalty and its regime."""
        return {
            "action": self.action,
            "pool": self.pool,
            "reason": self.reason,
            "mode": self.mode,
            "enforced": self.enforced,
            "regime": self.regime,
            "penalty": finite(self.penalty),
            "utilisation": finite(self.utilisation),
        }


@dataclass(frozen=True, slots=True)
class DecisionGroup:
    """Tries about which the same was decided, whatever the figures; the choice is the last of them."""

    choice: Choice
    count: int
    penalty_low: float | None
    penalty_high: float | None

    def to_json(self) -> dict[str, Any]:
        """One entry of ``decisions``."""
        penalty = {"low": finite(self.penalty_low), "high": finite(self.penalty_high)}
        same = {name: value for name, value in self.choice.to_json().items() if name != "utilisation"}
        return {**same, "count": self.count, "penalty": penalty}


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One try of one task: its segments summed."""

    key: RunKey
    label: str
    title: str
    """The label, with the map index where there are several instances and the try where it is not the first."""
    map_index: int | None
    state: TaskState
    pool: str
    who: Who
    spans: tuple[Span, ...]
    wall_s: float | None
    """Seconds in which it held a process; waiting between segments is not in it."""
    cpu_s: float | None
    cpu_lower_bound: bool
    """CPU time can have been missed."""
    energy: Figure
    share: float | None
    """Of the known joules of the run's tasks."""
    methods: tuple[str, ...]
    decision: Choice | None

    @property
    def power_w(self) -> float | None:
        """Mean watts while it ran."""
        value_j = self.energy.value_j
        return None if value_j is None or not self.wall_s or self.wall_s <= 0 else finite(value_j / self.wall_s)

    @property
    def started_wall_ns(self) -> int:
        """Start of the first segment."""
        return self.spans[0].started_wall_ns

    @property
    def ended_wall_ns(self) -> int | None:
        """End of the last segment, or None."""
        return self.spans[-1].ended_wall_ns

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        row: dict[str, Any] = {
            "task": self.key.task,
            "label": self.label,
            "instance": self.key.instance,
            "try_number": self.key.try_number,
            "pool": self.pool,
            "state": self.state.value,
            "started": iso_from_ns(self.started_wall_ns),
            "ended": iso_from_ns(self.ended_wall_ns),
            "wall_s": finite(self.wall_s),
            "cpu_s": finite(self.cpu_s),
            "cpu_lower_bound": self.cpu_lower_bound,
            "energy": self.energy.to_json(),
            "power_w": self.power_w,
            "share": self.share,
            "segments": len(self.spans),
            "who": who_json(self.who),
            "methods": list(self.methods),
            "decision": self.decision.to_json() if self.decision else None,
        }
        return row if self.map_index is None else {**row, "map_index": self.map_index}


@dataclass(frozen=True, slots=True)
class FlowBody:
    """The flow's own code outside its tasks, over all hosts and attempts."""

    energy: Figure
    cpu_s: float | None

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {"energy": self.energy.to_json(), "cpu_s": finite(self.cpu_s)}


@dataclass(frozen=True, slots=True)
class HostRow:
    """The account of one host."""

    host: str
    account: Account
    wall_s: float
    events: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "host": self.host,
            "account": self.account.to_json(),
            "wall_s": finite(self.wall_s),
            "events": list(self.events),
        }


@dataclass(frozen=True, slots=True)
class Violation:
    """A failure of ours (``incident``), or a constraint that a decision could not keep (``constraint``)."""

    kind: str
    code: str
    summary: str
    remedy: str = ""
    task: str = ""
    count: int = 1

    def to_json(self) -> dict[str, Any]:
        """One entry of ``violations``."""
        return {
            "kind": self.kind,
            "code": self.code,
            "summary": self.summary,
            "remedy": self.remedy,
            "task": self.task,
            "count": self.count,
        }


def who_json(who: Who) -> dict[str, Any]:
    """Whom a record belongs to."""
    return {
        "team": who.team,
        "owner": who.owner,
        "cluster": who.cluster,
        "model_id": who.model_id,
        "tags": list(who.tags),
    }


def finite(value: float | None) -> float | None:
    """``value``, or None where it is not a finite number: JSON has no word for it."""
    return None if value is None or not math.isfinite(value) else value


def method_of(record: TaskRecord) -> str:
    """The method version of a segment's figures: the measurement's own, where there is one."""
    return record.measurement.method if record.measurement else record.method


def number_in(answer: Mapping[str, Any], name: str) -> float | None:
    """The finite number of that name, or None: a recorded answer may hold anything."""
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return finite(float(value))
