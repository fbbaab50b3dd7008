"""What DAG authors ask of us: read where they may write it, checked there, and stamped onto the task.

Nearest the task wins, option by option: ``tao(task, ...)`` and its kin, then ``default_args={"tao": {...}}`` of task
groups and of the DAG, then the DAG's tags, such as ``tao:deadline=2h``. What is found is kept in the task's
``executor_config``, as plain JSON, and reaches the scheduler and the worker from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypedDict

from airflow_plugin.facts import CONFIG_KEY, options_of
from airflow_plugin.places import executors, pool_of, spec_named
from tao_flows.budget import EnergyBudget
from tao_flows.deadline import Deadline
from tao_flows.errors import ConfigError, InputError, TaoError
from tao_flows.options import TAG_PREFIX, Duration, TaoOptions, checked, made, of_tag
from tao_flows.tomlfile import did_you_mean

if TYPE_CHECKING:
    from tao_flows.config import ConfigWatcher
    from tao_flows.pools import WorkerPool

log = logging.getLogger("tao_flows.airflow")

DEFAULT_ARG: Final = "tao"
"""The key of ``default_args`` that holds options of ours: Airflow passes over what no operator has as an argument."""


class TaoArgs(TypedDict, total=False):
    """The options by name, for type checkers. ``make_options`` says what each is."""

    team: str
    owner: str
    cluster: str
    model_id: str
    tao_tags: Iterable[str]
    budget: str | float | EnergyBudget | Mapping[str, Any] | None
    deadline: Duration | Deadline | None
    max_defer: Duration | None
    deferrable: bool | None
    reroutable: bool | None
    allowed_zones: Iterable[str] | None
    requires: Iterable[str]
    allowed_orgs: Iterable[str] | None
    size: float | None
    off: bool


def merged_config(executor_config: Mapping[str, Any] | None, given: Mapping[str, object]) -> dict[str, Any]:
    """An ``executor_config`` with options added; those given last win.

    Raises:
        InputError: one is unknown or malformed.
    """
    # A new one: operators share theirs with each other, as they share Airflow's own defaults.
    return {**(executor_config or {}), CONFIG_KEY: {**options_of(executor_config), **checked(given)}}


def set_config(task: Any, executor_config: dict[str, Any]) -> None:
    """Gives an operator its ``executor_config``, mapped or not."""
    if hasattr(task, "partial_kwargs"):
        task.partial_kwargs["executor_config"] = executor_config
    else:
        task.executor_config = executor_config


def stamp(task: Any) -> None:
    """Puts all options that hold for a task into its ``executor_config``; leaves a task without any as it is.

    Called for each task of each DAG that is parsed. In a task's own process nothing is refused: the DAG processor has
    let the same DAG pass.

    Raises:
        AirflowClusterPolicyViolation: an option is unknown or malformed, or names a place that is not described: an
            import error of the DAG.
    """
    try:
        options = _nearest(task)
        if not options:
            return
        config = {**task.executor_config, CONFIG_KEY: options}
        if not _in_task_process():
            _check_places(task, made(options))
            if _is_passed_on(task):
                del config[CONFIG_KEY]
        set_config(task, config)
    except InputError as error:
        if not _in_task_process():
            from airflow.exceptions import AirflowClusterPolicyViolation

            raise AirflowClusterPolicyViolation(f"task {task.task_id!r}: {error}") from None
    except Exception:  # without us the DAG must still be parsed
        log.warning("the options of task %r cannot be read", getattr(task, "task_id", "?"), exc_info=True)


def _is_passed_on(task: Any) -> bool:
    """Whether the task's executor hands all of ``executor_config`` to a service, which refuses what it does not know.

    Amazon's do. The worker reads the options from the DAG again, and no executor of ours needs them there.
    """
    spec = spec_named(task.executor, executors())
    return spec is not None and spec.path.rpartition(".")[2].startswith("Aws")


def _nearest(task: Any) -> dict[str, Any]:
    """Every option that holds for a task."""
    dag = getattr(task, "dag", None)
    found: dict[str, Any] = {}
    places = [*_of_dag(dag, getattr(task, "task_group", None)), ("", options_of(task.executor_config))]
    for place, given in places:
        try:
            found.update(checked(given))
        except InputError as error:
            summary = f"{place}: {error.summary}" if place else error.summary
            raise InputError(error.code, summary, error.remedy) from None
    return found


def _of_dag(dag: Any, group: Any) -> Iterator[tuple[str, Mapping[str, object]]]:
    """By where it is written, what holds for more tasks than one, the nearest last."""
    for tag in sorted(getattr(dag, "tags", ())):
        if tag.startswith(TAG_PREFIX):
            yield f"tag {tag!r}", of_tag(tag)
    groups = []
    while group is not None:
        groups.append(group)
        group = getattr(group, "parent_group", None)
    for holder in (dag, *reversed(groups)):
        given = (getattr(holder, "default_args", None) or {}).get(DEFAULT_ARG)
        if given is None:
            continue
        place = f"default_args[{DEFAULT_ARG!r}]"
        if not isinstance(given, Mapping):
            raise InputError("BAD_OPTION", f"{place}: {given!r} is not a dict", f'write {{"{DEFAULT_ARG}": {{...}}}}')
        yield place, given


def _in_task_process() -> bool:
    from airflow.sdk import get_parsing_context

    return get_parsing_context().task_id is not None


def _check_places(task: Any, options: TaoOptions) -> None:
    """Raises InputError where options name places that nobody has described, and some are."""
    wanted = {"zone": options.allowed_zones or (), "capability": options.requires, "pool": _home(task, options)}
    if not any(wanted.values()):
        return
    pools = list(_described())
    if not pools:
        return
    # The ledger can describe pools, too. It is asked only about what the settings' file does not know.
    if any(_unknown(kind, names, pools) for kind, names in wanted.items()):
        in_ledger = _in_ledger()
        if in_ledger is None:
            return
        pools += in_ledger
    for kind, names in wanted.items():
        for name in _unknown(kind, names, pools):
            remedy = did_you_mean(name, sorted(_known(kind, pools)))
            raise InputError(f"UNKNOWN_{kind.upper()}", f"{kind} {name!r}: no pool that is described has it", remedy)


def _home(task: Any, options: TaoOptions) -> tuple[str, ...]:
    """The task's own pool, where its author chose it and asks for decisions that look at it."""
    from airflow.configuration import conf

    if not (options.deferrable or options.reroutable) or task.queue == conf.get("operators", "default_queue"):
        return ()
    return (pool_of(task.queue, task.executor, executors()),)


