"""What the agent's tests are given."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_support import Agent, Client, Driver, Host

from tao_flows.telemetry import ebpf


@pytest.fixture(scope="session", autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("the agent's tests play several users, which takes root")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # Not below pytest's own, which other users may not enter.
    directory = Path(tempfile.mkdtemp(prefix="tao-agent-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def host(directory: Path) -> Iterator[Host]:
    host = Host(directory / "host")
    yield host
    host.close()


@pytest.fixture(scope="module")
def agent(directory: Path, host: Host) -> Iterator[Agent]:
    """One agent for all tests of a module, with eBPF."""
    if (found := ebpf.diagnose()).status != "ready":
        pytest.skip(f"{found.code}: {found.summary}")
    agent = Agent(directory, host)
    yield agent
    died = agent.process.poll() is not None
    agent.close()
    assert not died, "".join(agent.said)


@pytest.fixture
def client(agent: Agent) -> Iterator[Client]:
    """A privileged client: this process."""
    with Client(agent.socket) as client:
        yield client


@pytest.fixture
def driver(agent: Agent) -> Iterator[Callable[..., Driver]]:
    """Starts clients in processes of their own."""
    started: list[Driver] = []

    def start(**options: object) -> Driver:
        started.append(Driver(agent.socket, **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()
