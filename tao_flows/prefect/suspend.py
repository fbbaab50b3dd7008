"""Suspended flow runs, seen from the desk: each is resumed when the first task that waits in it is to start.

The server resumes them by itself at their planned start, see ``suspending.py``. Here that start is brought forward, or
put off within what was promised, when a signal, a pool or a setting changes, or a person releases them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from tao_flows.errors import LedgerError
from tao_flows.ledger.deferrals import LAPSE_S
from tao_flows.prefect._compat import State
from tao_flows.prefect.deferred import SUSPENDED, moment
from tao_flows.prefect.settings import tao_here
from tao_flows.prefect.suspending import PREFIX, Waiting, resume_at, waits_from_json
from tao_flows.records import Deferral
from tao_flows.runtime import Tao
from tao_flows.telemetry.procfs import is_alive
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Waitlist, Why

_PAGE: Final = 200
_MOVED_NS: Final = 5 * NS_PER_S
"""A start that is off by less is left: it is a call of the API to move it."""
_NEAR_NS: Final = 30 * NS_PER_S
"""What starts this soon is not put off any more: a worker may have it in hand."""


@dataclass(eq=False)
class _Suspended:
    """A suspended flow run, and the waits in it."""

    run: FlowRun
    waits: list[Waiting]
    cancels: list[Any] = field(default_factory=list)
    over: list[tuple[Waiting, Why]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Names the suspension."""
        return _key_of(self.run)

    def first(self) -> Deferral:
        """The plan that comes first."""
        return min((wait.plan for wait in self.waits), key=lambda plan: plan.start_wall_ns)


class Resumer:
    """All suspended flow runs that this process has seen. Used by one coroutine at a time.

    Args:
        tao: this process's parts.
    """

    def __init__(self, tao: Tao) -> None:
        self.tao = tao
        self._list = Waitlist(tao.admission.deferrals, tao.clock)
        self._known: dict[UUID, _Suspended] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def look(self, client: PrefectClient, pool_names: Collection[str] | None) -> int:
        """One look at all of them; how many are resumed.

        Raises:
            What the client raises where the API does not answer; the next look goes on from there.
        """
        found = {run.id: run for run in await _suspended(client, pool_names)}
        for run_id in self._known.keys() - found.keys():
            await self._gone(client, self._forget(run_id))
        for run in found.values():
            known = self._known.get(run.id)
            if known is not None and known.key == _key_of(run):
                known.run = run
            else:
                if known is not None:
                    self._forget(run.id)
                await self._meet(client, run)
        await asyncio.to_thread(self._poll)
        return sum([await self._act(client, known) for known in list(self._known.values())])

    def _poll(self) -> None:
        self._list.expire()
        self._list.poll()
        self._list.expire()

    async def _meet(self, client: PrefectClient, run: FlowRun) -> None:
        """Takes up the waits of a run."""
        try:
            asks = waits_from_json(await client.read_flow_run_input(run.id, _key_of(run)))
            plans = await asyncio.to_thread(self.tao.admission.deferrals.states_of, [ask.key for ask in asks])
        except LedgerError:
            return  # it is met at another look, and its server has its start
        except Exception as error:  # noqa: BLE001 - this run is resumed by the server alone, others by us
            self.tao.incidents.note_error("reading what waits in a suspended flow run", error, run_id=str(run.id))
            return
        known = _Suspended(run, [Waiting(ask, plans[ask.key]) for ask in asks if ask.key in plans])
        if known.waits:
            self._known[run.id] = known
            for number, wait in enumerate(known.waits):
                known.cancels.append(self._watch(known, number, wait))

    def _watch(self, known: _Suspended, number: int, wait: Waiting) -> Any:
        tao = self.tao

        def moved(plan: Deferral) -> None:
            known.waits[number] = Waiting(wait.ask, plan)

        def ended(why: Why) -> None:
            known.over.append((known.waits[number], why))

        again = tao.admission.reconsider(wait.ask, lambda: tao.config, wait.plan, moved)
        return self._list.add(wait.plan, ended, again)

    def _forget(self, run_id: UUID) -> _Suspended:
        known = self._known.pop(run_id)
        for cancel in known.cancels:
            cancel()
        return known

    async def _gone(self, client: PrefectClient, known: _Suspended) -> None:
        """A run that is suspended no more: if it has ended, nothing in it waits."""
        try:
            state = (await client.read_flow_run(known.run.id)).state
        except ObjectNotFound:
            state = None
        if state is None or state.is_final():
            keys = [wait.ask.key for wait in known.waits]
            await asyncio.to_thread(self.tao.admission.over, keys, Why.GONE)

    async def _act(self, client: PrefectClient, known: _Suspended) -> bool:
        """Resumes a run if something in it is to start, and sees to its planned start otherwise."""
        now_ns = self.tao.clock.wall_ns()
        if not await asyncio.to_thread(self._may_touch, known, now_ns):
            return False
        starts = [wait for wait, why in known.over if why.starts]
        if starts or len(known.over) == len(known.waits):
            at = known.run.state.state_details.scheduled_time if known.run.state is not None else None
            if known.run.state is not None and known.run.state.is_scheduled() and at and at <= moment(now_ns):
                return False  # the server has handed it over, or does so now
            return await self._resume(client, known, now_ns)
        first = known.first()
        if _is_off(known.run, first, now_ns):
            await _set(client, known.run, resume_at(known.waits, known.key, first.start_wall_ns))
        return False

    async def _resume(self, client: PrefectClient, known: _Suspended, now_ns: int) -> bool:
        state: State[Any] = Scheduled(
            name="Resuming",
            scheduled_time=moment(now_ns),
            message=", ".join(sorted({f"{wait.ask.key.task}: {why}" for wait, why in known.over})),
            state_details={"pause_key": known.key},
        )
        if not await _set(client, known.run, state):
            return False
        # The waits that are over: whoever runs them reads so. The others are open still.
        keys = [wait.ask.key for wait, why in known.over if why.starts]
        if keys:
            await asyncio.to_thread(self.tao.admission.over, keys, Why.RECONSIDERED)
        return True

    def _may_touch(self, known: _Suspended, now_ns: int) -> bool:
        """Whether the run's code has stopped: until then its own process sees to it."""
        if known.run.state is not None and known.run.state.is_scheduled():
            return True
        if now_ns > known.first().latest_wall_ns + LAPSE_S * NS_PER_S:
            return True
        run_id = str(known.run.id)
        records = [record for record in self.tao.ledger.find_runs(run_id) if record.run_id == run_id]
        return all(record.state != "running" or is_alive(record.segment) is False for record in records)


