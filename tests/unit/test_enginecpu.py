"""CPU seconds of engines' processes, seen from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tao_flows.enginecpu import EngineClock

BURN = """
import os, sys, time
until = time.process_time() + float(sys.argv[2])
while time.process_time() < until:
    pass
"""
FORK = """
import os, sys
if os.fork() == 0:
    import time
    until = time.process_time() + float(sys.argv[2])
    while time.process_time() < until:
        pass
    os._exit(0)
os.wait()
"""
STAY = "print('done', flush=True); sys.stdin.read()"


@pytest.fixture
def engine(tmp_path):
    """Starts a process that looks like a part of Airflow, and gives it when it has done its work."""
    script = tmp_path / "bin" / "airflow"
    script.parent.mkdir()
    started = []

    def start(code: str, part: str, cpu_s: float) -> subprocess.Popen[str]:
        script.write_text(code + STAY)
        command = [sys.executable, str(script), part, str(cpu_s)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.communicate("")


def read_s(clock: EngineClock, least_s: float) -> float:
    """What a clock reads once the kernel has counted its ticks."""
    give_up_s = time.monotonic() + 5
    while (now_s := clock.read_s()) < least_s and time.monotonic() < give_up_s:
        time.sleep(0.01)
    return now_s


def test_a_process_of_the_engine_that_appears_has_used_all_of_its_seconds_since(engine):
    clock = EngineClock(["airflow standalone"])
    before_s = clock.read_s()
    engine(BURN, "standalone", 0.3)
    assert read_s(clock, before_s + 0.25) - before_s >= 0.25


def test_what_a_process_used_before_is_not_counted(engine):
    engine(BURN, "standalone", 0.5)
    assert EngineClock(["airflow standalone"]).read_s() < 0.4


def test_other_parts_of_the_engine_are_not_counted(engine):
    clock = EngineClock(["prefect agent"])
    engine(BURN, "standalone", 0.3)
    assert clock.read_s() == 0.0


def test_children_that_lived_for_one_job_are_counted_when_they_were_waited_for(engine):
    forking = EngineClock(["airflow standalone"], forking=["airflow standalone"])
    engine(FORK, "standalone", 0.4)
    assert read_s(forking, 0.35) >= 0.35


def test_a_clock_never_runs_backwards_when_processes_end(engine):
    clock = EngineClock(["airflow standalone"])
    process = engine(BURN, "standalone", 0.2)
    before_s = read_s(clock, 0.15)
    process.communicate("")
    assert clock.read_s() >= before_s


def test_where_no_process_can_be_seen_nothing_is_counted(tmp_path: Path):
    assert EngineClock(["airflow standalone"], proc_root=tmp_path).read_s() == 0.0
