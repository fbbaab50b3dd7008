"""``@tao_task(coalesce=...)``: mapping over many small items in few task runs.

``task.map(...)`` gives what Prefect's own gives: a future for each item, in order. Behind them the items of a batch share
a task run, named by their range. Prefect's own ``map`` says what the items are: it is given a task runner that only
takes them down.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final, Literal, cast

from tao_flows.errors import InputError
from tao_flows.prefect._compat import (
    NO_CACHE,
    BaseAnnotation,
    FlowRunContext,
    MaterializingTask,
    PrefectFuture,
    PrefectFutureList,
    PrefectTaskRunner,
    State,
    Task,
    TaskRunner,
    ThreadPoolTaskRunner,
    collect_task_run_inputs_sync,
    get_run_logger,
    resolve_inputs_sync,
    visit_collection,
)
from tao_flows.prefect.admit import LOCAL_POOL
from tao_flows.prefect.batch_futures import Delivery, ItemFuture
from tao_flows.prefect.batch_items import PLAIN_TYPES, Batch, Outcome, Outcomes, dumped, loaded
from tao_flows.prefect.batch_kept import digest_of, kept_of
from tao_flows.prefect.batch_report import BatchItems, Spent
from tao_flows.prefect.batch_run import run_batch, run_batch_async
from tao_flows.prefect.batch_size import AUTO, BATCH, Size, chosen_size
from tao_flows.prefect.flow_run import flow_windows
from tao_flows.prefect.places import pool_of

Coalesce = bool | int | Literal["auto"]
"""``auto``: in batches where the engine was seen to take more joules than the work; False: never; True: in batches of
a size by what items and tasks were measured to cost; a number: in batches of so many."""
MOST_ITEMS: Final = 100_000
"""In a batch."""


def split_coalesce(given: Mapping[str, Any], coalesce: Coalesce = AUTO) -> tuple[Coalesce, dict[str, Any]]:
    """``coalesce`` as the options have it, and the other options.

    Raises:
        InputError: BAD_OPTION, it is malformed.
    """
    rest = {name: value for name, value in given.items() if name != "coalesce"}
    wanted = given.get("coalesce", coalesce)
    if wanted == AUTO or isinstance(wanted, bool) or (isinstance(wanted, int) and 1 <= wanted <= MOST_ITEMS):
        return wanted, rest
    summary = f'coalesce: {wanted!r} is not True, False, "auto" or a whole number from 1 to {MOST_ITEMS}'
    raise InputError("BAD_OPTION", summary, "write coalesce=50, or leave it out")


def map_items(task: Any, prefects: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``task.map`` gives, in batches where that is wanted.

    Args:
        task: a ``TaoTask``.
        prefects: its own ``map``, as Prefect has it.
        args: those of the call.
        kwargs: those of the call.
    """
    context = FlowRunContext.get()
    size = Size.of_plain() if context is None else _wanted(task, context, kwargs)
    if context is None or size.is_plain:
        return prefects(*args, **kwargs)
    call = dict(kwargs)
    returns_states = call.pop("return_state", False)
    with _taking_down(context) as taken:
        prefects(*args, **call)
    size = size.for_items(len(taken.items), _workers(context.task_runner))
    futures = _submitted_plainly(task, taken, context) if size.is_plain else _submitted(task, taken, context, size)
    if not returns_states:
        return futures
    for future in futures:
        future.wait()
    return [future.state for future in futures]


def _wanted(task: Any, context: FlowRunContext, kwargs: Mapping[str, Any]) -> Size:
    """How large batches are to be; plain for what cannot be run in any."""
    no_batches = isinstance(task, MaterializingTask) or task.isgenerator or getattr(task, "asset_deps", None)
    # What task workers run is no part of this process, nor of one that is started for it.
    elsewhere = kwargs.get("deferred") or isinstance(context.task_runner, PrefectTaskRunner)
    never = task.tao_coalesce is False or no_batches or elsewhere
    return Size.of_plain() if never else chosen_size(task, context)


class _Taken(TaskRunner[Any]):
    """A task runner that takes down what it is to run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._started = True
        self.items: list[dict[str, Any]] = []
        self.wait_for: Iterable[Any] | None = None
        self.inputs: dict[str, set[Any]] = {}

    def duplicate(self) -> _Taken:
        """Another one."""
        return type(self)()

    def submit(
        self,
        task: Any,  # noqa: ARG002 - Prefect's signature
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[Any]] | None = None,
    ) -> Any:
        """Takes down one item."""
        self.items.append(parameters)
        self.inputs = dependencies or {}
        if wait_for is not None and self.wait_for is None:
            self.wait_for = list(wait_for)


@contextmanager
def _taking_down(context: FlowRunContext) -> Any:
    taken = _Taken()
    with context.model_copy(update={"task_runner": taken}):
        yield taken


def _workers(runner: Any) -> int | None:
    """How many tasks a runner runs side by side; None where it does not say."""
    workers = getattr(runner, "_max_workers", None)
    return workers if isinstance(workers, int) else None


def _submitted_plainly(task: Any, taken: _Taken, context: FlowRunContext) -> PrefectFutureList[Any]:
    """As Prefect's own ``map`` goes on."""
    runner = context.task_runner
    submit = partial(runner.submit, task=task, wait_for=taken.wait_for, dependencies=taken.inputs)
    return _listed([submit(parameters=item) for item in taken.items])


