"""Running a command under measurement: the command must not notice, and all that it starts must count."""

from __future__ import annotations

import errno
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tao_flows.command import run_command
from tao_flows.errors import InputError, SourceError
from tao_flows.telemetry import cgroup
from tao_flows.telemetry.cgroup import Leaf
from tao_flows.telemetry.perf import TaskClock

DRIVER = Path(__file__).with_name("_meter_driver.py")
REFUSE = Path(__file__).with_name("_refuse_perf.py")
BURN = (
    "import os, sys, time\ndef burn(s):\n    end = time.process_time() + s\n    while time.process_time() < end: pass\n"
)
USED = "sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
TELL = f"import resource; open(sys.argv[1], 'w').write(str({USED}))\n"
COUNT_SIGNALS = (
    "import signal, sys, time\n"
    "counts = dict.fromkeys(sys.argv[1].split(','), 0)\n"
    "def count(number, frame): counts[signal.Signals(number).name] += 1\n"
    "for name in counts: signal.signal(getattr(signal, name), count)\n"
    "print('ready', flush=True)\n"
    "while not any(counts.values()): time.sleep(0.01)\n"
    "time.sleep(0.3); print(counts, flush=True); sys.exit(7)\n"
)


def meter(*command: str, without: str = "", **options) -> list[str]:
    """The command line that runs ``command`` under measurement, without the sources better than ``without``."""
    if without:
        options["cgroup_root"] = "/nonexistent"
    refuse = [sys.executable, str(REFUSE), str(errno.EPERM)] if without == "perf" else []
    return [*refuse, sys.executable, str(DRIVER), json.dumps(options), *command]


@pytest.fixture(autouse=True)
def _signals_as_in_a_foreground_job():
    """A shell starts background jobs with these ignored, and what is ignored stays so in all they start."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGQUIT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(params=["cgroup", "perf", "wait4"])
def source(request) -> str:
    """Each source of a command's CPU time that works here."""
    try:
        if request.param == "cgroup":
            Leaf(cgroup.own_group()).close()
        elif request.param == "perf":
            TaskClock().close()
    except SourceError as error:
        pytest.skip(str(error))
    return request.param


def measured(source: str, tmp_path: Path, script: str) -> tuple[dict, float]:
    """The result of a Python script run under ``source``, and the CPU seconds it told of itself."""
    without = {"cgroup": "", "perf": "cgroup", "wait4": "perf"}[source]
    told, result = tmp_path / "told", tmp_path / "result"
    command = (sys.executable, "-S", "-c", BURN + script, str(told))
    subprocess.run(meter(*command, without=without, result=str(result)), check=True, timeout=60)
    outcome = json.loads(result.read_text())
    assert outcome["cpu"]["source"] == source
    return outcome, float(told.read_text())


def test_a_burn_costs_what_it_says_it_used(source, tmp_path):
    outcome, truth_s = measured(source, tmp_path, "burn(0.5)\n" + TELL)

    assert truth_s >= 0.5
    assert outcome["cpu"]["cpu_s"] == pytest.approx(truth_s, rel=0.05, abs=0.05)
    assert outcome["wall_s"] >= outcome["cpu"]["cpu_s"] * 0.9
    assert outcome["cpu"]["lower_bound"] is (source == "wait4")
    assert bool(outcome["events"]) is (source != "cgroup")


def test_short_lived_children_are_counted(source, tmp_path):
    script = "for _ in range(40):\n  if os.fork() == 0: burn(0.01); os._exit(0)\n  os.wait()\n"
    outcome, truth_s = measured(source, tmp_path, script + TELL)

    assert truth_s >= 0.4
    assert outcome["cpu"]["cpu_s"] == pytest.approx(truth_s, rel=0.05, abs=0.05)


