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
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect import Flow, Task
from prefect._flow_run_suspension import mark_flow_run_suspension_requested, raise_if_flow_run_suspension_requested
from prefect._internal.result_records import ResultRecord
from prefect.cache_policies import DEFAULT as CACHE_DEFAULT
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate, StateCreate
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, SettingsContext, TaskRunContext, get_settings_context
from prefect.exceptions import Pause, PrefectSignal, TerminationSignal, UpstreamTaskError
from prefect.futures import PrefectFuture, PrefectFutureList, PrefectTaskRunFuture
from prefect.logging import get_run_logger
from prefect.results import get_result_store
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_LOCAL_STORAGE_PATH,
    temporary_settings,
)
from prefect.states import Completed, Crashed, Failed, Pending
from prefect.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine
from prefect.task_runners import PrefectTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import MaterializingTask
from prefect.transactions import BaseTransaction, get_transaction
from prefect.utilities.annotations import BaseAnnotation
from prefect.utilities.callables import call_with_parameters
from prefect.utilities.collections import visit_collection
from prefect.utilities.engine import collect_task_run_inputs_sync, resolve_inputs_sync
from prefect.utilities.timeout import timeout, timeout_async

__all__ = [
    "CACHE_DEFAULT",
    "NO_CACHE",
    "ArtifactCreate",
    "ArtifactUpdate",
    "AsyncTaskRunEngine",
    "BaseAnnotation",
    "Completed",
    "Crashed",
    "Failed",
    "Flow",
    "FlowRunContext",
    "MaterializingTask",
    "Pause",
    "Pending",
    "PrefectFuture",
    "PrefectFutureList",
    "PrefectSignal",
    "PrefectTaskRunFuture",
    "PrefectTaskRunner",
    "ResultRecord",
    "State",
    "SyncTaskRunEngine",
    "Task",
    "TaskRun",
    "TaskRunContext",
    "TaskRunner",
    "TerminationSignal",
    "ThreadPoolTaskRunner",
    "UpstreamTaskError",
    "call_with_parameters",
    "cancel_event",
    "collect_task_run_inputs_sync",
    "get_run_logger",
    "give_back_slots",
    "has_ended",
    "impatient",
    "impatient_client",
    "in_transaction",
    "local_results",
    "mark_suspended",
    "outside_transaction",
    "plugin_hook",
    "raise_if_flow_run_suspension_requested",
    "replace_engine_calls",
    "resolve_inputs_sync",
    "result_record",
    "reusable",
    "set_state_once",
    "settings_here",
    "start_threads_by",
    "swap_task_state",
    "tag_limits",
    "timeout",
    "timeout_async",
    "visit_collection",
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


def foreign_client(api_url: str, key: str, user: str) -> PrefectClient:
    """A client of another organisation's server: what our settings say to our own server is not said to it.

    Args:
        api_url: of its API.
        key: an API key, or a password where there is a user; empty for none.
        user: who we are there.
    """
    with impatient(), temporary_settings({PREFECT_CLIENT_CUSTOM_HEADERS: {}}):
        return PrefectClient(
            api_url,
            auth_string=f"{user}:{key}" if user else None,
            api_key=None if user else key or None,
            httpx_settings={"follow_redirects": False},
        )


def settings_here() -> SettingsContext:
    """Prefect's settings as they hold here, to be entered in another thread."""
    here = get_settings_context()
    return SettingsContext(profile=here.profile, settings=here.settings)


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


async def set_state_once(client: PrefectClient, flow_run_id: UUID, state: State[Any], transition_id: UUID) -> None:
    """Sets a flow run's state with its data, once however often it is set under the same id.

    The client's own method makes up an id each time, and leaves out data that another process has stored.

    Raises:
        HTTPStatusError: the server does not answer.
    """
    details = state.state_details.model_copy(update={"flow_run_id": flow_run_id, "transition_id": transition_id})
    asked = StateCreate(
        type=state.type, name=state.name, message=state.message, data=state.data, state_details=details
    )  # fmt: skip
    body = {"state": asked.model_dump(mode="json", serialize_as_any=True), "force": False}
    await client.request("POST", "/flow_runs/{id}/set_state", path_params={"id": flow_run_id}, json=body)


@contextmanager
def outside_transaction() -> Iterator[None]:
    """What runs inside is no part of the innermost transaction that is open here, but of the one around it."""
    here = get_transaction()
    if here is None:
        yield
        return
    # Prefect's own type leaves out that there may be none around it.
    token = BaseTransaction.__var__.set(here.get_parent())  # type: ignore[arg-type]
    try:
        yield
    finally:
        BaseTransaction.__var__.reset(token)


def result_record() -> ResultRecord[Any]:
    """A record for results that are kept nowhere, of the store that is in use here."""
    return get_result_store().create_result_record(None)


def local_results() -> Path:
    """Where Prefect keeps results on this host, unless it is told of another place."""
    return Path(PREFECT_LOCAL_STORAGE_PATH.value())


def swap_task_state(task_run: TaskRun, state: State[Any]) -> None:
    """Puts a task run that is being run here into another state, as its engine would; one that runs is not run anew.

    The engine goes on from the state that it finds, and the time in between is no run time.
    """
    from prefect.utilities.engine import emit_task_run_state_change_event

    before = task_run.state
    if before is not None and before.is_running():
        task_run.total_run_time += state.timestamp - before.timestamp
    state.state_details.task_run_id, state.state_details.flow_run_id = task_run.id, task_run.flow_run_id
    task_run.state = state
    task_run.state_id, task_run.state_type, task_run.state_name = state.id, state.type, state.name
    emit_task_run_state_change_event(task_run=task_run, initial_state=before, validated_state=state)


def tag_limits(task_run: TaskRun) -> list[str]:
    """The concurrency limits that the engine takes a slot of for a task run, where they are there."""
    return [f"tag:{tag}" for tag in task_run.tags]


def give_back_slots(context: TaskRunContext) -> bool:
    """Gives back the slots of its tags that a task run's engine holds; whether it held any, and now holds none.

    The engine gives them back once more at its end, which the server takes for done. Where they cannot be told from
    another's they stay as they are.
    """
    from prefect.concurrency.context import ConcurrencyContext

    outer, here = _outside(context), ConcurrencyContext.get()
    # The engine enters both contexts twice, and takes the slots in between: so those are this task's, and no flow's.
    if not isinstance(outer, TaskRunContext) or outer.task_run.id != context.task_run.id or here is None:
        return False
    held = getattr(_outside(here), "cleanup_lease_ids", [])
    leases = list(held)
    if not leases:
        return False
    with impatient_client() as client:
        for lease_id in leases:
            _stop_renewing(lease_id)
            client.release_concurrency_slots_with_lease(lease_id)
            held.remove(lease_id)
    return True


def _outside(context: Any) -> Any:
    """The context that was there before this one was entered."""
    return getattr(getattr(context, "_token", None), "old_value", None)


def _stop_renewing(lease_id: UUID) -> None:
    """Ends the thread that renews a lease, which would say in the log that it is gone."""
    for thread in threading.enumerate():
        if thread.name == f"concurrency-lease-renewal-{lease_id}":
            pending = [getattr(thread, "_target", None)]
            while pending:
                cells = [cell.cell_contents for cell in getattr(pending.pop(), "__closure__", None) or ()]
                pending.extend(cell for cell in cells if callable(cell))
                for event in cells:
                    if isinstance(event, threading.Event):
                        event.set()


def mark_suspended(flow_run_id: UUID, state: State[Any]) -> None:
    """Has a flow run that was suspended stop at its next task, where Prefect looks out for it."""
    mark_flow_run_suspension_requested(flow_run_id, state)


def reusable(context: TaskRunContext) -> bool:
    """Whether what the task returns is kept, and found again by a later run of its flow run's code."""
    transaction = get_transaction()
    return (
        context.persist_result
        and not context.task.isgenerator
        and transaction is not None
        and transaction.key is not None
        and transaction.get_parent() is None
    )


def in_transaction() -> bool:
    """Whether the task that runs here is part of a transaction that its flow's code has opened."""
    transaction = get_transaction()
    return transaction is not None and transaction.get_parent() is not None


def plugin_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function as one that Prefect's plugin system calls by its name."""
    from pluggy import HookimplMarker

    # Prefect's own marker is one of this name, in a module that has moved between releases.
    marked: Callable[..., Any] = HookimplMarker("prefect-experimental")(hook)
    return marked


_TASK_CALLS: Final = ("run_task_sync", "run_task_async", "run_generator_task_sync", "run_generator_task_async")
_FLOW_CALLS: Final = ("run_flow_sync", "run_flow_async", "run_generator_flow_sync", "run_generator_flow_async")


def replace_engine_calls(
    of_task: Callable[[Task[..., Any]], Task[..., Any]], of_flow: Callable[[Flow[..., Any]], Flow[..., Any]]
) -> None:
    """Has the engine run, in place of every task and flow of this process, what the two functions make of it.

    Raises:
        AttributeError: the engine has not the functions that it is known to have; then none is replaced.
    """
    from prefect import flow_engine, task_engine

    found = [
        (module, name, getattr(module, name), what, of)
        for module, names, what, of in (
            (task_engine, _TASK_CALLS, "task", of_task),
            (flow_engine, _FLOW_CALLS, "flow", of_flow),
        )
        for name in names
    ]
    for module, name, own, what, of in found:
        setattr(module, name, _given(own, what, of))


def _given(own: Callable[..., Any], what: str, of: Callable[[Any], Any]) -> Callable[..., Any]:
    """An engine's function, of which one argument, the first, is made into another."""

    @wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args:
            args = (of(args[0]), *args[1:])
        else:
            kwargs[what] = of(kwargs[what])
        return own(*args, **kwargs)

    return call


def has_ended(future: PrefectFuture[Any]) -> bool:
    """Whether a future knows the final state of its run, without asking the server."""
    return getattr(future, "_final_state", None) is not None
