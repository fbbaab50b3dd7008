"""``release``, ``deferrals``, ``drain`` and ``rules``, on real ledgers and with real processes that wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, RunKey, RunRecord, Segment
from tao_flows.units import NS_PER_S

NOW = time.time_ns()
HOUR = 3_600 * NS_PER_S
KEY = RunKey("prefect", "default", "nightly", "run-0001", "train", "instance-1", 1)
DEFERRAL = Deferral(KEY, "home", NOW, NOW + HOUR, NOW + 8 * HOUR, "cheaper at 02:00")

_WAITER = """
import sys, time
from tao_flows.ledger import open_ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral, RunKey
from tao_flows.waiting import wait

url, instance, places = sys.argv[1:]
store = DeferralStore(open_ledger(url))
now = time.time_ns()
key = RunKey("prefect", "default", "nightly", "run-0001", "train", instance, 1)
deferral = Deferral(key, "home", now, now + 3600 * 10**9, now + 7200 * 10**9, "cheaper in an hour")
planned = store.plan(deferral)
print("waits" if planned else planned.value, flush=True)
why = wait(store, deferral, poll_s=0.2) if planned else "at once"
if planned:
    print("first" if store.started(key) else "again", flush=True)
with open(places, "a") as starts:
    starts.write(f"{instance} {why}\\n")
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = open_ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def store(ledger: Ledger) -> DeferralStore:
    return DeferralStore(ledger)


@pytest.fixture
def tao_flows(url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "TAO_FLOWS_LEDGER": url, "COLUMNS": "200"}
        code = "import sys; from tao_flows.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, timeout=120
        )

    return run


