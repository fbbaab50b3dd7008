"""A site whose flow runs may wait: its settings, its signal, what is known of its flow, its workers and controllers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import RunKey, RunRecord, Segment, TaskRecord, TaskState

FLOWS = Path(__file__).parent / "flows"
TAO_FLOWS = str(Path(sys.executable).with_name("tao-flows"))
S = 1_000_000_000
DEAR, CLEAN = 500.0, 20.0
SETTINGS = """
mode = "enforce"
pools = "pools.toml"
[[rules]]
name = "*"
trigger = ["manual", "scheduled"]
mode = "enforce"
[signals.carbon.DE]
csv = "carbon.csv"
"""
HASTE = {
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_WORKER_PREFETCH_SECONDS": "5",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
}
WAITS = ("tao:deferrable", "tao:max_defer=2h")


@dataclass
class Site:
    """One pool's settings and ledger, in a folder."""

    folder: Path
    pool: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    created: list[UUID] = field(default_factory=list)

    def set_up(self, tags: Sequence[str] = WAITS, kind: str | None = "process") -> UUID:
        """Makes settings, a signal that is dear until an hour from now, a past, a pool and a deployment.

        ``kind`` is None for a pool that is there already.
        """
        (self.folder / "ran").mkdir(exist_ok=True)
        (self.folder / "tao-flows.toml").write_text(SETTINGS)
        (self.folder / "pools.toml").write_text(f'[[pools]]\npool_id = "{self.pool}"\nzone = "DE"\n')
        self.signal((-60, DEAR), (60, CLEAN), (180, DEAR))
        self.remember(self.pool)
        if kind is not None:
            with get_client(sync_client=True) as client:
                client.create_work_pool(WorkPoolCreate(name=self.pool, type=kind))
        return self.deploy(self.pool, tags)

    def deploy(self, name: str, tags: Sequence[str] = ()) -> UUID:
        """Makes a deployment of the flow in the pool."""
        flow = Flow.from_source(str(FLOWS), "noted.py:noted")
        assert isinstance(flow, Flow)
        made = flow.deploy(
            name, work_pool_name=self.pool, tags=list(tags), print_next_steps=False, ignore_warnings=True
        )  # fmt: skip
        assert isinstance(made, UUID)
        return made

    def signal(self, *steps: tuple[float, float]) -> None:
        """Says what the power is like: minutes from now, and grams."""
        now = datetime.now(timezone.utc)
        rows = [f"{(now + timedelta(minutes=at)).isoformat()},DE,{value}" for at, value in steps]
        new = self.folder / "carbon.new"
        new.write_text("\n".join(["time,zone,value", *rows]))
        new.rename(self.folder / "carbon.csv")

    def flip(self) -> float:
        """Has the power be clean now, and not later; when that was."""
        self.signal((-60, CLEAN), (60, DEAR))
        return time.time()

    def remember(self, pool: str, energy_j: float = 100.0, runtime_s: float = 5.0) -> None:
        """Has the ledger know three earlier runs of the flow."""
        ledger = open_ledger(self.env["TAO_FLOWS_LEDGER"])
        now_ns, segment = time.time_ns(), Segment("node-1", "boot", 1, 1)
        for number in range(3):
            at, end = now_ns - (number + 1) * 3_600 * S, now_ns - (number + 1) * 3_600 * S + round(runtime_s * S)
            uj = round(energy_j * 1e6)
            figure = Figure(uj, uj, uj, Quality.MEASURED, ("rapl",))
            cpu = CpuTime(1.0, "perf", covers_children=True)
            measured = Measurement("work", at, runtime_s, cpu, figure, (), Account())
            run_id = f"{pool}-{number}"
            ledger.put_run(RunRecord("prefect", "default", "noted", run_id, "completed", at, segment, end))
            key = RunKey("prefect", "default", "noted", run_id, "work", f"{pool}-{number}", 1)
            ledger.put_task(
                TaskRecord(
                    key, segment, TaskState.COMPLETED, at, pool=pool, ended_wall_ns=end, measurement=measured
                )
            )  # fmt: skip
        ledger.close()

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            **HASTE,
            "TAO_FLOWS_CONFIG": str(self.folder / "tao-flows.toml"),
            "TAO_FLOWS_LEDGER": f"sqlite:///{self.folder}/ledger.db",
        }

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        opened = open_ledger(self.env["TAO_FLOWS_LEDGER"])
        try:
            yield opened
        finally:
            opened.close()

    def waiting(self) -> int:
        """How many runs wait by the ledger."""
        with self.ledger() as ledger:
            return len(DeferralStore(ledger).open())

    def worker(self, kind: str = "tao-process", *more: str, env: Mapping[str, str] | None = None) -> Started:
        """Starts a worker of the pool."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", self.pool, "--type", kind, *more]
        return self._start(command, f"worker-{len(self.processes)}", env)

    def controller(self, *, env: Mapping[str, str] | None = None) -> Started:
        """Starts a controller of the pool; it has begun."""
        command = [TAO_FLOWS, "controller", "--prefect", "--pool", self.pool]
        started = self._start(command, f"controller-{len(self.processes)}", env)
        until(lambda: "ready for" in started.said(), "the controller", started)
        return started

    def _start(self, command: list[str], name: str, env: Mapping[str, str] | None) -> Started:
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env={**self.env, **(env or {})}, stdout=out, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return Started(process, log)

    def create(self, deployment_id: UUID, count: int, *, in_s: float = 0.0) -> list[UUID]:
        """Creates runs that are due in so many seconds."""
        when = datetime.now(timezone.utc) + timedelta(seconds=in_s)
        with get_client(sync_client=True) as client:
            made = [
                client.create_flow_run_from_deployment(
                    deployment_id, parameters={"folder": str(self.folder / "ran")}, state=Scheduled(scheduled_time=when)
                ).id
                for _ in range(count)
            ]
        self.created += made
        return made

    def clear(self) -> None:
        """Takes away the runs that were created, and what waits, for the next test."""
        with get_client(sync_client=True) as client:
            for run_id in self.created:
                client.delete_flow_run(run_id)
        self.created.clear()
        with self.ledger() as ledger:
            store = DeferralStore(ledger)
            store.undrain(said_by="test")
            store.gone(*(row.key for row in store.open()))

    def ran(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How often each run has run its code."""
        files = {run_id: self.folder / "ran" / str(run_id) for run_id in run_ids}
        return {run_id: len(file.read_text().splitlines()) if file.exists() else 0 for run_id, file in files.items()}

    def close(self) -> None:
        for process in self.processes:
            _end(process)


