from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows.errors import LedgerError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, RunKey
from tao_flows.testing import FakeClock
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Waiters, Waitlist, Why, wait

KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "instance-1", 1)
S = NS_PER_S


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeferralStore]:
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    yield DeferralStore(ledger)
    ledger.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall_ns=time.time_ns())


class Setback(FakeClock):
    """A clock whose wall time can be set."""

    def set_wall(self, shift_s: float) -> None:
        self._wall_ns += round(shift_s * S)


def deferral(clock: FakeClock, start_s: float, latest_s: float, number: int = 1) -> Deferral:
    now_ns = clock.wall_ns()
    key = replace(KEY, instance=f"instance-{number}")
    return Deferral(key, "home", now_ns, now_ns + round(start_s * S), now_ns + round(latest_s * S), "cheaper later")


def begun(
    store: DeferralStore, clock: FakeClock, planned: Deferral, reconsider: Callable[[], Deferral | None] | None = None
) -> tuple[Waitlist, list[Why]]:
    """A wait for what is planned, and the list that its end is put into."""
    store.plan(planned)
    over: list[Why] = []
    waitlist = Waitlist(store, clock)
    waitlist.add(planned, over.append, reconsider)
    return waitlist, over


def test_a_wait_ends_at_its_planned_start_and_not_before(store: DeferralStore, clock: FakeClock) -> None:
    waitlist, over = begun(store, clock, deferral(clock, 100, 200))
    assert waitlist.expire() == 100.0
    clock.advance(99)
    waitlist.poll()
    assert waitlist.expire() == 1.0
    assert over == []
    clock.advance(1)
    assert waitlist.expire() is None
    assert over == [Why.PLANNED]
    waitlist.poll()
    assert (over, len(waitlist)) == ([Why.PLANNED], 0)


def test_a_plan_beyond_the_latest_start_ends_at_the_latest_start(store: DeferralStore, clock: FakeClock) -> None:
    waitlist, over = begun(store, clock, deferral(clock, 300, 200))
    clock.advance(200)
    waitlist.expire()
    assert over == [Why.LATEST]


@pytest.mark.parametrize(
    ("act", "why", "starts"),
    [
        (lambda store: store.release("all", said_by="ada", reason=""), Why.RELEASED, True),
        (lambda store: store.drain(said_by="ada"), Why.RELEASED, True),
        (lambda store: store.started(KEY), Why.STARTED, False),
        (lambda store: store.gone(KEY), Why.GONE, False),
    ],
)
def test_a_poll_hears_what_became_of_it(
    store: DeferralStore, clock: FakeClock, act: Callable[[DeferralStore], object], why: Why, *, starts: bool
) -> None:
    waitlist, over = begun(store, clock, deferral(clock, 100, 200))
    act(store)
    waitlist.poll()
    assert over == [why]
    assert why.starts is starts


def test_a_plan_that_another_moved_is_followed_but_never_beyond_the_first_latest_start(
    store: DeferralStore, clock: FakeClock
) -> None:
    planned = deferral(clock, 100, 200)
    waitlist, over = begun(store, clock, planned)
    store.plan(
        replace(planned, start_wall_ns=planned.start_wall_ns + 50 * S, latest_wall_ns=planned.latest_wall_ns * 2)
    )
    waitlist.poll()
    assert waitlist.expire() == 150.0
    store.plan(replace(planned, start_wall_ns=planned.latest_wall_ns * 2, latest_wall_ns=planned.latest_wall_ns * 2))
    waitlist.poll()
    assert waitlist.expire() == 200.0
    store.plan(replace(planned, start_wall_ns=planned.latest_wall_ns, latest_wall_ns=planned.latest_wall_ns - 20 * S))
    waitlist.poll()
    assert waitlist.expire() == 180.0
    clock.advance(180)
    waitlist.expire()
    assert over == [Why.LATEST]


def test_a_clock_that_is_set_back_puts_no_start_off_beyond_the_latest(store: DeferralStore) -> None:
    clock = Setback(wall_ns=time.time_ns())
    waitlist, over = begun(store, clock, deferral(clock, 100, 200))
    clock.set_wall(-1_000)
    assert waitlist.expire() == 200.0
    clock.advance(200)
    waitlist.expire()
    assert over == [Why.LATEST]


