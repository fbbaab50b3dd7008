"""The promise of a wait: never later than its latest start, ended once, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.errors import LedgerError
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, RunKey
from tao_flows.testing import FakeClock
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Waitlist, Why

TICK_S = 5.0
"""How often the clocks are looked at in these tests: the granularity of every start."""
KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "instance-1", 1)
EPOCH_NS = 1_700_000_000 * NS_PER_S


class Clock(FakeClock):
    def set_wall(self, shift_s: float) -> None:
        self._wall_ns += round(shift_s * NS_PER_S)


class World(DeferralStore):
    """A ledger in memory that can go out, and a planner that changes its mind."""

    def __init__(self) -> None:
        self.rows: dict[RunKey, Deferral] = {}
        self.is_out = False
        self.answer: Deferral | str | None = None
        """A plan, or how the planner fails."""

    def states_of(self, keys: Sequence[RunKey]) -> dict[RunKey, Deferral]:
        if self.is_out:
            raise LedgerError("LEDGER_UNREACHABLE", "out")
        return {key: self.rows[key] for key in keys if key in self.rows}

    def reconsider(self) -> Deferral | None:
        if isinstance(self.answer, str):
            raise LedgerError("LEDGER_UNREACHABLE", "out") if self.answer == "out" else ValueError(self.answer)
        return self.answer


seconds = st.integers(-2_000, 4_000)
events = st.one_of(
    st.tuples(st.just("jump"), st.integers(-100_000, 100_000)),
    st.tuples(st.just("outage"), st.booleans()),
    st.tuples(st.just("replan"), seconds, seconds),
    st.tuples(st.just("forget")),
    st.tuples(st.just("release")),
    st.tuples(st.just("answer"), seconds, seconds),
    st.tuples(st.just("broken"), st.sampled_from(["out", "a bug"])),
    st.tuples(st.just("poll")),
)


@given(
    start_s=st.integers(0, 1_000),
    slack_s=st.integers(0, 1_000),
    waited_s=st.integers(0, 500),
    script=st.lists(st.lists(events, max_size=4), max_size=60),
)
def test_a_wait_ends_once_and_never_later_than_its_latest_start(
    start_s: int, slack_s: int, waited_s: int, script: list[list[tuple]]
) -> None:
    clock, world, over = Clock(wall_ns=EPOCH_NS), World(), []
    planned = Deferral(
        KEY, "home", EPOCH_NS - waited_s * NS_PER_S, EPOCH_NS + start_s * NS_PER_S,
        EPOCH_NS + (start_s + slack_s) * NS_PER_S, "cheaper later",
    )  # fmt: skip
    world.rows[KEY] = world.answer = planned
    latest_ns = clock.monotonic_ns() + (start_s + slack_s) * NS_PER_S
    waitlist = Waitlist(world, clock)
    waitlist.add(planned, lambda why: over.append((why, clock.monotonic_ns())), world.reconsider)
    ticks = int((start_s + slack_s) / TICK_S) + 2
    for tick in range(max(ticks, len(script))):
        for event in script[tick] if tick < len(script) else ():
            happen(event, clock, world, waitlist, planned)
        waitlist.expire()
        clock.advance(TICK_S)
    assert len(over) == 1
    ((why, ended_ns),) = over
    assert why.starts
    assert ended_ns <= latest_ns + TICK_S * NS_PER_S
    assert len(waitlist) == 0


def happen(event: tuple, clock: Clock, world: World, waitlist: Waitlist, planned: Deferral) -> None:
    kind, *values = event
    if kind == "jump":
        clock.set_wall(values[0])
    elif kind == "outage":
        world.is_out = values[0]
    elif kind in {"replan", "answer"}:
        plan = replace(
            planned,
            start_wall_ns=planned.start_wall_ns + values[0] * NS_PER_S,
            latest_wall_ns=planned.latest_wall_ns + values[1] * NS_PER_S,
        )
        if kind == "answer":
            world.answer = plan
        elif world.rows.get(KEY, planned).state == "waiting":
            world.rows[KEY] = plan
    elif kind == "forget":
        world.rows.pop(KEY, None)
    elif kind == "release":
        world.rows[KEY] = replace(planned, state="released")
    elif kind == "broken":
        world.answer = values[0]
    else:
        waitlist.poll()


@given(jumps=st.lists(st.integers(-100_000, 0), max_size=20), start_s=st.integers(0, 500), slack_s=st.integers(0, 500))
def test_without_a_jump_ahead_or_a_word_no_wait_ends_before_its_planned_start(
    jumps: list[int], start_s: int, slack_s: int
) -> None:
    clock, world, over = Clock(wall_ns=EPOCH_NS), World(), []
    start_ns = EPOCH_NS + start_s * NS_PER_S
    planned = Deferral(KEY, "home", EPOCH_NS, start_ns, start_ns + slack_s * NS_PER_S, "cheaper later")
    world.rows[KEY] = planned
    begun_ns = clock.monotonic_ns()
    waitlist = Waitlist(world, clock)
    waitlist.add(planned, lambda why: over.append((why, clock.monotonic_ns() - begun_ns)))
    for tick in range(int((start_s + slack_s) / TICK_S) + 2):
        if tick < len(jumps):
            clock.set_wall(jumps[tick])
        waitlist.poll()
        waitlist.expire()
        clock.advance(TICK_S)
    ((why, after_ns),) = over
    assert after_ns >= start_s * NS_PER_S
    assert why in {Why.PLANNED, Why.LATEST}
