"""Tasks that run in one of several pools of task workers: ``@tao_task(pools=["blue", "green"])``.

``.delay()``, ``.apply_async()`` and ``.map(..., deferred=True)`` choose the pool by decision, and send the task run to
the task workers of that pool: they serve the same task under the key ``KEY@POOL``. Called or submitted, a task runs
where its flow does, as any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar, cast
from uuid import UUID, uuid4

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.orchestration import get_client
from prefect.futures import PrefectDistributedFuture
from prefect.utilities.hashing import hash_objects

from tao_flows.admission import Ask
from tao_flows.errors import InputError
from tao_flows.options import TaoOptions
from tao_flows.prefect._compat import FlowRunContext, Task, has_ended, impatient_client
from tao_flows.prefect.elsewhere import is_scheduled
from tao_flows.prefect.settings import tao_here
from tao_flows.records import RunKey, Who
from tao_flows.runtime import Tao

R = TypeVar("R")

BETWEEN: Final = "@"
_NAMES: Final = frozenset({"pools", "share_cache"})
_SERVED_S: Final = 5.0
"""How long it is remembered which pools have task workers."""
_STATE_S: Final = 30.0
"""How long the server may take to give a new task run its state."""
_LOOK_S: Final = 0.1
_FIRST_LOOK_S: Final = 1.0
_LAST_LOOK_S: Final = 15.0
"""Who waits for a background task looks at its run after the first, and then after twice as long each time up to this."""


@dataclass(frozen=True)
class TaskPools:
    """Where a task may run as a background task."""

    names: tuple[str, ...] = ()
    """By id, its home first; none: wherever it is served, as Prefect has it."""
    share_cache: bool = False
    """A result of one pool does for the others."""
    here: str = ""
    """The pool whose variant of the task this is; empty for the task itself."""


def split_pools(given: Mapping[str, Any], pools: TaskPools | None = None) -> tuple[TaskPools, dict[str, Any]]:
    """``pools`` changed by what options say of pools, and the other options.

    Raises:
        InputError: BAD_OPTION, one is malformed.
    """
    pools, rest = pools or TaskPools(), {name: value for name, value in given.items() if name not in _NAMES}
    if "pools" in given:
        pools = replace(pools, names=_names(given["pools"]))
    if "share_cache" in given:
        if not isinstance(given["share_cache"], bool):
            summary = f"share_cache: {given['share_cache']!r} is not True or False"
            raise InputError("BAD_OPTION", summary, "write share_cache=True")
        pools = replace(pools, share_cache=given["share_cache"])
    return pools, rest


def in_pool(task: Any, pools: TaskPools) -> None:
    """Makes a task the variant of its pool, if it is to be one: served and cached apart from the other pools'."""
    task.tao_pools = pools
    if pools.here:
        task.task_key = f"{task.task_key}{BETWEEN}{pools.here}"
        if not pools.share_cache:
            task.cache_policy = _apart(task.cache_policy, pools.here)


def variant(task: Any, pool: str) -> Any:
    """The task as the task workers of ``pool`` serve it.

    Raises:
        InputError: UNKNOWN_POOL, it may not run there.
    """
    pools = getattr(task, "tao_pools", None)
    if not isinstance(pools, TaskPools):
        raise InputError("BAD_OPTION", f"{task!r} is not a tao_task", "write tao_task(existing, pools=[...])")
    if pool not in pools.names:
        listed = ", ".join(pools.names) or "none"
        raise InputError("UNKNOWN_POOL", f"task {task.name!r} may not run in pool {pool!r}", f"its pools are: {listed}")
    made = copy(task)
    in_pool(made, replace(pools, here=pool))
    return made


def pool_here(task: Any) -> str:
    """The pool whose variant of a task this is; empty for any other task."""
    pools = getattr(task, "tao_pools", None)
    return pools.here if isinstance(pools, TaskPools) else ""


def chosen(task: Any) -> Any:
    """The variant of the pool that is decided on; the task itself where it has no pools. Never raises.

    The run's id is settled here, so that the decision is found with the run.
    """
    pools: TaskPools = task.tao_pools
    if not pools.names or pools.here:
        return task
    run_id = uuid4()
    made = variant(task, _choose(task, pools, run_id))
    made.tao_run_id = run_id
    return made


def serve(*tasks: Any, pool: str, **options: Any) -> None:
    """Runs a task worker for a pool, until it is stopped.

    Args:
        tasks: those to serve; each names the pool among its own.
        pool: its id.
        options: of ``prefect.task_worker.serve``, such as ``limit``.

    Raises:
        InputError: a task may not run there.
    """
    from prefect.task_worker import serve as serve_tasks

    # Prefect would give a coroutine where a loop runs, and its types do not know how to ask it not to.
    cast("Any", serve_tasks)(*[variant(task, pool) for task in tasks], _sync=True, **options)


async def aserve(*tasks: Any, pool: str, **options: Any) -> None:
    """The same as a coroutine."""
    from prefect.task_worker import aserve as serve_tasks

    await serve_tasks(*[variant(task, pool) for task in tasks], **options)