@dataclass(frozen=True)
class Started:
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """At once, with all that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def until(seen: Callable[[], object], what: str, *logs: Started, patience_s: float = 90.0) -> None:
    give_up_s = time.monotonic() + patience_s
    while not seen():
        assert time.monotonic() < give_up_s, f"never seen: {what}\n" + "\n".join(log.said()[-6_000:] for log in logs)
        time.sleep(0.2)


def read(run_ids: Sequence[UUID]) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(run_ids))), limit=200)


def names(run_ids: Sequence[UUID]) -> dict[str, int]:
    """How many runs are in a state of each name; the server calls what nobody has taken late before long."""
    told = (str(run.state_name) for run in read(run_ids))
    return dict(Counter("Scheduled" if name == "Late" else name for name in told))


def all_are(run_ids: Sequence[UUID], name: str) -> bool:
    return names(run_ids) == {name: len(run_ids)}


def states(run_id: UUID) -> list[Any]:
    """What states a run has been in, in order, but for the server's remark that it is late."""
    with get_client(sync_client=True) as client:
        return [state for state in client.read_flow_run_states(run_id) if state.name != "Late"]


def flow_processes(run_ids: Sequence[UUID]) -> list[int]:
    """The processes that are there for these runs, by what their environment says."""
    wanted = {f"PREFECT__FLOW_RUN_ID={run_id}".encode() for run_id in run_ids}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = set((entry / "environ").read_bytes().split(b"\0"))
            except OSError:
                continue
            if environment & wanted:
                found.append(int(entry.name))
    return found
