"""What runs in a batch's task run: the items, one after another, each as Prefect would run it by itself.

Most items of most maps need nothing of Prefect's engine: their function returns a value that nobody keeps. Those are
called directly. What fails, is cached, persisted or watched by hooks is run by Prefect's engine for that item.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import Any
from uuid import uuid4

from tao_flows.batching import failure
from tao_flows.prefect import run
from tao_flows.prefect._compat import (
    CACHE_DEFAULT,
    NO_CACHE,
    Failed,
    FlowRunContext,
    Pending,
    PrefectSignal,
    ResultRecord,
    State,
    TaskRun,
    TaskRunContext,
    UpstreamTaskError,
    call_with_parameters,
    cancel_event,
    resolve_inputs_sync,
)
from tao_flows.prefect.admit import admitted, admitted_async
from tao_flows.prefect.batch_engine import AsyncItemEngine, Attempt, ItemEngine, metered_task, ready_in_s
from tao_flows.prefect.batch_items import PLAIN_TYPES, Batch, Outcome, Outcomes, dumped, loaded
from tao_flows.prefect.batch_kept import digest_of
from tao_flows.spans import CpuSpan, Stepped

_NOT_AN_ITEMS = (PrefectSignal, KeyboardInterrupt)
"""What ends the batch and not the item that it hits."""
Item = tuple[int, dict[str, Any]]
"""Its number in the map call, and its arguments."""


class ItemsFailedError(Exception):
    """Items failed; all have been tried."""


def run_batch(batch: Batch, first: int, last: int) -> Any:  # noqa: ARG001 - the range is in the task run's name
    """The function of a batch's task run."""
    running = Running(batch)
    try:
        with (
            admitted(batch.options, running.context) as begins,
            run.metered(begins, stepped=False, size=running.size) as span,
        ):
            running.span = span
            running.run()
            running.raise_if_failed()
    except ItemsFailedError as error:
        return Failed(message=str(error), data=running.outcomes())
    finally:
        running.writer.close()
    return running.outcomes()


async def run_batch_async(batch: Batch, first: int, last: int) -> Any:  # noqa: ARG001 - as above
    """The same for an async function, whose items run side by side, unless a tag may limit how many do."""
    running = Running(batch)
    try:
        async with admitted_async(batch.options, running.context) as begins:
            with run.metered(begins, stepped=True, size=running.size) as span:
                running.span = span
                await running.run_async()
                running.raise_if_failed()
    except ItemsFailedError as error:
        return Failed(message=str(error), data=running.outcomes())
    finally:
        running.writer.close()
    return running.outcomes()


class ItemSpan(CpuSpan):
    """One item's part of the batch's span."""

    def __init__(self, whole: CpuSpan) -> None:
        super().__init__()
        self._whole, self._before_s = whole, 0.0

    def __enter__(self) -> CpuSpan:
        self._before_s = self._whole.cpu_s
        self._whole.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._whole.__exit__(*error)
        self.cpu_s += self._whole.cpu_s - self._before_s