def _unknown(kind: str, names: Iterable[str], pools: Iterable[WorkerPool]) -> list[str]:
    known = _known(kind, pools)
    return [name for name in names if name not in known]


def _known(kind: str, pools: Iterable[WorkerPool]) -> set[str]:
    if kind == "zone":
        return {pool.zone for pool in pools if pool.zone is not None}
    if kind == "capability":
        return {name for pool in pools for name in pool.capabilities}
    return {pool.pool_id for pool in pools}


@lru_cache(maxsize=1)
def _settings() -> ConfigWatcher:
    from airflow_plugin.settings import watcher

    return watcher()


def _described() -> tuple[WorkerPool, ...]:
    """The pools of the settings' file; none where they cannot be read, which is no author's mistake."""
    from tao_flows.pools import load_pools

    try:
        path = _settings().get().config.pools
        return () if path is None else load_pools(path)
    except ConfigError:
        return ()


def _in_ledger() -> tuple[WorkerPool, ...] | None:
    """The pools of the ledger; None where they cannot be read."""
    from tao_flows.ledger import open_ledger
    from tao_flows.ledger.pools import read_pools

    try:
        ledger = open_ledger(_settings().get().config.ledger)
        try:
            with ledger.transaction(write=False) as tx:
                return read_pools(tx)
        finally:
            ledger.close()
    except TaoError:
        return None
