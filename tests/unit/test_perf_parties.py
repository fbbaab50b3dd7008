"""Parties counted by perf task clocks: what is inside another party, and descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tao_flows.errors import SourceError
from tao_flows.telemetry.perf_parties import PerfParties
from tao_flows.units import NS_PER_S

REFUSE = Path(__file__).with_name("_refuse_perf.py")
REPOSITORY = Path(__file__).parents[2]

# Burns what it is told to, itself (burn), in a child that runs another program (run) or in a child it leaves (leave).
WORKER = """
import subprocess, sys, time
CODE = "import time\\nwhile time.process_time() < {}: pass\\nprint(time.process_time())"
for line in sys.stdin:
    kind, cpu_s = line.split()
    if kind == "run":
        done = subprocess.run([sys.executable, "-S", "-c", CODE.format(cpu_s)], capture_output=True, text=True)
        print(done.stdout.strip(), flush=True)
    else:
        end = time.thread_time() + float(cpu_s)
        while time.thread_time() < end: pass
        print(cpu_s, flush=True)
"""


@pytest.fixture
def counter():
    try:
        counter = PerfParties()
    except SourceError as error:
        pytest.skip(str(error))
    yield counter
    counter.close()


class Worker:
    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", WORKER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.do("burn", 0.0)

    def do(self, kind: str, cpu_s: float) -> float:
        print(kind, cpu_s, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.process.kill()
    worker.process.communicate()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def cpu_s(counter: PerfParties, party: int) -> float:
    return counter.read().cpu_ns[party] / NS_PER_S


def test_three_parties_inside_one_another_share_no_second(counter, worker):
    counter.add(0, [worker.pid])
    worker.do("burn", 0.1)
    counter.add(1, [worker.pid], within=0)
    worker.do("burn", 0.15)
    counter.add(2, [worker.pid], within=1)
    worker.do("burn", 0.2)
    inside = counter.read().cpu_ns
    counter.remove(2)
    worker.do("burn", 0.15)
    counter.remove(1)
    worker.do("burn", 0.1)

    assert [inside[party] / NS_PER_S for party in range(3)] == pytest.approx([0.1, 0.15, 0.2], abs=0.03)
    assert cpu_s(counter, 0) == pytest.approx(0.2, abs=0.03)


def test_a_party_whose_surrounding_ended_goes_on_and_is_taken_from_what_surrounded_that(counter, worker):
    counter.add(0, [worker.pid])
    counter.add(1, [worker.pid], within=0)
    counter.add(2, [worker.pid], within=1)
    worker.do("burn", 0.1)
    counter.remove(1)
    worker.do("burn", 0.1)
    during = counter.read().cpu_ns
    counter.remove(2)
    worker.do("burn", 0.1)

    assert during[0] / NS_PER_S <= 0.02
    assert during[2] / NS_PER_S == pytest.approx(0.2, abs=0.03)
    assert cpu_s(counter, 0) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(("outer_stays", "inner_stays"), [(False, True), (True, False), (False, False), (True, True)])
def test_a_program_run_inside_is_counted_once_or_not_at_all_whatever_the_two_parties_keep(
    counter, worker, outer_stays, inner_stays
):
    counter.add(0, [worker.pid], stays_over_exec=outer_stays)
    counter.add(1, [worker.pid], within=0, stays_over_exec=inner_stays)
    ran_s = worker.do("run", 0.3)
    read = counter.read().cpu_ns
    counter.remove(1)
    worker.do("burn", 0.2)

    # What the worker itself uses to start a program is the inner party's in any case.
    assert read[0] / NS_PER_S <= 0.02
    assert read[1] / NS_PER_S == pytest.approx(ran_s if inner_stays else 0.0, abs=0.06)
    assert cpu_s(counter, 0) == pytest.approx(0.2, abs=0.03)


def test_clocks_that_run_out_of_descriptors_fail_with_the_remedy_and_leave_nothing_open(counter, worker):
    counter.add(0, [worker.pid])
    before, limits = descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, limits[1]))
    try:
        with pytest.raises(SourceError) as caught:
            counter.add(1, [worker.pid] * (highest + 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert (caught.value.code, caught.value.remedy) == ("PARTY_FAILED", "raise `ulimit -n`")
    assert descriptors() == before
    assert counter.read().cpu_ns.keys() == {0}


def test_parties_that_end_and_a_counter_that_is_closed_give_all_descriptors_back(worker):
    before = descriptors()
    try:
        counter = PerfParties()
    except SourceError as error:
        pytest.skip(str(error))
    kept = descriptors()
    for _ in range(50):
        counter.add(0, [worker.pid], stays_over_exec=False)
        counter.add(1, [worker.pid], within=0)
        counter.remove(0)
        counter.remove(1)
    assert descriptors() == kept

    counter.add(0, [worker.pid])
    counter.close()
    assert descriptors() == before


def test_there_are_no_more_parties_than_descriptors(counter):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < counter.max_parties < soft or soft < 256
    with pytest.raises(SourceError, match="PARTY_FAILED"):
        counter.add(counter.max_parties, [os.getpid()])


def test_a_clock_that_cannot_be_read_is_told_and_no_figure_falls(counter, worker):
    counter.add(0, [worker.pid])
    worker.do("burn", 0.1)
    counted_ns = counter.read().cpu_ns[0]
    assert counter.problems() == ()
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[perf_event]":
                os.close(int(fd))
        except OSError:
            continue

    assert counter.read().cpu_ns[0] == counted_ns > 0.09 * NS_PER_S
    assert counter.problems() == ("PARTY_UNREADABLE",)
    assert counter.problems() == ()


def test_where_perf_is_refused_the_counter_says_so_as_the_clock_does(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from tao_flows.errors import SourceError; from tao_flows.telemetry.perf_parties import PerfParties\n"
        "try: PerfParties()\n"
        "except SourceError as error: print(error.code)\n"
    )
    said = subprocess.run(
        [sys.executable, str(REFUSE), "1", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() in {"PERF_SECCOMP", "PERF_PARANOID"}
