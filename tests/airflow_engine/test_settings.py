"""The ``[tao_flows]`` section and Airflow's connections: what they set, when they are looked up, and who sees them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from airflow_plugin import _compat, settings
from airflow_plugin.connections import AirflowConnections, Found
from tao_flows import runtime
from tao_flows.config import CONFIG_FILE_ENV
from tao_flows.errors import ConfigError, LedgerError, MissingExtraError, SourceError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.remote import RemoteLedger
from tao_flows.ledger.spool import spool_of
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import RunRecord, Segment
from tao_flows.signals.spec import SignalSpec, parse_signals

pytestmark = pytest.mark.airflow

RUN = RunRecord("airflow", "default", "nightly", "run-1", "running", 900, Segment("node-1", "boot", 4242, 99))


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings, "CONNECTIONS", AirflowConnections())
    runtime.forget()
    yield
    runtime.forget()


@pytest.fixture
def section(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def write(**options: str) -> None:
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__TAO_FLOWS__{name.upper()}", value)

    return write


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Defines a connection by its variable, as Airflow reads it in every process."""

    def define(name: str, **fields: Any) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps({"conn_type": "tao_flows", **fields}))

    return define


def signal(provider: str, **more: Any) -> SignalSpec:
    zone = {"electricitymaps": "DE", "watttime": "CAISO_NORTH"}[provider]
    (spec,) = parse_signals({"carbon": {"here": {"provider": provider, "zone": zone, **more}}}, Path("/")).values()
    return spec


def test_the_section_names_the_file_of_budgets_and_signals(section, tmp_path, monkeypatch):
    file = tmp_path / "tao.toml"
    file.write_text('team = "of the file"\n[budgets.team-a]\nlimit = "1 kWh"\n')
    section(config=str(file), pools=str(tmp_path / "pools.toml"))
    resolved = settings.watcher().get()
    assert list(resolved.config.budgets) == ["team-a"]
    assert resolved.config.pools == tmp_path / "pools.toml"
    assert (resolved.origins["team"], resolved.origins["pools"]) == (str(file), "airflow")
    other = tmp_path / "other.toml"
    other.write_text('team = "of another"\n')
    monkeypatch.setenv(CONFIG_FILE_ENV, str(other))
    assert settings.watcher().get().config.team == "of another"


def test_the_file_is_read_again_when_it_changes(section, tmp_path):
    file = tmp_path / "tao.toml"
    file.write_text('mode = "observe"\n')
    section(config=str(file))
    watcher = settings.watcher()
    assert watcher.get().config.mode == "observe"
    file.write_text('mode = "off"  # the kill switch\n')
    assert watcher.get().config.mode == "off"


def test_the_gate_is_auto_unless_the_section_says_otherwise(section):
    assert settings.airflow_options().gate == "auto"
    section(gate=" Off ")
    assert settings.airflow_options().gate == "off"


