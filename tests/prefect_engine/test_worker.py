"""Flows that a real worker runs in processes of its own: ended, killed, cancelled, suspended; and one that pauses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.states import Cancelling
from support import artifacts_of, burn, only_run, ref, tasks_of

from tao_flows import tao_flow, tao_task
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.records import RunRecord, TaskRecord, TaskState
from tao_flows.report.model import read_report

FLOWS = Path(__file__).parent / "flows"
POOL = "tao-flows-pool"
PATIENCE_S = 150
HASTE = {
    "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    "PREFECT_WORKER_PREFETCH_SECONDS": "2",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
}


@pytest.fixture(scope="module")
def worker(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker of a pool to which the flows are deployed; the value is its log, with the ledger of it all beside it.

    The ledger is the worker's as well: on Prefect 3.7 it is the worker that calls the hooks of a killed run.
    """
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    log_path = tmp_path_factory.mktemp("worker") / "worker.log"
    environment = {**os.environ, **HASTE, "TAO_FLOWS_LEDGER": str(log_path.with_name("ledger.db"))}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            for name in ("deployed", "suspended"):
                flow = Flow.from_source(str(FLOWS), f"deployed.py:{name}")
                assert isinstance(flow, Flow)
                flow.deploy("here", work_pool_name=POOL, print_next_steps=False, ignore_warnings=True)
            yield log_path
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Begun:
    """A run that the worker has been given."""

    run_id: UUID
    ledger: Ledger
    said_at: Path
    """Where the endless task writes its process's id."""
    log: Path

    @property
    def run(self) -> RunRecord:
        (run,) = self.ledger.find_runs(str(self.run_id))
        return run

    @property
    def tasks(self) -> Sequence[TaskRecord]:
        return self.ledger.tasks(ref(self.run))

    def wait_for_the_endless_task(self) -> int:
        """The process's id."""
        until(self.said_at.exists, "the endless task", self.log)
        return int(self.said_at.read_text())


@pytest.fixture(scope="module")
def runs(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Begun]]:
    """One run for each test, all at once: most of a run's time goes into starting its process."""
    begun = {}
    ledger = open_ledger(str(worker.with_name("ledger.db")))
    for name in ("completed", "killed", "cancelled", "suspended"):
        folder = tmp_path_factory.mktemp(name)
        endless = {"said_at": str(folder / "pid")} if name in {"killed", "cancelled"} else {}
        run = run_deployment(
            "suspended/here" if name == "suspended" else "deployed/here",
            parameters=endless,
            timeout=0,
            as_subflow=False,
        )
        assert isinstance(run, FlowRun)
        begun[name] = Begun(run.id, ledger, folder / "pid", worker)
    yield begun
    ledger.close()


def until(seen: Callable[[], object], what: str, log: Path | None = None) -> None:
    for _ in range(PATIENCE_S * 5):
        if seen():
            return
        time.sleep(0.2)
    raise AssertionError(f"never seen: {what}\n{log.read_text()[-6000:] if log else ''}")


def state_of(run_id: UUID) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run_id).state_name).lower()


