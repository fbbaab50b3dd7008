"""An agent that is killed or stopped midway, and the one after it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import NOBODY, Agent, Client, Driver, Host, assert_sums, burn, domain, eventually

from tao_flows.agent import state
from tao_flows.agent.peer import Peer
from tao_flows.agent.registry import Registry
from tao_flows.agent.sampler import Sampler
from tao_flows.agent.wire import Begin
from tao_flows.clock import SystemClock
from tao_flows.telemetry.polled_parties import PolledParties
from tao_flows.telemetry.procfs import PROC_ROOT, process_stat
from tao_flows.telemetry.rapl import RaplSource
from tao_flows.units import NS_PER_S


def saved(agent: Agent) -> dict:
    """The state that the agent last wrote."""
    return json.loads(agent.state.read_bytes().partition(b"\n")[2])


def saved_or_none(agent: Agent) -> dict | None:
    try:
        return saved(agent)
    except ValueError:
        return None


def this_process() -> Peer:
    stat = process_stat("self")
    return Peer(stat.pid, stat.start_ticks, 0, 0, frozenset(), "")


def wait_for_state(agent: Agent, windows: int) -> None:
    """Waits until a state that is written from now on has so many windows."""
    now_ns = time.monotonic_ns()

    def is_there() -> bool:
        document = saved(agent) if agent.state.exists() else {"saved_ns": 0}
        if document["saved_ns"] <= now_ns:
            return False
        return sum(len(session["windows"]) for session in document["sessions"]) == windows

    eventually(is_there)


def reconnected(old: Driver, agent: Agent) -> None:
    old.do("reconnect")
    assert old.hello("engine")["ok"]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_next_agent_takes_up_every_kind_of_window_and_says_that_there_was_a_gap(agent, host, how):
    root, stranger = Driver(agent.socket), Driver(agent.socket, uid=NOBODY)
    begun: list[tuple[Driver, str, dict]] = []
    with root, stranger:
        for each in (root, stranger):
            each.hello("engine")
            tid, pid = each.do("thread", cpu_s=0.4), each.do("spawn", cpu_s=0.4)
            for kind, fields in (
                ("command", {"pid": pid}),
                ("thread", {"tid": tid}),
                ("steps", {"tid": each.do("own")["tid"]}),
                ("steps", {"tid": tid}),
                ("process", {}),
            ):
                begun.append((each, kind, each.begin(kind, **fields)))
        for each in (root, stranger):
            each.do("let_go", child=0)
            each.do("work", number=0)
            each.do("burn", cpu_s=0.3)
        wait_for_state(agent, windows=10)
        down_s = time.monotonic()
        agent.kill() if how == "kill" else agent.stop()
        time.sleep(0.4)
        assert agent.socket.exists() == (how == "kill")  # a stale socket is no obstacle
        agent.start()
        down_s = time.monotonic() - down_s
        assert any("took up 10 windows" in line for line in agent.said)
        for each in (root, stranger):
            reconnected(each, agent)
        for each in (root, stranger):
            asked = [window for asker, _, window in begun if asker is each]
            ends = [{"op": "end", "seq": 9, "cpu_ns": round(0.1 * NS_PER_S), **window} for window in asked]
            each.do("send", messages=ends)
        for each, kind, _ in begun:
            answer = each.do("receive")[1]
            assert answer["ok"], answer
            figure = answer["figure"]
            assert 0.4 <= figure["gap_ns"] / NS_PER_S <= down_s + 3
            assert figure["lower_bound"]
            assert "AGENT_RESTARTED" in figure["codes"]
            assert 0 < domain(figure)["known"] < 1.0
            assert domain(figure)["task_uj"] > 0, kind
            if each is root:
                assert_sums(figure)
                assert domain(figure)["counter_uj"] <= host.moved_uj["intel-rapl:0"]
            if kind in {"command", "thread"}:
                assert figure["cpu_ns"] / NS_PER_S == pytest.approx(0.4, rel=0.05, abs=0.04), kind
        with Client(agent.socket) as client:
            assert client.status()["counts"]["windows"] == 0
    agent.assert_well()


def test_steps_on_a_threads_window_are_steps_on_that_window_after_a_restart(agent):
    with Driver(agent.socket) as each:
        each.hello("engine")
        tid = each.do("thread", cpu_s=0.3)
        outer = each.begin("thread", tid=tid)
        steps = each.begin("steps", tid=tid)
        each.do("burn", cpu_s=0.5)  # by another thread: neither window's
        each.do("work", number=0)
        wait_for_state(agent, windows=2)
        agent.kill()
        agent.start()
        reconnected(each, agent)
        of_steps = each.end(steps, cpu_ns=round(10 * NS_PER_S))
        of_outer = each.end(outer)
        assert of_steps["cpu_ns"] == pytest.approx(of_outer["cpu_ns"], rel=0.02, abs=NS_PER_S // 50)


def test_what_ended_in_the_gap_is_still_told(agent):
    with Driver(agent.socket) as each:
        each.hello("engine")
        child = each.do("spawn", cpu_s=0.2)
        window = each.begin("command", pid=child)
        each.do("let_go", child=0)
        time.sleep(0.4)
        wait_for_state(agent, windows=1)
        agent.kill()
        os.kill(child, signal.SIGKILL)
        each.do("reap", pid=child)
        agent.start()
        reconnected(each, agent)
        figure = each.end(window)
        assert_sums(figure)
        assert figure["gap_ns"] > 0
        assert 0.1 < figure["cpu_ns"] / NS_PER_S < 0.25


def test_what_a_client_inside_a_command_had_used_before_it_died_in_the_gap_stays_the_commands(agent):
    with Driver(agent.socket) as outer, Driver(agent.socket) as inner, Client(agent.socket) as root:
        assert outer.hello()["ok"]
        window = root.begin("command", pid=inner.pid)
        inner.hello("none")
        inner.do("burn", cpu_s=0.4)
        wait_for_state(agent, windows=1)
        agent.kill()
        inner.kill()
        agent.start()
        with Client(agent.socket) as again:
            figure = again.end(window)
            assert figure["cpu_ns"] / NS_PER_S == pytest.approx(0.4, rel=0.1, abs=0.1)
            assert_sums(figure)


def test_windows_of_clients_that_died_in_the_gap_are_dropped(agent):
    with Driver(agent.socket) as each:
        each.hello("none")
        each.begin("thread", tid=each.do("own")["tid"])
        wait_for_state(agent, windows=1)
        agent.kill()
    agent.start()
    assert any("took up 0 windows" in line for line in agent.said)
    with Client(agent.socket) as client:
        assert client.status()["counts"]["windows"] == 0
        assert client.status()["counts"]["clients"] == 1


def _resigned(raw: bytes, change) -> bytes:
    document = json.loads(raw.partition(b"\n")[2])
    change(document)
    text = json.dumps(document).encode()
    return state._digest(text) + b"\n" + text


DAMAGES = {
    "empty": lambda raw: b"",
    "rubbish": lambda raw: b"\0\xff" * 999,
    "truncated": lambda raw: raw[: len(raw) // 2],
    "one byte": lambda raw: raw[:-10] + bytes([raw[-10] ^ 1]) + raw[-9:],
    "huge": lambda raw: b"x" * (65 << 20),
    "another boot": lambda raw: _resigned(raw, lambda document: document.update(boot="another")),
    "other domains": lambda raw: _resigned(raw, lambda document: document.update(domains=["gpu-0"])),
    "another form": lambda raw: _resigned(raw, lambda document: document.update(form="tao-flows/agent-state/9")),
    "no object": lambda raw: state._digest(b"[]") + b"\n[]",
    "deep": lambda raw: state._digest(b"[" * 99_999) + b"\n" + b"[" * 99_999,
    "no fields": lambda raw: _resigned(raw, lambda document: document.pop("sessions")),
}


@pytest.fixture
def registry(host: Host, tmp_path: Path) -> Iterator[Registry]:
    """What an agent would take a state up into."""
    clock = SystemClock()
    source, counter = RaplSource(host.tree.root, clock), PolledParties()
    yield Registry(Sampler([source], counter, None, 0.1, clock), PROC_ROOT, clock)
    counter.close()
    source.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_is_none_is_left_alone_with_a_remark(registry, tmp_path, damage):
    session = registry.hello(this_process(), "none")
    registry.begin(session, Begin(1, "steps", "x", None, None, ()))
    state.save(tmp_path, registry, registry.now_ns())
    registry.leave(session)
    file = tmp_path / state.FILE
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    remark = state.restore(tmp_path, registry)
    assert "not used" in remark or "not taken up" in remark
    assert not registry.sessions
    registry.publish()


def test_a_good_state_is_taken_up(registry, tmp_path):
    # So that the test above would see it if a damaged one were.
    session = registry.hello(this_process(), "none")
    registry.begin(session, Begin(1, "steps", "x", None, None, ()))
    state.save(tmp_path, registry, registry.now_ns())
    registry.leave(session)
    assert "took up 1 windows of 1 processes" in state.restore(tmp_path, registry)


def test_a_state_that_another_user_laid_there_is_not_followed(registry, tmp_path):
    file = tmp_path / state.FILE
    state.save(tmp_path, registry, registry.now_ns())
    os.chown(file, NOBODY, NOBODY)
    assert "another user's" in state.restore(tmp_path, registry)
    file.unlink()
    for name in (state.FILE, f"{state.FILE}.new"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in state.restore(tmp_path, registry)
    state.save(tmp_path, registry, registry.now_ns())
    assert not (tmp_path / "elsewhere").exists()
    assert not file.is_symlink()
    assert state.restore(tmp_path, registry)


def test_an_agent_with_a_damaged_state_serves(agent):
    wait_for_state(agent, windows=0)
    agent.stop()
    agent.state.write_bytes(b"\xff" * 99)
    agent.start()
    assert any("damaged" in line for line in agent.said)
    agent.assert_well()
    eventually(lambda: saved_or_none(agent))


def test_the_state_is_its_owners_alone(agent):
    eventually(agent.state.exists)
    assert agent.state.stat().st_mode & 0o777 == 0o600


def test_the_counters_of_the_account_go_on_where_they_were(agent):
    with Client(agent.socket) as client:
        window = client.begin("thread", tid=threading.get_native_id())
        burn(0.3)
        wait_for_state(agent, windows=1)
    agent.kill()
    before = saved(agent)["lines"][0][0]
    assert before > 0
    agent.start()
    with Client(agent.socket) as client:
        figure = client.end(window)
        assert_sums(figure)
        assert domain(figure)["counter_uj"] <= before + 60e6 * 5


def test_who_waits_when_it_is_told_to_stop_is_answered_first(agent):
    with Driver(agent.socket, uid=NOBODY) as stranger:
        stranger.hello("none")
        window = stranger.begin("thread", tid=stranger.do("own")["tid"])
        stranger.do("send", messages=[{"op": "end", "seq": 1, **window, "keep": True}])
        first_s = stranger.do("receive")[0]
        stranger.do("send", messages=[{"op": "end", "seq": 2, **window}])
        time.sleep(0.3)  # it has read this, and does not publish yet
        assert agent.stop() == 0
        second_s, answer = stranger.do("receive")
        assert answer["ok"]
        assert second_s - first_s > 0.9
    agent.start()
