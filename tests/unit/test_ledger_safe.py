"""The safe ledger under real faults: writes never raise, nothing is lost that memory can hold, all of it is seen."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows.errors import LedgerError
from tao_flows.figures import Account
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord, TaskState
from tao_flows.testing import FakeClock

SEGMENT = Segment("node-1", "boot", 4242, 99)
RUN = RunRef("prefect", "default", "run-0001")
KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "0", 1)
START = TaskRecord(KEY, SEGMENT, TaskState.RUNNING, 1_000)
RUN_START = RunRecord("prefect", "default", "nightly", "run-0001", "running", 900, SEGMENT)
DECISION = DecisionRecord(KEY, 950, "advise", "run", "home", "r", {}, {})
ACCOUNT = HostAccount("node-1", Account(tasks_uj=1), 1.0, "w")
INCIDENT = Incident("GAP", "a gap", wall_ns=5, run_id="run-0001")
PAUSE_S = 5.0


def task(number: int) -> TaskRecord:
    return replace(START, key=replace(KEY, instance=str(number)))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(monotonic_ns=10**12)


@pytest.fixture
def told() -> list[Incident]:
    return []


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=0.02)
    yield ledger
    ledger.close()


@pytest.fixture
def ledger(inner: SqliteLedger, told: list[Incident], clock: FakeClock) -> Iterator[SafeLedger]:
    safe = SafeLedger(inner, told.append, clock=clock, wait_s=0.02)
    yield safe
    safe.close()


@pytest.fixture
def unlock(inner: SqliteLedger) -> Iterator[Callable[[], None]]:
    """The ledger, made and then locked by another connection, until called."""
    inner.runs()
    with closing(sqlite3.connect(inner.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other.close


def write_one_of_each(ledger: Ledger) -> None:
    ledger.put_run(RUN_START)
    ledger.put_task(START)
    ledger.put_decision(DECISION)
    ledger.put_account(RUN, ACCOUNT)
    ledger.put_incident(INCIDENT)


def holds_one_of_each(ledger: Ledger) -> bool:
    held = (ledger.runs(), ledger.tasks(RUN), ledger.decisions(RUN), ledger.accounts(RUN), ledger.incidents(RUN))
    return held == ([RUN_START], [START], [DECISION], [ACCOUNT], [INCIDENT])


def test_what_can_be_written_is_written_at_once(ledger: SafeLedger, inner: SqliteLedger, told: list[Incident]) -> None:
    write_one_of_each(ledger)
    assert holds_one_of_each(inner)
    assert holds_one_of_each(ledger)
    assert ledger.pending() == ()
    assert ledger.failures == {}
    assert told == []


def test_what_cannot_be_written_is_kept_and_written_once_the_pause_is_over(
    ledger: SafeLedger, unlock: Callable[[], None], clock: FakeClock, inner: SqliteLedger
) -> None:
    write_one_of_each(ledger)
    assert [item.record for item in ledger.pending()] == [RUN_START, START, DECISION, ACCOUNT, INCIDENT]
    assert ledger.pending()[3].run == RUN
    unlock()
    ledger.put_task(task(1))
    assert inner.tasks(RUN) == []
    clock.advance(PAUSE_S)
    ledger.put_task(task(2))
    assert ledger.pending() == ()
    assert inner.tasks(RUN) == [START, task(1), task(2)]
    assert inner.accounts(RUN) == [ACCOUNT]


def test_a_flush_in_a_pause_goes_on_after_a_record_no_ledger_can_keep(
    ledger: SafeLedger, unlock: Callable[[], None], inner: SqliteLedger
) -> None:
    ledger.put_task(START)
    ledger.put_decision(replace(DECISION, request={"x": object()}))
    ledger.put_task(task(1))
    unlock()
    assert ledger.flush()
    assert ledger.failures == {"LEDGER_BUSY": 1, "LEDGER_BAD_RECORD": 1}
    assert inner.tasks(RUN) == [START, task(1)]


def test_a_flush_does_not_wait_for_the_pause(
    ledger: SafeLedger, unlock: Callable[[], None], inner: SqliteLedger
) -> None:
    write_one_of_each(ledger)
    assert ledger.flush() is False
    unlock()
    assert ledger.flush() is True
    assert holds_one_of_each(inner)


def test_a_dead_ledger_is_tried_once_a_pause(
    ledger: SafeLedger, unlock: Callable[[], None], clock: FakeClock, told: list[Incident], caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING, "tao_flows.ledger"):
        for number in range(100):
            ledger.put_task(task(number))
        assert ledger.failures == {"LEDGER_BUSY": 1}
        clock.advance(PAUSE_S)
        ledger.put_task(task(100))
    assert ledger.failures == {"LEDGER_BUSY": 2}
    assert len(ledger.pending()) == 101
    assert [(incident.code, incident.count, incident.run_id, incident.task) for incident in told] == [
        ("LEDGER_BUSY", 1, "run-0001", "train"),
        ("LEDGER_BUSY", 1, "run-0001", "train"),
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "LEDGER_BUSY" in caplog.text
    unlock()


def test_beyond_its_capacity_the_oldest_records_are_dropped_and_counted(
    inner: SqliteLedger, unlock: Callable[[], None], told: list[Incident], clock: FakeClock
) -> None:
    ledger = SafeLedger(inner, told.append, clock=clock, capacity=3)
    for number in range(8):
        ledger.put_task(task(number))
    assert [item.record for item in ledger.pending()] == [task(5), task(6), task(7)]
    assert ledger.failures == {"LEDGER_BUSY": 1, "LEDGER_DROPPED": 5}
    assert [incident.code for incident in told] == ["LEDGER_BUSY", "LEDGER_DROPPED"]
    unlock()
    ledger.close()


def test_a_record_no_ledger_can_keep_is_dropped_and_the_next_is_written(
    ledger: SafeLedger, inner: SqliteLedger, told: list[Incident]
) -> None:
    ledger.put_decision(replace(DECISION, request={"x": object()}))
    ledger.put_task(START)
    assert ledger.pending() == ()
    assert ledger.failures == {"LEDGER_BAD_RECORD": 1}
    assert [incident.code for incident in told] == ["LEDGER_BAD_RECORD"]
    assert inner.tasks(RUN) == [START]


@pytest.mark.parametrize(("capacity", "left"), [(1, 1), (10, 6)])
def test_a_listener_may_write_the_incident_to_the_same_ledger(
    inner: SqliteLedger, unlock: Callable[[], None], clock: FakeClock, capacity: int, left: int
) -> None:
    def listener(incident: Incident) -> None:
        safe.put_incident(incident)

    safe = SafeLedger(inner, listener, clock=clock, capacity=capacity)
    for number in range(5):
        safe.put_task(task(number))
    assert len(safe.pending()) == left
    unlock()
    assert safe.flush()
    assert [incident.code for incident in inner.incidents()] == ["LEDGER_BUSY"] * (capacity > 1)
    safe.close()


def test_a_listener_that_fails_fails_nobody(inner: SqliteLedger, unlock: Callable[[], None]) -> None:
    def listener(incident: Incident) -> None:
        raise RuntimeError(incident.code)

    ledger = SafeLedger(inner, listener)
    ledger.put_task(START)
    assert ledger.failures == {"LEDGER_BUSY": 1}
    unlock()
    ledger.close()


def test_reads_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = SafeLedger(SqliteLedger(tmp_path / "file" / "ledger.db"))
    ledger.put_task(START)
    with pytest.raises(LedgerError) as caught:
        ledger.runs()
    assert caught.value.code == "LEDGER_UNREACHABLE"
    assert [item.record for item in ledger.pending()] == [START]
    ledger.close()


def _below_a_file(directory: Path) -> Path:
    (directory / "file").write_text("")
    return directory / "file" / "ledger.db"


def _rubbish(directory: Path) -> Path:
    (directory / "ledger.db").write_bytes(os.urandom(8_192))
    return directory / "ledger.db"


def _where_no_file_can_be_made(directory: Path) -> Path:
    return Path("/proc") / directory.name / "ledger.db"


@pytest.mark.parametrize(
    "broken", [_below_a_file, _rubbish, _where_no_file_can_be_made], ids=lambda broken: broken.__name__
)
def test_a_broken_ledger_never_raises_on_a_write(tmp_path: Path, broken: Callable[[Path], Path]) -> None:
    told: list[Incident] = []
    ledger = SafeLedger(SqliteLedger(broken(tmp_path)), told.append)
    write_one_of_each(ledger)
    assert len(ledger.pending()) == 5
    assert len(told) == 1
    assert told[0].remedy
    ledger.close()


def test_an_interruption_in_the_midst_of_a_write_passes_and_loses_nothing(inner: SqliteLedger) -> None:
    class Interrupted(SqliteLedger):
        interrupt = True

        def put_task(self, record: TaskRecord) -> None:
            if self.interrupt:
                raise KeyboardInterrupt
            super().put_task(record)

    interrupted = Interrupted(inner.path)
    ledger = SafeLedger(interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.put_task(START)
    interrupted.interrupt = False
    ledger.put_task(task(1))
    assert inner.tasks(RUN) == [START, task(1)]
    ledger.close()


def test_a_thread_does_not_wait_for_another_beyond_the_bound(inner: SqliteLedger) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Hanging(SqliteLedger):
        def put_run(self, run: RunRecord) -> None:
            entered.set()
            leave.wait(30)
            super().put_run(run)

    ledger = SafeLedger(Hanging(inner.path), wait_s=0.02)
    thread = threading.Thread(target=ledger.put_run, args=(RUN_START,))
    thread.start()
    assert entered.wait(30)
    ledger.put_task(START)  # would hang here until `leave` is set
    assert [item.record for item in ledger.pending()] == [START]
    leave.set()
    thread.join()
    assert ledger.flush()
    assert inner.tasks(RUN) == [START]
    ledger.close()


def test_threads_lose_nothing_when_the_ledger_comes_back(
    ledger: SafeLedger, unlock: Callable[[], None], inner: SqliteLedger
) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 20):
            ledger.put_task(task(number))

    threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    unlock()
    for thread in threads:
        thread.join()
    while not ledger.flush(10):
        time.sleep(0.01)
    assert len(inner.tasks(RUN)) == 120


def test_a_forked_child_leaves_its_parents_records_to_the_parent(
    ledger: SafeLedger, unlock: Callable[[], None], inner: SqliteLedger
) -> None:
    ledger.put_task(task(1))
    unlock()
    pid = os.fork()
    if pid == 0:
        is_empty = ledger.pending() == () and ledger.failures == {}
        ledger.put_task(task(2))
        os._exit(0 if is_empty else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert inner.tasks(RUN) == [task(2)]
    assert [item.record for item in ledger.pending()] == [task(1)]


ENDS_WITH_UNWRITTEN = """
import sqlite3, sys
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import *
inner = SqliteLedger(sys.argv[1], busy_timeout_s=0.02)
inner.runs()
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN EXCLUSIVE")
ledger = SafeLedger(inner)
ledger.put_task(TaskRecord(RunKey("e", "n", "f", "r", "t", "0", 1), Segment("h", "b", 1, 1), TaskState.RUNNING, 1))
if sys.argv[2] == "unlock":
    other.execute("ROLLBACK")
"""


@pytest.mark.parametrize(("lock", "written"), [("unlock", 1), ("stay-locked", 0)])
def test_the_interpreters_end_writes_what_it_can_and_says_what_it_cannot(
    tmp_path: Path, lock: str, written: int
) -> None:
    path = tmp_path / "ledger.db"
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WITH_UNWRITTEN, str(path), lock], capture_output=True, text=True, timeout=30, check=True
    )  # fmt: skip
    with closing(SqliteLedger(path)) as ledger:
        assert len(ledger.tasks(RunRef("e", "n", "r"))) == written
    assert ("unwritten records are lost" in done.stderr) == (not written)
