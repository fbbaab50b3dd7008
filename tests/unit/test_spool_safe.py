"""The safe ledger with a spool: what it could not write outlives the process, and is written by whoever comes next."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows.errors import LedgerError
from tao_flows.figures import Account
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.ledger.wireformat import RefusedError
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord, TaskState
from tao_flows.testing import FakeClock

SEGMENT = Segment("node-1", "boot", 4242, 99)
RUN = RunRef("prefect", "default", "run-0001", "nightly")
KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "0", 1)
START = TaskRecord(KEY, SEGMENT, TaskState.RUNNING, 1_000)
PAUSE_S = 5.0


def task(number: int) -> TaskRecord:
    return replace(START, key=replace(KEY, instance=str(number)), started_wall_ns=1_000 + number)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(monotonic_ns=10**12)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=0.02)
    ledger.runs()
    yield ledger
    ledger.close()


@pytest.fixture
def unlock(inner: SqliteLedger) -> Iterator[Callable[[], None]]:
    with closing(sqlite3.connect(inner.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other.close


@pytest.fixture
def make(inner: SqliteLedger, clock: FakeClock, spool: Spool) -> Iterator[Callable[..., SafeLedger]]:
    made: list[SafeLedger] = []

    def make(told: list[Incident] | None = None, **options: object) -> SafeLedger:
        listener = None if told is None else told.append
        made.append(SafeLedger(inner, listener, clock=clock, wait_s=5, spool=spool, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_can_be_written_never_touches_the_disk(make: Callable[..., SafeLedger], spool: Spool) -> None:
    make().put_task(START)
    assert not spool.directory.exists()


def test_what_cannot_be_written_is_on_disk_at_once_and_written_by_another_process_ledger(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], inner: SqliteLedger, spool: Spool
) -> None:
    account = HostAccount("node-1", Account(tasks_uj=1), 1.0, "w")
    first = make()
    first.put_run(RunRecord("prefect", "default", "nightly", "run-0001", "running", 900, SEGMENT))
    first.put_task(START)
    first.put_decision(DecisionRecord(KEY, 950, "advise", "run", "home", "r", {"x": [1, None]}, {}))
    first.put_account(RUN, account)
    first.put_incident(Incident("GAP", "a gap", wall_ns=5, run_id="run-0001"))
    assert spool.status().segments == 1
    unlock()
    make().put_task(task(1))
    assert inner.tasks(RUN) == [START, task(1)]
    assert inner.accounts(RUN) == [account]
    assert [incident.code for incident in inner.incidents(RUN)] == ["GAP"]
    assert inner.decisions(RUN)[0].request == {"x": [1, None]}
    assert len(inner.runs()) == 1
    assert not spool.has_records()


def test_it_writes_its_own_first_and_then_empties_the_spool(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], clock: FakeClock, inner: SqliteLedger, spool: Spool
) -> None:
    ledger = make()
    for number in range(5):
        ledger.put_task(task(number))
    unlock()
    clock.advance(PAUSE_S)
    ledger.put_task(task(5))
    assert ledger.pending() == ()
    assert inner.tasks(RUN) == [task(number) for number in range(6)]
    assert not spool.has_records()


def test_a_flush_empties_the_spool_too(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], inner: SqliteLedger, spool: Spool
) -> None:
    make().put_task(START)
    unlock()
    assert make().flush()
    assert inner.tasks(RUN) == [START]
    assert not spool.has_records()


def test_what_memory_forgets_is_not_lost(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], inner: SqliteLedger
) -> None:
    ledger = make(capacity=3)
    for number in range(20):
        ledger.put_task(task(number))
    assert len(ledger.pending()) == 3
    assert "LEDGER_DROPPED" not in ledger.failures
    unlock()
    assert ledger.flush(10)
    assert inner.tasks(RUN) == [task(number) for number in range(20)]


def test_without_a_disk_it_keeps_them_in_memory_and_says_so(
    tmp_path: Path, inner: SqliteLedger, unlock: Callable[[], None], clock: FakeClock
) -> None:
    (tmp_path / "file").write_text("")
    told: list[Incident] = []
    ledger = SafeLedger(inner, told.append, clock=clock, wait_s=0.05, spool=Spool(tmp_path / "file" / "spool"))
    for number in range(5):
        ledger.put_task(task(number))
    assert [incident.code for incident in told] == ["LEDGER_BUSY", "SPOOL_FAILED"]
    assert ledger.failures["SPOOL_FAILED"] == 1
    assert len(ledger.pending()) == 5
    unlock()
    ledger.close()
    assert len(inner.tasks(RUN)) == 5


def test_once_the_disk_is_back_what_was_in_memory_goes_there(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], spool: Spool, clock: FakeClock, inner: SqliteLedger
) -> None:
    spool.directory.write_text("")
    ledger = make()
    ledger.put_task(task(0))
    spool.directory.unlink()
    clock.advance(PAUSE_S)
    ledger.put_task(task(1))
    unlock()
    assert make().flush()
    assert inner.tasks(RUN) == [task(0), task(1)]
    assert "LEDGER_DROPPED" not in ledger.failures


def test_a_full_spool_drops_the_oldest_and_it_is_counted(
    tmp_path: Path, inner: SqliteLedger, unlock: Callable[[], None], clock: FakeClock
) -> None:
    told: list[Incident] = []
    spool = Spool(tmp_path / "small", capacity_bytes=6_000, segment_bytes=2_000)
    ledger = SafeLedger(inner, told.append, clock=clock, wait_s=0.05, spool=spool, capacity=2)
    for number in range(60):
        ledger.put_task(task(number))
    assert ledger.failures["SPOOL_DROPPED"] > 0
    assert "SPOOL_DROPPED" in [incident.code for incident in told]
    unlock()
    ledger.flush(10)
    ledger.close()
    assert task(59) in inner.tasks(RUN)
    assert "SPOOL_DROPPED" in [incident.code for incident in inner.incidents()]


def test_what_is_refused_for_good_is_set_aside_and_keeps_nothing_up(
    tmp_path: Path, clock: FakeClock, spool: Spool
) -> None:
    class Refusing(SqliteLedger):
        def put_task(self, record: TaskRecord) -> None:
            if record.key.instance == "1":
                raise RefusedError("TEAM_OF_ANOTHER", "not yours")
            super().put_task(record)

    told: list[Incident] = []
    ledger = SafeLedger(Refusing(tmp_path / "ledger.db"), told.append, clock=clock, spool=spool)
    for number in range(3):
        ledger.put_task(task(number))
    assert ledger.pending() == ()
    assert [incident.code for incident in told] == ["TEAM_OF_ANOTHER"]
    assert ledger.tasks(RUN) == [task(0), task(2)]
    assert spool.status().refused_bytes > 0
    ledger.close()


def test_a_ledger_that_must_be_migrated_loses_nothing(tmp_path: Path, clock: FakeClock, spool: Spool) -> None:
    class Older(SqliteLedger):
        migrated = False

        def put_task(self, record: TaskRecord) -> None:
            if not self.migrated:
                raise LedgerError("LEDGER_OLDER", "the schema is older", "tao-flows ledger migrate")
            super().put_task(record)

    inner = Older(tmp_path / "ledger.db")
    ledger = SafeLedger(inner, clock=clock, spool=spool)
    ledger.put_task(START)
    assert spool.has_records()
    inner.migrated = True
    assert ledger.flush()
    assert inner.tasks(RUN) == [START]
    ledger.close()


def test_an_outage_that_begins_while_the_spool_is_emptied_is_met_by_a_pause(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], spool: Spool, tmp_path: Path, clock: FakeClock
) -> None:
    first = make()
    for number in range(40):
        first.put_task(task(number))
    unlock()

    class Ending(SqliteLedger):
        left = 20

        def put_task(self, record: TaskRecord) -> None:
            if not self.left:
                raise LedgerError("LEDGER_BUSY", "busy")
            self.left -= 1
            super().put_task(record)

    inner = Ending(tmp_path / "ledger.db")
    second = SafeLedger(inner, clock=clock, wait_s=10, spool=spool)
    second.put_task(task(40))
    assert second.failures == {"LEDGER_BUSY": 1}
    assert second.pending() == ()
    assert spool.has_records()
    inner.left = 1_000
    clock.advance(PAUSE_S)
    second.put_task(task(41))
    assert inner.tasks(RUN) == [task(number) for number in range(42)]
    second.close()


ENDS_IN_AN_OUTAGE = """
import os, signal, sys, time
from pathlib import Path
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import *
inner = SqliteLedger(sys.argv[1], busy_timeout_s=0.02)
ledger = SafeLedger(inner, spool=Spool(Path(sys.argv[2])))
ledger.put_task(TaskRecord(RunKey("e", "n", "f", "r", "t", "0", 1), Segment("h", "b", 1, 1), TaskState.RUNNING, 1))
if sys.argv[3] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["normally", "kill"])
def test_a_process_that_ends_in_an_outage_leaves_its_records_to_the_next(
    inner: SqliteLedger, spool: Spool, unlock: Callable[[], None], end: str, clock: FakeClock
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS_IN_AN_OUTAGE, str(inner.path), str(spool.directory), end],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0)
    assert "lost" not in done.stderr
    unlock()
    ledger = SafeLedger(inner, clock=clock, spool=spool)
    ledger.put_incident(Incident("NOTE", "", wall_ns=1))
    assert len(inner.tasks(RunRef("e", "n", "r"))) == 1
    ledger.close()


def test_a_forked_child_keeps_its_own(
    make: Callable[..., SafeLedger], unlock: Callable[[], None], inner: SqliteLedger, spool: Spool
) -> None:
    ledger = make()
    ledger.put_task(task(1))
    pid = os.fork()
    if pid == 0:
        ledger.put_task(task(2))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    unlock()
    assert ledger.flush()
    assert inner.tasks(RUN) == [task(1), task(2)]
    assert not spool.has_records()
