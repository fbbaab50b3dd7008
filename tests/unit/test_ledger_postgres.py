"""The PostgreSQL ledger and its server: URLs and secrets, connections, forks, time-outs and faults, on a real one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from postgres_server import PostgresServer, running_server

from tao_flows.errors import ConfigError, LedgerError, MissingExtraError
from tao_flows.ledger import open_ledger, schema
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.sql import MAX_CONNECTIONS_PER_PROCESS, PostgresLedger
from tao_flows.records import RunKey, RunRecord, Segment, TaskRecord, TaskState

SECRETS = ("p%40ss%3Aw%2Frd", "p@ss:w/rd", "w/rd")
RUN = RunRef("prefect", "default", "run-0001")
START = TaskRecord(
    RunKey("prefect", "default", "nightly", "run-0001", "train", "0", 1),
    Segment("node-1", "boot", 4242, 99),
    TaskState.RUNNING,
    1_000,
)


def task(number: int) -> TaskRecord:
    return replace(START, key=replace(START.key, instance=str(number)))


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[PostgresLedger]:
    with closing(PostgresLedger(postgres_url)) as ledger:
        yield ledger


@pytest.fixture
def admin(postgres_server: PostgresServer, postgres_url: str) -> Callable[[str], str]:
    """Runs a statement in the test's own database as the server's superuser."""
    return lambda statement: postgres_server.admin(statement, postgres_url.rpartition("/")[2])


def failure(url: str, **options: Any) -> LedgerError:
    """What a read and a write both fail with; nothing of it holds the password."""
    with closing(PostgresLedger(url, **options)) as ledger:
        raised = []
        for use in (ledger.runs, lambda: ledger.put_task(START)):
            with pytest.raises(LedgerError) as caught:
                use()
            raised.append(caught.value)
        told = "".join(traceback.format_exception(caught.value)) + repr(vars(ledger)) + ledger.url
    assert len({error.code for error in raised}) == 1
    assert raised[0].remedy
    assert not [secret for secret in SECRETS if secret in told]
    return raised[0]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "POSTGRESQL"])
def test_each_form_of_the_url_opens_the_ledger_and_none_is_shown_with_its_password(
    postgres_url: str, scheme: str
) -> None:
    with closing(open_ledger(postgres_url.replace("postgresql", scheme, 1))) as ledger:
        assert isinstance(ledger, PostgresLedger)
        ledger.put_task(START)
        assert ledger.tasks(RUN) == [START]
        assert ledger.url.startswith(f"{scheme}://tao:***@127.0.0.1:")


def test_a_socket_and_options_in_the_url_are_taken(postgres_server: PostgresServer, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    where = f"host={postgres_server.root}&port={postgres_server.port}&connect_timeout=7&application_name=mine"
    with closing(open_ledger(f"postgresql://tao@/{name}?{where}")) as ledger, ledger.transaction() as transaction:
        assert transaction.execute("SELECT current_setting('application_name')") == [("mine",)]


@pytest.mark.parametrize(
    "url", ["postgresql://tao:pa@ss:w/rd@h/d", "postgresql://tao:w/rd@h:port/d", "postgresql://tao:pa@ss@h/d"]
)
def test_a_url_with_a_password_that_is_not_encoded_is_refused_and_nothing_of_it_is_said(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_ledger(url)
    assert caught.value.code == "LEDGER_URL"
    assert "percent-encoded" in caught.value.remedy
    assert not [part for part in ("pa", "ss", "w/rd") if part in caught.value.summary.replace("password", "")]


@pytest.mark.parametrize("missing", ["psycopg", "sqlalchemy"])
def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in {missing, *(name for name in sys.modules if name.partition(".")[0] == missing)}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"tao-flows\[postgres\]"):
        open_ledger("postgresql://tao@h/d")


def test_nothing_is_opened_before_the_first_use() -> None:
    open_ledger("postgresql://tao@127.0.0.1:1/none").close()


def test_a_wrong_password_is_denied(postgres_url: str) -> None:
    assert failure(postgres_url.replace("p%40ss", "p%40sS")).code == "LEDGER_DENIED"


def test_a_role_that_may_not_make_tables_is_denied(admin: Callable[[str], str], postgres_url: str) -> None:
    database = postgres_url.rpartition("/")[2]
    admin(f"ALTER DATABASE {database} OWNER TO postgres")
    assert failure(postgres_url).code == "LEDGER_DENIED"


def test_a_schema_that_an_administrator_has_made_for_the_role_is_used(
    admin: Callable[[str], str], postgres_url: str
) -> None:
    database = postgres_url.rpartition("/")[2]
    admin(f"ALTER DATABASE {database} OWNER TO postgres; CREATE SCHEMA tao_flows AUTHORIZATION tao")
    with closing(PostgresLedger(postgres_url)) as ledger:
        ledger.put_task(START)
        assert ledger.tasks(RUN) == [START]


def test_a_database_that_is_not_there_is_unreachable(postgres_url: str) -> None:
    assert failure(postgres_url + "_none").code == "LEDGER_UNREACHABLE"


def test_a_port_that_nobody_listens_at_is_unreachable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert (
            failure(f"postgresql://tao:{SECRETS[0]}@127.0.0.1:{probe.getsockname()[1]}/d").code == "LEDGER_UNREACHABLE"
        )


def test_a_server_that_takes_a_connection_and_says_nothing_is_given_up(postgres_url: str) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"postgresql://tao:{SECRETS[0]}@127.0.0.1:{mute.getsockname()[1]}/d"
        with closing(PostgresLedger(url)) as ledger, pytest.raises(LedgerError) as caught:
            ledger.runs()
    assert caught.value.code == "LEDGER_UNREACHABLE"


def test_a_database_that_takes_no_writes_is_read_and_says_so_on_a_write(
    ledger: PostgresLedger, admin: Callable[[str], str], postgres_url: str
) -> None:
    ledger.put_task(START)
    admin(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET default_transaction_read_only = on")
    with closing(PostgresLedger(postgres_url)) as standby:
        assert standby.tasks(RUN) == [START]
        with pytest.raises(LedgerError) as caught:
            standby.put_task(task(2))
        assert caught.value.code == "LEDGER_READ_ONLY"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("53100", "LEDGER_FULL"), ("40P01", "LEDGER_BUSY"), ("53300", "LEDGER_BUSY"), ("XX001", "LEDGER_CORRUPT"),
        ("42501", "LEDGER_DENIED"), ("57P03", "LEDGER_UNREACHABLE"), ("P0001", "LEDGER_FAILED"),
    ],
)  # fmt: skip
def test_what_the_server_refuses_a_write_for_is_said_in_our_words(
    ledger: PostgresLedger, admin: Callable[[str], str], state: str, code: str
) -> None:
    ledger.put_run(RunRecord("prefect", "default", "nightly", "run-0001", "running", 1, START.segment))
    admin(f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'no more' USING ERRCODE = '{state}', DETAIL = 'the row'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON tao_flows.tasks FOR EACH ROW EXECUTE FUNCTION refuse()""")
    with pytest.raises(LedgerError) as caught:
        ledger.put_task(START)
    assert caught.value.code == code
    assert "no more" in caught.value.summary
    assert "the row" not in caught.value.summary
    assert len(ledger.runs()) == 1


