"""``tao-flows signals`` as a person runs it: the installed command, a settings file, a server on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from signal_server import KEY, Fault, SignalServer, serving

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")


@pytest.fixture
def server() -> Iterator[SignalServer]:
    with serving(time.time_ns()) as server:
        yield server


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, server: SignalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tao-flows.toml").write_text(
        "[signals.carbon]\n"
        f'DE = {{ provider = "electricitymaps", key_env = "EM_KEY", url = "{server.url}" }}\n'
        "FR = { value = 50 }\n"
        f'[signals.price.DE]\nprovider = "awattar"\nurl = "{server.url}"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EM_KEY", KEY)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TAO_FLOWS), "signals", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "160"},
    )


def signals(*arguments: str, status: int = 0) -> dict[tuple[str, str], dict[str, Any]]:
    done = run(*arguments, "--json")
    assert done.returncode == status, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "tao-flows/signals/1"
    assert KEY not in done.stdout + done.stderr
    return {(one["signal"], one["zone"]): one for one in document["signals"]}


def test_every_configured_signal_is_shown_with_its_provider_unit_kind_and_age(server: SignalServer) -> None:
    shown = signals("fetch")
    assert list(shown) == [("carbon_g_per_kwh", "DE"), ("carbon_g_per_kwh", "FR"), ("price_per_kwh", "DE")]
    german = shown["carbon_g_per_kwh", "DE"]
    assert (german["provider"], german["kind"], german["unit"], german["value"]) == (
        "electricitymaps", "average", "g/kWh", 300.0,
    )  # fmt: skip
    assert german["stale"] is False
    assert 0 <= german["age_s"] < 600
    assert 6 * 3600 < german["horizon_s"] <= 8 * 3600
    assert german["margin"] == {"margin": 0.0, "follow": False, "corrected": False, "replayed": 0, "share": None}
    assert shown["price_per_kwh", "DE"]["margin"]["follow"] is True
    assert shown["price_per_kwh", "DE"]["kind"] is None
    assert shown["price_per_kwh", "DE"]["unit"] == "EUR/kWh"
    french = shown["carbon_g_per_kwh", "FR"]
    assert (french["value"], french["issued_at"], french["horizon_s"], french["problems"]) == (50.0, None, None, [])


def test_showing_asks_only_for_what_is_due_and_fetching_asks_at_once(server: SignalServer) -> None:
    signals()
    asked = len(server.asked)
    assert asked == 3
    signals()
    assert len(server.asked) == asked
    signals("fetch")
    assert len(server.asked) == 2 * asked


def test_people_get_a_table(server: SignalServer) -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    for part in (
        "carbon DE",
        "300 g/kWh, average",
        "electricitymaps DE",
        "carbon FR",
        "without end",
        "price DE",
        "as published",
        "not learned yet",
    ):
        assert part in " ".join(done.stdout.split()), done.stdout
    assert not done.stderr


def test_a_provider_that_refuses_is_told_with_its_remedy_and_fetching_fails(server: SignalServer) -> None:
    server.always = Fault(status=401, path="/v3")
    shown = signals("fetch", status=1)
    (problem,) = shown["carbon_g_per_kwh", "DE"]["problems"]
    assert problem["code"] == "SIGNAL_DENIED"
    assert "key" in problem["remedy"]
    assert shown["carbon_g_per_kwh", "DE"]["value"] is None
    done = run()
    assert done.returncode == 0
    assert "[SIGNAL_DENIED]" in done.stderr


def test_no_signals_are_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "tao-flows.toml").write_text("")
    assert signals() == {}
    assert "no signals are configured" in run().stderr


@pytest.mark.parametrize("arguments", [["--slack", "soon"], ["fetch", "--runtime", "-1"], ["burn"]])
def test_bad_usage_ends_with_two(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_mistake_in_the_settings_ends_with_two(tmp_path: Path) -> None:
    (tmp_path / "tao-flows.toml").write_text("[signals.carbon.DE]\nvalue = -3\n")
    done = run("--json")
    assert done.returncode == 2
    assert "carbon.DE: value" in done.stderr
    assert not done.stdout


def test_the_settings_are_shown_without_the_key(tmp_path: Path) -> None:
    for options in ([], ["--json"]):
        done = subprocess.run([str(TAO_FLOWS), "config", *options], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "electricitymaps" in done.stdout
        assert KEY not in done.stdout
