"""An agent that has served for long: it holds what it held at first."""

from __future__ import annotations

import threading

from agent_support import NOBODY, Agent, Client, Driver, assert_sums, eventually

WINDOWS = 2_000
MOST_GROWTH_BYTES = 2 << 20


def open_and_end(client: Client, number: int) -> None:
    """Windows of every kind in turn, several open at once, ended in another order."""
    tid = threading.get_native_id()
    kinds = ("thread", "steps", "process", "thread")
    for _ in range(number // len(kinds)):
        windows = [client.begin(kind, tid=tid) for kind in kinds]
        for window in (windows[2], windows[0], windows[3], windows[1]):
            assert_sums(client.end(window, cpu_ns=1_000))


def open_and_end_as(stranger: Driver, number: int) -> None:
    """The same for a client who is answered once a second."""
    windows = [stranger.begin("thread", tid=1) for _ in range(number)] if number else []
    ends = [{"op": "end", "seq": seq, **window} for seq, window in enumerate(windows)]
    stranger.do("send", messages=ends)
    for _ in ends:
        assert stranger.do("receive")[1]["ok"]


def test_two_thousand_windows_later_it_holds_no_more_than_before(agent, client):
    with Driver(agent.socket, uid=NOBODY, wrapper=("unshare", "--pid", "--fork", "--kill-child")) as stranger:
        stranger.hello("engine")
        assert stranger.pid == 1
        open_and_end(client, WINDOWS)  # what is kept once and for all is there now
        open_and_end_as(stranger, 50)
        before, descriptors, resident_bytes = status(client), agent.descriptors(), agent.resident_bytes()
        for _ in range(2):
            open_and_end(client, WINDOWS)
            open_and_end_as(stranger, 100)
        after = status(client)
        assert after == before
        assert (after["windows"], after["waiting"]) == (0, 0)
        assert agent.descriptors() == descriptors
        assert agent.resident_bytes() - resident_bytes < MOST_GROWTH_BYTES
    agent.assert_well()


def status(client: Client) -> dict:
    return client.status()["counts"]


def test_the_state_it_writes_does_not_grow(agent: Agent, client):
    def next_size() -> int:
        before = agent.state.stat().st_mtime_ns
        eventually(lambda: agent.state.exists() and agent.state.stat().st_mtime_ns > before)
        return agent.state.stat().st_size

    eventually(agent.state.exists)
    open_and_end(client, 100)
    small = next_size()
    open_and_end(client, 400)
    assert next_size() <= small + 200