def test_a_gate_that_is_none_is_named_and_switches_this_process_off(section, caplog):
    section(gate="maybe")
    with pytest.raises(ConfigError) as caught:
        settings.airflow_options()
    assert "'maybe' is not one of auto, on, off" in caught.value.summary
    with caplog.at_level(logging.WARNING, "tao_flows"):
        assert settings.tao_here() is None
    assert "tao-flows is off in this process" in caplog.text


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "db", "schema": "tao"}, "postgresql://db/tao"),
        (
            {"host": "db", "port": 5433, "schema": "tao", "login": "a b", "password": "p@ss/w"},
            "postgresql://a%20b:p%40ss%2Fw@db:5433/tao",
        ),
        ({"host": "db", "schema": "tao", "extra": {"sslmode": "require"}}, "postgresql://db/tao?sslmode=require"),
    ],
)
def test_a_connection_to_postgresql_is_the_ledger_there(connection, fields, url, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr("airflow_plugin.connections.open_ledger", seen.append)
    connection("tao_ledger", **fields)
    settings.open_named("conn:tao_ledger")
    assert seen == [url]


def test_a_connection_to_a_real_server_is_written_to_and_read(connection, postgres_url):
    url = urlsplit(postgres_url)
    login, password = unquote(url.username or ""), unquote(url.password or "")
    connection(
        "tao_ledger", host=url.hostname, port=url.port, schema=url.path[1:], login=login, password=password or None
    )
    if find_spec("psycopg") is None:
        with pytest.raises(MissingExtraError, match=r"tao-flows\[postgres\]"):
            settings.open_named("conn:tao_ledger").put_run(RUN)
        return
    ledger = settings.open_named("conn:tao_ledger")
    ledger.put_run(RUN)
    assert [run.run_id for run in open_ledger(postgres_url).runs()] == ["run-1"]
    ledger.close()


def test_a_connection_with_a_web_address_is_an_ingest_and_its_password_the_token(connection):
    connection("tao_ingest", host="https://tao.example.com", port=8443, schema="ingest", password="the token")
    ledger = settings.open_named("conn:tao_ingest")
    assert isinstance(ledger, RemoteLedger)
    assert ledger.url == "https://tao.example.com:8443/ingest"
    connection("tao_ingest", host="http://tao.example.com", password="the token")
    with pytest.raises(ConfigError, match="unencrypted"):
        settings.open_named("conn:tao_ingest")


def test_a_connection_with_a_path_is_a_file(connection, tmp_path):
    connection("tao_file", host=f"{tmp_path}/ledger.db")
    ledger = settings.open_named("conn:tao_file")
    assert isinstance(ledger, SqliteLedger)
    ledger.close()


def test_a_connection_that_names_no_ledger_says_what_it_lacks(connection):
    connection("empty", host="db")
    with pytest.raises(ConfigError) as caught:
        settings.open_named("conn:empty")
    assert caught.value.code == "CONNECTION_INCOMPLETE"


def test_a_password_shows_neither_in_the_settings_nor_where_what_was_found_is_shown(connection, section):
    connection("tao_ledger", host="db", schema="tao", login="ada", password="hunter2", extra={"sslkey": "hunter3"})
    section(ledger="conn:tao_ledger")
    assert "hunter" not in repr(settings.watcher().get())
    assert "hunter" not in repr(settings.CONNECTIONS.find("tao_ledger"))


def test_nothing_is_looked_up_until_the_ledger_is_used(section, connection, tmp_path):
    section(ledger="conn:tao_ledger")
    tao = settings.tao_here()
    assert tao is not None
    assert tao.config.ledger == "conn:tao_ledger"
    assert tao.ledger.failures == {}
    tao.ledger.put_run(RUN)
    assert tao.ledger.failures == {"CONNECTION_UNKNOWN": 1}
    assert tao.incidents.of_run("run-1")[0].remedy.startswith("create it in Admin")
    # It is created later, in the UI: no process need be started anew for it.
    connection("tao_ledger", host=f"{tmp_path}/ledger.db")
    assert tao.ledger.flush(5.0)
    assert [run.run_id for run in open_ledger(f"sqlite:///{tmp_path}/ledger.db").runs()] == ["run-1"]


def test_a_connection_of_airflows_database_is_found(airflow_database):
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Connection(conn_id="tao_kept", conn_type="tao_flows", host="db", schema="tao", password="p"))
    assert settings.CONNECTIONS.find("tao_kept") == Found("tao_kept", "db", schema="tao", password="p")


def test_a_signals_key_is_the_password_or_the_extras_field_of_its_provider(connection):
    connection("em_key", login="ada", password="abc")
    found = settings.CONNECTIONS.credentials(signal("electricitymaps", key="conn:em_key"))
    assert (found.key, found.user) == ("abc", "ada")
    connection("keys", extra={"electricitymaps": "def", "watttime": "ghi"}, login="bob")
    assert settings.CONNECTIONS.credentials(signal("electricitymaps", key="conn:keys")).key == "def"
    mine = settings.CONNECTIONS.credentials(signal("watttime", key="conn:keys", user="ada"))
    assert (mine.key, mine.user) == ("ghi", "ada")
    assert settings.CONNECTIONS.credentials(signal("electricitymaps", key_env="K")) is None


