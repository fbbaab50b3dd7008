"""The signals as they were: what came true, before that what was forecast, as one curve a zone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.records import DecisionRecord
from tao_flows.report.carbon import Curve, Origin, Place, Step
from tao_flows.report.rows import finite
from tao_flows.signals.model import CARBON, Issue, Signal, Steps, typical_length_ns
from tao_flows.signals.times import ns_from_iso
from tao_flows.units import NS_PER_S, S_PER_H

if TYPE_CHECKING:
    from tao_flows.pools import WorkerPool
    from tao_flows.signals.board import Past, SignalBoard

_H_NS: Final = S_PER_H * NS_PER_S
_DAY_NS: Final = 24 * _H_NS
_FOR_EVER_NS: Final = 2**62
_MOST_ISSUES: Final = 64
"""Of the forecasts that decisions hold, the newest."""


def read_curves(
    board: SignalBoard | None,
    signal: Signal,
    zones: Collection[str],
    begin_ns: int,
    end_ns: int,
    decisions: Sequence[DecisionRecord] = (),
) -> tuple[dict[str, Curve], tuple[TaoError, ...]]:
    """The curve of each zone of which anything is known from a beginning to an end, and what could not be read.

    What came true counts before what was forecast, and that before a figure in the settings: it may have been set since.

    Args:
        board: the configured signals; None: only what decisions were taken on is known.
        signal: which.
        zones: as pools name them.
        begin_ns: nanoseconds since the epoch.
        end_ns: likewise.
        decisions: what they were taken on stands in where nothing else is kept.
    """
    problems: tuple[TaoError, ...] = ()
    kept: Mapping[str, Past] = {}
    if board is not None:
        try:
            kept = board.past(signal, zones, begin_ns - _DAY_NS)
        except LedgerError as error:
            problems = (error,)
    curves = {}
    for zone in sorted(zones):
        past = kept.get(zone)
        fixed = None if past is None else past.fixed
        layers = [] if past is None else [held(past.actuals, Origin.ACTUAL), issued(past.issues)]
        if not covers(join(layers), begin_ns, end_ns):
            layers.append(issued(_issues(decisions, signal, zone), Origin.FORECAST if fixed is None else Origin.SET))
        if fixed is not None:
            # Last, for it may have been another figure when the work ran.
            layers.append((Step(-_FOR_EVER_NS, _FOR_EVER_NS, fixed, Origin.SET),))
        if steps := join(layers):
            unit = past.spec.read_as if past is not None else "g/kWh" if signal == CARBON else "a kWh"
            curves[zone] = Curve(zone, unit, "the decisions' own record" if past is None else past.source, steps)
    return curves, problems


def places_of(pools: Iterable[WorkerPool], decisions: Iterable[DecisionRecord] = ()) -> dict[str, Place]:
    """The zone and PUE of pools: as a decision had them, else as they are described now."""
    places = {pool.pool_id: Place(pool.zone, pool.pue) for pool in pools}
    for decision in decisions:
        for entry in _list(decision.request.get("pools")):
            if isinstance(entry, Mapping) and isinstance(zone := entry.get("zone"), str):
                pue = entry.get("pue")
                is_number = isinstance(pue, (int, float)) and not isinstance(pue, bool)
                places[str(entry.get("pool_id"))] = Place(zone, float(pue) if is_number and pue else 1.0)
    return places


def held(values: Steps, origin: Origin) -> tuple[Step, ...]:
    """Values as steps, each until the next, and no longer than they usually last: in a gap nothing came true."""
    if not values:
        return ()
    spacings = [after[0] - before[0] for before, after in pairwise(values)]
    usual_ns = round(median(spacings)) if spacings else _H_NS
    ends = (*(start for start, _ in values[1:]), _FOR_EVER_NS)
    return tuple(
        Step(start, min(end, start + usual_ns), value, origin) for (start, value), end in zip(values, ends, strict=True)
    )


def issued(issues: Sequence[Issue], origin: Origin = Origin.FORECAST) -> tuple[Step, ...]:
    """Of forecasts, each as long as it was the latest."""
    if not issues:
        return ()
    found: list[Step] = []
    ends = (*(issue.issued_wall_ns for issue in issues[1:]), _FOR_EVER_NS)
    for number, (issue, until_ns) in enumerate(zip(issues, ends, strict=True)):
        # The first speaks for the time before it too: its first step may have begun a while before it was issued.
        since_ns = issue.issued_wall_ns if number else -_FOR_EVER_NS
        steps, last_ns = issue.steps, typical_length_ns(tuple(start for start, _ in issue.steps[-2:])) or _H_NS
        first = max(0, bisect_right(steps, since_ns, key=_start) - 1)
        for index in range(first, bisect_left(steps, until_ns, key=_start)):
            start, value = steps[index]
            ends_ns = steps[index + 1][0] if index + 1 < len(steps) else start + last_ns
            if origin is Origin.SET and index + 1 == len(steps):
                ends_ns = _FOR_EVER_NS  # a figure by hand holds without end
            if max(start, since_ns) < min(ends_ns, until_ns):
                found.append(Step(max(start, since_ns), min(ends_ns, until_ns), value, origin))
    return tuple(found)


def join(layers: Sequence[Sequence[Step]]) -> tuple[Step, ...]:
    """One curve of several: at any time, the first layer that says something of it."""
    layers = [layer for layer in layers if layer]
    if len(layers) < 2:
        return tuple(layers[0]) if layers else ()
    starts = [[step.start_ns for step in layer] for layer in layers]
    edges = sorted({edge for layer in layers for step in layer for edge in (step.start_ns, step.end_ns)})
    joined: list[Step] = []
    for begin, end in pairwise(edges):
        step = next(filter(None, (_at(*each, begin) for each in zip(layers, starts, strict=True))), None)
        if step is None:
            continue
        last = joined[-1] if joined else None
        if last and (last.end_ns, last.value, last.origin) == (begin, step.value, step.origin):
            joined[-1] = Step(last.start_ns, end, last.value, last.origin)
        else:
            joined.append(Step(begin, end, step.value, step.origin))
    return tuple(joined)


def covers(steps: Sequence[Step], begin_ns: int, end_ns: int) -> bool:
    """Whether steps hold all of a time."""
    at_ns = begin_ns
    for step in steps:
        if step.start_ns > at_ns:
            return False
        at_ns = max(at_ns, step.end_ns)
        if at_ns >= end_ns:
            return True
    return False


def _at(layer: Sequence[Step], starts: Sequence[int], moment_ns: int) -> Step | None:
    index = bisect_right(starts, moment_ns) - 1
    return layer[index] if index >= 0 and moment_ns < layer[index].end_ns else None


def _start(step: tuple[int, float]) -> int:
    return step[0]


def _issues(decisions: Sequence[DecisionRecord], signal: Signal, zone: str) -> tuple[Issue, ...]:
    """What decisions were taken on, in order of time."""
    found: list[Issue] = []
    before: object = None
    for decision in sorted(decisions, key=lambda each: each.decided_wall_ns):
        signals = decision.request.get("signals")
        zones = signals.get(signal) if isinstance(signals, Mapping) else None
        entries = zones.get(zone) if isinstance(zones, Mapping) else None
        if not isinstance(entries, (list, tuple)) or entries == before:
            continue
        before = entries
        if steps := _steps(entries):
            found.append(Issue(decision.decided_wall_ns, steps))
    return tuple(found[-_MOST_ISSUES:])


def _steps(entries: Iterable[Any]) -> Steps:
    steps = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            continue
        value, start = entry.get("value"), entry.get("start")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or finite(value) is None:
            continue
        try:
            steps.append((ns_from_iso(str(start)), float(value)))
        except InputError:
            continue
    return tuple(steps) if all(before[0] < after[0] for before, after in pairwise(steps)) else ()


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()
