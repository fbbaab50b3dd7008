"""What the fleet page shows: sums that the database made, never a task."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final, TypeVar

from tao_flows.clock import Clock, SystemClock
from tao_flows.errors import LedgerError, TaoError
from tao_flows.figures import Account, Figure, Quality, joules
from tao_flows.inversion import Inversion, follow, follow_by
from tao_flows.ledger import reads
from tao_flows.ledger.base import Ledger, RunOverhead
from tao_flows.ledger.budgets import BudgetStore, Standing
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.ledger.pools import PoolStore
from tao_flows.ledger.reads import Deadlines, HostSum, IncidentSum, Moved, TaskSum
from tao_flows.ledger.spool import SpoolStatus, spool_of
from tao_flows.pool_state import LiveState, live
from tao_flows.pools import WorkerPool, merge_pools
from tao_flows.records import Deferral, TaskState
from tao_flows.report.carbon import Amount, Curve, Move, Use, caused, saved
from tao_flows.report.curves import places_of, read_curves
from tao_flows.report.filters import Filters, parse_filters
from tao_flows.report.runview import currency
from tao_flows.signals.board import SignalStatus
from tao_flows.signals.model import CARBON, PRICE, Signal
from tao_flows.units import NS_PER_S

if TYPE_CHECKING:
    from tao_flows.config import TaoConfig
    from tao_flows.signals.board import SignalBoard

T = TypeVar("T")

USUAL_S: Final = 28 * 86_400.0
"""The time before, whose median movers are set against: four weeks."""
MOST_MOVERS: Final = 10
BURN_POINTS: Final = 48
"""Spans into which a budget's window is cut."""
_FINEST_NS: Final = 900 * NS_PER_S
"""Energy is summed by spans of time no finer than the signals."""
_MOST_SPANS: Final = 1_000
_WAIT_S: Final = 0.2
"""For providers of signals: the page shows what is known, and does not wait for more."""
_FAILED: Final = frozenset({TaskState.FAILED.value, TaskState.CANCELLED.value, TaskState.LOST.value})


@dataclass(frozen=True, slots=True)
class FlowSum:
    """A flow over the time that is shown."""

    engine: str
    namespace: str
    flow: str
    runs: int
    energy: Figure
    lost_uj: int
    """In tries that failed or were lost."""
    usual_j: float | None
    """Median of its runs' known joules over the four weeks before; None where there was none."""
    now_j: float | None
    """Median of its runs' known joules in this time."""

    @property
    def change(self) -> float | None:
        """0.1: its runs take 10 % more than they used to."""
        return None if self.now_j is None or not self.usual_j else self.now_j / self.usual_j - 1

    @property
    def moved_j(self) -> float:
        """Joules more or less than as many runs used to take."""
        return 0.0 if self.now_j is None or self.usual_j is None else (self.now_j - self.usual_j) * self.runs


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """A budget in its present window."""

    standing: Standing
    spent_uj: tuple[int, ...]
    """Summed up to the end of each part of the window that has begun."""
    begun: float
    """The share of the window that is over; 1 where it rolls."""


@dataclass(frozen=True, slots=True)
class PoolLine:
    """A pool, and how it was last seen."""

    pool: WorkerPool
    state: LiveState
    waiting: int
    """Tries that wait to start there."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The tasks that are shown, in figures."""

    energy: Figure
    by_quality_uj: Mapping[Quality, int]
    segments_by_quality: Mapping[Quality, int]
    runs: int
    segments: int
    failed_segments: int
    failed: Figure | None
    """In tries that failed or were lost; None where none did."""


@dataclass(frozen=True, slots=True)
class Health:
    """Of what measures and keeps."""

    hosts: tuple[HostSum, ...]
    incidents: tuple[IncidentSum, ...]
    signals: tuple[SignalStatus, ...]
    spool: SpoolStatus | None
    """On this host; None where it cannot be told."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet, as its page shows it."""

    filters: Filters
    choices: Mapping[str, Sequence[str]]
    now_ns: int
    sums: Sums
    carbon: Amount
    cost: Amount
    saved: Amount
    moves: int
    """Segments that were put off or moved, of which savings are told."""
    account: Account
    """Tasks and overhead, of the runs that know both."""
    inversion: Inversion
    inverted: tuple[str, ...]
    """Flows whose overhead takes more than the work."""
    deadlines: Deadlines
    flows: tuple[FlowSum, ...]
    """Dearest first."""
    gpu: Account
    """Of the runs that held a GPU."""
    waiting: tuple[Deferral, ...]
    draining: bool
    budgets: tuple[BudgetLine, ...]
    pools: tuple[PoolLine, ...]
    health: Health
    problems: tuple[TaoError, ...]

    @property
    def movers(self) -> tuple[FlowSum, ...]:
        """The flows that moved most joules against their usual, by how much."""
        told = [flow for flow in self.flows if flow.change is not None and abs(flow.change) >= 0.005]
        return tuple(sorted(told, key=lambda flow: -abs(flow.moved_j))[:MOST_MOVERS])


