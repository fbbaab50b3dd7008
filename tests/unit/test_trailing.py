"""The learned margin and the corrected forecast: what they follow, what they leave alone, and that they never peek."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from tao_flows.signals.model import Issue, Steps
from tao_flows.signals.trailing import NO_TRUST, WINDOW_DAYS, Trail, alike_s, step_of

HOUR_NS = 3_600 * 10**9
DAY_NS = 24 * HOUR_NS
FIRST_NS = 20_000 * DAY_NS
LEADS = 12
SLACK_S, RUNTIME_S = 6 * 3_600.0, 2 * 3_600.0


def noise(days: int, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [draw.uniform(20.0, 100.0) for _ in range(24 * days)]


def actuals(values: Sequence[float]) -> Steps:
    return tuple((FIRST_NS + hour * HOUR_NS, value) for hour, value in enumerate(values))


def issues(values: Sequence[float], told: Callable[[float], float] = lambda value: value) -> tuple[Issue, ...]:
    """At every hour a forecast of the hours after it."""
    return tuple(
        Issue(
            FIRST_NS + hour * HOUR_NS,
            tuple(
                (FIRST_NS + (hour + lead) * HOUR_NS, told(values[hour + lead]))
                for lead in range(1, min(LEADS, len(values) - hour - 1) + 1)
            ),
        )
        for hour in range(len(values) - 1)
    )


def trail_of(values: Sequence[float], made: Sequence[Issue], until_h: int | None = None) -> Trail:
    trail = Trail(HOUR_NS, SLACK_S + RUNTIME_S)
    trail.add(made, actuals(values))
    trail.advance(FIRST_NS + ((len(values) if until_h is None else until_h) - 1) * HOUR_NS)
    return trail


def test_forecasts_that_come_true_are_followed_without_a_margin_and_save_all_there_is() -> None:
    values = noise(20)
    margin = trail_of(values, issues(values)).margin(SLACK_S, RUNTIME_S)
    assert margin.follow
    assert margin.margin == 0.0
    assert margin.share == pytest.approx(1.0, abs=0.01)
    assert margin.replayed > 15 * 24


def test_a_signal_that_never_changes_is_not_waited_for() -> None:
    values = [50.0] * 24 * 10
    margin = trail_of(values, issues(values)).margin(SLACK_S, RUNTIME_S)
    assert not margin.follow
    assert margin.share is None


def test_a_random_walk_with_forecasts_out_of_thin_air_gains_no_lasting_trust() -> None:
    draw = random.Random(3)
    values, value = [], 100.0
    for _ in range(24 * 80):
        value += draw.gauss(0.0, 1.0)
        values.append(value)
    made = issues(values, lambda _: draw.uniform(50.0, 150.0))
    trail = Trail(HOUR_NS, SLACK_S + RUNTIME_S)
    trail.add(made, actuals(values))
    cost = at_once = 0.0
    for day in range(WINDOW_DAYS, 79):
        trail.advance(FIRST_NS + day * DAY_NS)
        margin = trail.margin(SLACK_S, RUNTIME_S)
        expected = [one for _, one in trail.forecast(corrected=margin.corrected)]
        runs = [expected[at] + expected[at + 1] for at in range(7)]
        wait = runs.index(min(runs)) if margin.follow and min(runs) * (1.0 + margin.margin) < runs[0] else 0
        hour = 24 * day
        cost += values[hour + wait] + values[hour + wait + 1]
        at_once += values[hour] + values[hour + 1]
    assert cost == pytest.approx(at_once, rel=0.005)


def test_forecasts_turned_upside_down_are_corrected_or_not_followed() -> None:
    values = noise(40)
    trail = trail_of(values, issues(values, lambda value: 120.0 - value))
    margin = trail.margin(SLACK_S, RUNTIME_S)
    # The plain ones say the opposite of what comes: what is followed must be the corrected ones.
    assert margin.follow
    assert margin.corrected
    assert margin.share is not None
    assert margin.share > 0.5


def test_a_constant_error_is_taken_off_the_forecast() -> None:
    values = noise(40)
    trail = trail_of(values, issues(values, lambda value: value + 25.0), until_h=24 * 39)
    hour = 24 * 39 - 1
    truth = values[hour + 1 : hour + 7]
    plain = [value for _, value in trail.forecast(corrected=False)][1:7]
    corrected = [value for _, value in trail.forecast(corrected=True)][1:7]
    assert plain == pytest.approx([value + 25.0 for value in truth])
    # Held within what has been, and so never off by more than a value at the edge allows.
    assert max(abs(one - other) for one, other in zip(corrected, truth, strict=True)) < 5.0


def test_beyond_its_end_a_forecast_goes_on_like_the_day_before() -> None:
    values = [50.0 + 30.0 * math.sin(hour * math.pi / 12) for hour in range(24 * 20)]
    trail = trail_of(values, ())
    assert [at for at, _ in trail.forecast(corrected=False)] == [
        FIRST_NS + (len(values) - 1 + lead) * HOUR_NS for lead in range(9)
    ]
    expected = [50.0 + 30.0 * math.sin((len(values) - 1 + lead) * math.pi / 12) for lead in range(9)]
    assert [value for _, value in trail.forecast(corrected=False)] == pytest.approx(expected)
    margin = trail.margin(SLACK_S, RUNTIME_S)
    assert margin.follow
    # On the first day there is none before.
    assert margin.share == pytest.approx(1.0, abs=0.06)


def test_what_is_not_known_yet_changes_nothing() -> None:
    values = noise(30)
    other = values[: 24 * 20] + noise(10, seed=9)
    until_h = 24 * 20
    now_ns = FIRST_NS + (until_h - 1) * HOUR_NS
    known = [issue for issue in issues(values) if issue.issued_wall_ns <= now_ns]
    later = [issue for issue in issues(other) if issue.issued_wall_ns > now_ns]
    seen = trail_of(values, [*known, *later], until_h)
    cut = trail_of(values[:until_h], known, until_h)
    changed = trail_of(other, [*known, *later], until_h)
    for trail in (cut, changed):
        assert trail.margin(SLACK_S, RUNTIME_S) == seen.margin(SLACK_S, RUNTIME_S)
        assert trail.forecast(corrected=True) == seen.forecast(corrected=True)


def test_it_learns_the_same_step_by_step_as_at_once() -> None:
    values = noise(25)
    made = issues(values, lambda value: value + 10.0)
    whole = trail_of(values, made)
    by_hour = Trail(HOUR_NS, SLACK_S + RUNTIME_S)
    for hour, (issue, step) in enumerate(zip([*made, None], actuals(values), strict=True)):
        by_hour.add([] if issue is None else [issue], [step])
        by_hour.advance(FIRST_NS + hour * HOUR_NS)
        if hour % 50 == 0:
            by_hour.margin(SLACK_S, RUNTIME_S)
    assert by_hour.margin(SLACK_S, RUNTIME_S) == whole.margin(SLACK_S, RUNTIME_S)
    assert by_hour.forecast(corrected=True) == whole.forecast(corrected=True)


def test_lies_are_seen_through_within_days_and_the_truth_is_believed_again_when_they_end() -> None:
    values = [60.0, 20.0] * (12 * 90)
    lies = range(24 * 30, 24 * 60)
    made = tuple(
        Issue(issue.issued_wall_ns, tuple((at, 75.0 - value) for at, value in issue.steps)) if hour in lies else issue
        for hour, issue in enumerate(issues(values))
    )
    trail = Trail(HOUR_NS, SLACK_S + RUNTIME_S)
    trail.add(made, actuals(values))
    # Hour 0 of a day costs 60, which is worth waiting, and hour 1 costs 20, which is not.
    paid: dict[int, list[float]] = {0: [], 1: []}
    for day in range(89):
        for hour, into in paid.items():
            trail.advance(FIRST_NS + day * DAY_NS + hour * HOUR_NS)
            margin = trail.margin(SLACK_S, 3_600.0)
            expected = [value for _, value in trail.forecast(corrected=margin.corrected)][:7]
            later = min(expected[1:])
            waits = margin.follow and later * (1.0 + margin.margin) < expected[0]
            into.append(values[24 * day + hour + (expected.index(later) if waits else 0)])
    assert paid[0][5:30] == [20.0] * 25
    assert 60.0 in paid[1][30:37]
    assert paid[1][37:60] == [20.0] * 23
    assert paid[0][80:] == [20.0] * 9


def test_a_lost_feed_leaves_the_last_forecast_and_no_values_made_up() -> None:
    values = noise(20)
    made = [issue for issue in issues(values) if issue.issued_wall_ns < FIRST_NS + 15 * DAY_NS]
    trail = Trail(HOUR_NS, SLACK_S + RUNTIME_S)
    trail.add(made, actuals(values)[: 24 * 15])
    trail.advance(FIRST_NS + 15 * DAY_NS + 3 * HOUR_NS)
    # The newest forecast still covers the hours since, at a lead of four.
    (now_ns, now), *_ = trail.forecast(corrected=False)
    assert now_ns == FIRST_NS + 15 * DAY_NS + 3 * HOUR_NS
    assert now == values[24 * 15 + 3]


def test_of_nothing_nothing_is_learned() -> None:
    trail = Trail(HOUR_NS, 3_600.0)
    assert trail.margin(SLACK_S, RUNTIME_S) == NO_TRUST
    assert trail.forecast(corrected=True) == ()
    trail.advance(FIRST_NS)
    assert not trail.margin(SLACK_S, RUNTIME_S).follow


def test_a_task_without_slack_does_not_follow_anything() -> None:
    values = noise(10)
    assert trail_of(values, issues(values)).margin(0.0, RUNTIME_S) == NO_TRUST


def test_a_long_horizon_is_looked_at_in_coarser_steps_that_divide_a_day() -> None:
    trail = Trail(300 * 10**9, 170 * 3_600.0)
    assert DAY_NS % trail.step_ns == 0
    assert 170 * 3_600 * 10**9 / trail.step_ns <= 96


@pytest.mark.parametrize(("lengths", "step"), [((1, 1, 2, 1), 1), ((2, 2, 1), 2)])
def test_the_step_of_a_signal_is_its_commonest(lengths: tuple[int, ...], step: int) -> None:
    starts = [sum(lengths[:n]) * HOUR_NS for n in range(len(lengths) + 1)]
    assert step_of((), tuple((start, 1.0) for start in starts)) == step * HOUR_NS
    assert step_of((Issue(0, tuple((start, 1.0) for start in starts)),), ()) == step * HOUR_NS


def test_without_any_step_an_hour_is_taken() -> None:
    assert step_of((), ((0, 1.0),)) == HOUR_NS


def test_alike_tasks_share_a_slack() -> None:
    assert alike_s(7_000.0) == alike_s(7_500.0)
    assert alike_s(3_600.0) != alike_s(7_200.0)
    assert alike_s(0.0) == 1.0
