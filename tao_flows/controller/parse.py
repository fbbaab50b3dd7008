"""JSON to a DecisionRequest, strictly: the one place where the values of a request are ruled on."""

from __future__ import annotations

import math
from datetime import datetime
from typing import cast, get_args

from tao_flows.controller.fields import (
    Fields,
    as_count,
    as_moment,
    as_object,
    as_text,
    did_you_mean,
    items,
    refuse,
    shown,
)
from tao_flows.controller.model import (
    Budget,
    DecisionRequest,
    OnInfeasible,
    Pool,
    PredictedEnergy,
    PredictedRuntime,
    Regime,
    Signal,
    SignalMeta,
    Signals,
    Step,
    Task,
    Weights,
    time_after,
)

_ABSOLUTE_ZERO_C = -273.15
_ANY = -math.inf
_MOST_KEPT = 64
"""Lists of steps that a memo holds; beyond it all are read anew."""
_REQUEST = (
    "now", "previous_regime", "task", "budget", "pools", "signals", "signal_meta", "slot_s", "engine_latency_s",
    "safety_s", "min_dwell_s", "preference", "on_infeasible",
)  # fmt: skip
_TASK = (
    "key", "home_pool", "ready_at", "deadline", "max_defer_s", "deferrable", "reroutable", "allowed_zones", "requires",
    "allowed_orgs",
)  # fmt: skip
_POOL = (
    "pool_id", "zone", "online", "capacity_free", "capacity_by_slot", "capabilities", "trusted", "energy_j",
    "runtime_s", "queue_wait_s", "dispatch_energy_j", "pue", "price_per_h", "power_w", "power_cap_w", "temperature_c",
    "temperature_limit_c", "org",
)  # fmt: skip


