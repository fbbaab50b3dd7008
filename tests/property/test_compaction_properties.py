"""Laws of compaction: whatever was recorded, and however often it is summed up, the totals are what they were."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_runs import T0, S, segment

from tao_flows.figures import METHOD, Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import compaction
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.compaction import compact
from tao_flows.ledger.lasting import read_totals
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.ledger.tally import DAY_NS, LATE, LATE_ACCOUNTS, Priced, TaskPart
from tao_flows.records import HostAccount, Incident, RunKey, RunRecord, TaskRecord, TaskState, Who

# Few names and days, so that records meet.
NAMES = st.sampled_from(["a", "b"])
MOMENTS = st.integers(0, 8).map(lambda half_days: T0 + half_days * DAY_NS // 2)
WHOSE = st.builds(Who, team=st.sampled_from(["", "ml", "ops"]), model_id=st.sampled_from(["", "m1"]))
MICROJOULES = st.none() | st.integers(0, 2**40)
KEYS = st.builds(
    RunKey, st.just("prefect"), st.just("default"), NAMES, NAMES, NAMES, st.sampled_from(["0", "1"]), st.integers(1, 2)
)
SEGMENTS = st.builds(segment, st.integers(1, 3))
FIGURES = st.builds(
    lambda uj, quality: Figure.unknown("a") if uj is None else Figure(uj, uj // 2, 2 * uj, quality),
    MICROJOULES, st.sampled_from([Quality.MEASURED, Quality.ESTIMATED]),
)  # fmt: skip
MEASURED = st.builds(
    Measurement, NAMES, MOMENTS, st.just(1.0), st.just(CpuTime(1.0, "perf", covers_children=True)), FIGURES,
    st.just(()), st.just(Account()), method=st.sampled_from([METHOD, "tao-flows/attribution/1"]),
)  # fmt: skip
TASKS = st.builds(
    lambda record, lasts_s: replace(
        record,
        ended_wall_ns=None if record.state is TaskState.RUNNING else record.started_wall_ns + lasts_s * S,
        measurement=None if record.state is TaskState.RUNNING else record.measurement,
    ),
    st.builds(
        TaskRecord, KEYS, SEGMENTS, st.sampled_from(TaskState), MOMENTS, WHOSE, pool=NAMES,
        measurement=st.none() | MEASURED,
    ),
    st.integers(0, 90_000),
)  # fmt: skip
RUNS = st.builds(
    lambda record: replace(record, ended_wall_ns=None if record.state == "running" else record.started_wall_ns + S),
    st.builds(
        RunRecord, st.just("prefect"), st.just("default"), NAMES, NAMES,
        st.sampled_from(["running", "failed", "completed"]), MOMENTS, SEGMENTS, who=WHOSE,
    ),
)  # fmt: skip
ACCOUNTS = st.builds(
    HostAccount, NAMES,
    st.builds(Account, counter_uj=MICROJOULES, tasks_uj=MICROJOULES, overhead_uj=MICROJOULES,
              quality=st.sampled_from(Quality)),
    st.just(1.0), NAMES,
)  # fmt: skip
INCIDENTS = st.builds(Incident, NAMES, NAMES, wall_ns=MOMENTS, count=st.integers(1, 3), run_id=NAMES, task=NAMES)
RECORDS: st.SearchStrategy[Any] = st.one_of(TASKS, RUNS, ACCOUNTS, INCIDENTS)
# A compaction of what is older than a moment, or a record; so many rows a transaction.
STEPS = st.lists(st.one_of(RECORDS, MOMENTS), max_size=25)


def priced(part: TaskPart) -> list[Priced]:
    known = part.energy_uj is not None and part.pool == "a"
    amount = (3 * (part.energy_uj or 0), 2 * (part.energy_uj or 0), 4 * (part.energy_uj or 0))
    return [Priced("carbon", "ug", amount if known else None)]


def put(ledger: SqliteLedger, record: Any) -> None:
    if isinstance(record, TaskRecord):
        ledger.put_task(record)
    elif isinstance(record, RunRecord):
        ledger.put_run(record)
    elif isinstance(record, Incident):
        ledger.put_incident(record)
    else:
        ledger.put_account(RunRef("prefect", "default", "a", "a"), record)


@settings(max_examples=25)
@given(records=st.lists(RECORDS, max_size=25), cuts=st.lists(MOMENTS, min_size=1, max_size=2), page=st.integers(1, 3))
def test_compacting_changes_no_total(records: list[Any], cuts: list[int], page: int) -> None:
    with tempfile.TemporaryDirectory() as directory, closing(SqliteLedger(Path(directory) / "ledger.db")) as ledger:
        for record in records:
            put(ledger, record)
        before = read_totals(ledger, price=priced)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compaction, "PAGE", page)
            for cut in cuts:
                done = compact(ledger, cut, price=priced, rest=lambda _: None)
                assert done.problems == []
                assert read_totals(ledger, price=priced) == before


@settings(max_examples=25)
@given(steps=STEPS)
def test_records_that_come_between_compactions_are_counted_once_or_told(steps: list[Any]) -> None:
    """Known joules in the sums never exceed what was recorded; and those of segments that came in time are all there."""
    with tempfile.TemporaryDirectory() as directory, closing(SqliteLedger(Path(directory) / "ledger.db")) as ledger:
        segments: set[object] = set()
        late = 0
        for step in steps:
            if isinstance(step, int):
                before = read_totals(ledger, price=priced)
                done = compact(ledger, step, price=priced, rest=lambda _: None)
                late += done.late
                assert read_totals(ledger, price=priced) == before
                assert sum(t.parts for key, t in before.items() if key.line in (LATE, LATE_ACCOUNTS)) >= late
                continue
            put(ledger, step)
            if isinstance(step, TaskRecord) and step.state is not TaskState.RUNNING:
                segments.add((step.key, step.segment))
        totals = read_totals(ledger, price=priced)
        counted = sum(total.parts for key, total in totals.items() if key.line == "segments")
        told = sum(total.parts for key, total in totals.items() if key.line == LATE)
        assert counted <= len(segments) <= counted + told
