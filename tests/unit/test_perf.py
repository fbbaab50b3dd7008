"""The perf task clock, and its refusal by the kernel."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tao_flows.errors import SourceError
from tao_flows.telemetry.perf import TaskClock

REPOSITORY = Path(__file__).parents[2]
REFUSE = Path(__file__).with_name("_refuse_perf.py")
TRY = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from pathlib import Path; from tao_flows.errors import SourceError; from tao_flows.telemetry.perf import TaskClock\n"
    "try: TaskClock(proc_root=Path(sys.argv[2])); print('opened')\n"
    "except SourceError as error: print(error.code, error.remedy)\n"
)


@pytest.fixture
def clock():
    try:
        clock = TaskClock()
    except SourceError as error:
        pytest.skip(str(error))
    yield clock
    clock.close()


def burn(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def refused(error: int, proc_root: Path) -> str:
    command = [sys.executable, str(REFUSE), str(error), sys.executable, "-c", TRY, str(REPOSITORY), str(proc_root)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_thread_is_counted_and_its_sleep_is_not(clock):
    before_s, own_s = clock.cpu_s(), time.thread_time()
    time.sleep(0.1)
    burn(0.2)

    assert clock.cpu_s() - before_s == pytest.approx(time.thread_time() - own_s, rel=0.1, abs=0.005)


COUNT_STARTED = """
import os, resource, sys, threading, time
sys.path.insert(0, sys.argv[1])
from tao_flows.telemetry.perf import TaskClock
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end: pass
def used():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
clock = TaskClock()
counted, truth = clock.cpu_s(), used()
thread = threading.Thread(target=burn, args=(0.2,)); thread.start(); thread.join()
for _ in range(10):
    pid = os.fork()
    if pid == 0: burn(0.02); os._exit(0)
    os.waitpid(pid, 0)
print(clock.cpu_s() - counted, used() - truth)
"""


@pytest.mark.usefixtures("clock")
def test_what_the_thread_starts_is_counted_while_it_runs_and_after():
    # In a small process: the kernel's time for taking a large one apart, ten times, would drown what is asked here.
    command = [sys.executable, "-S", "-c", COUNT_STARTED, str(REPOSITORY)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    counted_s, truth_s = map(float, said)

    assert counted_s >= 0.395
    assert counted_s == pytest.approx(truth_s, rel=0.1, abs=0.02)


def test_another_thread_that_was_there_before_is_not_counted(clock):
    before_s = clock.cpu_s()
    start, counted = threading.Event(), []

    def other() -> None:
        counted.append(TaskClock())
        start.wait()
        burn(0.2)

    # Started by a helper thread, so that the clock of this thread is not inherited by it.
    clock.close()
    thread = threading.Thread(target=other)
    thread.start()
    while not counted:
        time.sleep(0.001)
    here = TaskClock()
    start.set()
    thread.join()

    assert before_s is not None
    assert here.cpu_s() < 0.1
    assert counted[0].cpu_s() >= 0.195


def test_a_held_child_counts_from_the_program_it_becomes(clock):
    script = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.2: pass"
    go, let_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        burn(0.1)
        os.read(go, 1)
        os.execv(sys.executable, [sys.executable, "-S", "-c", script])
    child = TaskClock(pid, on_exec=True)
    time.sleep(0.01)
    os.write(let_go, b"!")
    _, _, usage = os.wait4(pid, 0)

    assert 0.195 <= child.cpu_s() <= usage.ru_utime + usage.ru_stime - 0.09
    child.close()
    os.close(go)
    os.close(let_go)


def test_a_closed_clock_reads_unknown_and_may_be_closed_again(clock):
    clock.close()
    clock.close()

    assert clock.cpu_s() is None


def test_a_clock_that_is_dropped_gives_its_descriptor_back(clock):
    before = os.listdir("/proc/self/fd")
    TaskClock()

    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("error", "paranoid", "code", "remedy"),
    [
        (errno.EPERM, "2", "PERF_SECCOMP", "seccomp profile"),
        (errno.EACCES, "4", "PERF_PARANOID", "sysctl -w kernel.perf_event_paranoid=2"),
        (errno.ENOSYS, "2", "PERF_ABSENT", ""),
        (errno.EMFILE, "2", "PERF_FAILED", "ulimit -n"),
        (errno.EINVAL, "2", "PERF_FAILED", ""),
    ],
)
def test_a_refusal_says_who_refused_and_what_to_do(tmp_path, error, paranoid, code, remedy):
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/perf_event_paranoid").write_text(f"{paranoid}\n")

    said = refused(error, tmp_path)

    assert said.startswith(code)
    assert remedy in said
