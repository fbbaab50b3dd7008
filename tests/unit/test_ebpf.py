"""CPU time counted in the scheduler: against control groups, under churn, with two capabilities only, and refused."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tao_flows.errors import SourceError
from tao_flows.telemetry import cgroup, ebpf
from tao_flows.telemetry.cgroup import Leaf
from tao_flows.telemetry.ebpf import EbpfParties, diagnose
from tao_flows.units import NS_PER_S

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
BUILD = REPOSITORY / "tao_flows" / "telemetry" / "build_taskcpu.sh"
BURN = """
import ctypes, os, sys, threading, time
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end: pass
def undisturbed():
    # Where it may: no ordinary thread takes the processor from this one, which then is not switched.
    try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError: pass
def forks(number, s):
    for _ in range(number):
        pid = os.fork()
        if not pid: burn(s); os._exit(0)
        os.waitpid(pid, 0)
def orphans(number, s):
    for _ in range(number):
        pid = os.fork()
        if not pid:
            if not os.fork(): burn(s)
            os._exit(0)
        os.waitpid(pid, 0)
def program(s):
    code = f"import time\\nend = time.process_time() + {s}\\nwhile time.process_time() < end: pass\\nprint('done', flush=True); input()"
    os.execv(sys.executable, [sys.executable, "-S", "-c", code])
"""
UNPRIVILEGED = """
import ctypes, os, shutil, sys, tempfile, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tao_flows.telemetry import ebpf
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)  # the repository may lie where only root can read
    ebpf.OBJECT = Path(shutil.copy(ebpf.OBJECT, folder))
    libc, capabilities = ctypes.CDLL(None, use_errno=True), [int(number) for number in sys.argv[2:]]
    pid = os.fork()
    if not pid:
        assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
        os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        bits = sum(1 << number for number in capabilities)
        low, high = bits & 0xFFFFFFFF, bits >> 32
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
        assert libc.capset(header, data) == 0
        print(os.getuid(), ebpf.diagnose().status, ebpf.diagnose().summary, flush=True)
        if ebpf.diagnose().status == "ready":
            counter = ebpf.EbpfParties()
            counter.add(0, [threading.get_native_id()])
            end_s = time.thread_time() + 0.2
            while time.thread_time() < end_s: pass
            print(counter.read().cpu_ns[0], flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)
REFUSED = """
import sys
sys.path[:0] = sys.argv[1:3]
import _refuse_perf
from tao_flows.telemetry import ebpf
_refuse_perf._PERF_EVENT_OPEN = int(sys.argv[3])
_refuse_perf.refuse(1)
found = ebpf.diagnose()
print(found.status, found.code, found.remedy)
"""


@pytest.fixture
def counter() -> Iterator[EbpfParties]:
    try:
        counter = EbpfParties()
    except SourceError as error:
        pytest.skip(str(error))
    yield counter
    counter.close()


@pytest.fixture
def leaf() -> Iterator[Leaf]:
    try:
        leaf = Leaf(cgroup.own_group())
    except SourceError as error:
        pytest.skip(str(error))
    yield leaf
    leaf.close()


