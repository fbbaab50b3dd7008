"""Pools of workers in Airflow's words: a queue of an executor that has queues, or an executor that has none.

A pool's id is the queue's name, such as ``green``; ``local`` is the executor that runs tasks beside the scheduler. Where
two executors have queues, ``ALIAS:QUEUE`` says whose: the alias or class name in ``[core] executor``. An executor whose
tasks run in the same place whatever their queue, such as KubernetesExecutor, is one pool of that alias or class name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

LOCAL: Final = "local"
OURS: Final = "airflow_plugin.executor."
_WITHOUT_QUEUES: Final = ("LocalExecutor", "KubernetesExecutor", "EcsExecutor", "BatchExecutor", "LambdaExecutor")


@dataclass(frozen=True, slots=True)
class ExecutorSpec:
    """One entry of ``[core] executor``."""

    alias: str
    """What tasks call it by: its alias, else its class or path as configured."""
    path: str
    """The class's dotted path, or the name that Airflow knows it by."""

    @property
    def is_local(self) -> bool:
        """Whether it runs tasks beside the scheduler, and has no queues."""
        return self.path.rpartition(".")[2].endswith("LocalExecutor")

    @property
    def has_queues(self) -> bool:
        """Whether a task's queue says which of its workers may run it."""
        return not self.path.rpartition(".")[2].endswith(_WITHOUT_QUEUES)

    @property
    def pool(self) -> str:
        """The pool that it is where it has no queues."""
        return LOCAL if self.is_local else self.alias.rpartition(".")[2]

    @property
    def is_ours(self) -> bool:
        """Whether it decides before it hands tasks out."""
        return self.path.startswith(OURS)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task instance is sent."""

    executor: ExecutorSpec
    queue: str | None
    """None: its own stays."""


def parse_executors(configured: str) -> tuple[ExecutorSpec, ...]:
    """The entries of ``[core] executor``, the default first. A team's (``team=...;``) are not told apart."""
    specs = []
    for entry in configured.replace(";", ",").split(","):
        text = entry.partition("=")[2] or entry
        alias, colon, path = text.strip().partition(":")
        if alias:
            specs.append(ExecutorSpec(alias, path if colon else alias))
    return tuple(specs)


@lru_cache(maxsize=1)
def executors() -> tuple[ExecutorSpec, ...]:
    """Those of this deployment."""
    from airflow.configuration import conf

    return parse_executors(conf.get("core", "executor"))


def pool_of(queue: str | None, executor: str | None, specs: Sequence[ExecutorSpec]) -> str:
    """The pool of a task instance.

    Args:
        queue: its queue.
        executor: what it names as its executor; None: the deployment's default.
        specs: the deployment's executors.
    """
    spec = spec_named(executor, specs)
    if spec is None:
        return queue or LOCAL
    if not spec.has_queues:
        return spec.pool
    ambiguous = sum(each.has_queues for each in specs) > 1
    return f"{spec.alias}:{queue}" if ambiguous else queue or LOCAL


def place_of(pool: str, home: ExecutorSpec | None, specs: Sequence[ExecutorSpec]) -> Place | None:
    """Where a pool is; None where this deployment has no executor for it.

    Args:
        pool: its id.
        home: the executor that the task would go to: of several with queues it is the one meant.
        specs: the deployment's executors.
    """
    found = next((each for each in specs if not each.has_queues and each.pool == pool), None)
    if found is not None or pool == LOCAL:
        return None if found is None else Place(found, None)
    alias, colon, queue = pool.partition(":")
    if colon:
        spec = spec_named(alias, specs)
        return None if spec is None or not spec.has_queues else Place(spec, queue)
    with_queues = [each for each in specs if each.has_queues]
    if home in with_queues:
        return Place(home, pool)
    return Place(with_queues[0], pool) if with_queues else None


def spec_named(executor: str | None, specs: Sequence[ExecutorSpec]) -> ExecutorSpec | None:
    """The entry that a task instance means by the name of its executor; None: the deployment's default."""
    if not executor:
        return specs[0] if specs else None
    return next((each for each in specs if executor in {each.alias, each.path, each.path.rpartition(".")[2]}), None)
