"""The fleet view from a ledger's sums: pure, and the same for every ledger."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tao_flows.figures import Account, Figure, Quality
from tao_flows.ledger.base import FleetRow
from tao_flows.records import TaskState

Run = tuple[str, str, str, str]
"""Engine, namespace, run id, flow."""


@dataclass
class _Group:
    figures: list[Figure] = field(default_factory=list)
    coverage: float = 0.0
    segments: int = 0
    lost: int = 0
    cpu_s: float = 0.0
    by_quality_uj: Counter[str] = field(default_factory=Counter)
    methods: set[str] = field(default_factory=set)
    runs: set[Run] = field(default_factory=set)
    tasks: int = 0


def fleet_rows(
    figures: Iterable[tuple[Any, ...]], runs: Iterable[tuple[Any, ...]], accounts: Iterable[tuple[Any, ...]]
) -> list[FleetRow]:
    """One row a group, dearest first, unknown last.

    Args:
        figures: (group, task, state, quality, sources as JSON, method, segments, energy, low and high in microjoules,
            coverage, CPU seconds), the last six summed over the segments alike in the first six.
        runs: (group, engine, namespace, run id, flow, tries).
        accounts: (engine, namespace, run id, flow, task microjoules, overhead microjoules) where both are known.
    """
    groups: defaultdict[str, _Group] = defaultdict(_Group)
    for group, *sums in figures:
        _add(groups[group], *sums)
    groups_of: Counter[Run] = Counter()
    for group, *run, tries in runs:
        if group not in groups:  # its first task was written between the two reads
            continue
        engine, namespace, run_id, flow = run
        groups[group].runs.add((engine, namespace, run_id, flow))
        groups[group].tasks += tries
        groups_of[engine, namespace, run_id, flow] += 1
    account_of = {
        (engine, namespace, run_id, flow): Account(tasks_uj=tasks_uj, overhead_uj=overhead_uj)
        for engine, namespace, run_id, flow, tasks_uj, overhead_uj in accounts
    }
    rows = [_row(name, group, groups_of, account_of) for name, group in groups.items()]
    return sorted(rows, key=lambda row: (row.energy.value_uj is None, -(row.energy.value_uj or 0), row.group))


def _add(
    group: _Group,
    task: str,
    state: str,
    quality: str,
    sources: str,
    method: str,
    segments: int,
    energy_uj: int | None,
    low_uj: int | None,
    high_uj: int | None,
    coverage: float,
    cpu_s: float | None,
) -> None:
    group.segments += segments
    group.coverage += coverage
    group.cpu_s += cpu_s or 0.0
    if state == TaskState.LOST.value:
        group.lost += segments
    if energy_uj is None:
        group.figures.append(Figure.unknown(task))
        return
    unknown_parts = (task,) if coverage < segments else ()
    figure = Figure(energy_uj, low_uj, high_uj, Quality(quality), tuple(json.loads(sources)), 1.0, unknown_parts)
    group.figures.append(figure)
    group.by_quality_uj[quality] += energy_uj
    group.methods.add(method)


def _row(name: str, group: _Group, groups_of: Mapping[Run, int], account_of: Mapping[Run, Account]) -> FleetRow:
    # An account is of a whole run: where a run's tasks lie in several groups, none of them can claim its overhead.
    is_whole = all(groups_of[run] == 1 for run in group.runs)
    account = Account.total(account_of[run] for run in group.runs if run in account_of)
    return FleetRow(
        group=name,
        runs=len(group.runs),
        tasks=group.tasks,
        lost=group.lost,
        energy=replace(Figure.total(group.figures), coverage=group.coverage / group.segments),
        by_quality_uj=dict(group.by_quality_uj),
        overhead_share=account.overhead_share if is_whole else None,
        cpu_s=group.cpu_s,
        methods=tuple(sorted(group.methods)),
    )
