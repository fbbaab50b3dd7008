"""Records by way of the agent: several users' tasks, an agent that is killed, a ledger that is gone, and strange files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from agent_support import NOBODY, Agent, Client, Driver, eventually

from tao_flows.agent.spooling import Spooling
from tao_flows.errors import ConfigError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.wireformat import Entry, encode
from tao_flows.ledger.writeonly import SpoolLedger
from tao_flows.records import Incident, RunKey, Segment, TaskRecord, TaskState

RUN = RunRef("e", "n", "run", "flow")
WRITE = """
import os, sys
uid, url, first, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from tao_flows.ledger import open_ledger
from tao_flows.ledger import writeonly
from tao_flows.records import *
os.setgroups([]); os.setgid(uid); os.setuid(uid)
ledger = open_ledger(url)
for number in range(first, first + count):
    key = RunKey("e", "n", "flow", "run", "task", str(number), 1)
    ledger.put_task(TaskRecord(key, Segment("h", "b", 1, 1), TaskState.RUNNING, number))
"""


class Forwarding:
    """An agent that forwards to a ledger, and the directory where tasks leave records."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "spool"
        self.ledger_directory = directory / "ledger"
        self.ledger_url = f"sqlite:///{self.ledger_directory}/ledger.db"
        options = ("--no-bpf", "--forward", self.ledger_url, "--spool", str(self.root))
        self.agent = Agent(directory, None, *options)
        self.url = f"spool://{self.root}/{{uid}}"

    def write(self, uid: int, first: int, count: int = 20) -> None:
        done = subprocess.run(
            [sys.executable, "-c", WRITE, str(uid), self.url, str(first), str(count)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def held(self) -> list[int]:
        with closing(open_ledger(self.ledger_url)) as ledger:
            return sorted(int(record.key.instance) for record in ledger.tasks(RUN))

    def incidents(self) -> dict[str, int]:
        with Client(self.agent.socket) as client:
            found: dict[str, int] = client.status()["incidents"]
        return found


@pytest.fixture
def forwarding(directory: Path, request: pytest.FixtureRequest) -> Iterator[Forwarding]:
    made = Forwarding(directory / request.node.name[:40])
    yield made
    made.agent.close()


def test_tasks_of_several_users_reach_the_ledger_by_way_of_the_agent(forwarding: Forwarding) -> None:
    for uid in (0, NOBODY):
        with Driver(forwarding.agent.socket, uid=uid) as driver:
            driver.hello()
        found = (forwarding.root / str(uid)).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (uid, 0o700)
    forwarding.write(NOBODY, 0)
    forwarding.write(0, 100)
    eventually(lambda: forwarding.held() == [*range(20), *range(100, 120)])
    eventually(lambda: not Spool(forwarding.root / str(NOBODY)).has_records())
    assert forwarding.agent.stop() == 0


def test_who_may_not_connect_gets_no_directory(forwarding: Forwarding) -> None:
    assert [path.name for path in forwarding.root.iterdir()] == []
    with Client(forwarding.agent.socket):
        pass
    assert [path.name for path in forwarding.root.iterdir()] == ["0"]


def test_records_wait_for_an_agent_that_was_killed_and_for_a_ledger_that_is_gone(forwarding: Forwarding) -> None:
    with Driver(forwarding.agent.socket, uid=NOBODY) as driver:
        driver.hello()
    forwarding.write(NOBODY, 0)
    eventually(lambda: len(forwarding.held()) == 20)
    forwarding.agent.kill()
    forwarding.write(NOBODY, 20)
    aside = forwarding.ledger_directory.with_name("aside")
    forwarding.ledger_directory.rename(aside)
    forwarding.ledger_directory.write_text("")
    forwarding.agent.start()
    eventually(lambda: forwarding.incidents().get("LEDGER_UNREACHABLE"))
    forwarding.write(NOBODY, 40)
    forwarding.ledger_directory.unlink()
    aside.rename(forwarding.ledger_directory)
    eventually(lambda: forwarding.held() == list(range(60)), within_s=30)


def test_what_is_not_a_users_own_file_is_left_alone_and_counted(forwarding: Forwarding, directory: Path) -> None:
    with Driver(forwarding.agent.socket, uid=NOBODY) as driver:
        driver.hello()
    own = forwarding.root / str(NOBODY)
    secret = directory / "secret.spool"
    Spool(directory / "of-root").append([encode(Entry(Incident("SECRET", "", wall_ns=1)))])
    (source,) = (directory / "of-root").glob("*.spool")
    os.link(source, secret)
    (own / f"{'1' * 20}-link.spool").symlink_to(source)
    os.link(source, own / f"{'2' * 20}-hard.spool")
    (own / f"{'3' * 20}-roots.spool").write_bytes(source.read_bytes())
    os.mkfifo(own / f"{'4' * 20}-fifo.spool")
    forwarding.write(NOBODY, 0)
    eventually(lambda: forwarding.incidents().get("SPOOL_STRANGE") == 4)
    eventually(lambda: len(forwarding.held()) == 20)
    with closing(open_ledger(forwarding.ledger_url)) as ledger:
        assert ledger.incidents() == []
    assert source.exists()


def test_what_the_ledger_refuses_is_kept_where_its_writer_cannot_reach(forwarding: Forwarding) -> None:
    with Client(forwarding.agent.socket):
        pass
    Spool(forwarding.root / "0").append([b'{"v":1,"kind":"cake","body":{}}'])
    eventually(lambda: forwarding.incidents().get("SPOOL_REFUSED") == 1)
    assert (forwarding.root / "refused" / "0").read_bytes().endswith(b'"body":{}}\n')


def test_a_user_who_fills_the_spool_loses_their_oldest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spooling = Spooling(
        tmp_path / "root", f"sqlite:///{tmp_path}/file/ledger.db", capacity_bytes=50_000, interval_s=0.05
    )
    try:
        spooling.welcome(os.geteuid())
        spool = Spool(tmp_path / "root" / str(os.geteuid()), segment_bytes=10_000)
        for number in range(1_000):
            spool.append([encode(Entry(Incident("NOTE", "x" * 200, wall_ns=number)))])
        spool.close()
        eventually(lambda: spooling.incidents.get("SPOOL_DROPPED", 0) > 500)
        assert spool.status().size_bytes <= 50_000
    finally:
        spooling.close()


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        Spooling(tmp_path / "open", f"sqlite:///{tmp_path}/ledger.db")
    assert caught.value.code == "SPOOL_DIRECTORY"


def test_a_task_without_an_agent_is_told_that_its_directory_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = SpoolLedger(f"{tmp_path}/file/{{uid}}")
    with pytest.raises(Exception, match="SPOOL_FAILED"):
        ledger.put_task(
            TaskRecord(RunKey("e", "n", "f", "r", "t", "0", 1), Segment("h", "b", 1, 1), TaskState.RUNNING, 1)
        )
