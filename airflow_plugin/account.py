"""The host of a scheduler, while DAG runs are open on it: what Airflow's own processes take, and what it draws at rest.

From one run's start or end to the next is a slot. Overhead and idle of a slot are shared evenly among the runs that are
open in it, so that what all runs are told sums to what the host had. Processes of tasks and their supervisors are not
in here: each writes an account of its own, and the two kinds add up to the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tao_flows.attribution import even_part, part_of_host
from tao_flows.enginecpu import EngineClock
from tao_flows.figures import Account, CpuTime
from tao_flows.ledger.base import RunRef
from tao_flows.meter import TaskUse, Window
from tao_flows.records import HostAccount
from tao_flows.runtime import Tao

_ENGINES: Final = (
    "airflow scheduler",
    "airflow api-server",
    "airflow triggerer",
    "airflow dag-processor",
    "airflow standalone",
    "airflow serve-logs",
)
_FORKING: Final = ("airflow dag-processor",)
_NO_CODE: Final = CpuTime(0.0, "none", covers_children=True)


@dataclass
class Share:
    """One run's part of the host's slots so far."""

    window: str
    slots: list[Account] = field(default_factory=list)
    """The whole host's, of each slot."""
    overhead_uj: int | None = None
    idle_uj: int | None = None
    allocated_idle_uj: int | None = None
    rest_uj: int | None = None
    """What was neither: that of task processes, of whatever runs, and of all else on the host."""
    alone: bool = True
    """No other run was open at any time."""
    wall_s: float = 0.0
    overhead_cpu_s: float = 0.0
    events: dict[str, None] = field(default_factory=dict)

    def add(self, slot: HostAccount, sharers: int, position: int) -> None:
        """Takes in a slot that it shares with others."""
        host = slot.account
        self.slots = [Account.total((*self.slots, host))]
        self.overhead_uj = _plus(self.overhead_uj, even_part(host.overhead_uj, sharers, position))
        self.idle_uj = _plus(self.idle_uj, even_part(host.idle_uj, sharers, position))
        self.allocated_idle_uj = _plus(self.allocated_idle_uj, even_part(host.allocated_idle_uj, sharers, position))
        self.rest_uj = _plus(self.rest_uj, host.unattributed_uj)
        self.alone = self.alone and sharers == 1
        self.wall_s += slot.wall_s
        self.overhead_cpu_s += (slot.overhead_cpu_s or 0.0) / sharers
        self.events.update(dict.fromkeys(slot.events))

    def account(self, host: str, tasks: Sequence[HostAccount] = (), *, tasks_known: bool = False) -> HostAccount:
        """The run's part of the host, without what its task processes have written themselves.

        What no task used is unattributed where the run was alone; of several at once it cannot be said whose it is.

        Args:
            host: its name.
            tasks: the accounts of the run's task processes on it.
            tasks_known: whether the energy of any of the run's tasks is known: else nothing here may make it look so.
        """
        whole, unattributed_uj = Account.total(self.slots), None
        if self.alone and self.rest_uj is not None:
            used = [uj for each in tasks for uj in (each.account.tasks_uj, each.account.overhead_uj) if uj is not None]
            unattributed_uj = max(0, self.rest_uj - sum(used))
        account = part_of_host(
            whole,
            # No code of the user's runs in Airflow's own processes.
            tasks_uj=0 if tasks_known else None,
            overhead_uj=self.overhead_uj,
            idle_uj=self.idle_uj,
            allocated_idle_uj=self.allocated_idle_uj,
            unattributed_uj=unattributed_uj,
        )
        events = tuple(self.events)
        return HostAccount(host, account, self.wall_s, self.window, events, overhead_cpu_s=self.overhead_cpu_s)


class NodeAccount:
    """The host's slots and who shares them. For one thread."""

    def __init__(self, tao: Tao) -> None:
        self._tao = tao
        self._shares: dict[RunRef, Share] = {}
        self._window: Window | None = None
        self._clock: EngineClock | None = None
        self._before_s = 0.0

    def __len__(self) -> int:
        return len(self._shares)

    def open(self, run: RunRef) -> None:
        """A run begins; one that is open already goes on."""
        if run in self._shares:
            return
        self.end_slot(go_on=True)
        self._shares[run] = Share(f"{self._tao.segment.id}/scheduler/{self._tao.clock.wall_ns()}")

    def close(self, run: RunRef) -> Share | None:
        """A run ends: its part; None where it was not open here."""
        if run not in self._shares:
            return None
        self.end_slot(go_on=len(self._shares) > 1)
        return self._shares.pop(run)

    def shares(self) -> dict[RunRef, Share]:
        """What each open run has so far."""
        return dict(self._shares)

    def end_slot(self, *, go_on: bool) -> None:
        """Shares out what has been read since the last slot, and begins another."""
        tao, window = self._tao, self._window
        if self._clock is None and go_on:
            self._clock = EngineClock(_ENGINES, forking=_FORKING, proc_root=tao.config.proc_root)
        if window is not None and self._clock is not None:
            now_s = self._clock.read_s()
            spent_s, self._before_s = now_s - self._before_s, now_s
            ended = tao.meter.stop(window, cpu_s=0.0)
            self._window = tao.meter.begin("scheduler", enclosing=True, party="process") if go_on else None
            host = tao.meter.work_out(window, ended, TaskUse(_NO_CODE, overhead_cpu_s=spent_s, resident_bytes=0))
            slot = HostAccount("", host.account, host.wall_s, "", host.events, overhead_cpu_s=spent_s)
            for position, share in enumerate(self._shares.values()):
                share.add(slot, len(self._shares), position)
        elif go_on:
            self._window = tao.meter.begin("scheduler", enclosing=True, party="process")
        if not go_on:
            self._clock, self._before_s = None, 0.0


def _plus(so_far: int | None, more: int | None) -> int | None:
    """The sum of what is known."""
    return so_far if more is None else (so_far or 0) + more
