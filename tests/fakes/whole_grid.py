"""A plain search of every pool and start, by the formulas alone: what the controller's choices are held to."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from decide_requests import after, better, seconds_of

KWH = 3.6e6


def latest_s(request: dict[str, Any], pool: dict[str, Any]) -> float:
    """The latest start in a pool, in seconds from now."""
    task = request["task"]
    latest = seconds_of(task["ready_at"]) + task["max_defer_s"]
    if task["deadline"] is None:
        return latest
    home = next(p for p in request["pools"] if p["pool_id"] == task["home_pool"])
    keep_s = max(p["queue_wait_s"] + p["runtime_s"]["p95"] for p in (pool, home))
    return min(latest, seconds_of(task["deadline"]) - keep_s - request["engine_latency_s"] - request["safety_s"])


def closed(request: dict[str, Any], pool: dict[str, Any], start_s: float) -> bool:
    """Whether the slot in which a start lies is named, and has no place left."""
    slots = pool["capacity_by_slot"] or {}
    if isinstance(slots, list):
        slots = {after(number * request["slot_s"]): free for number, free in enumerate(slots)}
    return any(free == 0 and 0 <= start_s - seconds_of(start) < request["slot_s"] for start, free in slots.items())


def whole_grid(request: dict[str, Any], pool: dict[str, Any]) -> list[float]:
    """Every start that a pool may have, in seconds from now; of those past the last change of a signal only a few."""
    meta, steps = request["signal_meta"], [s for zones in request["signals"].values() for s in zones[pool["zone"]]]
    settled_s = max(0.0, *(seconds_of(step["start"]) for step in steps)) + 600 + 6 * request["slot_s"]
    starts, number = [0.0], 1
    while request["task"]["deferrable"] and meta["follow"]:
        start_s = number * request["slot_s"]
        if start_s > latest_s(request, pool) + 1e-9 or start_s > settled_s:
            break
        if start_s >= request["min_dwell_s"] and not closed(request, pool, start_s):
            starts.append(start_s)
        number += 1
    return starts


def mean(steps: list[dict[str, Any]], begin_s: float, length_s: float, margin: float) -> float:
    """Of a signal over a run, to the last digit."""
    begin_us, length_us = round(begin_s * 1e6), round(length_s * 1e6)
    edges = [round(seconds_of(step["start"]) * 1e6) for step in steps] + [10**30]
    values = [step["value"] + margin * abs(step["value"]) for step in steps]
    if length_us == 0:
        return next(v for v, a, b in zip(values, edges, edges[1:], strict=False) if a <= begin_us < b)
    parts = zip(values, edges, edges[1:], strict=False)
    end_us = begin_us + length_us
    area = sum(Fraction(v) * max(min(b, end_us) - max(a, begin_us), 0) for v, a, b in parts)
    return float(area / length_us)


def objectives(request: dict[str, Any], pool: dict[str, Any], start_s: float) -> dict[str, float | None]:
    """What a start in a pool would cost, by the formulas alone."""
    margin = (request["signal_meta"]["margin"] or 0.0) if start_s else 0.0
    energy_j = pool["pue"] * (pool["energy_j"]["mean"] + pool["dispatch_energy_j"])
    wait_s, length_s = request["engine_latency_s"] + pool["queue_wait_s"], pool["runtime_s"]["p50"]
    per_kwh = {
        name: mean(zones[pool["zone"]], start_s + wait_s, length_s, margin)
        for name, zones in request["signals"].items()
    }
    power = energy_j / KWH * per_kwh["price_per_kwh"] if "price_per_kwh" in per_kwh else 0.0
    return {
        "energy_j": energy_j,
        "carbon_g": energy_j / KWH * per_kwh["carbon_g_per_kwh"] if "carbon_g_per_kwh" in per_kwh else None,
        "cost": pool["price_per_h"] * length_s / 3600 + power,
        "finish_s": start_s + wait_s + length_s,
    }


def every_candidate(request: dict[str, Any], decision: dict[str, Any]) -> list[dict[str, Any]]:
    """All of the grid, of the pools that are feasible."""
    feasible = {c["pool"] for c in decision["candidates"] if c["feasible"]}
    return [
        {"pool": pool["pool_id"], "start_s": start_s, "objectives": objectives(request, pool, start_s)}
        for pool in request["pools"]
        if pool["pool_id"] in feasible
        for start_s in whole_grid(request, pool)
    ]


def front(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for c in candidates if not any(better(other, c) for other in candidates)]


def as_set(candidates: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    return {
        (c["pool"], c.get("start_s", seconds_of(c["start"]) if "start" in c else None), *c["objectives"].values())
        for c in candidates
    }
