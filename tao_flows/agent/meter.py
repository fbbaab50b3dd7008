"""The meter of a process whose host has a node agent: counters and CPU time are the agent's, the rest is its own."""

from __future__ import annotations

import threading
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Final

from tao_flows.agent.client import AgentClient, Pending, Remote
from tao_flows.agent.told import completed, incomplete
from tao_flows.agent.wire import AgentFigure
from tao_flows.errors import SourceError
from tao_flows.figures import AGENT_PENDING, CpuTime, Measurement
from tao_flows.meter import Ended, Meter, PartyKind, TaskUse, Window
from tao_flows.telemetry.base import Domain
from tao_flows.telemetry.discover import Counted
from tao_flows.telemetry.threads import native_threads
from tao_flows.units import NS_PER_S, s_from_ns

AT_ONCE_S: Final = 0.25
"""How long a client that is answered at once waits for a figure where it should not wait."""
_COUNTED_BY_CALLER: Final = ("steps", "process", "self")


class AgentMeter(Meter):
    """A ``Meter`` whose windows are open at a node agent as well, and whose figures are the agent's where it has them.

    Beginning a window takes half a second longer at most, ending it never waits, and its figure is waited for until
    three seconds after its end. Without the agent's figure there is what a ``Meter`` of the same sources has, with the
    reason among its events: AGENT_LOST, AGENT_LATE, or the agent's own code.

    Args:
        client: the agent.
        of_agent: what the agent's counters are used for; its CPU time always is.
        parts: the arguments of ``Meter``, with energy sources of what the agent does not count.
    """

    def __init__(self, client: AgentClient, of_agent: AbstractSet[Counted], *parts: Any) -> None:
        super().__init__(*parts)
        self._client = client
        self._of_agent = of_agent

    @property
    def domains(self) -> tuple[Domain, ...]:
        """What is read, by the agent and here."""
        return (*self._agents_domains, *super().domains)

    @property
    def _agents_domains(self) -> tuple[Domain, ...]:
        of_agent = self._of_agent
        domains = self._client.about.domains
        return tuple(domain for domain in domains if ("gpu" if domain.kind == "gpu" else "cpu") in of_agent)

    def begin(
        self, label: str = "", *, enclosing: bool = False, party: PartyKind = "steps", pid: int | None = None
    ) -> Window:
        window = super().begin(label, enclosing=enclosing)
        tid = threading.get_native_id() if party in {"thread", "steps"} else None
        remote: Remote | str
        try:
            pool = tuple(native_threads()) if party == "thread" else ()
            remote = self._client.begin(party, label, pid=pid, tid=tid, pool=pool)
        except SourceError as error:
            remote = error.code
        return window._replace(remote=remote)

    def stop(self, window: Window, *, keep_open: bool = False, cpu_s: float | None = None) -> Ended:
        told = window.remote
        if isinstance(told, Remote):
            counted = told.kind in _COUNTED_BY_CALLER and cpu_s is not None
            cpu_ns = round(max(0.0, cpu_s or 0.0) * NS_PER_S) if counted else None
            told = self._client.end(told, cpu_ns=cpu_ns, keep=keep_open)
        return super().stop(window, keep_open=keep_open)._replace(remote=told)

    def work_out(self, window: Window, ended: Ended, use: TaskUse, *, wait: bool = True) -> Measurement:
        told, remote = ended.remote, window.remote
        if not isinstance(told, Pending) or not isinstance(remote, Remote):
            return self._without(window, ended, use, str(told))
        soon_s = AT_ONCE_S if self._client.about.privileged else 0.0
        figure = told.result(None if wait else soon_s)
        if figure is None:
            code = AGENT_PENDING if not wait and told.answer is None else told.code
            return self._without(window, ended, use, code)
        try:
            return self._with(window, ended, use, _as_counted(figure, remote, use.cpu))
        except (TypeError, ValueError):
            return self._without(window, ended, use, "AGENT_BAD_ANSWER")

    def close(self) -> None:
        super().close()
        self._client.close()

    def _with(self, window: Window, ended: Ended, use: TaskUse, figure: AgentFigure) -> Measurement:
        use = replace(use, cpu=_better(use.cpu, figure))
        if figure.overhead_cpu_ns is not None:
            use = replace(use, overhead_cpu_s=s_from_ns(figure.overhead_cpu_ns))
        ours = super().work_out(window, ended, use)
        measured = completed(ours, figure, {domain.id: domain for domain in self._agents_domains})
        return replace(measured, baseline=self._client.about.baseline or ours.baseline)

    def _without(self, window: Window, ended: Ended, use: TaskUse, code: str) -> Measurement:
        ours = super().work_out(window, ended, use)
        return incomplete(ours, code, of_energy=any(domain.counted for domain in self._agents_domains))


def _as_counted(figure: AgentFigure, remote: Remote, cpu: CpuTime) -> AgentFigure:
    """The figure with what its caller counts: that CPU time is the caller's own, and without it no joules are known."""
    if remote.kind not in _COUNTED_BY_CALLER:
        return figure
    figure = replace(figure, cpu_ns=None)
    if cpu.cpu_s is not None:
        return figure
    return replace(figure, domains=tuple(replace(each, task_uj=None) for each in figure.domains))


def _better(ours: CpuTime, figure: AgentFigure) -> CpuTime:
    """The agent's CPU time, unless it can have missed what ours cannot."""
    if figure.cpu_ns is None:
        return ours
    lower_bound = figure.lower_bound or figure.gap_ns > 0
    if lower_bound and ours.cpu_s is not None and not ours.lower_bound:
        return ours
    return CpuTime(s_from_ns(figure.cpu_ns), figure.cpu_source, covers_children=True, lower_bound=lower_bound)