_resumer: Resumer | None = None


async def resume_due(
    client: PrefectClient, pool_names: Collection[str] | None = None, *, tao: Tao | None = None
) -> int:
    """One look at the flow runs that were suspended because all in them waits; how many are resumed by it.

    To be called again and again, by one coroutine at a time; two processes may both do so.

    Args:
        client: of the API.
        pool_names: the work pools whose runs are looked after; None for all.
        tao: this process's parts, if the caller has them.

    Raises:
        What the client raises where the API does not answer; the next look goes on from there.
    """
    global _resumer
    tao = tao or tao_here()
    if tao is None:
        return 0
    if _resumer is None or _resumer.tao is not tao:
        _resumer = Resumer(tao)
    return await _resumer.look(client, pool_names)


def looks_after_any() -> bool:
    """Whether a look has found a suspended run, so that the next one should not be put off."""
    return _resumer is not None and len(_resumer) > 0


def goes_on(run: FlowRun) -> bool:
    """Whether a flow run that is scheduled was suspended by us: it is not decided on as a whole once more."""
    return _key_of(run).startswith(PREFIX)


async def _suspended(client: PrefectClient, pool_names: Collection[str] | None) -> Sequence[FlowRun]:
    which = FlowRunFilter(
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PAUSED]),
            name=FlowRunFilterStateName(any_=[SUSPENDED]),
        )
    )
    pools = None if pool_names is None else WorkPoolFilter(name=WorkPoolFilterName(any_=list(pool_names)))
    found: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(
            flow_run_filter=which,
            work_pool_filter=pools,
            sort=FlowRunSort.START_TIME_ASC,
            limit=_PAGE,
            offset=len(found),
        )
        found.extend(page)
        if len(page) < _PAGE:
            return [run for run in found if goes_on(run)]


def _key_of(run: FlowRun) -> str:
    return "" if run.state is None else run.state.state_details.pause_key or ""


def _is_off(run: FlowRun, plan: Deferral, now_ns: int) -> bool:
    """Whether the server has another start for a run than is planned, and may be told so."""
    state = run.state
    if state is None or not state.is_scheduled():
        return True
    at = state.state_details.scheduled_time
    if at is None or at <= moment(now_ns + _NEAR_NS):
        return False
    return abs(at.timestamp() - moment(plan.start_wall_ns).timestamp()) * NS_PER_S > _MOVED_NS


async def _set(client: PrefectClient, run: FlowRun, state: Any) -> bool:
    """Puts a run into a state, unless another has done so since it was read."""
    now = await client.read_flow_run(run.id)
    if now.state is None or run.state is None or now.state.id != run.state.id:
        return False
    result = await client.set_flow_run_state(run.id, state)
    return result.status is SetStateStatus.ACCEPT
