"""A task run that waits, as Prefect shows it: in the state ``Deferred``, with no slot of its tags' limits held.

What Prefect refuses here is noted, and changes nothing of the wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.asyncio import concurrency as concurrency_async
from prefect.concurrency.sync import concurrency
from prefect.states import Cancelled, Running, Scheduled

from tao_flows.admission import RECONSIDER_S
from tao_flows.clock import iso_from_ns
from tao_flows.prefect._compat import State, TaskRunContext, give_back_slots, swap_task_state, tag_limits
from tao_flows.records import Deferral
from tao_flows.runtime import Tao
from tao_flows.units import NS_PER_S

DEFERRED: Final = "Deferred"
"""The name of the state of what waits."""
SUSPENDED: Final = "Suspended"
"""The name, Prefect's own, of the state of what goes on when its flow run resumes."""
_LEASE_S: Final = 60.0
"""As long as the engine's own slots are held for a process that has died."""
_ours: ContextVar[str] = ContextVar("tao_flows_slots", default="")
"""The task run whose slots are ours to take, since its engine's were given back for a wait."""


def moment(wall_ns: int) -> datetime:
    """As Prefect has moments: in UTC."""
    return datetime.fromtimestamp(wall_ns // NS_PER_S, timezone.utc) + timedelta(
        microseconds=wall_ns % NS_PER_S // 1000
    )


def said_of(plan: Deferral) -> str:
    """What a state says of a plan."""
    start, latest = iso_from_ns(plan.start_wall_ns), iso_from_ns(plan.latest_wall_ns)
    return (
        f"{plan.reason}; starts at {start}, at the latest at {latest}; looked at every {RECONSIDER_S:.0f} s, "
        "and when a signal, a pool or a setting changes"
    )


class Shown:
    """The state of a task run that waits. None of its methods raises, or waits for anything but a queue.

    Args:
        tao: where failures are noted.
        context: of the task run; its flow is that of who makes this.
    """

    def __init__(self, tao: Tao, context: TaskRunContext) -> None:
        self._tao, self._context = tao, context
        # Events say which flow run they are of by this, and plans move in another thread.
        self._here = copy_context()

    def waits(self, plan: Deferral) -> None:
        """Waits by that plan; said once more of one whose plan has moved."""
        self._swap(lambda: Scheduled(name=DEFERRED, scheduled_time=moment(plan.start_wall_ns), message=said_of(plan)))

    def runs(self) -> None:
        """No longer waits."""
        self._swap(Running)

    def leaves(self) -> None:
        """Ends here: it goes on as another task run when its flow run resumes."""
        said = "The flow run is suspended; this goes on as a new task run when it resumes."
        self._swap(lambda: Cancelled(name=SUSPENDED, message=said))

    def _swap(self, make: Callable[[], State[Any]]) -> None:
        try:
            self._here.copy().run(lambda: swap_task_state(self._context.task_run, make()))
        except Exception as ours:  # noqa: BLE001 - what is shown is not what is done
            self._note("showing a wait", ours)

    def give_back(self) -> bool:
        """Gives back the slots of its tags' limits, by a call of the API; whether there were any.

        They are taken again by ``slots``, in a context that ``gave_back`` has been called in.
        """
        try:
            return bool(self._context.task_run.tags) and give_back_slots(self._context)
        except Exception as ours:  # noqa: BLE001 - then it waits with what it has
            self._note("giving back concurrency slots", ours)
            return False

    def gave_back(self) -> None:
        """The slots of its tags' limits are ours to take, in this context."""
        _ours.set(str(self._context.task_run.id))

    def _note(self, doing: str, error: Exception) -> None:
        self._tao.incidents.note_error(doing, error, run_id=str(self._context.task_run.flow_run_id or ""))


@contextmanager
def slots(context: TaskRunContext) -> Iterator[None]:
    """Holds a slot of each of a task run's tags' limits, if its engine's were given back; waits for them as it does."""
    with _take(concurrency, context) if _is_ours(context) else _nothing():
        yield


@asynccontextmanager
async def slots_async(context: TaskRunContext) -> AsyncIterator[None]:
    """The same for coroutines."""
    if not _is_ours(context):
        yield
        return
    async with _take(concurrency_async, context):
        yield


def _is_ours(context: TaskRunContext) -> bool:
    return _ours.get() == str(context.task_run.id)


def _take(how: Callable[..., Any], context: TaskRunContext) -> Any:
    holder = ConcurrencyLeaseHolder(type="task_run", id=context.task_run.id)
    return partial(how, occupy=1, lease_duration=_LEASE_S, holder=holder)(tag_limits(context.task_run))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
