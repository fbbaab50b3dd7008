"""Random decision requests, and how to ask about their answers: what the laws of the controller are tried on."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tao_flows.controller.decide import decide
from tao_flows.controller.parse import parse_request

NOW = datetime(2026, 3, 2, 8, tzinfo=timezone.utc)
law = settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

COARSE = (0.0, 1.0, 2.0, 5.0)
coarse = st.sampled_from(COARSE)
wide = st.floats(0, 1e6, allow_subnormal=False)
amounts = coarse | wide


class Bytes:
    """Choices read off one string of bytes: a whole request is one draw, which is what makes thousands quick."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)

    def pick(self, *options: Any) -> Any:
        return options[next(self.data, 0) % len(options)]

    def amount(self) -> float:
        """Half of the time one of few values, so that ties are common; else an ugly one up to a million."""
        if self.pick(True, False):
            return float(self.pick(*COARSE))
        return (next(self.data, 0) * 256 + next(self.data, 0)) ** 2 * 2.37e-4

    def seldom(self) -> bool:
        return next(self.data, 0) % 12 == 11


UNKNOWNS = ("energy_j", "runtime_s", "queue_wait_s", "dispatch_energy_j", "pue", "price_per_h", "power_w")
SIGNALS = ("carbon_g_per_kwh", "price_per_kwh")


def after(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat()


def a_pool(choose: Bytes, pool_id: str, unknowns: set[str]) -> dict[str, Any]:
    mean, p50 = choose.amount(), choose.pick(30.0, 100.0, choose.amount())
    places = [choose.pick(0, 1, 2) for _ in range(4)]
    pool = {
        "pool_id": pool_id,
        "zone": choose.pick("DE", "FR"),
        "online": not choose.seldom(),
        "capacity_free": 1,
        "capacity_by_slot": choose.pick(
            None, None, places, {after(at_s): free for at_s, free in zip((0, 55, 100, 311), places, strict=True)}
        ),
        "energy_j": {"mean": mean, "low": mean / 2, "high": mean * 2},
        "runtime_s": {"p50": p50, "p95": p50 * 2},
        "queue_wait_s": choose.pick(*COARSE),
        "dispatch_energy_j": choose.pick(*COARSE),
        "pue": choose.pick(1.0, 1.5),
        "price_per_h": choose.amount(),
        "power_w": choose.pick(*COARSE),
        "power_cap_w": choose.pick(None, None, 2.0),
        "trusted": not choose.seldom(),
    }
    for name in UNKNOWNS:
        if name in unknowns and choose.pick(False, False, True):
            pool[name] = None
    return pool


def some_steps(choose: Bytes, unknowns: bool, least: float) -> list[dict[str, Any]]:
    at_s, steps = (choose.pick(-90, -40, -20, 40) if unknowns else -50), []
    for _ in range(choose.pick(1, 2, 3, 5, 8)):
        value = None if unknowns and choose.seldom() else choose.amount() + choose.pick(0.0, 0.0, least)
        steps.append({"start": after(at_s), "value": value})
        at_s += 1 + choose.pick(*range(120))
    return steps


def a_budget(choose: Bytes, name: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "limit_j": 0.001 + choose.pick(1.0, 1.0, 1e6) * choose.amount(),
        "spent_j": choose.amount(),
        "reserved_j": choose.pick(*COARSE),
        "ceiling_j": 0.5 + choose.amount() if choose.seldom() else None,
    }


def build_request(data: bytes, with_unknowns: bool, most: int, least_price: float) -> dict[str, Any]:
    choose = Bytes(data)
    names = sorted("abcdefgh"[: 1 + choose.pick(*range(most))], key=lambda _: next(choose.data, 0))
    deadline_s = choose.pick(None, None, None, 600_000, 600_000, 900, 900, 60, -60)
    request: dict[str, Any] = {
        "now": NOW.isoformat(),
        "task": {
            "key": "t",
            "home_pool": choose.pick(*names),
            "reroutable": not choose.seldom(),
            "deferrable": choose.pick(True, True, True, True, False),
            "ready_at": after(-choose.pick(0, 0, 90.5)),
            "deadline": None if deadline_s is None else after(deadline_s),
            "max_defer_s": choose.pick(1500.0, 0.0, 5.0, 250.0, 700.0, 1500.0, 1e18),
            "allowed_zones": ["DE"] if choose.seldom() else None,
        },
        "on_infeasible": choose.pick("run", "deny"),
        "previous_regime": choose.pick(None, "standard", "transition", "inversion"),
        "slot_s": choose.pick(60.0, 60.0, 37.5, 100.0, 300.0),
        "min_dwell_s": choose.pick(0.0, 0.0, 60.0, 130.0),
        "engine_latency_s": choose.pick(0.0, 0.0, 3.25),
        "safety_s": choose.pick(0.0, 10.0),
        "signal_meta": {
            "issued_at": after(-60),
            "max_age_s": 59 if with_unknowns and choose.seldom() else choose.pick(None, 60, 3600),
            "margin": choose.pick(None, 0.0, 0.0, 0.25, 3.0),
            "follow": not choose.seldom(),
        },
    }
    budgets = [a_budget(choose, name) for name in choose.pick((), (), (None,), ("x", "y"), ("y", None, "x"))]
    if budgets:
        request["budget"] = budgets if len(budgets) > 1 else budgets[0]
    weights = {name: choose.pick(*COARSE) for name in ("energy", "carbon", "cost", "latency")}
    if choose.pick(True, False) and any(weights.values()):
        request["preference"] = weights
    unknowns = {name for name in UNKNOWNS if with_unknowns and choose.pick(False, False, False, True)}
    hazy = with_unknowns and choose.pick(True, False)
    request["pools"] = [a_pool(choose, name, unknowns) for name in names]
    request["signals"] = {
        name: {zone: some_steps(choose, hazy, least) for zone in ("DE", "FR")}
        for name, least in zip(SIGNALS, (0.0, least_price), strict=True)
        if name == SIGNALS[0] or choose.pick(False, True)
    }
    return request


def requests(*, unknowns: bool = False, most: int = 6, least_price: float = 0.0) -> st.SearchStrategy[dict[str, Any]]:
    """Requests whose prices are not below ``least_price``. With ``unknowns``, anything that may be null may be."""
    return st.binary(min_size=420, max_size=420).map(lambda data: build_request(data, unknowns, most, least_price))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    return decide(parse_request(request)).to_json()


def known(candidate: dict[str, Any]) -> list[float]:
    return [value for value in candidate["objectives"].values() if value is not None]


def better(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = list(zip(known(one), known(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def of(decision: dict[str, Any], pool_id: str | None, start: str | None = None) -> dict[str, Any]:
    """The candidate of a pool, that starts now if it is not said when."""
    pool = [c for c in decision["candidates"] if c["pool"] == pool_id]
    return next(c for c in pool if (c["start"] == start if start else seconds_of(c["start"]) == 0))


def seconds_of(moment: str) -> float:
    """Seconds from now."""
    return (datetime.fromisoformat(moment.replace("Z", "+00:00")) - NOW).total_seconds()
