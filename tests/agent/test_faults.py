"""A full disk, a directory that will not do, an agent that is there already, and options that make no sense."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from agent_support import NOBODY, TAO_FLOWS, Agent, Client, Driver, assert_sums, eventually


def refused(*options: str, **more) -> str:
    """The one line with which an agent does not start."""
    done = subprocess.run(
        [sys.executable, "-c", TAO_FLOWS, "agent", *options], capture_output=True, text=True, timeout=60, **more
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def incidents(agent: Agent) -> dict[str, int]:
    with Client(agent.socket) as client:
        return client.status()["incidents"]


def test_with_a_full_disk_the_agent_goes_on_and_says_so(directory, host):
    disk = directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    agent = None
    try:
        (disk / "filler").write_bytes(b"x" * (60 << 10))
        agent = Agent(directory / "full", host, "--state", str(disk))
        with Client(agent.socket) as client:
            windows = [client.begin("thread", tid=threading.get_native_id()) for _ in range(40)]
            eventually(lambda: client.status()["incidents"].get("STATE_NOT_SAVED"))
            for window in reversed(windows):
                assert_sums(client.end(window))
        assert not (disk / "agent.json.new").exists()
        (disk / "filler").unlink()
        eventually((disk / "agent.json").exists)
        agent.assert_well()
    finally:
        if agent is not None:
            agent.close()
        subprocess.run(["umount", str(disk)], check=True)


def test_a_limit_on_the_size_of_files_does_not_end_it(directory, host):
    agent = Agent(directory / "limited", host, wrapper=("prlimit", "--fsize=0:0"))
    try:
        eventually(lambda: incidents(agent).get("STATE_NOT_SAVED"))
        agent.assert_well()
    finally:
        agent.close()


def test_a_state_directory_that_is_not_there_is_made(directory, host):
    agent = Agent(directory / "made", host, "--state", str(directory / "new" / "state"))
    try:
        eventually((directory / "new" / "state" / "agent.json").exists)
        assert stat.S_IMODE((directory / "new" / "state").stat().st_mode) == 0o700
    finally:
        agent.close()


def test_a_socket_where_everyone_may_put_files_is_refused(tmp_path):
    tmp_path.chmod(0o1777)
    assert "SOCKET_DIRECTORY" in refused("--socket", str(tmp_path / "agent.sock"))
    assert os.listdir(tmp_path) == []


def test_a_socket_that_cannot_be_made_is_refused(tmp_path):
    assert "SOCKET_FAILED" in refused("--socket", "/proc/agent/agent.sock")
    assert "SOCKET_FAILED" in refused("--socket", str(tmp_path / ("long" * 40) / "agent.sock"))


def test_what_is_no_socket_is_not_removed_for_one(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("still here")
    assert "SOCKET_FAILED" in refused("--socket", str(precious))
    assert precious.read_text() == "still here"
    (tmp_path / "link").symlink_to(precious)
    assert "SOCKET_FAILED" in refused("--socket", str(tmp_path / "link"))
    assert precious.read_text() == "still here"


def test_there_is_one_agent_at_a_socket(agent):
    assert "AGENT_RUNNING" in refused("--socket", str(agent.socket))
    agent.assert_well()


def test_a_stale_socket_and_a_stale_lock_are_no_obstacle(directory, host):
    place = directory / "stale" / "run"
    place.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(place / "agent.sock"))
    (place / "agent.sock.lock").write_text("99999\n")
    agent = Agent(directory / "stale", host)
    agent.assert_well()
    assert agent.stop() == 0
    assert not agent.socket.exists()


SENSELESS = [
    (("--hz", "0"), "BAD_HZ"),
    (("--hz", "-3"), "BAD_HZ"),
    (("--hz", "nan"), "BAD_HZ"),
    (("--hz", "1000"), "BAD_HZ"),
    (("--group", "no-such-group"), "NO_GROUP"),
    (("--trust-group", "no-such-group"), "NO_GROUP"),
    (("--metrics", "no:port"), "BAD_METRICS_ADDRESS"),
    (("--hz", "often"), "hz"),
    (("--no-such-option",), "no-such-option"),
]


def test_options_that_make_no_sense_are_refused_on_one_line(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda each: refused("--socket", str(tmp_path / "agent.sock"), *each[0]), SENSELESS))
    for line, (options, code) in zip(said, SENSELESS, strict=True):
        assert code in line, options


def test_on_a_host_without_counters_it_counts_cpu_time(directory):
    agent = Agent(directory / "bare", None)
    try:
        with Client(agent.socket) as client:
            assert client.about["domains"] == []
            figure = client.end(client.begin("thread", tid=threading.get_native_id()))
            assert figure["domains"] == []
            assert figure["cpu_ns"] >= 0
        agent.assert_well()
    finally:
        agent.close()


def test_it_runs_as_an_ordinary_user_for_that_user(directory, host):
    home = directory / "own"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    agent = Agent(home, host, wrapper=_as_user(NOBODY))
    try:
        with (
            Driver(agent.socket, wrapper=_as_user(NOBODY)) as own,
            Driver(agent.socket, wrapper=_as_user(NOBODY + 1)) as other,
        ):
            assert own.hello()["privileged"]
            assert not other.hello().get("privileged")  # whom the kernel may not let it watch at all
            window = own.begin("thread", tid=own.do("own")["tid"])
            own.do("burn", cpu_s=0.05)
            assert_sums(own.end(window))
    finally:
        agent.close()


def _as_user(uid: int) -> tuple[str, ...]:
    return ("setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups")


def test_sampling_more_often_than_it_can_keep_up_with_starves_no_client(directory, host):
    agent = Agent(directory / "often", host, "--hz", "100")
    try:
        with Client(agent.socket) as client:
            for _ in range(20):
                assert_sums(client.end(client.begin("thread", tid=threading.get_native_id())))
    finally:
        agent.close()
