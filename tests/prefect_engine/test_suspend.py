"""A flow run that a real worker runs leaves it while all that it could do waits, and resumes where it was."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.states import Cancelled

from tao_flows.config import ConfigWatcher
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.prefect.suspend import goes_on, resume_due
from tao_flows.records import TaskState
from tao_flows.runtime import Tao, build

FLOWS = Path(__file__).parent / "flows"
POOL = "tao-flows-suspending"
GATE = "tao-flows-gate"
PATIENCE_S = 180
HASTE = {
    "PREFECT_WORKER_QUERY_SECONDS": "0.5",
    "PREFECT_WORKER_PREFETCH_SECONDS": "1",
    "PREFECT_LOGGING_LEVEL": "INFO",
}
SETTINGS = """
mode = "enforce"
pools = "pools.toml"
[[rules]]
name = "*"
trigger = "manual"
mode = "enforce"
[signals.carbon]
DE = { csv = "carbon.csv" }
"""
POOLS = f"""
[[pools]]
pool_id = "{POOL}"
zone = "DE"
energy_j = {{ mean = 3.6e6, low = 3.6e6, high = 3.6e6 }}
runtime_s = {{ p50 = 2, p95 = 4 }}
"""


@dataclass(frozen=True)
class Begun:
    """A run that the worker has been given, and its own ledger and signal."""

    run_id: UUID
    folder: Path
    ledger: Ledger
    tao: Tao
    log: Path

    @property
    def waits(self) -> DeferralStore:
        return DeferralStore(self.ledger)

    def ran(self) -> list[tuple[str, int]]:
        """What tasks have run, in which processes."""
        path = self.folder / "ran"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(pid)) for name, pid in map(str.split, lines)]

    def flow_run(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.run_id)

    def is_suspended(self) -> bool:
        """Its code has stopped, and its server has a start for it."""
        run = self.flow_run()
        return run.state_name == "Suspended" and run.state_type is StateType.SCHEDULED

    def look(self) -> int:
        """One look of the desk's."""

        async def look() -> int:
            async with get_client() as client:
                return await resume_due(client, [POOL], tao=self.tao)

        return asyncio.run(look())

    def until(self, seen: Callable[[], object], what: str) -> None:
        for _ in range(PATIENCE_S * 5):
            if seen():
                return
            time.sleep(0.2)
        raise AssertionError(f"never seen: {what}\n{self.log.read_text()[-6000:]}")


@pytest.fixture(scope="module")
def worker(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker of the pool that the flow is deployed to; the value is its log."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GATE, limit=1))
    log_path = tmp_path_factory.mktemp("worker") / "worker.log"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **HASTE}, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            flow = Flow.from_source(str(FLOWS), "waits.py:flow")
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


@pytest.fixture(scope="module")
def runs(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Begun]]:
    """One run for each test, all at once: most of a run's time goes into starting its process."""
    begun = {}
    for name in ("released", "planned", "forgetful", "cancelled", "reconsidered"):
        folder = tmp_path_factory.mktemp(name)
        now = datetime.now(timezone.utc)
        rows = [(now - timedelta(hours=1), 500), (now + timedelta(hours=1), 20), (now + timedelta(hours=5), 500)]
        carbon = "\n".join(f"{at.isoformat()},DE,{value}" for at, value in rows)
        (folder / "carbon.csv").write_text(f"time,zone,value\n{carbon}\n")
        (folder / "pools.toml").write_text(POOLS)
        settings = folder / "settings.toml"
        settings.write_text(SETTINGS)
        env = {"TAO_FLOWS_LEDGER": f"sqlite:///{folder / 'ledger.db'}", "TAO_FLOWS_CONFIG": str(settings)}
        how = {"forgetful": "forgetful", "released": "gated", "planned": "planned"}.get(name, "submitted")
        run = run_deployment(
            "waits/here",
            parameters={"folder": str(folder), "how": how},
            job_variables={"env": env},
            timeout=0,
            as_subflow=False,
        )
        assert isinstance(run, FlowRun)
        tao = build(ConfigWatcher(env={**os.environ, **env}))
        begun[name] = Begun(run.id, folder, open_ledger(str(folder / "ledger.db")), tao, worker)
    yield begun
    for each in begun.values():
        each.ledger.close()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def state_names(begun: Begun) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        here = FlowRunFilter(id=FlowRunFilterId(any_=[begun.run_id]))
        return {
            each.name.rpartition("-")[0]: str(each.state_name) for each in client.read_task_runs(flow_run_filter=here)
        }


