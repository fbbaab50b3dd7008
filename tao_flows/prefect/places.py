"""Pools in Prefect's words: a work pool, or one queue of it.

A pool's id is the work pool's name, such as ``green``; ``green/fast`` is a queue of it other than ``default``. A task
worker's pool has an id of its own choosing.
"""

from __future__ import annotations

from typing import Any, Final

DEFAULT_QUEUE: Final = "default"


def pool_id(work_pool_name: str | None, work_queue_name: str | None) -> str:
    """The id of a pool; empty for what belongs to no work pool."""
    if not work_pool_name:
        return ""
    return work_pool_name if work_queue_name in {None, "", DEFAULT_QUEUE} else f"{work_pool_name}/{work_queue_name}"


def pool_of(of: Any) -> str:
    """The pool of a deployment or a flow run; empty where it has none."""
    return pool_id(getattr(of, "work_pool_name", None), getattr(of, "work_queue_name", None))


def work_pool_and_queue(pool: str) -> tuple[str, str]:
    """The work pool and the queue of a pool's id. Neither name can hold a slash."""
    name, _, queue = pool.partition("/")
    return name, queue or DEFAULT_QUEUE
