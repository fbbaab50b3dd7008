"""The clock of a piece of code where perf is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from tao_flows.codeclock import PROCESS_CLOCK, CodeClock

BURN = "import time\nwhile time.process_time() < 0.3: pass"


@pytest.fixture(autouse=True)
def no_perf(monkeypatch):
    monkeypatch.setattr("tao_flows.codeclock.task_clock", lambda: None)


def test_code_that_has_its_process_to_itself_has_all_that_it_starts_and_waits_for():
    clock = CodeClock(stepped=False, alone=True, has_process=True)
    with clock.span:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    cpu = clock.stop(alone=True)
    assert (cpu.source, cpu.covers_children) == (PROCESS_CLOCK, True)
    assert cpu.cpu_s > 0.3


def test_its_threads_are_its_own_too():
    clock = CodeClock(stepped=False, alone=True, has_process=True)

    def burn() -> None:
        until_s = time.thread_time() + 0.2
        while time.thread_time() < until_s:
            pass

    with clock.span:
        thread = threading.Thread(target=burn)
        thread.start()
        thread.join()
    assert clock.stop(alone=True).cpu_s > 0.2


def test_code_beside_other_code_has_its_thread_alone():
    clock = CodeClock(stepped=False)
    with clock.span:
        subprocess.run([sys.executable, "-c", BURN], check=True)
    cpu = clock.stop(alone=True)
    assert (cpu.source, cpu.covers_children) == ("thread-clock", False)
    assert cpu.cpu_s < 0.3
