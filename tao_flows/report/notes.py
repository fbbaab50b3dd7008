"""Why a report's figures are as weak or as strong as they are, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from tao_flows.figures import Figure, Measurement, Quality
from tao_flows.records import HostAccount, TaskRecord, TaskState
from tao_flows.report.rows import method_of
from tao_flows.report.text import count, listed, percent

_DISAGREEMENT: Final = 0.01
"""Relative difference between the account's line and the sum of its parts from which it is worth a sentence."""


def notes_of(tasks: Sequence[TaskRecord], energy: Figure, accounts: Sequence[HostAccount]) -> tuple[str, ...]:
    """The remarks a reader needs before trusting the figures, the weightiest first."""
    measurements = [record.measurement for record in tasks if record.measurement is not None]
    return tuple(
        note
        for note in (
            _unfinished(tasks, TaskState.LOST, "lost (the process is gone and left no end)"),
            _unfinished(tasks, TaskState.RUNNING, "still running"),
            _unknown(energy),
            *_estimated(measurements),
            _attributed(measurements),
            _calibrated(tasks),
            _idle(accounts),
            _no_account(tasks, accounts),
            _disagreement(energy, accounts),
            _cpu(measurements),
            _methods(tasks),
            _events(measurements, accounts),
        )
        if note
    )


def _unfinished(tasks: Sequence[TaskRecord], state: TaskState, how: str) -> str:
    number = len({record.key for record in tasks if record.state is state})
    return f"{count(number, 'task')} {_are(number)} {how}: the joules are unknown." if number else ""


def _unknown(energy: Figure) -> str:
    if not energy.unknown_parts:
        return ""
    parts = listed(energy.unknown_parts)
    if energy.value_uj is None:
        return f"Nothing is known of the energy of this run. No reading of: {parts}."
    return f"The total is of what is known ({percent(energy.coverage)} of its parts). No reading of: {parts}."


def _estimated(measurements: Sequence[Measurement]) -> Iterable[str]:
    estimated = [m for m in measurements if m.energy.quality is Quality.ESTIMATED and m.energy.value_uj is not None]
    if not estimated:
        return
    total = Figure.total(m.energy for m in estimated)
    value, low, high = total.value_uj or 0, total.low_uj or 0, total.high_uj or 0
    interval = f", with bounds at {_signed(low / value - 1)} and {_signed(high / value - 1)}" if value else ""
    yield (
        f"Estimated: {len(estimated):,} of {count(len(measurements), 'measurement')} {_are(len(estimated))} from "
        f"a model, not from a counter{interval}."
    )
    for model in dict.fromkeys(m.model for m in estimated if m.model):
        yield f"Model: {model}."


def _attributed(measurements: Sequence[Measurement]) -> str:
    if not any(m.energy.quality is Quality.ATTRIBUTED for m in measurements):
        return ""
    return (
        "Attributed: the host's counter is read, and a task is given its share by CPU time. Equal CPU time is not "
        "equal power (vector units, shared cores: a factor of two to three), and the bounds say so."
    )


def _calibrated(tasks: Sequence[TaskRecord]) -> str:
    baselines = dict.fromkeys(
        f"{record.segment.host} {record.measurement.baseline}"
        for record in tasks
        if record.measurement is not None and record.measurement.baseline is not None
    )
    if not baselines:
        return ""
    return (
        f"Idle is a baseline ({'; '.join(baselines)}) times the window: it is taken off before tasks get their shares, "
        "and its spread is in their bounds."
    )


def _idle(accounts: Sequence[HostAccount]) -> str:
    hosts = dict.fromkeys(a.host for a in accounts if a.account.counter_uj is not None and a.account.idle_uj is None)
    if not hosts:
        return ""
    return (
        f"Idle power is not calibrated on {listed(tuple(hosts))}: active energy is the whole counter, so that tasks "
        "carry a part of what the host draws at rest (tao-flows calibrate measures it)."
    )


def _no_account(tasks: Sequence[TaskRecord], accounts: Sequence[HostAccount]) -> str:
    if accounts or not tasks:
        return ""
    return "No account of the host is there (it is written as the run ends): overhead and idle are unknown."


def _disagreement(energy: Figure, accounts: Sequence[HostAccount]) -> str:
    lines = [a.account.tasks_uj for a in accounts if a.account.tasks_uj is not None]
    if not lines or not energy.value_uj:
        return ""
    bodies_uj = sum(a.body.value_uj or 0 for a in accounts if a.body is not None)
    difference = sum(lines) / (energy.value_uj + bodies_uj) - 1
    if abs(difference) <= _DISAGREEMENT:
        return ""
    return (
        f"The account's line for tasks is {_signed(difference)} from the sum of the tasks and the flow's own code: the "
        "account is of the run's whole window, each task of its own."
    )


def _cpu(measurements: Sequence[Measurement]) -> str:
    bounded = [m for m in measurements if m.cpu.lower_bound]
    if not bounded:
        return ""
    sources = listed(tuple(dict.fromkeys(m.cpu.source for m in bounded)))
    return f"CPU seconds are a lower bound for {count(len(bounded), 'measurement')} ({sources})."


def _methods(tasks: Sequence[TaskRecord]) -> str:
    methods = tuple(sorted({method_of(record) for record in tasks}))
    if len(methods) < 2:
        return ""
    return f"Figures under different method versions stand side by side and do not compare: {listed(methods)}."


def _events(measurements: Sequence[Measurement], accounts: Sequence[HostAccount]) -> str:
    seen: Counter[str] = Counter()
    for m in measurements:
        seen.update({*m.events, *(event for domain in m.domains for event in domain.events)})
    for each in accounts:
        seen.update(set(each.events))
    if not seen:
        return ""
    return f"Events: {listed(tuple(f'{code} ({number:,})' for code, number in seen.most_common()))}."


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _signed(share: float) -> str:
    return f"{share * 100:+.0f} %"