@pytest.mark.parametrize(
    "name", ["a\0b", "\ud800", "".join(map(chr, range(0x4E00, 0x6E00)))], ids=["nul", "half", "long"]
)
def test_a_name_that_postgresql_cannot_hold_is_refused_as_a_bad_record(ledger: PostgresLedger, name: str) -> None:
    with pytest.raises(LedgerError) as caught:
        ledger.put_task(replace(START, key=replace(START.key, task=name)))
    assert caught.value.code == "LEDGER_BAD_RECORD"
    assert ledger.tasks(RUN) == []


def test_a_table_that_others_hold_is_busy_after_the_stated_wait(postgres_url: str) -> None:
    with closing(PostgresLedger(postgres_url, busy_timeout_s=0.05)) as ledger:
        ledger.put_task(START)
        with psycopg.connect(postgres_url) as other:
            other.execute("LOCK TABLE tao_flows.tasks")
            for use in (lambda: ledger.put_task(task(2)), lambda: ledger.tasks(RUN)):
                with pytest.raises(LedgerError) as caught:
                    use()
                assert caught.value.code == "LEDGER_BUSY"
        ledger.put_task(task(2))
        assert len(ledger.tasks(RUN)) == 2


def test_a_statement_that_takes_too_long_is_broken_off(postgres_url: str) -> None:
    with closing(PostgresLedger(postgres_url, statement_timeout_s=0.2)) as ledger:
        with pytest.raises(LedgerError) as caught, ledger.transaction() as transaction:
            transaction.execute("SELECT pg_sleep(60)")
        assert caught.value.code == "LEDGER_BUSY"
        assert ledger.runs() == []