@contextmanager
def waiting(url: str, starts: Path, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that each wait for a deferral of their own, and have begun to."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WAITER, url, f"instance-{each}", str(starts)], stdout=subprocess.PIPE, text=True
        )
        for each in range(number)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
        yield processes
    finally:
        for process in processes:
            with process:  # closes its pipe
                process.kill()


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status of each, and the rest of what it printed."""
    return [(process.wait(60), process.stdout.read() if process.stdout else "") for process in processes]


def test_waiting_processes_start_when_their_run_is_released(
    url: str, tmp_path: Path, store: DeferralStore, ledger: Ledger, tao_flows: Callable
) -> None:
    starts = tmp_path / "starts"
    with waiting(url, starts, 3) as processes:
        done = tao_flows("release", "run-0001", "--reason", "the demo is at nine", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert ended(processes) == [(0, "first\n")] * 3
    assert sorted(starts.read_text().splitlines()) == [f"instance-{each} released" for each in range(3)]
    assert store.open() == []
    answer = json.loads(done.stdout)
    assert answer["schema"] == "tao-flows/release/1"
    assert {each["instance"] for each in answer["released"]} == {f"instance-{each}" for each in range(3)}
    assert all(each["said_by"].endswith(": the demo is at nine") for each in answer["released"])
    decisions = ledger.decisions(RunRef("prefect", "default", "run-0001"))
    assert [decision.action for decision in decisions] == ["release"] * 3


def test_after_a_drain_every_waiting_process_has_started_once_and_nothing_is_left(
    url: str, tmp_path: Path, store: DeferralStore, tao_flows: Callable
) -> None:
    starts = tmp_path / "starts"
    with waiting(url, starts, 20) as processes:
        done = tao_flows("drain", "--wait", "60s")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "nothing waits any more"
        assert ended(processes) == [(0, "first\n")] * 20
    late = subprocess.run(
        [sys.executable, "-c", _WAITER, url, "late", str(starts)], capture_output=True, text=True, timeout=60
    )
    assert (late.returncode, late.stdout) == (0, "draining\n")
    assert sorted(starts.read_text().splitlines()) == sorted(
        [*(f"instance-{each} released" for each in range(20)), "late at once"]
    )
    assert store.open() == []
    assert store.is_draining()
    assert tao_flows("drain", "--undo").stdout == "work may wait again\n"
    assert tao_flows("drain", "--undo").stdout == "nothing was being drained\n"
    assert not store.is_draining()


def test_a_drain_says_what_still_waits_and_fails(store: DeferralStore, tao_flows: Callable) -> None:
    store.plan(DEFERRAL)
    done = tao_flows("drain", "--wait", "0s")
    assert done.returncode == 1
    assert done.stdout == "released 1 task; nothing new may wait until `tao-flows drain --undo`\n"
    assert "1 task still waiting" in done.stderr
    assert "nightly/run-0001 train [instance-1], try 1" in done.stderr
    again = tao_flows("drain", "--wait", "0s", "--json")
    assert again.returncode == 1
    answer = json.loads(again.stdout)
    assert (answer["draining"], answer["released"], len(answer["waiting"])) == (True, [], 1)
    store.started(KEY)
    assert tao_flows("drain", "--wait", "0s", "--json").returncode == 0


def test_a_drain_passes_over_those_that_were_killed_while_they_waited(
    store: DeferralStore, tao_flows: Callable
) -> None:
    store.plan(replace(DEFERRAL, start_wall_ns=NOW - HOUR, latest_wall_ns=NOW - HOUR))
    done = tao_flows("drain", "--wait", "0s")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing waits any more")


def test_a_release_can_name_a_task_or_all(store: DeferralStore, tao_flows: Callable) -> None:
    other = replace(DEFERRAL, key=replace(KEY, task="score"))
    elsewhere = replace(DEFERRAL, key=replace(KEY, run_id="run-0002"))
    for each in (DEFERRAL, other, elsewhere):
        store.plan(each)
    by_task = tao_flows("release", "nightly/run-0001", "--task", "score")
    assert (by_task.returncode, by_task.stdout) == (0, "released nightly/run-0001 score [instance-1], try 1\n")
    assert len(tao_flows("release", "--all").stdout.splitlines()) == 2
    nothing = tao_flows("release", "--all")
    assert (nothing.returncode, nothing.stdout) == (0, "nothing waits\n")
    assert tao_flows("release", "run-0001", "--task", "score").stdout == "nothing waits in run-0001 of task score\n"


def test_a_run_is_named_as_in_a_report_and_an_ambiguous_name_is_refused(
    store: DeferralStore, ledger: Ledger, tao_flows: Callable
) -> None:
    segment = Segment("node-1", "boot", 4242, 99)
    for number in (1, 2):
        run_id = f"run-000{number}"
        name = "amber-fox" if number == 1 else "blue-owl"
        ledger.put_run(RunRecord("prefect", "default", "nightly", run_id, "running", NOW - number, segment, name=name))
        store.plan(replace(DEFERRAL, key=replace(KEY, run_id=run_id)))
    ambiguous = tao_flows("release", "run-")
    assert ambiguous.returncode == 2
    assert "'run-' names 2 runs: nightly/run-0001, nightly/run-0002; give the whole run id" in ambiguous.stderr
    assert len(store.open()) == 2
    assert "nightly/run-0002" in tao_flows("release", "blue-owl").stdout
    assert "nightly/run-0001" in tao_flows("release", "nightly/latest").stdout


def test_a_run_that_no_engine_has_recorded_yet_is_found_among_what_waits(
    store: DeferralStore, tao_flows: Callable
) -> None:
    for key in (KEY, replace(KEY, flow="weekly"), replace(KEY, run_id="scheduled__2026")):
        store.plan(replace(DEFERRAL, key=key))
    assert "RUN_AMBIGUOUS" in tao_flows("release", "run-0001").stderr
    assert tao_flows("release", "weekly/run-0001").stdout.startswith("released weekly/run-0001")
    assert tao_flows("release", "scheduled").stdout.startswith("released nightly/scheduled__2026")
    unknown = tao_flows("release", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.count("\n") == 1
    assert "no run is named 'nobody'" in unknown.stderr


@pytest.mark.parametrize("arguments", [(), ("run-0001", "--all")])
def test_a_release_of_nothing_or_of_both_is_refused(arguments: tuple[str, ...], tao_flows: Callable) -> None:
    done = tao_flows("release", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "give a RUN, or --all [BAD_USAGE]" in done.stderr


def test_what_waits_is_listed_with_when_it_starts_and_why(store: DeferralStore, tao_flows: Callable) -> None:
    assert tao_flows("deferrals").stdout == "nothing waits\n"
    now_ns = time.time_ns()
    early = now_ns - HOUR // 90  # 40 s: it is listed a moment later, and 59 minutes are left by then
    fresh = replace(DEFERRAL, ready_wall_ns=now_ns, start_wall_ns=early + HOUR, latest_wall_ns=early + 8 * HOUR)
    store.plan(fresh)
    store.plan(replace(fresh, key=replace(KEY, task="[red]score[/red]"), reason="[bold]x"))
    store.release([KEY], said_by="ada@host", reason="")
    listed = tao_flows("deferrals")
    assert listed.returncode == 0
    for said in (
        "train [instance-1]",
        "now: released",
        "ada@host",
        "[red]score[/red]",
        "[bold]x",
        "59 min",
        "7 h 59 min",
    ):
        assert said in listed.stdout, said
    answer = json.loads(tao_flows("deferrals", "--json").stdout)
    assert (answer["schema"], answer["draining"]) == ("tao-flows/deferrals/1", False)
    assert {each["state"] for each in answer["deferrals"]} == {"waiting", "released"}
    assert answer["deferrals"][0].keys() == {
        "engine", "namespace", "flow", "run_id", "task", "instance", "try_number", "pool", "state", "since",
        "planned_start", "latest_start", "reason", "said_by",
    }  # fmt: skip
    store.drain(said_by="ada")
    assert "draining: nothing new may wait" in tao_flows("deferrals").stdout


def test_a_ledger_that_cannot_be_opened_is_told_on_one_line(tmp_path: Path, tao_flows: Callable, url: str) -> None:
    Path(url).write_bytes(b"something else entirely" * 100)
    for command in (("release", "--all"), ("drain",), ("deferrals",)):
        done = tao_flows(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert "LEDGER_" in done.stderr