def test_a_process_whose_parent_ended_first_is_counted_where_the_source_can(source, tmp_path):
    script = (
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: burn(0.4); open(sys.argv[1] + '-orphan', 'w').close()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "while not os.path.exists(sys.argv[1] + '-orphan'): time.sleep(0.01)\n"
    )
    outcome, truth_s = measured(source, tmp_path, script + TELL)

    if source == "wait4":
        assert outcome["cpu"]["lower_bound"]
        assert outcome["cpu"]["cpu_s"] == pytest.approx(truth_s, abs=0.03)
    else:
        assert outcome["cpu"]["cpu_s"] == pytest.approx(truth_s + 0.4, rel=0.05, abs=0.05)


def test_a_child_that_nobody_waits_for_is_found_by_looking_where_there_is_no_counter(tmp_path):
    result = tmp_path / "result"
    child = BURN + "burn(0.5); time.sleep(1)"
    script = BURN + f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {child!r}]); time.sleep(1)"
    command = meter(sys.executable, "-S", "-c", script, without="perf", result=str(result))
    subprocess.run(command, check=True, timeout=60)
    outcome = json.loads(result.read_text())

    assert outcome["cpu"]["source"] == "polling"
    assert outcome["cpu"]["lower_bound"]
    assert outcome["cpu"]["cpu_s"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("source", ["cgroup"], indirect=True)
def test_a_process_that_outlives_the_command_keeps_its_group_and_an_event_says_so(source, tmp_path):
    before = set(cgroup.own_group().glob("tao-flows-*"))
    script = (
        "pid = os.posix_spawnp('sleep', ['sleep', '30'], os.environ)\nopen(sys.argv[1] + '-pid', 'w').write(str(pid))\n"
    )
    outcome, _ = measured(source, tmp_path, script + TELL)
    pid = int((tmp_path / "told-pid").read_text())
    os.kill(pid, signal.SIGKILL)

    assert outcome["events"] == ["CGROUP_LEFT_WITH_PROCESSES"]
    deadline_s = time.monotonic() + 5
    while set(cgroup.own_group().glob("tao-flows-*")) - before and time.monotonic() < deadline_s:
        Leaf(cgroup.own_group()).close()
    assert set(cgroup.own_group().glob("tao-flows-*")) <= before


@pytest.mark.parametrize("source", ["cgroup"], indirect=True)
def test_a_command_that_leaves_its_group_is_counted_by_wait4_and_an_event_says_so(source, tmp_path):
    procs = cgroup.own_group() / "cgroup.procs"
    command = (sys.executable, "-S", "-c", BURN + f"open({str(procs)!r}, 'w').write('0')\nburn(0.3)")
    subprocess.run(meter(*command, result=str(tmp_path / "result")), check=True)
    outcome = json.loads((tmp_path / "result").read_text())

    assert outcome["cpu"]["source"] == "wait4"
    assert outcome["cpu"]["cpu_s"] == pytest.approx(0.3, rel=0.3)
    assert outcome["events"] == ["CGROUP_LOST_PROCESSES"]


@pytest.mark.parametrize("source", ["cgroup", "wait4"], indirect=True)
def test_memory_and_processes_are_those_of_the_whole_tree(source, tmp_path):
    script = (
        "if os.fork() == 0:\n"
        "    held = os.urandom(1) * 80_000_000; time.sleep(1); os._exit(0)\n"
        "held = os.urandom(1) * 80_000_000; os.wait()\n"
    )
    outcome, _ = measured(source, tmp_path, script + TELL)

    assert 160_000_000 < outcome["resident_peak_bytes"] < 260_000_000
    assert 100_000_000 < outcome["resident_mean_bytes"] < outcome["resident_peak_bytes"]
    assert len(outcome["pids"]) == 2


def test_a_small_command_is_not_charged_with_the_memory_of_the_process_that_started_it():
    held = os.urandom(1) * 300_000_000
    result = run_command(["sleep", "0.1"])

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 300_000 * 0.9
    assert 0 < result.resident_peak_bytes < 30_000_000
    assert len(held) == 300_000_000


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
    ],
)
def test_the_status_is_the_commands_own(command, status):
    result = run_command(command)

    assert (result.exit_code, result.problem) == (status, "")


