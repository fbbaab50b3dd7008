"""What a ledger holds of one run, read once, without secrets: every document of a bundle is made from it.

Tasks and decisions are streamed anew each time they are asked for. What is kept in memory grows by a row for each try,
never by a decision's request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tao_flows.clock import iso_from_ns
from tao_flows.governance.clean import clean
from tao_flows.governance.provider import ProviderInputs
from tao_flows.governance.samples import Sampler
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.environments import StoredEnvironment, environments_of
from tao_flows.ledger.runpages import Stamp, decisions_of, ref_of, stamp_of, tasks_of
from tao_flows.records import (
    UNSEEN_RUN,
    DecisionRecord,
    HostAccount,
    Incident,
    RunKey,
    RunRecord,
    TaskRecord,
    TaskState,
)
from tao_flows.report.model import RunReport, build_report
from tao_flows.units import NS_PER_S

LOSSES: Final = frozenset(
    {
        "LEDGER_BAD_RECORD", "LEDGER_DROPPED", "RECORD_KIND", "RECORD_MALFORMED", "RECORD_TOO_LARGE",
        "RECORD_UNREADABLE", "RECORD_VERSION", "RUN_OF_ANOTHER", "SPOOL_DROPPED", "SPOOL_FULL", "SPOOL_REFUSED",
        "SPOOL_STRANGE", "SPOOL_TORN", "TEAM_OF_ANOTHER",
    }
)  # fmt: skip
"""Codes of incidents after which a record is not in the ledger and will not get there by itself."""
NAMED_TASKS: Final = 20
"""Tasks that a gap names, at most."""
_LATE_NS: Final = 60 * NS_PER_S
"""A loss that was noted this long after a run's end can still be of its records."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Why the record of a run is not complete."""

    code: str
    """``RUN_NOT_ENDED``, ``RUN_LOST``, ``RUN_UNSEEN``, ``TASK_LOST``, ``TASK_NOT_ENDED``, ``MEASUREMENT_PENDING``,
    ``NO_MEASUREMENT`` or ``RECORDS_LOST``."""
    summary: str
    count: int = 1
    tasks: tuple[str, ...] = ()
    """The first of the tasks it is about."""


@dataclass(frozen=True)
class Facts:
    """One run as recorded. No text in it holds what looks like a secret."""

    run: RunRecord
    report: RunReport
    accounts: tuple[HostAccount, ...]
    incidents: tuple[Incident, ...]
    environments: tuple[StoredEnvironment, ...]
    """What its processes ran in, each once."""
    gaps: tuple[Gap, ...]
    """Why the record is not complete; empty where it is."""
    stamp: Stamp
    """Tells whether the ledger has changed since."""
    read_wall_ns: int
    provider: ProviderInputs | None = None
    read_tasks: Callable[[], Iterator[TaskRecord]] = field(default=lambda: iter(()), repr=False)
    read_decisions: Callable[[], Iterator[DecisionRecord]] = field(default=lambda: iter(()), repr=False)
    sampler: Sampler = field(default_factory=Sampler, repr=False)
    """Has heard every decision."""

    @property
    def complete(self) -> bool:
        """Whether all that was noted of the run is here, as far as is known."""
        return not self.gaps

    def tasks(self) -> Iterator[TaskRecord]:
        """Every segment, those of one try one after another; read from the ledger each time.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return self.read_tasks()

    def decisions(self) -> Iterator[DecisionRecord]:
        """Every decision in order of time; read from the ledger each time.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return self.read_decisions()


