"""Runs of long ago, each of a few tasks, and a compaction in a process of its own that can be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import compaction, open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.tally import DAY_NS
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    ProcessEnvironment,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
    Who,
)

S = 1_000_000_000
T0 = 20_000 * DAY_NS
CUT = T0 + 100 * DAY_NS
"""Runs of the tests began on day 0 and later; what is before this is old."""


def segment(number: int, host: str = "node-1") -> Segment:
    return Segment(host, "boot", number, number)


def run_of(number: int, **more: Any) -> RunRecord:
    """A run that failed: no predictions are made from it."""
    at = T0 + number * 60 * S
    run = RunRecord("prefect", "default", "nightly", f"run-{number:04}", "failed", at, segment(number), at + 50 * S)
    return replace(run, who=Who(team="ml", model_id="m1"), **more)


def task_of(run: RunRecord, name: str = "train", energy_uj: int | None = 1_000, **more: Any) -> TaskRecord:
    key = RunKey(run.engine, run.namespace, run.flow, run.run_id, name, more.pop("instance", ""), 1)
    figure = Figure.unknown(name)
    if energy_uj is not None:
        figure = Figure(energy_uj, energy_uj // 2, energy_uj * 2, Quality.ATTRIBUTED, ("rapl",))
    cpu = CpuTime(0.5, "perf", covers_children=True)
    measured = Measurement(name, run.started_wall_ns, 1.0, cpu, figure, (), Account())
    # A task of another method is none that predictions are made from.
    record = TaskRecord(
        key, run.segment, TaskState.COMPLETED, run.started_wall_ns + S, pool="home",
        ended_wall_ns=run.started_wall_ns + 11 * S, measurement=replace(measured, method="tao-flows/attribution/1"),
    )  # fmt: skip
    return replace(record, **more)


def put_run(ledger: Ledger, run: RunRecord, *tasks: TaskRecord) -> None:
    """All that a run leaves: its tasks, a decision on each, an account, its process's environment."""
    ledger.put_run(run)
    for task in tasks:
        ledger.put_task(task)
        about = {"task": {"home_pool": "home"}}
        ledger.put_decision(DecisionRecord(task.key, task.started_wall_ns, "enforce", "run", "home", "", about, {}))
    account = Account(
        counter_uj=5_000, tasks_uj=3_000, overhead_uj=1_500, unattributed_uj=500, quality=Quality.MEASURED
    )
    ledger.put_account(
        RunRef(run.engine, run.namespace, run.run_id, run.flow), HostAccount("node-1", account, 50.0, "w")
    )
    ledger.put_environment(ProcessEnvironment(run.segment, run.started_wall_ns, {"python": "3.11"}))


if __name__ == "__main__":  # to be killed
    compaction.PAGE = 3
    compaction.compact(open_ledger(sys.argv[1]), CUT, rest=lambda _: None)
