"""``@tao_task``: a Prefect task whose every try is metered, decided on and recorded.

A ``TaoTask`` is the user's task, attribute for attribute, with a thin shell around its function: Prefect's engine
calls that function only when there is something to run, so that cache hits are neither metered nor decided on. The
task key, the source that cache keys are made of, the name and the kind of function are the user's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload
from uuid import UUID

from tao_flows.options import TaoOptions, split_options, with_changes
from tao_flows.prefect import run
from tao_flows.prefect._compat import MaterializingTask, Task
from tao_flows.prefect.admit import admitted, admitted_async
from tao_flows.prefect.batch import Coalesce, map_items, split_coalesce
from tao_flows.prefect.flow import count_submitted, engine_at_work, engine_goes_on
from tao_flows.prefect.starter import keep_threads_out
from tao_flows.prefect.task_pools import BackgroundFuture, TaskPools, chosen, in_pool, split_pools
from tao_flows.spans import Stepped, stepped_async_generator, stepped_generator

P = ParamSpec("P")
R = TypeVar("R")


class TaoTask(Task[P, R]):
    """A metered Prefect task. Made by ``tao_task``, never by hand."""

    tao_options: TaoOptions
    user_fn: Callable[..., Any]
    tao_pools: TaskPools
    tao_run_id: UUID | None = None
    """Of the one run that a variant was chosen for."""
    tao_coalesce: Coalesce = "auto"

    def with_options(self, **changes: Any) -> TaoTask[P, R]:
        """As Prefect's, and with tao-flows' options too."""
        coalesce, changes = split_coalesce(changes, self.tao_coalesce)
        pools, changes = split_pools(changes, self.tao_pools)
        options, rest = with_changes(self.tao_options, changes)
        plain = copy(self)
        plain.fn, plain.timeout_seconds = self.user_fn, options.timeout_s
        made = _from_task(super(TaoTask, plain).with_options(**rest), options, pools)
        made.tao_coalesce = coalesce
        return made

    if not TYPE_CHECKING:  # for a type checker these are Prefect's own, with the user's parameters and result

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with engine_at_work():
                result = super().__call__(*args, **kwargs)
            return engine_goes_on(result)

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            with engine_at_work():
                keep_threads_out()
                return count_submitted(super().submit(*args, **kwargs))

        def map(self, *args: Any, **kwargs: Any) -> Any:
            with engine_at_work():
                keep_threads_out()
                futures = map_items(self, super().map, args, kwargs)
                # What task workers run outlives the flow, whose account does not wait for it.
                return futures if kwargs.get("deferred") else count_submitted(futures)

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            with engine_at_work():
                future = super(TaoTask, chosen(self)).apply_async(*args, **kwargs)
            return BackgroundFuture(task_run_id=future.task_run_id)

        async def create_run(self, *args: Any, **kwargs: Any) -> Any:
            if self.tao_run_id is not None:
                kwargs.setdefault("id", self.tao_run_id)
            return await super().create_run(*args, **kwargs)


class TaoMaterializingTask(TaoTask[P, R], MaterializingTask[P, R]):  # type: ignore[misc]
    """A metered Prefect asset materialization."""


@overload
def tao_task(fn: Task[P, R], /, **options: Any) -> TaoTask[P, R]: ...
@overload
def tao_task(fn: Callable[P, R], /, **options: Any) -> TaoTask[P, R]: ...
@overload
def tao_task(fn: None = None, /, **options: Any) -> Callable[[Callable[P, R]], TaoTask[P, R]]: ...
def tao_task(fn: Any = None, /, **options: Any) -> Any:
    """Makes a Prefect task whose energy is metered and whose every run is decided on.

    Every option of ``prefect.task`` passes through; ``tao_task(existing)`` takes over a task as it is.

    Args:
        fn: the user's function, or an existing Prefect task.
        options: those of ``prefect.task``, and of ``tao_flows.options.make_options``: ``team``, ``owner``,
            ``cluster``, ``model_id``, ``tao_tags``, ``budget`` (a name, an energy such as ``"40 J"``, or an
            ``EnergyBudget``), ``deadline`` (a duration from when the task is ready), ``max_defer``, ``deferrable``,
            ``reroutable``, ``allowed_zones``, ``requires``; and ``pools``, the pools of task workers that it may run
            in as a background task, its home first, with ``share_cache`` where a result of one does for the others;
            and ``coalesce``, whether ``.map`` runs its items in batches: ``"auto"``, where the engine was seen to take
            more joules than the work; True, False, or how many items share a task run.

    Raises:
        InputError: an option of ours is malformed, where it is written.
        TypeError: an option that neither Prefect nor tao-flows knows.
    """
    _split(split_coalesce(options)[1])  # a mistake is told where it is written, also where the function comes later
    return functools.partial(_make, options) if fn is None else _make(options, fn)


def _make(options: dict[str, Any], fn: Any) -> Any:
    if isinstance(fn, TaoTask):
        return fn.with_options(**options) if options else fn
    coalesce, others = split_coalesce(options)
    ours, pools, rest = _split(others)
    task = fn if isinstance(fn, Task) else Task(fn, **rest)
    made = _from_task(task.with_options(**rest) if task is fn and rest else task, ours, pools)
    made.tao_coalesce = coalesce
    return made


def _split(options: dict[str, Any]) -> tuple[TaoOptions, TaskPools, dict[str, Any]]:
    pools, others = split_pools(options)
    ours, rest = split_options(others)
    return ours, pools, rest


def _from_task(task: Task[P, R], options: TaoOptions, pools: TaskPools) -> TaoTask[P, R]:
    kind = TaoMaterializingTask if isinstance(task, MaterializingTask) else TaoTask
    tao = kind.__new__(kind)
    tao.__dict__.update(task.__dict__)
    tao.user_fn = task.fn
    # The time we take before the user's function is not the user's to be timed out by: the shell applies the timeout.
    # Not for generators, where the consumer runs between two items: there the engine's own covers the whole.
    owned_s = None if task.isgenerator else task.timeout_seconds
    tao.tao_options = replace(options, timeout_s=owned_s)
    tao.timeout_seconds = task.timeout_seconds if task.isgenerator else None
    tao.fn = _shell(task.fn, tao.tao_options)
    in_pool(tao, pools)
    return tao


def observed_task(task: Any) -> Any:
    """Has a task that is nobody else's, and not a ``tao_task``, metered and no more."""
    task.user_fn, task.tao_observed = task.fn, True
    task.fn = _shell(task.fn, TaoOptions())
    return task


