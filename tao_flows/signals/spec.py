"""The signals that a user configures: ``[signals.carbon.ZONE]`` and ``[signals.price.ZONE]`` tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from tao_flows.errors import InputError
from tao_flows.signals.model import CARBON, PRICE, Kind, Signal, check_value
from tao_flows.tomlfile import CONNECTION, did_you_mean
from tao_flows.units import G_PER_KG, G_PER_LB, KWH_PER_MWH, parse_duration_s

Keys = Literal["none", "key", "user and key"]

STATIC: Final = "static"
CSV: Final = "csv"
TABLES: Final[Mapping[str, Signal]] = {"carbon": CARBON, "price": PRICE}
CARBON_UNITS: Final[Mapping[str, float]] = {
    "g/kWh": 1.0,
    "kg/MWh": G_PER_KG / KWH_PER_MWH,
    "lb/MWh": G_PER_LB / KWH_PER_MWH,
}
"""Grams a kWh in one of each."""
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_PRICE_UNIT: Final = re.compile(r"([A-Z]{3})/(kWh|MWh)")
_PRICE_FACTORS: Final = {"kWh": 1.0, "MWh": 1.0 / KWH_PER_MWH}
_HOUR_S: Final = 3_600.0


class Provider(NamedTuple):
    """What is known of a provider before it is asked. Durations are seconds."""

    signal: Signal
    kind: Kind | None
    unit: str
    url: str
    keys: Keys
    area: str
    """What its zones look like, as a regular expression."""
    area_help: str
    refresh_s: float
    max_age_s: float
    forecasts: bool = True
    """False: what it tells is fixed in advance, as prices of the day-ahead market are."""


PROVIDERS: Final[Mapping[str, Provider]] = {
    "electricitymaps": Provider(
        CARBON, "average", "g/kWh", "https://api.electricitymaps.com", "key",
        r"[A-Z]{2,3}(?:-[A-Z0-9]{1,6}){0,3}", 'a zone of Electricity Maps, such as "DE" or "US-CAL-CISO"',
        900.0, 3 * _HOUR_S,
    ),
    "watttime": Provider(
        CARBON, "marginal", "lb/MWh", "https://api.watttime.org", "user and key",
        r"[A-Z0-9_]{2,40}", 'a region of WattTime, such as "CAISO_NORTH"', 900.0, _HOUR_S,
    ),
    "ukcarbonintensity": Provider(
        CARBON, "average", "g/kWh", "https://api.carbonintensity.org.uk", "none",
        r"GB|[1-9]|1[0-7]|[A-Z]{1,2}[0-9][0-9A-Z]?",
        '"GB", a region from "1" to "17", or the first half of a postcode, such as "RG10"', 900.0, 2 * _HOUR_S,
    ),
    "awattar": Provider(
        PRICE, None, "EUR/MWh", "https://api.awattar.{area}", "none", r"DE|AT", '"DE" or "AT"', _HOUR_S, 24 * _HOUR_S,
        forecasts=False,
    ),
    "entsoe": Provider(
        PRICE, None, "EUR/MWh", "https://web-api.tp.entsoe.eu", "key",
        r"[0-9A-Z-]{16}", 'the EIC code of a bidding zone, such as "10Y1001A1001A82H"', _HOUR_S, 24 * _HOUR_S,
        forecasts=False,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """One signal of one zone, and where it comes from. Durations are seconds."""

    signal: Signal
    zone: str
    """As worker pools name it."""
    provider: str
    """``static``, ``csv``, or one of ``PROVIDERS``."""
    unit: str
    """Of the value, the file or the provider; what it is read as is always a kWh's."""
    kind: Kind | None = None
    """Of a carbon intensity; None for a price."""
    area: str = ""
    """The zone's name in the file or with the provider."""
    value: float | None = None
    """Of a static signal, in ``unit``."""
    csv: str = ""
    column: str = "value"
    url: str = ""
    user: str = ""
    user_env: str = ""
    key_env: str = ""
    key_file: str = ""
    key_conn: str = ""
    """The name of a connection that an engine keeps."""
    max_age_s: float | None = None
    refresh_s: float = _HOUR_S
    timeout_s: float = 2.0
    allow_http: bool = False

    @property
    def name(self) -> str:
        """``carbon DE``, for people."""
        return f"{'carbon' if self.signal == CARBON else 'price'} {self.zone}"

    @property
    def series(self) -> str:
        """What may be compared with itself over time: never another kind, currency or provider."""
        return f"{self.signal} {self.kind or self.currency} {self.provider} {self.area}"

    @property
    def factor(self) -> float:
        """Grams, or units of the currency, a kWh in one ``unit``."""
        return CARBON_UNITS[self.unit] if self.signal == CARBON else _PRICE_FACTORS[self.unit.partition("/")[2]]

    @property
    def currency(self) -> str:
        """ISO 4217; empty for a carbon intensity."""
        return self.unit.partition("/")[0] if self.signal == PRICE else ""

    @property
    def read_as(self) -> str:
        """The unit of what is read."""
        return "g/kWh" if self.signal == CARBON else f"{self.currency}/kWh"


