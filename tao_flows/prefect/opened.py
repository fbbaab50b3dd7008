"""A desk with all it needs, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from prefect.client.orchestration import get_client

from tao_flows.prefect._compat import impatient
from tao_flows.prefect.api import Api
from tao_flows.prefect.desk import FlowDesk
from tao_flows.prefect.moves import in_thread
from tao_flows.prefect.settings import tao_here


@asynccontextmanager
async def opened_desk(work_pools: Collection[str] | None) -> AsyncIterator[FlowDesk | None]:
    """A desk for these work pools, or all; None where this process cannot have a ``Tao``, which is logged.

    Its client is its own: each call of it is made once and given seconds, whatever patience the engine's has.
    """
    tao = await in_thread(tao_here)
    if tao is None:
        yield None
        return
    with impatient():
        client = get_client()
    async with client:
        yield FlowDesk(tao, Api(client), work_pools)
