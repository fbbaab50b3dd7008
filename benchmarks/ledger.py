"""What a settled task costs in the ledger, and whether a large ledger slows what decisions ask of it.

On SQLite, beside Python's own sqlite3 that is given the same rows; and on PostgreSQL where its programs and the extra
``postgres`` are there. ``README.md`` says how to read the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tao_flows.budget import EnergyBudget
from tao_flows.errors import MissingExtraError
from tao_flows.figures import METHOD, Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import codec, open_ledger
from tao_flows.ledger.budgets import BudgetStore
from tao_flows.ledger.relational import RelationalLedger
from tao_flows.records import DecisionRecord, RunKey, RunRecord, Segment, TaskRecord, TaskState

sys.path.append(str(Path(__file__).parents[1] / "tests/fakes"))
from postgres_server import PostgresServer, find_binaries

BUDGET: Final = EnergyBudget("team-a", 1e9)
SMALL: Final = 1_000
NS_PER_RUN: Final = 1_000_000
"""Runs are a millisecond apart: those of the fleet's window are as many in a small ledger as in a large one."""
FLEET_RUNS: Final = 500
ROUNDS: Final = 40
SEGMENT: Final = Segment("node-1", "f3b1c2d4-boot", 4242, 990_099)
FIGURE: Final = Figure(7_000_000, 6_500_000, 7_500_000, Quality.ATTRIBUTED, ("rapl",))
MEASUREMENT: Final = Measurement("train", 1, 2.5, CpuTime(2.4, "perf", covers_children=True), FIGURE, (), Account())
KEY: Final = RunKey("prefect", "default", "nightly", "seed", "train", "seed", 1)
REQUEST: Final = {
    "pools": [
        {
            "pool_id": f"pool-{number}", "zone": "DE", "online": True, "capacity_free": 4, "trusted": True,
            "energy_j": {"mean": 7.0, "low": 6.5, "high": 7.5}, "runtime_s": {"p50": 2.5, "p95": 3.0},
            "queue_wait_s": 0.0, "dispatch_energy_j": 1.0, "pue": 1.2, "price_per_h": 0.4, "power_w": 90.0,
        }
        for number in range(3)
    ]
}  # fmt: skip


def task_of(number: object, started_ns: int) -> TaskRecord:
    key = replace(KEY, run_id=f"run-{number}", instance=str(number))
    return TaskRecord(
        key, SEGMENT, TaskState.RUNNING, started_ns, pool="home", budget=BUDGET.name, budgets=(BUDGET.name,)
    )


def ended(task: TaskRecord) -> TaskRecord:
    ended_ns = task.started_wall_ns + NS_PER_RUN
    return replace(task, state=TaskState.COMPLETED, ended_wall_ns=ended_ns, measurement=MEASUREMENT)


def decision_of(task: TaskRecord) -> DecisionRecord:
    return DecisionRecord(
        task.key, task.started_wall_ns, "enforce", "run", "pool-1", "the lowest score", REQUEST, REQUEST
    )


def settle(ledger: RelationalLedger, task: TaskRecord) -> None:
    """All that a task under a budget writes: its start, its decision, its end and what that charges."""
    ledger.put_task(task)
    ledger.put_decision(decision_of(task))
    ledger.put_task(ended(task))


class Plain:
    """The same rows by sqlite3 alone: encoded beforehand, an INSERT each, committed as often."""

    def __init__(self, path: Path) -> None:
        with closing(open_ledger(str(path))) as ledger:
            ledger.runs()
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def rows(self, task: TaskRecord) -> list[list[tuple[str, dict[str, Any]]]]:
        """By transaction: the rows that ``settle`` leaves, by table."""
        charge = {"budget": BUDGET.name, "holder": task.key.instance, "segment": SEGMENT.id, "amount_uj": 7_000_000}
        return [
            [("tasks", codec.task_row(task))],
            [("decisions", codec.decision_row(decision_of(task)))],
            [
                ("tasks", codec.task_row(ended(task))),
                ("charges", {**charge, "charged_wall_ns": task.started_wall_ns}),
                ("spending", {"budget": BUDGET.name, "bucket_wall_ns": 1, "spent_uj": 7, "unknown_runs": 0}),
            ],
        ]

    def write(self, rows: list[list[tuple[str, dict[str, Any]]]]) -> None:
        for transaction in rows:
            self._connection.execute("BEGIN IMMEDIATE")
            for table, row in transaction:
                statement = f"INSERT OR REPLACE INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
                self._connection.execute(statement, tuple(row.values()))
            self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def timed_ms(work: Callable[[], object]) -> float:
    begun_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begun_ns) / 1e6


