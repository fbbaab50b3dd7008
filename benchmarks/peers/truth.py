"""What really happened, by counters that none of the libraries reads: control groups, and a node of known power.

A load runs in a control group (version 2) that holds nothing else; its ``cpu.stat`` is the truth of its CPU time. The
node draws ``CORE_W`` for each busy processor of the host, whoever keeps it busy, and nothing at rest. So the truth of
a load's energy is its CPU seconds times ``CORE_W``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from peers.libraries import CORE_W

from tao_flows.testing import PowercapTree

ZONE: Final = "intel-rapl:0"
STEP_S: Final = 0.02
"""Between two moves of the node's counter."""
WITHIN_S: Final = 60.0
_STAGE: Final = 'echo $$ >"$1"; read -r _ <"$2"; shift 2; exec "$@"'


def groups() -> Path | None:
    """Where control groups of version 2 are mounted, if they can be made here."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2" and os.access(fields[4], os.W_OK):
            return Path(fields[4])
    return None


class Group:
    """A control group that holds one load."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def around(cls, pid: int, root: Path) -> Group:
        """A new group below the one a process is in, with the process in it."""
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        above = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
        group = cls(root / above.lstrip("/") / f"truth-{pid}")
        group.path.mkdir()
        group.add(pid)
        return group

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def cpu_s(self) -> float:
        fields = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def remove(self) -> None:
        """Removes it, and the group a meter made around it, as soon as what ran there has gone."""
        around = [self.path] + [self.path.parent] * self.path.parent.name.startswith("tao-flows-")
        give_up_s = time.monotonic() + 5
        for path in around:
            while path.exists() and time.monotonic() < give_up_s:
                with contextlib.suppress(OSError):
                    path.rmdir()
                    break
                time.sleep(0.01)


class Stage:
    """A load started by another's command: it waits until it is in a group of its own, and is let go.

    A process that sleeps keeps the group in being after the command, until it has been read.
    """

    def __init__(self, scratch: Path, name: str) -> None:
        self._said, self._go = scratch / f"{name}.said", scratch / f"{name}.go"
        for path in (self._said, self._go):
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        self._keeper: subprocess.Popen[bytes] | None = None

    def command(self, load: Sequence[str]) -> list[str]:
        """The command that waits and becomes the load."""
        return ["sh", "-c", _STAGE, "sh", str(self._said), str(self._go), *load]

    def enter(self, root: Path) -> Group:
        """Waits for the load, and puts it in its group.

        Raises:
            RuntimeError: it did not start.
        """
        heard: list[str] = []
        reader = threading.Thread(target=lambda: heard.append(self._said.read_text()), daemon=True)
        reader.start()
        reader.join(WITHIN_S)
        if not heard:
            raise RuntimeError("the load did not start")
        group = Group.around(int(heard[0]), root)
        self._keeper = subprocess.Popen(["sleep", "600"])
        group.add(self._keeper.pid)
        return group

    def let_go(self) -> None:
        self._go.write_text("\n")

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()


class Node:
    """Moves the tree's counter by what the host's busy processors draw."""

    def __init__(self, tree: PowercapTree) -> None:
        self._tree = tree
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.drawn_uj = 0
        """Since the beginning."""

    def __enter__(self) -> Node:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before_s = _busy_s()
        while not self._stop.wait(STEP_S):
            now_s = _busy_s()
            by_uj = round(max(0.0, now_s - before_s) * CORE_W * 1e6)
            self._tree.move(ZONE, by_uj)
            self.drawn_uj += by_uj
            before_s = now_s


def _busy_s() -> float:
    """CPU seconds of all processors since boot (proc(5)): without idle, I/O wait and stolen time."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _wait, irq, softirq = (int(field) for field in file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
