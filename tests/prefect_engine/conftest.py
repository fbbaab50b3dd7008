"""A real Prefect server for the whole session, and a ledger for each test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_agent import agent

__all__ = ["agent"]

HOME = tempfile.mkdtemp(prefix="tao-flows-prefect-")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = _free_port()
API_URL = f"http://127.0.0.1:{PORT}/api"
# Prefect reads its settings when it is imported, which is after this.
os.environ.update(
    {
        "PREFECT_HOME": HOME,
        "PREFECT_API_URL": API_URL,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
    }
)

from tao_flows import runtime  # noqa: E402 - after the settings
from tao_flows.ledger import open_ledger  # noqa: E402
from tao_flows.ledger.base import Ledger  # noqa: E402

_SERVERS: list[subprocess.Popen[bytes]] = []
"""The one that is up, last."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The API's address."""
    _SERVERS.append(begun_server())
    yield API_URL
    ended_server(_SERVERS.pop())


@pytest.fixture
def kill_server(server: str) -> Callable[[], None]:
    """Kills the session's server and starts it anew; comes back when it answers."""

    def kill() -> None:
        gone = _SERVERS.pop()
        gone.kill()
        gone.wait()
        _SERVERS.append(begun_server())

    return kill


def begun_server() -> subprocess.Popen[bytes]:
    """A Prefect server that answers."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(PORT)]
    with Path(HOME, "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        _wait_until_healthy(process)
    except BaseException:
        ended_server(process)
        raise
    return process


def ended_server(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes]) -> None:
    for _ in range(480):
        assert process.poll() is None, Path(HOME, "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{API_URL}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the Prefect server did not come up: " + Path(HOME, "server.log").read_text())


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    """Where this test's ledger is; nothing is there yet."""
    return tmp_path / "ledger" / "ledger.db"


@pytest.fixture
def ledger(server: str, ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """This test's own ledger, which the adapter in this process writes to."""
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(ledger_path))
    runtime.forget()
    opened = open_ledger(f"sqlite:///{ledger_path}")
    yield opened
    opened.close()
    runtime.forget()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An engine's own warnings are its makers' to mend; ours stay errors."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.prefect)
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("error:::tao_flows"))