def _listed(futures: list[Any]) -> PrefectFutureList[Any]:
    # It has no method of its own for what its iterator must have, which no type checker forgives.
    return cast("PrefectFutureList[Any]", cast("Any", PrefectFutureList)(futures))


def _submitted(task: Any, taken: _Taken, context: FlowRunContext, size: Size) -> PrefectFutureList[Any]:
    submitter = _Submitter(task, taken, context, size)
    numbers = range(len(taken.items))
    batches = [numbers[first : first + size.items] for first in range(0, len(numbers), size.items)]
    get_run_logger().log(
        logging.INFO,
        "tao-flows: %d items of %s in %d task runs, %d in each at the most: %s",
        len(numbers),
        task.name,
        len(batches),
        size.items,
        size.reason,
    )
    return _listed(submitter.futures(batches))


class _Submitter:
    """Hands the batches of one map call to the flow's task runner, and their outcomes to the futures."""

    def __init__(self, task: Any, taken: _Taken, context: FlowRunContext, size: Size) -> None:
        self._taken, self._runner = taken, context.task_runner
        self._task, self._options = _users(task), task.tao_options
        self._shared, self._limit_s = _batch_task(task), size.limit_s
        self._context = copy_context()
        flow_run = context.flow_run
        self._run_id, attempt = (str(flow_run.id), flow_run.run_count) if flow_run is not None else ("none", 1)
        self._pool = pool_of(flow_run) or LOCAL_POOL
        self._kept = kept_of(self._run_id, attempt, task.task_key, getattr(task, "source_code", "") or "")
        self._lock = threading.Lock()
        self._left = 0
        self._died = False

    def futures(self, batches: Sequence[range]) -> list[ItemFuture[Any]]:
        """Those of all items, whose batches are handed over now, or as soon as what they wait for is there."""
        self._left = len(batches)
        futures: list[ItemFuture[Any]] = []
        later: list[tuple[Delivery, Batch]] = []
        for numbers in batches:
            delivery = Delivery()
            items = {number: self._taken.items[number] for number in numbers}
            unresolved = _has_futures(items.values())
            batch = Batch(
                self._task, self._options, items, unresolved=unresolved, kept=self._kept, limit_s=self._limit_s
            )
            if batch.unresolved and not isinstance(self._runner, ThreadPoolTaskRunner):
                later.append((delivery, batch))  # futures cannot leave this process
            else:
                self._submit(delivery, batch)
            futures.extend(ItemFuture(delivery, number) for number in numbers)
        if later:
            go = partial(self._submit_later, later)
            threading.Thread(target=self._context.copy().run, args=(go,), daemon=True).start()
        return futures

    def _submit_later(self, later: Sequence[tuple[Delivery, Batch]]) -> None:
        for delivery, batch in later:
            inputs = self._inputs(batch)
            for number, item in batch.items.items():
                batch.items[number] = _resolved(item)
            batch.unresolved = False
            try:
                self._submit(delivery, batch, inputs)
            except BaseException as error:  # noqa: BLE001 - the runner is gone: so say the items' futures
                delivery.never(error)

    def _inputs(self, batch: Batch) -> set[Any]:
        """The task runs that the items are given something of, for Prefect's graph."""
        found = set() if _all_plain(batch.items.values()) else collect_task_run_inputs_sync(list(batch.items.values()))
        return set(found).union(*self._taken.inputs.values())

    def _submit(
        self, delivery: Delivery, batch: Batch, inputs: set[Any] | None = None, runner: TaskRunner[Any] | None = None
    ) -> None:
        task_run = (runner or self._runner).submit(
            task=self._shared,
            parameters={"batch": batch, "first": min(batch.items), "last": max(batch.items)},
            wait_for=self._taken.wait_for,
            dependencies={"batch": self._inputs(batch) if inputs is None else inputs},
        )
        delivery.submitted(task_run)
        task_run.add_done_callback(lambda done: self._deliver(delivery, batch, done, more=runner is None))

    def _deliver(self, delivery: Delivery, batch: Batch, task_run: PrefectFuture[Any], *, more: bool) -> None:
        """Has the futures of a batch's items be done. Called by the task runner, and never raises."""
        outcomes, died = _outcomes(batch, task_run)
        if died is not None:
            outcomes = _found(batch)
        rest = [number for number in batch.items if number not in outcomes]
        if rest and more and (died is None or (batch.task.retries and _lost_its_process(died))):
            # A batch that took too long tells how many do not.
            size = len(rest) if died is not None else max(1, len(outcomes))
            parts = [batch.only(rest[first : first + size]) for first in range(0, len(rest), size)]
            goes_on = partial(self._go_on, delivery, batch, outcomes, parts, elsewhere=died is not None)
            threading.Thread(target=self._context.copy().run, args=(goes_on,), daemon=True).start()
            return
        self._died = self._died or bool(rest)
        outcomes.update({number: Outcome(raised=died) for number in rest})
        self._end(delivery, {number: outcomes[number] for number in batch.items})

    def _go_on(
        self, delivery: Delivery, batch: Batch, outcomes: dict[int, Outcome], parts: Sequence[Batch], *, elsewhere: bool
    ) -> None:
        """Runs what a batch has left; ``elsewhere`` in a task runner of its own: one whose process died may be broken."""
        ran: dict[int, Outcome] = {}
        error: BaseException | None = None
        try:
            with self._runner.duplicate() if elsewhere else nullcontext(self._runner) as runner:
                deliveries = [Delivery(is_part=True) for _ in parts]
                for part, each in zip(parts, deliveries, strict=True):
                    with self._lock:
                        self._left += 1
                    self._submit(each, part, runner=runner)
                for each in deliveries:
                    ran.update(each.over.result())
        except BaseException as raised:  # noqa: BLE001 - the runner is gone: so say the items' futures
            error = raised
        ended = {**outcomes, **ran}
        self._end(delivery, {number: ended.get(number, Outcome(raised=error)) for number in batch.items})

    def _end(self, delivery: Delivery, outcomes: Mapping[int, Outcome]) -> None:
        with self._lock:
            self._left -= 1
            forget = self._left == 0 and not self._died
        if forget:
            self._kept.forget()
        if not delivery.is_part:
            self._remember(outcomes)
        delivery.over.set_result(outcomes)

    def _remember(self, outcomes: Mapping[int, Outcome]) -> None:
        memory = flow_windows.find(self._run_id)
        if memory is not None:
            spent = {number: Spent(each.name, each.ran_by, each.cpu_s, each.tries) for number, each in outcomes.items()}
            memory.batches.append(BatchItems(self._task.name, self._pool, spent))


