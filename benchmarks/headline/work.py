"""The work: items of fixed CPU work, the same for every engine. Knows no engine and nothing of tao-flows.

An item derives a key by PBKDF2, whose number of rounds fixes both how much there is to do and the one right result. It
is a single call into C that gives other threads leave to run, as numerical work does.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SPEC: Final = "HEADLINE_SPEC"
"""Names the file that says how many rounds an item has, and where what was done is noted."""
_CALIBRATION_S: Final = 0.2
_MOST_ROUNDS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Done:
    """One time that an item was run."""

    group: int
    """Which of the arrivals it came with."""
    number: int
    """In its group, from 0."""
    began_s: float
    """Seconds since 1970."""
    ended_s: float
    cpu_s: float
    """Of its thread, from the first round to the last."""
    result: str


def derive(group: int, number: int, rounds: int) -> str:
    """The work itself."""
    return hashlib.pbkdf2_hmac("sha256", b"item", f"{group}/{number}".encode(), rounds).hex()[:16]


def rounds_per_s() -> float:
    """Rounds in a second of CPU time here: the median of five tries."""
    rates = []
    rounds = 20_000
    for _ in range(5):
        while True:
            began_s = time.thread_time()
            derive(0, 0, rounds)
            took_s = time.thread_time() - began_s
            if took_s >= _CALIBRATION_S:
                break
            rounds *= 2
        rates.append(rounds / took_s)
    return sorted(rates)[2]


def rounds_of(item_s: float, per_s: float) -> int:
    """Rounds of an item of so many CPU seconds; one at least."""
    return max(1, min(_MOST_ROUNDS, round(item_s * per_s)))


def write_spec(path: Path, *, rounds: int, log: Path) -> None:
    """Says what the items are from now on."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"rounds": rounds, "log": str(log)}))
    os.replace(fresh, path)


def run_item(group: int, number: int) -> str:
    """Runs one item and notes that it was run, in a single write at the end of a file that others write to as well."""
    spec = json.loads(Path(os.environ[SPEC]).read_text())
    began_s, cpu_s = time.time(), time.thread_time()
    result = derive(group, number, spec["rounds"])
    cpu_s, ended_s = time.thread_time() - cpu_s, time.time()
    line = f"{group} {number} {began_s:.6f} {ended_s:.6f} {cpu_s:.9f} {result}\n".encode()
    log = os.open(spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(log, line)
    finally:
        os.close(log)
    return result


def read_log(log: Path) -> list[Done]:
    """What was run so far."""
    if not log.exists():
        return []
    lines = [line.split() for line in log.read_text().splitlines()]
    return [Done(int(g), int(n), float(b), float(e), float(c), r) for g, n, b, e, c, r in lines]