class Running:
    """A batch that is being run."""

    def __init__(self, batch: Batch) -> None:
        context = TaskRunContext.get()
        if context is None:
            raise RuntimeError("a batch is run by Prefect's engine")
        self.context, self.span = context, CpuSpan()
        self.writer = batch.kept.writer(min(batch.items, default=0))
        self._batch, self._task = batch, batch.task
        self._travels = os.getpid() != batch.home_pid
        self._cancelled = cancel_event(FlowRunContext.get(), context.task_run.id)
        self._digests: dict[int, bytes] = {}
        self._done: dict[int, Outcome] = {}
        self._pickled: dict[int, Outcome | bytes] = {}
        self._call = _caller(batch.task.fn)
        self._client: Any = context.client
        self._ran_by = (str(context.task_run.id), max(1, context.task_run.run_count))

    def outcomes(self) -> Outcomes:
        """What is returned to the flow."""
        return Outcomes(self._pickled if self._travels else self._done)

    def size(self) -> float:
        """How many items it ran."""
        return float(sum(outcome.ran_by == self._ran_by for outcome in self._done.values()))

    def raise_if_failed(self) -> None:
        """Names the items that failed, where some did.

        Raises:
            ItemsFailedError: so that the try counts as failed.
        """
        failed = [number for number, outcome in self._done.items() if not outcome.finished]
        if failed:
            told = ((number, self._arguments(number), _error_of(self._done[number])) for number in failed)
            raise ItemsFailedError(failure(told, len(self._batch.items)))

    def run(self) -> None:
        """Runs every item that has not finished in an earlier attempt."""
        direct = self._runs_directly(self._persists())
        waiting: list[tuple[float, int, ItemEngine, ItemSpan]] = []
        limit_s = math.inf if self._batch.limit_s is None else time.monotonic() + self._batch.limit_s
        for ran, (number, arguments) in enumerate(self._to_run()):
            if ran and time.monotonic() > limit_s:
                break  # the rest is run side by side
            span = ItemSpan(self.span)
            first = None
            if direct:
                first = self._first_try(number, arguments, span)
                if first is None:
                    continue
            with self._caught(number, span):
                engine = ItemEngine(
                    task=metered_task(self._task, span, first), parameters=arguments, task_run=self._run_of(number)
                )
                engine.begin(self._client)
                self._attempt(number, engine, span, waiting)
        while waiting:
            _, number, engine, span = heapq.heappop(waiting)
            with self._caught(number, span):
                self._attempt(number, engine, span, waiting)

    def _attempt(
        self, number: int, engine: ItemEngine, span: ItemSpan, waiting: list[tuple[float, int, ItemEngine, ItemSpan]]
    ) -> None:
        if engine.is_running():
            engine.attempt()
        if engine.is_running():  # it is to be tried again, after those that are due before it
            heapq.heappush(waiting, (time.monotonic() + ready_in_s(engine), number, engine, span))
            return
        engine.end()
        self._settle(number, _ended(engine, span))

    def _first_try(self, number: int, arguments: dict[str, Any], span: ItemSpan) -> Attempt | None:
        """Runs an item without Prefect's engine; None where that was all, else what the engine is to make a state of."""
        with self._caught(number, span):
            try:
                with self._context_of(number, arguments), span:
                    value = self._call(arguments)
            except Exception as error:  # noqa: BLE001 - the engine's to handle
                return _raising(error)
            if not _is_value(value):
                return lambda: value
            self._settle(number, Outcome(value, cpu_s=span.cpu_s))
        return None

    async def run_async(self) -> None:
        """The same for coroutines."""
        direct = self._runs_directly(await self._persists_async())
        gate = asyncio.Semaphore(1) if self.context.task_run.tags else contextlib.nullcontext()
        items = [self._run_one(item, gate, direct=direct) for item in self._to_run()]
        await asyncio.gather(*items)

    async def _run_one(self, item: Item, gate: Any, *, direct: bool) -> None:
        number, arguments = item
        span = ItemSpan(self.span)
        first = None
        if direct:
            async with gate:
                first = await self._first_try_async(number, arguments, span)
            if first is None:
                return
        with self._caught(number, span):
            engine = AsyncItemEngine(
                task=metered_task(self._task, span, first), parameters=arguments, task_run=self._run_of(number)
            )
            await engine.begin(self._client)
            while engine.is_running():
                await engine.wait_until_ready()
                async with gate:
                    await engine.attempt()
            await engine.end()
            self._settle(number, _ended(engine, span))

    async def _first_try_async(self, number: int, arguments: dict[str, Any], span: ItemSpan) -> Attempt | None:
        if self._is_cancelled(number):
            return None
        with self._caught(number, span):
            try:
                with self._context_of(number, arguments):
                    value = await Stepped(self._call(arguments), span)
            except Exception as error:  # noqa: BLE001 - the engine's to handle
                return _raising(error)
            if not _is_value(value):
                return lambda: value
            self._settle(number, Outcome(value, cpu_s=span.cpu_s))
        return None

    def _to_run(self) -> Iterator[Item]:
        """The items that have not finished, with their arguments resolved where that can be done."""
        kept = self._batch.kept.load() if self._may_be_kept() else {}
        for number, item in self._batch.items.items():
            arguments = self._resolved(number, item)
            if arguments is None or self._is_cancelled(number):
                continue
            with contextlib.suppress(Exception):  # what cannot be told from another is not kept
                self._digests[number] = digest_of(dumped(arguments))
            digest, outcome = kept.get(number, (b"", b""))
            if digest and digest == self._digests.get(number):
                self._done[number], self._pickled[number] = loaded(outcome), outcome
            else:
                yield number, arguments

    def _may_be_kept(self) -> bool:
        kept = self._batch.kept
        return kept.again or kept.begun(min(self._batch.items, default=0))

    def _resolved(self, number: int, item: dict[str, Any] | Exception) -> dict[str, Any] | None:
        if isinstance(item, Exception):
            self._settle(number, Outcome(raised=item))
            return None
        if not self._batch.unresolved:
            return item
        with self._caught(number, None):
            try:
                return resolve_inputs_sync(item, return_data=True, max_depth=-1)
            except UpstreamTaskError as error:
                self._settle(number, Outcome(state=Pending(name="NotReady", message=str(error))))
        return None

    def _is_cancelled(self, number: int) -> bool:
        cancelled = self._cancelled is not None and self._cancelled.is_set()
        if cancelled:
            error = asyncio.CancelledError("Task run cancelled by the task runner")
            self._settle(number, Outcome(raised=error))
        return cancelled

    @contextlib.contextmanager
    def _caught(self, number: int, span: ItemSpan | None) -> Iterator[None]:
        """What an item raises past the engine ends that item alone; what is raised at the batch, the batch."""
        try:
            yield
        except _NOT_AN_ITEMS:
            raise
        except BaseException as error:  # noqa: BLE001 - its future raises it
            self._settle(number, Outcome(raised=error, cpu_s=span.cpu_s if span is not None else 0.0))

    def _settle(self, number: int, outcome: Outcome) -> None:
        digest = self._digests.get(number)
        outcome.ran_by = self._ran_by
        if self._travels or (outcome.finished and digest is not None):
            try:
                pickled = dumped(outcome)
            except Exception as error:  # noqa: BLE001 - as Prefect's own futures raise it
                told = Outcome(raised=TypeError(str(error)), cpu_s=outcome.cpu_s, ran_by=self._ran_by)
                pickled, digest = dumped(told), None
                outcome = told if self._travels else outcome
            self._pickled[number] = pickled
            if outcome.finished and digest is not None:
                self.writer.add(number, digest, pickled)
        self._done[number] = outcome

    def _arguments(self, number: int) -> dict[str, Any]:
        item = self._batch.items[number]
        return {} if isinstance(item, Exception) else item

    def _runs_directly(self, persists: bool) -> bool:
        """Whether an item that returns a value needs nothing of Prefect's engine."""
        task = self._task
        watched = (
            task.on_completion_hooks,
            getattr(task, "on_running_hooks", None),
            task.on_rollback_hooks,
            task.on_commit_hooks,
            task.task_run_name,
            task.timeout_seconds,
            task.result_storage_key,
        )
        # Under the default policy only this flow run's own results are found, and there are none.
        uncached = task.cache_policy is None or task.cache_policy in (CACHE_DEFAULT, NO_CACHE)
        return uncached and not persists and not any(watched)

    def _persists(self) -> bool:
        probe = ItemEngine(task=self._task, task_run=self._run_of(0))
        probe._client, probe._is_started = self._client, True  # noqa: SLF001 - a class of ours
        with probe.setup_run_context():
            return _persists_here()

    async def _persists_async(self) -> bool:
        probe = AsyncItemEngine(task=self._task, task_run=self._run_of(0))
        probe._client, probe._is_started = self._client, True  # noqa: SLF001 - a class of ours
        async with probe.setup_run_context():
            return _persists_here()

    def _run_of(self, number: int) -> TaskRun:
        """A task run for an item, which only this process knows."""
        state: State[Any] = Pending()
        changes = {**self._names(number), "run_count": 0, "state": state, "state_type": state.type, "start_time": None}
        return self.context.task_run.model_copy(update=changes)

    def _context_of(self, number: int, arguments: dict[str, Any]) -> TaskRunContext:
        run_of_item = self.context.task_run.model_copy(update=self._names(number))
        changes = {"task": self._task, "task_run": run_of_item, "parameters": arguments}
        return self.context.model_copy(update=changes)

    def _names(self, number: int) -> dict[str, Any]:
        return {"id": uuid4(), "name": f"{self._task.name}-{number}", "dynamic_key": f"{number}"}


