"""The controller: decides on the flow runs of stock workers, push pools and managed pools, by the public API alone.

It sees a run ``HORIZON_S`` before it is due, and so before any worker takes it; of one that is created to start at once,
a worker may be first, and then it starts at once. Several may run: of two that want the same run, one has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Collection
from typing import Final

from tao_flows.errors import ConfigError
from tao_flows.prefect.desk import HORIZON_S, LOOK_S, FlowDesk
from tao_flows.prefect.opened import opened_desk
from tao_flows.prefect.sealing import sealing_controller

_LEAST_S: Final = 0.1


async def run_controller(work_pools: Collection[str] | None, ready: Callable[[str], None]) -> None:
    """Decides on flow runs until SIGTERM or SIGINT. What waits then, waits on.

    Args:
        work_pools: their names; None for all.
        ready: told, in one line, that it has begun.

    Raises:
        ConfigError: it cannot be set up here.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with opened_desk(work_pools) as desk:
        if desk is None:
            raise ConfigError("NO_CONTROLLER", "tao-flows cannot be set up here", "the line above says why")
        sealing = sealing_controller()
        looking = None if sealing is None else asyncio.create_task(sealing.keep_looking())
        begun = False
        while not stop.is_set():
            round_s = time.monotonic()
            await desk.look_ahead(HORIZON_S)
            await desk.look()
            if not begun:
                begun = True
                ready(_said(desk, work_pools))
            left_s = max(_LEAST_S, LOOK_S - (time.monotonic() - round_s))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), left_s)
        if looking is not None:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking


def _said(desk: FlowDesk, work_pools: Collection[str] | None) -> str:
    pools = "all work pools" if work_pools is None else f"work pools {', '.join(work_pools)}"
    return f"ready for {pools} at {desk.where}"
