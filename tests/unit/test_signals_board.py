"""What decisions read of the signals: fresh or nothing, soon or not at all, and never an exception."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from signal_server import KEY, USER, Fault, H, S, SignalServer, iso, ns, serving

from tao_flows.controller.parse import parse_request
from tao_flows.ledger import open_ledger
from tao_flows.signals.board import BoardReading, SignalBoard
from tao_flows.signals.keys import Credentials
from tao_flows.signals.model import Forecast, Issue
from tao_flows.signals.spec import SignalSpec, parse_signals
from tao_flows.signals.store import ForecastStore
from tao_flows.testing import FakeClock

NOW = ns("2026-03-01T14:07:00Z")
ENV = {"EM_KEY": KEY}


@pytest.fixture
def server() -> Iterator[SignalServer]:
    with serving(NOW) as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall_ns=NOW)


def specs(carbon: dict[str, Any] | None = None, price: dict[str, Any] | None = None) -> dict[str, SignalSpec]:
    return parse_signals({"carbon": carbon or {}, "price": price or {}}, Path("/"))


def maps(server: SignalServer, **more: Any) -> dict[str, Any]:
    return {"provider": "electricitymaps", "key_env": "EM_KEY", "url": server.url, **more}


def board_of(configured: dict[str, SignalSpec], directory: Path | None, clock: FakeClock, **more: Any) -> SignalBoard:
    return SignalBoard.build(configured, more.pop("store", None), directory, clock, env=ENV, **more)


def codes(reading: BoardReading) -> list[str]:
    return [problem.code for problem in reading.problems]


def written(directory: Path, *rows: str) -> str:
    path = directory / "signal.csv"
    path.write_text("time,zone,value,issued_at\n" + "".join(f"{row}\n" for row in rows))
    return str(path)


def accepted_by_decide(reading: BoardReading, now_ns: int = NOW) -> bool:
    pool = {
        "pool_id": "home", "zone": "DE", "online": True, "capacity_free": None, "energy_j": None, "runtime_s": None,
        "queue_wait_s": None, "dispatch_energy_j": None, "pue": None, "price_per_h": None, "power_w": None,
    }  # fmt: skip
    request = {
        "now": iso(now_ns), "task": {"key": "k", "home_pool": "home"}, "pools": [pool],
        "signals": reading.signals, "signal_meta": reading.meta,
    }  # fmt: skip
    parse_request(json.loads(json.dumps(request, allow_nan=False)))
    return True


class TestFiguresAndFiles:
    def test_marks_change_with_what_a_file_tells_and_when_it_is_stale_and_not_otherwise(
        self, clock: FakeClock, tmp_path: Path
    ) -> None:
        path = written(tmp_path, "2026-03-01T14:00:00Z,DE,300,2026-03-01T14:00:00Z")
        board = board_of(specs({"DE": {"csv": path, "max_age": "1h"}, "SE": {"value": 40}}), None, clock)
        hour_ns = 3_600 * 10**9
        told = board.marks(NOW)
        assert board.marks(NOW + hour_ns // 3) == told
        assert board.marks(NOW + hour_ns) != told
        written(tmp_path, "2026-03-01T14:00:00Z,DE,310,2026-03-01T14:00:00Z")
        anew = board.marks(NOW)
        assert anew != told
        assert board.marks(NOW) == anew
        Path(path).unlink()
        assert board.marks(NOW) not in (told, anew)

    def test_a_figure_is_known_without_end_and_has_no_age(self, clock: FakeClock) -> None:
        board = board_of(specs({"DE": {"value": 350}}, {"DE": {"value": 200, "unit": "EUR/MWh"}}), None, clock)
        before = threading.active_count()
        reading = board.read({"DE"}, NOW)
        assert threading.active_count() == before
        assert reading.signals["carbon_g_per_kwh"]["DE"] == [{"start": "1970-01-01T00:00:00.000000Z", "value": 350.0}]
        assert reading.signals["price_per_kwh"]["DE"][0]["value"] == pytest.approx(0.2)
        assert reading.meta == {"issued_at": "2026-03-01T14:07:00.000000Z", "max_age_s": None, "margin": 0.0}
        assert reading.problems == ()
        assert accepted_by_decide(reading)

    def test_zones_that_nobody_asked_for_or_nobody_knows_are_left_out(self, clock: FakeClock) -> None:
        board = board_of(specs({"DE": {"value": 350}, "FR": {"value": 50}}), None, clock)
        assert set(board.read({"FR", "ES"}, NOW).signals["carbon_g_per_kwh"]) == {"FR"}
        nothing = board.read({"ES"}, NOW)
        assert (nothing.signals, nothing.meta, nothing.follow) == ({}, None, None)
        assert accepted_by_decide(nothing)

    def test_a_schedule_in_a_file_begins_with_the_present_and_ends_where_it_ends(
        self, clock: FakeClock, tmp_path: Path
    ) -> None:
        path = written(
            tmp_path, "2026-03-01T13:00:00Z,DE,90,", "2026-03-01T14:00:00Z,DE,100,", "2026-03-01T15:00:00Z,DE,50,"
        )
        board = board_of(specs(price={"DE": {"csv": path, "unit": "EUR/MWh"}}), None, clock)
        os.utime(path, ns=(NOW - H, NOW - H))
        reading = board.read({"DE"}, NOW, slack_s=7200, runtime_s=3600)
        assert [(step["start"][11:16], step["value"]) for step in reading.signals["price_per_kwh"]["DE"]] == [
            ("14:00", 0.1), ("15:00", 0.05), ("16:00", None),
        ]  # fmt: skip
        assert reading.meta is not None
        assert reading.meta["issued_at"] == "2026-03-01T13:07:00.000000Z"
        assert (reading.follow, reading.meta["margin"]) == (True, 0.0)
        assert accepted_by_decide(reading)

    def test_of_the_forecasts_in_a_file_the_latest_issue_counts(self, clock: FakeClock, tmp_path: Path) -> None:
        path = written(
            tmp_path,
            "2026-03-01T14:00:00Z,DE,1,2026-03-01T12:00:00Z",
            "2026-03-01T14:00:00Z,DE,2,2026-03-01T14:00:00Z",
            "2026-03-01T15:00:00Z,DE,3,2026-03-01T14:00:00Z",
            "2026-03-01T15:00:00Z,DE,4,2026-03-01T15:00:00Z",
        )
        board = board_of(specs({"DE": {"csv": path}}), None, clock)
        values = [step["value"] for step in board.read({"DE"}, NOW).signals["carbon_g_per_kwh"]["DE"]]
        assert values == [2.0, 3.0, None]

    def test_a_file_that_changes_is_read_again(self, clock: FakeClock, tmp_path: Path) -> None:
        board = board_of(specs({"DE": {"csv": written(tmp_path, "2026-03-01T00:00:00Z,DE,1,")}}), None, clock)
        assert board.read({"DE"}, NOW).signals["carbon_g_per_kwh"]["DE"][0]["value"] == 1.0
        written(tmp_path, "2026-03-01T00:00:00Z,DE,22,")
        assert board.read({"DE"}, NOW).signals["carbon_g_per_kwh"]["DE"][0]["value"] == 22.0

    @pytest.mark.parametrize(
        ("rows", "code", "part"),
        [
            (["2026-03-01T14:00:00Z,DE,-1,"], "BAD_SIGNAL_FILE", ":2:"),
            (["2026-03-01T14:00:00Z,FR,1,"], "BAD_SIGNAL_FILE", "zone 'DE'"),
            (["2026-02-01T14:00:00Z,DE,1,", "2026-02-01T15:00:00Z,DE,1,"], "SIGNAL_ENDED", "ended"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_told_and_not_raised(
        self, clock: FakeClock, tmp_path: Path, rows: list[str], code: str, part: str
    ) -> None:
        board = board_of(specs({"DE": {"csv": written(tmp_path, *rows)}}), None, clock)
        reading = board.read({"DE"}, NOW)
        assert (reading.signals, codes(reading)) == ({}, [code])
        assert part in reading.problems[0].summary + reading.problems[0].remedy

    def test_a_file_that_is_gone_is_told_and_one_that_comes_back_is_read(
        self, clock: FakeClock, tmp_path: Path
    ) -> None:
        path = Path(written(tmp_path, "2026-03-01T00:00:00Z,DE,1,"))
        board = board_of(specs({"DE": {"csv": str(path)}}), None, clock)
        path.unlink()
        assert codes(board.read({"DE"}, NOW)) == ["BAD_SIGNAL_FILE"]
        written(tmp_path, "2026-03-01T00:00:00Z,DE,1,")
        assert codes(board.read({"DE"}, NOW)) == []

    def test_a_file_too_long_for_a_decision_is_refused(self, clock: FakeClock, tmp_path: Path) -> None:
        path = Path(written(tmp_path, "2026-03-01T00:00:00Z,DE,1,"))
        with path.open("a") as file:
            file.write(" " * (9 << 20))
        assert "MiB" in board_of(specs({"DE": {"csv": str(path)}}), None, clock).read({"DE"}, NOW).problems[0].summary


class TestProviders:
    def test_the_first_reading_waits_and_the_next_ask_nobody(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        board = board_of(specs({"DE": maps(server)}), tmp_path, clock)
        reading = board.read({"DE"}, NOW, wait_s=30)
        steps = reading.signals["carbon_g_per_kwh"]["DE"]
        assert [step["value"] for step in steps] == [*server.values, None]
        assert steps[0]["start"] == "2026-03-01T14:00:00.000000Z"
        assert reading.meta == {"issued_at": "2026-03-01T14:07:00.000000Z", "max_age_s": 3 * 3600.0, "margin": 0.0}
        assert accepted_by_decide(reading)
        asked = len(server.asked)
        for minute in range(10):
            board.read({"DE"}, NOW + minute * 60 * S, wait_s=0)
        assert len(server.asked) == asked

    def test_a_reading_that_may_not_wait_does_not(self, server: SignalServer, clock: FakeClock, tmp_path: Path) -> None:
        board = board_of(specs({"DE": maps(server)}), tmp_path, clock)
        reading = board.read({"DE"}, NOW, wait_s=0)
        assert (reading.signals, codes(reading)) == ({}, ["SIGNAL_UNKNOWN"])
        assert board.read({"DE"}, NOW, wait_s=30).signals

    def test_a_server_that_hangs_holds_up_its_readers_once(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        server.always = Fault(before_s=8)
        board = board_of(specs({"DE": maps(server, timeout="10s")}), tmp_path, clock)
        board.read({"DE"}, NOW, wait_s=0.3)
        begun = time.monotonic()
        for _ in range(200):
            assert board.read({"DE"}, NOW, wait_s=0.3).signals == {}
        # Each of them waiting anew would take a minute.
        assert time.monotonic() - begun < 6

    def test_a_refresh_goes_on_behind_readings_of_the_last_forecast(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        board = board_of(specs({"DE": maps(server)}), tmp_path, clock)
        board.read({"DE"}, NOW, wait_s=30)
        clock.advance(1800)
        server.values = [7.0] * 8
        later = clock.wall_ns()
        assert board.read({"DE"}, later, wait_s=0).signals["carbon_g_per_kwh"]["DE"][0]["value"] == 300.0
        give_up = time.monotonic() + 30
        while board.read({"DE"}, later, wait_s=0).signals["carbon_g_per_kwh"]["DE"][0]["value"] != 7.0:
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def test_an_outage_is_bridged_by_the_last_forecast_until_it_is_stale(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        board = board_of(specs({"DE": maps(server, max_age="2h")}), tmp_path, clock)
        board.read({"DE"}, NOW, wait_s=30)
        server.stop()
        clock.advance(3600)
        board.fetch(30)
        reading = board.read({"DE"}, clock.wall_ns(), wait_s=0)
        assert reading.signals["carbon_g_per_kwh"]["DE"][0]["value"] == 250.0
        assert codes(reading) == ["SIGNAL_UNREACHABLE"]
        clock.advance(3601)
        stale = board.read({"DE"}, clock.wall_ns(), wait_s=0)
        assert (stale.signals, stale.meta) == ({}, None)
        (status,) = board.status(clock.wall_ns(), wait_s=0)
        assert status.is_stale

    def test_without_a_network_there_is_no_signal_and_no_exception(self, clock: FakeClock, tmp_path: Path) -> None:
        gone = {"provider": "electricitymaps", "key_env": "EM_KEY", "url": "http://127.0.0.1:9"}
        board = board_of(specs({"DE": gone}), tmp_path, clock)
        board.fetch(30)
        reading = board.read({"DE"}, NOW, wait_s=0, slack_s=3600, runtime_s=60)
        assert (reading.signals, reading.meta, reading.follow) == ({}, None, None)
        assert codes(reading) == ["SIGNAL_UNREACHABLE"]
        assert accepted_by_decide(reading)

    def test_the_oldest_issue_and_the_first_end_speak_for_all(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        old = written(tmp_path, f"{iso(NOW)},FR,1,{iso(NOW - 1800 * S)}")
        board = board_of(
            specs({"DE": maps(server, max_age="1h"), "FR": {"csv": old, "max_age": "2h"}}), tmp_path, clock
        )
        reading = board.read({"DE", "FR"}, NOW, wait_s=30)
        assert reading.meta == {"issued_at": "2026-03-01T13:37:00.000000Z", "max_age_s": 5400.0, "margin": 0.0}

    def test_a_clock_that_was_set_back_makes_a_forecast_unusable(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        board = board_of(specs({"DE": maps(server)}), tmp_path, clock)
        board.read({"DE"}, NOW, wait_s=30)
        server.stop()
        reading = board.read({"DE"}, NOW - H, wait_s=0)
        assert reading.signals == {}

    def test_an_issue_a_little_in_the_future_is_taken_as_issued_now(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        server.issued_ns = NOW + 120 * S
        reading = board_of(specs({"DE": maps(server)}), tmp_path, clock).read({"DE"}, NOW, wait_s=30)
        assert reading.meta is not None
        assert reading.meta["issued_at"] == "2026-03-01T14:07:00.000000Z"
        assert accepted_by_decide(reading)

    def test_keys_may_come_from_an_engine(self, server: SignalServer, clock: FakeClock, tmp_path: Path) -> None:
        entry = {"provider": "watttime", "zone": "CAISO_NORTH", "url": server.url}
        board = board_of(specs({"CA": entry}), tmp_path, clock, keys=lambda _: Credentials(KEY, USER))
        value = board.read({"CA"}, NOW, wait_s=30).signals["carbon_g_per_kwh"]["CA"][0]["value"]
        assert value == pytest.approx(300 * 0.45359237)

    def test_a_child_that_is_forked_during_a_refresh_asks_for_itself(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        server.always = Fault(before_s=0.5)
        board = board_of(specs({"DE": maps(server)}), None, clock)
        board.read({"DE"}, NOW, wait_s=0)  # under way
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            told = board.read({"DE"}, NOW, wait_s=20).signals
            os.write(write, b"known" if told else b"unknown")
            os._exit(0)
        os.close(write)
        with open(read, "rb") as answer:
            assert answer.read() == b"known"
        assert os.waitpid(child, 0)[1] == 0

    def test_no_thread_to_be_had_is_a_problem_and_no_exception(
        self, server: SignalServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        board = board_of(specs({"DE": maps(server)}), None, clock)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert codes(board.read({"DE"}, NOW, wait_s=5)) == ["SIGNAL_NO_THREAD", "SIGNAL_UNKNOWN"]

    def test_every_issue_is_kept_for_the_learner(self, server: SignalServer, clock: FakeClock, tmp_path: Path) -> None:
        ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
        store = ForecastStore(ledger)
        configured = specs({"DE": maps(server)})
        board = board_of(configured, tmp_path, clock, store=store)
        for hour in range(3):
            server.issued_ns = server.now_ns = clock.wall_ns()
            server.values = [100.0 + hour, *server.values[1:]]
            board.fetch(30)
            clock.advance(3600)
        issues, values = store.pairs(configured["carbon.DE"].series, "DE")
        assert [issue.issued_wall_ns for issue in issues] == [NOW, NOW + H, NOW + 2 * H]
        assert [value for _, value in values] == [100.0, 101.0, 102.0]
        ledger.close()

    def test_a_ledger_that_fails_is_told_and_the_signal_goes_on(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path
    ) -> None:
        (tmp_path / "ledger.db").write_bytes(b"this is no ledger, and long enough to show it" * 50)
        store = ForecastStore(open_ledger(f"sqlite:///{tmp_path}/ledger.db"))
        board = board_of(specs({"DE": maps(server)}), tmp_path / "cache", clock, store=store)
        board.fetch(30)
        reading = board.read({"DE"}, NOW, wait_s=30, slack_s=3600, runtime_s=60)
        assert reading.signals
        assert codes(reading)
        assert all(code.startswith("LEDGER_") for code in codes(reading))
        assert reading.follow is False


class TestLearning:
    def teach(self, store: ForecastStore, spec: SignalSpec, *, good: bool) -> None:
        """Two weeks of hours of a day that is dear by day and cheap by night, and forecasts of it, or of its opposite."""
        begin = NOW // H * H - 14 * 24 * H

        def value(hour: int) -> float:
            return 400.0 if 6 <= hour % 24 < 20 else 100.0

        for hour in range(14 * 24):
            at = begin + hour * H
            shift = 0 if good else 12
            steps = tuple((at + ahead * H, value(hour + ahead + (shift if ahead else 0))) for ahead in range(24))
            store.put(spec.series, spec.zone, Forecast(Issue(at, steps), None, ((at, value(hour)),)))

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[ForecastStore]:
        ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
        yield ForecastStore(ledger, keep_days=30)
        ledger.close()

    def test_forecasts_that_came_true_are_followed(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path, store: ForecastStore
    ) -> None:
        configured = specs({"DE": maps(server)})
        self.teach(store, configured["carbon.DE"], good=True)
        board = board_of(configured, tmp_path / "cache", clock, store=store)
        board.read({"DE"}, NOW, wait_s=30)
        reading = board.read({"DE"}, NOW, wait_s=60, slack_s=12 * 3600, runtime_s=3600)
        assert reading.follow is True
        assert reading.meta is not None
        assert reading.meta["margin"] >= 0.0
        assert accepted_by_decide(reading)
        (status,) = board.status(NOW, wait_s=60, slack_s=12 * 3600, runtime_s=3600)
        assert status.lesson is not None
        assert status.lesson.replayed > 100
        assert status.lesson.share is not None
        assert status.lesson.share > 0.5

    def test_what_one_process_learned_all_know(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path, store: ForecastStore
    ) -> None:
        configured = specs({"DE": maps(server)})
        self.teach(store, configured["carbon.DE"], good=True)
        first = board_of(configured, tmp_path / "cache", clock, store=store)
        first.read({"DE"}, NOW, wait_s=30)
        learned = first.read({"DE"}, NOW, wait_s=60, slack_s=12 * 3600, runtime_s=3600)
        # It has no ledger, so that it can have learned from nobody else.
        second = board_of(configured, tmp_path / "cache", clock)
        assert second.read({"DE"}, NOW, wait_s=60, slack_s=12 * 3600, runtime_s=3600) == learned

    def test_with_nothing_to_learn_from_no_forecast_is_followed(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path, store: ForecastStore
    ) -> None:
        board = board_of(specs({"DE": maps(server)}), tmp_path / "cache", clock, store=store)
        board.read({"DE"}, NOW, wait_s=30)
        assert board.read({"DE"}, NOW, wait_s=60, slack_s=7200, runtime_s=3600).follow is False

    def test_a_margin_that_is_not_learned_yet_is_unknown_and_nothing_is_followed(
        self, server: SignalServer, clock: FakeClock, tmp_path: Path, store: ForecastStore
    ) -> None:
        configured = specs({"DE": maps(server)})
        self.teach(store, configured["carbon.DE"], good=True)
        board = board_of(configured, None, clock, store=store)
        board.read({"DE"}, NOW, wait_s=30)
        reading = board.read({"DE"}, NOW, wait_s=0, slack_s=7200, runtime_s=3600)
        assert reading.meta is not None
        assert (reading.meta["margin"], reading.follow) == (None, False)

    def test_prices_that_are_fixed_the_day_before_are_followed_as_published(
        self, server: SignalServer, clock: FakeClock
    ) -> None:
        board = board_of(specs(price={"DE": {"provider": "awattar", "url": server.url}}), None, clock)
        board.read({"DE"}, NOW, wait_s=30)
        reading = board.read({"DE"}, NOW, wait_s=0, slack_s=7200, runtime_s=3600)
        assert reading.meta is not None
        assert (reading.meta["margin"], reading.follow) == (0.0, True)

    def test_work_that_cannot_wait_needs_no_margin(self, server: SignalServer, clock: FakeClock) -> None:
        board = board_of(specs({"DE": maps(server)}), None, clock)
        assert board.read({"DE"}, NOW, wait_s=30).follow is None


def test_many_threads_may_read_at_once(server: SignalServer, clock: FakeClock, tmp_path: Path) -> None:
    board = board_of(specs({"DE": maps(server), "FR": {"value": 50}}), tmp_path, clock)
    readings: list[BoardReading] = []

    def read() -> None:
        for _ in range(50):
            readings.append(board.read({"DE", "FR"}, NOW, wait_s=30))  # noqa: PERF401

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readings) == 400
    assert all(reading == readings[0] for reading in readings)
    assert server.paths() == ["/v3/carbon-intensity/latest", "/v3/carbon-intensity/forecast"]
