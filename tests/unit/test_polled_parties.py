"""Parties counted by looking at /proc: what is seen, what is not, and that nothing is charged twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from tao_flows.errors import SourceError
from tao_flows.telemetry import procfs
from tao_flows.telemetry.polled_parties import PolledParties
from tao_flows.units import NS_PER_S

# Forks as it is told to; the child burns. wait: waits for it. chain: through a second child that waits for the first.
# orphan: through one that does not wait. exec: the child runs another program. own: burns itself.
WORKER = """
import os, sys, time
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end: pass
def fork(work):
    pid = os.fork()
    if not pid: work(); os._exit(0)
    return pid
def chain(s): os.waitpid(fork(lambda: burn(s)), 0)
def run(s): os.execv(sys.executable, [sys.executable, "-S", "-c", f"import time\\nwhile time.process_time() < {s}: pass"])
for line in sys.stdin:
    kind, cpu_s = line.split()
    s = float(cpu_s)
    if kind == "own": burn(s)
    if kind == "wait": os.waitpid(fork(lambda: burn(s)), 0)
    if kind == "chain": os.waitpid(fork(lambda: chain(s)), 0)
    if kind == "orphan": os.waitpid(fork(lambda: fork(lambda: burn(s))), 0)
    if kind == "exec": os.waitpid(fork(lambda: run(s)), 0)
    print("done", flush=True)
"""


class Worker:
    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.do("own", 0.0)

    def tell(self, kind: str, cpu_s: float) -> None:
        print(kind, cpu_s, file=self.process.stdin, flush=True)

    def do(self, kind: str, cpu_s: float) -> None:
        self.tell(kind, cpu_s)
        self.process.stdout.readline()


@pytest.fixture
def counter():
    counter = PolledParties()
    yield counter
    counter.close()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.process.kill()
    worker.process.communicate()


def cpu_s(counter: PolledParties, party: int = 0) -> float:
    return counter.read().cpu_ns[party] / NS_PER_S


def test_children_that_were_never_seen_count_when_their_parent_waits_for_them(counter, worker):
    counter.add(0, [worker.pid])
    for _ in range(40):
        worker.do("wait", 0.01)

    assert 0.35 <= cpu_s(counter) <= 0.6


@pytest.mark.parametrize("kind", ["wait", "chain", "exec"])
def test_children_that_were_seen_are_not_counted_again_when_their_parent_waits_for_them(counter, worker, kind):
    counter.add(0, [worker.pid])
    for _ in range(4):
        worker.tell(kind, 0.15)
        end_s = time.monotonic() + 0.4
        while time.monotonic() < end_s:
            counter.read()
            time.sleep(0.02)
        worker.process.stdout.readline()

    assert 0.45 <= cpu_s(counter) <= 0.75


def test_an_orphan_counts_from_when_it_was_seen_beside_its_parent(counter, worker):
    counter.add(0, [worker.pid])
    worker.do("orphan", 0.1)
    time.sleep(0.3)

    assert cpu_s(counter) <= 0.05  # missed: its parent had ended when it was looked for


def test_a_child_that_was_there_before_is_not_counted_while_it_runs_nor_when_it_is_waited_for(counter, worker):
    worker.tell("wait", 0.4)
    while not procfs.tree(worker.pid)[1:]:
        time.sleep(0.005)
    counter.add(0, [worker.pid])
    worker.process.stdout.readline()

    assert cpu_s(counter) <= 0.05


def test_what_runs_another_program_is_not_counted_for_a_party_that_it_leaves(counter, worker):
    counter.add(0, [worker.pid], stays_over_exec=False)
    for _ in range(3):
        worker.do("exec", 0.1)  # seen by nobody, and waited for by the party
        worker.tell("exec", 0.2)
        counter.read()
        worker.process.stdout.readline()

    assert cpu_s(counter) <= 0.15


def test_a_command_inside_a_shell_of_another_party_is_not_the_shells_when_it_has_ended(counter, worker):
    counter.add(0, [worker.pid])
    worker.tell("wait", 0.3)
    while not (children := procfs.tree(worker.pid)[1:]):
        time.sleep(0.005)
    counter.add(1, children, within=0)
    end_s = time.monotonic() + 0.2
    while time.monotonic() < end_s:
        counter.read()
        time.sleep(0.01)
    inner_s = cpu_s(counter, 1)
    worker.process.stdout.readline()
    read = counter.read()
    total_s = sum(read.cpu_ns.values()) / NS_PER_S

    assert inner_s > 0.05
    assert total_s <= 0.35


def burn(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def test_a_threads_child_is_its_partys_and_the_process_is_whole_again_afterwards(counter):
    counter.add(0, map(int, os.listdir("/proc/self/task")))
    start, ran = threading.Event(), threading.Event()
    tids: list[int] = []

    def work() -> None:
        tids.append(threading.get_native_id())
        start.wait()
        code = "import time\nwhile time.process_time() < 0.3: pass"
        with subprocess.Popen([sys.executable, "-S", "-c", code]) as child:
            child.wait()
        ran.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not tids:
        time.sleep(0.001)
    counter.add(1, tids, within=0)
    before_ns = counter.read().cpu_ns[0]
    start.set()
    while not ran.wait(0.02):
        counter.read()
    thread.join()
    during = counter.read()
    counter.remove(1)
    burn(0.1)
    after_ns = counter.read().cpu_ns[0]

    assert 0.2 <= during.cpu_ns[1] / NS_PER_S <= 0.4
    assert (during.cpu_ns[0] - before_ns) / NS_PER_S <= 0.15  # this test's own reading
    assert (after_ns - during.cpu_ns[0]) / NS_PER_S >= 0.09


def test_what_a_thread_started_goes_to_nobody_when_its_party_ends_and_the_thread_goes_back(counter, worker):
    counter.add(0, [worker.pid])
    counter.add(1, [worker.pid], within=0)
    worker.tell("wait", 0.4)
    while len(procfs.tree(worker.pid)) < 2:
        time.sleep(0.005)
    counter.read()
    counter.remove(1)
    worker.process.stdout.readline()
    left_s = cpu_s(counter)
    worker.do("own", 0.2)

    assert left_s <= 0.05
    assert cpu_s(counter) - left_s == pytest.approx(0.2, abs=0.04)


def test_a_party_number_above_the_most_is_refused_and_so_is_a_proc_that_shows_nothing(counter, tmp_path):
    with pytest.raises(SourceError, match="PARTY_FAILED"):
        counter.add(counter.max_parties, [os.getpid()])
    with pytest.raises(SourceError, match="PROC_UNREADABLE"):
        PolledParties(tmp_path)


def test_a_thread_without_scheduling_statistics_is_read_in_ticks(tmp_path):
    task = tmp_path / "42/task/43"
    task.mkdir(parents=True)
    columns = ["S", "1", *["0"] * 9, "20", "10", "0", "0", *["0"] * 4, "5", "0", "3", *["0"] * 28]
    (task / "stat").write_text(f"43 (work) {' '.join(columns)}\n")
    (task / "schedstat").write_text("0 0 0\n")
    in_ticks_ns = 30 * NS_PER_S // procfs.TICKS_PER_S

    assert procfs.thread_cpu_ns(42, 43, tmp_path) == in_ticks_ns
    (task / "schedstat").write_text("123456789 5 6\n")
    assert procfs.thread_cpu_ns(42, 43, tmp_path) == 123_456_789
    (task / "schedstat").unlink()
    assert procfs.thread_cpu_ns(42, 43, tmp_path) == in_ticks_ns
    assert procfs.thread_cpu_ns(42, 44, tmp_path) is None
