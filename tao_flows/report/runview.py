"""What the page of a run shows beside the report itself: grams and money, the trend, the time line, what was weighed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import TaoError
from tao_flows.figures import Figure, joules
from tao_flows.ledger import reads
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.ledger.pools import PoolStore
from tao_flows.ledger.reads import RunEnergy
from tao_flows.ledger.seals import Seal, last_seal
from tao_flows.records import DecisionRecord, Deferral, RunRecord, TaskState
from tao_flows.report.carbon import UNTOLD, Amount, Curve, Move, Place, Use, caused, saved
from tao_flows.report.curves import places_of, read_curves
from tao_flows.report.lanes import Timeline, timeline
from tao_flows.report.model import RunReport, build_report
from tao_flows.report.rows import TaskRow
from tao_flows.report.summary import TaskGroup, dearest, group
from tao_flows.report.weakness import Weakness, diagnoses_here, weaknesses
from tao_flows.report.weigh import Explained, explain, home_pool, ready
from tao_flows.signals.model import CARBON, PRICE, Signal
from tao_flows.units import S_PER_H

if TYPE_CHECKING:
    from tao_flows.pools import WorkerPool
    from tao_flows.signals.board import SignalBoard

TREND_RUNS: Final = 20
_ALIKE: Final = 0.1
"""Of two runs' known shares: up to this difference their known joules compare."""
_FAILED: Final = (TaskState.FAILED, TaskState.CANCELLED, TaskState.LOST)
MOST_BLOCKS: Final = 300
_MEMBERS: Final = 25
"""Rows that are shown of one task; the rest is summed."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The last runs of the same flow."""

    runs: tuple[RunEnergy, ...]
    """Oldest first, this one not among them."""
    median_j: float | None
    """Of those of which as large a part is known as of this one."""
    known: int
    """How many these are."""
    change: float | None
    """This run against the median: 0.1 is 10 % more. None where either is not known."""


@dataclass(frozen=True, slots=True)
class TaskBlock:
    """A task with all its tries: a row that opens."""

    group: TaskGroup
    members: tuple[TaskRow, ...]
    rest: TaskGroup | None
    failed: Figure | None
    """What its tries used that failed or were lost; None where none did."""
    explained: tuple[Explained, ...]


@dataclass(frozen=True, slots=True)
class RunView:
    """A run, as its page shows it."""

    report: RunReport
    carbon: Amount = UNTOLD
    cost: Amount = UNTOLD
    machine_cost: float | None = None
    """Pools' ``price_per_h`` times the hours in which tries ran; None where no pool has one."""
    saved: Amount | None = None
    """Grams; None where nothing was put off or moved."""
    trend: Trend | None = None
    timeline: Timeline | None = None
    line: Curve | None = None
    """The signal behind the time line."""
    blocks: tuple[TaskBlock, ...] = ()
    more: TaskGroup | None = None
    """The cheapest tasks, where there are too many to be shown."""
    weak: tuple[Weakness, ...] = ()
    waiting: tuple[Deferral, ...] = ()
    problems: tuple[TaoError, ...] = ()
    seal: Seal | None = None
    """The run's bundle; None where it was not sealed."""


def read_run_view(
    ledger: Ledger,
    run: RunRecord,
    *,
    board: SignalBoard | None = None,
    pools: Iterable[WorkerPool] = (),
    clock: Clock | None = None,
) -> RunView:
    """The view of one run in a ledger.

    Args:
        ledger: where the records are.
        run: which.
        board: the configured signals; None: only what decisions were taken on is known.
        pools: descriptions that are not in the ledger.
        clock: where the present comes from.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    ref = RunRef(run.engine, run.namespace, run.run_id, run.flow)
    tasks, decisions, accounts = ledger.tasks(ref), ledger.decisions(ref), ledger.accounts(ref)
    report = build_report(run, tasks, decisions, accounts, ledger.incidents(ref))
    waiting = tuple(DeferralStore(ledger).open(ref))
    described = (*PoolStore(ledger).all(), *pools)
    places = places_of(described, decisions)
    now_ns = (clock or SystemClock()).wall_ns()
    line = timeline(report, decisions, waiting, now_ns)
    blocks, more = blocks_of(report, decisions)
    curves: dict[Signal, dict[str, Curve]] = {}
    problems: list[TaoError] = []
    zones = {place.zone for place in places.values() if place.zone is not None}
    for signal in (CARBON, PRICE):
        curves[signal], trouble = read_curves(board, signal, zones, line.begin_ns, line.end_ns, decisions)
        problems += trouble
    uses = [use for row in report.tasks for use in uses_of(row, now_ns)]
    moves = _moves(report, decisions, now_ns)
    return RunView(
        report=report,
        carbon=caused(uses, places, curves[CARBON], "g"),
        cost=caused(uses, places, curves[PRICE], currency(curves[PRICE])),
        machine_cost=_machine_cost(report, described),
        saved=saved(moves, places, curves[CARBON], "g") if moves else None,
        trend=trend_of(report, reads.earlier_runs(ledger, run, TREND_RUNS)),
        timeline=line,
        line=_line(uses, places, curves),
        blocks=blocks,
        more=more,
        weak=weaknesses(tasks, accounts, diagnoses_here(tasks)),
        waiting=waiting,
        problems=tuple(problems),
        seal=last_seal(ledger, ref),
    )


def view_of(report: RunReport) -> RunView:
    """The view of a report alone, without its ledger: no grams, no trend, nothing that was weighed."""
    blocks, more = blocks_of(report, ())
    line = timeline(report, (), (), report.run.started_wall_ns)
    return RunView(report, timeline=line, blocks=blocks, more=more)


def uses_of(row: TaskRow, now_ns: int) -> list[Use]:
    """A try's energy over the time in which it held a process, spread evenly."""
    lengths = [max(0, (span.ended_wall_ns or now_ns) - span.started_wall_ns) for span in row.spans]
    whole_ns, energy = sum(lengths), row.energy
    if energy.value_uj is None:
        return []
    uses = []
    for span, length_ns in zip(row.spans, lengths, strict=True):
        share = length_ns / whole_ns if whole_ns else 1 / len(lengths)
        value, low, high = (round((each or 0) * share) for each in (energy.value_uj, energy.low_uj, energy.high_uj))
        end_ns = span.started_wall_ns + length_ns
        uses.append(Use(row.pool, span.started_wall_ns, end_ns, value, low, high, energy.quality))
    return uses


