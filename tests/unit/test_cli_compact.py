"""``tao-flows ledger compact`` and ``tao-flows report --totals``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from old_runs import put_run, run_of, task_of
from typer.testing import CliRunner

from tao_flows.cli.ledger import ledger_app
from tao_flows.cli.report import report_command
from tao_flows.clock import SystemClock
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.tally import DAY_NS

SETTINGS = """
[signals.carbon]
DE = { value = 400 }
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """With one run of a thousand microjoules, years ago, of a team and a model."""
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(tmp_path / "ledger.db"))
    monkeypatch.chdir(tmp_path)
    with closing(open_ledger(str(tmp_path / "ledger.db"))) as opened:
        run = run_of(1)
        put_run(opened, run, task_of(run))
        yield opened


def asked(*arguments: str) -> Any:
    command = typer.Typer()
    command.command()(report_command)
    is_report = arguments[0] == "--totals"
    done = CliRunner().invoke(command if is_report else ledger_app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(ledger_app, list(arguments))
    assert done.exit_code == 2
    return done.stderr


def test_totals_are_the_same_before_and_after_a_compaction(ledger: Ledger) -> None:
    by = ("team", "model", "flow", "day", "namespace", "engine")
    before = {name: asked("--totals", "--by", name) for name in by}
    done = asked("compact", "--older-than", "90d")
    assert (done["runs"], done["applied"], done["rows"]["tasks"], done["problems"]) == (1, True, 1, [])
    assert {name: asked("--totals", "--by", name) for name in by} == before
    groups = {name: [row["group"] for row in found["rows"]] for name, found in before.items()}
    assert groups == {"team": ["ml"], "model": ["m1"], "flow": ["nightly"], "day": ["2024-10-04"],
                      "namespace": ["default"], "engine": ["prefect"]}  # fmt: skip
    lines = {line["line"]: line for line in before["team"]["rows"][0]["lines"]}
    assert (lines["energy"]["amount"], lines["energy"]["low"], lines["energy"]["high"]) == ("1000", "500", "2000")
    assert (lines["idle"]["amount"], lines["idle"]["parts"], lines["idle"]["known"]) == (None, 1, 0)
    assert lines["carbon"]["amount"] is None


def test_nothing_is_summed_up_without_a_period_and_no_period_is_too_short(ledger: Ledger) -> None:
    assert "NO_PERIOD" in refused("compact")
    assert "SHORT_PERIOD" in refused("compact", "--older-than", "6d")
    assert "BAD_SETTING" in refused("compact", "--older-than", "soon")
    assert len(ledger.runs()) == 1


def test_the_setting_ledger_retention_is_the_period_of_a_command_that_names_none(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    young = replace(run_of(2), started_wall_ns=SystemClock.wall_ns() - 20 * DAY_NS, ended_wall_ns=None, state="lost")
    put_run(ledger, young)
    monkeypatch.setenv("TAO_FLOWS_RETENTION", "7d")  # of bundles: it deletes nothing
    assert "NO_PERIOD" in refused("compact")
    monkeypatch.setenv("TAO_FLOWS_LEDGER_RETENTION", "30d")
    assert asked("compact", "--dry-run")["runs"] == 1
    assert asked("compact")["runs"] == 1
    assert [run.run_id for run in ledger.runs()] == ["run-0002"]


def test_grams_are_fixed_when_a_run_is_summed_up(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "pools.toml").write_text('[[pools]]\npool_id = "home"\nzone = "DE"\n')
    config = tmp_path / "tao-flows.toml"
    config.write_text(f'pools = "{tmp_path}/pools.toml"\n{SETTINGS}')
    run = run_of(3)
    put_run(ledger, run, task_of(run, energy_uj=3_600_000_000))  # 1 Wh
    before = asked("--totals")
    lines = [line for line in before["rows"][0]["lines"] if line["line"] == "carbon"]
    assert [(line["amount"], line["low"], line["known"]) for line in lines] == [("400000", "200000", 2)]
    asked("compact", "--older-than", "90d")
    config.write_text("")
    assert asked("--totals") == before


def test_what_is_left_for_the_next_time_is_told_and_ends_with_1(ledger: Ledger) -> None:
    with ledger.transaction() as tx:
        tx.change("UPDATE accounts SET body = 'no record'")
    done = CliRunner().invoke(ledger_app, ["compact", "--older-than", "90d"])
    assert done.exit_code == 1
    assert "LEDGER_CORRUPT" in done.stderr
    assert len(ledger.runs()) == 1
