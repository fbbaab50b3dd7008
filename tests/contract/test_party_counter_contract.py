"""What every counter of CPU time by party does. A new counter joins by one more factory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tao_flows.errors import SourceError
from tao_flows.telemetry.ebpf import EbpfParties
from tao_flows.telemetry.parties import PartyCounter
from tao_flows.telemetry.perf_parties import PerfParties
from tao_flows.telemetry.polled_parties import PolledParties
from tao_flows.units import NS_PER_S

FACTORIES: dict[str, Callable[[], PartyCounter]] = {"ebpf": EbpfParties, "perf": PerfParties, "polling": PolledParties}

# A process that burns what it is told to, line by line, itself or in a child, and says what it used.
WORKER = """
import os, resource, sys, time
def used():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end: pass
for line in sys.stdin:
    kind, cpu_s = line.split()
    before = used()
    if kind == "exec":
        code = f"import time\\nold = time.process_time()\\nwhile time.process_time() < old + {cpu_s}: pass\\n"
        code += "print(time.process_time() - old, flush=True)"
        os.execv(sys.executable, [sys.executable, "-S", "-c", code])
    if kind == "child":
        pid = os.fork()
        if not pid: burn(float(cpu_s)); os._exit(0)
        os.waitpid(pid, 0)
    else:
        burn(float(cpu_s))
    print(used() - before, flush=True)
"""


@pytest.fixture(params=FACTORIES)
def counter(request: pytest.FixtureRequest) -> Iterator[PartyCounter]:
    try:
        counter = FACTORIES[request.param]()
    except SourceError as error:
        pytest.skip(str(error))
    yield counter
    counter.close()


class Worker:
    """A process of the test's own, idle until it is told what to do."""

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.do("burn", 0.0)  # it is up when it has answered

    def do(self, kind: str, cpu_s: float) -> float:
        """Lets it work and gives the CPU seconds it says it used."""
        print(kind, cpu_s, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


@contextmanager
def workers(number: int = 1) -> Iterator[list[Worker]]:
    found: list[Worker] = []
    try:
        found += (Worker() for _ in range(number))
        yield found
    finally:
        for worker in found:
            worker.process.kill()
            worker.process.communicate()


@contextmanager
def reading(counter: PartyCounter) -> Iterator[None]:
    """Reads ten times a second meanwhile, as the agent does and a counter that polls needs.

    One thread calls a counter: the test must leave it alone inside.
    """
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.1):
            counter.read()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def cpu_s(counter: PartyCounter, party: int) -> float:
    return counter.read().cpu_ns[party] / NS_PER_S


def assert_counted(counter: PartyCounter, counted_s: float, truth_s: float) -> None:
    room_s = 0.05 * truth_s + 0.04
    assert counted_s <= truth_s + room_s
    if not counter.lower_bound:
        assert counted_s >= truth_s - room_s


def test_a_counter_says_what_it_is(counter):
    assert counter.source in {"ebpf", "perf", "polling"}
    assert counter.max_parties > 0
    assert counter.read().cpu_ns == {}
    assert counter.problems() == ()


def test_a_process_is_counted_from_its_registration_on(counter):
    with workers() as (worker,):
        worker.do("burn", 0.2)
        counter.add(3, [worker.process.pid])
        assert cpu_s(counter, 3) <= 0.04
        with reading(counter):
            truth_s = worker.do("burn", 0.4)
        counted_s = cpu_s(counter, 3)
        assert counted_s > 0.2
        assert_counted(counter, counted_s, truth_s)


def test_what_a_party_starts_is_counted_for_it_and_stays_counted_when_it_has_ended(counter):
    with workers() as (worker,):
        counter.add(0, [worker.process.pid])
        with reading(counter):
            truth_s = worker.do("child", 0.4)
        counted_s = cpu_s(counter, 0)
        assert counted_s > 0.1
        assert_counted(counter, counted_s, truth_s)


def test_a_thread_is_counted_apart_from_the_other_threads_of_its_process(counter):
    go, used_s, tids = threading.Event(), [0.0, 0.0], [0, 0]

    def work(number: int) -> None:
        tids[number] = threading.get_native_id()
        go.wait()
        before_s = time.thread_time()
        while time.thread_time() < before_s + 0.1 + 0.2 * number:
            pass
        used_s[number] = time.thread_time() - before_s

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    while not all(tids):
        time.sleep(0.001)
    for party in (0, 1):
        counter.add(party, [tids[party]])
    with reading(counter):
        go.set()
        for thread in threads:
            thread.join()
    for party in (0, 1):
        assert_counted(counter, cpu_s(counter, party), used_s[party])


