"""A day of task runs through ledger, profiles, decisions and reports: how time and memory grow with their number.

An engine is simulated, its ledger is a real one, on SQLite and on PostgreSQL where its programs and the extra
``postgres`` are there. ``README.md`` says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

from tao_flows.budget import EnergyBudget
from tao_flows.controller.decide import decide
from tao_flows.controller.parse import parse_request
from tao_flows.errors import LedgerError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.gather import Known, Wish, gather
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.budgets import BudgetStore
from tao_flows.ledger.compaction import compact
from tao_flows.ledger.lasting import read_totals
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.pools import WorkerPool
from tao_flows.profiles import Profiles
from tao_flows.records import DecisionRecord, HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState, Who
from tao_flows.report.pages import fleet_page, run_page
from tao_flows.units import NS_PER_S

sys.path.append(str(Path(__file__).parents[1] / "tests/fakes"))
from postgres_server import PostgresServer, find_binaries

SIZES: Final = (1_000, 10_000, 100_000)
TASKS_PER_RUN: Final = 50
FLOWS: Final = 20
DAY_NS: Final = 86_400 * NS_PER_S
POOLS: Final = (WorkerPool("home", zone="DE", pue=1.2), WorkerPool("away", zone="SE"))
BUDGET: Final = EnergyBudget("team-a", 1e9)
ROUNDS: Final = 5
INTERACTIVE_MS: Final = 1_000.0
"""The bar of a page."""


class Engine:
    """Runs a day of tasks as an adapter records them: each decided on, begun, measured and charged."""

    def __init__(self, ledger: RelationalLedger, tasks: int, end_ns: int) -> None:
        self._ledger, self._tasks = ledger, tasks
        self._step_ns, self._begin_ns = DAY_NS // tasks, end_ns - DAY_NS
        self._profiles, self._store = Profiles(ledger), BudgetStore(ledger)
        self._store.put(BUDGET)

    def run(self) -> dict[str, list[float]]:
        """Milliseconds of each task: to decide on it, and to record it."""
        times: dict[str, list[float]] = {"decide": [], "record": []}
        for first in range(0, self._tasks, TASKS_PER_RUN):
            run = self._run_of(first)
            self._ledger.put_run(replace(run, state="running", ended_wall_ns=None))
            for number in range(first, min(first + TASKS_PER_RUN, self._tasks)):
                task = self._task_of(run, number)
                decision = self._timed(times["decide"], lambda task=task: self._decided(task))
                self._timed(times["record"], lambda task=task, decision=decision: self._recorded(task, decision))
            account = Account(counter_uj=9_000_000, tasks_uj=7_000_000, overhead_uj=1_500_000, unattributed_uj=500_000,
                              quality=Quality.MEASURED)  # fmt: skip
            self._ledger.put_account(ref_of(run), HostAccount("node-1", account, 60.0, "whole"))
            self._ledger.put_run(run)
        return times

    @staticmethod
    def _timed(times_ms: list[float], work: Callable[[], Any]) -> Any:
        begun_ns = time.perf_counter_ns()
        found = work()
        times_ms.append((time.perf_counter_ns() - begun_ns) / 1e6)
        return found

    def _run_of(self, first: int) -> RunRecord:
        number = first // TASKS_PER_RUN
        start_ns = self._begin_ns + first * self._step_ns
        return RunRecord(
            "prefect", "default", f"flow-{number % FLOWS}", f"run-{number:07}", "completed", start_ns,
            Segment("node-1", "boot", number + 1, number + 1), start_ns + TASKS_PER_RUN * self._step_ns,
            Who(team=f"team-{number % 4}", model_id=f"model-{number % 3}"),
        )  # fmt: skip

    def _task_of(self, run: RunRecord, number: int) -> TaskRecord:
        flow = run.flow.partition("-")[2]
        key = RunKey(run.engine, run.namespace, run.flow, run.run_id, f"task-{flow}-{number % 5}", str(number), 1)
        return TaskRecord(
            key, run.segment, TaskState.RUNNING, self._begin_ns + number * self._step_ns, run.who, POOLS[0].pool_id,
            BUDGET.name, budgets=(BUDGET.name,),
        )  # fmt: skip

    def _decided(self, task: TaskRecord) -> DecisionRecord:
        wish = Wish(task.key.task, task.pool, task.started_wall_ns)
        standings = self._store.standings([BUDGET.name])
        gathered = gather(
            wish, Known(POOLS, standings=standings), self._profiles, task.started_wall_ns, time.monotonic_ns()
        )
        answer = decide(parse_request(gathered.request)).to_json()
        return DecisionRecord(
            task.key, task.started_wall_ns, "enforce", answer["action"], answer["pool"] or "", answer["reason"],
            gathered.request, answer, enforced=True,
        )  # fmt: skip

    def _recorded(self, task: TaskRecord, decision: DecisionRecord) -> None:
        figure = Figure(7_000_000, 6_500_000, 7_500_000, Quality.ATTRIBUTED, ("rapl",))
        cpu = CpuTime(2.4, "perf", covers_children=True)
        measured = Measurement(task.key.task, task.started_wall_ns, 2.5, cpu, figure, (), Account())
        ended_ns = task.started_wall_ns + 2_500_000_000
        self._ledger.put_task(task)
        self._ledger.put_decision(decision)
        self._ledger.put_task(replace(task, state=TaskState.COMPLETED, ended_wall_ns=ended_ns, measurement=measured))
        self._profiles.settled(task.key.task, task.pool)


def ref_of(run: RunRecord) -> RunRef:
    return RunRef(run.engine, run.namespace, run.run_id, run.flow)


def questions(ledger: RelationalLedger, end_ns: int) -> dict[str, Callable[[], object]]:
    """What people and decisions ask, after a look that they find what is there."""
    (latest,) = ledger.find_runs("latest")
    assert "task-" in run_page(ledger, ref_of(latest))
    assert "flow-0" in fleet_page(ledger, query={"since": "30h"})
    return {
        "run page": lambda: run_page(ledger, ref_of(latest)),
        "fleet page of the day": lambda: fleet_page(ledger, query={"since": "30h"}),
        "report --since 30h": lambda: ledger.fleet(end_ns - DAY_NS, "flow"),
        "profile of a task": lambda: Profiles(ledger).of("task-0-0", "home", 0),
        "budget standing": lambda: BudgetStore(ledger).standings([BUDGET.name]),
        "report --totals": lambda: read_totals(ledger),
    }


def timed_ms(work: Callable[[], object]) -> float:
    begun_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begun_ns) / 1e6


def compacting(ledger: RelationalLedger, url: str, end_ns: int) -> dict[str, Any]:
    """Sums up the whole day while another thread writes, and says how long that writer waited."""
    waits_ms: list[float] = []
    is_over, failures = Event(), 0
    run = RunRecord(
        "prefect", "default", "beside", "beside", "running", end_ns + DAY_NS, Segment("node-2", "boot", 1, 1)
    )

    def write() -> None:
        nonlocal failures
        with closing(open_ledger(url)) as own:
            while not is_over.wait(0.005):
                key = RunKey("prefect", "default", "beside", "beside", "beside", str(len(waits_ms)), 1)
                record = TaskRecord(key, run.segment, TaskState.RUNNING, run.started_wall_ns)
                try:
                    waits_ms.append(timed_ms(lambda record=record: own.put_task(record)))
                except LedgerError:
                    failures += 1

    before, bytes_before = read_totals(ledger), ledger.size_bytes()
    writer = Thread(target=write)
    writer.start()
    try:
        begun_ns = time.perf_counter_ns()
        done = compact(ledger, end_ns + DAY_NS)
        took_s = (time.perf_counter_ns() - begun_ns) / 1e9
    finally:
        is_over.set()
        writer.join()
    assert done.problems == [], done.problems
    return {
        "took_s": took_s, "runs": done.runs, "kept": dict(done.kept), "rows": dict(done.rows),
        "bytes_before": bytes_before, "bytes_after": ledger.size_bytes(),
        "totals_unchanged": read_totals(ledger) == before,
        "writer": {"writes": len(waits_ms), "failed": failures, "median_ms": statistics.median(waits_ms or [0.0]),
                   "longest_ms": max(waits_ms, default=0.0)},
    }  # fmt: skip


def measure(url: str, tasks: int) -> dict[str, Any]:
    """One size, in this process alone: its peak of memory is that size's."""
    end_ns = time.time_ns()
    with closing(open_ledger(url)) as ledger:
        times = Engine(ledger, tasks, end_ns).run()
        rss_mb = {"recording": peak_mb()}
        if ledger.dialect == "postgresql":
            with ledger.transaction() as transaction:
                transaction.change("ANALYZE")  # as the server does by itself in time
        asked = questions(ledger, end_ns)
        found = {name: statistics.median(timed_ms(question) for _ in range(ROUNDS)) for name, question in asked.items()}
        rss_mb["reporting"] = peak_mb()
        summed_up = compacting(ledger, url, end_ns)
        rss_mb["compacting"] = peak_mb()
    last = max(1, tasks // 10)
    return {
        "recording": {name: statistics.median(found_ms[-last:]) for name, found_ms in times.items()},
        "asking": found, "compaction": summed_up, "peak_rss_mb": rss_mb,
    }  # fmt: skip


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured_apart(url: str, tasks: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", url, "--sizes", str(tasks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def show(kind: str, by_size: dict[int, dict[str, Any]]) -> None:
    print(f"\n{kind}\n| {'':30} |" + "".join(f" {size:>11,} |" for size in by_size))
    print(f"| {'-' * 30} |" + f" {'-' * 11} |" * len(by_size))
    for part, unit in (("recording", "ms"), ("asking", "ms"), ("peak_rss_mb", "MB")):
        for name in next(iter(by_size.values()))[part]:
            label = {"recording": f"to {name} a task", "peak_rss_mb": f"memory, {name}"}.get(part, name)
            line(label, [f"{found[part][name]:8.1f} {unit}" for found in by_size.values()])
    sums = [found["compaction"] for found in by_size.values()]
    line("compacting the day", [f"{each['took_s']:8.1f} s " for each in sums])
    line("longest wait of a writer", [f"{each['writer']['longest_ms']:8.1f} ms" for each in sums])
    line("ledger before", [f"{each['bytes_before'] / 1e6:8.1f} MB" for each in sums])
    line("ledger after", [f"{each['bytes_after'] / 1e6:8.1f} MB" for each in sums])
    slow = sorted({name for found in by_size.values() for name in ("run page", "fleet page of the day")
                   if found["asking"][name] > INTERACTIVE_MS})  # fmt: skip
    print(f"Pages within {INTERACTIVE_MS / 1e3:g} s: " + ("yes" if not slow else f"not {', '.join(slow)}"))
    print("Totals unchanged by compaction: " + ("yes" if all(each["totals_unchanged"] for each in sums) else "NO"))


def line(label: str, cells: list[str]) -> None:
    print(f"| {label:30} |" + "".join(f" {cell:>11} |" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="task runs of the day")
    parser.add_argument("--quick", action="store_true", help="few task runs")
    parser.add_argument("--one", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.sizes[0])))
        return
    sizes = (200, 1_000) if args.quick else tuple(args.sizes)
    report: dict[str, Any] = {
        "schema": "tao-flows/benchmark-scale/1", "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(), "ledgers": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        of_sqlite = {size: measured_apart(f"sqlite:///{directory}/{size}.db", size) for size in sizes}
    report["ledgers"]["SQLite"] = of_sqlite
    show("SQLite", of_sqlite)
    if (binaries := find_binaries()) is None:
        report["ledgers"]["PostgreSQL"] = {"left_out": "no PostgreSQL server programs (postgres, initdb) are installed"}
        print(f"\nPostgreSQL is left out: {report['ledgers']['PostgreSQL']['left_out']}")
    else:
        # As it is installed: what is committed is on the disk, and vacuumed.
        server = PostgresServer(
            binaries,
            fsync="on",
            synchronous_commit="on",
            full_page_writes="on",
            shared_buffers="128MB",
            autovacuum="on",
        )
        try:
            of_postgres = {size: measured_apart(server.fresh_url(), size) for size in sizes}
        finally:
            server.stop()
        report["ledgers"]["PostgreSQL"] = of_postgres
        show("PostgreSQL", of_postgres)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