def test_a_thread_that_keeps_the_connection_makes_others_wait_no_longer_than_stated(postgres_url: str) -> None:
    with closing(PostgresLedger(postgres_url, statement_timeout_s=0.2)) as ledger, ledger.transaction():
        said = []

        def read() -> None:
            try:
                ledger.runs()
            except LedgerError as error:
                said.append(error.code)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert said == ["LEDGER_BUSY"]


def test_the_ledger_leaves_an_engines_tables_in_the_same_database_alone(
    postgres_url: str, admin: Callable[[str], str]
) -> None:
    with psycopg.connect(postgres_url) as engine:
        engine.execute("CREATE TABLE public.runs (theirs int)")
        engine.execute("CREATE TABLE public.meta (theirs int)")
    with closing(PostgresLedger(postgres_url)) as ledger:
        ledger.put_task(START)
        assert ledger.tasks(RUN) == [START]
    assert admin("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").split() == ["meta", "runs"]


def sessions(server: PostgresServer, url: str) -> list[int]:
    """The server's processes that work for a database."""
    found = server.admin(f"SELECT pid FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'")
    return [int(pid) for pid in found.split()]


def within(seconds_s: float, is_so: Callable[[], bool]) -> bool:
    give_up_s = time.monotonic() + seconds_s
    while not is_so():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.02)
    return True


def test_sixteen_threads_write_all_they_have_by_the_connections_that_are_stated(
    ledger: PostgresLedger, postgres_server: PostgresServer, postgres_url: str
) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 10):
            ledger.put_task(task(number))

    threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(sessions(postgres_server, postgres_url)))
    assert most <= MAX_CONNECTIONS_PER_PROCESS
    assert len(ledger.tasks(RUN)) == 160


