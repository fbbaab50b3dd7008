"""What /proc says of processes and of the host, on a tree written by the test and on the real one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.telemetry import procfs


def write_process(
    root: Path, pid: int, *, name: str = "work", parent: int = 1, ticks=(0, 0, 0, 0), start: int = 5
) -> None:
    columns = ["S", str(parent), *["0"] * 9, *map(str, ticks), *["0"] * 4, str(start), "0", "3", *["0"] * 28]
    (root / str(pid)).mkdir()
    (root / str(pid) / "stat").write_bytes(f"{pid} ({name}) {' '.join(columns)}\n".encode())


@given(name=st.text(st.characters(exclude_characters="\0/", codec="utf-8"), max_size=15), user=st.integers(0, 10**9))
def test_a_stat_line_is_read_whatever_the_process_calls_itself(tmp_path_factory, name, user):
    root = tmp_path_factory.mktemp("proc")
    write_process(root, 42, name=name, parent=7, ticks=(user, 20, 3, 4), start=99)

    stat = procfs.process_stat(42, root)

    assert stat is not None
    assert (stat.pid, stat.state, stat.parent, stat.start_ticks) == (42, "S", 7, 99)
    assert stat.cpu_s == pytest.approx((user + 20) / procfs.TICKS_PER_S)
    assert stat.children_cpu_s == pytest.approx(7 / procfs.TICKS_PER_S)
    assert stat.resident_bytes == 3 * procfs.PAGE_BYTES


@pytest.mark.parametrize("rubbish", [b"", b"42", b"42 (name", b"42 (name) S 1 2", b"x (name) S " + b"y " * 49])
def test_a_stat_line_that_is_rubbish_is_no_process(tmp_path, rubbish):
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "stat").write_bytes(rubbish)

    assert procfs.process_stat(42, tmp_path) is None


def test_a_process_that_is_gone_has_no_stat_no_command_line_and_no_memory(tmp_path):
    assert procfs.process_stat(42, tmp_path) is None
    assert procfs.command_line(42, tmp_path) is None
    assert procfs.resident_bytes([42], tmp_path) is None


def test_a_tree_is_a_process_and_its_descendants_and_nothing_beside_them(tmp_path):
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 10), (20, 1), (21, 20)):
        write_process(tmp_path, pid, parent=parent)
    (tmp_path / "30").mkdir()  # vanished between the listing and the reading
    (tmp_path / "self").mkdir()

    assert sorted(procfs.tree(10, tmp_path)) == [10, 11, 12, 13]
    assert procfs.resident_bytes(procfs.tree(10, tmp_path), tmp_path) == 4 * 3 * procfs.PAGE_BYTES
    assert sorted(procfs.processes(tmp_path)) == [10, 11, 12, 13, 20, 21, 30]


def test_busy_seconds_leave_out_idle_iowait_steal_and_the_guest_time_that_is_in_user_already():
    line = b"cpu  100 200 400 8000 16000 32 64 128000 50 60\n"

    assert procfs.busy_s(line) == pytest.approx((100 + 200 + 400 + 32 + 64) / procfs.TICKS_PER_S)
    assert procfs.busy_s(b"intr 1 2 3") is None
    assert procfs.busy_s(b"") is None


def test_used_memory_is_what_is_not_available_and_unknown_without_the_lines_it_needs(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n")
    assert procfs.memory_used_bytes(tmp_path) == 600 * 1024

    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\n")
    assert procfs.memory_used_bytes(tmp_path) is None


def test_this_process_is_read_as_it_knows_itself():
    before_s = time.process_time()
    stat = procfs.process_stat("self")
    after_s = time.process_time()

    assert stat is not None
    assert (stat.pid, stat.parent, stat.state) == (os.getpid(), os.getppid(), "R")
    assert before_s - 0.05 <= stat.cpu_s <= after_s + 0.05
    assert procfs.command_line("self") == tuple(sys.orig_argv)
    assert 1_000_000 < (procfs.resident_bytes() or 0) < (procfs.memory_used_bytes() or 0) * 10


def test_a_command_line_keeps_empty_arguments_and_spaces(tmp_path):
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "cmdline").write_bytes(b"sh\0-c\0a b\0\0")
    assert procfs.command_line(42, tmp_path) == ("sh", "-c", "a b", "")

    (tmp_path / "42" / "cmdline").write_bytes(b"")
    assert procfs.command_line(42, tmp_path) == ()


def test_this_process_is_alive_and_no_other_process_is_taken_for_it():
    segment = procfs.this_segment()

    assert segment.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert procfs.is_alive(segment) is True
    assert procfs.is_alive(dataclasses.replace(segment, process_started=segment.process_started + 1)) is False
    assert procfs.is_alive(dataclasses.replace(segment, boot_id="another boot")) is False
    assert procfs.is_alive(dataclasses.replace(segment, host="another host")) is None


def test_a_process_that_ended_is_dead_before_and_after_it_is_waited_for():
    child = subprocess.Popen(["sleep", "30"])
    stat = procfs.process_stat(child.pid)
    assert stat is not None
    segment = dataclasses.replace(procfs.this_segment(), pid=child.pid, process_started=stat.start_ticks)
    assert procfs.is_alive(segment) is True

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert procfs.is_alive(segment) is False
    child.wait()
    assert procfs.is_alive(segment) is False


def test_a_process_that_is_hidden_from_us_may_be_alive(tmp_path):
    hidden = dataclasses.replace(procfs.this_segment(), boot_id="")

    assert procfs.is_alive(hidden, tmp_path) is None
