"""Runs that train a model, in a ledger, as a host with a counter and one without would record them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.governance.facts import Facts, read_facts
from tao_flows.governance.provider import ProviderInputs
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    Incident,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
    Who,
)

S = 1_000_000_000
START = 1_780_000_000 * S
SEGMENT = Segment("node-1", "boot", 1, 1)
MODEL = "digits"
RUN_ID = "5f0e0c5e-5d5c-4c0e-9a55-0f6a4f2f9d10"


def put_run(ledger: Ledger, run_id: str = RUN_ID, **more: Any) -> RunRecord:
    """The run's record; ``more`` are fields of it."""
    start = more.pop("started_wall_ns", START)
    fields: dict[str, Any] = {
        "engine": "prefect", "namespace": "default", "flow": "nightly", "state": "completed",
        "started_wall_ns": start, "segment": SEGMENT, "ended_wall_ns": start + 100 * S, "who": Who(team="ml"),
        "name": "amber-fox", **more,
    }  # fmt: skip
    run = RunRecord(run_id=run_id, **fields)
    ledger.put_run(run)
    return run


def put_task(ledger: Ledger, run: RunRecord, task: str, energy_uj: int | None, **more: Any) -> TaskRecord:
    """A task of 40 s; without energy it was not read."""
    quality, model_id = more.pop("quality", Quality.ATTRIBUTED), more.pop("model_id", "")
    begin, length_s = more.pop("begin_ns", run.started_wall_ns + 10 * S), more.pop("length_s", 40)
    state = more.pop("state", TaskState.COMPLETED)
    source = more.pop("source", "model" if quality is Quality.ESTIMATED else "rapl")
    figure = Figure.unknown(task)
    if energy_uj is not None:
        figure = Figure(energy_uj, energy_uj * 9 // 10, energy_uj * 11 // 10, quality, (source,))
    measured = Measurement(task, begin, float(length_s), CpuTime(30.0, "perf", True), figure, (), Account())
    if quality is Quality.ESTIMATED:
        measured = replace(measured, model="cpu-min-max/1")
    ended = state not in (TaskState.LOST, TaskState.RUNNING)
    key = RunKey(run.engine, run.namespace, run.flow, run.run_id, task, more.pop("instance", "0"), 1)
    record = TaskRecord(
        key, SEGMENT, state, begin, Who(model_id=model_id, tags=more.pop("tags", ())), "home",
        ended_wall_ns=begin + length_s * S if ended else None, measurement=measured if ended else None, **more,
    )  # fmt: skip
    ledger.put_task(record)
    return record


def put_decision(ledger: Ledger, record: TaskRecord, **more: Any) -> None:
    """The decision that let a task run at home, and what it weighed."""
    ready = "2026-05-28T20:26:50Z"
    objectives = {"energy_j": 5.0, "carbon_g": 1.0, "cost": None, "finish_s": 10.0}
    candidates = [
        {"pool": pool, "start": ready, "objectives": objectives, "constraints": [], "feasible": True,
         "pareto_rank": rank, "score": 1.0 + rank}
        for rank, pool in enumerate(("home", "far"))
    ]  # fmt: skip
    answer = {"pool": "home", "start": ready, "candidates": candidates, "penalty": 1.1, "regime": "standard"}
    answer = more.pop("answer", answer)
    fields: dict[str, Any] = {
        "decided_wall_ns": record.started_wall_ns - S, "mode": "advise", "action": "run", "pool": "home",
        "reason": "cheapest at once", **more,
    }  # fmt: skip
    request = {"task": {"home_pool": "home", "ready_at": ready}}
    ledger.put_decision(DecisionRecord(record.key, request=request, answer=answer, **fields))


def put_digits(ledger: Ledger, run_id: str = RUN_ID, **more: Any) -> RunRecord:
    """A run that loads data and trains the model ``digits``: 1 J and 123,456,789,012 µJ."""
    run = put_run(ledger, run_id, **more)
    put_task(ledger, run, "load", 1_000_000, quality=Quality.MEASURED, begin_ns=run.started_wall_ns, length_s=10)
    train = put_task(ledger, run, "train", 123_456_789_012, model_id=MODEL)
    put_decision(ledger, train)
    account = Account(
        counter_uj=150_000_000_000, tasks_uj=123_457_789_012, overhead_uj=2_000_000_000,
        unattributed_uj=24_542_210_988, quality=Quality.ATTRIBUTED,
    )  # fmt: skip
    ref = RunRef(run.engine, run.namespace, run.run_id, run.flow)
    ledger.put_account(ref, HostAccount("node-1", account, 100.0, "run"))
    ledger.put_incident(Incident("AGENT_GONE", "the agent did not answer", "start it", run.started_wall_ns, 1, run_id))
    return run


def facts_of(ledger: Ledger, run: RunRecord, provider: ProviderInputs | None = None) -> Facts:
    """The facts of a run as read an hour after its start."""
    return read_facts(ledger, run, now_wall_ns=run.started_wall_ns + 3_600 * S, provider=provider)
