"""The tables that describe signals, as a person writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tao_flows.config import load_config
from tao_flows.errors import ConfigError, InputError
from tao_flows.signals.spec import SignalSpec, parse_signals

BASE = Path("/etc/tao")


def parse(carbon: dict[str, Any] | None = None, price: dict[str, Any] | None = None) -> dict[str, SignalSpec]:
    tables = {name: table for name, table in (("carbon", carbon), ("price", price)) if table is not None}
    return parse_signals(tables, BASE)


def refused(tables: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        parse_signals(tables, BASE)
    assert caught.value.remedy
    return caught.value


def test_a_figure_is_enough() -> None:
    spec = parse({"DE": {"value": 350}})["carbon.DE"]
    assert (spec.provider, spec.value, spec.unit, spec.kind, spec.zone) == ("static", 350.0, "g/kWh", "average", "DE")


@pytest.mark.parametrize(
    ("table", "unit", "factor"),
    [
        ("carbon", "g/kWh", 1.0),
        ("carbon", "kg/MWh", 1.0),
        ("carbon", "lb/MWh", 0.45359237),
        ("price", "EUR/kWh", 1.0),
        ("price", "GBP/MWh", 0.001),
    ],
)
def test_every_unit_is_read_as_that_of_a_kilowatt_hour(table: str, unit: str, factor: float) -> None:
    (spec,) = parse_signals({table: {"z": {"value": 2, "unit": unit}}}, BASE).values()
    assert spec.factor == pytest.approx(factor)
    assert spec.read_as == ("g/kWh" if table == "carbon" else f"{unit[:3]}/kWh")


def test_a_file_is_looked_for_beside_the_settings() -> None:
    spec = parse(price={"DE": {"csv": "prices.csv", "column": "eur", "unit": "EUR/MWh", "zone": "DE-LU"}})["price.DE"]
    assert (spec.csv, spec.column, spec.area, spec.max_age_s) == ("/etc/tao/prices.csv", "eur", "DE-LU", None)


def test_a_provider_brings_what_is_known_of_it() -> None:
    spec = parse({"DE": {"provider": "electricitymaps", "key_env": "EM_KEY", "max_age": "30m"}})["carbon.DE"]
    assert spec.url == "https://api.electricitymaps.com"
    assert (spec.kind, spec.unit, spec.area, spec.max_age_s, spec.timeout_s) == ("average", "g/kWh", "DE", 1800.0, 2.0)


@pytest.mark.parametrize(
    ("tables", "part"),
    [
        ([], "not a table"),
        ({"water": {}}, "water"),
        ({"carbon": {"DE": 350}}, "carbon.DE"),
        ({"carbon": {"DE": {}}}, "no source"),
        ({"carbon": {"": {"value": 1}}}, "name"),
        ({"carbon": {"DE": {"value": 1, "csv": "a"}}}, "value and csv"),
        ({"carbon": {"DE": {"value": -1}}}, "negative"),
        ({"carbon": {"DE": {"value": float("nan")}}}, "finite"),
        ({"carbon": {"DE": {"value": True}}}, "not a number"),
        ({"carbon": {"DE": {"value": 1, "colour": "red"}}}, "colour"),
        ({"carbon": {"DE": {"value": 1, "unit": "EUR/kWh"}}}, "no carbon intensity"),
        ({"carbon": {"DE": {"value": 1, "kind": "mean"}}}, "'mean'"),
        ({"price": {"DE": {"value": 1}}}, "no price"),
        ({"price": {"DE": {"value": 1, "unit": "EUR/GWh"}}}, "no price"),
        ({"price": {"DE": {"value": 1, "unit": "EUR/kWh", "kind": "average"}}}, "no kind"),
        ({"carbon": {"DE": {"provider": "electricmaps"}}}, "electricmaps"),
        ({"price": {"DE": {"provider": "electricitymaps"}}}, "tells no price"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "kind": "marginal"}}}, "average"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "zone": "Berlin & co"}}}, "has no zone"),
        ({"carbon": {"GB": {"provider": "ukcarbonintensity", "zone": "18"}}}, "has no zone"),
        ({"carbon": {"GB": {"provider": "ukcarbonintensity", "key_env": "X"}}}, "key_env"),
        ({"price": {"FR": {"provider": "awattar"}}}, "has no zone"),
        ({"price": {"DE": {"provider": "entsoe", "zone": "DE-LU"}}}, "has no zone"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "timeout": "2h"}}}, "timeout"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "key_file": "key"}}}, "absolute"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "key_file": "/k", "key_env": "K"}}}, "key_env and key_file"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "key": "conn:k", "key_env": "K"}}}, "key and key_env"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "key": "conn: "}}}, "only a connection"),
        ({"carbon": {"DE": {"provider": "electricitymaps", "allow_http": "yes"}}}, "true or false"),
        ({"carbon": {"DE": {"csv": ""}}}, "not a text"),
    ],
)
def test_a_mistake_is_told_by_its_place(tables: Any, part: str) -> None:
    error = refused(tables)
    assert error.code == "BAD_SIGNAL"
    assert part in f"{error.summary} {error.remedy}"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x", "http://", "https://user:pa55word@host", "https://host?key=pa55word", "https://host#pa55word",
        "host", "https://ho st", "http://[::1", "https://host:0",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    error = refused({"carbon": {"DE": {"provider": "electricitymaps", "url": url}}})
    assert "pa55word" not in str(error)


def test_an_unencrypted_address_is_for_the_loopback_or_for_those_who_say_so() -> None:
    entry = {"provider": "electricitymaps", "url": "http://signals.internal"}
    assert "not encrypted" in refused({"carbon": {"DE": entry}}).summary
    assert parse({"DE": {**entry, "allow_http": True}})["carbon.DE"].url == "http://signals.internal"
    assert parse({"DE": {**entry, "url": "http://127.0.0.1:80/"}})["carbon.DE"].url == "http://127.0.0.1:80"


def test_a_key_that_was_written_into_the_file_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        parse({"DE": {"provider": "electricitymaps", "key": "hunter2"}})
    assert "hunter2" not in str(caught.value)
    assert 'key = "conn:NAME"' in caught.value.remedy


def test_marginal_and_average_intensity_do_not_mix() -> None:
    marginal = {"provider": "watttime", "zone": "CAISO_NORTH"}
    error = refused({"carbon": {"DE": {"value": 350}, "CA": marginal}})
    assert error.code == "SIGNALS_MIXED"
    assert "carbon.DE is average" in error.summary
    assert parse({"DE": {"value": 350, "kind": "marginal"}, "CA": marginal})["carbon.DE"].kind == "marginal"


def test_currencies_do_not_mix() -> None:
    prices = {"DE": {"provider": "awattar"}, "GB": {"value": 0.2, "unit": "GBP/kWh"}}
    assert refused({"price": prices}).code == "SIGNALS_MIXED"


def test_figures_of_another_kind_currency_or_provider_are_another_series() -> None:
    entries = [
        {"carbon": {"z": {"value": 1}}},
        {"carbon": {"z": {"value": 1, "kind": "marginal"}}},
        {"carbon": {"z": {"provider": "electricitymaps", "zone": "DE"}}},
        {"carbon": {"z": {"provider": "electricitymaps", "zone": "FR"}}},
        {"price": {"z": {"value": 1, "unit": "EUR/kWh"}}},
        {"price": {"z": {"value": 1, "unit": "USD/kWh"}}},
    ]
    assert len({spec.series for entry in entries for spec in parse_signals(entry, BASE).values()}) == len(entries)


def test_the_settings_file_holds_them_and_a_mistake_names_it(tmp_path: Path) -> None:
    path = tmp_path / "tao-flows.toml"
    path.write_text('[signals.carbon.DE]\nvalue = 350\n[signals.price.DE]\ncsv = "p.csv"\nunit = "EUR/MWh"\n')
    resolved = load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert set(resolved.config.signals) == {"carbon.DE", "price.DE"}
    assert resolved.config.signals["price.DE"].csv == str(tmp_path / "p.csv")
    path.write_text("[signals.carbon.DE]\nvalue = -1\n")
    with pytest.raises(ConfigError, match=r"tao-flows\.toml: signals: carbon\.DE: value"):
        load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path)
