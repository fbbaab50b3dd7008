"""Threads of this process: which of them are Python's, and the CPU time of those that are not.

A numerical library (BLAS, OpenMP) keeps threads of its own that Python does not know of. They serve whoever calls the
library, so that neither a thread's clock nor a task clock opened later finds them among what a task started.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

_THREADS: Final = "/proc/self/task"
_DIRECTORY_LINKS: Final = 2
"""A directory's links beside those of the directories in it: ``.`` and its name."""
_PER_THREAD_CPU_CLOCK: Final = 0b110
"""CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED of linux/posix-timers.h, which ``pthread_getcpuclockid`` builds on."""


def native_threads() -> dict[int, float]:
    """CPU seconds so far, by thread id, of this process's living threads that are not Python's.

    A Python thread that is just starting or ending may be among them for a moment: one that is there at two readings
    is none.
    """
    try:
        # The usual process has none, and counting them is cheaper than listing them.
        if os.stat(_THREADS).st_nlink - _DIRECTORY_LINKS <= threading.active_count():
            return {}
        numbers = {int(name) for name in os.listdir(_THREADS)}
    except OSError:
        return {}
    numbers -= {thread.native_id for thread in threading.enumerate() if thread.native_id is not None}
    found = {}
    for number in numbers:
        try:
            found[number] = time.clock_gettime(~number << 3 | _PER_THREAD_CPU_CLOCK)
        except OSError:
            pass  # it has ended
    return found
