"""What a desk does to one flow run: puts it off, brings it forward, sends it elsewhere, finishes what somebody began."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prefect.client.schemas.objects import FlowRun

from tao_flows.prefect import elsewhere
from tao_flows.prefect.api import Api, ApiPaused, is_taken
from tao_flows.prefect.deferred import said_of
from tao_flows.prefect.facts import Facts, waits
from tao_flows.records import Deferral, RunKey
from tao_flows.runtime import Tao
from tao_flows.waiting import Why

T = TypeVar("T")

REPAIR_S: Final = 20.0
"""A run that one of us has taken and not given back for this long is given back by whoever sees it."""


@dataclass(frozen=True)
class _Unfinished:
    """What was to become of a run when the API fell silent."""

    state_id: str
    """The state by which it is ours; empty where that was not heard."""
    start_ns: int | None
    message: str


class Mover:
    """Moves flow runs in one server. Belongs to one event loop.

    Args:
        tao: this process's.
        api: of the server.
    """

    def __init__(self, tao: Tao, api: Api) -> None:
        self._tao, self._api = tao, api
        self._unfinished: dict[str, _Unfinished] = {}
        """By run id, what was to become of a run when the API fell silent."""
        self._seen: dict[tuple[str, str], float] = {}
        """By run and state, since when a run is seen that somebody has taken, on the monotonic clock."""

    async def put_off(self, facts: Facts, deferral: Deferral) -> bool:
        """Has a run wait as planned; False where somebody else has it, who then knows what becomes of it.

        Raises:
            ApiPaused: the API fell silent. ``finish`` goes on.
        """
        start_ns = min(deferral.start_wall_ns, deferral.latest_wall_ns)
        if await self._move(facts.run, start_ns, said_of(deferral)):
            return True
        (found,) = await self._api.runs([facts.run.id]) or (None,)
        state = None if found is None else found.state
        if found is None or state is None or not (waits(found) or is_taken(state)):
            why = Why.PLANNED if state is not None and (state.is_running() or state.is_pending()) else Why.GONE
            await self.close([deferral.key], why)
        return False

    async def start(self, facts: Facts, deferral: Deferral, why: Why) -> bool:
        """Brings the start of a run that waits forward to the present, in its own pool or another.

        Returns:
            Whether it was brought forward by us.

        Raises:
            ApiPaused: the API fell silent. It is to be tried again.
        """
        message = f"no longer deferred: {why}"
        sent = await self.send_if_better(facts, deferral.ready_wall_ns)
        moved = sent or await self._move(facts.run, None, message)
        await self.close([deferral.key], why)
        return moved

    async def send_if_better(self, facts: Facts, ready_wall_ns: int) -> bool:
        """Asks where a run that is to start now does so, and sends it there; False where it stays."""
        if not facts.siblings:
            return False
        config = self._tao.config
        ask = facts.ask(config, ready_wall_ns, can_defer=False)
        verdict = await in_thread(self._tao.admission.ask, ask, config)
        if verdict.action != "reroute" or verdict.decision is None:
            return False
        return await self.send(facts, verdict.pool, verdict.decision.reason)

    async def send(self, facts: Facts, pool: str, reason: str) -> bool:
        """Sends a run to another pool; False where it stays.

        Raises:
            ApiPaused: the API fell silent. It stays, or looking after what was sent goes on.
        """
        deployment = facts.siblings.get(pool)
        if deployment is None:
            return False
        message = f"tao-flows: runs in {pool}: {reason}"
        sent: Any = await self._api.call(lambda: elsewhere.send(self._api.client, facts.run, deployment, message))
        return sent is not None

    async def finish(self, runs: Sequence[FlowRun], plan: Callable[[str], Deferral | None]) -> None:
        """Gives back the runs that were taken and not given back, by us or by one that died.

        Args:
            runs: those that somebody has taken, as just read.
            plan: by run id, what the ledger has; None where nothing waits.

        Raises:
            ApiPaused: the API fell silent.
        """
        seen = {(str(run.id), str(run.state_id)): run for run in runs}
        for gone in self._seen.keys() - seen.keys():
            del self._seen[gone]
        taken_ids = {run_id for run_id, _ in seen}
        self._unfinished = {run_id: what for run_id, what in self._unfinished.items() if run_id in taken_ids}
        for (run_id, state_id), run in seen.items():
            first_s = self._seen.setdefault((run_id, state_id), time.monotonic())
            own = self._unfinished.get(run_id)
            # Ours for certain, or nobody's any more.
            if not (own is not None and own.state_id == state_id) and time.monotonic() - first_s < REPAIR_S:
                continue
            row = plan(run_id)
            after = own or _Unfinished("", None if row is None else row.start_wall_ns, "goes on after an interruption")
            await self._api.give(run.id, after.start_ns, after.message)
            self._unfinished.pop(run_id, None)

    async def close(self, keys: Sequence[RunKey], why: Why) -> None:
        """Has the ledger take note that waits are over."""
        if keys:
            await in_thread(self._tao.admission.over, list(keys), why)

    async def _move(self, run: FlowRun, start_ns: int | None, message: str) -> bool:
        begun_s, taken = time.monotonic(), None
        try:
            taken = await self._api.take(run.id)
            if taken is None:
                return False
            await self._api.give(run.id, start_ns, message)
        except ApiPaused:
            self._unfinished[str(run.id)] = _Unfinished("" if taken is None else str(taken.id), start_ns, message)
            raise
        await self._api.set_back(run.id, begun_s)
        return True


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """What may wait for the ledger or a file, beside the event loop."""
    return await asyncio.to_thread(work, *args)
