"""Deciding anew on what waits: at once when something has changed, and next to nothing while nothing has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from place import NOW_NS, PATIENT, Wired, iso, number

from tao_flows.admission import RECONSIDER_S, Admission, asking
from tao_flows.admission.planned import PlannedStarts
from tao_flows.admission.shared import LOOK_S, SHARED_TTL_S
from tao_flows.config import TaoConfig
from tao_flows.ledger.pools import PoolStore
from tao_flows.pool_state import PoolState
from tao_flows.records import Deferral
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Reconsider, Waitlist, Why

BUDGET = '[budgets.all]\nlimit = "10 kWh"\nscope = "global"\n'


class Waiting:
    """A task that waits for its carbon to fall, and what decides anew on it."""

    def __init__(self, place: Wired) -> None:
        self.place = place
        place.ran(3.6e6)
        self.toml = place.falling() + BUDGET
        self.config = place.configured(self.toml)
        self.admission: Admission = place.admission(self.config)
        self.deferral = self.waits(0)
        place.clock.advance(SHARED_TTL_S)  # the budget that the settings brought is in the ledger now
        self.reconsider = self.anew(0)
        assert self.reconsider() == self.deferral

    def waits(self, instance: int) -> Deferral:
        found = self.admission.ask(number(PATIENT, instance), self.config).deferral
        assert found is not None
        return found

    def settings(self) -> TaoConfig:
        return self.config

    def anew(self, instance: int, deferral: Deferral | None = None) -> Reconsider:
        return self.admission.reconsider(number(PATIENT, instance), self.settings, deferral or self.deferral)

    def forecast(self, *rows: tuple[int, float]) -> None:
        lines = [f"{iso(NOW_NS // NS_PER_S + after)},DE,{value}" for after, value in rows]
        path = self.place.directory / "carbon.csv"
        path.write_text("\n".join(["time,zone,value", *lines]), encoding="utf-8")


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    place = Wired(tmp_path)
    yield Waiting(place)
    place.safe.close()


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every decision on what waits."""
    asked: list[object] = []
    choose = asking.choose

    def counted(request: object) -> object:
        asked.append(request)
        return choose(request)  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "choose", counted)
    return asked


def test_while_nothing_changes_it_is_decided_once_a_minute(waiting: Waiting, decided: list[object]) -> None:
    for _ in range(11):
        waiting.place.clock.advance(5.0)
        assert waiting.reconsider() == waiting.deferral
    assert not decided
    waiting.place.clock.advance(RECONSIDER_S)
    assert waiting.reconsider() == waiting.deferral
    assert len(decided) == 1


def lost_signal(waiting: Waiting) -> None:
    (waiting.place.directory / "carbon.csv").unlink()


def told_anew(waiting: Waiting) -> None:
    waiting.forecast((-100, 500.0), (3_600, 49.0), (10_800, 500.0))


def other_settings(waiting: Waiting) -> None:
    waiting.config = waiting.place.configured(waiting.toml + '[budgets.other]\nlimit = "1 kJ"\n')


def pool_that_is_gone(waiting: Waiting) -> None:
    PoolStore(waiting.place.safe).saw(PoolState("home", "worker", waiting.place.clock.wall_ns(), online=False))


def other_regime(waiting: Waiting) -> None:
    waiting.admission.budgets.set_regime("all", "transition")


@pytest.mark.parametrize("change", [lost_signal, told_anew, other_settings, pool_that_is_gone, other_regime])
def test_a_change_that_concerns_it_has_it_decided_at_once(
    waiting: Waiting, decided: list[object], change: Callable[[Waiting], None]
) -> None:
    change(waiting)
    waiting.place.clock.advance(SHARED_TTL_S + LOOK_S)
    waiting.reconsider()
    assert len(decided) == 1


def test_a_plan_taken_up_from_elsewhere_is_decided_at_the_first_look(waiting: Waiting, decided: list[object]) -> None:
    waiting.forecast((-100, 500.0), (3_600, 900.0))
    waiting.place.clock.advance(LOOK_S)
    assert waiting.anew(0)() is None
    assert len(decided) == 1


def test_a_better_time_moves_the_plan_and_says_why(waiting: Waiting) -> None:
    waiting.forecast((-100, 500.0), (1_800, 50.0), (3_600, 500.0), (10_800, 500.0))
    waiting.place.clock.advance(LOOK_S)
    moved = waiting.reconsider()
    assert moved is not None
    assert moved.start_wall_ns < waiting.deferral.start_wall_ns
    assert [each.start_wall_ns for each in waiting.admission.deferrals.open()] == [moved.start_wall_ns]
    with waiting.place.safe.transaction(write=False) as tx:
        assert tx.execute("SELECT count(*) FROM decisions") == [(2,)]


def test_a_thousand_that_wait_start_with_one_poll_when_the_signal_changes(waiting: Waiting) -> None:
    deferrals = waiting.admission.deferrals
    waiting.place.configured(waiting.toml)
    over: list[Why] = []
    waitlist = Waitlist(deferrals, waiting.place.clock)
    for instance in range(1_000):
        waitlist.add(waiting.deferral, over.append, waiting.anew(instance))
    waitlist.poll()
    assert not over
    waiting.forecast((-100, 50.0), (3_600, 500.0))
    waiting.place.clock.advance(LOOK_S)
    waitlist.poll()
    assert over == [Why.RECONSIDERED] * 1_000


def test_without_a_ledger_what_waits_keeps_to_its_plan(waiting: Waiting, tmp_path: Path) -> None:
    waiting.place.safe.close()
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1_000)
    for _ in range(3):
        waiting.place.clock.advance(SHARED_TTL_S + LOOK_S)
        assert waiting.reconsider() == waiting.deferral


def test_starts_read_once_are_those_that_the_ledger_would_tell_one_by_one(waiting: Waiting) -> None:
    store, clock = waiting.admission.deferrals, waiting.place.clock
    plans = [waiting.waits(instance) for instance in range(1, 6)]
    starts = PlannedStarts(store, clock)
    everything = ("home", 0, 2**62)
    for plan in plans:
        assert starts.besides(plan)(*everything) == store.planned(*everything, besides=plan.key)
    first, last = plans[0], plans[-1]
    start_ns = first.start_wall_ns + 300 * NS_PER_S
    moved = Deferral(first.key, "home", first.ready_wall_ns, start_ns, first.latest_wall_ns, "later")
    assert store.plan(moved)
    starts.moved(first, moved)
    assert starts.besides(last)(*everything) == store.planned(*everything, besides=last.key)
    just_then = ("home", start_ns, start_ns + 1)
    assert starts.besides(last)(*just_then) == store.planned(*just_then, besides=last.key)
    store.gone(*(plan.key for plan in plans))
    starts.forget()
    assert starts.besides(last)(*everything) == store.planned(*everything, besides=last.key)
