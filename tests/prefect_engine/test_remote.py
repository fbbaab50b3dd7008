"""Work that a task starts elsewhere: dispatch is overhead here, and what it took is unknown unless it reports back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.core import Block
from support import only_run, ref, tasks_of

from tao_flows.errors import InputError
from tao_flows.ledger.base import Ledger
from tao_flows.prefect import remote
from tao_flows.prefect.remote_work import Remote
from tao_flows.records import TaskState
from tao_flows.report.model import read_report

FLOW = Path(__file__).parent / "flows" / "remote.py"
WORK = Remote({"TAO_FLOWS_PARENT": "prefect/here"})


def test_work_elsewhere_is_unknown_unless_it_reports_back(ledger: Ledger, ledger_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FLOW)],
        env={**os.environ, "TAO_FLOWS_LEDGER": f"sqlite:///{ledger_path}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tasks = {task.key.task: task for task in tasks_of(ledger)}
    assert set(tasks) == {"reports", "reports/job", "silent", "silent_async"}
    assert {task.state for task in tasks.values()} == {TaskState.COMPLETED}
    for name in ("reports", "silent", "silent_async"):
        measured = tasks[name].measurement
        assert measured
        assert measured.cpu_s is None
        assert measured.energy.value_uj is None
        assert measured.energy.unknown_parts == ("REMOTE_WORK",)
    job = tasks["reports/job"]
    assert job.key.instance == tasks["reports"].key.instance
    assert job.measurement
    assert job.measurement.cpu_s
    assert 0.4 < job.measurement.cpu_s < 2
    assert job.measurement.energy.value_uj
    run = only_run(ledger)
    flow_window = [each for each in ledger.accounts(ref(run)) if each.body_cpu_s is not None]
    (account,) = flow_window
    assert account.overhead_cpu_s
    assert account.overhead_cpu_s > 0.6, "what the tasks did here is dispatch"
    report = read_report(ledger, run)
    assert report.energy.value_uj == job.measurement.energy.value_uj, "what is known"
    assert "REMOTE_WORK" in report.energy.unknown_parts or report.energy.coverage < 1


class Shell(Block):
    """Has its environment where prefect-shell's ``ShellOperation`` has it."""

    commands: list[str]
    env: dict[str, str]


class Job(Block):
    """Has its manifest where prefect-kubernetes' ``KubernetesJob`` has it."""

    v1_job: dict[str, Any]


def manifest() -> dict[str, Any]:
    containers = [{"name": "train", "env": [{"name": "A", "value": "1"}]}, {"name": "sidecar"}]
    return {"kind": "Job", "spec": {"template": {"spec": {"containers": containers}}}}


def test_a_shell_operation_is_told_without_being_changed() -> None:
    shell = Shell(commands=["true"], env={"A": "1"})
    assert WORK.told(shell).env == {"A": "1", "TAO_FLOWS_PARENT": "prefect/here"}
    assert shell.env == {"A": "1"}


@pytest.mark.parametrize("make", [lambda: Job(v1_job=manifest()), manifest])
def test_every_container_of_a_job_is_told_and_the_job_that_was_loaded_is_not_changed(make: Any) -> None:
    job = make()
    told = WORK.told(WORK.told(job))
    containers = (told if isinstance(told, dict) else told.v1_job)["spec"]["template"]["spec"]["containers"]
    variable = {"name": "TAO_FLOWS_PARENT", "value": "prefect/here"}
    assert [each["env"] for each in containers] == [[{"name": "A", "value": "1"}, variable], [variable]]
    assert (job if isinstance(job, dict) else job.v1_job) == manifest()


def test_a_job_with_no_environment_that_is_known_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError) as caught:
        WORK.told(object())
    assert caught.value.code == "REMOTE_JOB"
    assert ".variables" in caught.value.remedy


def test_outside_a_metered_task_there_is_nothing_to_be_told() -> None:
    with remote() as work:
        assert work.variables == {}
        assert work.env == dict(os.environ)
