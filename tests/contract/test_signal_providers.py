"""What every signal provider does, and what each of them alone, against a server that speaks its documented shape."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from signal_server import (
    HALF_H,
    KEY,
    USER,
    Fault,
    H,
    S,
    SignalServer,
    acknowledgement,
    iso,
    iso_minute,
    ns,
    publication,
    serving,
)

from tao_flows.errors import SourceError
from tao_flows.signals import http
from tao_flows.signals.http import Client, LaterError
from tao_flows.signals.keys import Credentials
from tao_flows.signals.model import Forecast
from tao_flows.signals.providers import Answer, fetch
from tao_flows.signals.spec import PROVIDERS, SignalSpec, parse_signals

NOW = ns("2026-03-01T14:07:00Z")
ZONES = {
    "electricitymaps": "DE",
    "watttime": "CAISO_NORTH",
    "ukcarbonintensity": "GB",
    "awattar": "DE",
    "entsoe": "10Y1001A1001A82H",
}
LAST_PATH = {
    "electricitymaps": "/v3/carbon-intensity/forecast",
    "watttime": "/v3/forecast",
    "ukcarbonintensity": "/intensity",
    "awattar": "/v1/marketdata",
    "entsoe": "/api",
}
CREDENTIALS = Credentials(KEY, USER)


@pytest.fixture
def server() -> Iterator[SignalServer]:
    with serving(NOW) as server:
        yield server


def spec_of(provider: str, url: str, **more: Any) -> SignalSpec:
    table = "carbon" if PROVIDERS[provider].kind else "price"
    entry = {"provider": provider, "zone": ZONES[provider], "url": url, **more}
    (spec,) = parse_signals({table: {"here": entry}}, Path("/")).values()
    return spec


def ask(
    provider: str, server: SignalServer, *, credentials: Credentials = CREDENTIALS, now: int = NOW, **more: Any
) -> Answer:
    spec = spec_of(provider, server.url, **more)
    return fetch(spec, Client(spec.name, spec.timeout_s, sleep=lambda _: None), credentials, now)


def refusal(provider: str, server: SignalServer, **more: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        ask(provider, server, **more)
    error = caught.value
    assert error.summary.startswith(("carbon here: ", "price here: "))
    assert error.remedy
    assert KEY not in str(error)
    return error


def holds_at(forecast: Forecast, moment: int) -> float | None:
    return [value for start, value in forecast.steps_from(0) if start <= moment][-1]


@pytest.fixture(params=sorted(PROVIDERS))
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestEveryProvider:
    def test_tells_the_present_and_what_follows_in_the_unit_of_decisions(
        self, provider: str, server: SignalServer
    ) -> None:
        forecast = ask(provider, server).forecast
        value = holds_at(forecast, NOW)
        factor = {"watttime": 0.45359237, "awattar": 1e-3, "entsoe": 1e-3}.get(provider, 1.0)
        # Prices and half-hours begin three hours before the present.
        index = {"awattar": 3, "entsoe": 3, "ukcarbonintensity": 6}.get(provider, 0)
        assert value == pytest.approx(server.values[index] * factor)
        assert forecast.end_wall_ns is not None
        assert forecast.end_wall_ns > NOW
        assert len(forecast.issue.steps) >= len(server.values) - 3

    def test_is_asked_over_the_url_of_the_settings_with_the_key_in_no_url(
        self, provider: str, server: SignalServer
    ) -> None:
        ask(provider, server)
        assert server.asked
        for asked in server.asked:
            assert KEY not in asked.target
            assert "token-" not in asked.target

    def test_an_interrupted_service_is_asked_again(self, provider: str, server: SignalServer) -> None:
        server.faults.extend([Fault(status=503), Fault(is_drop=True)])
        assert holds_at(ask(provider, server).forecast, NOW) is not None

    def test_a_broken_service_is_given_up(self, provider: str, server: SignalServer) -> None:
        server.always = Fault(status=500)
        error = refusal(provider, server)
        assert error.code == "SIGNAL_HTTP"
        assert len(server.asked) == http.ATTEMPTS

    def test_too_many_requests_says_when_to_come_back(self, provider: str, server: SignalServer) -> None:
        server.always = Fault(status=429, headers={"Retry-After": "120"})
        error = refusal(provider, server)
        assert (error.code, len(server.asked)) == ("SIGNAL_THROTTLED", 1)
        assert isinstance(error, LaterError)
        assert error.wait_s == 120

    def test_a_key_that_is_refused_is_asked_with_no_more_often(self, provider: str, server: SignalServer) -> None:
        server.always = Fault(status=401)
        assert refusal(provider, server).code == "SIGNAL_DENIED"
        assert len(server.asked) == 1

    def test_a_redirection_is_not_followed_and_named(self, provider: str, server: SignalServer) -> None:
        with serving(NOW) as other:
            server.always = Fault(status=302, headers={"Location": f"{other.url}/elsewhere?token={KEY}"})
            error = refusal(provider, server)
            assert not other.asked
        assert error.code == "SIGNAL_REDIRECTED"
        assert "/elsewhere" in error.summary

    @pytest.mark.parametrize("fault", [Fault(before_s=1.0), Fault(between_s=0.02)], ids=["silent", "trickling"])
    def test_a_slow_server_is_given_up_in_time(self, provider: str, server: SignalServer, fault: Fault) -> None:
        server.always = fault
        begun = time.monotonic()
        assert refusal(provider, server, timeout=0.1).code == "SIGNAL_TIMEOUT"
        assert time.monotonic() - begun < 20

    def test_an_answer_that_is_cut_short_is_not_used(self, provider: str, server: SignalServer) -> None:
        server.always = Fault(cut_to=40)
        assert refusal(provider, server).code == "SIGNAL_UNREACHABLE"

    def test_an_answer_beyond_all_measure_is_not_read_to_its_end(self, provider: str, server: SignalServer) -> None:
        server.always = Fault(body=b" " * (http.MAX_ANSWER_BYTES + 1))
        assert refusal(provider, server, timeout=20).code == "SIGNAL_TOO_LARGE"

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>Log in to this network</html>",
            b"\xff\xfe",
            b"[]",
            b"{}",
            b"null",
            b"[" * 100_000,
            b'{"data":7}',
        ],
        ids=["empty", "page", "bytes", "list", "object", "null", "nested", "number"],
    )
    def test_an_answer_of_another_form_is_refused(self, provider: str, server: SignalServer, body: bytes) -> None:
        server.always = Fault(body=body, content_type="text/html")
        assert refusal(provider, server).code == "SIGNAL_RUBBISH"

    def test_a_host_that_is_not_there_is_told_by_name(self, provider: str, server: SignalServer) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            gone = f"http://127.0.0.1:{probe.getsockname()[1]}"
        spec = spec_of(provider, gone)
        with pytest.raises(SourceError) as caught:
            fetch(spec, Client(spec.name, 2.0, sleep=lambda _: None), CREDENTIALS, NOW)
        assert caught.value.code == "SIGNAL_UNREACHABLE"
        assert "127.0.0.1" in caught.value.summary

    def test_a_value_that_is_no_number_is_refused(self, provider: str, server: SignalServer) -> None:
        for bad in (float("nan"), float("inf"), 1e12):
            server.values = [300.0, 300.0, 300.0, 300.0, 300.0, bad, 300.0, 300.0]
            if provider == "ukcarbonintensity":
                server.documents["/fw48h"] = uk_rows(server, bad)
            assert refusal(provider, server).code == "SIGNAL_RUBBISH"


def uk_rows(server: SignalServer, value: float) -> dict[str, Any]:
    row = {"from": iso_minute(NOW), "to": iso_minute(NOW + HALF_H), "intensity": {"forecast": value, "actual": None}}
    return {"data": [row]}


@pytest.mark.parametrize("provider", ["electricitymaps", "watttime"])
def test_a_forecast_from_the_future_tells_that_the_clocks_disagree(provider: str, server: SignalServer) -> None:
    server.issued_ns = NOW + 3600 * S
    assert refusal(provider, server).code == "SIGNAL_CLOCK"


@pytest.mark.parametrize("provider", ["electricitymaps", "watttime"])
def test_a_forecast_says_when_it_was_issued(provider: str, server: SignalServer) -> None:
    server.issued_ns = NOW - 1800 * S
    assert ask(provider, server).forecast.issue.issued_wall_ns == NOW - 1800 * S


@pytest.mark.parametrize("provider", ["electricitymaps", "watttime", "ukcarbonintensity"])
def test_a_carbon_intensity_below_zero_is_refused(provider: str, server: SignalServer) -> None:
    server.values = [-1.0] * 8
    assert "negative" in refusal(provider, server).summary


@pytest.mark.parametrize("provider", ["awattar", "entsoe"])
def test_a_price_may_be_negative(provider: str, server: SignalServer) -> None:
    server.values = [-50.0] * 8
    assert holds_at(ask(provider, server).forecast, NOW) == pytest.approx(-0.05)


@pytest.mark.parametrize("provider", ["awattar", "entsoe"])
def test_prices_that_were_fixed_the_day_before_are_what_came_true(provider: str, server: SignalServer) -> None:
    forecast = ask(provider, server).forecast
    hour = NOW // H * H
    assert [start for start, _ in forecast.actuals] == [hour - 3 * H, hour - 2 * H, hour - H, hour]


class TestElectricityMaps:
    def test_the_key_travels_in_its_header_and_the_zone_is_asked_for(self, server: SignalServer) -> None:
        ask("electricitymaps", server)
        assert server.paths() == ["/v3/carbon-intensity/latest", "/v3/carbon-intensity/forecast"]
        assert all(asked.headers["auth-token"] == KEY for asked in server.asked)
        assert all(asked.query["zone"] == "DE" for asked in server.asked)

    def test_the_latest_value_is_what_came_true(self, server: SignalServer) -> None:
        assert ask("electricitymaps", server).forecast.actuals == ((NOW // H * H, 300.0),)

    def test_a_plan_without_forecasts_tells_the_present_alone_and_says_so(self, server: SignalServer) -> None:
        server.always = Fault(status=403, path="/v3/carbon-intensity/forecast")
        answer = ask("electricitymaps", server)
        assert answer.problem is not None
        assert answer.problem.code == "SIGNAL_NO_FORECAST"
        assert holds_at(answer.forecast, NOW) == 300.0
        assert holds_at(answer.forecast, NOW + 2 * H) is None

    def test_another_zone_than_the_one_asked_for_is_refused(self, server: SignalServer) -> None:
        forecast = {"zone": "FR", "updatedAt": iso(NOW), "forecast": [{"carbonIntensity": 1, "datetime": iso(NOW)}]}
        server.documents["/forecast"] = forecast
        assert "'FR'" in refusal("electricitymaps", server).summary

    @pytest.mark.parametrize(
        ("times", "problem"),
        [
            (["2026-03-01T15:00:00Z", "2026-03-01T15:00:00Z"], "twice"),
            (["2026-03-01T16:00:00Z", "2026-03-01T15:00:00Z"], "order"),
            (["2026-03-01T15:00:00", "2026-03-01T16:00:00"], "zone"),
            (["soon"], "not a time"),
            (["1969-03-01T15:00:00Z"], "1970"),
            ([], "no step"),
        ],
    )
    def test_time_stamps_that_make_no_sense_are_refused(
        self, server: SignalServer, times: list[str], problem: str
    ) -> None:
        points = [{"carbonIntensity": 1, "datetime": moment} for moment in times]
        server.documents["/forecast"] = {"zone": "DE", "updatedAt": iso(NOW), "forecast": points}
        error = refusal("electricitymaps", server)
        assert error.code == "SIGNAL_RUBBISH"
        assert problem in error.summary


class TestWattTime:
    def test_a_token_is_fetched_once_and_used_until_it_ends(self, server: SignalServer) -> None:
        spec = spec_of("watttime", server.url)
        client = Client(spec.name, 2.0, sleep=lambda _: None)
        fetch(spec, client, CREDENTIALS, NOW)
        fetch(spec, client, CREDENTIALS, NOW + 60 * S)
        assert server.logins == 1
        fetch(spec, client, CREDENTIALS, NOW + 1501 * S)
        assert server.logins == 2

    def test_a_token_that_ends_before_its_time_is_renewed(self, server: SignalServer) -> None:
        spec = spec_of("watttime", server.url)
        client = Client(spec.name, 2.0, sleep=lambda _: None)
        fetch(spec, client, CREDENTIALS, NOW)
        server.tokens.clear()
        assert holds_at(fetch(spec, client, CREDENTIALS, NOW).forecast, NOW) == pytest.approx(300 * 0.45359237)
        assert server.logins == 2

    def test_a_wrong_password_is_told_without_it(self, server: SignalServer) -> None:
        wrong = Credentials("hunter2-hunter2", USER)
        error = refusal("watttime", server, credentials=wrong)
        assert error.code == "SIGNAL_DENIED"
        assert "hunter2" not in str(error)

    @pytest.mark.parametrize(
        ("field", "value"),
        [("region", "PJM"), ("units", "kg_co2_per_mwh"), ("signal_type", "co2_aoer")],
    )
    def test_an_answer_to_another_question_is_refused(self, server: SignalServer, field: str, value: str) -> None:
        meta = {
            "region": "CAISO_NORTH", "signal_type": "co2_moer", "units": "lbs_co2_per_mwh",
            "generated_at": iso(NOW), "data_point_period_seconds": 300, field: value,
        }  # fmt: skip
        server.documents["/v3/forecast"] = {"data": [{"point_time": iso(NOW), "value": 1}], "meta": meta}
        assert value in refusal("watttime", server).summary

    def test_past_values_are_what_came_true_unless_the_plan_lacks_them(self, server: SignalServer) -> None:
        assert [round(value / 0.45359237) for _, value in ask("watttime", server).forecast.actuals] == [703, 702, 701]
        server.always = Fault(status=403, path="/v3/historical")
        assert ask("watttime", server).forecast.actuals == ()

    def test_its_intensity_is_marginal_and_the_others_are_average(self, server: SignalServer) -> None:
        kinds = {provider: spec_of(provider, server.url).kind for provider in PROVIDERS}
        assert kinds == {
            "electricitymaps": "average", "watttime": "marginal", "ukcarbonintensity": "average",
            "awattar": None, "entsoe": None,
        }  # fmt: skip


class TestUkCarbonIntensity:
    def test_the_nation_a_region_and_a_postcode_are_asked_for_at_their_own_paths(self, server: SignalServer) -> None:
        for area in ("GB", "13", "RG10"):
            assert holds_at(ask("ukcarbonintensity", server, zone=area).forecast, NOW) is not None
        assert server.paths() == [
            "/intensity/2026-03-01T11:00Z/fw48h",
            "/regional/intensity/2026-03-01T11:00Z/fw48h/regionid/13",
            "/regional/intensity/2026-03-01T11:00Z/fw48h/postcode/RG10",
        ]

    def test_what_came_true_is_told_apart_from_what_was_forecast(self, server: SignalServer) -> None:
        forecast = ask("ukcarbonintensity", server).forecast
        assert {value for _, value in forecast.actuals} == {266.0}
        assert [start for start, _ in forecast.actuals][-1] == NOW // HALF_H * HALF_H - HALF_H

    def test_a_hole_in_the_half_hours_ends_what_is_known(self, server: SignalServer) -> None:
        def rows(_: object) -> Any:
            start = NOW // HALF_H * HALF_H
            return {
                "data": [
                    {
                        "from": iso_minute(start + index * HALF_H),
                        "to": iso_minute(start + (index + 1) * HALF_H),
                        "intensity": {"forecast": None if index == 3 else 100 + index},
                    }
                    for index in range(6)
                ]
            }

        server.documents["/fw48h"] = rows
        forecast = ask("ukcarbonintensity", server).forecast
        start = NOW // HALF_H * HALF_H
        assert [value for _, value in forecast.issue.steps] == [100, 101, 102]
        assert forecast.end_wall_ns == start + 3 * HALF_H

    def test_another_region_is_refused(self, server: SignalServer) -> None:
        server.documents["/regionid/13"] = {"data": {"regionid": 12, "data": []}}
        assert "'12'" in refusal("ukcarbonintensity", server, zone="13").summary

    def test_an_answer_about_the_past_alone_is_no_answer(self, server: SignalServer) -> None:
        server.documents["/fw48h"] = {
            "data": [{"from": iso_minute(NOW - 2 * H), "to": iso_minute(NOW - H), "intensity": {"forecast": 1}}]
        }
        assert refusal("ukcarbonintensity", server).code == "SIGNAL_NO_DATA"


class TestAwattar:
    def test_another_unit_is_refused(self, server: SignalServer) -> None:
        row = {"start_timestamp": 1, "end_timestamp": 2, "marketprice": 1, "unit": "Eur/kWh"}
        server.documents["/v1/marketdata"] = {"object": "list", "data": [row]}
        assert "eur/kwh" in refusal("awattar", server).summary

    @pytest.mark.parametrize("start", ["1428591600000", 1e30, -5, None, True])
    def test_a_time_stamp_that_is_none_is_refused(self, server: SignalServer, start: object) -> None:
        row = {"start_timestamp": start, "end_timestamp": start, "marketprice": 1, "unit": "Eur/MWh"}
        server.documents["/v1/marketdata"] = {"object": "list", "data": [row]}
        assert refusal("awattar", server).code == "SIGNAL_RUBBISH"

    def test_each_country_has_its_own_host(self) -> None:
        for area in ("DE", "AT"):
            (spec,) = parse_signals({"price": {area: {"provider": "awattar"}}}, Path("/")).values()
            assert spec.url == f"https://api.awattar.{area.lower()}"


class TestEntsoe:
    DOMAIN = ZONES["entsoe"]

    def tell(self, server: SignalServer, document: bytes) -> None:
        server.documents["/api"] = document

    def test_the_key_travels_in_its_header_by_post(self, server: SignalServer) -> None:
        ask("entsoe", server)
        (asked,) = server.asked
        assert (asked.method, asked.target) == ("POST", "/api")
        assert asked.headers["security_token"] == KEY
        assert KEY.encode() not in asked.body

    @pytest.mark.parametrize(("resolution", "length"), [("PT15M", 900 * S), ("PT30M", 1800 * S), ("PT60M", 3600 * S)])
    def test_a_missing_position_has_the_price_before_it(
        self, server: SignalServer, resolution: str, length: int
    ) -> None:
        start = NOW // H * H
        self.tell(server, publication(self.DOMAIN, [(start, resolution, 6, [(1, 10.0), (4, 40.0)])]))
        steps = ask("entsoe", server).forecast.issue.steps
        expected = [0.01, 0.01, 0.01, 0.04, 0.04, 0.04]
        assert [value for _, value in steps] == pytest.approx(expected)
        assert [at for at, _ in steps] == [start + index * length for index in range(6)]

    def test_periods_of_several_days_follow_each_other_whatever_their_order(self, server: SignalServer) -> None:
        start = NOW // H * H
        days = [(start + 2 * H, "PT15M", 2, [(1, 3.0), (2, 4.0)]), (start, "PT60M", 2, [(1, 1.0), (2, 2.0)])]
        self.tell(server, publication(self.DOMAIN, days))
        forecast = ask("entsoe", server).forecast
        assert [value for _, value in forecast.issue.steps] == pytest.approx([0.001, 0.002, 0.003, 0.004])
        assert forecast.end_wall_ns == start + 2 * H + HALF_H

    def test_of_several_auctions_the_first_is_the_day_ahead_market(self, server: SignalServer) -> None:
        start = NOW // H * H
        second = publication(self.DOMAIN, [(start, "PT15M", 1, [(1, 99.0)])], sequence="2")
        first = publication(self.DOMAIN, [(start, "PT60M", 1, [(1, 11.0)])], sequence="1")
        only = first[first.index(b"<TimeSeries>") : first.index(b"</Publication")]
        self.tell(server, second.replace(b"</Publication", only + b"</Publication"))
        assert [value for _, value in ask("entsoe", server).forecast.issue.steps] == pytest.approx([0.011])

    def test_an_acknowledgement_says_why_there_are_no_prices(self, server: SignalServer) -> None:
        text = f"No matching data found for {KEY}"
        for status in (200, 400):
            server.always = Fault(status=status, body=acknowledgement("999", text))
            error = refusal("entsoe", server)
            assert error.code == "SIGNAL_NO_DATA"
            assert "No matching data found" in error.summary

    def test_prices_in_another_currency_are_refused_until_the_settings_name_it(self, server: SignalServer) -> None:
        start = NOW // H * H
        self.tell(server, publication(self.DOMAIN, [(start, "PT60M", 1, [(1, 400.0)])], currency="PLN"))
        error = refusal("entsoe", server)
        assert (error.code, error.remedy) == ("SIGNAL_UNIT", 'write unit = "PLN/MWh"')
        assert holds_at(ask("entsoe", server, unit="PLN/MWh").forecast, NOW) == pytest.approx(0.4)

    def test_another_domain_is_refused(self, server: SignalServer) -> None:
        self.tell(server, publication("10YFR-RTE------C", [(NOW, "PT60M", 1, [(1, 1.0)])]))
        assert "10YFR-RTE------C" in refusal("entsoe", server).summary

    def test_entities_are_not_expanded(self, server: SignalServer) -> None:
        bomb = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>'
        self.tell(server, bomb)
        assert "entities" in refusal("entsoe", server).summary

    @pytest.mark.parametrize(
        "period",
        [
            (0, "PT60M", 2, [(2, 1.0)]),
            (0, "PT60M", 2, [(1, 1.0), (1, 2.0)]),
            (0, "PT60M", 2, [(1, 1.0), (3, 2.0)]),
            (0, "PT60M", 2, [(0, 1.0), (1, 2.0)]),
            (0, "PT60M", 100_000, [(1, 1.0)]),
            (0, "PT60M", 2, []),
        ],
        ids=["no first", "twice", "beyond", "zeroth", "endless", "empty"],
    )
    def test_positions_that_make_no_sense_are_refused(self, server: SignalServer, period: Any) -> None:
        start = NOW // H * H
        self.tell(server, publication(self.DOMAIN, [(start, *period[1:])]))
        assert refusal("entsoe", server).code == "SIGNAL_RUBBISH"

    def test_periods_that_overlap_are_refused(self, server: SignalServer) -> None:
        start = NOW // H * H
        periods = [(start, "PT60M", 2, [(1, 1.0)]), (start + H, "PT60M", 2, [(1, 1.0)])]
        self.tell(server, publication(self.DOMAIN, periods))
        assert "overlap" in refusal("entsoe", server).summary


class TestClient:
    def waits(self, server: SignalServer, share: float) -> list[float]:
        waits: list[float] = []
        client = Client("x", 2.0, sleep=waits.append, random_share=lambda: share, wall_s=lambda: NOW / S)
        with pytest.raises(SourceError):
            client.ask(server.url + "/v1/marketdata", {})
        return waits

    def test_waits_grow_and_are_random(self, server: SignalServer) -> None:
        server.always = Fault(status=502)
        assert self.waits(server, 1.0) == [0.5, 1.0]
        assert self.waits(server, 0.25) == [0.125, 0.25]

    @pytest.mark.parametrize("text", ["3", "Sun, 01 Mar 2026 14:07:03 GMT"])
    def test_a_short_retry_after_is_waited_for(self, server: SignalServer, text: str) -> None:
        server.always = Fault(status=429, headers={"Retry-After": text})
        assert self.waits(server, 0.0) == [3.0, 3.0]

    @pytest.mark.parametrize("text", ["", "soon", "-5", "٣", "Sun, 99 Mar 2026", "1e9"])
    def test_a_retry_after_that_says_nothing_is_none(self, server: SignalServer, text: str) -> None:
        server.always = Fault(status=503, headers={"Retry-After": text} if text.isascii() else {})
        assert self.waits(server, 0.0) == [0.0, 0.0]

    def test_an_absurd_retry_after_is_bounded(self, server: SignalServer) -> None:
        server.always = Fault(status=503, headers={"Retry-After": "9" * 400})
        with pytest.raises(LaterError) as caught:
            Client("x", 2.0).ask(server.url + "/v1/marketdata", {})
        assert caught.value.wait_s == http.LONGEST_RETRY_AFTER_S

    def test_a_proxy_of_the_environment_is_not_asked_for_the_loopback(
        self, server: SignalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        document = json.loads(Client("x", 2.0).ask(server.url + "/v1/marketdata", {}))
        assert document["object"] == "list"

    def test_a_proxy_of_the_environment_is_asked_for_other_hosts(
        self, server: SignalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(SourceError):
            Client("x", 2.0, sleep=lambda _: None).ask("http://prices.invalid/some", {})
        assert server.asked[0].target == "http://prices.invalid/some"
