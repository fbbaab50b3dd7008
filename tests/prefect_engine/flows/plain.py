"""Flows of which no line knows of tao-flows, and one that does."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator

from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.task_runners import ProcessPoolTaskRunner


def burn(cpu_s: float) -> float:
    started_s = time.thread_time()
    while time.thread_time() - started_s < cpu_s:
        pass
    return cpu_s


@task
def called(cpu_s: float) -> float:
    return burn(cpu_s)


@task
def submitted(number: int) -> int:
    burn(0.01)
    return number


@task
async def awaited(cpu_s: float) -> float:
    await asyncio.sleep(0.01)
    return burn(cpu_s)


@task
def items(count: int) -> Iterator[int]:
    for number in range(count):
        burn(0.01)
        yield number


@task
async def items_async(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@task(cache_policy=INPUTS, persist_result=True)
def cached(key: str) -> str:
    return key


@task(retries=1)
def twice(tries: list[int]) -> int:
    tries.append(1)
    if len(tries) == 1:
        raise ValueError("once more")
    return len(tries)


@task(timeout_seconds=0.2)
async def late() -> None:
    await asyncio.sleep(30)


@flow
async def child() -> float:
    return await awaited(0.02)


@flow
async def plain(key: str) -> None:
    burn(0.1)
    assert called(0.2) == 0.2
    futures = submitted.map([0, 1, 2])
    assert [future.result() for future in futures] == [0, 1, 2]
    assert await child() == 0.02
    assert list(items(3)) == [0, 1, 2]
    assert [number async for number in items_async(2)] == [0, 1]
    assert cached(key) == cached(key) == key
    assert twice([]) == 2
    assert (await late(return_state=True)).name == "TimedOut"


@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
def elsewhere() -> int:
    return submitted.submit(7).result()


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        from tao_flows import tao_flow, tao_task

        @tao_flow
        def ours() -> None:
            tao_task(called.fn, name="of ours")(0.05)
            called(0.05)

        ours()
    elif sys.argv[1] == "small":
        asyncio.run(child())
    elif sys.argv[1] == "elsewhere":
        assert elsewhere() == 7
    else:
        asyncio.run(plain(sys.argv[1]))
    print("done")