def read_facts(
    ledger: Ledger,
    run: RunRecord,
    *,
    now_wall_ns: int,
    provider: ProviderInputs | None = None,
    through: Callable[[Iterator[DecisionRecord]], Iterator[DecisionRecord]] = iter,
) -> Facts:
    """The facts of a run.

    Args:
        ledger: where the records are.
        run: the run's record, as the ledger has it.
        now_wall_ns: the time of reading.
        provider: what the provider of a model states.
        through: passes the decisions on, each of them, as they are read.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    ref = ref_of(run)
    # Taken first: a record that arrives while the rest is read makes it differ from the one after.
    stamp = stamp_of(ledger, run)

    def tasks() -> Iterator[TaskRecord]:
        return map(clean, tasks_of(ledger, ref))

    def decisions() -> Iterator[DecisionRecord]:
        return map(clean, decisions_of(ledger, ref))

    cleaned, sampler = clean(run), Sampler()
    segments = [_lean(record) for record in tasks()]
    accounts = tuple(map(clean, ledger.accounts(ref)))
    incidents = tuple(map(clean, ledger.incidents(ref)))
    processes = {run.segment.process, *(record.segment.process for record in segments)}
    losses = _losses(ledger, run, now_wall_ns)
    return Facts(
        run=cleaned,
        report=build_report(cleaned, segments, sampler.hears(through(decisions())), accounts, incidents),
        accounts=accounts,
        incidents=incidents,
        environments=tuple(map(clean, environments_of(ledger, processes))),
        gaps=tuple(_gaps(cleaned, segments, accounts, (*incidents, *losses))),
        stamp=stamp,
        read_wall_ns=now_wall_ns,
        provider=provider,
        read_tasks=tasks,
        read_decisions=decisions,
        sampler=sampler,
    )


def _lean(record: TaskRecord) -> TaskRecord:
    """Without the figures of each domain, which take the most memory; what was noted of them is kept."""
    measured = record.measurement
    if measured is None:
        return record
    events = (*measured.events, *(event for domain in measured.domains for event in domain.events))
    return replace(record, measurement=replace(measured, domains=(), events=tuple(dict.fromkeys(events))))


def _losses(ledger: Ledger, run: RunRecord, now_wall_ns: int) -> list[Incident]:
    """Losses of records while the run was on that name no run: one of them may be of this."""
    until_ns = (run.ended_wall_ns or now_wall_ns) + _LATE_NS
    unnamed = ledger.incidents(RunRef("", "", ""))
    return [each for each in unnamed if each.code in LOSSES and run.started_wall_ns <= each.wall_ns <= until_ns]


def _gaps(
    run: RunRecord, segments: Sequence[TaskRecord], accounts: Sequence[HostAccount], incidents: Iterable[Incident]
) -> Iterator[Gap]:
    if run.state == UNSEEN_RUN:
        yield Gap("RUN_UNSEEN", "of the run itself nothing was recorded, only of tasks in it")
    elif run.state == "lost":
        yield Gap("RUN_LOST", "the process of the run is gone, and left no end")
    elif run.state == "crashed" and not accounts:
        # Another process has told of its end.
        yield Gap("RUN_LOST", "the process of the run is gone, and left no account")
    elif run.ended_wall_ns is None:
        yield Gap("RUN_NOT_ENDED", f"the run has no end; its state is {run.state}")
    yield from _gaps_of_tasks(segments)
    lost = [each for each in incidents if each.code in LOSSES]
    if lost:
        codes = ", ".join(sorted({each.code for each in lost}))
        of = "" if any(each.run_id for each in lost) else ", of this run or of another at the time"
        yield Gap("RECORDS_LOST", f"records could not be written{of}: {codes}", sum(each.count for each in lost))


def _gaps_of_tasks(segments: Sequence[TaskRecord]) -> Iterator[Gap]:
    last: dict[RunKey, TaskRecord] = {}
    for record in segments:
        other = last.get(record.key)
        if other is None or record.started_wall_ns >= other.started_wall_ns:
            last[record.key] = record
    ends = list(last.values())
    open_states = (TaskState.RUNNING, TaskState.DEFERRED)
    yield from _gap("TASK_LOST", "lost: the process is gone and left no end",
                    [each for each in segments if each.state is TaskState.LOST])  # fmt: skip
    yield from _gap("TASK_NOT_ENDED", "without an end", [each for each in ends if each.state in open_states])
    yield from _gap(
        "MEASUREMENT_PENDING", "whose figures wait for a node agent",
        [each for each in segments if each.measurement is not None and each.measurement.pending],
    )  # fmt: skip
    yield from _gap(
        "NO_MEASUREMENT", "that ended without a measurement",
        [each for each in segments if each.measurement is None and each.state not in (*open_states, TaskState.LOST)],
    )  # fmt: skip


def _gap(code: str, what: str, records: Sequence[TaskRecord]) -> Iterator[Gap]:
    if not records:
        return
    keys = list(dict.fromkeys(record.key for record in records))
    tries = "try" if len(keys) == 1 else "tries"
    names = (f"{key.task}/{key.instance}/{key.try_number}" for key in keys[:NAMED_TASKS])
    yield Gap(code, f"{len(keys):,} {tries} of tasks {what}", len(keys), tuple(names))


def times_of(wall_ns: int | None) -> dict[str, str | None]:
    """A time as documents give it: for people, and exactly, as a text of nanoseconds since the Unix epoch."""
    return {"time": iso_from_ns(wall_ns), "wall_ns": None if wall_ns is None else str(wall_ns)}
