"""Many clients, greedy ones, and ones that die: the others do not notice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import NOBODY, Agent, Client, Driver, assert_sums, burn, domain, eventually

from tao_flows.agent.registry import PROCESS_SHARE
from tao_flows.telemetry.ebpf import EbpfParties
from tao_flows.units import NS_PER_S

# A client that opens a connection and as many windows of each kind as it is told, says so, and waits to be killed.
BEGIN_AND_WAIT = """
import json, os, socket, sys, threading
path, uid, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if uid: os.setgroups([]); os.setgid(uid); os.setuid(uid)
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(path)
def ask(**message):
    connection.send(json.dumps({"seq": 1, **message}).encode())
    return json.loads(connection.recv(1 << 17))
ask(op="hello", v=1, role="engine")
tid = threading.get_native_id()
codes = {}
for _ in range(number):
    for kind in ("thread", "steps", "process"):
        answer = ask(op="begin", kind=kind, label="x", tid=tid)
        codes[answer.get("code", "ok")] = codes.get(answer.get("code", "ok"), 0) + 1
print(json.dumps(codes), flush=True)
sys.stdin.read()
"""
# Sends as fast as it can, reading what comes.
FLOOD = """
import json, socket, sys, threading
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
connection.send(json.dumps({"op": "hello", "seq": 1, "v": 1, "role": "tool"}).encode())
connection.recv(1 << 17)
print("up", flush=True)
tid = threading.get_native_id()
while True:
    connection.send(json.dumps({"op": "begin", "seq": 2, "kind": "thread", "label": "x", "tid": tid}).encode())
    begun = json.loads(connection.recv(1 << 17))
    end = {"op": "end", "seq": 3, "window": begun["window"], "token": begun["token"]}
    connection.send(json.dumps(end).encode())
    connection.recv(1 << 17)
"""


class Crowd:
    """Processes that all do the same."""

    def __init__(self, code: str, *arguments: str, number: int = 1) -> None:
        command = [sys.executable, "-S", "-c", code, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(number)]

    def lines(self) -> list[str]:
        return [process.stdout.readline() for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()


@pytest.fixture
def crowd() -> Iterator:
    crowds: list[Crowd] = []

    def gather(*arguments, **options) -> Crowd:
        crowds.append(Crowd(*arguments, **options))
        return crowds[-1]

    yield gather
    for each in crowds:
        each.kill()


def at_rest(client: Client, clients: int = 1) -> dict:
    """The counts once only so many clients are left."""
    eventually(lambda: client.status()["counts"]["clients"] == clients)
    return client.status()["counts"]


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_clients_that_are_killed_leave_nothing_behind_and_do_others_no_harm(agent, client, crowd, uid):
    before, descriptors = at_rest(client), agent.descriptors()
    window = client.begin("thread", tid=threading.get_native_id())
    used_s = 0.0
    for _ in range(4):
        many = crowd(BEGIN_AND_WAIT, str(agent.socket), str(uid), "3", number=25)
        assert set(many.lines()) == {'{"ok": 9}\n'}
        assert client.status()["counts"]["windows"] == 25 * 9 + 1
        many.kill()
        used_s += burn(0.05)
    after = at_rest(client)
    assert after["windows"] == 1
    assert after["lost_windows"] - before["lost_windows"] == 4 * 25 * 9
    figure = client.end(window)
    assert_sums(figure)
    own_s = figure["cpu_ns"] / NS_PER_S
    assert used_s * 0.95 <= own_s  # with what this test itself did meanwhile
    assert domain(figure)["task_uj"] <= domain(figure)["counter_uj"]
    assert agent.descriptors() <= descriptors
    agent.assert_well()


def test_a_client_that_never_ends_its_windows_keeps_nobody_from_theirs(agent, client, crowd):
    at_rest(client)
    crowd(BEGIN_AND_WAIT, str(agent.socket), "0", "50", number=2).lines()
    window = client.begin("thread", tid=threading.get_native_id())
    used_s = burn(0.1)
    figure = client.end(window)
    assert_sums(figure)
    assert figure["cpu_ns"] / NS_PER_S == pytest.approx(used_s, rel=0.05, abs=0.02)


def test_a_flood_starves_neither_the_sampling_nor_a_quiet_client(agent, client, crowd):
    at_rest(client)
    flood = crowd(FLOOD, str(agent.socket), number=2)
    assert flood.lines() == ["up\n", "up\n"]
    served = 0
    until_s = time.monotonic() + 2
    while time.monotonic() < until_s:
        window = client.begin("thread", tid=threading.get_native_id())
        burn(0.002)
        assert_sums(client.end(window))
        served += 1
    flood.kill()
    assert served > 20
    agent.assert_well()


def test_ten_thousand_windows_of_one_client_fill_the_agent_and_others_are_served(directory, host):
    agent = Agent(directory / "many", host)
    tid = threading.get_native_id()
    try:
        with Client(agent.socket) as other:
            hog = subprocess.Popen(
                [sys.executable, "-S", "-c", HOG, str(agent.socket), "10000"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            line = hog.stdout.readline()
            assert line == b"10000 None\n"
            window = other.begin("thread", tid=tid)
            used_s = burn(0.1)
            figure = other.end(window)
            assert_sums(figure)
            assert figure["cpu_ns"] / NS_PER_S == pytest.approx(used_s, rel=0.05, abs=0.03)
            hog.stdin.write(b"20000\n")
            hog.stdin.flush()
            begun, code = hog.stdout.readline().split()
            assert (int(begun), code) == (PROCESS_SHARE * EbpfParties.max_parties, b"AGENT_FULL")
            assert_sums(other.end(other.begin("thread", tid=tid)))
            hog.kill()
            hog.communicate()
            eventually(lambda: other.status()["counts"]["clients"] == 1)
            assert_sums(other.end(other.begin("thread", tid=tid)))
            assert other.status()["counts"]["windows"] == 0
        agent.assert_well()
    finally:
        agent.close()


HOG = """
import json, socket, sys, threading
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
connection.send(json.dumps({"op": "hello", "seq": 1, "v": 1, "role": "none"}).encode())
connection.recv(1 << 17)
tids, stop = [], threading.Event()
def wait():
    tids.append(threading.get_native_id())
    stop.wait()