def figures(times_ms: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(times_ms, n=10)
    return {"median_ms": statistics.median(times_ms), "p90_ms": deciles[-1]}


def settling(ledger: RelationalLedger, plain: Plain | None, tasks: int) -> dict[str, dict[str, float]]:
    """What a settled task takes, the ledger and the yardstick in turns."""
    BudgetStore(ledger).put(BUDGET)
    times: dict[str, list[float]] = {"settled task": [], "plain sqlite3": []}
    for number in range(tasks):
        task = task_of(number, time.time_ns())
        times["settled task"].append(timed_ms(lambda task=task: settle(ledger, task)))
        if plain is not None:
            rows = plain.rows(task)
            times["plain sqlite3"].append(timed_ms(lambda rows=rows: plain.write(rows)))
    return {name: figures(found) for name, found in times.items() if found}


def fill(ledger: RelationalLedger, runs: int, now_ns: int) -> None:
    """Makes ``runs`` settled runs of a task each, as if written one by one, in one transaction."""
    run = RunRecord("prefect", "default", "nightly", "seed", "completed", now_ns, SEGMENT, ended_wall_ns=now_ns)
    task = ended(replace(task_of("seed", now_ns), key=KEY, budget="", budgets=()))
    ledger.put_run(run)
    ledger.put_task(task)
    store = BudgetStore(ledger)
    store.put(replace(BUDGET, window_s=1.0))
    numbered = {
        "run_id": "'run-' || i", "instance": "CAST(i AS TEXT)", "body": "replace(body, '\"seed\"', '\"run-' || i || '\"')",
        **{name: f"{name} - (:runs - i) * {NS_PER_RUN}" for name in ("started_wall_ns", "ended_wall_ns", "last_wall_ns")},
    }  # fmt: skip
    numbers = (
        "WITH RECURSIVE numbers(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM numbers WHERE i < :runs)"
    )
    with ledger.transaction() as transaction:
        for table, row in (("runs", codec.run_row(run)), ("tasks", codec.task_row(task))):
            values = ", ".join(numbered.get(column, column) for column in row)
            statement = f"{numbers} INSERT INTO {table} ({', '.join(row)}) SELECT {values} FROM numbers, {table}"
            transaction.change(f"{statement} WHERE run_id = 'seed'", runs=runs)
            transaction.change(f"DELETE FROM {table} WHERE run_id = 'seed'")
        statement = "INSERT INTO charges (budget, holder, segment, amount_uj, charged_wall_ns)"
        values = f"'{BUDGET.name}', CAST(i AS TEXT), '', 7000000, {now_ns} - (:runs - i) * {NS_PER_RUN}"
        transaction.change(f"{numbers} {statement} SELECT {values} FROM numbers", runs=runs)
    store.put(BUDGET)  # of another window than before: what was charged is summed for it


def questions(ledger: RelationalLedger, now_ns: int) -> dict[str, Callable[[], object]]:
    """What decisions and reports look up, after a first look that they find what is there."""
    store = BudgetStore(ledger)
    since_ns = now_ns - FLEET_RUNS * NS_PER_RUN
    (standing,) = store.standings([BUDGET.name])
    assert standing.spent_uj >= SMALL * 7_000_000
    assert len(ledger.history("train", "home").runs) == 50
    assert FLEET_RUNS <= ledger.fleet(since_ns, "flow")[0].runs <= FLEET_RUNS + 1
    return {
        "history (profile)": lambda: ledger.history("train", "home"),
        "budget standing": lambda: store.standings([BUDGET.name]),
        "find_runs latest": lambda: ledger.find_runs("latest"),
        f"fleet of {FLEET_RUNS} runs": lambda: ledger.fleet(since_ns, "flow"),
    }


def measure(
    open_new: Callable[[str], RelationalLedger], plain: Plain | None, sizes: tuple[int, ...], tasks: int
) -> Any:
    with closing(open_new("settling")) as ledger:
        settled = settling(ledger, plain, tasks)
    with ExitStack() as opened:
        by_runs: dict[int, dict[str, Callable[[], object]]] = {}
        for runs in sizes:
            now_ns = time.time_ns()
            ledger = opened.enter_context(closing(open_new(f"of {runs} runs")))
            fill(ledger, runs, now_ns)
            if ledger.dialect == "postgresql":
                with ledger.transaction() as transaction:
                    transaction.change("ANALYZE")  # as the server does by itself in time
            by_runs[runs] = questions(ledger, now_ns)
        times: dict[int, dict[str, list[float]]] = {runs: {row: [] for row in asked} for runs, asked in by_runs.items()}
        for _ in range(ROUNDS):  # in turns, so that whatever else the machine does meets all alike
            for runs, asked in by_runs.items():
                for row, question in asked.items():
                    times[runs][row].append(timed_ms(question))
    look_ups = {runs: {row: figures(found) for row, found in rows.items()} for runs, rows in times.items()}
    return {"settling": settled, "by_runs": look_ups}


@contextmanager
def databases(directory: Path) -> Iterator[dict[str, Callable[[str], RelationalLedger] | str]]:
    """By ledger: what opens a new one, or why there is none."""
    found: dict[str, Callable[[str], RelationalLedger] | str] = {
        "SQLite": lambda name: open_ledger(f"sqlite:///{directory / name}.db"),
    }
    binaries = find_binaries()
    try:
        open_ledger("postgresql://nobody@localhost/none")
    except MissingExtraError as error:
        found["PostgreSQL"] = str(error)
        binaries = None
    else:
        found["PostgreSQL"] = "no PostgreSQL server programs (postgres, initdb) are installed"
    if binaries is None:
        yield found
        return
    # As it is installed: what is committed is on the disk.
    server = PostgresServer(
        binaries, fsync="on", synchronous_commit="on", full_page_writes="on", shared_buffers="128MB"
    )
    from tao_flows.ledger.sql import PostgresLedger

    found["PostgreSQL"] = lambda _name: PostgresLedger(server.fresh_url(), statement_timeout_s=120)
    try:
        yield found
    finally:
        server.stop()


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}")
    print(f"| {'':26} | {'median':>10} | {'9 in 10 under':>13} | {'ratio':>7} |")
    print(f"| {'-' * 26} | {'-' * 10} | {'-' * 13} | {'-' * 7} |")
    settled = found["settling"]
    base = settled.get("plain sqlite3", settled["settled task"])
    for row, of_row in settled.items():
        line(row, of_row, of_row["median_ms"] / base["median_ms"])
    (few, small), (many, large) = found["by_runs"].items()
    for row, of_row in small.items():
        line(f"{row}, {few:,}", of_row, 1)
        line(f"{row}, {many:,}", large[row], large[row]["median_ms"] / of_row["median_ms"])


def line(row: str, of_row: dict[str, float], ratio: float) -> None:
    print(f"| {row:26} | {of_row['median_ms']:7.3f} ms | {of_row['p90_ms']:10.3f} ms | {ratio:5.2f} x |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    args = parser.parse_args()
    sizes, tasks = ((SMALL, 10_000), 50) if args.quick else ((SMALL, 100_000), 500)
    report: dict[str, Any] = {
        "schema": "tao-flows/benchmark-ledger/1", "python": platform.python_version(), "sqlite": sqlite3.sqlite_version,
        "machine": platform.processor() or platform.machine(), "method": METHOD, "ledgers": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, databases(Path(name)) as ledgers:
        for kind, open_new in ledgers.items():
            if isinstance(open_new, str):
                report["ledgers"][kind] = {"left_out": open_new}
                print(f"\n{kind} is left out: {open_new}")
                continue
            plain = Plain(Path(name) / "plain.db") if kind == "SQLite" else None
            found = report["ledgers"][kind] = measure(open_new, plain, sizes, tasks)
            show(kind, found)
            if plain is not None:
                plain.close()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
