"""How long the controller's choice takes, beside a plain argmin over the same grid of pools and starts.

Requests are random but for their size: each pool with its own energy, runtime, queue and price, carbon and price
signals of a day's wave with noise. ``README.md`` says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

from tao_flows.controller.choose import choose
from tao_flows.controller.decide import decide
from tao_flows.controller.model import DecisionRequest, Pool, Step
from tao_flows.controller.parse import parse_request
from tao_flows.units import S_PER_H, kwh_from_j

NOW: Final = datetime(2026, 3, 2, 8, tzinfo=timezone.utc)
SLOT_S: Final = 300
REQUESTS: Final = 6
"""Of each size; the median is over all of their rounds."""
HOUR: Final = 12
"""Slots of five minutes."""


class Size(NamedTuple):
    """What a request is made of."""

    name: str
    pools: int
    slots: int
    zones: int
    step: int
    """Slots from one value of a signal to the next."""
    spread: float = 1.0
    """How much pools differ; 0 for not at all but in their zone."""


SIZES: Final = (
    Size("10 pools x 48 slots, 5 zones, hourly signals", 10, 48, 5, HOUR),
    Size("10 pools x 48 slots, 5 zones, five-minute signals", 10, 48, 5, 1),
    Size("10 pools x 48 slots, a zone each, five-minute signals", 10, 48, 10, 1),
    Size("100 pools x 288 slots, 20 zones, hourly signals", 100, 288, 20, HOUR),
    Size("100 pools x 288 slots, 20 zones, five-minute signals", 100, 288, 20, 1),
    Size("100 pools x 288 slots, a zone each, five-minute signals", 100, 288, 100, 1),
    Size("100 equal pools x 288 slots, 20 zones, hourly signals", 100, 288, 20, HOUR, spread=0.0),
)
WEIGHTS: Final = {"energy": 0.4, "carbon": 0.3, "cost": 0.2, "latency": 0.1}


def signal(rng: random.Random, size: Size, level: float) -> list[dict[str, Any]]:
    """A day's wave with noise, twice as far as the last start."""
    phase, noise = rng.uniform(0, math.tau), 0.0
    steps = []
    for number in range(-1, 2 * size.slots, size.step):
        noise = 0.9 * noise + rng.gauss(0, 0.05)
        wave = 1 + 0.4 * math.sin(math.tau * number / 288 + phase) + noise
        start = NOW + timedelta(seconds=number * SLOT_S)
        steps.append({"start": start.isoformat(), "value": round(level * max(wave, 0.01), 3)})
    return steps


def request(rng: random.Random, size: Size) -> DecisionRequest:
    """A task that may wait over all of the slots, under a budget that is three quarters used."""
    spread = size.spread

    def pool(number: int) -> dict[str, Any]:
        mean_j = 1e6 * (1 + spread * rng.uniform(-0.5, 1))
        p50_s = 3600 * (1 + spread * rng.uniform(-0.5, 1))
        return {
            "pool_id": f"pool-{number:03}",
            "zone": f"zone-{number % size.zones}",
            "online": True,
            "capacity_free": 4,
            "energy_j": {"mean": mean_j, "low": mean_j * 0.8, "high": mean_j * 1.3},
            "runtime_s": {"p50": p50_s, "p95": p50_s * 1.3},
            "queue_wait_s": spread * rng.uniform(0, 600),
            "dispatch_energy_j": 1000.0,
            "pue": 1 + spread * rng.uniform(0, 0.6),
            "price_per_h": 1.0 + spread * rng.uniform(-0.5, 1),
            "power_w": mean_j / p50_s,
            "power_cap_w": 5000.0,
        }

    names = [f"zone-{number}" for number in range(size.zones)]
    return parse_request(
        {
            "now": NOW.isoformat(),
            "task": {
                "key": "t", "home_pool": f"pool-{rng.randrange(size.pools):03}", "max_defer_s": size.slots * SLOT_S,
                "deferrable": True, "reroutable": True,
            },
            "budget": {"limit_j": 1e8, "spent_j": 7e7, "reserved_j": 5e6},
            "pools": [pool(number) for number in range(size.pools)],
            "signals": {
                "carbon_g_per_kwh": {name: signal(rng, size, rng.uniform(100, 600)) for name in names},
                "price_per_kwh": {name: signal(rng, size, rng.uniform(0.05, 0.3)) for name in names},
            },
            "signal_meta": {"issued_at": NOW.isoformat(), "max_age_s": 3600, "margin": 0.05},
            "slot_s": SLOT_S,
        }
    )  # fmt: skip