def published(begun: Begun, flow: str, state: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The page that calls the run by that state, once it is there, and the table by task."""
    energy, tasks = f"tao-energy-{flow}", f"tao-tasks-{flow}"

    def issued() -> bool:
        artifacts = artifacts_of(str(begun.run_id))
        pages, tables = artifacts.get(energy, [""]), artifacts.get(tasks, [])
        return f"run {state} after" in str(pages[-1]) and len(pages) == len(tables)

    until(issued, f"the artifacts of the {state} run", begun.log)
    artifacts = artifacts_of(str(begun.run_id))
    assert set(artifacts) == {energy, tasks}
    return str(artifacts[energy][-1]), {row["task"]: row for row in json.loads(str(artifacts[tasks][-1]))}


def test_a_deployed_run_is_recorded_under_its_work_pool_and_published(runs: dict[str, Begun]) -> None:
    begun = runs["completed"]
    ledger = begun.ledger
    page, rows = published(begun, "deployed", "completed")
    run, (task,) = begun.run, begun.tasks
    assert (run.run_id, run.state, run.who.team) == (str(begun.run_id), "completed", "workers")
    assert run.segment.pid != os.getpid()
    assert (task.pool, task.state) == (POOL, TaskState.COMPLETED)
    (decision,) = ledger.decisions(ref(run))
    assert decision.pool == POOL
    assert "estimated" in page
    assert rows["work"]["pool"] == POOL
    assert task.measurement
    assert rows["work"]["energy_j"] == task.measurement.energy.value_j


def test_a_killed_run_is_published_by_a_fresh_process_with_the_running_task_lost(
    runs: dict[str, Begun],
) -> None:
    begun = runs["killed"]
    os.kill(begun.wait_for_the_endless_task(), signal.SIGKILL)
    page, rows = published(begun, "deployed", "crashed")
    until(lambda: state_of(begun.run_id) == "crashed", "the crash", begun.log)
    run, tasks = begun.run, {task.key.task: task for task in begun.tasks}
    assert run.state == "crashed"
    assert {name: task.state for name, task in tasks.items()} == {
        "work": TaskState.COMPLETED,
        "endless": TaskState.LOST,
    }
    assert "1 task is lost" in page
    assert rows["endless"]["state"] == "lost"
    assert rows["endless"]["energy_j"] is None
    assert tasks["work"].measurement
    assert rows["work"]["energy_j"] == tasks["work"].measurement.energy.value_j


def test_a_cancelled_run_is_published_with_its_running_task_cancelled_and_its_account(
    runs: dict[str, Begun],
) -> None:
    begun = runs["cancelled"]
    begun.wait_for_the_endless_task()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(begun.run_id, Cancelling())
    page, rows = published(begun, "deployed", "cancelled")
    until(lambda: state_of(begun.run_id) == "cancelled", "the cancellation", begun.log)
    run, tasks = begun.run, {task.key.task: task for task in begun.tasks}
    assert run.state == "cancelled"
    assert {name: task.state for name, task in tasks.items()} == {
        "work": TaskState.COMPLETED,
        "endless": TaskState.CANCELLED,
    }
    assert {name: row["state"] for name, row in rows.items()} == {"work": "completed", "endless": "cancelled"}
    assert all(row["energy_j"] is not None for row in rows.values())
    (host,) = begun.ledger.accounts(ref(run))
    assert host.account.overhead_uj, "written by the flow's process before it went"
    assert "overhead" in page


def test_a_suspended_run_is_published_as_it_stands_and_resumes_into_one_whole_report(runs: dict[str, Begun]) -> None:
    begun = runs["suspended"]
    ledger = begun.ledger
    _, rows = published(begun, "suspended", "suspended")
    assert set(rows) == {"work"}
    before = begun.run
    assert before.state == "suspended"

    resume_flow_run(begun.run_id)
    _, rows = published(begun, "suspended", "completed")
    assert {name: row["state"] for name, row in rows.items()} == {"work": "completed", "after": "completed"}
    run = begun.run
    assert run.state == "completed"
    assert run.segment.pid != before.segment.pid
    assert len(begun.tasks) == 2, "what was done before comes from the cache, and is not metered again"
    assert len(ledger.accounts(ref(run))) == 2, "each process has its own"
    report = read_report(ledger, run)
    assert before.ended_wall_ns
    assert report.run.started_wall_ns < before.ended_wall_ns, "it began with its first process"
    assert not [note for note in report.notes if "from the sum" in note]


def test_a_run_that_pauses_goes_on_with_what_it_had(ledger: Ledger) -> None:
    @tao_task
    def work(cpu_s: float) -> float:
        return burn(cpu_s)

    @tao_flow
    def approval() -> str:
        work(0.05)
        pause_flow_run(timeout=PATIENCE_S, poll_interval=1)
        work(0.1)
        return "approved"

    def approve() -> None:
        until(ledger.runs, "the run")
        run_id = UUID(only_run(ledger).run_id)
        until(lambda: state_of(run_id) == "paused", "the pause")
        resume_flow_run(run_id)

    approver = threading.Thread(target=approve)
    approver.start()
    assert approval() == "approved"
    approver.join()
    assert only_run(ledger).state == "completed"
    assert [task.state for task in tasks_of(ledger)] == [TaskState.COMPLETED] * 2
    assert set(artifacts_of(only_run(ledger).run_id)) == {"tao-energy-approval", "tao-tasks-approval"}