def _outcomes(batch: Batch, task_run: PrefectFuture[Any]) -> tuple[dict[int, Outcome], BaseException | None]:
    """What a batch has come to, or what it died of."""
    try:
        found = task_run.result(raise_on_failure=False)
    except BaseException as error:  # noqa: BLE001 - the futures of the items raise it
        # One that waits for what failed has a state, and no result.
        state = getattr(task_run, "_final_state", None)
        return ({}, error) if state is None else ({number: Outcome(state=state) for number in batch.items}, None)
    if isinstance(found, Outcomes):
        return found.all(), None
    state = task_run.state
    return {number: Outcome(state=state) for number in batch.items}, None


def _found(batch: Batch) -> dict[int, Outcome]:
    """What a batch that died had finished."""
    kept = batch.kept.load()
    found: dict[int, Outcome] = {}
    for number, item in batch.items.items():
        digest, outcome = kept.get(number, (b"", b""))
        with suppress(Exception):  # what cannot be told from another is not taken
            if digest and digest == digest_of(dumped(item)):
                found[number] = loaded(outcome)
    return found


def _lost_its_process(died: BaseException) -> bool:
    return isinstance(died, concurrent.futures.BrokenExecutor) or type(died).__name__ == "KilledWorker"


def _all_plain(items: Iterable[Any]) -> bool:
    return all(type(value) in PLAIN_TYPES for item in items for value in item.values())


def _has_futures(items: Iterable[Any]) -> bool:
    """Whether Prefect has to resolve something among the arguments."""
    items, found = list(items), []
    if _all_plain(items):
        return False

    def look(value: Any) -> None:
        if isinstance(value, (PrefectFuture, State, BaseAnnotation)):
            found.append(value)

    visit_collection(items, visit_fn=look, return_data=False)
    return bool(found)


def _resolved(item: Any) -> Any:
    try:
        return resolve_inputs_sync(item, return_data=True, max_depth=-1)
    except Exception as error:  # noqa: BLE001 - the item's future raises it
        return error


def _users(task: Any) -> Task[..., Any]:
    """The user's task, as Prefect would have it without us."""
    users: Task[..., Any] = Task.__new__(Task)
    users.__dict__.update({name: value for name, value in vars(task).items() if not name.startswith("tao_")})
    del users.__dict__["user_fn"]
    users.fn, users.timeout_seconds = task.user_fn, task.tao_options.timeout_s
    return users


def _batch_task(task: Any) -> Task[..., Any]:
    """The task whose runs are batches of another one's items."""
    shown = task.name.replace("{", "{{").replace("}", "}}")
    shared: Task[..., Any] = Task(
        run_batch_async if task.isasync else run_batch,
        name=f"{task.name} {BATCH}",
        description=task.description,
        tags=task.tags,
        version=task.version,
        task_run_name=f"{shown}[{{first}}-{{last}}]",
        retries=0,
        log_prints=task.log_prints,
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    shared.task_key = task.task_key
    return shared