def test_what_cannot_run_has_a_shells_status_and_one_clear_line(tmp_path):
    (tmp_path / "plain").write_text("text")
    (tmp_path / "lost").write_text("#!/no/such/interpreter\n")
    (tmp_path / "lost").chmod(0o755)
    cases = {
        "no-such-command": (127, "no-such-command: command not found"),
        str(tmp_path / "none"): (127, f"{tmp_path}/none: no such file, or no interpreter for it"),
        str(tmp_path / "lost"): (127, f"{tmp_path}/lost: no such file, or no interpreter for it"),
        str(tmp_path / "plain"): (126, f"{tmp_path}/plain: Permission denied"),
        str(tmp_path): (126, f"{tmp_path}: Is a directory"),
    }
    for name, expected in cases.items():
        result = run_command([name])
        assert (result.exit_code, result.problem) == expected


def test_a_command_is_looked_up_in_the_path_it_is_given_and_a_script_without_a_header_is_a_shells(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "work").write_text("exit 1")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "work").write_text('test "$1 $MARK" = "a b c"')
    (tmp_path / "second" / "work").chmod(0o755)
    env = {"PATH": f"{tmp_path}/first:{tmp_path}/second", "MARK": "c"}

    assert run_command(["work", "a b"], env=env).exit_code == 0
    (tmp_path / "second" / "work").unlink()
    assert run_command(["work", "a b"], env=env).problem == "work: Permission denied"


@pytest.mark.parametrize("argv", [[], [""]])
def test_no_command_is_bad_usage(argv):
    with pytest.raises(InputError) as caught:
        run_command(argv)
    assert caught.value.code == "NO_COMMAND"


def test_standard_streams_and_passed_descriptors_are_the_commands_own(tmp_path):
    given, give = os.pipe()
    os.write(give, b"more")
    script = f"cat; echo oops >&2; head -c 4 /proc/self/fd/{given}"
    ran = subprocess.run(meter("sh", "-c", script), input="text ", capture_output=True, text=True, pass_fds=[given])
    os.close(given)
    os.close(give)

    assert (ran.stdout, ran.stderr, ran.returncode) == ("text more", "oops\n", 0)