for _ in range(50): threading.Thread(target=wait, daemon=True).start()
while len(tids) < 50: pass
begun = 0
def begin(most):
    # All in flight at once, as far as the socket takes them.
    global begun
    sent, code = 0, None
    connection.setblocking(True)
    while begun < most and code is None:
        batch = min(64, most - begun)
        for number in range(batch):
            message = {"op": "begin", "seq": number, "kind": "thread", "label": "x", "tid": tids[(begun + number) % 50]}
            connection.send(json.dumps(message).encode())
        for _ in range(batch):
            answer = json.loads(connection.recv(1 << 17))
            begun += answer["ok"]
            code = answer.get("code", code)
    print(begun, code, flush=True)
begin(int(sys.argv[2]))
begin(int(sys.stdin.readline()))
sys.stdin.read()
"""


def test_without_descriptors_the_agent_waits_for_some_and_goes_on(directory, host):
    limited = ("prlimit", "--nofile=64:64")
    agent = Agent(directory / "few", host, wrapper=limited)
    try:
        clients = []
        refused = 0
        for _ in range(80):
            clients.append(Client(agent.socket, role=None))
            clients[-1].socket.settimeout(0.2)
            try:
                clients[-1].send("status")
                refused += "code" in clients[-1].receive()
            except (OSError, AssertionError):  # hung up before it could ask
                refused += 1
        assert 48 <= refused < 80
        used_s = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()[11]
        time.sleep(0.5)
        ticks = int(Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()[11]) - int(used_s)
        assert ticks < 0.25 * os.sysconf("SC_CLK_TCK")  # it does not spin meanwhile
        for each in clients:
            each.socket.close()
        with Client(agent.socket) as client:
            assert client.status()["incidents"]["AGENT_FULL"] == refused
        agent.assert_well()
    finally:
        agent.close()


def test_one_users_connections_leave_room_for_others(agent, client):
    # One process opens them all, as a user with no right to more would.
    with Driver(agent.socket, uid=NOBODY) as greedy:
        codes = greedy.do("connect_often", number=600)
        assert codes["AGENT_FULL"] >= 600 - 512
        assert client.ask("status")["ok"]
        with Driver(agent.socket, uid=NOBODY + 1) as other:
            assert other.hello()["ok"]
    agent.assert_well()


def test_a_client_that_never_reads_its_answers_costs_little_and_keeps_nobody_waiting(agent, client, driver):
    resident_bytes = agent.resident_bytes()
    deaf = driver(uid=NOBODY)
    deaf.hello("none")
    sent = deaf.do("send_until_full", message={"op": "status", "seq": 1})
    assert sent > 10
    for _ in range(5):
        assert client.status()["counts"]["clients"] >= 1
    assert agent.resident_bytes() - resident_bytes < 20 << 20
    deaf.kill()
    agent.assert_well()
