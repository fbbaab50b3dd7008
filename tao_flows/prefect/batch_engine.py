"""Prefect's own task engine for one item of a batch, without what a task run of its own costs.

Retries and their conditions, timeouts, caching, persisted results, hooks, and what a returned or raised value makes of
the state are Prefect's, by its code. The API hears of none of it: an item has no task run there.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any

from tao_flows.prefect._compat import (
    AsyncTaskRunEngine,
    State,
    SyncTaskRunEngine,
    Task,
    TaskRun,
    outside_transaction,
)
from tao_flows.spans import CpuSpan, Stepped

Attempt = Callable[[], Any]
"""What a first try that was run without the engine has come to: returns what it returned, or raises what it raised."""


class ItemEngine(SyncTaskRunEngine[Any, Any]):
    """Runs one item of a sync task."""

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:  # noqa: ARG002 - Prefect's signature
        """Moves the item's run to a state, here alone."""
        return _moved(_run_of(self), state)

    def begin(self, client: Any) -> None:
        """As Prefect's ``start``, with arguments that are resolved: the item's run is named, and runs."""
        self._client, self._is_started = client, True
        with self.setup_run_context():
            self._set_custom_task_run_name()  # type: ignore[no-untyped-call]
            self.begin_run()

    def attempt(self) -> None:
        """One try, after the delay that Prefect set for it."""
        self.wait_until_ready()
        with outside_transaction(), self.run_context(), self.transaction_context() as transaction:
            self.call_task_fn(transaction)

    def end(self) -> None:
        """What Prefect does once the run has ended."""
        with self.setup_run_context():
            self.call_hooks()
            if not self.state.is_completed():
                self.log_finished_message()


class AsyncItemEngine(AsyncTaskRunEngine[Any, Any]):
    """Runs one item of an async task."""

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:  # noqa: ARG002 - Prefect's
        """Moves the item's run to a state, here alone."""
        return _moved(_run_of(self), state)

    async def begin(self, client: Any) -> None:
        """As Prefect's ``start``, with arguments that are resolved: the item's run is named, and runs."""
        self._client, self._is_started = client, True
        async with self.setup_run_context():
            self._set_custom_task_run_name()  # type: ignore[no-untyped-call]
            await self.begin_run()

    async def attempt(self) -> None:
        """One try, once it is ready."""
        with outside_transaction():
            async with self.run_context(), self.transaction_context() as transaction:
                await self.call_task_fn(transaction)

    async def end(self) -> None:
        """What Prefect does once the run has ended."""
        async with self.setup_run_context():
            await self.call_hooks()
            if not self.state.is_completed():
                self.log_finished_message()


def ready_in_s(engine: ItemEngine) -> float:
    """Seconds until the next try of an item may begin."""
    scheduled = engine.state.state_details.scheduled_time
    return 0.0 if scheduled is None else max(0.0, scheduled.timestamp() - time.time())


def metered_task(task: Task[..., Any], span: CpuSpan, first: Attempt | None = None) -> Task[..., Any]:
    """The user's task with its function timed by ``span``; its first try has been run already where ``first`` is given."""
    metered = copy(task)
    metered.fn = _awaiting(task.fn, span, first) if task.isasync else _calling(task.fn, span, first)
    return metered


def _calling(fn: Callable[..., Any], span: CpuSpan, first: Attempt | None) -> Callable[..., Any]:
    told = [] if first is None else [first]

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if told:
            return told.pop()()
        with span:
            return fn(*args, **kwargs)

    return call


def _awaiting(fn: Callable[..., Awaitable[Any]], span: CpuSpan, first: Attempt | None) -> Callable[..., Any]:
    told = [] if first is None else [first]

    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        if told:
            return told.pop()()
        return await Stepped(fn(*args, **kwargs), span)  # type: ignore[arg-type] # what an async function gives

    return call


def _run_of(engine: ItemEngine | AsyncItemEngine) -> TaskRun:
    if engine.task_run is None:
        raise RuntimeError("an item's engine is given its run")
    return engine.task_run


def _moved(run: TaskRun, state: State[Any]) -> State[Any]:
    before = run.state
    state.state_details.task_run_id, state.state_details.flow_run_id = run.id, run.flow_run_id
    run.state, run.state_id, run.state_type, run.state_name = state, state.id, state.type, state.name
    if before is not None and before.is_running():
        run.total_run_time += state.timestamp - before.timestamp
    if state.is_running():
        run.run_count += 1
    if state.is_final() and run.start_time is not None:
        run.end_time = state.timestamp  # type: ignore[assignment] # Prefect has two names for one type
    return state
