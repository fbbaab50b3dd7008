"""CPU time of the host, of threads that share a process, of trees that are not ours; and what doctor says of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tao_flows.telemetry.cputime import (
    FOR_COMMANDS,
    FOR_THREADS,
    HostBusy,
    TreePoll,
    chosen,
    cpu_diagnoses,
)

REPOSITORY = Path(__file__).parents[2]
REFUSE = Path(__file__).with_name("_refuse_perf.py")
PREAMBLE = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom tao_flows.telemetry.cputime import *\n"
BURN = "import os, time\ndef burn(s):\n    end = time.thread_time() + s\n    while time.thread_time() < end: pass\n"


def burn(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def run_python(code: str, *, refused: int | None = None) -> str:
    wrapper = [] if refused is None else [sys.executable, str(REFUSE), str(refused)]
    command = [*wrapper, sys.executable, "-c", PREAMBLE + BURN + code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_host_is_at_least_as_busy_as_we_are():
    busy = HostBusy()
    before_s = busy.read()
    burn(0.3)
    after_s = busy.read()
    busy.close()

    assert after_s - before_s >= 0.25  # the kernel counts in ticks of 10 ms
    assert after_s - before_s <= os.cpu_count() * 30
    assert busy.read() is None
    busy.close()


def test_the_host_is_read_from_proc_where_the_top_group_is_a_containers(tmp_path):
    top, proc = tmp_path / "cgroup", tmp_path / "proc"
    top.mkdir()
    proc.mkdir()
    (proc / "stat").write_text("cpu  100 0 100 9999 9999 0 0 9999 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    (top / "cgroup.controllers").write_text("cpu")
    (top / "cpu.stat").write_text("usage_usec 7000000\nuser_usec 3000000\nsystem_usec 1000000\n")

    host = HostBusy(proc, top)
    assert (host.source, host.read()) == (str(top / "cpu.stat"), 4.0)
    (top / "cpu.stat").write_text("usage_usec 7000000\nuser_usec 3500000\nsystem_usec 1000000\n")
    assert host.read() == 4.5
    host.close()

    (top / "cgroup.type").write_text("domain\n")
    container = HostBusy(proc, top)
    assert (container.source, container.read()) == (str(proc / "stat"), 200 / os.sysconf("SC_CLK_TCK"))
    container.close()


def test_the_hosts_busy_time_is_unknown_where_nothing_tells_it(tmp_path):
    assert HostBusy(tmp_path, tmp_path).read() is None
    (tmp_path / "stat").write_text("rubbish")
    assert HostBusy(tmp_path, tmp_path).read() is None


def test_polling_a_tree_counts_what_is_there_and_what_was_waited_for_and_calls_it_a_lower_bound():
    script = BURN + (
        "import sys\n"
        "for line in sys.stdin:\n"
        "    pid = os.fork()\n"
        "    if pid == 0: burn(0.2); os._exit(0)\n"
        "    os.waitpid(pid, 0); burn(0.1); print(flush=True)\n"
    )
    tree = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    tree.stdin.write("\n")
    tree.stdin.flush()
    tree.stdout.readline()

    poll = TreePoll(tree.pid)
    assert poll.sample().cpu_s == 0.0
    for _ in range(2):
        tree.stdin.write("\n")
        tree.stdin.flush()
        tree.stdout.readline()
        poll.sample()
    tree.communicate()
    ended = poll.sample()

    assert ended.cpu_s == pytest.approx(0.6, rel=0.15)
    assert (ended.source, ended.covers_children, ended.lower_bound) == ("polling", True, True)


def test_polling_keeps_what_it_saw_of_a_process_that_lost_its_parent():
    orphan = BURN + "burn(0.4); print(flush=True); time.sleep(0.4)"
    script = BURN + (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}])\n"
        "input(); sys.stdout.close(); os.close(1)"
    )
    tree = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    poll = TreePoll(tree.pid)
    poll.sample()
    tree.stdout.readline()  # the orphan has burnt
    poll.sample()
    tree.stdin.write("\n")
    tree.stdin.close()
    tree.wait()  # and lost its parent
    seen_s = poll.sample().cpu_s
    tree.stdout.read()  # and ended
    tree.stdout.close()

    assert seen_s > 0.3
    assert poll.sample().cpu_s >= seen_s


def test_polling_a_process_that_is_not_there_says_unknown():
    gone = subprocess.Popen(["true"])
    gone.wait()

    assert TreePoll(gone.pid).sample().cpu_s is None


def test_diagnoses_try_every_source_and_leave_nothing_behind():
    before = {path: set(os.listdir(path)) for path in ("/proc/self/fd", "/sys/fs/cgroup")}
    diagnoses = cpu_diagnoses()

    assert [diagnosis.id for diagnosis in diagnoses] == ["cgroup", "perf", "wait4", "thread-clock", "polling"]
    assert all(diagnosis.kind == "cpu_time" and diagnosis.summary for diagnosis in diagnoses)
    assert all((diagnosis.status == "ready") == (diagnosis.code == "") for diagnosis in diagnoses)
    assert {path: set(os.listdir(path)) for path in before} == before
    assert not [
        name
        for directory, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if f"tao-flows-{os.getpid()}-" in name
    ]


def test_a_refused_source_is_denied_with_its_remedy_and_the_next_is_chosen(tmp_path):
    code = (
        "import dataclasses, json; from pathlib import Path; "
        f"d = cpu_diagnoses(cgroup_root=Path({str(tmp_path)!r}))\n"
        "print(json.dumps([[dataclasses.asdict(x) for x in d], chosen(d, FOR_COMMANDS), chosen(d, FOR_THREADS)]))"
    )
    diagnoses, command, thread = json.loads(run_python(code, refused=errno.EPERM))
    perf = next(diagnosis for diagnosis in diagnoses if diagnosis["id"] == "perf")

    assert perf["status"] == "denied"
    assert perf["remedy"]
    assert (command, thread) == ("wait4", "thread-clock")


def test_without_proc_and_groups_those_sources_are_absent_and_nothing_is_chosen_from_nothing(tmp_path):
    diagnoses = {diagnosis.id: diagnosis for diagnosis in cpu_diagnoses(tmp_path, tmp_path)}

    assert (diagnoses["cgroup"].status, diagnoses["cgroup"].code) == ("absent", "CGROUP_ABSENT")
    assert (diagnoses["polling"].status, diagnoses["polling"].code) == ("absent", "PROC_UNREADABLE")
    assert chosen(diagnoses.values(), FOR_COMMANDS) in {"perf", "wait4"}
    assert chosen((), FOR_THREADS) == ""