def read_fleet_view(
    ledger: Ledger,
    *,
    board: SignalBoard | None = None,
    config: TaoConfig | None = None,
    pools: Iterable[WorkerPool] = (),
    query: Mapping[str, str],
    flows: Collection[str] | None = None,
    clock: Clock | None = None,
) -> FleetView:
    """The view of all runs in a ledger.

    Args:
        ledger: where the records are.
        board: the configured signals.
        config: the settings, for the spool of this host.
        pools: descriptions that are not in the ledger.
        query: the filters, as in the address.
        flows: what the reader may see; None for every flow.
        clock: where the present comes from.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    now_ns = (clock or SystemClock()).wall_ns()
    filters, wrong = parse_filters(query)
    problems: list[TaoError] = list(wrong)
    scope = filters.scope(now_ns, flows)
    shown = reads.task_sums(ledger, scope)
    before = reads.task_sums(ledger, filters.scope(now_ns, flows, USUAL_S))
    described = merge_pools(PoolStore(ledger).all(), pools)
    carbon, cost, saving, moves = _amounts(ledger, board, scope, described, now_ns, problems)
    overheads = reads.overheads(ledger, scope)
    deferrals = DeferralStore(ledger)
    waiting = tuple(each for each in deferrals.open() if filters.covers(each.key, flows))
    return FleetView(
        filters=filters,
        choices=reads.choices(ledger, scope),
        now_ns=now_ns,
        sums=_sums(shown),
        carbon=carbon,
        cost=cost,
        saved=saving,
        moves=moves,
        account=_account(overheads),
        inversion=follow(overheads),
        inverted=tuple(name for name, each in follow_by(overheads, lambda run: run.flow).items() if each.inverted),
        deadlines=reads.deadlines(ledger, scope, now_ns),
        flows=_flows(shown, before),
        gpu=Account.total(each.account for each in reads.gpu_accounts(ledger, scope)),
        waiting=waiting,
        draining=deferrals.is_draining(),
        budgets=_budgets(ledger, now_ns, problems),
        pools=_pools(ledger, described, waiting, now_ns),
        health=_health(ledger, board, config, scope, now_ns),
        problems=tuple(problems),
    )


def _amounts(
    ledger: Ledger,
    board: SignalBoard | None,
    scope: reads.Scope,
    pools: Iterable[WorkerPool],
    now_ns: int,
    problems: list[TaoError],
) -> tuple[Amount, Amount, Amount, int]:
    """Grams, money and the grams that were saved, and of how many moves."""
    span_ns = max(_FINEST_NS, (now_ns - scope.since_wall_ns) // _MOST_SPANS)
    places = places_of(pools)
    zones = {place.zone for place in places.values() if place.zone is not None}
    moved = reads.moved(ledger, scope)
    begin_ns = min([scope.since_wall_ns, *(each.ready_wall_ns for each in moved)])
    curves: dict[Signal, dict[str, Curve]] = {}
    for signal in (CARBON, PRICE):
        curves[signal], trouble = read_curves(board, signal, zones, begin_ns, now_ns)
        problems += trouble
    uses = [
        Use(pool, bucket * span_ns, (bucket + 1) * span_ns, value, low, high, Quality(quality))
        for pool, quality, bucket, value, low, high in reads.energy_by_time(ledger, scope, span_ns)
    ]
    return (
        caused(uses, places, curves[CARBON], "g"),
        caused(uses, places, curves[PRICE], currency(curves[PRICE])),
        saved(map(_move, moved), places, curves[CARBON], "g"),
        len(moved),
    )


def _move(each: Moved) -> Move:
    end_ns = each.started_wall_ns if each.ended_wall_ns is None else each.ended_wall_ns
    quality = Quality(each.quality)
    use = Use(each.pool, each.started_wall_ns, end_ns, each.energy_uj, each.low_uj, each.high_uj, quality)
    return Move(each.home_pool, each.ready_wall_ns, use)


def _figure(rows: Sequence[TaskSum]) -> Figure:
    """The sum of rows: known joules, the worst quality among them, and how many parts are known."""
    segments = sum(row.segments for row in rows)
    known = [row for row in rows if row.energy_uj is not None]
    if not known:
        return Figure.unknown("every part")
    return Figure(
        sum(row.energy_uj or 0 for row in known),
        sum(row.low_uj or 0 for row in known),
        sum(row.high_uj or 0 for row in known),
        max((Quality(row.quality) for row in known), key=lambda quality: quality.rank),
        coverage=sum(row.coverage for row in rows) / segments,
    )


def _sums(rows: Sequence[TaskSum]) -> Sums:
    energies: Counter[Quality] = Counter()
    segments: Counter[Quality] = Counter()
    for row in rows:
        segments[Quality(row.quality)] += row.segments
        if row.energy_uj is not None:
            energies[Quality(row.quality)] += row.energy_uj
    failed = [row for row in rows if row.state in _FAILED]
    return Sums(
        energy=_figure(rows),
        by_quality_uj={quality: energies[quality] for quality in Quality if quality in energies},
        segments_by_quality={quality: segments[quality] for quality in Quality if quality in segments},
        runs=len({row[:4] for row in rows}),
        segments=sum(segments.values()),
        failed_segments=sum(row.segments for row in failed),
        failed=_figure(failed) if failed else None,
    )


def _flows(rows: Sequence[TaskSum], before: Sequence[TaskSum]) -> tuple[FlowSum, ...]:
    def key(row: TaskSum) -> tuple[str, str, str]:
        return row.engine, row.namespace, row.flow

    usual = {flow: median(runs) for flow, each in _by(before, key).items() if (runs := _run_energies(each))}
    flows = []
    for flow, members in _by(rows, key).items():
        runs = _run_energies(members)
        lost_uj = sum(row.energy_uj or 0 for row in members if row.state in _FAILED)
        count = len({row.run_id for row in members})
        now_j = median(runs) if runs else None
        flows.append(FlowSum(*flow, count, _figure(members), lost_uj, usual.get(flow), now_j))
    return tuple(sorted(flows, key=lambda each: (-(each.energy.value_uj or 0), each.flow)))


def _run_energies(rows: Sequence[TaskSum]) -> list[float]:
    """The known joules of each run of which anything is known."""
    runs = _by([row for row in rows if row.energy_uj is not None], lambda row: row.run_id)
    return [joules(sum(row.energy_uj or 0 for row in members)) or 0.0 for members in runs.values()]


def _by(rows: Iterable[TaskSum], key: Callable[[TaskSum], T]) -> dict[T, list[TaskSum]]:
    found: defaultdict[T, list[TaskSum]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def _account(overheads: Sequence[RunOverhead]) -> Account:
    both = [each for each in overheads if each.tasks_uj is not None and each.overhead_uj is not None]
    return Account.total(Account(tasks_uj=each.tasks_uj, overhead_uj=each.overhead_uj) for each in both)


def _budgets(ledger: Ledger, now_ns: int, problems: list[TaoError]) -> tuple[BudgetLine, ...]:
    store = BudgetStore(ledger)
    try:
        standings = store.standings([budget.name for budget in store.all()])
    except LedgerError:
        raise
    except TaoError as error:  # a zone that this host does not know
        problems.append(error)
        return ()
    lines = []
    for standing in standings:
        end_ns = standing.end_wall_ns or now_ns
        span_ns = max(1, (end_ns - standing.start_wall_ns) // BURN_POINTS)
        spent = dict(reads.charges_by_time(ledger, standing.budget.name, standing.start_wall_ns, span_ns))
        begun = min(1.0, (now_ns - standing.start_wall_ns) / max(1, end_ns - standing.start_wall_ns))
        sums, total = [], 0
        for number in range(min(BURN_POINTS, max(1, round(begun * BURN_POINTS)))):
            total += spent.pop(number, 0)
            sums.append(total)
        sums[-1] += sum(spent.values())
        lines.append(BudgetLine(standing, tuple(sums), begun))
    return tuple(sorted(lines, key=lambda line: -line.standing.utilisation))


def _pools(
    ledger: Ledger, pools: Iterable[WorkerPool], waiting: Sequence[Deferral], now_ns: int
) -> tuple[PoolLine, ...]:
    states = PoolStore(ledger).states()
    wait = Counter(deferral.pool for deferral in waiting)
    known = merge_pools(pools, (WorkerPool(pool_id) for pool_id in states))
    return tuple(PoolLine(pool, live(states.get(pool.pool_id, ()), now_ns), wait[pool.pool_id]) for pool in known)


def _health(
    ledger: Ledger, board: SignalBoard | None, config: TaoConfig | None, scope: reads.Scope, now_ns: int
) -> Health:
    spool = None if config is None else spool_of(config.ledger)
    incidents = reads.incident_sums(ledger, scope.since_wall_ns)
    if scope.flows is not None:  # an incident names no flow: its words may be of one that the reader may not see
        incidents = [each._replace(summary="") for each in incidents]
    return Health(
        hosts=tuple(reads.hosts(ledger, scope)),
        incidents=tuple(incidents),
        signals=() if board is None else tuple(board.status(now_ns, _WAIT_S)),
        spool=None if spool is None else spool.status(),
    )
