"""What the three tasks of a batch do in their processes: divide the items, run some of them, put the results together."""

from __future__ import annotations

import inspect
import logging
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from airflow_plugin._compat import fail_exception, skip_exception
from airflow_plugin.batching import Item, all_items, batches, energies, failure
from airflow_plugin.facts import ENGINE, run_ref
from airflow_plugin.places import executors, pool_of
from airflow_plugin.settings import tao_here
from tao_flows.batching import UNKNOWN_ITEMS, item_j, items_per_task, overhead_j
from tao_flows.errors import TaoError
from tao_flows.ledger.reads import Scope, overheads
from tao_flows.units import NS_PER_S

log = logging.getLogger("tao_flows.airflow")

ITEMS_KEY: Final = "tao_items"
"""The XCom of ``collect`` that says of each item how it ended and what it cost, in joules."""
_FINISHED_KEY: Final = "tao_finished"
_SAVE_S: Final = 10.0
"""What has finished is kept this often: a task that is killed loses no more."""
_LOOK_BACK_S: Final = 30 * 86_400


class BatchItemsFailed(RuntimeError):
    """Items of a batch failed; the others have run."""


def plan(mapped: Any, size: int | None, run_id_of: str, **context: Any) -> list[dict[str, Any]]:
    """Divides the items into batches."""
    items = all_items(mapped)
    chosen = size or _measured_size(context["task"].dag, context["ti"].dag_id, run_id_of)
    planned = batches(items, chosen)
    log.info("%d items in %d tasks, %d in each at the most", len(items), len(planned), chosen)
    return planned


def _measured_size(dag: Any, dag_id: str, run_id_of: str) -> int:
    tao = tao_here()
    if tao is None or tao.config.mode == "off":
        return UNKNOWN_ITEMS
    namespace, since_ns = tao.config.namespace, tao.clock.wall_ns() - _LOOK_BACK_S * NS_PER_S
    try:
        task = dag.get_task(run_id_of)
        history = tao.ledger.history(run_id_of, pool_of(task.queue, task.executor, executors()), flow=dag_id)
        runs = overheads(tao.ledger, Scope(since_ns, ENGINE, dag_id, namespace=namespace))
        return items_per_task(item_j(history), overhead_j(tao.ledger, ENGINE, runs))
    except TaoError as error:
        log.info("what items cost is not known: %s", error)
    except Exception as ours:  # noqa: BLE001 - without us the items must still run
        tao.incidents.note_error("sizing batches", ours, task=run_id_of)
    return UNKNOWN_ITEMS


def runner(function: Callable[..., Any], plan_id: str) -> Callable[..., list[dict[str, Any]]]:
    """What runs one batch: the function for each of its items."""
    parameters = inspect.signature(function).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    def run(tao_batch: Mapping[str, Any], **given: Any) -> list[dict[str, Any]]:
        def call(item: Mapping[str, Any]) -> Any:
            return function(**{name: v for name, v in {**given, **item}.items() if takes_all or name in parameters})

        return _run(call, tao_batch, _Finished(given["ti"], plan_id))

    run.__name__, run.__qualname__, run.__doc__ = function.__name__, function.__qualname__, function.__doc__
    run.__module__ = function.__module__
    return run


def _run(
    call: Callable[[Mapping[str, Any]], Any], batch: Mapping[str, Any], finished: _Finished
) -> list[dict[str, Any]]:
    """Runs what has not finished in an earlier try; how every item ended.

    Raises:
        BatchItemsFailed: some failed; all have been tried.
        AirflowFailException: the same, where all that failed said that another try is no use.
    """
    arguments = {batch["first"] + position: item for position, item in enumerate(batch["items"])}
    items = finished.load()
    with finished.kept(items):
        for index, item in arguments.items():
            standing = items.setdefault(index, Item(index, "failed", finished.instance))
            if not standing.finished:
                items[index] = _attempt(call, item, standing, finished.try_number)
                finished.save_now_and_then(items)
        ended = [items[index] for index in arguments]
        failed = [item for item in ended if not item.finished]
        if failed:
            fatal = all(item.state == "fatal" for item in failed)
            raise (fail_exception() if fatal else BatchItemsFailed)(failure(failed, arguments, len(ended)))
    finished.forget()
    return [item.to_json() for item in ended]