def parse_signals(value: object, base: Path) -> dict[str, SignalSpec]:
    """The signals that the table ``signals`` describes, by ``carbon.ZONE`` or ``price.ZONE``.

    Relative paths are relative to ``base``. All carbon intensities are of one kind, and all prices in one currency:
    zones are compared with each other.

    Raises:
        InputError: an unknown key, a value out of range, or signals that do not go together.
    """
    specs: dict[str, SignalSpec] = {}
    for table, zones in _table(value, "signals", "[signals.carbon.ZONE] or [signals.price.ZONE]").items():
        if table not in TABLES:
            raise _bad(table, "is no signal", did_you_mean(table, TABLES))
        for zone, entry in _table(zones, table, f"[signals.{table}.ZONE]").items():
            name = f"{table}.{zone}"
            if not zone or not zone.isprintable():
                raise _bad(name, "the zone has no name", "name it as the pools do")
            specs[name] = _spec(name, TABLES[table], zone, entry, base)
    _check_alike(specs, CARBON, lambda spec: spec.kind or "", "kind")
    _check_alike(specs, PRICE, lambda spec: spec.currency, "currency")
    return specs


def _check_alike(specs: Mapping[str, SignalSpec], signal: Signal, of: Callable[[SignalSpec], str], what: str) -> None:
    first: dict[str, str] = {}
    for name, spec in specs.items():
        if spec.signal == signal:
            first.setdefault(of(spec), name)
    if len(first) > 1:
        (one, a), (other, b) = list(first.items())[:2]
        remedy = f"give all zones one {what}: decisions compare them"
        raise InputError("SIGNALS_MIXED", f"{a} is {one} and {b} is {other}", remedy)


def _spec(name: str, signal: Signal, zone: str, entry: object, base: Path) -> SignalSpec:
    given = _table(entry, name, '{ value = 350 }, { csv = "FILE" } or { provider = "NAME" }')
    sources = [key for key in ("value", "csv", "provider") if key in given]
    if len(sources) != 1:
        raise _bad(name, f"has {' and '.join(sources) or 'no source'}", "give one of value, csv and provider")
    if sources == ["provider"]:
        return _from_provider(name, signal, zone, given)
    unit = "g/kWh" if signal == CARBON else None
    if sources == ["value"]:
        fields = _fields(name, given, ("value", "unit", "kind"), base)
        spec = SignalSpec(signal, zone, STATIC, fields.pop("unit", unit) or "", area=zone, **fields)
    else:
        fields = _fields(name, given, ("csv", "column", "zone", "unit", "kind", "max_age"), base)
        spec = SignalSpec(signal, zone, CSV, fields.pop("unit", unit) or "", **{"area": zone, **fields})
    if signal == PRICE and spec.kind is not None:
        raise _bad(name, "a price has no kind", "leave kind out")
    return _checked(name, spec if signal == PRICE or spec.kind else replace(spec, kind="average"))


def _from_provider(name: str, signal: Signal, zone: str, given: Mapping[str, object]) -> SignalSpec:
    provider = str(given["provider"])
    about = PROVIDERS.get(provider)
    if about is None:
        raise _bad(name, f"unknown provider {provider!r}", did_you_mean(provider, PROVIDERS))
    if about.signal != signal:
        table = "carbon" if about.signal == CARBON else "price"
        raise _bad(name, f"{provider} tells no {name.partition('.')[0]}", f"write it under [signals.{table}.ZONE]")
    known = ["provider", "zone", "url", "max_age", "refresh", "timeout", "allow_http"]
    known += ["kind"] if about.kind else []
    known += ["unit"] if about.signal == PRICE else []
    known += ["key", "key_env", "key_file"] if about.keys != "none" else []
    known += ["user", "user_env"] if about.keys == "user and key" else []
    fields = _fields(name, given, known, Path())
    area = fields.pop("area", zone)
    if not re.fullmatch(about.area, area, re.ASCII):
        raise _bad(name, f"{provider} has no zone {area!r}", f"give zone = {about.area_help}")
    if fields.setdefault("kind", about.kind) != about.kind:
        raise _bad(name, f"{provider} tells {about.kind} intensity", f'write kind = "{about.kind}", or leave it out')
    url = fields.pop("url", about.url.format(area=area.lower())).rstrip("/")
    spec = SignalSpec(
        signal, zone, area=area, url=url,
        **{"unit": about.unit, "refresh_s": about.refresh_s, "max_age_s": about.max_age_s, **fields},
    )  # fmt: skip
    _check_url(name, spec)
    named = [each for each in ("key", "key_env", "key_file") if each in given]
    if len(named) > 1:
        raise _bad(name, f"has {' and '.join(named)}", "give one of them")
    return _checked(name, spec)