def trend_of(report: RunReport, runs: Sequence[RunEnergy]) -> Trend:
    """How a run stands among those before it, of which about as large a part is known."""
    coverage = report.energy.coverage
    known = [j for run in runs if abs(run.coverage - coverage) <= _ALIKE and (j := joules(run.energy_uj)) is not None]
    usual = median(known) if known else None
    value_j = report.energy.value_j
    change = value_j / usual - 1 if value_j is not None and usual else None
    return Trend(tuple(runs), usual, len(known), change)


def blocks_of(report: RunReport, decisions: Iterable[DecisionRecord]) -> tuple[tuple[TaskBlock, ...], TaskGroup | None]:
    """The tries by task, in order of the first start; of very many tasks the dearest, and the rest as one group."""
    rows: defaultdict[str, list[TaskRow]] = defaultdict(list)
    for row in report.tasks:
        rows[row.label].append(row)
    shown, rest = set(rows), None
    if len(rows) > MOST_BLOCKS:
        used = {label: sum(row.energy.value_uj or 0 for row in members) for label, members in rows.items()}
        shown = set(sorted(rows, key=lambda label: -used[label])[:MOST_BLOCKS])
        others = [row for label, members in rows.items() if label not in shown for row in members]
        rest = group(f"and {len(rows) - MOST_BLOCKS:,} more", others)
    label_of = {row.key: row.label for row in report.tasks}
    about: defaultdict[str, list[DecisionRecord]] = defaultdict(list)
    for decision in sorted(decisions, key=lambda each: each.decided_wall_ns):
        about[label_of.get(decision.key, decision.key.task)].append(decision)
    return tuple(_block(label, rows[label], about[label]) for label in rows if label in shown), rest


def _block(label: str, rows: Sequence[TaskRow], decisions: Sequence[DecisionRecord]) -> TaskBlock:
    failed = [row.energy for row in rows if row.state in _FAILED]
    shown, rest = dearest(rows, _MEMBERS)
    return TaskBlock(group(label, rows), shown, rest, Figure.total(failed) if failed else None, explain(decisions))


def _moves(report: RunReport, decisions: Sequence[DecisionRecord], now_ns: int) -> list[Move]:
    moved: dict[object, DecisionRecord] = {}
    for decision in decisions:
        if decision.enforced and decision.action in {"defer", "reroute"}:
            moved.setdefault(decision.key, decision)
    moves = []
    for row in report.tasks:
        first = moved.get(row.key)
        if first is None or (ready_ns := ready(first)) is None:
            continue
        # A try in several parts would have been one without a pause.
        for use in uses_of(row, now_ns):
            moves.append(Move(home_pool(first), ready_ns, use))
            ready_ns += use.end_ns - use.begin_ns
    return moves


def _machine_cost(report: RunReport, pools: Iterable[WorkerPool]) -> float | None:
    prices = {pool.pool_id: pool.price_per_h for pool in pools if pool.price_per_h is not None}
    costs = [prices[row.pool] * (row.wall_s or 0.0) / S_PER_H for row in report.tasks if row.pool in prices]
    return sum(costs) if costs else None


def _line(
    uses: Sequence[Use], places: Mapping[str, Place], curves: Mapping[Signal, Mapping[str, Curve]]
) -> Curve | None:
    """Carbon, else the price, in the zone in which most was used."""
    used: defaultdict[str, int] = defaultdict(int)
    for zone in (place.zone for place in places.values()):
        used[zone or ""] += 0
    for use in uses:
        place = places.get(use.pool)
        used[(place.zone if place else None) or ""] += use.energy_uj or 0
    for zone in sorted(used, key=lambda each: (-used[each], each)):
        for signal in (CARBON, PRICE):
            if zone in curves[signal]:
                return curves[signal][zone]
    return None


def currency(curves: Mapping[str, Curve]) -> str:
    """What prices are in: all are in one."""
    return next((curve.unit.removesuffix("/kWh") for curve in curves.values()), "")
