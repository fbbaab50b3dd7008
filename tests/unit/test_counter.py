"""What a pair of readings of one counter says, and what it does not."""

from __future__ import annotations

from dataclasses import replace

from tao_flows.telemetry.base import Domain, Reading
from tao_flows.telemetry.counter import Difference, First, Gap, Reset, Wrapped, delta
from tao_flows.units import NS_PER_S

RANGE_UJ = 262_143_328_850
PACKAGE = Domain("package-0", "package", "rapl", range_uj=RANGE_UJ)
ENDLESS = replace(PACKAGE, range_uj=None)


def at(second: float, raw_uj: int | None, error: str = "") -> Reading:
    return Reading(round(second * NS_PER_S), raw_uj, error)


def test_a_first_reading_is_no_energy() -> None:
    assert delta(PACKAGE, None, at(0, 5)) == First()


def test_a_counter_that_moves_on_gives_the_difference() -> None:
    assert delta(PACKAGE, at(0, 100), at(1, 350)) == Difference(250)


def test_a_counter_that_stands_still_gives_zero_which_is_known() -> None:
    assert delta(PACKAGE, at(0, 100), at(1, 100)) == Difference(0)


def test_a_counter_past_its_range_wrapped_by_the_microjoule() -> None:
    assert delta(PACKAGE, at(0, RANGE_UJ - 40), at(1, 60)) == Wrapped(100)


def test_a_wrap_is_seen_even_between_readings_microseconds_apart() -> None:
    assert delta(PACKAGE, at(0, RANGE_UJ - 5_000_000), at(0.000_01, 2_000_000)) == Wrapped(7_000_000)


def test_a_counter_back_at_zero_from_the_middle_was_reset() -> None:
    assert delta(PACKAGE, at(0, RANGE_UJ // 2), at(1, 0)) == Reset()


def test_a_counter_without_a_range_never_wraps() -> None:
    assert delta(ENDLESS, at(0, RANGE_UJ - 40), at(1, 60)) == Reset()


def test_a_reading_above_the_range_is_followed_by_a_reset_not_a_wrap() -> None:
    assert delta(PACKAGE, at(0, RANGE_UJ + 5), at(1, 60)) == Reset()


def test_a_span_in_which_the_counter_could_come_all_the_way_round_is_a_gap() -> None:
    assert delta(PACKAGE, at(0, 100), at(600, 200)) == Gap("SAMPLED_TOO_SLOWLY")


def test_a_counter_without_a_range_may_be_read_as_rarely_as_one_likes() -> None:
    assert delta(ENDLESS, at(0, 100), at(86_400, 200)) == Difference(100)


def test_a_failed_reading_at_either_end_is_a_gap_with_its_code() -> None:
    assert delta(PACKAGE, at(0, 100), at(1, None, "READ_VANISHED")) == Gap("READ_VANISHED")
    assert delta(PACKAGE, at(0, None, "READ_RUBBISH"), at(1, 100)) == Gap("READ_RUBBISH")
    assert delta(PACKAGE, at(0, None), at(1, 100)) == Gap("READ_FAILED")


def test_time_that_runs_backwards_is_a_gap() -> None:
    assert delta(PACKAGE, at(2, 100), at(1, 200)) == Gap("CLOCK_BACKWARDS")
