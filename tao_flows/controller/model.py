"""What goes into a decision and what comes out: frozen records, each with the JSON form of the CLI contract.

Times are aware and in UTC. ``None`` means unknown, never zero. Requests come from
:func:`tao_flows.controller.parse.parse_request`, which is where every rule about their values is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, NamedTuple

from tao_flows.units import US_PER_S

Action = Literal["run", "defer", "reroute", "deny"]
Regime = Literal["standard", "transition", "inversion"]
OnInfeasible = Literal["run", "deny"]
Signal = Mapping[str, "tuple[Step, ...]"]
"""By zone, the steps of a carbon intensity or a price, in order of time."""

MICROSECOND: Final = timedelta(microseconds=1)
"""The resolution of every time here."""


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, ending in ``Z``."""
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def seconds_between(earlier: datetime, later: datetime) -> float:
    """Seconds from ``earlier`` to ``later``; negative if ``later`` comes first."""
    return (later - earlier).total_seconds()


def us_between(earlier: datetime, later: datetime) -> int:
    """Microseconds from ``earlier`` to ``later``; negative if that comes first."""
    return (later - earlier) // MICROSECOND


def time_after(moment: datetime, delay_s: float) -> datetime:
    """``moment`` plus seconds, held within the years a calendar has (1 to 9999)."""
    first = datetime.min.replace(tzinfo=timezone.utc)
    last = datetime.max.replace(tzinfo=timezone.utc)
    if delay_s >= seconds_between(moment, last):
        return last
    return first if delay_s <= seconds_between(moment, first) else moment + timedelta(seconds=delay_s)


@dataclass(frozen=True, slots=True)
class PredictedEnergy:
    """Joules the task itself would take at the IT equipment, before PUE."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PredictedRuntime:
    """Seconds the task would run, without waiting."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Where the task could run, as it stands now."""

    pool_id: str
    zone: str | None
    online: bool
    capacity_free: int | None
    energy_j: PredictedEnergy | None
    runtime_s: PredictedRuntime | None
    queue_wait_s: float | None
    dispatch_energy_j: float | None
    pue: float | None
    price_per_h: float | None
    power_w: float | None
    """The task's draw there."""
    power_cap_w: float | None = None
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    capacity_by_slot: tuple[tuple[datetime, int], ...] = ()
    capabilities: tuple[str, ...] = ()
    trusted: bool = True
    org: str | None = None
    """The other organisation whose pool it is, whose claims its figures are; None: it is ours."""

    @property
    def predicted_s(self) -> float | None:
        """Seconds it would run there, by the median."""
        return None if self.runtime_s is None else self.runtime_s.p50

    @property
    def predicted_j(self) -> float | None:
        """IT joules of sending the task there and running it: what is charged to a budget. PUE is not in it."""
        if self.energy_j is None or self.dispatch_energy_j is None:
            return None
        return self.energy_j.mean + self.dispatch_energy_j


@dataclass(frozen=True, slots=True)
class Task:
    """The task to be placed."""

    key: str
    home_pool: str
    ready_at: datetime
    deadline: datetime | None = None
    """A finish time."""
    max_defer_s: float = 0.0
    deferrable: bool = False
    reroutable: bool = False
    allowed_zones: tuple[str, ...] | None = None
    """None allows every zone; an empty tuple allows none."""
    requires: tuple[str, ...] = ()
    allowed_orgs: tuple[str, ...] = ()
    """Other organisations that may be given the work; by default none."""


@dataclass(frozen=True, slots=True)
class Budget:
    """IT joules allowed in the present window, and what is gone of them."""

    limit_j: float
    spent_j: float
    reserved_j: float
    ceiling_j: float | None = None
    name: str | None = None
    window_s: float | None = None
    """The length of a rolling window; None: of whatever runs, all counts."""

    def charged_j(self, predicted_j: float, runtime_s: float | None) -> float:
        """What a run would be charged with: no rolling window ever holds more of it than its own length."""
        if self.window_s is None or runtime_s is None or runtime_s <= self.window_s:
            return predicted_j
        return predicted_j * (self.window_s / runtime_s)

    @property
    def in_use_j(self) -> float:
        """Joules spent or reserved."""
        return self.spent_j + self.reserved_j


class Step(NamedTuple):
    """One value of a signal, which holds until the next step starts."""

    start: datetime
    value: float | None


@dataclass(frozen=True, slots=True)
class Signals:
    """Carbon intensity and electricity price by zone; None where there is none at all."""

    carbon_g_per_kwh: Signal | None = None
    price_per_kwh: Signal | None = None


