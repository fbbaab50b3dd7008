"""Clients who are not privileged: what they are told, when, and what they cannot reach."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import NOBODY, REFUSE_PERF, Agent, Client, Driver, domain

from tao_flows.telemetry import cgroup
from tao_flows.units import NS_PER_S

OTHER = 65_000
TRUSTED = 64_321
HOSTS_LINES = {"counter_uj", "idle_uj", "overhead_uj", "allocated_idle_uj", "unattributed_uj"}


@pytest.fixture(scope="module")
def pods() -> Iterator[list[Path]]:
    """Control groups named as Kubernetes names those of two pods."""
    parent = cgroup.own_group()
    groups = []
    for number in (1, 2):
        pod = f"pod{number:08x}-0000-4000-8000-000000000000"
        groups.append(parent / f"kubepods-tao{os.getpid()}-{pod}")
        try:
            groups[-1].mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
    yield groups
    for group in groups:
        until_s = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < until_s:
            time.sleep(0.02)
        group.rmdir()


def test_they_are_told_their_own_joules_alone_rounded_and_once_a_second(agent, driver):
    stranger = driver(uid=NOBODY)
    assert not stranger.hello("none")["privileged"]
    told_s = []
    for _ in range(3):
        window = stranger.begin("thread", tid=stranger.do("own")["tid"])
        stranger.do("burn", cpu_s=0.1)
        stranger.do("send", messages=[{"op": "end", "seq": 5, **window}])
        at_s, answer = stranger.do("receive")
        told_s.append(at_s)
        figure = answer["figure"]
        assert figure["cpu_ns"] / NS_PER_S == pytest.approx(0.1, rel=0.05, abs=0.03)
        assert "overhead_cpu_ns" not in figure
        for each in figure["domains"]:
            assert not HOSTS_LINES & each.keys()
            assert each["task_uj"] > 0
            assert {each[name] % 1000 for name in ("task_uj", "low_uj", "high_uj")} == {0}
    first_s, second_s, third_s = told_s
    # What is between two publications is a second at least; when an answer arrives is the machine's business.
    assert min(second_s - first_s, third_s - second_s) > 0.9


def test_their_joules_are_their_share_of_the_counter(agent, host, driver):
    stranger = driver(uid=NOBODY)
    stranger.hello("none")
    with Client(agent.socket) as root:
        whole = root.begin("steps")
        window = stranger.begin("thread", tid=stranger.do("own")["tid"])
        stranger.do("burn", cpu_s=0.3)
        figure = stranger.end(window)
        everything = root.end(whole)
    assert 0 < domain(figure)["task_uj"] <= domain(everything)["counter_uj"]


def test_of_a_process_window_they_are_told_their_engines_part_too(agent, driver):
    stranger = driver(uid=NOBODY)
    stranger.hello("engine")
    window = stranger.begin("process")
    stranger.do("burn", cpu_s=0.4)
    figure = stranger.end(window, cpu_ns=round(0.3 * NS_PER_S))
    assert figure["cpu_ns"] == round(0.3 * NS_PER_S)
    assert figure["overhead_cpu_ns"] / NS_PER_S == pytest.approx(0.1, abs=0.06)
    for each in figure["domains"]:
        assert not (HOSTS_LINES - {"overhead_uj"}) & each.keys()
        assert each["task_uj"] > each["overhead_uj"] > 0


def test_status_tells_them_no_counts(agent, driver):
    stranger = driver(uid=NOBODY)
    for status in (stranger.ask("status")["status"], stranger.hello()):
        assert "counts" not in status
        assert "incidents" not in status
        assert status["min_window_s"] == 1.0


def test_nobody_ends_or_sees_anothers_window(agent, driver, client):
    owner, other, same = driver(uid=NOBODY), driver(uid=OTHER), driver(uid=NOBODY)
    for each in (owner, other, same):
        each.hello("none")
    window = owner.begin("thread", tid=owner.do("own")["tid"])
    wrong = {**window, "token": "0" * 32}
    refused = [
        other.ask("end", **window),
        other.ask("end", **wrong, keep=True),
        owner.ask("end", **wrong),
        owner.ask("end", window="no-such", token=window["token"]),
        owner.ask("end", window=window["window"], token=window["token"] + "\ud800"),
        client.ask("end", **window),  # not root's either
    ]
    unknown = {key: value for key, value in refused[0].items() if key != "seq"}
    assert unknown["code"] == "UNKNOWN_WINDOW"
    for each in refused:
        assert {key: value for key, value in each.items() if key != "seq"} == unknown
    # Another process of the same user's that was told the token may.
    assert same.end(window)["wall_ns"] > 0


def test_pods_that_share_a_user_are_kept_apart(agent, driver, pods):
    owner, neighbour = (driver(uid=NOBODY, group=pod) for pod in pods)
    owner.hello("none")
    neighbour.hello("none")
    window = owner.begin("thread", tid=owner.do("own")["tid"])
    assert neighbour.ask("end", **window)["code"] == "UNKNOWN_WINDOW"
    assert owner.end(window)["wall_ns"] > 0


def test_root_in_a_pod_is_not_the_hosts_root(agent, driver, pods):
    assert driver().hello()["privileged"]
    assert not driver(group=pods[0]).hello()["privileged"]


def test_only_their_own_children_and_threads_can_be_registered(agent, driver):
    stranger, other = driver(uid=NOBODY), driver(uid=OTHER)
    stranger.hello("none")
    others_child = other.do("spawn", cpu_s=0.0)
    others_thread = other.do("thread", cpu_s=0.0)
    parent = stranger.do("own")["ppid"]
    for pid in (1, 2, parent, os.getpid(), agent.pid, other.pid, others_child, stranger.pid, 0, 2**31, 2**62, None):
        assert stranger.ask("begin", kind="command", label="x", pid=pid)["code"] == "NOT_YOURS", pid
    for tid in (1, agent.pid, other.pid, others_thread, os.getpid(), 0, 2**62):
        assert stranger.ask("begin", kind="thread", label="x", tid=tid)["code"] == "NOT_YOURS", tid
        assert stranger.ask("begin", kind="steps", label="x", tid=tid)["code"] == "NOT_YOURS", tid
    assert stranger.ask("begin", kind="thread", label="x")["code"] == "BAD_MESSAGE"
    child = stranger.do("spawn", cpu_s=0.0)
    assert stranger.ask("begin", kind="command", label="x", pid=child)["ok"]


def test_a_child_that_runs_as_another_user_is_not_theirs(agent, driver):
    # As with setuid programs: the child is theirs, and works for somebody else.
    parent = driver()
    child = parent.do("spawn", cpu_s=0.0)
    parent.do("become", uid=NOBODY)
    assert not parent.hello("none")["privileged"]
    assert parent.ask("begin", kind="command", label="x", pid=child)["code"] == "NOT_YOURS"


def test_a_child_of_theirs_is_counted(agent, driver):
    stranger = driver(uid=NOBODY)
    stranger.hello("none")
    window = stranger.begin("command", pid=stranger.do("spawn", cpu_s=0.2))
    stranger.do("let_go", child=0)
    time.sleep(0.6)
    figure = stranger.end(window)
    assert 0 < figure["cpu_ns"] / NS_PER_S <= 0.25


def test_a_window_that_is_asked_for_twice_before_it_is_told_is_told_twice(agent, driver):
    # As a client does whose connection broke: it asks again on the next one.
    stranger = driver(uid=NOBODY)
    stranger.hello("none")
    for kind in ("thread", "steps", "process"):
        window = stranger.begin(kind, tid=stranger.do("own")["tid"])
        ends = [{"op": "end", "seq": seq, **window} for seq in (21, 22)]
        stranger.do("send", messages=ends)
        first, second = (stranger.do("receive")[1] for _ in range(2))
        assert (first["seq"], second["seq"]) == (21, 22)
        assert first["figure"] == second["figure"]
        assert stranger.ask("end", **window)["code"] == "UNKNOWN_WINDOW"
    agent.assert_well()


def test_who_waits_for_a_window_whose_process_ends_is_told_so(agent, driver):
    owner, heir = driver(uid=NOBODY), driver(uid=NOBODY)
    owner.hello("none")
    heir.hello("none")
    window = owner.begin("thread", tid=owner.do("own")["tid"])
    kept = heir.end(window, keep=True)  # just after a publication, so that there is time before the next
    assert kept["wall_ns"] > 0
    heir.do("send", messages=[{"op": "end", "seq": 31, **window}])
    owner.kill()
    assert heir.do("receive")[1]["code"] == "WINDOW_LOST"


def test_members_of_the_trusted_group_are_told_what_root_is(directory, host):
    agent = Agent(directory / "trust", host, "--trust-group", str(TRUSTED))
    try:
        with Driver(agent.socket, uid=NOBODY, groups=[TRUSTED, 7]) as member, Driver(agent.socket, uid=NOBODY) as other:
            assert member.hello()["privileged"]
            assert not other.hello()["privileged"]
            window = member.begin("thread", tid=member.do("own")["tid"])
            assert "counter_uj" in domain(member.end(window))
    finally:
        agent.close()


def test_a_group_may_be_the_only_one_to_connect(directory, host):
    agent = Agent(directory / "group", host, "--group", str(TRUSTED))
    try:
        assert agent.socket.stat().st_mode & 0o777 == 0o660
        with Driver(agent.socket, uid=NOBODY, groups=[TRUSTED]) as member:
            assert member.hello()["ok"]
        with pytest.raises(AssertionError, match="has ended"), Driver(agent.socket, uid=NOBODY):
            pass
    finally:
        agent.close()


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_a_client_in_a_pid_namespace_of_its_own_registers_by_the_numbers_that_it_sees(agent, driver, uid):
    inside = driver(uid=uid, wrapper=("unshare", "--pid", "--fork", "--kill-child"))
    assert inside.pid == 1
    inside.hello("none")
    child = inside.do("spawn", cpu_s=0.3)
    thread = inside.do("thread", cpu_s=0.3)
    assert child < 100
    assert thread < 100
    command, task = inside.begin("command", pid=child), inside.begin("thread", tid=thread)
    inside.do("let_go", child=0)
    cpu_s = inside.do("work", number=0)
    time.sleep(0.5)
    assert inside.end(task)["cpu_ns"] / NS_PER_S == pytest.approx(cpu_s, rel=0.05, abs=0.03)
    assert inside.end(command)["cpu_ns"] / NS_PER_S <= 0.35
    for pid in (1, 99, os.getpid()):
        assert inside.ask("begin", kind="command", label="x", pid=pid)["code"] == "NOT_YOURS"
    assert inside.ask("begin", kind="thread", label="x", tid=child)["code"] == "NOT_YOURS"


def test_a_user_with_more_than_a_share_is_refused_and_others_are_served(directory, host):
    # Polling watches few parties: a fourth of them is soon taken.
    agent = Agent(directory / "share", host, "--no-bpf", wrapper=(sys.executable, str(REFUSE_PERF), "1"))
    try:
        with Driver(agent.socket, uid=NOBODY) as greedy, Driver(agent.socket, uid=OTHER) as other:
            greedy.hello("none")
            tid = greedy.do("own")["tid"]
            answers = [greedy.ask("begin", kind="steps", label="x", tid=tid) for _ in range(260)]
            assert sum(answer["ok"] for answer in answers) == 255  # and its process is the 256th
            assert {answer.get("code") for answer in answers} == {None, "AGENT_FULL"}
            other.hello("none")
            assert other.begin("steps", tid=other.do("own")["tid"])
            with Client(agent.socket) as root:
                assert root.status()["counts"]["refused"] == 5
                assert root.begin("steps")
    finally:
        agent.close()
