"""``tao-flows budget`` as a person runs it, on a real ledger."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tao_flows.budget import EnergyBudget
from tao_flows.ledger import open_ledger
from tao_flows.ledger.budgets import BudgetStore, Claim

J = 1_000_000
TAO_FLOWS = Path(sys.executable).with_name("tao-flows")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BudgetStore]:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)
    ledger = open_ledger(str(tmp_path / "ledger.db"))
    yield BudgetStore(ledger)
    ledger.close()


def tao_flows(*arguments: str) -> Any:
    return subprocess.run([TAO_FLOWS, "budget", *arguments], capture_output=True, text=True, timeout=60)


def shown(*arguments: str) -> list[dict[str, Any]]:
    done = tao_flows("show", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "tao-flows/budgets/1"
    budgets: list[dict[str, Any]] = document["budgets"]
    return budgets


def test_a_budget_is_set_shown_and_dropped(store: BudgetStore) -> None:
    done = tao_flows(
        "set", "team-a", "--limit", "1kWh", "--window", "day", "--timezone", "Europe/Berlin",
        "--ceiling", "2kWh", "--scope", "team:a",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "1.00 kWh in a window of day in Europe/Berlin, never over 2.00 kWh" in done.stderr
    expected = EnergyBudget(
        "team-a", 3_600_000.0, 86_400.0, 7_200_000.0, "day", "Europe/Berlin", "team:a"
    )  # fmt: skip
    assert store.all() == [expected]
    (budget,) = shown("team-a")
    assert budget["limit_j"] == 3_600_000.0
    assert budget["ceiling_j"] == 7_200_000.0
    assert budget["calendar"] == "day"
    assert budget["window_end"] > budget["window_start"]
    assert (budget["spent_j"], budget["reserved_j"], budget["left_j"]) == (0.0, 0.0, 3_600_000.0)
    assert (budget["regime"], budget["unknown_runs"]) == ("standard", 0)
    dropped = tao_flows("drop", "team-a", "--json")
    assert json.loads(dropped.stdout) == {"schema": "tao-flows/budgets/1", "dropped": "team-a"}
    assert store.all() == []


def test_a_power_cap_is_set_in_watts(store: BudgetStore) -> None:
    done = tao_flows("set", "cap", "--power", "500W", "--json")
    (budget,) = json.loads(done.stdout)["budgets"]
    assert (budget["power_w"], budget["limit_j"], budget["window_s"]) == (500.0, 30_000.0, 60.0)
    assert store.all() == [EnergyBudget("cap", 30_000.0, 60.0)]


def test_the_table_says_how_budgets_stand(store: BudgetStore) -> None:
    store.put(EnergyBudget("a", 10.0))
    store.put(EnergyBudget("b", 10.0, calendar="month", timezone="Asia/Tokyo"))
    store.reserve("one", [Claim("a", 8 * J), Claim("b", 12 * J)], 60)
    done = tao_flows("show")
    assert done.returncode == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    assert "8.00 J" in rows["a"]
    assert "2.00 J" in rows["a"]
    assert "transition" in rows["a"]
    assert "rolls" in rows["a"]
    assert "-2.00 J" in rows["b"]
    assert "inversion" in rows["b"]
    assert "00:00 Asia/Tokyo" in rows["b"]
    (budget,) = shown("b")
    assert (budget["left_j"], budget["utilisation"]) == (-2.0, 1.2)


def test_without_any_budget_it_says_how_to_define_one(store: BudgetStore) -> None:
    done = tao_flows("show")
    assert (done.returncode, done.stdout) == (0, "")
    assert "tao-flows budget set NAME --limit ENERGY" in done.stderr
    assert shown() == []


def test_a_budget_that_is_only_configured_is_noted(store: BudgetStore, tmp_path: Path) -> None:
    (tmp_path / "tao-flows.toml").write_text('[budgets.team-a]\nlimit = "1 kWh"\n')
    assert "configured, and not in the ledger until a flow starts: team-a" in tao_flows("show").stderr
    done = tao_flows("set", "team-a", "--limit", "2kWh")
    assert "'team-a' is configured otherwise" in done.stderr
    assert "note" not in tao_flows("set", "team-a", "--limit", "1kWh").stderr
    assert "note" not in tao_flows("show").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "team-b"), "there is no budget 'team-b'; did you mean 'team-a'?"),
        (("watch", "team-b"), "there is no budget 'team-b'"),
        (("drop", "zzz"), "there is no budget 'zzz'; known: team-a"),
        (("set", "x"), "has no limit"),
        (("set", "x", "--limit", "5"), "'5' is not an energy"),
        (("set", "x", "--limit", "5J", "--timezone", "Mars/Base"), "pip install tzdata"),
        (("set", "x", "--limit", "5J", "--power", "5W"), "both a limit and a power"),
        (("set", "", "--limit", "5J"), "no name"),
        (("set", "x", "--limit"), "requires an argument"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line(store: BudgetStore, arguments: tuple[str, ...], said: str) -> None:
    store.put(EnergyBudget("team-a", 10.0))
    done = tao_flows(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert store.all() == [EnergyBudget("team-a", 10.0)]


def test_watching_without_a_terminal_prints_lines_until_it_is_interrupted(store: BudgetStore) -> None:
    store.put(EnergyBudget("a", 10.0))
    with watching() as running:
        assert running.stdout is not None
        assert "a: 0 J spent, 0 J reserved, 10.0 J left of 10.0 J, standard" in running.stdout.readline()
        store.reserve("one", [Claim("a", 9 * J)], 60)
        assert "9.00 J reserved, 1.00 J left of 10.0 J, transition" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert (running.returncode, errors) == (0, "")


def test_watching_as_json_prints_a_document_a_line(store: BudgetStore) -> None:
    store.put(EnergyBudget("a", 10.0))
    with watching("a", "--json") as running:
        assert running.stdout is not None
        for _ in range(2):
            assert json.loads(running.stdout.readline())["budgets"][0]["name"] == "a"
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    assert running.returncode == 0


def watching(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [TAO_FLOWS, "budget", "watch", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_watching_on_a_terminal_draws_the_table_anew(store: BudgetStore) -> None:
    store.put(EnergyBudget("a", 10.0))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(TAO_FLOWS, ["tao-flows", "budget", "watch"])
    read_until(terminal, "10.0 J")
    store.reserve("one", [Claim("a", 9 * J)], 60)
    read_until(terminal, "9.00 J")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def read_until(terminal: int, text: str) -> None:
    said, give_up_s = "", time.monotonic() + 30
    while text not in said:
        assert time.monotonic() < give_up_s, said
        said += os.read(terminal, 4096).decode(errors="replace")