def test_threads_can_be_added_to_a_party_in_use(counter):
    with workers(2) as (first, second):
        counter.add(1, [first.process.pid])
        counter.add(1, [second.process.pid])
        with reading(counter):
            truth_s = first.do("burn", 0.2) + second.do("burn", 0.2)
        assert_counted(counter, cpu_s(counter, 1), truth_s)


def test_a_party_that_sleeps_uses_nothing_beside_one_that_works(counter):
    with workers(2) as (busy, asleep):
        counter.add(0, [busy.process.pid])
        counter.add(1, [asleep.process.pid])
        with reading(counter):
            truth_s = busy.do("burn", 0.3)
        read = counter.read()
        assert_counted(counter, read.cpu_ns[0] / NS_PER_S, truth_s)
        assert read.cpu_ns[1] / NS_PER_S <= 0.01


def test_the_host_is_at_least_as_busy_as_the_parties_and_no_figure_falls(counter):
    with workers(2) as crowd:
        for party, worker in enumerate(crowd):
            counter.add(party, [worker.process.pid])
        first = last = counter.read()
        for worker in crowd:
            print("burn", 0.3, file=worker.process.stdin, flush=True)
        end_ns = time.monotonic_ns() + NS_PER_S // 2
        while last.at_ns < end_ns:
            now = counter.read()
            assert now.at_ns >= last.at_ns
            assert all(now.cpu_ns[party] >= last.cpu_ns[party] for party in (0, 1))
            if now.busy_ns is not None:
                assert now.busy_ns >= last.busy_ns
            last = now
            time.sleep(0.005)
        if last.busy_ns is not None:
            parties_ns = sum(last.cpu_ns.values()) - sum(first.cpu_ns.values())
            # What counts the host apart from the parties counts it in ticks of 10 ms.
            assert last.busy_ns - first.busy_ns >= parties_ns - 0.04 * NS_PER_S


def test_a_party_that_is_removed_is_no_longer_read_and_its_number_begins_anew(counter):
    with workers(2) as (old, new):
        counter.add(5, [old.process.pid])
        with reading(counter):
            old.do("burn", 0.2)
        counter.remove(5)
        assert counter.read().cpu_ns == {}

        counter.add(5, [new.process.pid])
        with reading(counter):
            old.do("burn", 0.2)
        assert cpu_s(counter, 5) <= 0.02


def test_a_thread_goes_back_to_the_party_it_was_in(counter):
    with workers() as (worker,):
        counter.add(0, [worker.process.pid])
        counter.add(1, [worker.process.pid], within=0)
        with reading(counter):
            inner_s = worker.do("burn", 0.2)
        inside = counter.read()
        counter.remove(1)
        with reading(counter):
            outer_s = worker.do("burn", 0.3)

        assert_counted(counter, inside.cpu_ns[1] / NS_PER_S, inner_s)
        assert inside.cpu_ns[0] / NS_PER_S <= 0.04
        assert_counted(counter, cpu_s(counter, 0), outer_s)


def test_a_thread_that_runs_another_program_leaves_a_party_that_is_not_kept_over_it(counter):
    with workers(2) as (leaves, stays):
        counter.add(0, [leaves.process.pid], stays_over_exec=False)
        counter.add(1, [stays.process.pid])
        with reading(counter):
            leaves.do("exec", 0.3)
            truth_s = stays.do("exec", 0.3)
        read = counter.read()
        assert read.cpu_ns[0] / NS_PER_S <= 0.04
        assert_counted(counter, read.cpu_ns[1] / NS_PER_S, truth_s)


def test_a_thread_that_is_gone_is_passed_over_and_a_party_of_none_is_refused(counter):
    ended = subprocess.Popen(["true"])
    ended.wait()
    with workers() as (worker,):
        with pytest.raises(SourceError) as caught:
            counter.add(2, [ended.pid])
        assert caught.value.code == "PARTY_GONE"
        assert counter.read().cpu_ns == {}

        counter.add(2, [ended.pid, worker.process.pid])
        with reading(counter):
            truth_s = worker.do("burn", 0.2)
        assert_counted(counter, cpu_s(counter, 2), truth_s)


def test_removing_what_is_not_there_and_closing_twice_do_no_harm(counter):
    counter.remove(7)
    counter.add(7, [os.getpid()])
    counter.remove(7)
    counter.remove(7)
    assert counter.read().cpu_ns == {}
    counter.close()
    counter.close()
