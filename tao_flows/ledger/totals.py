"""What an engine asks of a ledger as one of its runs ends: sums by the database, however many tasks there are.

Functions over ``Ledger.transaction``. Each raises LedgerError where the ledger cannot be read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from tao_flows.figures import Account, Figure, Quality
from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import HostAccount, RunRecord, TaskRecord

_OF_RUN: Final = "engine = :engine AND namespace = :namespace AND run_id = :run_id AND flow = :flow"


@dataclass(frozen=True, slots=True)
class RunTotals:
    """What is known of a run."""

    energy: Figure
    overhead_share: float | None
    actions: Counter[str]
    """Tries by what was decided on them and enforced, without those that simply ran."""
    lost: int
    """Segments that were lost."""


def run_totals(ledger: Ledger, run: RunRef) -> RunTotals:
    """A run's sums."""
    with ledger.transaction(write=False) as tx:
        figures = tx.execute(
            f"""SELECT quality, state, count(*), count(energy_uj), sum(energy_uj), sum(low_uj), sum(high_uj),
                sum(coverage) FROM tasks WHERE {_OF_RUN} GROUP BY 1, 2""",
            **_named(run),
        )
        accounts = tx.execute(f"SELECT sum(tasks_uj), sum(overhead_uj) FROM accounts WHERE {_OF_RUN}", **_named(run))
        actions = tx.execute(
            f"""SELECT action, count(*) FROM (SELECT DISTINCT action, task, instance, try_number FROM decisions
                WHERE {_OF_RUN} AND mode = 'enforce' AND action <> 'run') decided GROUP BY 1""",
            **_named(run),
        )
    parts = [_figure(*row[:1], *row[2:]) for row in figures]
    segments = sum(int(row[2]) for row in figures)
    energy = Figure.total(parts)
    if segments:
        coverage = sum(float(row[7]) for row in figures) / segments
        energy = Figure(energy.value_uj, energy.low_uj, energy.high_uj, energy.quality, (), coverage)
    tasks_uj, overhead_uj = (None if uj is None else int(uj) for uj in accounts[0])
    return RunTotals(
        energy=energy,
        overhead_share=Account(tasks_uj=tasks_uj, overhead_uj=overhead_uj).overhead_share,
        actions=Counter({str(action): int(number) for action, number in actions}),
        lost=sum(int(row[2]) for row in figures if row[1] == "lost"),
    )


def open_segments(ledger: Ledger, run: RunRef) -> list[TaskRecord]:
    """The segments of a run that have begun and not ended."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(f"SELECT body FROM tasks WHERE {_OF_RUN} AND state = 'running'", **_named(run))
    return [codec.load(TaskRecord, body) for (body,) in rows]


def accounts_on(ledger: Ledger, run: RunRef, host: str) -> list[HostAccount]:
    """A run's accounts of one host."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(f"SELECT body FROM accounts WHERE {_OF_RUN} AND host = :host", host=host, **_named(run))
    return [codec.load(HostAccount, body) for (body,) in rows]


def stored_run(ledger: Ledger, run: RunRef) -> RunRecord | None:
    """A run as the ledger has it; None where it has none."""
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(f"SELECT body FROM runs WHERE {_OF_RUN}", **_named(run))
    return codec.load(RunRecord, rows[0][0]) if rows else None


def _figure(
    quality: str, segments: int, known: int, energy_uj: int | None, low_uj: int | None, high_uj: int | None, *_: float
) -> Figure:
    if energy_uj is None:
        return Figure.unknown("tasks")
    return Figure(int(energy_uj), int(low_uj or 0), int(high_uj or 0), Quality(quality), (), known / segments)


def _named(run: RunRef) -> dict[str, object]:
    return {"engine": run.engine, "namespace": run.namespace, "run_id": run.run_id, "flow": run.flow}
