"""Threads that a numerical library keeps in a client's process: whoever calls the library, they serve.

They belong to the only task that is open in the process, from its begin on; with several open, to nobody. Which of its
threads are such a library's only the client can tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from tao_flows.agent.sampler import Sampler
from tao_flows.errors import SourceError
from tao_flows.node_account import Role


class PoolThreads:
    """Keeps a party of such threads for each client's process that names any.

    Args:
        sampler: counts for them.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._pools: dict[int, int] = {}
        """By the party of a process."""

    def serve(self, process: int, task: int, tids: Sequence[int], *, alone: bool, pooled: bool) -> None:
        """Puts a process's library threads where they belong now that a task has begun.

        Args:
            process: the party of the process.
            task: the party of the task.
            tids: the library's threads.
            alone: whether the task is the only one in the process.
            pooled: as for the process's party.
        """
        if not tids or not self._sampler.moves_threads:
            return
        pool = self._pools.get(process)
        if pool is None:
            with contextlib.suppress(
                SourceError
            ):  # they have ended, or there is no party left: they stay where they are
                pool = self._pools[process] = self._sampler.open(tids, Role.NONE, pooled=pooled, within=process)
        else:
            self._sampler.add_threads(pool, tids, within=process)
        if pool is not None and alone:
            self._sampler.add_threads(task, tids, within=pool)

    def forget(self, process: int) -> None:
        """Gives back what was kept for a process that has ended."""
        pool = self._pools.pop(process, None)
        if pool is not None:
            self._sampler.remove(pool)
            self._sampler.close(pool)
