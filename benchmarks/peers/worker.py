"""One process for each library, told over a pipe what to time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from peers.libraries import ROWS, Library
from peers.loads import load

ANSWER_WITHIN_S: Final = 60.0
SETTLED_AFTER_S: Final = 0.4
POWERCAP: Final = "/sys/class/powercap"
KERNEL_STATISTICS: Final = "/sys/devices/virtual/net/lo/statistics"
"""Numbers that the kernel keeps and shows through sysfs, as it does energy_uj."""
KERNEL_COUNTERS: Final = {
    "rx_bytes": "intel-rapl/intel-rapl:0",
    "rx_packets": "intel-rapl/intel-rapl:0/intel-rapl:0:0",
    "tx_bytes": "intel-rapl/intel-rapl:1",
}
"""Which of them stands in for which zone's counter."""


def _nothing() -> None:
    pass


def work(name: str) -> None:
    """The process of one library: answers the lines it is sent with a line of JSON each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up among the answers

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    def pause() -> None:
        answer(open=True)
        sys.stdin.readline()

    try:
        started_ns = time.perf_counter_ns()
        library = ROWS[name].make()
        window = library.window
        window(_nothing)
        answer(first_ns=time.perf_counter_ns() - started_ns)
        while request := sys.stdin.readline().split():
            if request[0] == "look":
                answer(seen_j=library.joules(window(pause)))
                continue
            if request[0] == "load":
                answer(**_charge(library, request[1:]))
                continue
            windows = int(request[1])
            started_ns = time.perf_counter_ns()
            for _ in range(windows):
                window(_nothing)
            answer(window_ns=(time.perf_counter_ns() - started_ns) / windows)
    except Exception as error:  # noqa: BLE001 - a peer that fails says why in its row
        answer(error=f"{type(error).__name__}: {error}")


def _charge(library: Library, arguments: Sequence[str]) -> dict[str, Any]:
    result = library.window(lambda: load(arguments))
    return {"cpu_s": library.cpu_s(result), "energy_j": (library.charged_j or library.joules)(result)}


def settings(tree: Path, scratch: Path, name: str) -> dict[str, str]:
    """The environment of what is measured here: nobody's settings but ours, and no agent."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("TAO_FLOWS_", "CODECARBON_"))}
    return env | {
        "HOME": str(scratch),
        "TAO_FLOWS_AGENT": "off",
        "TAO_FLOWS_LEDGER": f"sqlite:///{scratch}/{name}.db",
        "TAO_FLOWS_POWERCAP_ROOT": str(tree),
        "TAO_FLOWS_SOURCES": "rapl",
    }


def process_clock_s(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond; its clock is named as clock_getcpuclockid(3) does."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended
        return 0.0


class Worker:
    """A library's process, seen from the one that asks."""

    def __init__(
        self, name: str, tree: Path, scratch: Path, *, private: bool, env: Mapping[str, str] | None = None
    ) -> None:
        row = ROWS[name]
        env = {**settings(tree, scratch, name), **(env or {})}
        if row.reads == "nothing":
            env["TAO_FLOWS_SOURCES"] = "estimate"
        command = [sys.executable, os.path.abspath(sys.argv[0]), "--worker", name]
        if private:
            command = in_private(tree, command, reads=row.reads)
        self._errors_path = scratch / f"{name}.err"
        with self._errors_path.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env=env, cwd=scratch, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ask(self, request: str = "") -> dict[str, Any]:
        """Sends a line, if there is one, and gives the answer; RuntimeError with the reason if there is none."""
        if request:
            self.tell(request)
        return self.hear()

    def cpu_s(self) -> float:
        """CPU seconds of it and of the helpers it started."""
        from tao_flows.telemetry.procfs import tree

        return sum(process_clock_s(pid) for pid in tree(self._process.pid))

    def tell(self, request: str) -> None:
        """Sends a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and reading says why
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next answer; RuntimeError with the reason if there is none."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_WITHIN_S)[0]:
            raise RuntimeError(f"no answer within {ANSWER_WITHIN_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            said = self._errors_path.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"it ended: {said[-1] if said else 'without a word'}")
        fields: dict[str, Any] = json.loads(line)
        if "error" in fields:
            raise RuntimeError(fields["error"])
        return fields

    def settle(self) -> tuple[int, int]:
        """Waits until the helpers it started have come to rest; gives their number and the resident bytes of all."""
        from tao_flows.telemetry.procfs import process_stat, resident_bytes, tree

        pids = tree(self._process.pid)
        give_up, before_s = time.monotonic() + ANSWER_WITHIN_S, -1.0
        while time.monotonic() < give_up:
            pids = tree(self._process.pid)
            cpu_s = sum(stat.cpu_s for pid in pids if (stat := process_stat(pid)))
            if cpu_s == before_s:
                break
            before_s = cpu_s
            time.sleep(SETTLED_AFTER_S)
        return len(pids) - 1, resident_bytes(pids) or 0

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def in_private(tree: Path, command: Sequence[str], *, reads: str = "tree") -> list[str]:
    """The command in a mount and network namespace of its own, with the tree where libraries look for it."""
    script = f'mount -t tmpfs none /sys/class && mkdir {POWERCAP} && mount --bind "$1" {POWERCAP} && shift'
    if reads == "nothing":
        script = "mount -t tmpfs none /sys/class && shift"
    if reads == "sysfs":
        for counter, zone in KERNEL_COUNTERS.items():
            script = f'mount --bind {KERNEL_STATISTICS}/{counter} "$1"/{zone}/energy_uj && {script}'
    return ["unshare", "--mount", "--net", "sh", "-c", f'{script} && exec "$@"', "sh", str(tree), *command]


def why_not_private() -> str:
    """Why this process cannot give others a /sys/class of their own, or nothing."""
    if os.geteuid() != 0:
        return "it needs a /sys/class/powercap of its own, which only root can make: run as root"
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not here"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else tried.stderr.strip() or "unshare failed"
