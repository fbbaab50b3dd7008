"""The agent's client over a real socket: what it asks, how it waits, and what it survives."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tao_flows.agent.client import LATE, LOST, AgentClient, Remote, find_agent
from tao_flows.agent.link import socket_paths
from tao_flows.agent.wire import AgentFigure, Begin, End, Hello
from tao_flows.errors import SourceError

FIGURE = AgentFigure(2_000_000, 1_500_000, "ebpf", False, ())


@pytest.fixture
def client(agent: Any) -> Any:
    opened = AgentClient(agent.path, "none")
    yield opened
    opened.close()


def eventually(true: Any, within_s: float = 5.0) -> bool:
    until_s = time.monotonic() + within_s
    while not true() and time.monotonic() < until_s:
        time.sleep(0.005)
    return bool(true())


def test_the_greeting_says_what_the_process_is_and_learns_what_the_agent_counts(agent: Any) -> None:
    agent.hello["domains"] = [
        {"id": "package-0", "kind": "package", "source": "rapl", "counted": True, "within": None, "events": []},
        {"id": "package-0/core", "kind": "core", "source": "rapl", "counted": False, "within": "package-0"},
        {"id": "x", "kind": "of a later version", "source": "rapl", "counted": True},
    ]
    client = AgentClient(agent.path, "engine")
    assert agent.asked == [Hello(0, "engine")]
    assert (client.about.version, client.about.privileged, client.about.cpu_source) == ("1.2", True, "ebpf")
    assert [(d.id, d.kind, d.counted) for d in client.about.domains] == [
        ("package-0", "package", True), ("package-0/core", "core", False), ("x", "other", True),
    ]  # fmt: skip
    assert client.about.counts == {"cpu"}
    client.close()


def test_a_window_is_begun_and_ended_with_what_the_caller_knows(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: FIGURE
    remote = client.begin("thread", "embed", tid=17)
    assert remote == Remote("w1", "t-w1", "thread")
    assert client.end(remote, cpu_ns=5, keep=True).result() == FIGURE
    begin, end = agent.of(Begin)[0], agent.of(End)[0]
    assert (begin.kind, begin.label, begin.pid, begin.tid) == ("thread", "embed", None, 17)
    assert (end.window, end.token, end.cpu_ns, end.keep) == ("w1", "t-w1", 5, True)


def test_a_name_of_any_length_and_of_no_unicode_is_cut_and_sent(agent: Any, client: AgentClient) -> None:
    client.begin("steps", "\udcff" + "ü" * 5_000)
    assert agent.of(Begin)[0].label == "?" + "ü" * 199


def test_answers_that_come_out_of_order_reach_who_asked(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = [client.end(client.begin("steps", str(number))) for number in range(20)]
    assert eventually(lambda: len(agent.held) == 20)
    for connection, end in reversed(agent.held):
        agent.tell(connection, end, AgentFigure(int(end.window[1:]), None, "", False, ()))
    assert [each.result().wall_ns for each in pending] == list(range(1, 21))


def test_many_threads_share_the_connection(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda end: AgentFigure(end.cpu_ns, None, "", False, ())
    told: dict[int, int] = {}

    def work(number: int) -> None:
        for turn in range(30):
            told[number * 100 + turn] = (
                client.end(client.begin("steps", ""), cpu_ns=number * 100 + turn).result().wall_ns
            )

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(told) == 240
    assert all(asked == answered for asked, answered in told.items())
    assert len(agent.connections) == 1


def test_an_end_does_not_wait_and_its_figure_is_there_later(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    assert pending.result(0) is None
    assert pending.code == LATE
    assert eventually(lambda: agent.held)
    agent.tell(*agent.held[0], FIGURE)
    assert pending.result() == FIGURE


def test_who_waits_for_a_late_figure_does_not_hold_up_who_begins(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    waiter = threading.Thread(target=pending.result)
    waiter.start()
    assert eventually(lambda: client._reading)
    assert client.begin("steps", "second").window == "w2"
    assert waiter.is_alive()
    agent.tell(*agent.held[0], FIGURE)
    waiter.join(5)
    assert pending.result() == FIGURE


def test_a_refusal_carries_the_agents_code(agent: Any, client: AgentClient) -> None:
    agent.refusals["begin"] = {"code": "AGENT_FULL", "summary": "too many", "remedy": ""}
    with pytest.raises(SourceError) as error:
        client.begin("steps", "")
    assert error.value.code == "AGENT_FULL"
    agent.refusals["end"] = {"code": "UNKNOWN_WINDOW", "summary": "no such", "remedy": ""}
    pending = client.end(Remote("w9", "t", "steps"))
    assert pending.result() is None
    assert pending.code == LOST


def test_an_agent_that_does_not_answer_is_left_alone_for_a_while(
    agent: Any, client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.mute.add("begin")
    with pytest.raises(SourceError, match=LOST):
        client.begin("steps", "first")
    with pytest.raises(SourceError, match=LOST):
        client.begin("steps", "second")
    assert [each.label for each in agent.of(Begin)] == ["first"]
    agent.mute.clear()
    client._alone_until_s = 0.0
    assert client.begin("steps", "third").window == "w2"


def test_a_window_whose_beginning_nobody_waits_for_any_more_is_ended(agent: Any, client: AgentClient) -> None:
    agent.mute.add("begin")
    with pytest.raises(SourceError):
        client.begin("steps", "slow")
    (late,) = agent.of(Begin)
    agent.connections[0].send(b'{"seq":%d,"ok":true,"window":"w1","token":"t-w1"}' % late.seq)
    assert client.end(Remote("w0", "t", "steps")).result() is not None
    assert eventually(lambda: [end.token for end in agent.of(End)] == ["t", "t-w1"])


def test_ends_are_asked_for_again_when_the_agent_was_restarted(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = [client.end(client.begin("steps", ""), cpu_ns=number) for number in (1, 2)]
    assert eventually(lambda: len(agent.held) == 2)
    agent.stop()
    agent.figure = lambda end: AgentFigure(1, None, "", False, (), gap_ns=end.cpu_ns)
    threading.Timer(0.3, agent.start).start()
    assert [each.result().gap_ns for each in pending] == [1, 2]
    assert len(agent.of(Hello)) == 2
    # And what stays open goes on with the new one.
    assert client.begin("steps", "").window == "w3"


def test_an_agent_that_does_not_come_back_costs_a_waiter_no_more_than_its_time(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    agent.stop()
    assert pending.result(0.2) is None
    assert pending.code == LOST
    with pytest.raises(SourceError, match=LOST):
        client.begin("steps", "")
    lost = client.end(Remote("w1", "t", "steps"))
    assert lost.result(0) is None
    assert lost.code == LOST


def test_an_agent_that_was_restarted_between_two_windows_costs_neither(agent: Any, client: AgentClient) -> None:
    assert client.begin("steps", "").window == "w1"
    agent.stop()
    agent.start()
    assert client.begin("steps", "").window == "w2"
    assert len(agent.of(Hello)) == 2


def test_an_agent_that_talks_nonsense_is_lost_and_asked_again(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    assert eventually(lambda: agent.held)
    agent.figure = lambda _: FIGURE
    agent.held[0][0].send(b"\xff not JSON")
    assert pending.result() == FIGURE


@pytest.mark.parametrize("figure", [None, 7, "text", {}, {"wall_ns": 1}, {"wall_ns": 1, "later": 2, "domains": []}])
def test_a_figure_that_is_none_is_no_figure(agent: Any, client: AgentClient, figure: object) -> None:
    agent.mute.add("end")
    pending = client.end(Remote("w1", "t", "steps"))
    assert eventually(lambda: agent.of(End))
    agent.connections[0].send(__import__("json").dumps({"seq": pending.seq, "ok": True, "figure": figure}).encode())
    assert pending.result() is None
    assert pending.code == LOST


def test_what_nobody_asks_for_does_not_pile_up(agent: Any, client: AgentClient) -> None:
    agent.mute.add("end")
    remote = Remote("w1", "t", "steps")
    for _ in range(5_000):
        client.end(remote)
        agent.asked.clear()
    assert len(client._waiting) <= 4_096


def test_figures_that_are_never_looked_at_are_read_away_by_later_windows(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: FIGURE
    for _ in range(2_000):
        client.end(client.begin("steps", ""))
    assert len(client._waiting) <= 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # the scripted agent has threads
def test_a_forked_child_leaves_its_parents_connection_alone(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    fd = client._link._socket.fileno()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            closed = not os.path.exists(f"/proc/self/fd/{fd}")
            try:
                client.begin("steps", "child")
            except SourceError as error:
                lost = error.code == LOST
            status = 0 if closed and lost and pending.result() is None else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    agent.tell(*agent.held[0], FIGURE)
    assert pending.result() == FIGURE
    assert len(agent.of(Begin)) == 1
    assert len(agent.connections) == 1


def test_the_connection_is_not_handed_on_to_programs(client: AgentClient) -> None:
    assert not os.get_inheritable(client._link._socket.fileno())


def test_it_has_no_thread_of_its_own(agent: Any) -> None:
    before = threading.active_count()
    one = AgentClient(agent.path, "none")
    one.end(one.begin("steps", "")).result()
    # One of the agent's serves the connection.
    assert threading.active_count() == before + 1
    one.close()


def test_a_signal_does_not_end_the_wait(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(True))
    try:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        threading.Timer(0.3, lambda: agent.tell(*agent.held[0], FIGURE)).start()
        assert pending.result() == FIGURE
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [True]


def test_an_interrupted_wait_leaves_the_connection_to_others(agent: Any, client: AgentClient) -> None:
    agent.figure = lambda _: None
    pending = client.end(client.begin("steps", ""))
    before = signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        with pytest.raises(KeyboardInterrupt):
            pending.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    agent.tell(*agent.held[0], FIGURE)
    assert pending.result() == FIGURE


def test_the_status_is_told_or_the_reason_why_not(agent: Any, client: AgentClient) -> None:
    assert client.status()["cpu_source"] == "ebpf"
    agent.refusals["status"] = {"code": "INTERNAL", "summary": "failed", "remedy": ""}
    with pytest.raises(SourceError, match="INTERNAL"):
        client.status()


# Where it is looked for, and what is said of it.


def test_off_looks_nowhere() -> None:
    search = find_agent("off", "none")
    assert search.client is None
    assert (search.diagnosis.status, search.diagnosis.code) == ("absent", "AGENT_OFF")
    assert list(socket_paths("off")) == []


def test_the_usual_places_are_the_systems_and_the_users_own() -> None:
    assert list(socket_paths("", {"XDG_RUNTIME_DIR": "/run/user/7"})) == [
        Path("/run/tao-flows/agent.sock"), Path("/run/user/7/tao-flows/agent.sock"),
    ]  # fmt: skip
    assert list(socket_paths("", {"XDG_RUNTIME_DIR": "relative"})) == [Path("/run/tao-flows/agent.sock")]
    assert list(socket_paths("/x/agent.sock", {})) == [Path("/x/agent.sock")]


def found(path: Path | str) -> tuple[str, str]:
    search = find_agent(str(path), "none")
    if search.client is not None:
        search.client.close()
    assert search.diagnosis.summary
    assert search.diagnosis.status == "ready" or search.diagnosis.remedy
    return search.diagnosis.status, search.diagnosis.code


def test_an_agent_that_answers_is_ready(agent: Any) -> None:
    assert found(agent.path) == ("ready", "READY")


def test_no_socket_is_absent(tmp_path: Path) -> None:
    assert found(tmp_path / "none.sock") == ("absent", "AGENT_ABSENT")
    assert found(tmp_path / "no/such/directory") == ("absent", "AGENT_ABSENT")


def test_a_socket_that_a_dead_agent_left_is_stale(agent: Any) -> None:
    agent.stop()
    assert found(agent.path) == ("broken", "AGENT_STALE_SOCKET")


def test_an_agent_that_does_not_greet_is_silent(agent: Any) -> None:
    agent.mute.add("hello")
    assert found(agent.path) == ("broken", "AGENT_SILENT")


def test_an_agent_of_another_version_is_told_with_its_own_words(agent: Any) -> None:
    agent.refusals["hello"] = {"code": "BAD_MESSAGE", "summary": "it speaks version 9", "remedy": "upgrade"}
    search = find_agent(str(agent.path), "none")
    assert (search.diagnosis.status, search.diagnosis.code) == ("broken", "AGENT_VERSION")
    assert "version 9" in search.diagnosis.summary
    assert search.diagnosis.remedy == "upgrade"


def test_a_refused_greeting_is_told_with_its_own_words(agent: Any) -> None:
    agent.refusals["hello"] = {"code": "PEER_HIDDEN", "summary": "not to be seen", "remedy": "hostPID: true"}
    assert found(agent.path) == ("broken", "AGENT_REFUSED")


def test_a_socket_of_another_kind_is_broken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(tmp_path / "stream.sock"))
        stream.listen()
        assert found(tmp_path / "stream.sock") == ("broken", "AGENT_UNREACHABLE")
    assert found("/" + "x" * 200) == ("broken", "AGENT_UNREACHABLE")


def test_a_greeting_that_makes_no_sense_is_broken(agent: Any) -> None:
    agent.hello["domains"] = [{"no": "id"}]
    assert found(agent.path) == ("broken", "AGENT_UNREACHABLE")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_connect_is_told_which_group_to_join(agent: Any) -> None:
    agent.stop()
    reachable = Path(tempfile.mkdtemp())
    reachable.chmod(0o755)
    agent.path = reachable / "agent.sock"
    agent.start()
    agent.path.chmod(0o660)
    code = (
        # What is needed later is imported now: an interpreter of root's own is out of reach then.
        "import grp, os, sys\nfrom tao_flows.agent.client import find_agent\nos.setgroups([])\nos.setgid(65534)\n"
        "os.setuid(65534)\nsaid = find_agent(sys.argv[1], 'none').diagnosis\n"
        "print(said.status, said.code, said.remedy)"
    )
    done = subprocess.run([sys.executable, "-c", code, agent.path], capture_output=True, text=True, check=True)
    shutil.rmtree(reachable)
    assert done.stdout.startswith("denied AGENT_DENIED")
    assert "--groups root" in done.stdout


@pytest.mark.parametrize(("mode", "code"), [(0o755, "READY"), (0o777, "AGENT_UNTRUSTED"), (0o1777, "AGENT_UNTRUSTED")])
def test_a_usual_place_that_anybody_may_write_to_is_not_trusted(
    agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, code: str
) -> None:
    agent.stop()
    agent.path = tmp_path / "tao-flows/agent.sock"
    agent.path.parent.mkdir()
    agent.start()
    agent.path.parent.chmod(mode)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tao_flows.agent.link.SYSTEM_SOCKET", tmp_path / "none/agent.sock")
    assert found("")[1] == code
    # Named outright it is.
    assert found(agent.path) == ("ready", "READY")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_usual_place_of_another_users_is_not_trusted(
    agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.stop()
    agent.path = tmp_path / "tao-flows/agent.sock"
    agent.path.parent.mkdir()
    agent.start()
    os.chown(agent.path.parent, 65534, 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tao_flows.agent.link.SYSTEM_SOCKET", tmp_path / "none/agent.sock")
    assert found("") == ("denied", "AGENT_UNTRUSTED")