def test_a_connection_that_nobody_uses_is_given_back_and_the_next_use_opens_one(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    with closing(PostgresLedger(postgres_url, idle_s=0.3)) as ledger:
        for number in range(2):
            ledger.put_task(task(number))
            assert len(sessions(postgres_server, postgres_url)) == 1
            assert within(20, lambda: not sessions(postgres_server, postgres_url))
        assert len(ledger.tasks(RUN)) == 2


def test_a_closed_ledger_and_a_dropped_one_hold_no_connection(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    for end in (PostgresLedger.close, lambda ledger: None):
        ledger = PostgresLedger(postgres_url)
        ledger.put_task(START)
        assert len(sessions(postgres_server, postgres_url)) == 1
        end(ledger)
        del ledger
        assert within(20, lambda: not sessions(postgres_server, postgres_url))


def test_a_session_that_the_server_ends_between_two_calls_is_opened_again_unnoticed(
    ledger: PostgresLedger, postgres_server: PostgresServer, postgres_url: str, admin: Callable[[str], str]
) -> None:
    for number in range(3):
        ledger.put_task(task(number))
        (pid,) = sessions(postgres_server, postgres_url)
        admin(f"SELECT pg_terminate_backend({pid}, 10000)")
    assert len(ledger.tasks(RUN)) == 3


def test_a_session_that_ends_within_a_transaction_undoes_it_and_the_next_call_works(
    ledger: PostgresLedger, admin: Callable[[str], str]
) -> None:
    def broken_off() -> None:
        with ledger.transaction() as transaction:
            transaction.change("INSERT INTO pools VALUES ('a', '{}', 1)")
            ((pid,),) = transaction.execute("SELECT pg_backend_pid()")
            admin(f"SELECT pg_terminate_backend({pid}, 10000)")
            transaction.change("INSERT INTO pools VALUES ('b', '{}', 1)")

    with pytest.raises(LedgerError) as caught:
        broken_off()
    assert caught.value.code == "LEDGER_UNREACHABLE"
    assert ledger.counts()["pools"] == 0


def test_a_server_that_is_started_anew_is_unreachable_meanwhile_and_no_longer() -> None:
    with running_server() as server, closing(PostgresLedger(server.fresh_url())) as ledger:
        ledger.put_task(task(1))
        server.halt()
        with pytest.raises(LedgerError) as caught:
            ledger.put_task(task(2))
        server.start()
        ledger.put_task(task(3))
        server.halt()
        server.start()
        assert [record.key.instance for record in ledger.tasks(RUN)] == ["1", "3"]
    assert caught.value.code == "LEDGER_UNREACHABLE"


def test_tables_that_are_gone_are_said_once_and_made_again(ledger: PostgresLedger, admin: Callable[[str], str]) -> None:
    ledger.put_task(START)
    admin("DROP SCHEMA tao_flows CASCADE")
    with pytest.raises(LedgerError) as caught:
        ledger.put_task(START)
    assert caught.value.code == "LEDGER_CORRUPT"
    ledger.put_task(START)
    assert ledger.tasks(RUN) == [START]


def test_nothing_is_left_with_a_session_for_the_next_transaction_to_find(
    ledger: PostgresLedger, postgres_url: str
) -> None:
    for number in range(12):
        ledger.put_task(task(number))
        ledger.tasks(RUN)
    with ledger.transaction() as transaction:
        ours = {"search_path", "lock_timeout", "statement_timeout"}
        assert transaction.execute("SELECT count(*) FROM pg_prepared_statements") == [(0,)]
        transaction.execute("COMMIT")
        rows = transaction.execute("SELECT name FROM pg_settings WHERE source = 'session'")
        assert not ours & {name for (name,) in rows}


FORKS_WHILE_BUSY = """
import os, sys, threading, time
from dataclasses import replace
from tao_flows.ledger import open_ledger
from tao_flows.records import *
ledger = open_ledger(sys.argv[1])
record = TaskRecord(RunKey("prefect", "default", "f", "run-0001", "t", "0", 1), Segment("h", "b", 1, 1), TaskState.RUNNING, 1)
ledger.put_task(record)
def busy():
    while not done.is_set():
        ledger.put_task(record)
done = threading.Event()
thread = threading.Thread(target=busy)
thread.start()
children = []
for number in range(8):
    pid = os.fork()
    if pid == 0:
        for part in range(3):
            ledger.put_task(replace(record, key=replace(record.key, instance=str(number * 3 + part + 1))))
        sys.exit(0)  # a whole interpreter's end, inherited connection and all
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
done.set()
thread.join()
ledger.put_task(record)
assert codes == [0] * 8, codes
"""


def test_children_forked_while_a_thread_writes_use_connections_of_their_own_and_harm_nothing(postgres_url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS_WHILE_BUSY, postgres_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    with closing(PostgresLedger(postgres_url)) as ledger:
        assert len(ledger.tasks(RUN)) == 25


WRITER = """
import sys
from dataclasses import replace
from tao_flows.ledger import open_ledger
from tao_flows.records import *
ledger = open_ledger(sys.argv[1])
worker = sys.argv[2]
sys.stdin.readline()
key = RunKey("prefect", "default", "nightly", "run-0001", "train", worker, 1)
for number in range(40):
    record = TaskRecord(replace(key, try_number=number + 1), Segment("h", "b", int(worker), 1), TaskState.RUNNING, number)
    ledger.put_task(record)
    ledger.put_task(replace(record, state=TaskState.COMPLETED, ended_wall_ns=number + 1))
"""


def test_eight_processes_that_make_and_write_one_ledger_at_once_lose_nothing(postgres_url: str) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, postgres_url, str(n)], stdin=subprocess.PIPE) for n in range(8)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0] * 8
    with closing(PostgresLedger(postgres_url)) as ledger:
        records = ledger.tasks(RUN)
    assert len(records) == 8 * 40
    assert {record.state for record in records} == {TaskState.COMPLETED}


