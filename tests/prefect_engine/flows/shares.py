"""Ten tasks side by side in one flow process, ``threads`` or ``coroutines``; prints what each truly used, by label."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time

from prefect.task_runners import ThreadPoolTaskRunner

from tao_flows import tao_flow, tao_task

STEPS = 10
UNIT_S = 0.1
NUMBERS = range(1, 11)
together = threading.Barrier(len(NUMBERS))


def burn(cpu_s: float) -> float:
    started_s = time.thread_time()
    while (spent_s := time.thread_time() - started_s) < cpu_s:
        pass
    return spent_s


@tao_task(task_run_name="work-{number}")
def on_thread(number: int) -> float:
    begun_s = time.thread_time()
    together.wait()
    burn(UNIT_S * number)
    together.wait()
    return time.thread_time() - begun_s


@tao_task(task_run_name="work-{number}")
async def coroutine(number: int) -> float:
    spent_s = 0.0
    for _ in range(STEPS):
        spent_s += burn(UNIT_S * number / STEPS)
        await asyncio.sleep(0)
    return spent_s


@tao_flow(task_runner=ThreadPoolTaskRunner(max_workers=len(NUMBERS)))
def threads() -> list[float]:
    return on_thread.map(NUMBERS).result()


@tao_flow
async def coroutines() -> list[float]:
    return list(await asyncio.gather(*(coroutine(number) for number in NUMBERS)))


if __name__ == "__main__":
    spent = threads() if sys.argv[1] == "threads" else asyncio.run(coroutines())
    print("truth", json.dumps({f"work-{number}": spent_s for number, spent_s in zip(NUMBERS, spent, strict=True)}))
