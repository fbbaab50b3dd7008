"""The ingest as a process of its own, on SQLite and on PostgreSQL: what it takes, what it refuses, and what a kill costs."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tao_flows.errors import ConfigError, InputError, LedgerError
from tao_flows.figures import Account
from tao_flows.ingest.app import Allowance
from tao_flows.ingest.server import parse_listen
from tao_flows.ingest.tokens import TokenFile, add_token
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.forward import drain, open_sink
from tao_flows.ledger.remote import RemoteLedger, token_from_environment
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.wireformat import Entry, RefusedError, encode
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

KEY = RunKey("e", "n", "flow", "run", "task", "0", 1)
RUN = RunRef("e", "n", "run", "flow")
SEGMENT = Segment("h", "b", 1, 1)
TASK = TaskRecord(KEY, SEGMENT, TaskState.RUNNING, 1_000)
CLIENT = Path(__file__).with_name("_record_writer.py")
TAO_FLOWS = "import sys; from tao_flows.cli import main; main()"


def task(number: int, **changes: Any) -> TaskRecord:
    return replace(TASK, key=replace(KEY, instance=str(number)), started_wall_ns=1_000 + number, **changes)


class Ingest:
    """The server, started as people start it."""

    def __init__(self, directory: Path, ledger_url: str, *options: str) -> None:
        self.tokens = directory / "tokens.toml"
        self.token = add_token(self.tokens, "ml")
        self.ledger_url = ledger_url
        self._options = options
        self.port = 0
        self._clients: list[RemoteLedger] = []
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", TAO_FLOWS, "ingest", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--tokens", str(self.tokens), "--ledger", self.ledger_url, *self._options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"ready at 127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(self.said))
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout=30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)

    def client(self, token: str | None = None) -> RemoteLedger:
        self._clients.append(RemoteLedger(self.url, token=lambda: token or self.token, timeout_s=20))
        return self._clients[-1]

    def ask(
        self, method: str = "POST", path: str = "/v1/records", body: bytes = b"", **headers: str
    ) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            given = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/jsonl"}
            given |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, given)
            response = connection.getresponse()
            self.headers = response.headers
            said = response.read()
            return response.status, json.loads(said) if said.startswith(b"{") else said


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ingest(tmp_path: Path, ledger_url: str) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path, ledger_url)
    yield ingest
    ingest.close()


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Ingest]:
    """Where the ledger makes no difference."""
    ingest = Ingest(tmp_path, f"sqlite:///{tmp_path}/ledger.db")
    yield ingest
    ingest.close()


@pytest.fixture
def ledger(ingest: Ingest) -> Iterator[Ledger]:
    with closing(open_ledger(ingest.ledger_url)) as ledger:
        yield ledger


def test_every_kind_of_record_arrives_as_it_was_sent_and_once(ingest: Ingest, ledger: Ledger) -> None:
    run = RunRecord("e", "n", "flow", "run", "running", 900, SEGMENT, who=Who("ml"))
    account = HostAccount("h", Account(tasks_uj=1), 1.0, "w")
    decision = DecisionRecord(KEY, 950, "advise", "run", "home", "r", {"x": [1, None]}, {})
    incident = Incident("GAP", "a gap", wall_ns=5, run_id="run", count=2)
    with closing(ingest.client()) as client:
        for _ in range(2):
            client.put_run(run)
            client.put_task(TASK)
            client.put_decision(decision)
            client.put_account(RUN, account)
            client.put_incident(incident)
    assert ledger.runs() == [run]
    assert ledger.tasks(RUN) == [replace(TASK, who=Who("ml"))]  # a record that names no team is the token's
    assert ledger.decisions(RUN) == [decision]
    assert ledger.accounts(RUN) == [account]
    assert ledger.incidents() == [incident]


def test_an_end_is_not_undone_by_a_late_start(ingest: Ingest, ledger: Ledger) -> None:
    end = replace(TASK, state=TaskState.FAILED, ended_wall_ns=2_000, who=Who("ml"))
    with closing(ingest.client()) as client:
        client.put_task(end)
        client.put_task(TASK)
    assert ledger.tasks(RUN) == [end]


def test_of_a_batch_each_record_is_settled_by_itself(ingest: Ingest, ledger: Ledger) -> None:
    good, other = encode(Entry(task(1))), encode(Entry(task(2, who=Who("web"))))
    lines = [good, b"rubbish", b'{"v":7,"kind":"task","body":{}}', b'{"v":1,"kind":"cake","body":{}}', other]
    lines += [b'{"v":1,"kind":"task","body":{"key":1}}', encode(Entry(task(3)))]
    lines += [b'{"v":1,"kind":"incident","body":{"code":"A\\u0000","summary":"\\ud800"}}']
    status, said = ingest.ask(body=b"\n".join(lines))
    assert status == 200
    assert said["settled"] == len(lines)
    codes = {each["line"]: each["code"] for each in said["refused"]}
    assert codes == {1: "RECORD_UNREADABLE", 2: "RECORD_VERSION", 3: "RECORD_KIND", 4: "TEAM_OF_ANOTHER",
                     5: "RECORD_MALFORMED", 7: "LEDGER_BAD_RECORD"}  # fmt: skip
    assert [record.key.instance for record in ledger.tasks(RUN)] == ["1", "3"]


def test_a_token_writes_nothing_into_another_teams_run(ingest: Ingest, ledger: Ledger) -> None:
    stranger = add_token(ingest.tokens, "web")
    end = replace(TASK, state=TaskState.COMPLETED, ended_wall_ns=2_000, who=Who("ml"))
    with closing(ingest.client()) as own, closing(ingest.client(stranger)) as other:
        own.put_run(RunRecord("e", "n", "flow", "run", "running", 900, SEGMENT))
        own.put_task(TASK)
        forged: Sequence[Any] = (
            lambda: other.put_task(replace(TASK, state=TaskState.COMPLETED, ended_wall_ns=10**18)),
            lambda: other.put_run(RunRecord("e", "n", "flow", "run", "failed", 900, SEGMENT, 10**18)),
            lambda: other.put_decision(DecisionRecord(KEY, 950, "enforce", "deny", "", "r", {}, {})),
            lambda: other.put_account(RUN, HostAccount("h", Account(tasks_uj=10**9), 10.0, "w")),
            lambda: other.put_incident(Incident("X", "x", wall_ns=1, run_id="run")),
        )
        for forge in forged:
            with pytest.raises(RefusedError) as caught:
                forge()
            assert caught.value.code == "RUN_OF_ANOTHER"
        with pytest.raises(RefusedError) as caught:
            other.put_task(task(1, who=Who("ml")))
        assert caught.value.code == "TEAM_OF_ANOTHER"
        other.put_run(RunRecord("e", "n", "other-flow", "run", "running", 900, SEGMENT))
        other.put_incident(Incident("X", "x", wall_ns=1, run_id="run"))  # by now there is one of that name of its own
        own.put_task(end)
    assert ledger.tasks(RUN) == [end]
    assert ledger.decisions(RUN) == []
    assert ledger.accounts(RUN) == []
    assert {(run.flow, run.who.team) for run in ledger.runs()} == {("flow", "ml"), ("other-flow", "web")}


def test_it_says_what_is_wrong_with_a_request(on_sqlite: Ingest) -> None:
    ask = on_sqlite.ask
    assert ask(Authorization="")[0] == 401
    assert on_sqlite.headers["WWW-Authenticate"] == "Bearer"
    assert ask(Authorization="Bearer tao_wrong")[0] == 401
    assert ask(Authorization=f"Basic {on_sqlite.token}")[0] == 401
    assert ask("GET", Authorization="")[0] == 401
    assert ask("GET") == (403, {"code": "WRITE_ONLY", "summary": "a token writes records and reads none"})
    assert ask("DELETE")[0] == 405
    assert on_sqlite.headers["Allow"] == "POST"
    assert ask(path="/v1/runs")[0] == 404
    assert ask(Content_Type="text/plain")[0] == 415
    assert ask(Content_Encoding="br")[0] == 415
    assert ask(body=b"no gzip", Content_Encoding="gzip")[0] == 400
    assert ask(body=gzip.compress(b"x" * 100)[:-9], Content_Encoding="gzip")[0] == 400
    assert ask(body=b"\n" * 6_000)[0] == 413
    assert ask(body=gzip.compress(b" " * (9 << 20)), Content_Encoding="gzip")[0] == 413
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not wait for the whole of what it will not take
        assert ask(body=b" " * (9 << 20))[0] == 413
    assert ask("GET", "/healthz", Authorization="") == (200, {"ok": True})
    assert ask(body=b"") == (200, {"settled": 0, "refused": []})


def test_a_changed_file_of_tokens_holds_at_once(on_sqlite: Ingest) -> None:
    first, second = on_sqlite.token, add_token(on_sqlite.tokens, "ml")
    on_sqlite.client(first).put_task(task(1))
    on_sqlite.client(second).put_task(task(2))
    third = add_token(on_sqlite.tokens, "ml", replace=True)
    on_sqlite.client(third).put_task(task(3))
    for gone in (first, second):
        with pytest.raises(LedgerError) as caught:
            on_sqlite.client(gone).put_task(task(4))
        assert caught.value.code == "INGEST_TOKEN"
    on_sqlite.tokens.write_text("this is no TOML")
    on_sqlite.client(third).put_task(task(5))


def test_a_ledger_that_fails_is_503_and_nothing_is_lost(tmp_path: Path, on_sqlite: Ingest) -> None:
    ledger = tmp_path / "ledger.db"
    ledger.write_bytes(os.urandom(8_192))
    spool = Spool(tmp_path / "spool")
    spool.append([encode(Entry(task(number))) for number in range(5)])
    client = on_sqlite.client()
    found = drain(spool.directory, client)
    assert found.taken == 0
    assert found.error is not None
    assert found.error.code == "INGEST_BUSY"
    assert on_sqlite.ask(body=encode(Entry(TASK)))[0] == 503
    assert int(on_sqlite.headers["Retry-After"]) > 0
    # Until then it is left alone, without a request.
    on_sqlite.stop()
    assert drain(spool.directory, client).error.code == "INGEST_BUSY"
    ledger.unlink()
    on_sqlite.start()
    assert drain(spool.directory, on_sqlite.client()).taken == 5
    assert len(open_ledger(on_sqlite.ledger_url).tasks(RUN)) == 5


def test_killed_in_the_midst_of_batches_it_loses_and_doubles_nothing(ingest: Ingest, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([encode(Entry(task(number))) for number in range(3_000)])
    with closing(open_ledger(ingest.ledger_url)) as ledger:
        for most in (100, 700, 1_300):
            sending = threading.Thread(target=drain, args=(spool.directory, ingest.client()))
            sending.start()
            while len(ledger.tasks(RUN)) < most:
                time.sleep(0.001)
            ingest.stop(signal.SIGKILL)
            sending.join()
            assert spool.has_records()
            ingest.start()
        assert drain(spool.directory, ingest.client()).done
        assert sorted(int(record.key.instance) for record in ledger.tasks(RUN)) == list(range(3_000))


def test_told_to_end_it_answers_what_it_has_begun(on_sqlite: Ingest, tmp_path: Path) -> None:
    body = b"\n".join(encode(Entry(task(number))) for number in range(5_000))
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(on_sqlite.ask(body=body)))
    asking.start()
    with closing(open_ledger(on_sqlite.ledger_url)) as ledger:
        while not ledger.tasks(RUN):
            time.sleep(0.01)
        assert on_sqlite.stop() == 0
        asking.join()
        ((status, said),) = answers
        assert status == 200
        # It works on one request for a second, and says how far it came.
        assert len(ledger.tasks(RUN)) == said["settled"] > 0


def clients(ingest: Ingest, tmp_path: Path, processes: int, threads: int, count: int) -> list[subprocess.Popen[bytes]]:
    env = {**os.environ, "TAO_FLOWS_INGEST_TOKEN": ingest.token}
    return [
        subprocess.Popen(
            [sys.executable, str(CLIENT), ingest.url, str(tmp_path / "spool"),
             *map(str, (n * threads * count, count, threads))],
            stdout=subprocess.PIPE, env=env,
        )
        for n in range(processes)
    ]  # fmt: skip


@pytest.mark.slow
def test_two_thousand_writers_at_once_open_as_many_connections_to_the_ledger_as_it_says(
    postgres_server: Any, tmp_path: Path
) -> None:
    ledger_url = postgres_server.fresh_url()
    ingest = Ingest(tmp_path, ledger_url, "--threads", "3")
    assert any("at most 3 connections" in line for line in ingest.said)
    name, most = ledger_url.rpartition("/")[2], 0
    try:
        started = clients(ingest, tmp_path, processes=8, threads=250, count=1)
        while any(process.poll() is None for process in started):
            most = max(
                most, int(postgres_server.admin(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"))
            )
            time.sleep(0.05)
        assert sum(len(process.communicate()[0].split()) for process in started) == 2_000
        with closing(ingest.client()) as client:
            while Spool(tmp_path / "spool").has_records():
                drain(tmp_path / "spool", client)
                time.sleep(0.1)
    finally:
        ingest.close()
    assert 1 <= most <= 3
    with closing(open_ledger(ledger_url)) as ledger:
        assert sorted(int(record.key.instance) for record in ledger.tasks(RUN)) == list(range(2_000))


@pytest.mark.slow
def test_an_ingest_that_is_gone_for_a_while_loses_no_acknowledged_record_of_processes_that_end_or_are_killed(
    on_sqlite: Ingest, tmp_path: Path
) -> None:
    started = clients(on_sqlite, tmp_path, processes=6, threads=1, count=150)
    time.sleep(1.0)
    on_sqlite.stop(signal.SIGKILL)
    time.sleep(0.5)
    for process in started[::3]:
        process.kill()
    said = [process.communicate()[0] for process in started]
    on_sqlite.start()
    acknowledged = {int(number) for text in said for number in text.split()}
    assert len(acknowledged) >= 4 * 150
    with closing(on_sqlite.client()) as client:
        assert drain(tmp_path / "spool", client).done
    with closing(open_ledger(on_sqlite.ledger_url)) as ledger:
        held = [int(record.key.instance) for record in ledger.tasks(RUN)]
    assert len(held) == len(set(held))
    assert acknowledged <= set(held)
    assert len(set(held) - acknowledged) <= 2  # one that each killed process was at


def test_a_forked_child_has_a_connection_of_its_own(on_sqlite: Ingest) -> None:
    with closing(on_sqlite.client()) as client:
        client.put_task(task(0))
        pid = os.fork()
        if pid == 0:
            client.put_task(task(1))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        client.put_task(task(2))
    with closing(open_ledger(on_sqlite.ledger_url)) as ledger:
        assert len(ledger.tasks(RUN)) == 3


def test_a_connection_that_the_server_has_ended_is_made_anew(on_sqlite: Ingest) -> None:
    with closing(on_sqlite.client()) as client:
        client.put_task(task(0))
        on_sqlite.stop()
        on_sqlite.start()
        client.put_task(task(1))
    with closing(open_ledger(on_sqlite.ledger_url)) as ledger:
        assert len(ledger.tasks(RUN)) == 2


def test_where_nothing_listens_is_said_and_it_is_left_alone(on_sqlite: Ingest) -> None:
    on_sqlite.stop()
    client = on_sqlite.client()
    with pytest.raises(LedgerError) as caught:
        client.put_task(TASK)
    assert caught.value.code == "INGEST_UNREACHABLE"
    with pytest.raises(LedgerError) as again:
        client.runs()
    assert again.value.code == "LEDGER_WRITE_ONLY"


def test_a_team_that_writes_too_fast_waits_and_others_do_not() -> None:
    now_s = [0.0]
    allowance = Allowance(10.0, lambda: now_s[0])
    assert allowance.take("ml", 150) == 0
    assert allowance.take("ml", 1) == pytest.approx(5.0)
    assert allowance.take("web", 1) == 0
    now_s[0] = 6.0
    assert allowance.take("ml", 1) == 0


@pytest.mark.parametrize(
    "url", ["http://ingest.example/x", "https://a:b@host/", "https://host/?q", "http://", "https://h:x/"]
)
def test_a_url_by_which_a_token_would_leak_or_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_ledger(url)
    assert caught.value.code == "LEDGER_URL"


def test_a_token_is_read_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("tao_two\n")
    assert token_from_environment({"TAO_FLOWS_INGEST_TOKEN": "tao_one"}) == "tao_one"
    assert token_from_environment({"TAO_FLOWS_INGEST_TOKEN_FILE": str(tmp_path / "token")}) == "tao_two"
    for env in ({}, {"TAO_FLOWS_INGEST_TOKEN_FILE": "/none"}, {"TAO_FLOWS_INGEST_TOKEN": "a\r\nX: y"}):
        with pytest.raises(LedgerError) as caught:
            token_from_environment(env)
        assert caught.value.code == "INGEST_TOKEN"


def test_a_file_of_tokens_that_others_may_read_or_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    token = add_token(path, 'a "team"')
    assert path.stat().st_mode & 0o777 == 0o600
    assert token not in path.read_text()
    assert TokenFile(path).team_of(token) == 'a "team"'
    assert TokenFile(path).team_of("tao_x") is None
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="TOKENS_EXPOSED"):
        TokenFile(path)
    path.chmod(0o600)
    path.write_text('ml = "sha256:abc"')
    with pytest.raises(ConfigError, match="BAD_TOKENS"):
        TokenFile(path)
    with pytest.raises(ConfigError, match="UNREADABLE_FILE"):
        TokenFile(tmp_path / "none")
    with pytest.raises(InputError):
        add_token(path, " ")


def test_it_listens_to_other_hosts_only_behind_a_proxy() -> None:
    assert parse_listen("127.0.0.1:8765", behind_proxy=False) == ("127.0.0.1", 8765)
    assert parse_listen("[::1]:0", behind_proxy=False) == ("::1", 0)
    assert parse_listen("0.0.0.0:80", behind_proxy=True) == ("0.0.0.0", 80)
    with pytest.raises(ConfigError) as caught:
        parse_listen("0.0.0.0:80", behind_proxy=False)
    assert caught.value.code == "LISTEN_UNENCRYPTED"
    for text in ("", "8765", "host:1", "127.0.0.1:70000", "127.0.0.1:x"):
        with pytest.raises(ConfigError, match="BAD_LISTEN"):
            parse_listen(text, behind_proxy=True)


def test_the_command_makes_tokens_and_flushes_what_waits(on_sqlite: Ingest, tmp_path: Path) -> None:
    def run(*args: str, status: int = 0, **env: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", TAO_FLOWS, *args], capture_output=True, text=True, env={**os.environ, **env}
        )
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout

    token = run("ingest", "token", "--team", "ml", "--tokens", str(on_sqlite.tokens)).strip()
    spool = Spool(tmp_path / "spool")
    spool.append([encode(Entry(task(1))), encode(Entry(task(2, who=Who("web"))))])
    where = ("--dir", str(spool.directory), "--json")
    assert run("spool", "show", *where)["segments"] == 1
    flush = ("spool", "flush", "--ledger", on_sqlite.url, *where)
    found = run(*flush, status=1, TAO_FLOWS_INGEST_TOKEN="tao_wrong")
    assert (found["taken"], found["code"]) == (0, "INGEST_TOKEN")
    found = run(*flush, TAO_FLOWS_INGEST_TOKEN=token)
    assert (found["taken"], found["refused"], found["left_bytes"]) == (1, 1, 0)
    assert run("spool", "show", *where)["refused_bytes"] > 0
    web = add_token(on_sqlite.tokens, "web")
    assert run(*flush, "--refused", TAO_FLOWS_INGEST_TOKEN=web)["refused"] == 1  # the run is ml's
    run("spool", "flush", "--ledger", f"spool://{spool.directory}", *where, status=2)


def test_a_sink_is_a_ledger_or_an_ingest(on_sqlite: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAO_FLOWS_INGEST_TOKEN", on_sqlite.token)
    spool = Spool(tmp_path / "spool")
    for first, url in ((0, on_sqlite.ledger_url), (40, on_sqlite.url)):
        spool.append([encode(Entry(task(number))) for number in range(first, first + 40)])
        sink = open_sink(url)
        assert drain(spool.directory, sink).taken == 40
    assert isinstance(sink, RemoteLedger)
    sink.close()
    with closing(open_ledger(on_sqlite.ledger_url)) as ledger:
        assert len(ledger.tasks(RUN)) == 80
