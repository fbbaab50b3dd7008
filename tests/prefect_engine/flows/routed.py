"""A flow that says where it ran, fails or stays, as it is asked; and tasks that say so, too."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from prefect.context import FlowRunContext

from tao_flows import tao_flow, tao_task

POOLS = ["parts-blue", "parts-green"]


@tao_flow(name="routed", persist_result=True, reroutable=True, max_defer="1h", team="routers")
def routed(how: str = "") -> str:
    if how == "fail":
        raise ValueError("as it was asked to")
    for _ in range(600 if how == "stay" else 0):
        time.sleep(0.1)
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return str(context.flow_run.work_pool_name)


def _here() -> str:
    return os.environ.get("WHERE", "the flow's process")


@tao_task(pools=POOLS)
def part(number: int, fail: bool = False) -> str:
    if fail:
        raise ValueError("as it was asked to")
    return f"{number} in {_here()}"


@tao_task(pools=POOLS, share_cache=True)
def shared(number: int) -> str:
    return f"{number} in {_here()}"


@tao_flow(name="parts")
def parts(numbers: list[int]) -> list[str]:
    return [part.submit(9).result(), *(future.result(60) for future in part.map(numbers, deferred=True))]


@tao_flow(name="twice")
def twice(signal: str, heard_s: float) -> list[list[str]]:
    """Both tasks before and after a file of signals takes the place of the one beside it."""
    before = _both()
    Path(signal).rename(Path(signal).with_name("carbon.csv"))
    time.sleep(heard_s)
    return [before, _both()]


def _both() -> list[str]:
    return [part.delay(1).result(60), shared.delay(1).result(60)]


if __name__ == "__main__":
    from tao_flows.prefect.route import serve

    serve(part, shared, pool=sys.argv[1])
