"""A place to decide in: a real ledger, real settings and a clock that stands still."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tao_flows.admission import Admission, Ask
from tao_flows.config import TaoConfig, load_config
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.spool import spool_of
from tao_flows.profiles import Profiles
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState, Who
from tao_flows.runtime import Incidents, signal_board
from tao_flows.testing import FakeClock
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Why

NOW_NS = time.time_ns() // (300 * NS_PER_S) * 300 * NS_PER_S
"""The beginning of a slot, and near the present: what is charged is charged by the database's clock."""
KEY = RunKey("prefect", "default", "nightly", "run-1", "train", "instance", 1)
ASK = Ask(KEY, "home", NOW_NS, who=Who("ml"), can_defer=True, can_reroute=True)
PATIENT = replace(ASK, deferrable=True, max_defer_s=7_200.0)


class Place:
    """A ledger, settings and a clock that stands still."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock(wall_ns=NOW_NS)
        self.ledger: Ledger = open_ledger(f"sqlite:///{directory}/ledger.db")
        self.incidents = Incidents(self.clock)
        self.config = self.configured("")

    def configured(self, toml: str, mode: str = "enforce") -> TaoConfig:
        path = self.directory / "tao-flows.toml"
        path.write_text(f'mode = "{mode}"\n{toml}', encoding="utf-8")
        return load_config(cwd=self.directory, env={"HOME": str(self.directory)}).config

    def admission(self, config: TaoConfig | None = None) -> Admission:
        config = config or self.config
        board = signal_board(config, self.ledger, self.clock)
        return Admission(self.ledger, Profiles(self.ledger), board, self.clock, self.incidents)

    def ran(self, energy_j: float, seconds: float = 600.0, pool: str = "home", **changes: Any) -> None:
        """Settles a run of the task, as its process would."""
        figure = Figure(*[round(energy_j * 1e6)] * 3, Quality.ATTRIBUTED, ("rapl",))
        number = len(self.ledger.history("train", pool, 1_000).runs)
        measured = Measurement(
            "train", NOW_NS, seconds, CpuTime(1.0, "perf", covers_children=True), figure, (), Account()
        )
        record = TaskRecord(
            key=replace(KEY, instance=f"{pool}-{number}"),
            segment=Segment("host", "boot", 1, 1),
            state=TaskState.COMPLETED,
            started_wall_ns=NOW_NS - 10**12,
            pool=pool,
            ended_wall_ns=NOW_NS - 10**12 + round(seconds * NS_PER_S),
            measurement=measured,
        )
        self.ledger.put_task(replace(record, **changes))

    def falling(self) -> str:
        """A carbon signal that is told, and falls by nine tenths in an hour."""
        rows = [(0, 500.0), (3_600, 50.0), (10_800, 500.0)]
        lines = [f"{iso(NOW_NS // NS_PER_S - 100 + after)},DE,{value}" for after, value in rows]
        (self.directory / "carbon.csv").write_text("\n".join(["time,zone,value", *lines]), encoding="utf-8")
        (self.directory / "pools.toml").write_text(
            '[[pools]]\npool_id = "home"\nzone = "DE"\nplaces = 3\n', encoding="utf-8"
        )
        return f'pools = "{self.directory}/pools.toml"\n[signals.carbon.DE]\ncsv = "{self.directory}/carbon.csv"\n'

    def codes(self) -> set[str]:
        return {incident.code for incident in self.incidents.of_run("run-1")}


def iso(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, timezone.utc).isoformat()


def in_a_thread(wait: Callable[[], Why]) -> tuple[threading.Thread, list[Why]]:
    said: list[Why] = []
    thread = threading.Thread(target=lambda: said.append(wait()))
    thread.start()
    return thread, said


TEAM = '[budgets.team]\nlimit = "1 kJ"\nceiling = "2 kJ"\n'


class Wired(Place):
    """As a task's process has it: behind a ledger that fails no task, with a spool beside it."""

    def __init__(self, directory: Path, url: str = "") -> None:
        super().__init__(directory)
        self.use(url or self.ledger.url)

    def use(self, url: str) -> None:
        self.safe = SafeLedger(open_ledger(url), self.incidents.note_failure, spool=spool_of(url))
        self.incidents.ledger = self.safe

    def admission(self, config: TaoConfig | None = None) -> Admission:
        config = config or self.config
        board = signal_board(config, self.safe, self.clock)
        return Admission(self.safe, Profiles(self.safe), board, self.clock, self.incidents)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another program holds a transaction open."""
        with closing(sqlite3.connect(self.directory / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    def told(self) -> list[tuple[str, int]]:
        return [(each.code, each.count) for each in self.incidents.of_run("run-1")]


def number(ask: Ask, instance: int) -> Ask:
    return replace(ask, key=replace(ask.key, instance=str(instance)))