class Child:
    """A process that waits, does what it was started for, and waits again until the test is done with it."""

    def __init__(self, code: str) -> None:
        command = [sys.executable, "-S", "-c", f"{BURN}\ninput()\n{code}\nprint('done', flush=True); input()"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        while state(self.pid) != "S":
            time.sleep(0.001)

    def run(self) -> None:
        """Lets it work and waits for it to say that it is done."""
        self.start()
        assert self.process.stdout.readline() == "done\n"

    def start(self) -> None:
        """Lets it work."""
        print(file=self.process.stdin, flush=True)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def children(*codes: str) -> Iterator[list[Child]]:
    found: list[Child] = []
    try:
        found += (Child(code) for code in codes)
        yield found
    finally:
        for child in found:
            child.process.kill()
            child.process.communicate()


def burn(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


def cpu_s(counter: EbpfParties, party: int) -> float:
    return counter.read().cpu_ns[party] / NS_PER_S


def alone_in(leaf: Leaf, pid: int) -> bool:
    return all(other == pid or state(other) == "Z" for other in leaf.pids())


@pytest.mark.parametrize("code", ["forks(500, 0.004)", "orphans(300, 0.004)"])
def test_a_storm_of_short_processes_is_charged_as_their_control_group_is(counter, leaf, code):
    with children(code) as (child,):
        leaf.join(child.pid)
        before_s = leaf.cpu_s()
        counter.add(0, [child.pid])
        child.run()
        while not alone_in(leaf, child.pid):
            time.sleep(0.01)
        time.sleep(0.05)
        assert cpu_s(counter, 0) == pytest.approx(leaf.cpu_s() - before_s, rel=0.005, abs=0.005)
        assert cpu_s(counter, 0) > 300 * 0.004
        assert counter.problems() == ()


def test_two_parties_that_share_a_processor_are_told_apart(counter):
    pinned = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    with children(f"{pinned}burn(0.2)", f"{pinned}burn(0.4)") as both:
        for party, child in enumerate(both):
            counter.add(party, [child.pid])
            child.start()
        for child in both:
            assert child.process.stdout.readline() == "done\n"
        read = counter.read()
        assert read.cpu_ns[0] / NS_PER_S == pytest.approx(0.2, rel=0.05, abs=0.03)
        assert read.cpu_ns[1] / NS_PER_S == pytest.approx(0.4, rel=0.05, abs=0.03)
        assert read.busy_ns >= sum(read.cpu_ns.values())


def test_a_thread_that_has_not_left_its_processor_is_counted_so_far(counter):
    counter.add(0, [threading.get_native_id()])
    before_ns, own_ns = counter.read().cpu_ns[0], time.thread_time_ns()
    for _ in range(20):
        burn(0.02)
        counted_ns = counter.read().cpu_ns[0] - before_ns
        assert counted_ns == pytest.approx(time.thread_time_ns() - own_ns, rel=0.05, abs=20_000_000)


def test_a_thread_that_computes_when_it_is_added_and_when_it_goes_back_is_counted_at_once(counter):
    with children("undisturbed(); burn(0.8)") as (child,):
        child.start()
        time.sleep(0.05)
        begun_s = used_s(child.pid)
        counter.add(0, [child.pid])
        time.sleep(0.2)
        inner_begun_s = used_s(child.pid)
        counter.add(1, [child.pid], within=0)
        time.sleep(0.2)
        inner_ended_s = used_s(child.pid)
        inner_s = cpu_s(counter, 1)
        counter.remove(1)
        time.sleep(0.2)
        outer_s, ended_s = cpu_s(counter, 0), used_s(child.pid)

    assert inner_s == pytest.approx(inner_ended_s - inner_begun_s, rel=0.05, abs=0.03)
    assert outer_s == pytest.approx(ended_s - inner_ended_s + inner_begun_s - begun_s, rel=0.05, abs=0.03)


def used_s(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), which Python does not have


def test_windows_that_end_in_the_order_in_which_they_began_give_the_thread_back_to_the_first_of_all(counter):
    tid = [threading.get_native_id()]
    counter.add(0, tid)
    for inner in (1, 2, 3):
        counter.add(inner, tid, within=inner - 1)
    counter.remove(1)
    counter.remove(2)
    counter.remove(3)
    before_s = cpu_s(counter, 0)
    burn(0.2)
    assert cpu_s(counter, 0) - before_s == pytest.approx(0.2, rel=0.05, abs=0.03)


def test_a_thread_that_is_not_its_processs_first_stays_when_it_runs_another_program(counter):
    code = (
        "thread = threading.Thread(target=lambda: (print(threading.get_native_id(), flush=True), input(), program(0.2)))\n"
        "thread.start(); thread.join()"
    )
    with children(code) as (child,):
        child.start()
        tid = int(child.process.stdout.readline())
        assert tid != child.pid
        counter.add(0, [tid])
        child.run()
        assert cpu_s(counter, 0) == pytest.approx(0.2, rel=0.05, abs=0.03)
        counter.add(0, [child.pid])  # the number it goes by now
        assert counter.problems() == ()


def test_what_a_leaving_party_starts_leaves_too_when_it_runs_another_program(counter):
    code = "burn(0.1)\npid = os.fork()\nif not pid: burn(0.1); program(0.3)\nos.waitpid(pid, 0)"
    with children(code) as (child,):
        counter.add(0, [child.pid], stays_over_exec=False)
        child.run()
        assert cpu_s(counter, 0) == pytest.approx(0.2, rel=0.05, abs=0.04)


def test_a_program_that_is_not_switched_has_left_from_its_start(counter):
    with children("undisturbed(); burn(0.1); program(0.6)") as (child,):
        counter.add(0, [child.pid], stays_over_exec=False)
        child.start()
        while used_s(child.pid) < 0.4:
            time.sleep(0.01)
        assert cpu_s(counter, 0) == pytest.approx(0.1, rel=0.05, abs=0.04)


def test_what_a_removed_party_leaves_behind_is_nobodys_though_its_number_is_used_again(counter):
    code = (
        "pid = os.fork()\n"
        "if not pid: input(); burn(0.1); forks(20, 0.01); print('done', flush=True); os._exit(0)\n"
        "os.waitpid(pid, 0)"
    )
    with children(code) as (child,):
        counter.add(0, [child.pid])
        child.start()
        (orphan,) = wait_for_children(child.pid)
        before = counter.read()
        counter.remove(0)
        counter.add(0, [threading.get_native_id()])
        child.run()
        after = counter.read()
        assert orphan != child.pid
        assert after.cpu_ns[0] / NS_PER_S <= 0.05
        assert (after.busy_ns - before.busy_ns) / NS_PER_S >= 0.28


def wait_for_children(pid: int) -> list[int]:
    found: list[str] = []
    while not found:
        time.sleep(0.001)
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(number) for number in found]


def test_numbers_are_used_again_thousands_of_times_and_begin_at_nothing_each_time(counter):
    tid = [threading.get_native_id()]
    for number in range(5_000):
        counter.add(number % 3, tid)
        assert counter.read().cpu_ns[number % 3] < NS_PER_S // 10
        counter.remove(number % 3)
    assert counter.problems() == ()


def test_a_thread_that_has_ended_gives_its_place_in_the_table_back():
    small = open_or_skip(max_threads=200)
    with children("forks(1_000, 0)") as (child,):
        small.add(0, [child.pid])
        child.run()
    assert small.problems() == ()
    small.close()


def test_a_full_table_is_told_once_and_what_was_in_it_is_counted_on():
    small = open_or_skip(max_threads=1)
    with children("forks(3, 0); burn(0.2)", "pass") as (child, other):
        small.add(0, [child.pid])
        child.run()
        assert small.problems() == ("PARTY_TABLE_FULL",)
        assert small.problems() == ()
        assert cpu_s(small, 0) == pytest.approx(0.2, rel=0.05, abs=0.03)

        with pytest.raises(SourceError) as caught:
            small.add(1, [other.pid])
        assert caught.value.code == "PARTY_FAILED"
        assert set(small.read().cpu_ns) == {0}
        assert small.problems() == ("PARTY_TABLE_FULL",)
    small.close()


def open_or_skip(max_threads: int) -> EbpfParties:
    try:
        return EbpfParties(max_threads)
    except SourceError as error:
        pytest.skip(str(error))


def test_readings_between_many_switches_never_fall_and_miss_nothing(counter, leaf):
    code = (
        "(a, b), (c, d) = os.pipe(), os.pipe()\n"
        "pid = os.fork()\n"
        "for _ in range(50_000):\n"
        "    if pid: os.write(b, b'x'); os.read(c, 1)\n"
        "    else: os.read(a, 1); os.write(d, b'x')\n"
        "if not pid: os._exit(0)\n"
        "os.waitpid(pid, 0)"
    )
    with children(code, code) as both:
        leaf.join(both[0].pid)
        before_s = leaf.cpu_s()
        for party, child in enumerate(both):
            counter.add(party, [child.pid])
            child.start()
        last, busy = counter.read(), {child.process.stdout for child in both}
        while busy:
            now = counter.read()
            assert all(now.cpu_ns[party] >= last.cpu_ns[party] for party in (0, 1))
            assert now.busy_ns >= max(last.busy_ns, sum(now.cpu_ns.values()))
            last = now
            busy -= set(select.select(busy, [], [], 0)[0])
        assert cpu_s(counter, 0) == pytest.approx(leaf.cpu_s() - before_s, rel=0.005, abs=0.005)


def test_a_party_beyond_the_last_or_of_a_closed_counter_is_refused(counter):
    for number in (-1, counter.max_parties):
        with pytest.raises(SourceError) as caught:
            counter.add(number, [os.getpid()])
        assert caught.value.code == "PARTY_FAILED"
    counter.add(counter.max_parties - 1, [os.getpid()])
    counter.close()
    with pytest.raises(SourceError) as caught:
        counter.add(0, [os.getpid()])
    assert caught.value.code == "PARTY_FAILED"
    assert (counter.read().cpu_ns, counter.read().busy_ns, counter.problems()) == ({}, None, ())


@pytest.mark.usefixtures("counter")
def test_a_diagnosis_leaves_nothing_open():
    before = os.listdir("/proc/self/fd")
    assert (diagnose().id, diagnose().kind, diagnose().status) == ("ebpf", "cpu_time", "ready")
    assert os.listdir("/proc/self/fd") == before


def unprivileged(*capabilities: int) -> str:
    command = [sys.executable, "-c", UNPRIVILEGED, str(REPOSITORY), *map(str, capabilities)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.usefixtures("counter")
def test_two_capabilities_are_enough_and_without_one_it_is_named():
    if os.geteuid() != 0:
        pytest.skip("only root can give a process these capabilities and no others")
    perfmon, bpf = 38, 39
    said, counted_ns = unprivileged(perfmon, bpf).splitlines()
    assert said.startswith("65534 ready")
    assert int(counted_ns) / NS_PER_S == pytest.approx(0.2, rel=0.05, abs=0.03)

    assert unprivileged(perfmon).strip().endswith("lacks CAP_BPF")
    assert unprivileged(bpf).strip().endswith("lacks CAP_PERFMON")
    assert unprivileged().strip().endswith("lacks CAP_PERFMON and CAP_BPF")


@pytest.mark.usefixtures("counter")
def test_a_refusal_in_spite_of_the_capabilities_is_a_containers():
    arguments = [str(REPOSITORY), str(HERE), str(BPF_SYSCALL)]
    said = subprocess.run(
        [sys.executable, "-c", REFUSED, *arguments], check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith("denied EBPF_DENIED")
    assert "seccomp profile" in said


@pytest.mark.usefixtures("counter")
def test_a_process_that_numbers_threads_on_its_own_is_told_to_run_in_the_hosts_namespace():
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom tao_flows.telemetry import ebpf; print(ebpf.diagnose())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    if said.returncode != 0:
        pytest.skip(f"no PID namespace can be made: {said.stderr}")
    assert "EBPF_PID_NAMESPACE" in said.stdout
    assert "hostPID: true" in said.stdout


def test_what_is_missing_is_said_with_its_remedy(counter, tmp_path, monkeypatch):
    counter.close()
    with pytest.raises(SourceError) as caught:
        EbpfParties(library="libbpf-of-no-such-system.so.9")
    assert caught.value.code == "EBPF_NO_LIBBPF"
    assert "libbpf1" in caught.value.remedy

    with pytest.raises(SourceError) as caught:
        EbpfParties(btf=tmp_path / "vmlinux")
    assert caught.value.code == "EBPF_NO_BTF"
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.remedy

    damaged = tmp_path / "damaged.o"
    damaged.write_bytes(ebpf.OBJECT.read_bytes()[:2_000])
    monkeypatch.setattr(ebpf, "OBJECT", damaged)
    with pytest.raises(SourceError) as caught:
        EbpfParties()
    assert caught.value.code == "EBPF_FAILED"
    assert "damaged" in caught.value.summary  # libbpf's own words
    assert diagnose().status == "broken"


def test_the_object_in_the_tree_is_what_its_source_builds(tmp_path, monkeypatch):
    if not all(map(shutil.which, ("clang", "llvm-strip"))):
        pytest.skip("clang and llvm-strip are not installed: the BPF object cannot be built")
    built = tmp_path / "taskcpu.bpf.o"
    subprocess.run([BUILD, built], check=True)
    shipped = ebpf.OBJECT.read_bytes()
    assert b".BTF.ext" in shipped
    assert str(REPOSITORY).encode() not in shipped

    release = re.search(r"clang version (\d+)", subprocess.check_output(["clang", "--version"], text=True))[1]
    if release == re.search(r"built with clang (\d+)", BUILD.read_text())[1]:
        assert built.read_bytes() == shipped
    monkeypatch.setattr(ebpf, "OBJECT", built)
    open_or_skip(max_threads=1).close()
