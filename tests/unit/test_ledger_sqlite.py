"""The SQLite ledger as a file: its making, its versions, several processes at it, and its faults."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows import __version__
from tao_flows.errors import ConfigError, LedgerError
from tao_flows.ledger import open_ledger, schema
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import RunKey, RunRecord, Segment, TaskRecord, TaskState, Who

SEGMENT = Segment("node-1", "boot", 4242, 99)
RUN = RunRef("prefect", "default", "run-0001")
START = TaskRecord(
    RunKey("prefect", "default", "nightly", "run-0001", "train", "0", 1), SEGMENT, TaskState.RUNNING, 1_000
)
RUN_START = RunRecord("prefect", "default", "nightly", "run-0001", "running", 900, SEGMENT)
NOBODY = 65_534


def task(number: int) -> TaskRecord:
    return replace(START, key=replace(START.key, instance=str(number)))


def tasks_in(path: Path) -> list[TaskRecord]:
    with closing(SqliteLedger(path)) as ledger:
        return list(ledger.tasks(RUN))


def in_child(work: Callable[[], object]) -> str:
    """What ``work`` answers, or its error's code, in a forked child that is waited for."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(work())
        except LedgerError as error:
            answer = error.code
        except BaseException as error:  # noqa: BLE001 - the parent asserts on it
            answer = repr(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def as_nobody(work: Callable[[], object]) -> str:
    """The same, as a user whom file modes bind (root they do not)."""

    def unprivileged() -> object:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return in_child(unprivileged)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        os.chmod(name, 0o755)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def test_a_url_or_a_plain_path_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (f"sqlite:///{tmp_path}/a b%20?.db", "sqlite:///a b%20?.db", "a b%20?.db", f"{tmp_path}/a b%20?.db"):
        ledger = open_ledger(url)
        assert ledger.url == f"sqlite:///{tmp_path}/a b%20?.db"
        ledger.put_task(START)
        assert ledger.tasks(RUN) == [START]
        ledger.close()
    assert os.listdir(tmp_path) == ["a b%20?.db"]


@pytest.mark.parametrize(
    "url", ["", " ", "sqlite:///", "sqlite://host/x.db", "sqlite:x.db", "mysql://me:secret@h/d", ":memory:"]
)
def test_a_url_of_no_known_form_is_refused_with_the_forms_and_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_ledger(url)
    assert caught.value.code == "LEDGER_URL"
    assert "sqlite:////absolute/path" in caught.value.remedy
    assert "postgresql://" in caught.value.remedy
    assert "secret" not in str(caught.value)


def test_nothing_is_made_before_the_first_use(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "state" / "ledger.db")
    assert not (tmp_path / "state").exists()
    assert ledger.runs() == []
    assert (tmp_path / "state" / "ledger.db").exists()
    ledger.close()


def test_a_relative_path_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = SqliteLedger("ledger.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ledger.put_task(START)
    assert (tmp_path / "ledger.db").exists()
    ledger.close()


def test_the_file_and_its_directory_are_for_their_owner_alone(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "state" / "ledger.db")
    old_umask = os.umask(0)
    try:
        ledger.put_task(START)
    finally:
        os.umask(old_umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    ledger.close()


def test_the_file_says_whose_it_is_and_which_version_made_it(ledger: SqliteLedger) -> None:
    ledger.put_task(START)
    with closing(sqlite3.connect(ledger.path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (0x54414F46,)
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.CONTRACT,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        rows = connection.execute("SELECT * FROM meta").fetchall()
    assert [version for version, _, _ in rows] == list(range(1, len(schema.MIGRATIONS) + 1))
    assert {package for _, _, package in rows} == {__version__}
    assert all(abs(time.time_ns() - made_wall_ns) < 600e9 for _, made_wall_ns, _ in rows)


def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    ledger = SqliteLedger(path)
    for use in (lambda: ledger.put_task(START), ledger.runs):
        with pytest.raises(LedgerError, match="TAO_FLOWS_LEDGER") as caught:
            use()
        assert caught.value.code == "LEDGER_FOREIGN"
    assert path.read_bytes() == before


def test_a_newer_ledger_is_refused_and_left_as_it_is(ledger: SqliteLedger) -> None:
    ledger.put_task(START)
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(LedgerError, match="upgrade tao-flows") as caught:
        ledger.put_task(task(2))
    assert caught.value.code == "LEDGER_NEWER"
    with closing(sqlite3.connect(ledger.path)) as connection:
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (1,)


def test_what_is_asked_often_never_scans_a_table(ledger: SqliteLedger) -> None:
    ledger.put_task(START)
    inherently_whole = {"incidents_all"}
    names = ("engine", "namespace", "run_id", "flow", "task", "pool", "method", "budget", "text", "end")
    parameters = {**dict.fromkeys(names, "x"), "since": 5, "limit": 5}
    plans = {}
    with closing(sqlite3.connect(ledger.path)) as connection:
        for name, statement in schema.QUERIES.items():
            for by in schema.GROUPS:
                sql = f"EXPLAIN QUERY PLAN {statement.format(by=by, by_start=ledger._by_start)}"
                plans[name, by] = [row[3] for row in connection.execute(sql, parameters)]
    tables = ("runs", "tasks", "decisions", "accounts", "incidents", "last", "part", "account")
    scans = {
        name
        for (name, _), plan in plans.items()
        if any(line.startswith(f"SCAN {table}") for line in plan for table in tables)
    }
    assert scans == inherently_whole
    for name, index in {
        "history": "tasks_history", "spent": "tasks_budget", "runs": "runs_started", "fleet_figures": "tasks_started",
        "fleet_runs": "tasks_started", "fleet_accounts": "tasks_started", "overheads": "runs_started",
        "tasks_open": "tasks_open", "runs_open": "runs_open", "runs_by_prefix": "runs_id",
    }.items():  # fmt: skip
        for by in schema.GROUPS:
            assert any(index in line for line in plans[name, by]), (name, plans[name, by])


WRITER = """
import sys
from dataclasses import replace
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import *
path, worker = sys.argv[1], sys.argv[2]
ledger = SqliteLedger(path, busy_timeout_s=20)
sys.stdin.readline()
key = RunKey("prefect", "default", "nightly", "run-0001", "train", worker, 1)
for number in range(40):
    record = TaskRecord(replace(key, try_number=number + 1), Segment("h", "b", int(worker), 1), TaskState.RUNNING, number)
    ledger.put_task(record)
    ledger.put_task(replace(record, state=TaskState.COMPLETED, ended_wall_ns=number + 1))
"""


def test_eight_processes_that_make_and_write_one_ledger_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n)], stdin=subprocess.PIPE) for n in range(8)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * 8
    ledger = SqliteLedger(path)
    records = ledger.tasks(RUN)
    assert len(records) == 8 * 40
    assert {record.state for record in records} == {TaskState.COMPLETED}
    ledger.close()


def test_threads_share_one_ledger(ledger: SqliteLedger) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 25):
            ledger.put_task(task(number))

    threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.tasks(RUN)) == 200