def test_a_signals_connection_that_is_not_there_is_that_signals_problem():
    with pytest.raises(SourceError) as caught:
        settings.CONNECTIONS.credentials(signal("electricitymaps", key="conn:none"))
    assert caught.value.code == "SIGNAL_KEY"
    assert "none cannot be had" in caught.value.summary


PLAIN = """
from airflow.sdk import DAG, task

with DAG("dag") as dag:
    @task
    def work():
        return 1

    work()
"""


def test_a_tasks_process_asks_its_supervisor_once_and_its_records_wait_where_that_does_not_help(section, run_here):
    section(ledger="conn:tao_ledger")
    outcome = run_here(PLAIN, "work")
    assert outcome.state == "success"
    assert [msg.conn_id for msg in outcome.of_type("GetConnection")] == ["tao_ledger"]
    spool = spool_of("conn:tao_ledger")
    assert spool is not None
    assert spool.has_records()
    settings.tao_here().ledger.close()


@pytest.mark.usefixtures("airflow_database")
def test_a_task_finds_its_ledger_by_way_of_the_real_execution_api_and_no_log_shows_the_password(tmp_path):
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        stored = {"host": f"{tmp_path}/ledger.db", "login": "ada", "password": "hunter2"}
        session.add(Connection(conn_id="tao_by_api", conn_type="tao_flows", **stored))
    # With a supervisor and an API server in its one process.
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], "by_api.py")
    file.write_text(PLAIN.replace('"dag"', '"by_api"') + "\nif __name__ == '__main__':\n    dag.test()\n")
    env = os.environ | {"AIRFLOW__TAO_FLOWS__LEDGER": "conn:tao_by_api"}
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    (run,) = ledger.runs()
    tasks = ledger.tasks(RunRef("airflow", run.namespace, run.run_id, run.flow))
    assert [(record.key.task, record.state.value) for record in tasks] == [("work", "completed")]
    ledger.close()


class Channel:
    """A task's channel before Airflow 3.2, when it was the main thread's alone."""


class SharedChannel(Channel):
    """One of Airflow 3.2 and later."""

    _thread_lock = None


@pytest.mark.parametrize(("channel", "may"), [(Channel(), False), (SharedChannel(), True)])
def test_a_thread_asks_the_supervisor_only_where_no_other_could_take_its_answer(channel, may):
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_compat.may_ask_supervisor(channel)))
    thread.start()
    thread.join()
    assert answers == [may]
    assert _compat.may_ask_supervisor(channel)


def test_what_threads_may_not_ask_for_is_asked_for_before_they_need_it(connection, monkeypatch):
    connection("tao_ledger", host="db", schema="tao")
    monkeypatch.setattr(_compat, "supervisor_channel", Channel)
    connections = AirflowConnections()
    problems: list[str] = []

    def find() -> None:
        try:
            connections.find("tao_ledger")
        except LedgerError as error:
            problems.append(error.code)

    for before in (True, False):
        thread = threading.Thread(target=find)
        thread.start()
        thread.join()
        if before:
            monkeypatch.setattr(_compat, "connection", _stored)
            connections.fetch(["tao_ledger", "none"])
    assert problems == ["CONNECTION_UNKNOWN"]


def _stored(name: str) -> Any:
    from airflow.models.connection import Connection

    if name == "none":
        raise LookupError(name)
    return Connection(conn_id=name, conn_type="tao_flows", host="db", schema="tao")


def test_what_could_not_be_had_is_not_asked_for_again_at_once(monkeypatch):
    asked: list[str] = []

    def fail(name: str) -> Any:
        asked.append(name)
        raise TimeoutError("the API server does not answer")

    monkeypatch.setattr(_compat, "supervisor_channel", Channel)
    monkeypatch.setattr(_compat, "connection", fail)
    connections = AirflowConnections()
    for _ in range(3):
        with pytest.raises(LedgerError, match="does not answer"):
            connections.find("tao_ledger")
    assert asked == ["tao_ledger"]
