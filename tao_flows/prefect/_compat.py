"""Every name taken from Prefect that is not plainly public, in one place, so that a new minor is one file to check.

Ran on Prefect 3.8.8. Relied on beyond the documented API: ``TaskRunContext`` and ``FlowRunContext``, the engine calling
``task.fn`` only when the transaction is not committed, ``timeout`` and ``timeout_async``, that a task or a flow is made
whole by its ``__dict__``, and where a task runner keeps its thread pools and by what it cancels tasks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from prefect import Flow, Task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Pause, TerminationSignal
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.tasks import MaterializingTask
from prefect.utilities.timeout import timeout, timeout_async

__all__ = [
    "ArtifactCreate",
    "Flow",
    "FlowRunContext",
    "MaterializingTask",
    "Pause",
    "PrefectFuture",
    "State",
    "Task",
    "TaskRunContext",
    "TerminationSignal",
    "cancel_event",
    "get_run_logger",
    "impatient",
    "impatient_client",
    "start_threads_by",
    "timeout",
    "timeout_async",
]

_PATIENCE_S: Final = 5.0


@contextmanager
def impatient_client() -> Iterator[SyncPrefectClient]:
    """A client that asks the API once, for seconds: a report is worth a moment's wait at a run's end, and no more.

    Its time-out makes it a client of its own; one like the engine's would be the engine's, with the engine's patience.
    """
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE_S}) as client,
    ):
        yield client


@contextmanager
def impatient() -> Iterator[None]:
    """The same patience for calls that bring a client of their own."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _PATIENCE_S}):
        yield


def cancel_event(flow_context: FlowRunContext | None, task_run_id: Any) -> threading.Event | None:
    """What the task runner cancels a task by that has not begun; None for one that runs in its caller's thread."""
    events = getattr(getattr(flow_context, "task_runner", None), "_cancel_events", None)
    event = events.get(task_run_id) if isinstance(events, dict) else None
    return event if isinstance(event, threading.Event) else None


def start_threads_by(runner: Any, start: Callable[[Callable[[], None]], None]) -> None:
    """Has ``start`` call what starts a thread of a task runner's pools; does nothing to a runner without any."""
    for name in ("_executor", "_resolver_executor"):
        pool = getattr(runner, name, None)
        # Its one method that starts threads, the same in every Python that we run on, and not in its public part.
        own = getattr(pool, "_adjust_thread_count", None)
        if isinstance(pool, ThreadPoolExecutor) and own is not None and "_adjust_thread_count" not in vars(pool):
            vars(pool)["_adjust_thread_count"] = partial(start, own)
