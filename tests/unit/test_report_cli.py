"""``tao-flows report`` on a real ledger."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tao_flows.cli.report import report_command
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState, Who
from tao_flows.telemetry.procfs import boot_id

S = 1_000_000_000
NOW = time.time_ns()
ELSEWHERE = Segment("another-host", "boot", 1, 1)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(path))
    monkeypatch.setenv("COLUMNS", "120")
    opened = open_ledger(str(path))
    yield opened
    opened.close()


def put(ledger: Ledger, run_id: str = "run-0001", *, flow: str = "nightly", **more: Any) -> TaskRecord:
    """A run with one task of 2 J in it."""
    start = NOW - 60 * S
    measured = Measurement(
        "train", start, 1.0, CpuTime(0.5, "perf", covers_children=True),
        Figure(2_000_000, 1_000_000, 4_000_000, Quality.ESTIMATED, ("estimate",)), (), Account(), model="m/1",
    )  # fmt: skip
    record = TaskRecord(
        RunKey("prefect", "default", flow, run_id, "train", "a", 1), ELSEWHERE, TaskState.COMPLETED, start,
        who=Who(team="ml"), pool="home", ended_wall_ns=start + S, measurement=measured,
    )  # fmt: skip
    name = more.pop("name", "amber-fox")
    record = replace(record, **more)
    ledger.put_run(
        RunRecord("prefect", "default", flow, run_id, "completed", start, ELSEWHERE, start + 5 * S, name=name)
    )
    ledger.put_task(record)
    account = Account(None, 4_000_000, 2_000_000, 1_000_000, None, 1_000_000, Quality.ESTIMATED)
    ledger.put_account(RunRef("prefect", "default", run_id, flow), HostAccount("another-host", account, 5.0, "w"))
    return record


def report(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(report_command)
    return CliRunner().invoke(app, list(arguments))


def test_the_latest_run_is_shown_unless_another_is_named(ledger: Ledger) -> None:
    put(ledger)
    for arguments in ((), ("latest",), ("run-0001",), ("run-",), ("amber-fox",), ("nightly/run-0001",)):
        shown = report(*arguments)
        assert shown.exit_code == 0, shown.stderr
        assert "nightly / amber-fox" in shown.stdout
        assert "2.00 J [1.00, 4.00]" in shown.stdout


def test_json_is_alone_on_standard_output(ledger: Ledger) -> None:
    put(ledger)
    shown = report("latest", "--json")
    assert shown.exit_code == 0
    made = json.loads(shown.stdout)
    assert made["schema"] == "tao-flows/report/1"
    assert made["tasks"][0]["energy"]["value_j"] == 2.0
    assert made["overhead_share"] == pytest.approx(1 / 3)


def test_a_name_for_several_runs_ends_with_2_and_lists_them(ledger: Ledger) -> None:
    put(ledger, "run-0001", flow="nightly")
    put(ledger, "run-0001", flow="hourly")
    put(ledger, "run-0002", flow="hourly")
    shown = report("amber-fox")
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1
    for name in ("names 3 runs", "nightly/run-0001", "hourly/run-0001", "hourly/run-0002", "RUN_AMBIGUOUS"):
        assert name in shown.stderr
    assert "hourly" in report("hourly/run-0001").stdout


def test_runs_of_two_flows_under_one_id_do_not_share_their_tasks(ledger: Ledger) -> None:
    put(ledger, flow="nightly")
    put(ledger, flow="hourly")
    made = json.loads(report("hourly/run-0001", "--json").stdout)
    assert made["run"]["flow"] == "hourly"
    assert len(made["tasks"]) == 1


def test_an_unknown_name_ends_with_2_and_names_what_there_is(ledger: Ledger) -> None:
    put(ledger)
    shown = report("nope")
    assert shown.exit_code == 2
    assert "no run is named 'nope'" in shown.stderr
    assert "nightly/run-0001" in shown.stderr


@pytest.mark.parametrize("arguments", [(), ("nope",), ("--since", "7d")])
def test_an_empty_ledger_ends_with_2_and_says_how_to_fill_it(ledger: Ledger, arguments: tuple[str, ...]) -> None:
    shown = report(*arguments)
    assert shown.exit_code == 2
    assert "no runs recorded yet" in shown.stderr
    assert "@tao_flow" in shown.stderr


def test_a_task_whose_process_was_killed_is_reconciled_and_shown_as_lost(ledger: Ledger) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
    segment = Segment(os.uname().nodename, boot_id(), process.pid, int(stat.rpartition(")")[2].split()[19]))
    running = {"state": TaskState.RUNNING, "ended_wall_ns": None, "measurement": None}
    put(ledger, segment=segment, **running)
    try:
        assert json.loads(report("--json").stdout)["tasks"][0]["state"] == "running"
    finally:
        process.kill()
        process.wait()
    shown = report("--json")
    task = json.loads(shown.stdout)["tasks"][0]
    assert task["state"] == "lost"
    assert task["energy"]["value_j"] is None
    assert "1 task marked as lost" in shown.stderr


def test_html_is_written_to_its_file_and_nothing_to_standard_output(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger)
    page = tmp_path / "report.html"
    shown = report("latest", "--html", str(page))
    assert shown.exit_code == 0
    assert shown.stdout == ""
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "2.00 J [1.00, 4.00]" in page.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_ends_with_2(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger)
    shown = report("--html", str(tmp_path / "missing" / "report.html"))
    assert shown.exit_code == 2
    assert "No such file" in shown.stderr


def test_markdown_is_written_to_standard_output(ledger: Ledger) -> None:
    put(ledger)
    assert report("--markdown").stdout.startswith("## Energy of nightly / amber-fox")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--by", "team"), "--since"),
        (("run-0001", "--since", "7d"), "RUN cannot be given with --since"),
        (("--json", "--markdown"), "--markdown cannot be given with --json"),
        (("--since", "soon"), "not a duration"),
        (("--since", "7d", "--by", "colour"), "team, flow, pool"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line(ledger: Ledger, arguments: tuple[str, ...], said: str) -> None:
    put(ledger)
    shown = report(*arguments)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1
    assert said in shown.stderr


def test_the_fleet_is_summed_by_group_with_its_quality_mix(ledger: Ledger) -> None:
    put(ledger, "run-0001")
    put(ledger, "run-0002")
    put(ledger, "run-0003", flow="hourly", state=TaskState.LOST, ended_wall_ns=None, measurement=None)
    made = json.loads(report("--since", "7d", "--by", "flow", "--json").stdout)
    assert (made["schema"], made["by"]) == ("tao-flows/fleet/1", "flow")
    nightly, hourly = made["rows"]
    assert (nightly["group"], nightly["runs"], nightly["tasks"], nightly["lost"]) == ("nightly", 2, 2, 0)
    assert nightly["energy"]["value_j"] == 4.0
    assert nightly["by_quality_j"] == {"estimated": 4.0}
    assert nightly["overhead_share"] == pytest.approx(1 / 3)
    assert nightly["cpu_s"] == 1.0
    assert nightly["comparable"] is True
    assert (hourly["group"], hourly["lost"], hourly["energy"]["value_j"]) == ("hourly", 1, None)


@pytest.mark.parametrize("by", ["team", "flow", "pool"])
def test_the_fleet_is_a_table_on_the_terminal(ledger: Ledger, by: str) -> None:
    put(ledger)
    shown = report("--since", "7d", "--by", by)
    assert shown.exit_code == 0
    assert f"Energy by {by}" in shown.stdout
    assert "2.00 J [1.00, 4.00]" in shown.stdout
    assert "2.00 J estimated" in shown.stdout


def test_figures_under_several_methods_are_flagged_in_the_fleet(ledger: Ledger) -> None:
    measurement = put(ledger, "run-0001").measurement
    assert measurement
    put(ledger, "run-0002", measurement=replace(measurement, method="tao-flows/attribution/9"))
    made = json.loads(report("--since", "7d", "--json").stdout)
    assert made["rows"][0]["comparable"] is False
    assert "do not compare" in " ".join(made["notes"])
    shown = report("--since", "7d").stdout
    assert "2.00 J estimated" not in shown
    assert "4.00 J [2.00, 8.00] !" in shown


def test_runs_before_the_time_asked_for_are_left_out(ledger: Ledger) -> None:
    put(ledger)
    shown = report("--since", "1s")
    assert shown.exit_code == 0
    assert "No task was recorded in this time" in shown.stdout


def test_a_ledger_that_cannot_be_written_is_still_read(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Segment(os.uname().nodename, "an earlier boot", 1, 1)
    put(ledger, segment=ended, state=TaskState.RUNNING, ended_wall_ns=None)
    monkeypatch.setattr("tao_flows.cli.report.open_ledger", lambda url: impatient(tmp_path / "ledger.db"))
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        shown = report("--json")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["tasks"][0]["state"] == "running"
    assert "lost tasks are not marked" in shown.stderr


def impatient(path: Path) -> Ledger:
    return SqliteLedger(path, busy_timeout_s=0.05)


def test_a_file_that_is_no_ledger_ends_with_2_and_one_line(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a ledger" * 1_000)
    shown = report()
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1
    assert "ledger.db" in shown.stderr