def test_a_forked_child_uses_a_connection_of_its_own_and_harms_nothing(ledger: SqliteLedger) -> None:
    ledger.put_task(task(0))
    script_pid = os.fork()
    if script_pid == 0:
        ledger.put_task(task(1))
        ledger.close()
        os._exit(0)
    _, status = os.waitpid(script_pid, 0)
    ledger.put_task(task(2))
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(ledger.tasks(RUN)) == 3
    with closing(sqlite3.connect(ledger.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


FORKS_WHILE_LOCKED = """
import os, sys, threading, time
from dataclasses import replace
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import *
ledger = SqliteLedger(sys.argv[1])
record = TaskRecord(RunKey("e", "n", "f", "r", "t", "0", 1), Segment("h", "b", 1, 1), TaskState.RUNNING, 1)
ledger.put_task(record)
def busy():
    while not done.is_set():
        ledger.put_task(record)
        time.sleep(0.0002)
done = threading.Event()
thread = threading.Thread(target=busy)
thread.start()
children = []
for number in range(20):
    pid = os.fork()
    if pid == 0:
        ledger.put_task(replace(record, key=replace(record.key, instance=str(number + 1))))
        sys.exit(0)  # a whole interpreter's end, inherited connection and all
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
done.set()
thread.join()
assert codes == [0] * 20, codes
"""


def test_children_forked_while_a_thread_writes_write_and_end_well(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    command = [sys.executable, "-W", "ignore", "-c", FORKS_WHILE_LOCKED, str(path)]
    parent = subprocess.Popen(command, start_new_session=True)
    try:
        assert parent.wait(30) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)  # children that hang would outlive the test
        parent.wait()
    ledger = SqliteLedger(path)
    assert len(ledger.tasks(RunRef("e", "n", "r"))) == 21
    ledger.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_removed_while_it_is_open_is_made_again(ledger: SqliteLedger) -> None:
    ledger.put_task(task(1))
    ledger.path.unlink()
    ledger.put_task(task(2))
    assert tasks_in(ledger.path) == [task(2)]


def test_a_path_below_a_file_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = SqliteLedger(tmp_path / "file" / "ledger.db")
    for use in (lambda: ledger.put_task(START), ledger.runs):
        with pytest.raises(LedgerError) as caught:
            use()
        assert caught.value.code == "LEDGER_UNREACHABLE"
        assert caught.value.remedy


def test_a_directory_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        SqliteLedger(tmp_path).put_task(START)
    assert caught.value.code == "LEDGER_UNREACHABLE"


@pytest.mark.parametrize("beside", ["ledger.db", "below/ledger.db"])
def test_a_new_ledger_in_a_directory_without_write_permission_is_read_only(open_directory: Path, beside: str) -> None:
    open_directory.chmod(0o555)
    assert as_nobody(lambda: SqliteLedger(open_directory / beside).put_task(START)) == "LEDGER_READ_ONLY"


def test_who_may_only_read_a_ledger_reads_it_and_is_told_so_on_a_write(open_directory: Path) -> None:
    ledger = SqliteLedger(open_directory / "ledger.db")
    ledger.put_task(START)
    ledger.close()
    ledger.path.chmod(0o444)
    open_directory.chmod(0o555)
    assert as_nobody(lambda: ledger.tasks(RUN) == [START]) == "True"
    assert as_nobody(lambda: ledger.put_task(task(2))) == "LEDGER_READ_ONLY"


def test_who_may_only_read_may_begin_a_transaction_that_reads(open_directory: Path) -> None:
    ledger = SqliteLedger(open_directory / "ledger.db")
    ledger.put_task(START)
    ledger.close()
    ledger.path.chmod(0o444)
    open_directory.chmod(0o555)

    def read() -> bool:
        with ledger.transaction(write=False) as transaction:
            return transaction.execute("SELECT count(*) FROM tasks") == [(1,)]

    def write() -> None:
        with ledger.transaction() as transaction:
            transaction.change("DELETE FROM tasks")

    assert as_nobody(read) == "True"
    assert as_nobody(write) == "LEDGER_READ_ONLY"


def test_who_may_only_read_reads_what_a_live_writer_has_not_merged_yet(open_directory: Path) -> None:
    ledger = SqliteLedger(open_directory / "ledger.db")
    ledger.put_task(START)
    for path in open_directory.iterdir():
        path.chmod(0o444)
    open_directory.chmod(0o555)
    assert as_nobody(lambda: tasks_in(ledger.path) == [START]) == "True"
    ledger.close()


def test_who_may_only_read_is_not_shown_a_ledger_without_its_unmerged_part(open_directory: Path) -> None:
    ledger = SqliteLedger(open_directory / "ledger.db")
    ledger.put_task(START)
    copies = {path.name: path.read_bytes() for path in open_directory.iterdir() if not path.name.endswith("-shm")}
    ledger.close()
    for name, content in copies.items():
        (open_directory / name).write_bytes(content)
        (open_directory / name).chmod(0o444)
    open_directory.chmod(0o555)
    assert as_nobody(lambda: tasks_in(ledger.path)) in {"LEDGER_READ_ONLY", "LEDGER_UNREACHABLE"}


def test_permission_that_comes_back_is_noticed(open_directory: Path) -> None:
    path = open_directory / "ledger.db"
    with closing(SqliteLedger(path)) as owned:
        owned.put_task(START)
    path.chmod(0o444)
    open_directory.chmod(0o777)
    gate_read, gate_write = os.pipe()
    told_read, told_write = os.pipe()

    def work() -> str:
        ledger, first = SqliteLedger(path), "written"
        try:
            ledger.put_task(task(1))
        except LedgerError as error:
            first = error.code
        os.write(told_write, b"x")
        os.read(gate_read, 1)
        ledger.put_task(task(2))
        return first

    def mend() -> None:
        os.read(told_read, 1)
        for file in open_directory.iterdir():
            file.chmod(0o666)
        os.write(gate_write, b"x")

    mender = threading.Thread(target=mend)
    mender.start()
    answer = as_nobody(work)
    mender.join()
    assert answer == "LEDGER_READ_ONLY"
    assert tasks_in(path) == [START, task(2)]


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    program = FILL.replace("PATH", str(mount / "ledger.db"))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=512k none "$0" && exec "$1" -c "$2"',
         str(mount), sys.executable, program],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs the right to mount")
    assert done.stderr == ""
    code, written, kept = done.stdout.split()
    assert code == "LEDGER_FULL"
    assert int(kept) == int(written) > 10


FILL = """
from dataclasses import replace
from tao_flows.errors import LedgerError
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import *
ledger = SqliteLedger("PATH")
record = TaskRecord(RunKey("e", "n", "f", "r", "t", "0", 1), Segment("h", "b", 1, 1), TaskState.RUNNING, 1)
for number in range(10_000):
    try:
        ledger.put_task(replace(record, key=replace(record.key, instance=str(number))))
    except LedgerError as error:
        code = error.code
        break
print(code, number, len(ledger.tasks(RunRef("e", "n", "r"))))
"""


def test_a_file_that_may_not_grow_is_an_error_and_what_was_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    def fill() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        ledger = SqliteLedger(path)
        for number in range(10_000):
            try:
                ledger.put_task(task(number))
            except LedgerError as error:
                return f"{error.code} {number} {len(ledger.tasks(RUN))}"
        return "no error"

    code, written, kept = in_child(fill).split()
    assert code in {"LEDGER_FULL", "LEDGER_UNREACHABLE"}
    assert int(kept) == int(written) > 10


def test_a_file_that_is_no_database_is_corrupt_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(random.Random(1).randbytes(8_192))
    before = path.read_bytes()
    ledger = SqliteLedger(path)
    for use in (lambda: ledger.put_task(START), ledger.runs):
        with pytest.raises(LedgerError, match="move the file away") as caught:
            use()
        assert caught.value.code == "LEDGER_CORRUPT"
    assert path.read_bytes() == before


def test_damage_in_the_middle_of_the_file_is_said_and_the_file_stays(ledger: SqliteLedger) -> None:
    for number in range(200):
        ledger.put_task(task(number))
    ledger.close()
    size = ledger.path.stat().st_size
    with ledger.path.open("r+b") as file:
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(random.Random(page).randbytes(4096))
    for use in (lambda: ledger.tasks(RUN), lambda: ledger.put_task(task(7))):
        with pytest.raises(LedgerError) as caught:
            use()
        assert caught.value.code == "LEDGER_CORRUPT"
        assert caught.value.remedy
    assert ledger.path.stat().st_size == size


def test_a_row_that_cannot_be_read_is_corruption(ledger: SqliteLedger) -> None:
    ledger.put_task(START)
    for body in ("rubbish", "[]", "{}", '{"key": 3}'):
        with closing(sqlite3.connect(ledger.path)) as connection, connection:
            connection.execute("UPDATE tasks SET body = ?", (body,))
        with pytest.raises(LedgerError) as caught:
            ledger.tasks(RUN)
        assert caught.value.code == "LEDGER_CORRUPT"


def test_a_row_of_another_minor_version_is_read_with_defaults(ledger: SqliteLedger) -> None:
    record = replace(START, who=Who("ml"), pool="home")
    ledger.put_task(record)
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        connection.execute("UPDATE tasks SET body = json_set(json_remove(body, '$.pool'), '$.colour', 'red')")
    assert ledger.tasks(RUN) == [replace(record, pool="")]


def test_a_locked_ledger_is_busy_after_the_stated_wait_and_reads_go_on(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=0.05)
    ledger.put_task(START)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError) as caught:
            ledger.put_task(task(2))
        assert caught.value.code == "LEDGER_BUSY"
        assert caught.value.remedy
        assert ledger.tasks(RUN) == [START]
    ledger.put_task(task(2))
    assert len(ledger.tasks(RUN)) == 2
    ledger.close()


def test_a_ledger_locked_while_it_is_made_is_busy(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError) as caught:
            SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=0.05).put_task(START)
    assert caught.value.code == "LEDGER_BUSY"


def test_a_task_whose_process_is_killed_leaves_a_start_that_is_reconciled_as_lost(ledger: SqliteLedger) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        segment = replace(SEGMENT, pid=os.getpid())
        ledger.put_run(replace(RUN_START, segment=segment))
        ledger.put_task(replace(START, segment=segment))
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    assert ledger.reconcile(lambda segment: segment.pid == pid) == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert ledger.reconcile(lambda segment: segment.pid != pid) == [START.key]
    (record,) = ledger.tasks(RUN)
    assert (record.state, record.ended_wall_ns, record.measurement) == (TaskState.LOST, None, None)
    assert [run.state for run in ledger.runs()] == ["lost"]