def _attempt(call: Callable[[Mapping[str, Any]], Any], arguments: Mapping[str, Any], item: Item, number: int) -> Item:
    """The item after one more try."""
    state, result, error = "success", None, ""
    begun_s = _cpu_s()
    try:
        result = call(arguments)
    except skip_exception():
        state = "skipped"
    except Exception as problem:
        state = "fatal" if isinstance(problem, fail_exception()) else "failed"
        error = f"{type(problem).__name__}: {problem}"
        log.exception("item %d failed", item.index)
    cpu_s = (*item.cpu_s, (number, _cpu_s() - begun_s))
    return replace(item, state=state, result=result, error=error, cpu_s=cpu_s)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class _Finished:
    """What items of a batch have come to so far, for its next try: an XCom of the plan's task.

    Airflow clears a task's own XComs when a try begins. Those of the plan go when the plan is made anew.
    """

    def __init__(self, ti: Any, plan_id: str) -> None:
        self.instance, self.try_number = ti.map_index, ti.try_number
        self._again = ti.try_number > 1
        self._names = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": plan_id}
        self._key = f"{_FINISHED_KEY}_{ti.map_index}"
        self._saved = False
        self._saved_s = time.monotonic()

    def load(self) -> dict[int, Item]:
        """By index, what earlier tries have left; empty where it cannot be had."""
        if not self._again:
            return {}
        from airflow.sdk.execution_time.xcom import XCom

        try:
            stored = XCom.get_one(key=self._key, map_index=-1, **self._names) or []
            return {item.index: item for item in map(Item.from_json, stored)}
        except Exception:
            log.warning("what has finished in earlier tries cannot be read: all items run", exc_info=True)
            return {}

    @contextmanager
    def kept(self, items: Mapping[int, Item]) -> Iterator[None]:
        """Saves what there is when the block is left by an exception, a time-out among them."""
        try:
            yield
        except BaseException:
            self.save(items)
            raise

    def save_now_and_then(self, items: Mapping[int, Item]) -> None:
        """Saves, where that is some time ago."""
        if time.monotonic() - self._saved_s > _SAVE_S:
            self.save(items)

    def save(self, items: Mapping[int, Item]) -> None:
        """Saves. Never raises: what is not kept is run again."""
        from airflow.sdk.execution_time.xcom import XCom

        self._saved_s = time.monotonic()
        try:
            XCom.set(self._key, [item.to_json() for item in items.values()], map_index=-1, **self._names)
            self._saved = True
        except Exception:
            log.warning("what has finished cannot be kept for a next try", exc_info=True)

    def forget(self) -> None:
        """Drops it once all is done, so that clearing the task runs every item. Never raises."""
        if not (self._saved or self._again):
            return
        from airflow.sdk.execution_time.xcom import XCom

        try:
            XCom.delete(self._key, map_index=-1, **self._names)
        except Exception:
            log.warning("what was kept for a next try cannot be deleted", exc_info=True)


def collect(ran: Iterable[Iterable[Mapping[str, Any]]], **context: Any) -> list[Any]:
    """Puts the results together, in the order of the items."""
    items = [Item.from_json(item) for batch in ran for item in batch]
    if items and all(item.state == "skipped" for item in items):
        raise skip_exception()("every item was skipped")
    ti = context["ti"]
    ti.xcom_push(ITEMS_KEY, _costs(items, ti))
    return [item.result for item in items if item.result is not None]


def _costs(items: Sequence[Item], ti: Any) -> list[dict[str, Any]]:
    """Of each item how it ended, its tries, CPU seconds, and joules; those are unknown where the ledger does not tell."""
    records, run_id_of = [], ti.task_id.removesuffix("collect") + "run"
    tao = tao_here()
    if tao is not None:
        try:
            run = run_ref(ti.dag_id, ti.run_id, tao.config.namespace)
            records = [record for record in tao.ledger.tasks(run) if record.key.task == run_id_of]
        except TaoError as error:
            log.info("what items cost is not known: %s", error)
    return [
        {
            "index": item.index,
            "state": item.state,
            "tries": len(item.cpu_s),
            "cpu_s": sum(cpu_s for _, cpu_s in item.cpu_s),
            "energy": figure.to_json(),
            "split_by": "cpu_s",
        }
        for item, figure in zip(items, energies(items, records), strict=True)
    ]
