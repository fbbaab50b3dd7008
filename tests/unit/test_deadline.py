from __future__ import annotations

import pickle
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from tao_flows.deadline import Deadline, References, earliest
from tao_flows.errors import InputError

BERLIN = ZoneInfo("Europe/Berlin")
READY = datetime(2026, 3, 2, 10, tzinfo=timezone.utc)
ALL = References(
    READY, READY - timedelta(hours=3), READY - timedelta(hours=2), datetime(2026, 3, 2, 0, tzinfo=timezone.utc)
)


def at(text: object, references: References = ALL) -> str | None:
    moment = Deadline.parse(text).at(references)
    return None if moment is None else moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("value", ["2h", " 120m ", 7200, 7200.0, timedelta(hours=2), "2h after ready", "2h FROM Ready"])
def test_a_plain_duration_counts_from_when_the_task_became_ready(value: object) -> None:
    assert at(value) == "2026-03-02 12:00:00"
    assert Deadline.parse(value) == Deadline(after_s=7200.0)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h after run_start", "2026-03-02 09:00:00"),
        ("2h after run start", "2026-03-02 09:00:00"),
        ("2h from queued", "2026-03-02 10:00:00"),
        ("1h 30m after data interval end", "2026-03-02 01:30:00"),
        ("0s after data-interval-end", "2026-03-02 00:00:00"),
    ],
)
def test_a_duration_counts_from_the_moment_it_names(text: str, moment: str) -> None:
    assert at(text) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("by 06:00 Europe/Berlin", "2026-03-03 05:00:00"),
        ("by 11:00:01 Europe/Berlin", "2026-03-02 10:00:01"),
        ("by 11:00 Europe/Berlin", "2026-03-03 10:00:00"),
        ("by 6:00 UTC after data_interval_end", "2026-03-02 06:00:00"),
        ("by 00:00 UTC after data_interval_end", "2026-03-03 00:00:00"),
        ("BY 09:30 America/New_York", "2026-03-02 14:30:00"),
        ("by 01:00 Pacific/Kiritimati", "2026-03-02 11:00:00"),
    ],
)
def test_a_time_of_day_is_the_first_of_that_zone_after_its_reference(text: str, moment: str) -> None:
    assert at(text) == moment


def test_an_hour_that_summer_time_leaves_out_is_reached_when_the_clocks_go_forward() -> None:
    ready = References(datetime(2026, 3, 28, 20, tzinfo=BERLIN))
    assert at("by 02:30 Europe/Berlin", ready) == "2026-03-29 01:00:00"
    assert at("by 02:00 Europe/Berlin", ready) == "2026-03-29 01:00:00"
    assert at("by 01:59:59 Europe/Berlin", ready) == "2026-03-29 00:59:59"
    assert at("by 03:00 Europe/Berlin", ready) == "2026-03-29 01:00:00"
    assert at("by 03:30 Europe/Berlin", ready) == "2026-03-29 01:30:00"


def test_an_hour_that_winter_time_repeats_counts_the_first_time() -> None:
    before = References(datetime(2026, 10, 24, 20, tzinfo=BERLIN))
    assert at("by 02:30 Europe/Berlin", before) == "2026-10-25 00:30:00"
    between = References(datetime(2026, 10, 25, 2, 15, tzinfo=BERLIN, fold=1))
    assert at("by 02:30 Europe/Berlin", between) == "2026-10-26 01:30:00"


def test_a_duration_over_a_change_of_the_clocks_is_as_long_as_it_says() -> None:
    ready = References(datetime(2026, 3, 29, 1, 30, tzinfo=BERLIN))
    assert Deadline.parse("2h").at(ready) == datetime(2026, 3, 29, 4, 30, tzinfo=BERLIN)


def test_a_date_that_a_zone_left_out_altogether_is_passed_when_it_did() -> None:
    ready = References(datetime(2011, 12, 29, 20, tzinfo=ZoneInfo("Pacific/Apia")))  # no 30 December there
    assert at("by 06:00 Pacific/Apia", ready) == "2011-12-30 10:00:00"


def test_a_moment_that_the_run_has_not_gives_no_deadline_and_a_line_to_note() -> None:
    deadline = Deadline.parse("by 06:00 UTC after data interval end")
    assert deadline.at(References(READY)) is None
    note = deadline.unplaced()
    assert note.code == "DEADLINE_UNPLACED"
    assert "this run has no data_interval_end, so the task is not deferred" in note.summary


def test_the_earliest_of_several_that_can_be_placed_holds() -> None:
    deadlines = [Deadline.parse(text) for text in ("3h", "2h", "1s after run_start")]
    assert earliest(deadlines, References(READY)) == READY + timedelta(hours=2)
    assert earliest([deadlines[2]], References(READY)) is None
    assert earliest([], ALL) is None


def test_a_deadline_beyond_the_calendar_is_its_last_moment() -> None:
    assert Deadline.parse("1e12 d").at(ALL) == datetime.max.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize("text", ["2h", "2h after queued", "by 06:00 Europe/Berlin", "by 23:59:59 UTC after run_start"])
def test_a_deadline_says_itself_in_a_form_that_reads_back(text: str) -> None:
    deadline = Deadline.parse(text)
    assert Deadline.parse(str(deadline)) == deadline
    assert Deadline.parse(deadline) is deadline
    assert pickle.loads(pickle.dumps(deadline)) == deadline


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("soon", "BAD_DURATION: deadline: 'soon' is not a duration"),
        ("", "BAD_DURATION: deadline: the text is empty"),
        (-1, "BAD_DURATION: deadline: -1 is negative"),
        (None, "BAD_DURATION: deadline: None is not a number"),
        (True, "BAD_DURATION: deadline: True is not a number"),
        (
            "2h after lunch",
            "BAD_DEADLINE: deadline: '2h after lunch' is after no known moment (known: ready, run_start",
        ),
        ("2h after run_strt", "(did you mean 'run_start'?)"),
        ("2h after", "BAD_DURATION"),
        ("by 06:00", "BAD_DEADLINE: deadline: 'by 06:00' does not say in which time zone"),
        ("by 25:00 UTC", "BAD_DEADLINE: deadline: 'by 25:00 UTC' names no time of day"),
        ("by 06:00 UTC tomorrow", "names no time of day"),
        ("by noon", "names no time of day"),
        ("by 06:00 Europe/Belrin", "UNKNOWN_ZONE: 'Europe/Belrin' is no time zone known here"),
        ("by 06:00 Europe", "UNKNOWN_ZONE"),
        ("by 06:00 ../etc/passwd", "UNKNOWN_ZONE"),
    ],
)
def test_what_is_no_deadline_is_refused_where_it_is_written(value: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Deadline.parse(value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