class StepsMemo:
    """Steps that were read before, by the very list they stand in: for decisions that share their signals.

    A list that was read is not to be changed. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._read: dict[tuple[int, str], tuple[object, tuple[Step, ...]]] = {}

    def of(self, value: object, path: str, unit: str, least: float) -> tuple[Step, ...]:
        """The steps of ``value``, checked once."""
        kept = self._read.get((id(value), path))
        if kept is not None and kept[0] is value:
            return kept[1]
        steps = _steps(value, path, unit, least)
        if len(self._read) >= _MOST_KEPT:
            self._read = {}
        # The list is held, so that no other comes to have its identity.
        self._read[id(value), path] = (value, steps)
        return steps


def parse_request(request: object, memo: StepsMemo | None = None) -> DecisionRequest:
    """A request in the form of the CLI contract, checked field by field.

    Null stands for unknown in ``zone``, ``capacity_free``, ``energy_j``, ``runtime_s``, ``queue_wait_s``,
    ``dispatch_energy_j``, ``pue``, ``price_per_h``, ``power_w``, a signal's value and the fields of ``signal_meta``
    but ``follow``; elsewhere a null optional field counts as absent. A preference that names some weights sets the
    others to 0. ``budget`` is one budget or a list of them, each with a ``name`` of its own.

    Args:
        request: what to read.
        memo: of requests before, whose signals may be in this one too.

    Raises:
        InputError: a field is missing, unknown, of the wrong type, out of range, not finite, or contradicts another;
            the summary begins with its path.
    """
    memo = memo or StepsMemo()
    fields = Fields(request, "", _REQUEST)
    now = fields.moment("now")
    slot_s = fields.positive("slot_s", "seconds", default=300.0)
    pools = _pools(fields, now, slot_s)
    return DecisionRequest(
        now=now,
        task=_task(fields, now, pools),
        pools=pools,
        previous_regime=cast("Regime | None", _one_of(fields, "previous_regime", get_args(Regime))),
        budgets=_budgets(fields),
        signals=_signals(fields, memo),
        signal_meta=_signal_meta(fields, now),
        slot_s=slot_s,
        engine_latency_s=fields.number("engine_latency_s", "seconds", default=0.0),
        safety_s=fields.number("safety_s", "seconds", default=0.0),
        min_dwell_s=fields.number("min_dwell_s", "seconds", default=0.0),
        preference=_preference(fields),
        on_infeasible=cast("OnInfeasible", _one_of(fields, "on_infeasible", get_args(OnInfeasible)) or "run"),
    )


def _one_of(fields: Fields, name: str, known: tuple[str, ...]) -> str | None:
    value = fields.optional(name)
    if value is not None and value not in known:
        refuse(fields.at(name), f"{shown(value)} is not one of {', '.join(known)}", did_you_mean(value, known))
    return None if value is None else str(value)


def _task(request: Fields, now: datetime, pools: tuple[Pool, ...]) -> Task:
    fields = Fields(request.raw("task"), "task", _TASK)
    home_pool = fields.text("home_pool")
    pool_ids = [pool.pool_id for pool in pools]
    if home_pool not in pool_ids:
        refuse("task.home_pool", f"{shown(home_pool)} is not among the pools", did_you_mean(home_pool, pool_ids))
    ready_at = fields.optional_moment("ready_at") or now
    if ready_at > now:
        refuse("task.ready_at", "lies after now", "decide once the task is ready, or leave ready_at out")
    return Task(
        key=fields.text("key"),
        home_pool=home_pool,
        ready_at=ready_at,
        deadline=fields.optional_moment("deadline"),
        max_defer_s=fields.number("max_defer_s", "seconds", default=0.0),
        deferrable=fields.flag("deferrable", default=False),
        reroutable=fields.flag("reroutable", default=False),
        allowed_zones=fields.texts("allowed_zones"),
        requires=fields.texts("requires") or (),
        allowed_orgs=fields.texts("allowed_orgs") or (),
    )


def _budgets(request: Fields) -> tuple[Budget, ...]:
    value = request.optional("budget")
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        return (_budget(value, "budget"),)
    budgets: dict[str | None, Budget] = {}
    for item, path in items(value, "budget", "budgets"):
        budget = _budget(item, path)
        if budget.name in budgets:
            problem = "a second budget has no name" if budget.name is None else f"{shown(budget.name)} is there twice"
            refuse(f"{path}.name", problem, "give each budget its own name")
        budgets[budget.name] = budget
    return tuple(sorted(budgets.values(), key=lambda budget: budget.name or ""))


def _budget(value: object, path: str) -> Budget:
    fields = Fields(value, path, ("name", "limit_j", "spent_j", "reserved_j", "ceiling_j", "window_s"))
    return Budget(
        limit_j=fields.positive("limit_j", "joules"),
        spent_j=fields.number("spent_j", "joules"),
        reserved_j=fields.number("reserved_j", "joules"),
        ceiling_j=fields.optional_positive("ceiling_j", "joules"),
        name=None if fields.optional("name") is None else fields.text("name"),
        window_s=fields.optional_positive("window_s", "seconds"),
    )


def _pools(request: Fields, now: datetime, slot_s: float) -> tuple[Pool, ...]:
    pools: dict[str, Pool] = {}
    for value, path in items(request.raw("pools"), "pools", "pools"):
        pool = _pool(Fields(value, path, _POOL), now, slot_s)
        if pool.pool_id in pools:
            refuse(f"{path}.pool_id", f"{shown(pool.pool_id)} is there twice", "give each pool its own id")
        pools[pool.pool_id] = pool
    if not pools:
        refuse("pools", "the list is empty", "give at least the home pool")
    return tuple(pools.values())


def _pool(fields: Fields, now: datetime, slot_s: float) -> Pool:
    zone, capacity_free = fields.raw("zone"), fields.raw("capacity_free")
    return Pool(
        pool_id=fields.text("pool_id"),
        zone=None if zone is None else as_text(zone, fields.at("zone")),
        online=fields.flag("online"),
        capacity_free=None if capacity_free is None else as_count(capacity_free, fields.at("capacity_free")),
        energy_j=_energy(fields),
        runtime_s=_runtime(fields),
        queue_wait_s=fields.number_or_unknown("queue_wait_s", "seconds"),
        dispatch_energy_j=fields.number_or_unknown("dispatch_energy_j", "joules"),
        pue=fields.number_or_unknown("pue", "a ratio", least=1.0),
        price_per_h=fields.number_or_unknown("price_per_h", "a price", least=_ANY),
        power_w=fields.number_or_unknown("power_w", "watts"),
        power_cap_w=fields.optional_positive("power_cap_w", "watts"),
        temperature_c=fields.optional_number("temperature_c", "degrees Celsius", least=_ABSOLUTE_ZERO_C),
        temperature_limit_c=fields.optional_number("temperature_limit_c", "degrees Celsius", least=_ABSOLUTE_ZERO_C),
        capacity_by_slot=_capacity_by_slot(fields, now, slot_s),
        capabilities=fields.texts("capabilities") or (),
        trusted=fields.flag("trusted", default=True),
        org=None if fields.optional("org") is None else fields.text("org"),
    )


def _energy(pool: Fields) -> PredictedEnergy | None:
    value = pool.raw("energy_j")
    if value is None:
        return None
    fields = Fields(value, pool.at("energy_j"), ("mean", "low", "high"))
    energy = PredictedEnergy(*(fields.number(name, "joules") for name in ("mean", "low", "high")))
    if energy.low > energy.mean:
        refuse(fields.at("low"), f"{energy.low:g} is above the mean, {energy.mean:g}", "give low <= mean <= high")
    if energy.high < energy.mean:
        refuse(fields.at("high"), f"{energy.high:g} is below the mean, {energy.mean:g}", "give low <= mean <= high")
    return energy


def _runtime(pool: Fields) -> PredictedRuntime | None:
    value = pool.raw("runtime_s")
    if value is None:
        return None
    fields = Fields(value, pool.at("runtime_s"), ("p50", "p95"))
    runtime = PredictedRuntime(fields.number("p50", "seconds"), fields.number("p95", "seconds"))
    if runtime.p95 < runtime.p50:
        refuse(fields.at("p95"), f"{runtime.p95:g} is below the median, {runtime.p50:g}", "give p50 <= p95")
    return runtime


def _capacity_by_slot(pool: Fields, now: datetime, slot_s: float) -> tuple[tuple[datetime, int], ...]:
    """Free places by slot: a list whose first slot starts now, or an object of counts by start time."""
    value, path = pool.optional("capacity_by_slot"), pool.at("capacity_by_slot")
    if value is None:
        return ()
    if isinstance(value, (list, tuple)):
        counts = enumerate(items(value, path, "counts"))
        slots = [(time_after(now, index * slot_s), as_count(item, where)) for index, (item, where) in counts]
    else:
        remedy = "give a list of counts, one a slot from now, or an object of counts by start time"
        by_start = as_object(value, path, remedy).items()
        slots = [(as_moment(start, path), as_count(item, f"{path}.{start}")) for start, item in by_start]
    if len({start for start, _ in slots}) < len(slots):
        refuse(path, "two slots start at the same time", "give each slot once")
    return tuple(sorted(slots))


def _signals(request: Fields, memo: StepsMemo) -> Signals:
    value = request.optional("signals")
    if value is None:
        return Signals()
    fields = Fields(value, "signals", ("carbon_g_per_kwh", "price_per_kwh"))
    return Signals(
        carbon_g_per_kwh=_signal(fields, "carbon_g_per_kwh", "grams a kWh", 0.0, memo),
        price_per_kwh=_signal(fields, "price_per_kwh", "a price a kWh", _ANY, memo),
    )


def _signal(signals: Fields, name: str, unit: str, least: float, memo: StepsMemo) -> Signal | None:
    value, path = signals.optional(name), signals.at(name)
    if value is None:
        return None
    zones = as_object(value, path, 'give an object by zone: {"DE": [{"start": ..., "value": ...}]}')
    return {as_text(zone, path): memo.of(steps, f"{path}.{zone}", unit, least) for zone, steps in zones.items()}


def _steps(value: object, path: str, unit: str, least: float) -> tuple[Step, ...]:
    steps: list[Step] = []
    for item, item_path in items(value, path, "steps with start and value"):
        fields = Fields(item, item_path, ("start", "value"))
        step = Step(fields.moment("start"), fields.number_or_unknown("value", unit, least=least))
        if steps and step.start <= steps[-1].start:
            refuse(fields.at("start"), "is not after the step before it", "give the steps in order of time, each once")
        steps.append(step)
    return tuple(steps)


def _signal_meta(request: Fields, now: datetime) -> SignalMeta | None:
    value = request.optional("signal_meta")
    if value is None:
        return None
    fields = Fields(value, "signal_meta", ("issued_at", "max_age_s", "margin", "follow"))
    for name in ("issued_at", "max_age_s", "margin"):
        fields.raw(name)
    issued_at = fields.optional_moment("issued_at")
    if issued_at is not None and issued_at > now:
        refuse("signal_meta.issued_at", "lies after now", "give the time the signals were issued, or null if unknown")
    return SignalMeta(
        issued_at=issued_at,
        max_age_s=fields.number_or_unknown("max_age_s", "seconds"),
        margin=fields.number_or_unknown("margin", "a share"),
        follow=fields.flag("follow", default=True),
    )


def _preference(request: Fields) -> Weights | None:
    value = request.optional("preference")
    if value is None:
        return None
    names = ("energy", "carbon", "cost", "latency")
    fields = Fields(value, "preference", names)
    weights = [fields.number(name, "a weight", default=0.0) for name in names]
    if not any(weights):
        refuse("preference", "no weight is above 0", "give at least one of energy, carbon, cost, latency a weight > 0")
    return Weights(*weights)