def _checked(name: str, spec: SignalSpec) -> SignalSpec:
    if spec.signal == CARBON and spec.unit not in CARBON_UNITS:
        raise _bad(name, f"unit {spec.unit!r} is no carbon intensity", f"give one of {', '.join(CARBON_UNITS)}")
    if spec.signal == PRICE and not _PRICE_UNIT.fullmatch(spec.unit):
        raise _bad(name, f"unit {spec.unit!r} is no price", 'give a currency a kWh or MWh, such as unit = "EUR/MWh"')
    if spec.value is not None:
        try:
            check_value(spec.value * spec.factor, spec.signal)
        except InputError as error:
            raise _bad(name, f"value {error.summary}", error.remedy) from None
    return spec


def _check_url(name: str, spec: SignalSpec) -> None:
    from urllib.parse import urlsplit

    remedy = 'give "https://HOST", without a user, a query or a fragment'
    try:
        where = urlsplit(spec.url)
        usable = where.hostname and where.port != 0 and where.username is None and not where.query + where.fragment
    except ValueError:
        usable = False
        where = urlsplit("")
    if not usable or where.scheme not in ("http", "https") or not re.fullmatch(r"[!-~]+", spec.url):
        raise _bad(name, "url is no address of a server", remedy)  # which may hold a password, and is not repeated
    if where.scheme == "http" and where.hostname not in LOOPBACK and not spec.allow_http:
        raise _bad(name, f"{spec.url} is not encrypted", 'use "https://", or write allow_http = true')


def _table(value: object, name: str, form: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _bad(name, f"{value!r} is not a table", f"write {form}")
    return {str(key): item for key, item in value.items()}


def _bad(name: str, problem: str, remedy: str) -> InputError:
    return InputError("BAD_SIGNAL", f"{name}: {problem}", remedy)


def _fields(name: str, given: Mapping[str, object], known: list[str] | tuple[str, ...], base: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise _bad(name, f"unknown key {key!r}", did_you_mean(key, known))
        try:
            field, parsed = _PARSERS[key](value)
        except InputError as error:
            raise _bad(name, f"{key}: {error.summary}", error.remedy) from None
        fields[field] = str(base / Path(parsed).expanduser()) if field == "csv" else parsed
    return fields


def _text(field: str) -> Callable[[object], tuple[str, Any]]:
    def parse(value: object) -> tuple[str, Any]:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise InputError("", f"{value!r} is not a text", "give a text")
        return field, value.strip()

    return parse


def _seconds(field: str, least_s: float, most_s: float) -> Callable[[object], tuple[str, Any]]:
    def parse(value: object) -> tuple[str, Any]:
        seconds = parse_duration_s(value)
        if not least_s <= seconds <= most_s:
            raise InputError("", f"{seconds:g} s is out of range", f"give {least_s:g} s to {most_s:g} s")
        return field, seconds

    return parse


def _key_file(value: object) -> tuple[str, Any]:
    _, text = _text("")(value)
    path = Path(text).expanduser()
    if not path.is_absolute():
        raise InputError("", f"{text!r} is not an absolute path", "begin it with / or ~")
    return "key_file", str(path)


def _key(value: object) -> tuple[str, Any]:
    name = value.removeprefix(CONNECTION).strip() if isinstance(value, str) and value.startswith(CONNECTION) else ""
    if not name or not name.isprintable():
        # The key itself may have been written here: it is not repeated.
        raise InputError(
            "", "only a connection of the engine can be named", 'write key = "conn:NAME", key_env or key_file'
        )
    return "key_conn", name


def _kind(value: object) -> tuple[str, Any]:
    if value not in get_args(Kind):
        raise InputError("", f"{value!r} is no kind", f"give one of {', '.join(get_args(Kind))}")
    return "kind", cast("Kind", value)


def _number(value: object) -> tuple[str, Any]:
    return "value", check_value(value)


def _truth(value: object) -> tuple[str, Any]:
    if not isinstance(value, bool):
        raise InputError("", f"{value!r} is not true or false", "write true or false")
    return "allow_http", value


_DAY_S: Final = 24 * _HOUR_S
_PARSERS: Final[Mapping[str, Callable[[object], tuple[str, Any]]]] = {
    "value": _number,
    "csv": _text("csv"),
    "column": _text("column"),
    "unit": _text("unit"),
    "kind": _kind,
    "provider": _text("provider"),
    "zone": _text("area"),
    "url": _text("url"),
    "user": _text("user"),
    "user_env": _text("user_env"),
    "key": _key,
    "key_env": _text("key_env"),
    "key_file": _key_file,
    "max_age": _seconds("max_age_s", 1.0, 30 * _DAY_S),
    "refresh": _seconds("refresh_s", 10.0, _DAY_S),
    "timeout": _seconds("timeout_s", 0.05, 60.0),
    "allow_http": _truth,
}
