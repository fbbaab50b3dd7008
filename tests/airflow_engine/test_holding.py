"""Held workloads: each goes on exactly once, whatever becomes of deciding on it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_plugin import holding
from airflow_plugin.holding import AWAY, HOME, Case, Desk, Onward

pytestmark = pytest.mark.airflow

GREEN = Onward(queue="green")


@dataclass(frozen=True)
class Instance:
    key: str


@dataclass(frozen=True)
class Workload:
    """As much of one as a desk looks at, and how the deciding thread behaves over it."""

    ti: Instance
    behaviour: str = "nothing"


def workloads(*behaviours: str) -> list[Workload]:
    return [Workload(Instance(f"task-{number}"), said) for number, said in enumerate(behaviours)]


@dataclass
class Decides:
    """The deciding thread's part."""

    slow_s: float = 0.0
    failures: list[BaseException] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def __call__(self, cases: Any) -> None:
        for case in cases:
            getattr(self, case.workload.behaviour)(case)

    def nothing(self, case: Case) -> None:
        pass

    def raises(self, case: Case) -> None:
        raise OSError("the database is gone")

    def exits(self, case: Case) -> None:
        raise SystemExit

    def is_slow(self, case: Case) -> None:
        time.sleep(self.slow_s)

    def defers(self, case: Case) -> None:
        self._write(case, AWAY)

    def reroutes(self, case: Case) -> None:
        self._write(case, GREEN)

    def fails_to_write(self, case: Case) -> None:
        with case.writing():
            raise OSError("the database is gone")

    def writes_slowly(self, case: Case) -> None:
        self._write(case, GREEN, self.slow_s)

    def says_twice(self, case: Case) -> None:
        case.settle(GREEN)
        case.settle(AWAY)

    def _write(self, case: Case, onward: Onward, seconds: float = 0.0) -> None:
        with case.writing() as mine:
            if mine:
                time.sleep(seconds)
                self.written.append(case.workload.ti.key)
                case.settle(onward)

    def desk(self) -> Desk:
        return Desk(self, self.failures.append, "deciding")


BEHAVIOURS = (
    "nothing", "raises", "exits", "is_slow", "defers", "reroutes", "fails_to_write", "writes_slowly", "says_twice",
)  # fmt: skip


def collected(desk: Desk) -> dict[str, Onward]:
    """Everything that was held, as it comes back; fails if one comes back twice."""
    back: dict[str, Onward] = {}
    while len(desk):
        for workload, onward in desk.collect():
            assert workload.ti.key not in back
            back[workload.ti.key] = onward
        time.sleep(0.001)
    return back


@settings(max_examples=40)
@given(st.lists(st.sampled_from(BEHAVIOURS), max_size=8), st.sampled_from([0.0, 0.03]))
def test_each_workload_comes_back_once_and_where_it_was_written_to(behaviours, slow_s):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "HOLD_S", 0.02)
        patch.setattr(holding, "WRITE_S", 30.0)
        decides = Decides(slow_s)
        desk, handed = decides.desk(), workloads(*behaviours)
        straight = {workload.ti.key: HOME for workload in handed if not desk.hold(workload)}
        desk.release()
        back = {**straight, **collected(desk)}
        desk.close()
    assert set(back) == {workload.ti.key for workload in handed}
    # What was said of a row, and what becomes of its workload, is never two things.
    assert {key for key, onward in back.items() if onward != HOME} <= {
        *decides.written, *(each.ti.key for each in handed if each.behaviour == "says_twice")
    }  # fmt: skip
    assert set(decides.written) <= {key for key, onward in back.items() if onward != HOME}
    assert desk.collect(everything=True) == []


def test_nothing_is_decided_before_it_is_released():
    decides = Decides()
    desk = decides.desk()
    desk.hold(workloads("reroutes")[0])
    time.sleep(0.05)
    assert desk.collect() == []
    assert decides.written == []
    desk.release()
    assert collected(desk) == {"task-0": GREEN}


def test_what_is_held_too_long_goes_home_and_is_not_written_any_more(monkeypatch):
    monkeypatch.setattr(holding, "HOLD_S", 0.02)
    hangs, decides = threading.Event(), Decides()
    decides.nothing = lambda case: hangs.wait()  # type: ignore[method-assign]
    desk = decides.desk()
    for workload in workloads("nothing", "defers"):
        assert desk.hold(workload)
    desk.release()
    assert collected(desk) == {"task-0": HOME, "task-1": HOME}
    # As long as the thread hangs nothing more is held up.
    assert not desk.hold(Workload(Instance("later"), "defers"))
    hangs.set()
    desk.close()
    assert decides.written == []


def test_a_workload_whose_row_is_being_written_is_waited_for(monkeypatch):
    monkeypatch.setattr(holding, "HOLD_S", 0.02)
    decides = Decides(slow_s=0.1)
    desk = decides.desk()
    desk.hold(workloads("writes_slowly")[0])
    desk.release()
    assert collected(desk) == {"task-0": GREEN}


def test_many_are_held_for_as_long_as_the_thread_gets_on_with_them_and_no_longer_than_the_bound(monkeypatch):
    monkeypatch.setattr(holding, "HOLD_S", 0.2)
    decides = Decides(slow_s=0.02)
    desk = decides.desk()
    for workload in workloads(*["writes_slowly"] * 30):
        desk.hold(workload)
    desk.release()
    assert collected(desk) == {f"task-{number}": GREEN for number in range(30)}
    monkeypatch.setattr(holding, "WRITE_S", 0.3)
    for workload in workloads(*["is_slow"] * 100, "defers"):
        desk.hold(workload)
    desk.release()
    assert set(collected(desk).values()) == {HOME}
    desk.close()


def test_one_that_is_queued_anew_takes_the_place_of_its_earlier_self():
    desk = Decides().desk()
    first, second = Workload(Instance("task"), "defers"), Workload(Instance("task"), "reroutes")
    desk.hold(first)
    desk.hold(second)
    desk.release()
    assert collected(desk) == {"task": GREEN}


def test_a_desk_that_is_closed_holds_nothing_and_gives_back_what_it_has():
    desk = Decides().desk()
    (workload,) = workloads("defers")
    desk.hold(workload)
    desk.close()
    assert not desk.hold(workload)
    assert desk.collect(everything=True) == [(workload, HOME)]


def test_what_is_dropped_does_not_come_back():
    desk = Decides().desk()
    (workload,) = workloads("nothing")
    desk.hold(workload)
    assert workload.ti.key in desk
    desk.drop(workload.ti.key)
    desk.release()
    assert desk.collect(everything=True) == []