def _caller(fn: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """Calls a function with its arguments by name, by the short way where there is one."""
    kinds = {parameter.kind for parameter in inspect.signature(fn).parameters.values()}
    if kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
        return lambda arguments: fn(**arguments)
    return lambda arguments: call_with_parameters(fn, arguments)


def _raising(error: Exception) -> Attempt:
    def attempt() -> Any:
        raise error

    return attempt


def _is_value(value: Any) -> bool:
    """Whether Prefect makes nothing of a returned value but a completed state with it."""
    if type(value) in PLAIN_TYPES:
        return True
    if isinstance(value, (list, tuple, set)):
        return not any(isinstance(each, State) for each in value)
    return not isinstance(value, (State, ResultRecord, GeneratorType))


def _ended(engine: ItemEngine | AsyncItemEngine, span: ItemSpan) -> Outcome:
    tries = engine.task_run.run_count if engine.task_run is not None else 1
    return Outcome(state=engine.state, cpu_s=span.cpu_s, tries=tries)


def _error_of(outcome: Outcome) -> str:
    error: Any = outcome.raised
    if error is None and outcome.state is not None:
        data = outcome.state.data
        error = data.result if isinstance(data, ResultRecord) else data
        if not isinstance(error, BaseException):
            return str(outcome.state.message or outcome.state.name)
    return f"{type(error).__name__}: {error}"


def _persists_here() -> bool:
    context = TaskRunContext.get()
    return context is not None and context.persist_result
