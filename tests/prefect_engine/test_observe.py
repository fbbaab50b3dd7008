"""With one environment variable, code that knows nothing of tao-flows is metered, recorded and reported."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import prefect
from support import artifacts_of, only_run, ref, tasks_of

from tao_flows.ledger.base import Ledger
from tao_flows.records import TaskState
from tao_flows.report.model import read_report

FLOW = Path(__file__).parent / "flows" / "plain.py"


def run(ledger_path: Path, *arguments: str, code: str = "", **env: str) -> str:
    """What a process of its own says that has plugins on."""
    command = [sys.executable, *(["-c", code] if code else [str(FLOW), *arguments])]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "TAO_FLOWS_LEDGER": f"sqlite:///{ledger_path}",
            "PREFECT_PLUGINS_ENABLED": "true",
            "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_task_and_flow_of_a_process_is_metered_recorded_and_reported(ledger: Ledger, ledger_path: Path) -> None:
    said = run(ledger_path, uuid.uuid4().hex, TAO_FLOWS_MODE="enforce")
    assert "tao-flows: " in said, "each task's figure is in the log"
    runs = {each.flow: each for each in ledger.runs()}
    assert {name: each.state for name, each in runs.items()} == {"plain": "completed", "child": "completed"}
    tasks = ledger.tasks(ref(runs["plain"]))
    assert Counter((each.key.task, str(each.state)) for each in tasks) == {
        ("called", "completed"): 1,
        ("submitted", "completed"): 3,
        ("items", "completed"): 1,
        ("items_async", "completed"): 1,
        ("cached", "completed"): 1,  # the second is a cache hit
        ("twice", "failed"): 1,
        ("twice", "completed"): 1,
        ("late", "failed"): 1,
    }
    assert [each.key.try_number for each in tasks if each.key.task == "twice"] == [1, 2]
    (called,) = [each for each in tasks if each.key.task == "called"]
    assert called.measurement
    assert called.measurement.cpu_s
    assert 0.19 < called.measurement.cpu_s < 0.4
    assert [each.key.task for each in ledger.tasks(ref(runs["child"]))] == ["awaited"]
    assert {each.mode for each in ledger.decisions(ref(runs["plain"]))} == {"observe"}, "nobody has opted in to more"
    (account,) = ledger.accounts(ref(runs["plain"]))
    assert account.body_cpu_s
    assert 0.1 <= account.body_cpu_s < 0.25, "the engine's part is not the body's"
    assert account.overhead_cpu_s
    assert set(artifacts_of(runs["plain"].run_id)) == {"tao-energy-plain", "tao-tasks-plain"}
    assert not ledger.incidents(ref(runs["plain"]))


def test_what_is_metered_by_its_own_code_is_metered_once(ledger: Ledger, ledger_path: Path) -> None:
    run(ledger_path, "ours")
    assert sorted(each.key.task for each in tasks_of(ledger)) == ["called", "of ours"]
    report = read_report(ledger, only_run(ledger))
    assert len(report.tasks) == 2


def test_tasks_in_the_processes_of_a_task_runner_are_metered_there(ledger: Ledger, ledger_path: Path) -> None:
    run(ledger_path, "elsewhere")
    (task,) = tasks_of(ledger)
    assert (task.key.task, task.state) == ("submitted", TaskState.COMPLETED)
    assert task.segment.pid != only_run(ledger).segment.pid


def test_without_the_variable_and_with_mode_off_nothing_is_metered(ledger: Ledger, ledger_path: Path) -> None:
    assert "tao-flows" not in run(ledger_path, "small", PREFECT_PLUGINS_ENABLED="false")
    assert "tao-flows" not in run(ledger_path, "small", TAO_FLOWS_MODE="off")
    assert not ledger.runs()


def test_whatever_fails_of_ours_prefect_is_imported(ledger_path: Path) -> None:
    broken = """
import prefect.task_engine as engine
del engine.run_task_sync
import os; os.environ["PREFECT_PLUGINS_ENABLED"] = "true"
from tao_flows.prefect import observe
before = engine.run_task_async
observe.setup_environment(ctx=None)
assert engine.run_task_async is before, "all or nothing"
import prefect; print(prefect.__version__)
"""
    said = run(ledger_path, code=broken, PREFECT_PLUGINS_ENABLED="false")
    assert "does not observe this process" in said
    missing = "import sys; sys.modules['tao_flows.prefect.flow'] = None\nimport prefect; print('version', prefect.__version__)"
    assert f"version {prefect.__version__}" in run(ledger_path, code=missing)
