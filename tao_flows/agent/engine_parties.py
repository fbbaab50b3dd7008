"""Engines' processes that no client speaks for, and the agent's own: counted as overhead."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from tao_flows.agent import peer as peers
from tao_flows.agent.sampler import Sampler
from tao_flows.agent.stamp import Usage
from tao_flows.engines import USERS_CODE, EngineProcess
from tao_flows.errors import SourceError
from tao_flows.node_account import Role

MOST: Final = 1_024


class EngineParties:
    """Keeps one party for each such process.

    Args:
        sampler: counts for them.
        proc_root: where the kernel shows processes.

    Raises:
        SourceError: not even this process can be counted.
    """

    def __init__(self, sampler: Sampler, proc_root: Path) -> None:
        self._sampler = sampler
        self._proc_root = proc_root
        self.ended = Usage((0,) * len(sampler.domains))
        """What those that are gone had used as overhead."""
        own = sampler.open(peers.threads_of(os.getpid(), proc_root), Role.OVERHEAD)
        self._parties: dict[tuple[int, int], tuple[int, str]] = {(os.getpid(), 0): (own, "")}

    def __len__(self) -> int:
        return len(self._parties) - 1

    def find(self, process: tuple[int, int]) -> int | None:
        """The party of a process, named by its number and start; None for none."""
        found = self._parties.get(process)
        return None if found is None else found[0]

    def found(self, process: EngineProcess) -> None:
        """Counts a process from now on.

        One that runs the user's code too is watched and nobody's: only a client in it could tell the two apart. Else
        it would stay in the party of the engine's process that it was forked from.
        """
        key = (process.pid, process.start_ticks)
        if key in self._parties:
            # It became another part of the engine: where that was by exec, it has left its party.
            self._sampler.sample()
            self._close(key)
        if len(self._parties) <= MOST:
            with contextlib.suppress(SourceError):  # it has ended meanwhile, or cannot be counted: it is nobody's
                threads = peers.threads_of(process.pid, self._proc_root)
                number = self._sampler.open(threads, _role(process.engine), stays_over_exec=False)
                self._parties[key] = (number, process.engine)

    def forget_ended(self) -> None:
        """Gives back the parties of processes that are gone."""
        gone = [key for key in self._parties if not os.path.exists(self._proc_root / str(key[0]))]
        if gone:
            self._sampler.sample()
        for key in gone:
            self._close(key)

    def used(self) -> Usage:
        """What they have used as overhead, those that are gone too."""
        total = self.ended
        for number, engine in self._parties.values():
            if _role(engine) is Role.OVERHEAD:
                total = total.plus(Usage.of(self._sampler.account.parties[number]))
        return total

    def _close(self, key: tuple[int, int]) -> None:
        number, engine = self._parties.pop(key)
        self._sampler.remove(number)
        used = Usage.of(self._sampler.close(number))
        if _role(engine) is Role.OVERHEAD:
            self.ended = self.ended.plus(used)


def _role(engine: str) -> Role:
    return Role.NONE if engine in USERS_CODE else Role.OVERHEAD
