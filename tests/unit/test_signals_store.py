"""Forecasts as issued and what came true, kept in the ledger for some days."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tao_flows.errors import LedgerError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.signals.model import Forecast, Issue
from tao_flows.signals.store import ForecastStore

S = 1_000_000_000
DAY = 86_400 * S
T0 = 20_000 * DAY
SERIES, ZONE = "carbon_g_per_kwh average test DE", "DE"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    in_file = request.param == "sqlite"
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db" if in_file else request.getfixturevalue("postgres_url"))
    yield ledger
    ledger.close()


@pytest.fixture
def store(ledger: Ledger) -> ForecastStore:
    return ForecastStore(ledger)


def told(issued: int, *values: float, actuals: tuple[tuple[int, float], ...] = ()) -> Forecast:
    steps = tuple((T0 + index * 300 * S, value) for index, value in enumerate(values))
    return Forecast(Issue(issued, steps), None, actuals)


def test_issues_come_back_as_they_were_issued_in_order(store: ForecastStore) -> None:
    later, earlier = told(T0 + S, 3.0, 4.0), told(T0, 1.0, 2.5, 2.0)
    store.put(SERIES, ZONE, later)
    store.put(SERIES, ZONE, earlier)
    assert store.pairs(SERIES, ZONE) == ((earlier.issue, later.issue), ())


def test_the_first_of_an_issue_stands(store: ForecastStore) -> None:
    store.put(SERIES, ZONE, told(T0, 1.0))
    store.put(SERIES, ZONE, told(T0, 9.0))
    assert store.pairs(SERIES, ZONE)[0] == (told(T0, 1.0).issue,)


def test_an_issue_that_says_nothing_new_is_not_kept(store: ForecastStore) -> None:
    for seconds in range(5):
        store.put(SERIES, ZONE, told(T0 + seconds * S, 1.0, 2.0))
    store.put(SERIES, ZONE, told(T0 + 5 * S, 1.0, 3.0))
    assert [issue.issued_wall_ns for issue in store.pairs(SERIES, ZONE)[0]] == [T0, T0 + 5 * S]


def test_what_came_true_is_kept_once_and_may_be_corrected(store: ForecastStore) -> None:
    store.put(SERIES, ZONE, told(T0, 1.0, actuals=((T0 - S, 5.0), (T0, 6.0))))
    store.put(SERIES, ZONE, told(T0 + S, 1.0, actuals=((T0, 7.0), (T0 + S, 8.0))))
    assert store.pairs(SERIES, ZONE)[1] == ((T0 - S, 5.0), (T0, 7.0), (T0 + S, 8.0))


def test_series_and_zones_do_not_mix(store: ForecastStore) -> None:
    store.put(SERIES, ZONE, told(T0, 1.0, actuals=((T0, 1.0),)))
    store.put(SERIES, "FR", told(T0, 2.0))
    store.put("carbon_g_per_kwh marginal other DE", ZONE, told(T0, 3.0))
    assert store.pairs(SERIES, ZONE) == ((told(T0, 1.0).issue,), ((T0, 1.0),))
    assert store.pairs(SERIES, "ES") == ((), ())


def test_only_what_is_younger_than_asked_for_comes_back(store: ForecastStore) -> None:
    for day in range(3):
        store.put(SERIES, ZONE, told(T0 + day * DAY, float(day), actuals=((T0 + day * DAY, 1.0),)))
    issues, values = store.pairs(SERIES, ZONE, T0 + DAY)
    assert [issue.issued_wall_ns for issue in issues] == [T0 + DAY, T0 + 2 * DAY]
    assert [start for start, _ in values] == [T0 + DAY, T0 + 2 * DAY]


def test_what_is_older_than_is_kept_goes(ledger: Ledger) -> None:
    store = ForecastStore(ledger, keep_days=2)
    for day in range(6):
        store.put(SERIES, ZONE, told(T0 + day * DAY, float(day), actuals=((T0 + day * DAY, 1.0),)))
    issues, values = store.pairs(SERIES, ZONE)
    assert [issue.issued_wall_ns for issue in issues] == [T0 + day * DAY for day in (3, 4, 5)]
    assert len(values) == 3


def test_uneven_and_negative_steps_survive(store: ForecastStore) -> None:
    steps = ((T0, -1.5), (T0 + S, 2.0), (T0 + 2 * S, 0.0), (T0 + 60 * S, 123456.0), (T0 + 61 * S, 1e-9))
    store.put(SERIES, ZONE, Forecast(Issue(T0, steps)))
    assert store.pairs(SERIES, ZONE)[0] == (Issue(T0, steps),)


def test_a_row_that_is_no_forecast_is_told(ledger: Ledger, store: ForecastStore) -> None:
    store.put(SERIES, ZONE, told(T0, 1.0))
    with ledger.transaction() as transaction:
        transaction.change("UPDATE forecasts SET body = :body", body="[[1]]")
    with pytest.raises(LedgerError, match="no forecast|that is none"):
        store.pairs(SERIES, ZONE)


def test_many_hosts_may_write_at_once(store: ForecastStore) -> None:
    failures: list[Exception] = []

    def write(host: int) -> None:
        try:
            for index in range(10):
                moment = T0 + index * S
                store.put(SERIES, ZONE, told(moment, float(index), actuals=((moment, float(host)),)))
        except Exception as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=write, args=(host,)) for host in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    issues, values = store.pairs(SERIES, ZONE)
    assert len(issues) == len(values) == 10
