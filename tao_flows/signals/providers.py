"""What each provider is asked, and what its answers mean. Endpoints, fields and units: docs/signals.md."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from tao_flows.clock import iso_from_ns
from tao_flows.errors import InputError, SourceError
from tao_flows.signals.entsoe import fetch_entsoe
from tao_flows.signals.http import Client
from tao_flows.signals.keys import Credentials
from tao_flows.signals.model import Forecast, Issue, Steps, check_order, check_value, typical_length_ns
from tao_flows.signals.spans import Span, run_around
from tao_flows.signals.spec import SignalSpec
from tao_flows.signals.times import check_ns, ns_from_iso
from tao_flows.units import NS_PER_S, S_PER_H

CLOCK_SKEW_NS: Final = 300 * NS_PER_S
"""A forecast may be issued this far in the future before the clocks are said to disagree."""
_H_NS: Final = S_PER_H * NS_PER_S
_HALF_HOUR_NS: Final = _H_NS // 2
_MS_NS: Final = NS_PER_S // 1_000
_WATTTIME_TOKEN_S: Final = 25 * 60
"""A token is good for 30 minutes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider told."""

    forecast: Forecast
    problem: SourceError | None = None
    """What it would not tell."""


def fetch(spec: SignalSpec, client: Client, credentials: Credentials, now_wall_ns: int) -> Answer:
    """Asks the provider of a signal for what it knows of the present and what it expects.

    Raises:
        SourceError: it does not answer, refuses, or its answer cannot be used.
    """
    client.secrets = [secret for secret in (credentials.key, client.token) if secret]
    try:
        answer = _FETCH[spec.provider](spec, client, credentials, now_wall_ns)
    except InputError as error:
        if error.code == "SIGNAL_NO_DATA":
            raise client.error(error.code, error.summary, "check the zone; it is asked again by itself") from None
        raise client.rubbish(f"an answer that cannot be used: {error.summary}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
        raise client.rubbish("an answer of another form") from None
    if answer.forecast.issue.issued_wall_ns > now_wall_ns + CLOCK_SKEW_NS:
        ahead_s = (answer.forecast.issue.issued_wall_ns - now_wall_ns) / NS_PER_S
        raise client.error("SIGNAL_CLOCK", f"issued {ahead_s:.0f} s in the future", "set this host's clock")
    return answer


def _electricitymaps(spec: SignalSpec, client: Client, credentials: Credentials, now_wall_ns: int) -> Answer:
    headers = {"auth-token": credentials.key}
    query = urlencode({"zone": spec.area})
    latest = client.json(f"{spec.url}/v3/carbon-intensity/latest?{query}", headers)
    _same(client, "zone", latest["zone"], spec.area)
    start = ns_from_iso(latest["datetime"])
    actuals = ((start, _value(latest["carbonIntensity"], spec)),)
    try:
        document = client.json(f"{spec.url}/v3/carbon-intensity/forecast?{query}&horizonHours=72", headers)
    except SourceError as error:
        if error.code != "SIGNAL_DENIED":
            raise
        # A plan without forecasts: the latest value is taken to hold for an hour.
        issue = Issue(ns_from_iso(latest["updatedAt"]), actuals)
        remedy = "work is not deferred on it: take a plan with forecasts, or another provider"
        problem = client.error("SIGNAL_NO_FORECAST", "the key's plan has no forecast", remedy)
        return Answer(Forecast(issue, max(start, now_wall_ns) + _H_NS, actuals), problem)
    _same(client, "zone", document["zone"], spec.area)
    steps = _steps(((point["datetime"], point["carbonIntensity"]) for point in document["forecast"]), spec)
    return Answer(_forecast(ns_from_iso(document["updatedAt"]), steps, None, actuals))


def _watttime(spec: SignalSpec, client: Client, credentials: Credentials, now_wall_ns: int) -> Answer:
    about = {"region": spec.area, "signal_type": "co2_moer"}
    document = _watttime_document(
        spec, client, credentials, f"forecast?{urlencode({**about, 'horizon_hours': 24})}", now_wall_ns
    )
    meta = document["meta"]
    _same(client, "region", meta["region"], spec.area)
    _same(client, "signal_type", meta["signal_type"], "co2_moer")
    _same(client, "units", meta["units"], "lbs_co2_per_mwh")
    steps = _steps(((point["point_time"], point["value"]) for point in document["data"]), spec)
    length_ns = round(check_value(meta["data_point_period_seconds"]) * NS_PER_S)
    return Answer(
        _forecast(
            ns_from_iso(meta["generated_at"]),
            steps,
            length_ns,
            _watttime_actuals(spec, client, credentials, about, now_wall_ns),
        )
    )


def _watttime_actuals(
    spec: SignalSpec, client: Client, credentials: Credentials, about: Mapping[str, str], now_wall_ns: int
) -> Steps:
    span = {"start": _iso(now_wall_ns - 2 * _H_NS), "end": _iso(now_wall_ns)}
    try:
        document = _watttime_document(
            spec, client, credentials, f"historical?{urlencode({**about, **span})}", now_wall_ns
        )
    except SourceError as error:
        if error.code == "SIGNAL_DENIED":  # a plan without past values
            return ()
        raise
    _same(client, "region", document["meta"]["region"], spec.area)
    _same(client, "units", document["meta"]["units"], "lbs_co2_per_mwh")
    return _steps(((point["point_time"], point["value"]) for point in document["data"]), spec)


def _watttime_document(spec: SignalSpec, client: Client, credentials: Credentials, path: str, now_wall_ns: int) -> Any:
    fresh = client.token_until_s * NS_PER_S <= now_wall_ns
    if fresh:
        _watttime_login(spec, client, credentials, now_wall_ns)
    try:
        return client.json(f"{spec.url}/v3/{path}", {"Authorization": f"Bearer {client.token}"})
    except SourceError as error:
        if error.code != "SIGNAL_DENIED" or fresh:
            raise
    # The token may have ended before its time.
    _watttime_login(spec, client, credentials, now_wall_ns)
    return client.json(f"{spec.url}/v3/{path}", {"Authorization": f"Bearer {client.token}"})


def _watttime_login(spec: SignalSpec, client: Client, credentials: Credentials, now_wall_ns: int) -> None:
    pair = base64.b64encode(f"{credentials.user}:{credentials.key}".encode()).decode()
    client.token = _header_text(client.json(f"{spec.url}/login", {"Authorization": f"Basic {pair}"})["token"])
    client.token_until_s = now_wall_ns / NS_PER_S + _WATTTIME_TOKEN_S
    client.secrets += [client.token]


def _ukcarbonintensity(spec: SignalSpec, client: Client, _: Credentials, now_wall_ns: int) -> Answer:
    # On the half-hour, so that what two hosts ask is the same; some hours back, for what came true.
    start = _iso((now_wall_ns - 3 * _H_NS) // _HALF_HOUR_NS * _HALF_HOUR_NS)[:16] + "Z"
    place = "intensity"
    if spec.area != "GB":
        kind = "regionid" if spec.area.isdigit() else "postcode"
        place, kind = "regional/intensity", f"/{kind}/{quote(spec.area, safe='')}"
    else:
        kind = ""
    document = client.json(f"{spec.url}/{place}/{start}/fw48h{kind}")["data"]
    if spec.area.isdigit():
        _same(client, "regionid", str(document["regionid"]), spec.area)
    elif spec.area != "GB":
        _same(client, "postcode", document["postcode"], spec.area)
    rows = document if spec.area == "GB" else document["data"]
    spans = [(ns_from_iso(row["from"]), ns_from_iso(row["to"]), row["intensity"]) for row in rows]
    steps, end = run_around(
        now_wall_ns, [Span(start, end, _known(told["forecast"], spec)) for start, end, told in spans]
    )
    actuals = tuple(
        (start, value)
        for start, _, told in spans
        if start <= now_wall_ns and (value := _known(told.get("actual"), spec)) is not None
    )
    check_order(tuple(start for start, _ in actuals))
    return Answer(Forecast(Issue(now_wall_ns, steps), end, actuals))


def _awattar(spec: SignalSpec, client: Client, _: Credentials, now_wall_ns: int) -> Answer:
    start_ms = (now_wall_ns - 3 * _H_NS) // _H_NS * _H_NS // _MS_NS
    query = urlencode({"start": start_ms, "end": start_ms + 51 * _H_NS // _MS_NS})
    rows = client.json(f"{spec.url}/v1/marketdata?{query}")["data"]
    for row in rows:
        _same(client, "unit", row["unit"].casefold(), spec.unit.casefold())
    spans = [
        Span(_ns_from_ms(row["start_timestamp"]), _ns_from_ms(row["end_timestamp"]), _value(row["marketprice"], spec))
        for row in rows
    ]
    return Answer(day_ahead(spans, now_wall_ns))


def _entsoe(spec: SignalSpec, client: Client, credentials: Credentials, now_wall_ns: int) -> Answer:
    return Answer(day_ahead(fetch_entsoe(spec, client, credentials.key, now_wall_ns), now_wall_ns))


def day_ahead(spans: list[Span], now_wall_ns: int) -> Forecast:
    """Prices that are fixed a day ahead: what is forecast of them comes true."""
    steps, end = run_around(now_wall_ns, spans)
    return Forecast(Issue(now_wall_ns, steps), end, tuple(step for step in steps if step[0] <= now_wall_ns))


def _forecast(issued_wall_ns: int, steps: Steps, length_ns: int | None, actuals: Steps) -> Forecast:
    if not steps:
        raise InputError("", "no step of a forecast", "")
    last_ns = length_ns or typical_length_ns(tuple(start for start, _ in steps)) or _H_NS
    return Forecast(Issue(issued_wall_ns, steps), steps[-1][0] + last_ns, actuals)


def _steps(points: Iterable[tuple[str, object]], spec: SignalSpec) -> Steps:
    steps = tuple((ns_from_iso(time), _value(value, spec)) for time, value in points)
    check_order(tuple(start for start, _ in steps))
    return steps


def _value(value: object, spec: SignalSpec) -> float:
    return check_value(value, spec.signal) * spec.factor


def _known(value: object, spec: SignalSpec) -> float | None:
    return None if value is None else _value(value, spec)


def _same(client: Client, what: str, told: object, asked: str) -> None:
    if told != asked:
        raise client.rubbish(f"{what} is {str(told)[:60]!r}, and {asked!r} was asked for")


def _header_text(token: object) -> str:
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError("", "a token that is none", "")
    return token


def _ns_from_ms(wall_ms: object) -> int:
    return check_ns(wall_ms * _MS_NS if isinstance(wall_ms, int) else wall_ms)


def _iso(wall_ns: int) -> str:
    return (iso_from_ns(wall_ns // NS_PER_S * NS_PER_S) or "")[:19] + "Z"


_FETCH: Final[Mapping[str, Callable[[SignalSpec, Client, Credentials, int], Answer]]] = {
    "electricitymaps": _electricitymaps,
    "watttime": _watttime,
    "ukcarbonintensity": _ukcarbonintensity,
    "awattar": _awattar,
    "entsoe": _entsoe,
}
