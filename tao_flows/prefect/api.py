"""What is asked of a Prefect server about flow runs that wait: few calls, each for seconds, none while it has asked for a pause.

A flow run's state is set in two steps, for the API knows no "if it is still as I read it". The first makes it
``Pending``, as a worker does that is about to start it: the server refuses that wherever the run is pending, running or
cancelled, so that of a worker, another desk and us one has it. The second is ours alone. Should we die between the two,
whoever looks next finds the run pending under ``OURS``, and finishes it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Pending, Scheduled

from tao_flows.errors import TaoError
from tao_flows.prefect._compat import impatient
from tao_flows.prefect.deferred import DEFERRED, moment
from tao_flows.prefect.server import runs_of, status_of

T = TypeVar("T")

OURS: Final = "tao-flows:"
"""What the message of every state begins with that is ours."""
LONGEST_PAUSE_S: Final = 60.0
"""The server is asked again after this long at the latest, unless it named a time itself."""
_PAGE: Final = 200
"""The most flow runs that a server gives at once, unless it is set otherwise."""
_PAGES: Final = 5
_LOOK_BACK: Final = timedelta(minutes=10)
"""A run that was due longer ago has waited already: it is for the worker."""
_SLOT_PAUSES_S: Final = (0.1, 0.3)
"""A run that is ours has a slot of its deployment, for two calls: another run of it finds that free again right after."""
_SLOW_S: Final = 1.0
"""Two steps that took longer are looked at again: somebody may have come between."""


class ApiPaused(TaoError):
    """The API does not answer, or has asked not to be asked: nothing is until a while has passed."""


class Api:
    """One Prefect server, as a desk sees it. Belongs to one event loop.

    Args:
        client: an open client of the desk's own.
    """

    def __init__(self, client: PrefectClient) -> None:
        self.client = client
        self.calls = 0
        """Calls made so far."""
        self._paused_until_s = 0.0
        self._failures = 0

    @property
    def paused_s(self) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._paused_until_s - time.monotonic())

    async def deferred(self, work_pools: Collection[str] | None) -> Sequence[FlowRun]:
        """The runs that wait, and those that somebody is at, in these work pools or in all.

        Raises:
            ApiPaused: it does not answer.
        """
        runs = await self.call(lambda: runs_of(self.client, names=(DEFERRED, "Pending"), work_pool_names=work_pools))
        self.calls += len(runs) // _PAGE
        return [run for run in runs if run.state is not None and (run.state.name == DEFERRED or is_taken(run.state))]

    async def upcoming(self, work_pools: Collection[str] | None, horizon_s: float) -> Sequence[FlowRun]:
        """The runs that are due within ``horizon_s`` seconds, or were of late, in order.

        Raises:
            ApiPaused: it does not answer.
        """
        now = datetime.now(timezone.utc)
        which = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime.model_validate(
                {"before_": now + timedelta(seconds=horizon_s), "after_": now - _LOOK_BACK}
            ),
        )
        pools = None if work_pools is None else WorkPoolFilter(name=WorkPoolFilterName(any_=list(work_pools)))
        found: list[FlowRun] = []
        for page in range(_PAGES):
            runs = await self.call(
                lambda offset=page * _PAGE: self.client.read_flow_runs(  # type: ignore[misc]
                    flow_run_filter=which,
                    work_pool_filter=pools,
                    sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
                    limit=_PAGE,
                    offset=offset,
                )
            )
            found += runs
            if len(runs) < _PAGE:
                break
        return found

    async def runs(self, ids: Collection[UUID]) -> Sequence[FlowRun]:
        """Flow runs by id; what is gone from the server is left out.

        Raises:
            ApiPaused: it does not answer.
        """
        return [] if not ids else await self.call(lambda: runs_of(self.client, ids=ids))

    async def flow_names(self, ids: Collection[UUID]) -> Mapping[UUID, str]:
        """Names of flows by id.

        Raises:
            ApiPaused: it does not answer.
        """
        which = FlowFilter(id=FlowFilterId(any_=list(ids)))
        return {flow.id: flow.name for flow in await self.call(lambda: self.client.read_flows(flow_filter=which))}

    async def take(self, run_id: UUID) -> State[Any] | None:
        """The first step: the state by which a scheduled run is ours; None where it is not to be had.

        Raises:
            ApiPaused: it does not answer; the run may be ours all the same.
        """
        state: State[Any] = Pending(message=f"{OURS} being put off, or brought forward")
        for pause_s in (*_SLOT_PAUSES_S, None):
            try:
                said = await self.call(lambda: self.client.set_flow_run_state(run_id, state))
            except ObjectNotFound:
                return None
            # Else it is somebody's, whose state is then told, or waits for a slot of its deployment, or is over for want of one.
            if said.status is SetStateStatus.ACCEPT and said.state is not None and is_taken(said.state):
                return said.state
            if pause_s is None or said.state is None or said.state.name != "AwaitingConcurrencySlot":
                break
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        return None

    async def give(self, run_id: UUID, start_wall_ns: int | None, message: str) -> None:
        """The second step: hands a run that is ours back to the server, which hands it to a worker at its time.

        Args:
            run_id: the run.
            start_wall_ns: when it is to start; None: now, as if it never had waited.
            message: why, for people.

        Raises:
            ApiPaused: it does not answer; the run may be given back all the same.
        """
        when = datetime.now(timezone.utc) if start_wall_ns is None else moment(start_wall_ns)
        name = "Scheduled" if start_wall_ns is None else DEFERRED
        state: State[Any] = Scheduled(name=name, scheduled_time=when, message=f"{OURS} {message}")
        try:
            await self.call(lambda: self.client.set_flow_run_state(run_id, state))
        except ObjectNotFound:
            return

    async def set_back(self, run_id: UUID, begun_s: float) -> None:
        """Looks again at a run whose two steps took long: what came between them holds, such as that it was cancelled.

        Args:
            run_id: the run.
            begun_s: on the monotonic clock, when the first step began.

        Raises:
            ApiPaused: it does not answer.
        """
        if time.monotonic() - begun_s < _SLOW_S:
            return
        try:
            states = await self.call(lambda: self.client.read_flow_run_states(run_id))
        except ObjectNotFound:
            return
        last = states[-3:]
        if len(last) == 3 and is_taken(last[0]) and is_ours(last[2]) and last[1].is_final():
            await self.call(lambda: self.client.set_flow_run_state(run_id, last[1], force=True))

    async def call(self, ask: Callable[[], Awaitable[T]]) -> T:
        """One call, which is made once and given seconds.

        Raises:
            ApiPaused: it was not answered, or there is a pause.
            ObjectNotFound: what was asked about is gone.
        """
        if self.paused_s > 0:
            raise ApiPaused("API_PAUSED", f"the API is asked again in {self.paused_s:.0f} s")
        self.calls += 1
        try:
            with impatient():
                answer = await ask()
        except ObjectNotFound:
            self._failures = 0
            raise
        except Exception as error:
            status = status_of(error)
            # What the server understood and will not do is no reason to leave it alone.
            if status is not None and status < 500 and status not in {408, 429}:
                raise
            if status is None and not isinstance(error, (httpx.HTTPError, OSError)):
                raise
            raise self._pause(error) from error
        self._failures = 0
        return answer

    def _pause(self, error: Exception) -> ApiPaused:
        asked_s = _retry_after_s(error)
        # Calls that were under way side by side fail together: they count once.
        self._failures += self.paused_s == 0
        # Not all processes at the same moment.
        own_s = min(LONGEST_PAUSE_S, 2.0**self._failures) * random.uniform(0.5, 1.0)  # noqa: S311
        pause_s = own_s if asked_s is None else asked_s
        self._paused_until_s = time.monotonic() + pause_s
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return ApiPaused("API_PAUSED", f"the API did not answer ({said}), and is asked again in {pause_s:.0f} s")


def is_ours(state: State[Any]) -> bool:
    """Whether one of us has set a state."""
    return (state.message or "").startswith(OURS)


def is_taken(state: State[Any]) -> bool:
    """Whether a state is that of a run which one of us is at, between the two steps."""
    return state.is_pending() and state.name == "Pending" and is_ours(state)


def _retry_after_s(error: Exception) -> float | None:
    """The seconds that an answer asks to wait (RFC 9110, section 10.2.3); None where it does not."""
    value = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime

    try:
        then = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds())