def plain_argmin(asked: DecisionRequest) -> tuple[float, int, str]:
    """The least score over every pool and start, with nothing else: no constraints, no penalty, no exactness."""
    slots = int(asked.task.max_defer_s / asked.slot_s) + 1
    signals = (asked.signals.carbon_g_per_kwh or {}, asked.signals.price_per_kwh or {})
    integrals = {(n, zone): integral(steps) for n, zones in enumerate(signals) for zone, steps in zones.items()}

    def mean(table: tuple[list[float], list[float], list[float]], begin_s: float, length_s: float) -> float:
        starts, values, sums = table
        first, last = bisect_right(starts, begin_s) - 1, bisect_right(starts, begin_s + length_s) - 1
        after = sums[last] + values[last] * (begin_s + length_s - starts[last])
        return (after - sums[first] - values[first] * (begin_s - starts[first])) / length_s

    def objectives(pool: Pool, start_s: float) -> tuple[float, float, float, float]:
        wait_s, length_s = pool.queue_wait_s or 0.0, pool.runtime_s.p50 if pool.runtime_s else 0.0
        energy_j = (pool.pue or 1.0) * (pool.predicted_j or 0.0)
        begin_s, kwh = start_s + wait_s, kwh_from_j(energy_j)
        carbon_g = kwh * mean(integrals[0, pool.zone or ""], begin_s, length_s)
        power = kwh * mean(integrals[1, pool.zone or ""], begin_s, length_s)
        return energy_j, carbon_g, (pool.price_per_h or 0.0) * length_s / S_PER_H + power, begin_s + length_s

    reference = (*objectives(asked.home, 0.0)[:3], asked.task.max_defer_s)
    scale = [weight / unit for weight, unit in zip(WEIGHTS.values(), reference, strict=True)]
    return min(
        (sum(a * b for a, b in zip(scale, objectives(pool, slot * asked.slot_s), strict=True)), slot, pool.pool_id)
        for pool in asked.pools
        for slot in range(slots)
    )


def integral(steps: tuple[Step, ...]) -> tuple[list[float], list[float], list[float]]:
    """Of a signal its starts in seconds from now, its values, and its integral up to each start."""
    starts = [(step.start - NOW).total_seconds() for step in steps]
    values = [step.value or 0.0 for step in steps]
    sums = [0.0]
    for number in range(1, len(steps)):
        sums.append(sums[-1] + values[number - 1] * (starts[number] - starts[number - 1]))
    return starts, values, sums


def timed(work: Callable[[DecisionRequest], object], asked: DecisionRequest) -> float:
    """Milliseconds of this thread on a CPU: what else the machine does is not in them."""
    begun = time.thread_time()
    work(asked)
    return (time.thread_time() - begun) * 1e3


ROWS: Final[tuple[tuple[str, Callable[[DecisionRequest], object], int, int], ...]] = (
    ("choose", choose, REQUESTS, 5),
    ("plain argmin", plain_argmin, REQUESTS, 1),
    ("decide (choice and explanation)", decide, 1, 1),
)
"""Name, what is timed, on how many of the requests, and how often."""


def measure(seed: int) -> list[dict[str, Any]]:
    """By size and row the median and the slowest time in milliseconds, and the ratio of the medians to the choice's."""
    rng = random.Random(seed)
    results = []
    for size in SIZES:
        asked = [request(rng, size) for _ in range(REQUESTS)]
        times: dict[str, list[float]] = {row: [] for row, *_ in ROWS}
        for number, each in enumerate(asked):
            for row, work, requests, rounds in ROWS:
                if number < requests:
                    times[row] += [timed(work, each) for _ in range(rounds)]
        medians = {row: statistics.median(found) for row, found in times.items()}
        results.append(
            {
                "case": size.name,
                "deferred": sum(choose(each).action == "defer" for each in asked) / len(asked),
                "rows": {
                    row: {
                        "median_ms": medians[row],
                        "slowest_ms": max(found),
                        "ratio": medians[row] / medians["choose"],
                    }
                    for row, found in times.items()
                },
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (1)")
    args = parser.parse_args()
    results = measure(args.seed)
    for result in results:
        print(f"\n{result['case']}; {result['deferred']:.0%} of the tasks wait")
        print(f"| {'':33} | {'median':>11} | {'slowest':>11} | {'ratio':>8} |")
        print(f"| {'-' * 33} | {'-' * 11} | {'-' * 11} | {'-' * 8} |")
        for row, found in result["rows"].items():
            median, slowest = (f"{found[key]:.3f} ms" for key in ("median_ms", "slowest_ms"))
            print(f"| {row:33} | {median:>11} | {slowest:>11} | {found['ratio']:6.2f} x |")
    if args.json:
        report = {
            "schema": "tao-flows/benchmark-controller/1", "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(), "seed": args.seed, "results": results,
        }  # fmt: skip
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