FILL = """WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {count})
    INSERT INTO tasks (engine, namespace, run_id, flow, task, instance, try_number, segment, host, state, phase,
        started_wall_ns, ended_wall_ns, last_wall_ns, pool, budget, team, owner, cluster, model_id, method, energy_uj,
        low_uj, high_uj, quality, sources, coverage, cpu_s, wall_s, body)
    SELECT 'prefect', 'default', 'run-' || (i / 10), 'f' || (i % 5), 't' || (i % 5), CAST(i AS TEXT), 1, 's', 'h',
        'completed', 3, i, i + 1, i + 1, 'home', 'b', '', '', '', '', 'm', 5, 5, 5, 'measured', '[]', 1, 1, 1, '{{}}'
    FROM numbers"""
RUNS = """INSERT INTO runs SELECT DISTINCT ON (run_id, flow) engine, namespace, run_id, flow, '', 'completed', 3,
    started_wall_ns, ended_wall_ns, last_wall_ns, '', '', '', '', host, segment, body FROM tasks"""


@contextmanager
def filled(postgres_server: PostgresServer, count: int) -> Iterator[PostgresLedger]:
    url = postgres_server.fresh_url()
    with closing(PostgresLedger(url, statement_timeout_s=60)) as ledger:
        with ledger.transaction() as transaction:
            transaction.change(FILL.format(count=count))
            transaction.change(RUNS)
        postgres_server.admin("ANALYZE", url.rpartition("/")[2])
        yield ledger


def rows_touched(ledger: PostgresLedger, query: str, newest: int) -> int:
    """How many rows the server has looked at to answer."""
    parameters = {
        "task": "t1", "pool": "home", "method": "m", "limit": 50, "since": newest - 100, "text": "run-7", "end": "run-7~",
        "flow": "f1", "engine": "prefect", "namespace": "default", "run_id": "run-7",
    }  # fmt: skip
    statement = schema.QUERIES[query].format(by="team", by_start="")
    with ledger.transaction(write=False) as transaction:
        ((plan,),) = transaction.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", **parameters)

    def touched(node: dict[str, Any]) -> int:
        own = 0 if node.get("Plans") and "Scan" not in node["Node Type"] else node["Actual Rows"]
        removed = sum(count for name, count in node.items() if name.startswith("Rows Removed by"))
        return int((own + removed) * node["Actual Loops"]) + sum(map(touched, node.get("Plans", ())))

    return touched((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"])


def test_what_is_asked_often_looks_at_no_more_rows_of_a_large_ledger_than_of_a_small_one(
    postgres_server: PostgresServer,
) -> None:
    small, large = 2_000, 40_000
    often = ("history", "runs", "runs_of_flow", "runs_by_id", "tasks_open", "runs_open", "tasks", "fleet_figures",
             "fleet_runs", "fleet_accounts")  # fmt: skip
    with filled(postgres_server, small) as ledger:
        of_small = {query: rows_touched(ledger, query, small) for query in often}
    with filled(postgres_server, large) as ledger:
        of_large = {query: rows_touched(ledger, query, large) for query in often}
    assert {query: rows for query, rows in of_large.items() if rows > 2 * of_small[query] + 50} == {}
    assert 50 <= of_large["history"] <= 500


def test_a_ledger_on_a_server_shows_its_size_and_what_it_holds(ledger: PostgresLedger) -> None:
    ledger.put_task(START)
    assert ledger.size_bytes() > 8_192
    assert ledger.counts()["tasks"] == 1
    assert ledger.is_shared
