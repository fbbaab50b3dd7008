"""Laws of signals: what is known holds until the next step, ends honestly, and survives every way it is kept."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.errors import InputError
from tao_flows.ledger import open_ledger
from tao_flows.signals.cache import CacheFile, Entry
from tao_flows.signals.csvfile import read_series
from tao_flows.signals.model import Forecast, Issue, Steps
from tao_flows.signals.spans import Span, run_around
from tao_flows.signals.spec import parse_signals
from tao_flows.signals.store import ForecastStore
from tao_flows.signals.times import ns_from_iso

S = 1_000_000_000
T0 = 1_772_366_400 * S
VALUES = st.floats(min_value=0.0, max_value=1e6)
GAPS = st.integers(min_value=1, max_value=7200)


@st.composite
def steps(draw: st.DrawFn, least: int = 1, most: int = 20) -> Steps:
    at, told = T0 + draw(GAPS) * S, []
    for _ in range(draw(st.integers(least, most))):
        told.append((at, draw(VALUES)))
        at += draw(GAPS) * S
    return tuple(told)


@given(steps(), steps(least=0), st.integers(-7200, 200_000), st.none() | st.integers(1, 7200))
def test_from_any_moment_the_value_that_holds_comes_first_and_nothing_is_lost(
    told: Steps, actuals: Steps, after_s: int, last_s: int | None
) -> None:
    end = None if last_s is None else told[-1][0] + last_s * S
    forecast = Forecast(Issue(T0, told), end, actuals)
    everything = forecast.steps_from(0)
    starts = [start for start, _ in everything]
    assert starts == sorted(set(starts))
    assert set(told) <= set(everything)
    now = T0 + after_s * S
    rest = forecast.steps_from(now)
    if rest:
        place = max(bisect_right(starts, now) - 1, 0)
        assert rest == everything[place:]
        assert any(value is not None for _, value in rest)
    else:
        assert end is not None
        assert now >= end


@given(steps(), steps(least=0))
def test_what_a_ledger_keeps_is_what_was_issued_to_six_digits(told: Steps, actuals: Steps) -> None:
    with tempfile.TemporaryDirectory() as directory:
        ledger = open_ledger(f"sqlite:///{directory}/ledger.db")
        try:
            store = ForecastStore(ledger)
            for _ in range(2):  # a second time changes nothing
                store.put("series", "zone", Forecast(Issue(T0, told), None, actuals))
            (issue,), values = store.pairs("series", "zone")
        finally:
            ledger.close()
    assert values == actuals
    assert [start for start, _ in issue.steps] == [start for start, _ in told]
    assert [value for _, value in issue.steps] == [float(f"{value:.6g}") for _, value in told]


@given(steps(), steps(least=0), st.none() | st.integers(1, 7200), st.integers(0, 50))
def test_what_a_cache_keeps_is_exactly_what_was_told(
    told: Steps, actuals: Steps, last_s: int | None, failures: int
) -> None:
    (spec,) = parse_signals({"carbon": {"GB": {"provider": "ukcarbonintensity"}}}, Path("/")).values()
    forecast = Forecast(Issue(T0, told), None if last_s is None else told[-1][0] + last_s * S, actuals)
    entry = Entry(T0, T0 + S, forecast, failures)
    with tempfile.TemporaryDirectory() as directory:
        file = CacheFile(Path(directory), spec)
        file.store(entry)
        assert file.load(spec) == entry


@given(st.binary(max_size=2_000))
def test_no_file_whatsoever_breaks_a_cache(content: bytes) -> None:
    (spec,) = parse_signals({"carbon": {"GB": {"provider": "ukcarbonintensity"}}}, Path("/")).values()
    with tempfile.TemporaryDirectory() as directory:
        file = CacheFile(Path(directory), spec)
        file.path.write_bytes(content)
        assert file.load(spec) is None


def refusal(call: Callable[[], object]) -> InputError | None:
    try:
        call()
    except InputError as error:
        return error
    return None


@given(st.binary(max_size=500) | st.text(max_size=500).map(lambda text: f"time,zone,value\n{text}".encode()))
def test_no_file_whatsoever_is_worse_than_one_clear_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "signal.csv")
        path.write_bytes(content)
        refused = refusal(lambda: read_series(path))
    if refused is None:
        assert content.lstrip(b"\xef\xbb\xbf").strip()
    else:
        assert refused.code == "BAD_SIGNAL_FILE"
        assert str(path) in refused.summary
        assert refused.remedy


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    at, told = T0, []
    for _ in range(draw(st.integers(0, 12))):
        at += draw(st.sampled_from([0, 0, 0, 900])) * S  # now and then a hole
        end = at + draw(st.sampled_from([900, 1800, 3600])) * S
        told.append(Span(at, end, draw(st.none() | VALUES)))
        at = end
    return told


@given(spans(), st.integers(-3600, 50_000))
def test_a_run_around_the_present_is_unbroken_and_tells_nothing_that_was_not_told(
    told: list[Span], after_s: int
) -> None:
    now = T0 + after_s * S
    known = {span.start_wall_ns: span for span in told if span.value is not None}
    if (refused := refusal(lambda: run_around(now, told))) is not None:
        assert refused.code == "SIGNAL_NO_DATA"
        assert all(span.end_wall_ns <= now for span in known.values())
        return
    run, end = run_around(now, told)
    assert end > now
    at = run[0][0]
    for start, value in run:
        assert start == at
        assert known[start].value == value
        at = known[start].end_wall_ns
    assert at == end
    holding = [span for span in known.values() if span.start_wall_ns <= now < span.end_wall_ns]
    assert all(run[0][0] <= span.start_wall_ns < end for span in holding)


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_a_time_that_is_written_out_is_read_back_exactly(moment: datetime) -> None:
    text = moment.isoformat()
    try:
        read = ns_from_iso(text)
    except InputError:
        assert not 1970 <= moment.year <= 2260
        return
    whole = int(moment.timestamp() // 1)
    assert read // S == whole
    assert read % S == moment.microsecond * 1000
