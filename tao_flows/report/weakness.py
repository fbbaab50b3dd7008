"""Why the figures of a run are weak, host by host, and what to do about it in ``doctor``'s words."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tao_flows.calibration import HOW
from tao_flows.clock import SystemClock
from tao_flows.figures import Quality
from tao_flows.records import Diagnosis, HostAccount, TaskRecord, TaskState
from tao_flows.report.text import count
from tao_flows.telemetry.discover import discover

_DOCTOR: Final = "on this host run: tao-flows doctor, which names what is missing and how to get it"
_AGENT: Final = "run the node agent on this host (tao-flows agent): it sees every process, and outlives each of them"


@dataclass(frozen=True, slots=True)
class Weakness:
    """One reason."""

    host: str
    what: str
    remedy: str


def weaknesses(
    tasks: Sequence[TaskRecord], accounts: Sequence[HostAccount], said: Mapping[str, Sequence[Diagnosis]]
) -> tuple[Weakness, ...]:
    """What weakens the figures, by host.

    Args:
        tasks: of the run.
        accounts: of its hosts.
        said: by host, what ``doctor`` says of it.
    """
    by_host: defaultdict[str, list[TaskRecord]] = defaultdict(list)
    for record in tasks:
        by_host[record.segment.host].append(record)
    open_idle = {a.host for a in accounts if a.account.counter_uj is not None and a.account.idle_uj is None}
    found: list[Weakness] = []
    for host in sorted({*by_host, *open_idle}):
        found += _of_tasks(host, by_host[host], said.get(host, ()))
        if host in open_idle:
            found.append(Weakness(host, "its power at rest is not calibrated: tasks carry a part of it", HOW))
    return tuple(found)


def diagnoses_here(tasks: Sequence[TaskRecord]) -> dict[str, tuple[Diagnosis, ...]]:
    """What ``doctor`` says of this host's energy sources, if an estimate in the run was made here."""
    here = os.uname().nodename
    if not any(record.segment.host == here and _is_estimated(record) for record in tasks):
        return {}
    discovery = discover(SystemClock())
    for source in discovery.sources:
        source.close()
    return {here: discovery.diagnoses}


def _of_tasks(host: str, records: Sequence[TaskRecord], said: Sequence[Diagnosis]) -> Iterator[Weakness]:
    estimated = sum(map(_is_estimated, records))
    if estimated:
        # Of what is rejected, what could be had: a GPU that is not there is no reason.
        denied = next((each for each in said if each.status != "ready" and each.id == "rapl"), None)
        why = "no counter was read" if denied is None else denied.summary
        remedy = _DOCTOR if denied is None else denied.remedy
        yield Weakness(host, f"{count(estimated, 'try is', 'tries are')} estimated: {why}", remedy)
    bounded = sum(r.measurement is not None and r.measurement.cpu.lower_bound for r in records)
    if bounded:
        said_of = count(bounded, "try", "tries")
        yield Weakness(
            host, f"CPU seconds of {said_of} are a lower bound: short processes can have been missed", _AGENT
        )
    lost = sum(record.state is TaskState.LOST for record in records)
    if lost:
        yield Weakness(host, f"{count(lost, 'try was', 'tries were')} killed: what they used is unknown", _AGENT)
    pending = sum(record.measurement is not None and record.measurement.pending for record in records)
    if pending:
        yield Weakness(host, f"{count(pending, 'try waits', 'tries wait')} for the node agent's figures", "look again")
    unread = sum(record.measurement is not None and record.measurement.energy.value_uj is None for record in records)
    if unread - pending > 0:
        yield Weakness(host, f"{count(unread - pending, 'try has', 'tries have')} no reading at all", _DOCTOR)


def _is_estimated(record: TaskRecord) -> bool:
    measurement = record.measurement
    return measurement is not None and measurement.energy.quality is Quality.ESTIMATED
