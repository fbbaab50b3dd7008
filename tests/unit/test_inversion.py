"""Whether the engine takes more joules than the work, from the runs a ledger holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tao_flows.cli.report import report_command
from tao_flows.figures import Account
from tao_flows.inversion import INVERSION_SHARE, LEAST_RUNS, LEAVE_SHARE, detect, follow, follow_by
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunOverhead, RunRef
from tao_flows.records import HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState
from tao_flows.units import NS_PER_S

SEGMENT = Segment("node-1", "boot", 4242, 99)


def run(number: int, share: float | None, whole_uj: int = 1_000_000, flow: str = "nightly") -> RunOverhead:
    """A run that began ``number`` seconds after the epoch."""
    overhead_uj = None if share is None else round(share * whole_uj)
    tasks_uj = None if overhead_uj is None else whole_uj - overhead_uj
    return RunOverhead("default", flow, f"run-{number:04}", "home", number * NS_PER_S, tasks_uj, overhead_uj)


def runs(*shares: float | None) -> list[RunOverhead]:
    return [run(number, share) for number, share in enumerate(shares)]


def test_nothing_is_said_before_enough_runs_tell() -> None:
    few = detect(runs(*[0.9] * (LEAST_RUNS - 1), None, None))
    assert (few.inverted, few.low, few.high) == (None, None, None)
    assert (few.runs, few.unknown) == (LEAST_RUNS - 1, 2)
    assert few.share == pytest.approx(0.9)
    assert detect([]).share is None
    assert detect([]).coverage == 1.0


def test_the_share_is_that_of_all_joules_and_not_the_mean_of_the_shares() -> None:
    small, large = [run(number, 0.9, 1_000) for number in range(9)], [run(9, 0.1, 1_000_000)]
    found = detect(small + large)
    assert found.share == pytest.approx((9 * 900 + 100_000) / 1_009_000)
    assert found.inverted is False


def test_steady_shares_have_sharp_bounds_and_scattered_ones_have_wide_ones() -> None:
    steady, scattered = detect(runs(*[0.6] * 10)), detect(runs(*[0.2, 1.0] * 5))
    assert steady.low == steady.share == steady.high == pytest.approx(0.6)
    assert steady.inverted
    assert scattered.share == pytest.approx(0.6)
    assert scattered.low is not None
    assert scattered.low < INVERSION_SHARE
    assert scattered.inverted is False


def test_the_bounds_are_those_of_the_ratio_estimate() -> None:
    # By hand: o = 1, 2, 4, 4, 4 of x = 4, 4, 4, 6, 6: rho = 15/24, e = o - rho x, t95(4) = 2.132.
    parts = [(1, 4), (2, 4), (4, 4), (4, 6), (4, 6)]
    members = [replace(run(n, 0.5), tasks_uj=x - o, overhead_uj=o) for n, (o, x) in enumerate(parts)]
    squares = sum((o - 15 / 24 * x) ** 2 for o, x in parts)
    reach = 2.132 * (squares * 5 / 4) ** 0.5 / 24
    found = detect(members)
    assert (found.low, found.high) == (pytest.approx(15 / 24 - reach), pytest.approx(15 / 24 + reach))


def test_between_the_thresholds_it_stays_as_it_was() -> None:
    between = runs(*[(LEAVE_SHARE + INVERSION_SHARE) / 2] * 10)
    assert detect(between, previous=False).inverted is False
    assert detect(between, previous=True).inverted is True
    assert detect(runs(*[LEAVE_SHARE - 0.01] * 10), previous=True).inverted is False
    assert detect(runs(*[INVERSION_SHARE + 0.01] * 10), previous=False).inverted is True


def test_too_few_runs_leave_an_inversion_standing() -> None:
    assert detect(runs(0.1), previous=True).inverted is True


def test_runs_without_a_share_are_left_out_and_counted() -> None:
    found = detect([*runs(*[0.7] * 6), run(7, None), run(8, 0.0, whole_uj=0)])
    assert (found.runs, found.unknown, found.coverage) == (6, 2, 0.75)
    assert found.share == pytest.approx(0.7)


def test_it_begins_and_ends_as_the_window_rolls_on() -> None:
    story = [0.2] * 20 + [0.9] * 20 + [0.2] * 20
    states = [follow(runs(*story[:length]), window=10).inverted for length in range(len(story) + 1)]
    assert states[:LEAST_RUNS] == [None] * LEAST_RUNS
    changes = [length for length in range(1, len(states)) if states[length] != states[length - 1]]
    began, ended = changes[1], changes[2]
    assert len(changes) == 3
    assert 20 < began <= 30
    assert 40 < ended <= 50


def test_a_share_that_swings_about_one_half_does_not_flicker() -> None:
    story = [0.7] * 10 + [0.505, 0.49] * 40
    states = [follow(runs(*story[:length]), window=10).inverted for length in range(10, len(story))]
    assert states == [True] * len(states)


def test_the_window_holds_the_last_known_runs_and_the_unknown_ones_among_them() -> None:
    found = follow(runs(None, *[0.9] * 10, *[0.1, None] * 10), window=10)
    assert (found.runs, found.unknown) == (10, 10)
    assert found.share == pytest.approx(0.1)
    assert found.inverted is False
    whole = follow(runs(None, *[0.9] * 6), window=10)
    assert (whole.runs, whole.unknown) == (6, 1)


def test_each_group_of_runs_has_its_own_state() -> None:
    members = [run(n, 0.8, flow="tiny") for n in range(8)] + [run(n, 0.1, flow="large") for n in range(8)]
    by_flow = follow_by(members, lambda each: each.flow)
    assert {flow: state.inverted for flow, state in by_flow.items()} == {"tiny": True, "large": False}


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    is_postgres = request.param == "postgres"
    url = str(request.getfixturevalue("postgres_url")) if is_postgres else f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("TAO_FLOWS_LEDGER", url)
    ledger = open_ledger(url)
    yield ledger
    ledger.close()


def put(
    ledger: Ledger, run_id: str, started_s: int, accounts: list[tuple[int | None, int | None]], *pools: str
) -> None:
    ref, started_ns = RunRef("prefect", "default", run_id, "nightly"), started_s * NS_PER_S
    ended_ns = started_ns + NS_PER_S
    ledger.put_run(RunRecord("prefect", "default", "nightly", run_id, "completed", started_ns, SEGMENT, ended_ns))
    for number, (tasks_uj, overhead_uj) in enumerate(accounts):
        account = Account(tasks_uj=tasks_uj, overhead_uj=overhead_uj)
        ledger.put_account(ref, HostAccount(f"node-{number}", account, 1.0, "window"))
    for number, pool in enumerate(pools):
        key = RunKey("prefect", "default", "nightly", run_id, "train", str(number), 1)
        ledger.put_task(TaskRecord(key, SEGMENT, TaskState.COMPLETED, started_ns, pool=pool, ended_wall_ns=ended_ns))


def test_the_ledger_gives_the_overhead_of_each_run_over_the_accounts_that_know_both_lines(ledger: Ledger) -> None:
    put(ledger, "old", 5, [(1, 1)])
    put(ledger, "two-hosts", 20, [(30, 10), (5, None), (2, 2)], "home", "home")
    put(ledger, "no-account", 10, [], "home", "away")
    put(ledger, "half-known", 30, [(None, 7)])
    assert ledger.overheads(10 * NS_PER_S) == [
        RunOverhead("default", "nightly", "no-account", "", 10 * NS_PER_S, None, None),
        RunOverhead("default", "nightly", "two-hosts", "home", 20 * NS_PER_S, 32, 12),
        RunOverhead("default", "nightly", "half-known", "", 30 * NS_PER_S, None, None),
    ]


def report(*args: str) -> str:
    app = typer.Typer()
    app.command()(report_command)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_report_says_in_one_line_how_the_fleet_stands(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for number in range(6):
        put(ledger, f"run-{number}", 100 + number, [(100, 300)], "home")
    put(ledger, "run-6", 106, [], "home")
    (line,) = [line for line in report("--since", "100000d").splitlines() if "Optimization Inversion" in line]
    state = "yes, overhead 75 % [75 %, 75 %] of the last 6 runs, 1 run more unknown"
    assert line == f"Optimization Inversion: {state}. In: nightly."
    told = json.loads(report("--since", "100000d", "--json"))["inversion"]
    assert told["inverted"] is True
    assert (told["runs"], told["unknown_runs"], told["flows"]) == (6, 1, ["nightly"])


def test_the_report_of_too_few_runs_says_that_it_does_not_know(ledger: Ledger) -> None:
    put(ledger, "run-1", 100, [(100, 300)], "home")
    assert "Optimization Inversion: not known, 1 run of 5" in report("--since", "100000d")
