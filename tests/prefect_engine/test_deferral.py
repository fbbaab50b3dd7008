"""A deferrable task on a real engine: it waits for cleaner power, and is released, drained or cancelled."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import prefect
import pytest
from packaging.version import Version
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from support import ref

from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore

TAO_FLOWS = str(Path(sys.executable).with_name("tao-flows"))
FLOW = Path(__file__).parent / "flows" / "deferred.py"


@pytest.fixture
def env(server: str, ledger_path: Path, tmp_path: Path) -> dict[str, str]:
    """The settings of a host whose power is clean in an hour."""
    assert server
    now = datetime.now(timezone.utc)
    rows = [(-60, 500.0), (60, 20.0), (180, 500.0)]
    carbon = "\n".join(f"{(now + timedelta(minutes=at)).isoformat()},DE,{value}" for at, value in rows)
    (tmp_path / "carbon.csv").write_text(f"time,zone,value\n{carbon}\n")
    (tmp_path / "pools.toml").write_text('[[pools]]\npool_id = "local"\nzone = "DE"\n')
    (tmp_path / "settings.toml").write_text('pools = "pools.toml"\n[signals.carbon.DE]\ncsv = "carbon.csv"\n')
    return {
        **os.environ,
        "TAO_FLOWS_CONFIG": str(tmp_path / "settings.toml"),
        "TAO_FLOWS_LEDGER": f"sqlite:///{ledger_path}",
        "TAO_FLOWS_MODE": "enforce",
        "PREFECT_LOGGING_TO_CONSOLE_ENABLED": "false",
    }


@pytest.fixture
def waiting(ledger: Ledger) -> DeferralStore:
    return DeferralStore(ledger)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Runs the flow, its tasks known from earlier runs."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        with (tmp_path / f"out-{len(processes)}").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, str(FLOW), *arguments], env=env, stdout=out, stderr=subprocess.STDOUT, text=True
            )
        processes.append(process)
        return process

    warm = subprocess.run(
        [sys.executable, str(FLOW), "warm-up"], env={**env, "TAO_FLOWS_MODE": "observe"}, capture_output=True, text=True
    )
    assert warm.returncode == 0, warm.stderr
    yield run
    for process in processes:
        process.kill()
        process.wait()


def command(env: dict[str, str], *arguments: str) -> Any:
    run = subprocess.run([TAO_FLOWS, *arguments, "--json"], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.2)


def test_tasks_wait_until_they_are_released_and_nothing_else_does(
    start: Start, env: dict[str, str], tmp_path: Path, ledger: Ledger, waiting: DeferralStore
) -> None:
    process, out = start(), tmp_path / "out-0"
    wait_until(lambda: len(waiting.open()) == 3, "three tasks wait in threads")
    # Read while they wait: what may not be put off has run.
    wait_until(lambda: "now gives 10" in out.read_text(), "the task that may not wait has run")
    assert "sync 0 started" not in out.read_text()
    run_id = command(env, "deferrals")["deferrals"][0]["run_id"]
    assert len(command(env, "release", run_id, "--reason", "a person waits")["released"]) == 3
    # Of the coroutines all three wait at once, so that the loop is free meanwhile.
    wait_until(lambda: len(waiting.open()) == 3 and "sync 2 started" in out.read_text(), "three coroutines wait")
    assert "async 3 started" not in out.read_text()
    command(env, "drain", "--wait", "30s")
    assert process.wait(60) == 0
    assert "result [0, 1, 2, 3, 4, 5]" in out.read_text()
    assert list(waiting.open()) == []
    (run,) = [run for run in ledger.runs() if run.run_id == run_id]
    actions = [decision.action for decision in ledger.decisions(ref(run)) if "work" in decision.key.task]
    assert (actions.count("defer"), actions.count("release"), actions.count("run")) == (6, 6, 6)
    command(env, "drain", "--undo")


def test_a_flow_that_is_ended_while_its_tasks_wait_leaves_none_waiting(start: Start, waiting: DeferralStore) -> None:
    process = start()
    wait_until(lambda: len(waiting.open()) == 3, "three tasks wait")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    wait_until(lambda: list(waiting.open()) == [], "none waits")


def test_while_draining_nothing_waits(start: Start, env: dict[str, str], tmp_path: Path) -> None:
    command(env, "drain")
    assert start().wait(90) == 0
    assert "result [0, 1, 2, 3, 4, 5]" in (tmp_path / "out-0").read_text()


def test_the_kill_switch_lets_go_of_all_that_waits(
    start: Start, env: dict[str, str], tmp_path: Path, waiting: DeferralStore
) -> None:
    settings = tmp_path / "settings.toml"
    text = settings.read_text()
    settings.write_text('mode = "enforce"\n' + text)
    del env["TAO_FLOWS_MODE"]
    process = start()
    wait_until(lambda: len(waiting.open()) == 3, "three tasks wait")
    settings.write_text('mode = "off"\n' + text)
    assert process.wait(60) == 0
    assert "result [0, 1, 2, 3, 4, 5]" in (tmp_path / "out-0").read_text()
    assert list(waiting.open()) == []


def task_runs(run_id: str) -> list[TaskRun]:
    with get_client(sync_client=True) as client:
        return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))


def states_of(task_run: TaskRun) -> list[tuple[str, datetime]]:
    """Names and moments, in order of time."""
    with get_client(sync_client=True) as client:
        answer = client.request("GET", "/task_run_states/", params={"task_run_id": str(task_run.id)})
    states = [(str(state.name), state.timestamp) for state in map(State.model_validate, answer.json())]
    return sorted(states, key=lambda state: state[1])


def held(limit: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(limit).active_slots


@pytest.mark.skipif(
    Version(prefect.__version__) < Version("3.8"), reason="Prefect 3.7 tells nobody which slots a task holds"
)
def test_a_task_that_waits_is_shown_as_deferred_and_leaves_its_slot_to_others(
    start: Start, env: dict[str, str], tmp_path: Path, waiting: DeferralStore
) -> None:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="tag:scarce", limit=1))
    try:
        process = start("scarce")
        wait_until(lambda: len(waiting.open()) == 4, "all four wait, of whom one may run at a time")
        run_id = waiting.open()[0].key.run_id
        wait_until(lambda: [each.state_name for each in task_runs(run_id)] == ["Deferred"] * 4, "four are deferred")
        said = {str(each.state and each.state.message).partition("; starts at")[0] for each in task_runs(run_id)}
        assert said == {each.reason for each in waiting.open()}
        wait_until(lambda: held("tag:scarce") == 0, "no slot is held by who waits")
        began_s = time.monotonic()
        wait_until(lambda: time.monotonic() - began_s > 2, "they wait for longer than they run")
        command(env, "release", run_id)
        assert process.wait(120) == 0
        wait_until(lambda: held("tag:scarce") == 0, "every slot is given back")
    finally:
        with get_client(sync_client=True) as client:
            client.delete_global_concurrency_limit_by_name("tag:scarce")
    out = (tmp_path / "out-0").read_text()
    assert "result [0, 1, 2, 3]" in out
    assert "Traceback" not in out
    spans = [tuple(map(float, re.findall(rf"tagged {number} (?:at|to) (.*)", out))) for number in range(4)]
    in_order = sorted(spans)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(in_order)), "one at a time"
    wait_until(lambda: all(each.state_name == "Completed" for each in task_runs(run_id)), "all have completed")
    for each in task_runs(run_id):
        names, moments = zip(*states_of(each), strict=True)
        assert names == ("Pending", "Running", "Deferred", "Running", "Completed")
        assert each.run_count == 1
        _, began, deferred, ran, ended = moments
        run_time = (deferred - began) + (ended - ran)
        assert abs(each.total_run_time - run_time) < timedelta(seconds=0.1), "the wait is no run time"