class BackgroundFuture(PrefectDistributedFuture[R]):
    """Prefect's, which waits for the event of the run's end, and for that alone. Here the run is looked at now and then.

    The event can have come before anyone listened, and never comes for a run whose result was cached. And a run can be
    so new that the server has yet to give it a state.
    """

    async def wait_async(self, timeout: float | None = None) -> None:
        """As Prefect's.

        Raises:
            ObjectNotFound: the run was deleted, as a task worker does that cannot read its parameters.
            RuntimeError: the run has no state after ``_STATE_S``.
        """
        begun_s, look_s = time.monotonic(), _FIRST_LOOK_S
        while not has_ended(self):
            passed_s = time.monotonic() - begun_s
            left_s = look_s if timeout is None else min(look_s, timeout - passed_s)
            if left_s < 0.0:
                return
            try:
                await super().wait_async(timeout=left_s)
            except RuntimeError as error:
                if "has no state" not in str(error) or passed_s >= _STATE_S:
                    raise
                await asyncio.sleep(_LOOK_S)
            look_s = min(2 * look_s, _LAST_LOOK_S)

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """As Prefect's."""
        begun_s = time.monotonic()
        with get_client(sync_client=True) as client:
            while client.read_task_run(self.task_run_id).state is None and time.monotonic() - begun_s < _STATE_S:
                time.sleep(_LOOK_S)
        super().add_done_callback(fn)


@dataclass
class _Apart(CachePolicy):
    """Another policy's keys, told apart by pool. What that one does not cache is not cached."""

    of: CachePolicy = field(default_factory=lambda: NO_CACHE)
    pool: str = ""

    def compute_key(self, *args: Any, **kwargs: Any) -> str | None:
        key = self.of.compute_key(*args, **kwargs)
        return None if key is None else hash_objects(key, self.pool, raise_on_failure=True)

    def __sub__(self, other: str) -> CachePolicy:
        return replace(self, of=self.of - other)


def _apart(policy: Any, pool: str) -> Any:
    if not isinstance(policy, CachePolicy) or policy == NO_CACHE:
        return policy
    return _Apart(policy.key_storage, policy.isolation_level, policy.lock_manager, policy, pool)


def _names(value: object) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise InputError("BAD_OPTION", f"pools: {value!r} is not a list of different pools", 'write pools=["a", "b"]')
    return names


def _choose(task: Any, pools: TaskPools, run_id: UUID) -> str:
    home, tao = pools.names[0], tao_here()
    if tao is None or tao.config.mode == "off":
        return home
    try:
        ask = _ask(tao, task, pools, run_id)
        return tao.admission.ask(ask, tao.config).pool
    except Exception as ours:  # noqa: BLE001 - without us it goes to its home
        tao.incidents.note_error("choosing a task's pool", ours, task=task.name)
        return home


def _ask(tao: Tao, task: Task[Any, Any], pools: TaskPools, run_id: UUID) -> Ask:
    options: TaoOptions = task.tao_options  # type: ignore[attr-defined]
    flow, config = FlowRunContext.get(), tao.config
    flow_run = None if flow is None else flow.flow_run
    trigger = "scheduled" if is_scheduled(flow_run) else "manual" if getattr(flow_run, "deployment_id", None) else ""
    tags = {*getattr(flow_run, "tags", ()), *task.tags}
    key = RunKey(
        engine="prefect",
        namespace=config.namespace,
        flow=flow.flow.name if flow is not None and flow.flow is not None else task.name,
        run_id=str(run_id if flow_run is None else flow_run.id),
        task=task.name,
        instance=str(run_id),
        try_number=1,
    )
    return Ask(
        key=key,
        home_pool=pools.names[0],
        ready_wall_ns=tao.clock.wall_ns(),
        who=config.who.overlay(Who.of_tags(tags)).overlay(options.who),
        trigger=trigger,
        budget=options.budget,
        deadline=options.deadline,
        run_start=getattr(flow_run, "start_time", None),
        queued=getattr(flow_run, "expected_start_time", None),
        # Who names several pools means that it may run in any of them.
        reroutable=options.reroutable is not False,
        allowed_zones=options.allowed_zones,
        requires=options.requires,
        size=options.size,
        can_reroute=True,
        reaches=_served(task.task_key, pools.names).__contains__,
        ahead=True,
    )


_kept: dict[tuple[str, tuple[str, ...]], tuple[float, Collection[str]]] = {}


def _served(task_key: str, names: tuple[str, ...]) -> Collection[str]:
    """The pools that have task workers for a task, as far as the server can tell; remembered for ``_SERVED_S``."""
    now_s, known = time.monotonic(), _kept.get((task_key, names))
    if known is None or now_s - known[0] >= _SERVED_S:
        known = _kept[task_key, names] = (now_s, _read_served(task_key, names))
    return known[1]


def _read_served(task_key: str, names: tuple[str, ...]) -> Collection[str]:
    keys = {f"{task_key}{BETWEEN}{name}": name for name in names}
    try:
        with impatient_client() as client:
            asked = {"task_worker_filter": {"task_keys": list(keys)}}
            workers = client.request("POST", "/task_workers/filter", json=asked).json()
    except Exception:  # noqa: BLE001 - a server that does not tell has them all
        return names
    found = {keys[key] for worker in workers for key in worker["task_keys"] if key in keys}
    # A server of several processes knows only the workers of this one.
    return found or names
