"""What every ledger does with deferrals: SQLite, through ``SafeLedger``, and a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore, Planned
from tao_flows.ledger.safe import SafeLedger
from tao_flows.records import DecisionRecord, Deferral, RunKey, Segment, TaskRecord, TaskState
from tao_flows.units import NS_PER_S

NOW = time.time_ns()
HOUR = 3_600 * NS_PER_S
SLOT_S = 300.0
SLOT = round(SLOT_S * NS_PER_S)
SLOT_BEGINS = (NOW + HOUR) // SLOT * SLOT
KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "instance-1", 1)
RUN = RunRef("prefect", "default", "run-0001", "nightly")
DEFERRAL = Deferral(KEY, "home", NOW, SLOT_BEGINS, NOW + 8 * HOUR, "cheaper at 02:00")


@pytest.fixture(params=["sqlite", "safe-sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(request: pytest.FixtureRequest, url: str) -> Iterator[Ledger]:
    inner = open_ledger(url)
    opened = SafeLedger(inner, lambda incident: None) if "safe" in request.node.name else inner
    yield opened
    opened.close()


@pytest.fixture
def store(ledger: Ledger) -> DeferralStore:
    return DeferralStore(ledger)


def deferral(number: int, **changes: object) -> Deferral:
    key_changes = {name: changes.pop(name) for name in list(changes) if name in RunKey.__dataclass_fields__}
    return replace(DEFERRAL, key=replace(KEY, instance=f"instance-{number}", **key_changes), **changes)


def test_a_plan_comes_back_as_it_was_made(store: DeferralStore) -> None:
    assert store.plan(DEFERRAL) is Planned.YES
    found = store.state_of(KEY)
    assert found is not None
    assert found.changed_wall_ns >= NOW
    assert replace(found, changed_wall_ns=0) == DEFERRAL
    assert store.open() == [found]
    assert store.states_of([KEY, deferral(2).key]) == {KEY: found}


def test_of_what_was_never_deferred_there_is_no_state(store: DeferralStore) -> None:
    assert store.state_of(KEY) is None
    assert store.open() == []


def test_a_plan_can_be_moved_while_it_waits(store: DeferralStore) -> None:
    store.plan(DEFERRAL)
    assert store.plan(replace(DEFERRAL, start_wall_ns=SLOT_BEGINS + 1, pool="away", reason="cheaper at 03:00"))
    (found,) = store.open()
    assert (found.start_wall_ns, found.pool, found.reason) == (SLOT_BEGINS + 1, "away", "cheaper at 03:00")


@pytest.mark.parametrize("close", [DeferralStore.started, DeferralStore.gone])
def test_what_started_or_is_gone_is_never_planned_again(
    store: DeferralStore, close: Callable[[DeferralStore, RunKey], bool]
) -> None:
    store.plan(DEFERRAL)
    assert close(store, KEY)
    closed = store.state_of(KEY)
    assert store.plan(replace(DEFERRAL, start_wall_ns=1)) is Planned.SETTLED
    assert store.state_of(KEY) == closed
    assert store.open() == []
    assert store.release("all", said_by="ada", reason="") == []


@pytest.mark.parametrize("close", [DeferralStore.started, DeferralStore.gone])
def test_a_try_that_became_ready_once_more_since_may_wait_once_more(
    store: DeferralStore, close: Callable[[DeferralStore, RunKey], bool]
) -> None:
    store.plan(DEFERRAL)
    close(store, KEY)
    closed = store.state_of(KEY)
    assert closed is not None
    again = replace(DEFERRAL, ready_wall_ns=closed.changed_wall_ns + 1)
    assert store.plan(again) is Planned.YES
    (found,) = store.open()
    assert replace(found, changed_wall_ns=0) == again


def test_only_the_first_of_two_that_start_a_try_is_told_so(store: DeferralStore) -> None:
    store.plan(DEFERRAL)
    assert [store.started(KEY), store.started(KEY), store.gone(KEY)] == [True, False, False]
    found = store.state_of(KEY)
    assert found is not None
    assert found.state == "started"
    assert not store.started(deferral(2).key)


def test_a_released_task_is_open_until_it_starts_and_its_plan_cannot_move(store: DeferralStore) -> None:
    store.plan(DEFERRAL)
    (released,) = store.release("all", said_by="ada@host", reason="the demo is at nine")
    assert (released.key, released.state, released.said_by) == (KEY, "released", "ada@host: the demo is at nine")
    assert store.plan(replace(DEFERRAL, start_wall_ns=1)) is Planned.SETTLED
    assert store.open() == [released]
    assert store.release("all", said_by="bob", reason="me too") == []
    assert store.started(KEY)
    assert store.open() == []


def test_a_release_is_kept_as_a_decision_of_its_own(store: DeferralStore, ledger: Ledger) -> None:
    store.plan(DEFERRAL)
    store.release([KEY], said_by="ada@host", reason="the demo is at nine")
    (decision,) = ledger.decisions(RUN)
    assert (decision.key, decision.action, decision.pool, decision.enforced) == (KEY, "release", "home", True)
    assert decision.reason == "released by ada@host: the demo is at nine"
    assert decision.decided_wall_ns >= NOW
    assert decision.request["deferred_because"] == "cheaper at 02:00"
    assert str(decision.request["latest_start"]) > str(decision.request["planned_start"]) > "2026"


def test_a_release_takes_a_run_or_tries_or_all(store: DeferralStore, ledger: Ledger) -> None:
    mine = [deferral(number) for number in range(3)]
    others = [deferral(1, run_id="run-0002"), deferral(1, flow="weekly"), deferral(1, namespace="test")]
    for each in (*mine, *others):
        store.plan(each)
    keys = {each.key for each in mine}
    assert [each.key for each in store.release([mine[1].key, deferral(9).key], said_by="a", reason="")] == [mine[1].key]
    assert {each.key for each in store.open(RUN)} == keys
    assert {each.key for each in store.release(RUN, said_by="a", reason="")} == keys - {mine[1].key}
    assert {each.key for each in store.release("all", said_by="a", reason="")} == {each.key for each in others}
    assert len(ledger.decisions(replace(RUN, flow=""))) == 4


def test_planned_starts_are_those_that_wait_for_the_pool_in_the_span(store: DeferralStore) -> None:
    starts = [SLOT_BEGINS + offset for offset in (5, 1, 3, SLOT)]
    for number, start_ns in enumerate(starts):
        store.plan(deferral(number, start_wall_ns=start_ns))
    store.plan(deferral(8, start_wall_ns=SLOT_BEGINS + 1, pool="away"))
    store.started(deferral(2).key)
    span = ("home", SLOT_BEGINS + 1, SLOT_BEGINS + SLOT)
    assert store.planned(*span) == [SLOT_BEGINS + 1, SLOT_BEGINS + 5]
    assert store.planned(*span, besides=deferral(1).key) == [SLOT_BEGINS + 5]


def test_a_full_slot_refuses_and_leaves_an_earlier_plan_as_it_was(store: DeferralStore) -> None:
    first, second, third = (deferral(number, start_wall_ns=SLOT_BEGINS + number) for number in range(3))
    assert store.plan(first, places=2, slot_s=SLOT_S)
    assert store.plan(second, places=2, slot_s=SLOT_S)
    assert store.plan(third, places=2, slot_s=SLOT_S) is Planned.FULL
    assert store.plan(replace(third, start_wall_ns=SLOT_BEGINS + SLOT), places=2, slot_s=SLOT_S)
    assert store.plan(third, places=2, slot_s=SLOT_S) is Planned.FULL
    assert store.state_of(third.key).start_wall_ns == SLOT_BEGINS + SLOT  # type: ignore[union-attr]
    # Within its own slot a plan does not stand in its own way, and another pool has places of its own.
    assert store.plan(replace(first, start_wall_ns=SLOT_BEGINS + 9), places=2, slot_s=SLOT_S)
    assert store.plan(replace(third, pool="away"), places=2, slot_s=SLOT_S)
    # A place that is given back can be taken.
    store.started(first.key)
    assert store.plan(third, places=2, slot_s=SLOT_S)


def test_while_draining_all_is_released_and_nothing_new_waits(store: DeferralStore) -> None:
    assert not store.is_draining()
    store.plan(DEFERRAL)
    store.plan(deferral(2))
    assert {each.said_by for each in store.drain(said_by="ada")} == {"ada: drain"}
    assert store.is_draining()
    assert store.plan(deferral(3)) is Planned.DRAINING
    assert store.state_of(deferral(3).key) is None
    assert store.drain(said_by="ada") == []
    assert store.undrain(said_by="ada")
    assert not store.undrain(said_by="ada")
    assert store.plan(deferral(3))


def test_what_nobody_started_by_its_latest_start_lapses(store: DeferralStore, ledger: Ledger) -> None:
    long_ago = {"start_wall_ns": NOW - HOUR, "latest_wall_ns": NOW - HOUR}
    killed, ran, released, just = deferral(1, **long_ago), deferral(2, **long_ago), deferral(3, **long_ago), deferral(4)
    just = replace(just, latest_wall_ns=time.time_ns() - NS_PER_S)
    for each in (killed, ran, released, just):
        store.plan(each)
    store.release([released.key], said_by="ada", reason="")
    segment = Segment("node-1", "boot", 4242, 99)
    ledger.put_task(TaskRecord(ran.key, segment, TaskState.RUNNING, NOW - HOUR))
    assert {each.key: each.state for each in store.lapse()} == {
        killed.key: "gone", ran.key: "started", released.key: "gone",
    }  # fmt: skip
    assert [each.key for each in store.open()] == [just.key]


def test_a_plan_is_recorded_with_why_if_it_is_made(store: DeferralStore, ledger: Ledger) -> None:
    why = DecisionRecord(
        KEY, NOW, "enforce", "defer", "home", "cheaper at 02:00", {}, {"action": "defer"}, enforced=True
    )
    assert store.plan(DEFERRAL, decision=why)
    assert ledger.decisions(RUN) == [why]
    other = deferral(2)
    refused = store.plan(other, places=1, slot_s=SLOT_S, decision=replace(why, key=other.key))
    assert refused is Planned.FULL
    assert ledger.decisions(RUN) == [why]


def test_many_start_at_once_in_one_transaction(store: DeferralStore) -> None:
    deferrals = [deferral(number) for number in range(30)]
    for each in deferrals:
        store.plan(each)
    store.gone(deferrals[3].key)
    assert store.started(*(each.key for each in deferrals[:20]))
    assert not store.started(*(each.key for each in deferrals[:20]))
    assert not store.started()
    assert Counter(each.state for each in store.states_of([each.key for each in deferrals]).values()) == {
        "started": 19, "gone": 1, "waiting": 10,
    }  # fmt: skip
    assert store.starts() == {"home": sorted(each.start_wall_ns for each in deferrals[20:])}


def test_many_are_looked_up_at_once_and_also_those_that_are_over(store: DeferralStore) -> None:
    deferrals = [deferral(number) for number in range(100)]
    for each in deferrals:
        store.plan(each)
    store.started(deferrals[7].key)
    store.release([deferrals[8].key], said_by="a", reason="")
    found = store.states_of([each.key for each in (*deferrals[:90], deferral(200))])
    assert len(found) == 90
    assert Counter(each.state for each in found.values()) == {"waiting": 88, "started": 1, "released": 1}


def test_fifty_threads_never_overfill_a_slot(store: DeferralStore) -> None:
    gate = threading.Barrier(50)

    def plan(number: int) -> Planned:
        gate.wait()
        return store.plan(deferral(number), places=7, slot_s=SLOT_S)

    with ThreadPoolExecutor(50) as threads:
        outcomes = Counter(threads.map(plan, range(50)))
    assert outcomes == {Planned.YES: 7, Planned.FULL: 43}
    assert len(store.planned("home", SLOT_BEGINS, SLOT_BEGINS + SLOT)) == 7


_PLANNER = """
import sys
from tao_flows.ledger import open_ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import DecisionRecord, Deferral, RunKey

