from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any

from prefect import flow, task
from prefect.futures import PrefectFuture, PrefectFutureList
from typing_extensions import assert_type

from tao_flows import measure, tao_flow, tao_task
from tao_flows.figures import Figure
from tao_flows.prefect import TaoFlow, TaoTask, energy_of


@tao_task
def bare(x: int, y: str = "") -> float:
    return x / 2


assert_type(bare(1), float)
assert_type(bare(1, y="a"), float)
assert_type(bare.submit(1), PrefectFuture[float])
assert_type(bare.map([1, 2]), PrefectFutureList[float])
assert_type(bare.with_options(retries=3, team="a")(1), float)
bare("one")  # type: ignore[call-overload]


@tao_task(budget="40 J", retries=2, deadline="2h", deferrable=True)
def with_arguments(x: int) -> list[int]:
    return [x]


assert_type(with_arguments(1), list[int])


@tao_task
async def asynchronous(x: int) -> bytes:
    return b""


async def awaits() -> None:
    assert_type(await asynchronous(1), bytes)


@tao_task
def generator(x: int) -> Generator[int, None, None]:
    yield x


assert_type(generator(1), Generator[int, None, None])


@tao_task
async def async_generator(x: int) -> AsyncGenerator[int, None]:
    yield x


assert_type(async_generator(1), AsyncGenerator[int, None])


@task
def existing(x: int) -> str:
    return str(x)


taken: TaoTask[..., str] = tao_task(existing)
assert_type(tao_task(existing)(1), str)


@tao_flow(name="nightly", log_prints=True, team="a")
def nightly(n: int) -> dict[str, float]:
    return {"x": bare(n)}


assert_type(nightly(3), dict[str, float])
assert_type(nightly.with_options(retries=1)(3), dict[str, float])


@tao_flow
async def nightly_async(n: int) -> str:
    return ""


async def awaits_a_flow() -> None:
    assert_type(await nightly_async(1), str)


@flow
def theirs(n: int) -> int:
    return n


taken_flow: TaoFlow[..., int] = tao_flow(theirs)
assert_type(taken_flow(1), int)
assert_type(energy_of(bare.submit(1)), Figure)


def coroutine_of(n: int) -> Coroutine[Any, Any, str]:
    return nightly_async(n)


with measure("block") as m:
    pass
assert_type(m.energy.value_j, float | None)