def test_a_run_that_waits_frees_its_worker_and_a_release_resumes_it_where_it_was(runs: dict[str, Begun]) -> None:
    begun = runs["released"]
    begun.until(begun.is_suspended, "the suspension")
    pid = dict(begun.ran())["before"]
    begun.until(lambda: is_gone(pid), "its process has ended")
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(GATE).active_slots == 0, "nor does its code hold a limit"
    (waits,) = begun.waits.open()
    run = begun.flow_run()
    assert goes_on(run)
    assert run.state
    assert run.state.message
    assert waits.reason in run.state.message
    scheduled = run.state.state_details.scheduled_time
    assert scheduled
    assert abs(scheduled.timestamp() - waits.start_wall_ns / 1e9) < 1
    begun.until(lambda: state_names(begun).get("waits") == "Suspended", "its task is shown as suspended")

    assert begun.look() == 0, "nothing has changed"
    begun.waits.release([waits.key], said_by="someone", reason="a person waits")
    assert begun.look() == 1
    assert begun.look() == 0, "it is resumed once"
    begun.until(lambda: begun.flow_run().state_name == "Completed", "the end")
    ran = begun.ran()
    assert [name for name, _ in ran] == ["before", "plain", "waits-0"], "what had finished is not run again"
    assert dict(ran)["waits-0"] != pid
    assert begun.flow_run().run_count == 1, "it costs the run none of its retries"
    tasks = {task.key.task: task.state for task in begun.ledger.tasks(RunRef("prefect", "default", str(begun.run_id)))}
    assert tasks == {"before": TaskState.COMPLETED, "waits": TaskState.COMPLETED}
    assert list(begun.waits.open()) == []


def test_with_nobody_of_ours_at_work_the_server_resumes_a_run_at_its_planned_start(runs: dict[str, Begun]) -> None:
    begun = runs["planned"]
    begun.until(lambda: begun.flow_run().state_name == "Completed", "the end")
    ran = begun.ran()
    assert [name for name, _ in ran] == ["before", "plain", "waits-0"]
    assert dict(ran)["waits-0"] != dict(ran)["before"]
    decisions = begun.ledger.decisions(RunRef("prefect", "default", str(begun.run_id)))
    put_off, begins = [each for each in decisions if each.key.task == "waits"]
    assert (put_off.action, begins.action) == ("defer", "run")
    begins_at = datetime.fromtimestamp(begins.decided_wall_ns / 1e9, timezone.utc)
    start, latest = (datetime.fromisoformat(put_off.answer[name][:26] + "+00:00") for name in ("start", "latest_start"))
    assert start <= begins_at <= latest
    assert list(begun.waits.open()) == []


def test_a_run_with_a_result_that_is_not_kept_waits_where_it_is_and_says_why_once(runs: dict[str, Begun]) -> None:
    begun = runs["forgetful"]
    said = "waits without being suspended: forgetful"
    begun.until(lambda: said in begun.log.read_text(), "the reason")
    (waits,) = begun.waits.open()
    time.sleep(3)
    assert begun.flow_run().state_name == "Running"
    begun.waits.release([waits.key], said_by="someone", reason="")
    begun.until(lambda: begun.flow_run().state_name == "Completed", "the end")
    ran = begun.ran()
    assert [name for name, _ in ran] == ["before", "plain", "forgetful", "waits-0"]
    assert len({pid for _, pid in ran}) == 1
    assert begun.log.read_text().count(said) == 1


def test_nothing_of_a_run_that_is_cancelled_while_suspended_waits_any_more(runs: dict[str, Begun]) -> None:
    begun = runs["cancelled"]
    begun.until(begun.is_suspended, "the suspension")
    assert len(begun.waits.open()) == 3
    assert begun.look() == 0
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(begun.run_id, Cancelled())
    assert begun.look() == 0
    assert list(begun.waits.open()) == []
    assert "waits" not in "".join(name for name, _ in begun.ran())


def test_a_run_resumes_when_what_waits_in_it_may_wait_no_longer(runs: dict[str, Begun]) -> None:
    begun = runs["reconsidered"]
    begun.until(begun.is_suspended, "the suspension")
    assert begun.look() == 0
    settings = begun.folder / "settings.toml"
    settings.write_text(SETTINGS.replace('"enforce"\npools', '"observe"\npools'))
    begun.until(begun.look, "its resumption")
    begun.until(lambda: begun.flow_run().state_name == "Completed", "the end")
    assert sorted(name for name, _ in begun.ran()) == ["before", "plain", "waits-0", "waits-1", "waits-2"]
    assert list(begun.waits.open()) == []
