"""Laws of the ledger: what it holds depends on the set of records written, not on their order or number."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer

from tao_flows.figures import Account, CpuTime, DomainEnergy, Figure, Measurement, Quality
from tao_flows.ledger import codec, open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    Incident,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
    Who,
)

# Few names and times, so that records meet.
NAMES = st.sampled_from(["a", "b"])
TIMES = st.integers(0, 3)
# Their sums are the same in any order.
SECONDS = st.integers(0, 8).map(lambda quarters: quarters / 4)
MICROJOULES = st.none() | st.integers(0, 5)
ENERGIES = st.integers(-(2**62), 2**62)
TEXTS = st.text(max_size=8)
RUN = RunRef("prefect", "default", "a")
KEYS = st.builds(
    RunKey, st.just("prefect"), st.just("default"), st.just("flow"), NAMES, NAMES, st.just("0"), st.integers(1, 2)
)
SEGMENTS = st.builds(Segment, st.just("node-1"), st.just("boot"), st.integers(1, 2), st.just(9))
FIGURES = st.builds(
    Figure, MICROJOULES, MICROJOULES, MICROJOULES, st.sampled_from(Quality), st.lists(NAMES, max_size=2).map(tuple)
)
MEASUREMENTS = st.builds(
    Measurement, NAMES, TIMES, SECONDS, st.builds(CpuTime, SECONDS, NAMES, st.booleans()), FIGURES,
    st.just(()), st.just(Account()),
)  # fmt: skip
ENDS = st.none() | TIMES
RECORDS: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        TaskRecord, KEYS, SEGMENTS, st.sampled_from(TaskState), TIMES, pool=NAMES, budget=NAMES,
        ended_wall_ns=ENDS, measurement=st.none() | MEASUREMENTS,
    ),
    st.builds(
        RunRecord, st.just("prefect"), st.just("default"), st.just("flow"), NAMES,
        st.sampled_from(["running", "lost", "failed"]), TIMES, SEGMENTS, ended_wall_ns=ENDS, name=NAMES,
    ),
    st.builds(
        DecisionRecord, KEYS, TIMES, NAMES, NAMES, NAMES, NAMES, st.dictionaries(NAMES, TIMES), st.just({})
    ),
    st.builds(HostAccount, NAMES, st.builds(Account, tasks_uj=MICROJOULES, overhead_uj=MICROJOULES), st.just(1.0), NAMES),
    st.builds(Incident, NAMES, NAMES, wall_ns=TIMES, count=st.integers(1, 3), run_id=NAMES),
)  # fmt: skip


def content(records: Iterable[Any], *, by_way_of_a_queue: bool = False) -> list[Any]:
    """All a new ledger shows after it was given the records in this order."""
    with tempfile.TemporaryDirectory() as directory, closing(SqliteLedger(Path(directory) / "ledger.db")) as inner:
        ledger = SafeLedger(inner) if by_way_of_a_queue else inner
        put(ledger, records)
        found = shown(ledger)
        ledger.close()
    return found


@pytest.fixture(scope="module")
def emptied(postgres_server: PostgresServer) -> Iterator[Callable[[], Ledger]]:
    """Gives one and the same ledger on PostgreSQL, with nothing in it."""
    with closing(open_ledger(postgres_server.fresh_url())) as ledger:

        def empty() -> Ledger:
            with ledger.transaction() as transaction:
                transaction.change("TRUNCATE runs, tasks, decisions, accounts, incidents, charges, spending, budgets")
            return ledger

        yield empty


def put(ledger: Ledger, records: Iterable[Any]) -> None:
    for record in records:
        if isinstance(record, TaskRecord):
            ledger.put_task(record)
        elif isinstance(record, RunRecord):
            ledger.put_run(record)
        elif isinstance(record, DecisionRecord):
            ledger.put_decision(record)
        elif isinstance(record, HostAccount):
            ledger.put_account(RUN, record)
        else:
            ledger.put_incident(record)


def shown(ledger: Ledger) -> list[Any]:
    found: list[Any] = [sorted(map(repr, ledger.runs())), ledger.incidents(), ledger.accounts(RUN)]
    for run_id in ("a", "b"):
        run = RunRef("prefect", "default", run_id)
        found += [sorted(map(repr, ledger.tasks(run))), sorted(map(repr, ledger.decisions(run)))]
        found += [ledger.spent_uj(run_id, 1), ledger.history("a", run_id), ledger.fleet(0, "pool")]
        found += [ledger.find_runs(run_id), ledger.find_runs("flow/latest")]
    return found


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(RECORDS, max_size=10))
def test_replays_and_any_order_leave_the_same_ledger(data: st.DataObject, records: list[Any]) -> None:
    replayed = data.draw(st.permutations(records + data.draw(st.lists(st.sampled_from(records or [None]), max_size=5))))
    replayed = [record for record in replayed if record is not None]
    assert content(replayed) == content(records)


@settings(max_examples=15, deadline=None)
@given(st.lists(RECORDS, max_size=10))
def test_the_safe_ledger_leaves_the_same_as_the_ledger_it_wraps(records: list[Any]) -> None:
    assert content(records, by_way_of_a_queue=True) == content(records)


@settings(max_examples=40, deadline=None)
@given(records=st.lists(RECORDS, max_size=10))
def test_a_ledger_on_postgresql_shows_the_same_as_one_on_sqlite(
    emptied: Callable[[], Ledger], records: list[Any]
) -> None:
    ledger = emptied()
    put(ledger, records)
    assert shown(ledger) == content(records)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.builds(TaskRecord, KEYS, SEGMENTS, st.sampled_from(TaskState), TIMES, ended_wall_ns=ENDS))
def test_once_ended_a_segment_stays_ended(data: st.DataObject, record: TaskRecord) -> None:
    ends = set(TaskState) - {TaskState.RUNNING, TaskState.LOST}
    others = st.builds(
        TaskRecord, st.just(record.key), st.just(record.segment), st.sampled_from(TaskState), TIMES, ended_wall_ns=ENDS
    )
    with tempfile.TemporaryDirectory() as directory, closing(SqliteLedger(Path(directory) / "ledger.db")) as ledger:
        run, has_ended = RunRef("prefect", "default", record.key.run_id), False
        for each in [record, *data.draw(st.lists(others, max_size=5))]:
            ledger.put_task(each)
            has_ended = has_ended or each.state in ends
            (held,) = ledger.tasks(run)
            assert (held.state in ends) == has_ended


@settings(max_examples=50)
@given(
    st.builds(
        TaskRecord,
        key=st.builds(RunKey, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, st.integers()),
        segment=st.builds(Segment, TEXTS, TEXTS, st.integers(), st.integers(), st.integers()),
        state=st.sampled_from(TaskState),
        started_wall_ns=ENERGIES,
        who=st.builds(Who, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(TEXTS).map(tuple)),
        map_index=st.none() | st.integers(),
        measurement=st.none()
        | st.builds(
            Measurement,
            TEXTS,
            ENERGIES,
            st.floats(allow_nan=False),
            st.builds(CpuTime, st.none() | st.floats(allow_nan=False), TEXTS, st.booleans(), st.booleans()),
            FIGURES,
            st.lists(
                st.builds(
                    DomainEnergy,
                    TEXTS,
                    TEXTS,
                    TEXTS,
                    MICROJOULES,
                    MICROJOULES,
                    MICROJOULES,
                    st.sampled_from(Quality),
                    st.booleans(),
                    st.lists(TEXTS).map(tuple),
                ),
                max_size=2,
            ).map(tuple),
            st.builds(Account, quality=st.sampled_from(Quality), unknown_parts=st.lists(TEXTS).map(tuple)),
            model=st.none() | TEXTS,
        ),
    )
)
def test_a_record_that_is_dumped_and_loaded_is_the_same_record(record: TaskRecord) -> None:
    assert codec.load(TaskRecord, codec.dump(record)) == record