@dataclass(frozen=True, slots=True)
class SignalMeta:
    """How old the signals are, and how far to trust their forecast."""

    issued_at: datetime | None
    max_age_s: float | None
    margin: float | None
    """Share by which a forecast may be too low: a later start is weighed at ``value + margin * |value|``."""
    follow: bool = True
    """False if following these forecasts has not paid of late: then nothing waits for them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts for how much. Only the ratios between them matter."""

    energy: float
    carbon: float
    cost: float
    latency: float


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """Everything a decision depends on."""

    now: datetime
    task: Task
    pools: tuple[Pool, ...]
    previous_regime: Regime | None = None
    budgets: tuple[Budget, ...] = ()
    """Every budget the task is under, each with a name of its own."""
    signals: Signals = Signals()
    signal_meta: SignalMeta | None = None
    slot_s: float = 300.0
    engine_latency_s: float = 0.0
    safety_s: float = 0.0
    min_dwell_s: float = 0.0
    preference: Weights | None = None
    on_infeasible: OnInfeasible = "run"

    @property
    def home(self) -> Pool:
        """The pool the task belongs to."""
        return next(pool for pool in self.pools if pool.pool_id == self.task.home_pool)

    @property
    def slot_us(self) -> int:
        """Microseconds from one start on the grid to the next; as fine as the times of a request, no finer."""
        return max(round(self.slot_s * US_PER_S), 1)

    def to_json(self) -> dict[str, Any]:
        """The form ``parse_request`` reads back to an equal request."""
        answer: dict[str, Any] = _json(asdict(self))
        budgets = answer.pop("budgets")
        answer["budget"] = budgets if len(budgets) > 1 else next(iter(budgets), None)
        for pool, record in zip(answer["pools"], self.pools, strict=True):
            pool["capacity_by_slot"] = {iso(start): free for start, free in record.capacity_by_slot}
        for name, signal in answer["signals"].items():
            if signal is not None:
                steps = getattr(self.signals, name)
                answer["signals"][name] = {
                    zone: [{"start": iso(step.start), "value": step.value} for step in steps[zone]] for zone in steps
                }
        return answer


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_json(item) for item in value]
    return value


class Objectives(NamedTuple):
    """What a candidate would cost; less is better in each. None everywhere if unknown for any candidate.

    Energy is at the meter of the building: joules of the task and of sending it there, times PUE.
    """

    energy_j: float | None
    carbon_g: float | None
    cost: float | None
    finish_s: float | None
    """Expected finish, in seconds from now."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One condition and how a candidate stands to it.

    ``value`` is None where it is unknown; ``slack`` is ``limit - value`` for numbers, else None.
    """

    id: str
    value: bool | str | float | tuple[str, ...] | None
    limit: bool | str | float | tuple[str, ...]
    ok: bool
    hard: bool
    unit: str | None = None
    slack: float | None = None
    relative_violation: float = 0.0
    """By how much a failed soft constraint is exceeded, relative to its limit."""

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "id": self.id,
            "value": _json(self.value),
            "limit": _json(self.limit),
            "unit": self.unit,
            "slack": self.slack,
            "ok": self.ok,
        }


def candidate_id(pool: str, start: datetime) -> str:
    """How a candidate is named: ``pool@start``."""
    return f"{pool}@{iso(start)}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool and a start, weighed."""

    pool: str
    start: datetime
    objectives: Objectives
    constraints: tuple[Constraint, ...]
    penalty: float | None
    utilisation: float | None
    score: float | None
    pareto_rank: int | None = None
    """0 is the front; None for an infeasible candidate."""
    dominated_by: tuple[str, ...] = ()
    """Candidates of the front that are no worse in any objective and better in one; the best few, best first."""

    @property
    def id(self) -> str:
        """``pool@start``."""
        return candidate_id(self.pool, self.start)

    @property
    def failed(self) -> tuple[Constraint, ...]:
        """The constraints it does not meet."""
        return tuple(constraint for constraint in self.constraints if not constraint.ok)

    @property
    def feasible(self) -> bool:
        """Whether it meets every constraint."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "pool": self.pool,
            "start": iso(self.start),
            "objectives": self.objectives._asdict(),
            "constraints": [constraint.to_json() for constraint in self.constraints],
            "feasible": self.feasible,
            "pareto_rank": self.pareto_rank,
            "dominated_by": list(self.dominated_by),
            "score": self.score,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with the task, without the reasons.

    When denied, ``pool`` and ``start`` are None, and the rest is of the home pool started now.
    """

    action: Action
    pool: str | None
    start: datetime | None
    score: float | None
    penalty: float | None
    utilisation: float | None
    regime: Regime | None
    budget: str | None
    """Name of the budget that binds it most; None if that has no name, or there is none."""
    latest_start: datetime


@dataclass(frozen=True, slots=True)
class Violation:
    """A constraint that a pool does not meet, where that decided or was accepted."""

    pool: str
    constraint: Constraint

    def to_json(self) -> dict[str, Any]:
        """The constraint's form, with the pool."""
        return {"pool": self.pool, **self.constraint.to_json()}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the task, and everything that was weighed.

    When denied, ``pool`` and ``start`` are None, and ``penalty``, ``utilisation``, ``regime`` and
    ``latest_start`` are those of the home pool started now.
    """

    action: Action
    pool: str | None
    start: datetime | None
    reason: str
    penalty: float | None
    utilisation: float | None
    regime: Regime | None
    budget: str | None
    """Name of the budget that penalty, utilisation and regime are of: the one that binds most."""
    latest_start: datetime
    weights: Mapping[str, float]
    """As used: objectives that are unknown have no entry."""
    candidates: tuple[Candidate, ...]
    """Best first."""
    violations: tuple[Violation, ...]

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {
            "action": self.action,
            "pool": self.pool,
            "start": None if self.start is None else iso(self.start),
            "reason": self.reason,
            "penalty": self.penalty,
            "utilisation": self.utilisation,
            "regime": self.regime,
            "budget": self.budget,
            "latest_start": iso(self.latest_start),
            "weights": dict(self.weights),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "violations": [violation.to_json() for violation in self.violations],
        }
