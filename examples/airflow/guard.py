"""Ends what is left of a cluster once whoever began it is gone, in whatever way.

``cluster.py`` starts this with the cluster's home, and writes the id of each process that it starts to its standard input.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_PATIENCE_S = 15.0
"""How long a process that has been asked to end may take."""


def main() -> None:
    """Waits until nobody holds the other end of standard input, then for what has been asked to end, then ends it."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    home, sessions = sys.argv[1], {int(line) for line in sys.stdin}
    kill_after_s = time.monotonic() + (_PATIENCE_S if any(map(_is_alive, sessions)) else 0.0)
    while left := _members(home, sessions):
        if time.monotonic() >= kill_after_s:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _members(home: str, sessions: Collection[int]) -> list[int]:
    """Processes of a session that the cluster began, and those of its environment: a shell's task begins its own."""
    mark = b"AIRFLOW_HOME=" + os.fsencode(home) + b"\0"
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _is_alive(int(entry)):
            with suppress(OSError):
                if os.getsid(int(entry)) in sessions or mark in Path("/proc", entry, "environ").read_bytes():
                    found.append(int(entry))
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except OSError:
        return False


if __name__ == "__main__":
    main()