def _shell(fn: Callable[..., Any], options: TaoOptions) -> Callable[..., Any]:
    """The user's function with a try around it, of the same kind and signature.

    A shell travels to other processes by value, so that it may hold nothing but what is imported or pickles.
    """
    if inspect.isasyncgenfunction(fn):
        return _async_generator_shell(fn, options)
    if inspect.isgeneratorfunction(fn):
        return _generator_shell(fn, options)
    if inspect.iscoroutinefunction(fn):
        return _async_shell(fn, options)
    return _sync_shell(fn, options)


def _sync_shell(fn: Callable[..., Any], options: TaoOptions) -> Callable[..., Any]:
    @functools.wraps(fn)
    def shell(*args: Any, **kwargs: Any) -> Any:
        context = run.own_context(fn)
        if context is None:
            return fn(*args, **kwargs)
        with (
            admitted(options, context) as begins,
            run.metered(begins, stepped=False) as span,
            run.timed(options.timeout_s),
            span,
        ):
            return fn(*args, **kwargs)

    return shell


def _async_shell(fn: Callable[..., Any], options: TaoOptions) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def shell(*args: Any, **kwargs: Any) -> Any:
        context = run.own_context(fn)
        if context is None:
            return await fn(*args, **kwargs)
        async with admitted_async(options, context) as begins:
            with run.metered(begins, stepped=True) as span, run.timed_async(options.timeout_s):
                return await Stepped(fn(*args, **kwargs), span)

    return shell


def _generator_shell(fn: Callable[..., Any], options: TaoOptions) -> Callable[..., Any]:
    @functools.wraps(fn)
    def shell(*args: Any, **kwargs: Any) -> Any:
        context = run.own_context(fn)
        if context is None:
            return (yield from fn(*args, **kwargs))
        with admitted(options, context) as begins, run.metered(begins, stepped=True) as span:
            return (yield from stepped_generator(fn(*args, **kwargs), span))

    return shell


def _async_generator_shell(fn: Callable[..., Any], options: TaoOptions) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def shell(*args: Any, **kwargs: Any) -> Any:
        context = run.own_context(fn)
        if context is None:
            async for item in fn(*args, **kwargs):
                yield item
            return
        async with admitted_async(options, context) as begins:
            with run.metered(begins, stepped=True) as span:
                async for item in stepped_async_generator(fn(*args, **kwargs), span):
                    yield item

    return shell