url, process, start, latest, places, slot_s = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
store = DeferralStore(open_ledger(url))
print("ready", flush=True)
sys.stdin.readline()
for number in range(12):
    key = RunKey("prefect", "default", "nightly", "run-0001", "train", f"{process}-{number}", 1)
    # As a task would: the next slot where one is full.
    for slot in range(4):
        wanted = Deferral(key, "home", start, start + slot * slot_s * 10**9, latest, "herd")
        if store.plan(wanted, places=places, slot_s=slot_s):
            break
print("done", flush=True)
"""


def test_eight_processes_fill_slots_one_after_another_and_never_overfill_one(url: str, store: DeferralStore) -> None:
    store.open()  # the ledger is there
    arguments = [str(value) for value in (SLOT_BEGINS, DEFERRAL.latest_wall_ns, 30, 300)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PLANNER, url, str(number), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(8)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            out, _ = process.communicate(timeout=120)
            assert (process.returncode, out) == (0, "done\n")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    by_slot = Counter((start_ns - SLOT_BEGINS) // SLOT for start_ns in store.planned("home", 0, NOW + 9 * HOUR))
    assert by_slot == {0: 30, 1: 30, 2: 30, 3: 6}


def test_no_plan_slips_past_a_drain(url: str, store: DeferralStore) -> None:
    store.open()  # the ledger is there
    gate = threading.Barrier(9)

    def with_a_store_of_its_own(act: Callable[[DeferralStore], object]) -> object:
        ledger = open_ledger(url)
        try:
            own = DeferralStore(ledger)
            own.open()
            gate.wait()
            return act(own)
        finally:
            ledger.close()

    acts: list[Callable[[DeferralStore], object]] = [
        *(partial(DeferralStore.plan, deferral=deferral(number)) for number in range(8)),
        partial(DeferralStore.drain, said_by="ada"),
    ]
    with ThreadPoolExecutor(9) as threads:
        outcomes = Counter(list(threads.map(with_a_store_of_its_own, acts))[:8])
    assert set(outcomes) <= {Planned.YES, Planned.DRAINING}
    assert [each.state for each in store.open()] == ["released"] * outcomes[Planned.YES]
