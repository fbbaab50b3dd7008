"""What tests with servers of their own share: a free port, a wait for what is to be seen, an end of what was started."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(seen: Callable[[], T], what: Callable[[], str], give_up_s: float = 240.0, every_s: float = 0.3) -> T:
    """What is seen, once it is anything; ``what`` says what was to be."""
    begun_s = time.monotonic()
    while not (found := seen()):
        assert time.monotonic() - begun_s < give_up_s, what()
        time.sleep(every_s)
    return found


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ends processes side by side, by force where they do not end by themselves in 20 s."""
    started = list(processes)
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
