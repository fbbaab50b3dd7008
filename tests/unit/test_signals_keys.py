"""Keys come from where the user put them, and show up nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tao_flows.errors import SourceError
from tao_flows.signals.keys import Credentials, find_credentials
from tao_flows.signals.spec import SignalSpec, parse_signals


def spec(provider: str, **more: Any) -> SignalSpec:
    entry = {"provider": provider, "zone": "DE" if provider == "electricitymaps" else "CAISO_NORTH", **more}
    (spec,) = parse_signals({"carbon": {"here": entry}}, Path("/")).values()
    return spec


def missing(spec: SignalSpec, env: dict[str, str]) -> SourceError:
    with pytest.raises(SourceError) as caught:
        find_credentials(spec, None, env)
    assert caught.value.code == "SIGNAL_KEY"
    assert caught.value.remedy
    return caught.value


def test_a_key_comes_from_a_variable() -> None:
    assert find_credentials(spec("electricitymaps", key_env="K"), None, {"K": " abc\n"}).key == "abc"


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\n")
    assert find_credentials(spec("electricitymaps", key_file=str(tmp_path / "key")), None, {}).key == "abc"


def test_a_key_comes_from_an_engine_before_all_else() -> None:
    asked = spec("electricitymaps", key_env="K")
    assert find_credentials(asked, lambda given: Credentials("from " + given.provider), {"K": "abc"}).key == (
        "from electricitymaps"
    )
    assert find_credentials(asked, lambda _: None, {"K": "abc"}).key == "abc"


def test_a_password_may_hold_what_a_key_may_not() -> None:
    found = find_credentials(spec("watttime", user="ada", key_env="K"), None, {"K": "pass wörd"})
    assert (found.user, found.key) == ("ada", "pass wörd")
    assert "characters" in missing(spec("electricitymaps", key_env="K"), {"K": "pass wörd"}).summary


def test_what_is_missing_is_named() -> None:
    assert "needs a key" in missing(spec("electricitymaps"), {}).summary
    assert "variable K is not set" in missing(spec("electricitymaps", key_env="K"), {}).summary
    assert "No such file" in missing(spec("electricitymaps", key_file="/no/such"), {}).summary
    assert "needs a user" in missing(spec("watttime", key_env="K"), {"K": "abc"}).summary
    assert "one line" in missing(spec("electricitymaps", key_env="K"), {"K": "a\nb"}).remedy


def test_a_key_is_not_shown_when_its_holder_is() -> None:
    assert "abc" not in repr(Credentials("abc", "ada"))


def test_a_provider_without_keys_asks_for_none() -> None:
    (open_to_all,) = parse_signals({"carbon": {"GB": {"provider": "ukcarbonintensity"}}}, Path("/")).values()
    assert find_credentials(open_to_all, None, {}) == Credentials()


def test_a_key_that_an_engine_keeps_is_named_by_its_connection() -> None:
    named = spec("electricitymaps", key="conn:em_key")
    assert named.key_conn == "em_key"
    assert find_credentials(named, lambda given: Credentials(f"from {given.key_conn}"), {}).key == "from em_key"
    problem = missing(named, {})
    assert "em_key is kept by an engine" in problem.summary
    assert "key_env" in problem.remedy