def test_a_wait_that_begins_after_the_clock_was_set_back_is_no_longer_than_promised(store: DeferralStore) -> None:
    clock = Setback(wall_ns=time.time_ns())
    planned = deferral(clock, 100, 200)
    clock.set_wall(-1_000)
    waitlist, _ = begun(store, clock, planned)
    assert waitlist.expire() == 200.0


def test_a_clock_that_is_put_forward_brings_the_start_forward(store: DeferralStore) -> None:
    clock = Setback(wall_ns=time.time_ns())
    waitlist, over = begun(store, clock, deferral(clock, 100, 200))
    clock.set_wall(150)
    waitlist.expire()
    assert over == [Why.PLANNED]


def test_a_wait_that_can_no_longer_be_justified_ends(store: DeferralStore, clock: FakeClock) -> None:
    plans: list[Deferral | None] = [deferral(clock, 150, 200), None]
    waitlist, over = begun(store, clock, deferral(clock, 100, 200), lambda: plans.pop(0))
    waitlist.poll()
    assert waitlist.expire() == 150.0
    waitlist.poll()
    assert over == [Why.RECONSIDERED]


def test_a_mistake_in_reconsidering_ends_the_wait_and_is_logged(
    store: DeferralStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    waitlist, over = begun(store, clock, deferral(clock, 100, 200), lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    waitlist.poll()
    assert over == [Why.RECONSIDERED]
    assert "reconsidering a wait failed" in caplog.text


class Outage(DeferralStore):
    """A store that cannot be reached while ``is_out``."""

    is_out = True

    def states_of(self, keys: Sequence[RunKey]) -> dict[RunKey, Deferral]:
        if self.is_out:
            raise LedgerError("LEDGER_UNREACHABLE", "no route to the database")
        return dict(super().states_of(keys))


def test_without_a_ledger_a_wait_keeps_to_its_plan_and_says_so_once(
    store: DeferralStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage(store._ledger)
    planned = deferral(clock, 100, 200)

    def reconsider() -> Deferral:
        if outage.is_out:
            raise LedgerError("LEDGER_UNREACHABLE", "no route to the database")
        return planned

    waitlist, over = begun(outage, clock, planned, reconsider)
    for _ in range(3):
        waitlist.poll()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "the ledger cannot be read: LEDGER_UNREACHABLE: no route to the database; what waits keeps" in caplog.text
    outage.is_out = False
    waitlist.poll()
    outage.is_out = True
    waitlist.poll()
    assert len(caplog.records) == 4
    assert over == []
    clock.advance(100)
    waitlist.expire()
    assert over == [Why.PLANNED]


def test_what_the_ledger_knows_nothing_of_goes_on_waiting(store: DeferralStore, clock: FakeClock) -> None:
    over: list[Why] = []
    waitlist = Waitlist(store, clock)
    waitlist.add(deferral(clock, 100, 200), over.append)
    waitlist.poll()
    assert waitlist.expire() == 100.0
    assert over == []


def test_one_poll_reads_the_ledger_once_for_all_that_wait(store: DeferralStore, clock: FakeClock) -> None:
    reads: list[int] = []

    class Counting(DeferralStore):
        def states_of(self, keys: Sequence[RunKey]) -> dict[RunKey, Deferral]:
            reads.append(len(keys))
            return dict(super().states_of(keys))

    waitlist, over = Waitlist(Counting(store._ledger), clock), []
    for number in range(300):
        planned = deferral(clock, 100 + number, 1_000, number)
        store.plan(planned)
        waitlist.add(planned, over.append)
    waitlist.poll()
    assert reads == [300]
    clock.advance(199)
    waitlist.expire()
    assert (len(over), len(waitlist)) == (100, 200)
    store.release("all", said_by="ada", reason="")
    waitlist.poll()
    assert reads == [300, 200]
    assert over.count(Why.RELEASED) == 200
    waitlist.poll()
    assert reads == [300, 200]


def test_a_wait_that_is_called_off_ends_without_a_word(store: DeferralStore, clock: FakeClock) -> None:
    over: list[Why] = []
    waitlist = Waitlist(store, clock)
    cancel = waitlist.add(deferral(clock, 100, 200), over.append)
    assert cancel()
    assert not cancel()
    clock.advance(300)
    waitlist.expire()
    assert over == []


def test_a_mistake_in_what_follows_one_wait_leaves_the_others_alone(
    store: DeferralStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    over: list[Why] = []
    waitlist = Waitlist(store, clock)
    waitlist.add(deferral(clock, 100, 200, 1), lambda why: over.append(1 // 0))  # type: ignore[arg-type]
    waitlist.add(deferral(clock, 100, 200, 2), over.append)
    clock.advance(100)
    waitlist.expire()
    assert over == [Why.PLANNED]
    assert "what was to follow a wait failed" in caplog.text


def now_deferral(start_s: float, latest_s: float) -> Deferral:
    return deferral(FakeClock(wall_ns=time.time_ns()), start_s, latest_s)


def test_waiting_in_place_ends_at_the_planned_start(store: DeferralStore) -> None:
    planned = now_deferral(0.3, 60)
    store.plan(planned)
    assert wait(store, planned, poll_s=30) is Why.PLANNED
    assert time.time_ns() >= planned.start_wall_ns


def test_waiting_in_place_ends_when_another_process_releases_it(store: DeferralStore, tmp_path: Path) -> None:
    planned = now_deferral(600, 600)
    store.plan(planned)
    elsewhere = DeferralStore(open_ledger(str(tmp_path / "ledger.db")))
    timer = threading.Timer(0.2, elsewhere.release, ("all",), {"said_by": "ada", "reason": ""})
    timer.start()
    assert wait(store, planned, poll_s=0.05) is Why.RELEASED
    timer.join()


def test_waiting_in_place_ends_when_it_is_told_to_stop(store: DeferralStore) -> None:
    planned = now_deferral(600, 600)
    store.plan(planned)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    assert wait(store, planned, poll_s=60, stop=stop) is Why.STOPPED
    found = store.state_of(KEY)
    assert found is not None
    assert found.state == "waiting"


def test_an_interrupt_of_a_wait_takes_it_off_the_list(store: DeferralStore) -> None:
    waiters = Waiters(store, poll_s=0.05)

    class Interrupting(threading.Event):
        def is_set(self) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        waiters.wait(now_deferral(600, 600), stop=Interrupting())
    assert not len(waiters._list)


def test_a_ledger_that_hangs_delays_no_start(store: DeferralStore) -> None:
    answered, hung = threading.Event(), threading.Event()

    class Hanging(DeferralStore):
        def states_of(self, keys: Sequence[RunKey]) -> dict[RunKey, Deferral]:
            hung.set()
            answered.wait(60)
            return {}

    try:
        why = wait(Hanging(store._ledger), now_deferral(600, 0.4), poll_s=0.05)
        assert (why, hung.is_set(), answered.is_set()) == (Why.LATEST, True, False)
    finally:
        answered.set()


def test_the_threads_end_with_the_last_wait_and_begin_anew_with_the_next(store: DeferralStore) -> None:
    waiters = Waiters(store, poll_s=0.05)
    for _ in range(2):
        others = set(threading.enumerate())
        assert waiters.wait(now_deferral(0.1, 60)) is Why.PLANNED
        mine = set(threading.enumerate()) - others
        for thread in mine:
            thread.join(30)
        assert not any(thread.is_alive() for thread in mine)
        assert not waiters._running


def test_a_later_wait_with_an_earlier_start_is_not_overslept(store: DeferralStore) -> None:
    waiters = Waiters(store, poll_s=600)
    order: list[str] = []
    cancel = waiters.add(now_deferral(500, 600), lambda why: order.append("late"))
    time.sleep(0.2)  # the thread that watches the clocks has lain down by now
    assert waiters.wait(now_deferral(0.1, 600)) is Why.PLANNED
    assert order == []
    assert cancel()
