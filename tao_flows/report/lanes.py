"""When tries were queued, put off and running: the model behind the time line. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tao_flows.figures import Quality
from tao_flows.records import DecisionRecord, Deferral, RunKey, TaskState
from tao_flows.report.model import RunReport
from tao_flows.report.rows import TaskRow
from tao_flows.report.weigh import latest_start, ready
from tao_flows.units import NS_PER_S

Kind = Literal["queued", "deferred", "between", "running"]

MOST_LANES: Final = 48
"""Tries with a lane of their own; of more, the tries of each task share one."""
WHOLE_RUN: Final = "the whole run"
BINS: Final = 240
"""Spans of time into which a shared lane is cut."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a lane, nanoseconds since the epoch."""

    kind: Kind
    begin_ns: int
    end_ns: int | None
    """None: it lasts."""
    power_w: float | None = None
    """Of all that ran in it."""
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """One try, or all of a task."""

    title: str
    stretches: tuple[Stretch, ...]
    latest_ns: tuple[int, ...] = ()
    """When it had to start at the latest, where it was put off."""
    estimated: bool = False
    """The watts are of a model."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """All lanes, and from when to when they go."""

    lanes: tuple[Lane, ...]
    begin_ns: int
    end_ns: int
    until_ns: int
    """Where what lasts ends so far: the end of the run, or now."""
    most_w: float
    hidden: int = 0
    """Tries in no lane, the cheapest."""


def timeline(
    report: RunReport, decisions: Iterable[DecisionRecord], waiting: Sequence[Deferral], now_ns: int
) -> Timeline:
    """The time line of a run.

    Args:
        report: whose rows it is of.
        decisions: of the run.
        waiting: what of it waits still.
        now_ns: the present, where the line of what lasts ends.
    """
    about: defaultdict[RunKey, list[DecisionRecord]] = defaultdict(list)
    for decision in sorted(decisions, key=lambda each: each.decided_wall_ns):
        about[decision.key].append(decision)
    open_ = {deferral.key: deferral for deferral in waiting}
    whole = _whole([each for key, made in about.items() if not key.task for each in made], report.run.started_wall_ns)
    lanes = [] if whole is None else [(WHOLE_RUN, whole)]
    lanes += [(row.label, _lane(row, about[row.key], open_.pop(row.key, None))) for row in report.tasks]
    lanes += [(deferral.key.task or WHOLE_RUN, _waiting(deferral)) for deferral in open_.values()]
    stretches = [stretch for _, lane in lanes for stretch in lane.stretches]
    begins = [report.run.started_wall_ns, *(each.begin_ns for each in stretches)]
    ends = [each.end_ns for each in stretches if each.end_ns is not None]
    ends += [report.run.ended_wall_ns] if report.run.ended_wall_ns is not None else []
    lasts = waiting or (report.run.ended_wall_ns is None and any(each.end_ns is None for each in stretches))
    ends += [now_ns] if lasts else []
    begin = min(begins)
    until = max([begin + 1, *ends, *(each.begin_ns for each in stretches)])
    end = max([until, *(deferral.latest_wall_ns for deferral in waiting)])
    shown = [lane for _, lane in sorted(lanes, key=lambda each: each[1].stretches[0].begin_ns)]
    hidden = 0
    if len(lanes) > MOST_LANES:
        shared = _shared(lanes, begin, until)
        shown, hidden = shared[:MOST_LANES], max(0, len(shared) - MOST_LANES)
    powers = [each.power_w for lane in shown for each in lane.stretches if each.power_w is not None]
    return Timeline(tuple(shown), begin, end, until, max(powers, default=0.0), hidden)


def _lane(row: TaskRow, decisions: Sequence[DecisionRecord], open_: Deferral | None) -> Lane:
    running = [
        Stretch("running", span.started_wall_ns, span.ended_wall_ns, span.power_w, str(row.state)) for span in row.spans
    ]
    deferred = _deferred(decisions, row, open_)
    gaps: list[Stretch] = []
    ready_ns = min((at for at in map(ready, decisions) if at is not None), default=row.started_wall_ns)
    gaps += _without(Stretch("queued", ready_ns, row.started_wall_ns), deferred)
    for before, after in zip(row.spans, row.spans[1:], strict=False):
        if before.ended_wall_ns is not None:
            gaps += _without(Stretch("between", before.ended_wall_ns, after.started_wall_ns), deferred)
    last = row.spans[-1].ended_wall_ns
    if row.state is TaskState.DEFERRED and last is not None:
        gaps += [Stretch("between", last, None)]
    latest = [at for each in decisions if _puts_off(each) and (at := latest_start(each)) is not None]
    stretches = sorted([*gaps, *deferred, *running], key=lambda each: each.begin_ns)
    return Lane(row.title, tuple(stretches), tuple(latest[-1:]), row.energy.quality is Quality.ESTIMATED)


def _whole(decisions: Sequence[DecisionRecord], started_ns: int) -> Lane | None:
    """A run that waited before any of it was started; None where it did not."""
    put_off = [each for each in decisions if _puts_off(each) and each.decided_wall_ns < started_ns]
    if not put_off:
        return None
    latest = [at for each in put_off if (at := latest_start(each)) is not None]
    stretch = Stretch("deferred", put_off[0].decided_wall_ns, started_ns, tip=put_off[-1].reason)
    return Lane(WHOLE_RUN, (stretch,), tuple(latest[-1:]))


def _waiting(deferral: Deferral) -> Lane:
    stretch = Stretch("deferred", deferral.ready_wall_ns, None, tip=deferral.reason)
    return Lane(deferral.key.task or WHOLE_RUN, (stretch,), (deferral.latest_wall_ns,))


def _puts_off(decision: DecisionRecord) -> bool:
    return decision.action == "defer" and decision.enforced


def _deferred(decisions: Sequence[DecisionRecord], row: TaskRow, open_: Deferral | None) -> list[Stretch]:
    starts = [span.started_wall_ns for span in row.spans]
    found: list[Stretch] = []
    for position, decision in enumerate(decisions):
        begin = decision.decided_wall_ns
        if not _puts_off(decision) or (found and (found[-1].end_ns is None or begin < found[-1].end_ns)):
            continue  # the plan was only moved
        released = [each.decided_wall_ns for each in decisions[position:] if each.action == "release"]
        ends = [at for at in (*released, *starts) if at >= begin]
        if ends or open_ is not None:
            found.append(Stretch("deferred", begin, min(ends, default=None), tip=decision.reason))
    return found


def _without(stretch: Stretch, others: Sequence[Stretch]) -> list[Stretch]:
    """A stretch less what others take of it; moments are left out."""
    parts, at = [], stretch.begin_ns
    for other in others:
        if stretch.end_ns is not None and at < min(other.begin_ns, stretch.end_ns):
            parts.append(Stretch(stretch.kind, at, min(other.begin_ns, stretch.end_ns)))
        at = max(at, other.end_ns if other.end_ns is not None else stretch.end_ns or at)
    if stretch.end_ns is not None and at < stretch.end_ns:
        parts.append(Stretch(stretch.kind, at, stretch.end_ns))
    return parts


def _shared(lanes: Sequence[tuple[str, Lane]], begin_ns: int, end_ns: int) -> list[Lane]:
    by_label: defaultdict[str, list[Lane]] = defaultdict(list)
    for label, lane in lanes:
        by_label[label].append(lane)
    shared = [
        members[0] if len(members) == 1 else _merged(label, members, begin_ns, end_ns)
        for label, members in by_label.items()
    ]
    return sorted(shared, key=lambda lane: lane.stretches[0].begin_ns)


def _merged(label: str, lanes: Sequence[Lane], begin_ns: int, end_ns: int) -> Lane:
    """Many tries in one lane: the watts of all that ran, by span of time."""
    width_ns = max(1, -(-(end_ns - begin_ns) // BINS))
    joules = [0.0] * BINS
    kinds: list[Kind | None] = [None] * BINS
    known = [False] * BINS
    order: Mapping[Kind | None, int] = {None: 0, "between": 1, "queued": 2, "deferred": 3, "running": 4}
    for stretch in (each for lane in lanes for each in lane.stretches):
        until_ns = end_ns if stretch.end_ns is None else stretch.end_ns
        first, last = ((at - begin_ns) // width_ns for at in (stretch.begin_ns, max(stretch.begin_ns, until_ns - 1)))
        for index in range(max(0, first), min(BINS - 1, last) + 1):
            left_ns = begin_ns + index * width_ns
            if order[stretch.kind] > order[kinds[index]]:
                kinds[index] = stretch.kind
            if stretch.power_w is not None:
                held_ns = min(until_ns, left_ns + width_ns) - max(stretch.begin_ns, left_ns)
                joules[index] += stretch.power_w * held_ns / NS_PER_S
                known[index] = True
    stretches: list[Stretch] = []
    for index, kind in enumerate(kinds):
        if kind is None:
            continue
        left_ns = begin_ns + index * width_ns
        power_w = joules[index] / (width_ns / NS_PER_S) if kind == "running" and known[index] else None
        last_one = stretches[-1] if stretches else None
        if last_one and kind != "running" and (last_one.kind, last_one.end_ns) == (kind, left_ns):
            stretches[-1] = Stretch(kind, last_one.begin_ns, left_ns + width_ns)
        else:
            stretches.append(Stretch(kind, left_ns, left_ns + width_ns, power_w))
    latest = tuple(sorted({at for lane in lanes for at in lane.latest_ns})[:1])
    title = f"{label} ×{len(lanes):,}"
    return Lane(title, tuple(stretches), latest, any(lane.estimated for lane in lanes))
