"""Work of a known size, for a block in a library's process and, as a program, for a command under ``meter``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final


def burn(cpu_s: float) -> None:
    """Works for this many CPU seconds."""
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        sum(range(1_000))


def shared(cpu_s: float) -> None:
    """The same on the last processor alone, so that two of these share it."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    burn(cpu_s)
    os.sched_setaffinity(0, allowed)


def asleep(wall_s: float) -> None:
    """Does nothing for this long."""
    time.sleep(wall_s)


def forks(count: float, cpu_s: float) -> None:
    """So many children, one after the other, each of so much work."""
    for _ in range(int(count)):
        pid = os.fork()
        if pid == 0:
            burn(cpu_s)
            os._exit(0)
        os.waitpid(pid, 0)


def orphans(count: float, cpu_s: float) -> None:
    """The same, but each loses its parent before it works, so that nobody here is told of its end by the kernel."""
    for _ in range(int(count)):
        ended, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                burn(cpu_s)
            os._exit(0)
        os.close(end)
        os.waitpid(pid, 0)
        os.read(ended, 1)
        os.close(ended)


_LOADS: Final[dict[str, Callable[..., None]]] = {each.__name__: each for each in (burn, shared, asleep, forks, orphans)}


def load(arguments: Sequence[str]) -> None:
    """Runs a load by its name, with its numbers."""
    name, *numbers = arguments
    _LOADS[name](*map(float, numbers))


if __name__ == "__main__":
    load(sys.argv[1:])
