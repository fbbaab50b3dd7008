"""Ten pieces of work side by side in one process; prints what each was charged and what it truly used."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

from tao_flows import measure

STEPS = 10
UNIT_S = 0.1
NUMBERS = range(1, 11)
CHILD = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def burn(cpu_s: float) -> float:
    """Uses CPU on this thread and says how much it was."""
    started_s = time.thread_time()
    while (spent_s := time.thread_time() - started_s) < cpu_s:
        pass
    return spent_s


def row(truth_s: float, m: measure) -> dict[str, Any]:
    cpu = m.measurement.cpu
    return {
        "truth_s": truth_s,
        "cpu_s": cpu.cpu_s,
        "source": cpu.source,
        "covers_children": cpu.covers_children,
        "energy_j": m.energy.value_j,
    }


async def coroutine(number: int) -> float:
    """The CPU seconds it used itself."""
    spent_s = 0.0
    for _ in range(STEPS):
        spent_s += burn(UNIT_S * number / STEPS)
        await asyncio.sleep(0)
    return spent_s


def coroutines() -> list[dict[str, Any]]:
    async def one(number: int) -> dict[str, Any]:
        m = measure(str(number))
        return row(await m.of(coroutine(number)), m)

    async def main() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(one(number) for number in NUMBERS)))

    return asyncio.run(main())


def on_thread(number: int) -> float:
    burn(UNIT_S * number)
    return 0.0


def on_thread_and_what_it_starts(number: int) -> float:
    """A third on the thread, a third on a thread it starts, a third in a process it starts: those two's seconds."""
    third_s = UNIT_S * number / 3
    spent: list[float] = []

    def help_out() -> None:
        burn(third_s)
        spent.append(time.thread_time())

    helper = threading.Thread(target=help_out)
    helper.start()
    child = subprocess.Popen([sys.executable, "-S", "-c", CHILD.format(third_s)])
    burn(third_s)
    _, _, used = os.wait4(child.pid, 0)
    child.returncode = 0
    helper.join()
    return spent[0] + used.ru_utime + used.ru_stime


def threads(work: Any) -> list[dict[str, Any]]:
    together = threading.Barrier(len(NUMBERS))
    rows: dict[int, dict[str, Any]] = {}

    def one(number: int) -> None:
        with measure(str(number)) as m:
            begun_s = time.thread_time()
            together.wait()
            started_s = work(number)
            together.wait()
            truth_s = time.thread_time() - begun_s + started_s
        rows[number] = row(truth_s, m)

    started = [threading.Thread(target=one, args=(number,)) for number in NUMBERS]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return [rows[number] for number in NUMBERS]


KINDS = {
    "coroutines": coroutines,
    "threads": lambda: threads(on_thread),
    "families": lambda: threads(on_thread_and_what_it_starts),
}

if __name__ == "__main__":
    with measure("warm"):
        pass
    before = os.times()
    rows = KINDS[sys.argv[1]]()
    after = os.times()
    print(json.dumps({"rows": rows, "process_s": sum(after[:4]) - sum(before[:4])}))
