"""A flow of which some tasks may wait for cleaner power: threads, coroutines and one that may not."""

from __future__ import annotations

import asyncio
import sys
import time

from tao_flows import tao_flow, tao_task

WAITS = {"deferrable": True, "max_defer": "2h"}


@tao_task(**WAITS)
def sync_work(number: int) -> int:
    print(f"sync {number} started", flush=True)
    return number


@tao_task(**WAITS, timeout_seconds=2)
async def async_work(number: int) -> int:
    print(f"async {number} started", flush=True)
    await asyncio.sleep(0.01)
    return number


@tao_task(**WAITS, tags=["scarce"])
def tagged(number: int) -> int:
    print(f"tagged {number} at {time.time()}", flush=True)
    time.sleep(0.3)
    print(f"tagged {number} to {time.time()}", flush=True)
    return number


@tao_task(**WAITS, tags=["scarce"])
async def tagged_async(number: int) -> int:
    print(f"tagged {number} at {time.time()}", flush=True)
    await asyncio.sleep(0.3)
    print(f"tagged {number} to {time.time()}", flush=True)
    return number


@tao_task
def at_once(number: int) -> int:
    print(f"at once {number} started", flush=True)
    return number


@tao_flow
def warm_up() -> None:
    """Lets every task be known: what is not known is not put off."""
    for _ in range(2):
        sync_work(0)
        tagged(0)
        asyncio.run(one())


async def one() -> None:
    await async_work(0)
    await tagged_async(0)


@tao_flow
def main() -> list[int]:
    waiting = [sync_work.submit(number) for number in range(3)]
    now = at_once.submit(10)
    print(f"now gives {now.result()}", flush=True)
    done = [each.result() for each in waiting]
    return [*done, *asyncio.run(several())]


async def several() -> list[int]:
    return list(await asyncio.gather(*(async_work(number) for number in range(3, 6))))


@tao_flow
async def scarce() -> list[int]:
    in_threads = [tagged.submit(number) for number in range(2)]
    done = await asyncio.gather(*(tagged_async(number) for number in range(2, 4)))
    return [*(each.result() for each in in_threads), *done]


if __name__ == "__main__":
    begun_s = time.monotonic()
    if sys.argv[1:] == ["warm-up"]:
        warm_up()
    elif sys.argv[1:] == ["scarce"]:
        print(f"result {asyncio.run(scarce())}", flush=True)
    else:
        print(f"result {main()}", flush=True)
