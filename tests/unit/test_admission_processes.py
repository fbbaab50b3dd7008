"""Processes that are forked or killed while they decide."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from place import ASK, TEAM, Wired, number


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    wired = Wired(tmp_path)
    yield wired
    wired.safe.close()
    wired.ledger.close()


FORKS = """
import os, sys, threading, time
from tao_flows import runtime
from tao_flows.admission import Ask
from tao_flows.records import RunKey
def ask(instance):
    tao = runtime.current()
    key = RunKey("prefect", "default", "f", "run", "train", instance, 1)
    return tao.admission.ask(Ask(key, "home", time.time_ns(), budget="team"), tao.config)
ask("first")  # a fork in the middle of an import is Python's to hang on
stop = threading.Event()
def busy(number):
    count = 0
    while not stop.is_set():
        ask(f"{number}-{count}"); count += 1
threads = [threading.Thread(target=busy, args=(n,), daemon=True) for n in range(4)]
for thread in threads: thread.start()
children = []
for n in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if ask(f"child-{n}").decision is not None else 1)
    children.append(pid)
    time.sleep(0.02)
stop.set()
for thread in threads: thread.join()
print([os.waitpid(pid, 0)[1] for pid in children])
"""


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_process_that_is_forked_while_threads_decide_decides_too(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/l.db" if database == "sqlite" else request.getfixturevalue("postgres_url")
    (tmp_path / "tao-flows.toml").write_text(f'mode = "enforce"\nledger = "{url}"\n{TEAM}', encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", FORKS], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.strip() == str([0] * 20), run.stderr


HOLDS = """
import sys, time
from tao_flows import runtime
from tao_flows.admission import Ask
from tao_flows.records import RunKey
tao = runtime.current()
key = RunKey("prefect", "default", "nightly", "run-1", "train", "killed", 1)
print(tao.admission.ask(Ask(key, "home", time.time_ns(), budget="team"), tao.config).action, flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_reserved_comes_back_when_its_lease_is_over(wired: Wired) -> None:
    wired.ran(1_500.0)
    config = wired.configured(TEAM)
    settings = wired.directory / "tao-flows.toml"
    settings.write_text(f'mode = "enforce"\nledger = "{wired.ledger.url}"\n{TEAM}', encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], cwd=wired.directory, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "run"
        os.kill(process.pid, signal.SIGKILL)
    admission = wired.admission(config)
    ask = replace(ASK, budget="team")
    assert admission.ask(number(ask, 2), config).action == "deny"
    with wired.ledger.transaction() as tx:  # ten minutes later
        tx.change("UPDATE reservations SET lease_until_wall_ns = lease_until_wall_ns - 600000000000")
    assert admission.ask(number(ask, 3), config).action == "run"