@pytest.mark.parametrize("prepare", ["", "trap '' HUP CHLD; "], ids=["plain", "with-ignored-signals"])
def test_descriptors_signals_group_session_and_environment_are_as_without_us(prepare):
    show = (
        "ls /proc/self/fd; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ps -o pgid=,sid= $$; env | grep -v ^_= | sort"
    )
    shown = [
        subprocess.check_output(
            ["sh", "-c", prepare + 'exec "$@"', "sh", *command], text=True, env={"PATH": os.environ["PATH"], "A": "b"}
        )
        for command in (["sh", "-c", show], meter("sh", "-c", show))
    ]
    same_group = [
        [line for line in text.splitlines() if not line.split()[0].isdecimal() or len(line.split()) == 1]
        for text in shown
    ]

    assert same_group[0] == same_group[1]


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGRTMIN"]
)
def test_a_signal_sent_to_us_is_passed_on_once_and_the_command_decides(name, threads):
    running = subprocess.Popen(
        meter(sys.executable, "-S", "-c", COUNT_SIGNALS, name, threads=threads), stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "ready\n"
    running.send_signal(getattr(signal, name))

    assert running.communicate(timeout=30)[0] == f"{{'{name}': 1}}\n"
    assert running.returncode == 7


def test_a_signal_sent_to_our_group_reaches_the_command_once():
    # Of a real-time signal every sending is kept, so that none is mistaken for another.
    script = (
        "import signal; number = signal.SIGRTMIN; signal.pthread_sigmask(signal.SIG_BLOCK, {number})\n"
        "print('ready', flush=True); count = 0\n"
        "while signal.sigtimedwait({number}, 1 if count else 30): count += 1\n"
        "print(count)"
    )
    command = meter(sys.executable, "-S", "-c", script)
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert running.stdout.readline() == "ready\n"
    os.killpg(running.pid, signal.SIGRTMIN)

    assert running.communicate(timeout=30)[0] == "1\n"


def test_a_signal_that_ends_the_command_is_its_status():
    running = subprocess.Popen(meter("sh", "-c", "echo ready; exec sleep 30"), stdout=subprocess.PIPE, text=True)
    running.stdout.readline()
    running.terminate()
    running.communicate(timeout=30)

    assert running.returncode == 143


def test_a_pipe_ends_when_the_command_does_and_we_leave_no_process_behind(tmp_path):
    # The session is the test's alone, so that whatever is left in it is seen.
    command = meter("sh", "-c", "echo done")
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert running.communicate(timeout=20)[0] == "done\n"

    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


def on_terminal(command: list[str]) -> tuple[int, int]:
    """Starts a command as a job-control shell does, in the foreground of a terminal: its pid and our end."""
    shell = (
        "import os, sys, signal\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os.setpgid(0, 0); signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})\n"
        "    os.tcsetpgrp(0, os.getpid()); signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})\n"
        "    os.execv(sys.argv[1], sys.argv[1:])\n"
        "while True:\n"
        "    _, status = os.waitpid(pid, os.WUNTRACED)\n"
        "    if not os.WIFSTOPPED(status): print('status', os.waitstatus_to_exitcode(status), flush=True); break\n"
        "    print('stopped', open(f'/proc/{int(open(sys.argv[-1]).read())}/stat').read().split()[2], flush=True)\n"
        "    os.killpg(pid, signal.SIGCONT)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable,
            [
                sys.executable,
                "-S",
                "-c",
                "import signal; signal.signal(signal.SIGTTOU, signal.SIG_IGN)\n" + shell,
                *command,
            ],
        )
    return pid, terminal


def read_until(terminal: int, text: str) -> str:
    said, deadline_s = "", time.monotonic() + 30
    while text not in said:
        assert select.select([terminal], [], [], deadline_s - time.monotonic())[0], said
        said += os.read(terminal, 4096).decode()
    return said


def test_ctrl_c_reaches_the_command_once_and_ctrl_z_stops_it_and_us(tmp_path):
    script = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n" + COUNT_SIGNALS
    command = meter(sys.executable, "-S", "-c", script, "SIGINT,SIGCONT", str(tmp_path / "pid"))
    pid, terminal = on_terminal(command)
    read_until(terminal, "ready")
    os.write(terminal, b"\x1a")
    said = read_until(terminal, "status 7")
    os.waitpid(pid, 0)
    os.close(terminal)
    assert "stopped T" in said
    assert "'SIGINT': 0" in said

    pid, terminal = on_terminal(meter(sys.executable, "-S", "-c", script, "SIGINT", str(tmp_path / "pid")))
    read_until(terminal, "ready")
    os.write(terminal, b"\x03")
    said = read_until(terminal, "status 7")
    os.waitpid(pid, 0)
    os.close(terminal)
    assert "{'SIGINT': 1}" in said


def test_callbacks_see_the_command_and_their_failures_do_not_reach_it(tmp_path):
    started, seen = [], []
    result = run_command(
        ["sh", "-c", "sleep 0.6 & wait"], on_start=lambda _: started.append(time.monotonic()), on_sample=seen.append
    )
    assert len(started) == 1
    assert seen
    assert {pid for pids in seen for pid in pids} <= result.pids
    assert len(result.pids) >= 2

    ran = subprocess.run(meter("sh", "-c", "sleep 0.2; exit 5", raising=True, result=str(tmp_path / "result")))
    assert ran.returncode == 5
    assert {"ON_START_FAILED", "SAMPLE_FAILED"} <= set(json.loads((tmp_path / "result").read_text())["events"])


def test_our_own_handlers_are_back_when_the_command_has_ended():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGTSTP)
    before = [signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    descriptors = os.listdir("/proc/self/fd")
    run_command(["true"])

    assert ([signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before
    assert os.listdir("/proc/self/fd") == descriptors
