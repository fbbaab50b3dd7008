"""Work that runs elsewhere: what is known of it, and how it finds the run that it belongs to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_metering import RUN, dag_of, in_a_process

from airflow_plugin.remote import is_remote
from tao_flows.figures import Quality
from tao_flows.parent import COUNTED_BY_ENV, PARENT_ENV, key_text, parse_key
from tao_flows.records import RunKey, TaskState

pytestmark = pytest.mark.airflow

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")

KEY = RunKey("airflow", "default", "a dag/with a slash", "manual__2026-01-01T00:00:00+00:00", "group.task", "-1", 2)
POD = """
class KubernetesPodOperator(BaseOperator):
    # As the provider's: the pod's environment is in env_vars while it is executed.
    def __init__(self, env_vars=None, **kwargs):
        super().__init__(**kwargs)
        self.env_vars = env_vars or []
    def execute(self, context):
        burn(0.3)
        return self.env_vars if isinstance(self.env_vars, dict) else [(v.name, v.value) for v in self.env_vars]
"""


def test_a_task_that_waits_for_work_elsewhere_is_unknown_and_its_process_is_overhead(run_here, ledger):
    assert in_a_process(lambda: run_here(dag_of(POD + "KubernetesPodOperator(task_id='pod')"), "pod")) == 0
    (record,), (account,) = ledger.tasks(RUN), ledger.accounts(RUN)
    assert record.state is TaskState.COMPLETED
    assert (record.measurement.energy.value_j, record.measurement.energy.quality) == (None, Quality.UNKNOWN)
    assert record.measurement.energy.unknown_parts == ("REMOTE_WORK",)
    assert record.measurement.cpu_s is None
    assert record.measurement.wall_s > 0.2
    assert account.overhead_cpu_s > 0.3
    assert (account.account.tasks_uj, account.account.overhead_share) == (None, None)
    assert account.account.overhead_uj > 0


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("{'A': '1'}", {"A": "1"}),
        ("[__import__('types').SimpleNamespace(name='A', value='1')]", [("A", "1")]),
    ],
)
def test_a_pod_is_given_the_run_key_beside_the_authors_variables(run_here, ledger, given, found):
    outcome = run_here(dag_of(POD + f"KubernetesPodOperator(task_id='pod', env_vars={given})"), "pod")
    (pushed,) = [message.value for message in outcome.of_type("SetXCom") if message.key == "return_value"]
    expected = key_text(ledger.tasks(RUN)[0].key)
    if isinstance(found, dict):
        assert pushed == {**found, PARENT_ENV: expected}
    else:
        assert [tuple(each) for each in _plain(pushed)] == [*found, (PARENT_ENV, expected)]


def _plain(value):
    """Airflow wraps tuples in what it stores."""
    if isinstance(value, dict) and "__data__" in value:
        return _plain(value["__data__"])
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


REMOTE = [
    "KubernetesPodOperator",
    "GKEStartPodOperator",
    "EksPodOperator",
    "EcsRunTaskOperator",
    "DockerOperator",
    "SparkSubmitOperator",
    "SparkKubernetesOperator",
    "DatabricksRunNowOperator",
    "EmrAddStepsOperator",
    "DataprocSubmitJobOperator",
    "BigQueryInsertJobOperator",
    "SnowflakeSqlApiOperator",
    "RedshiftDataOperator",
    "AthenaOperator",
    "BatchOperator",
    "DbtCloudRunJobOperator",
    "SSHOperator",
    "LivyOperator",
    "GlueJobOperator",
    "SageMakerTrainingOperator",
    "BaseSQLOperator",
    "CreateCustomContainerTrainingJobOperator",
]
LOCAL = [
    "BashOperator",
    "PythonOperator",
    "_PythonDecoratedOperator",
    "TaoOperator",
    "EmptyOperator",
    "DbtRunLocalOperator",
]


@pytest.mark.parametrize(("name", "remote"), [*((n, True) for n in REMOTE), *((n, False) for n in LOCAL)])
def test_whose_work_runs_elsewhere_is_told_by_the_class_and_what_it_derives_from(name, remote):
    operator = type(name, (), {})
    assert is_remote(operator()) is remote
    assert is_remote(type("Derived", (operator,), {})()) is remote


def test_a_sensor_looks_and_is_metered_as_what_it_is():
    sensor = type("EmrStepSensorOperator", (type("BaseSensorOperator", (), {}),), {})
    assert not is_remote(sensor())


def test_the_settings_add_to_the_table_and_take_from_it():
    mine, spark = type("MyClusterOperator", (), {})(), type("SparkSubmitOperator", (), {})()
    assert is_remote(mine, ("MyCluster*",))
    assert not is_remote(spark, ("-SparkSubmit*",))


def test_a_run_key_is_one_text_and_back():
    assert parse_key(key_text(KEY)) == KEY


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c/d/e/f/x", "a/b/c/d/e/f", "////// 1", "a//c/d/e/f/1", "a/b/c/d/e/f/1/2"]
)
def test_a_text_that_is_no_run_key_is_nobodys(text):
    assert parse_key(text) is None


def meter(*command: str, **env: str) -> None:
    done = subprocess.run(
        [TAO_FLOWS, "meter", "--label", "train", "--", *command],
        env=os.environ | env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_command_that_is_metered_in_a_pod_is_a_task_of_its_own_in_the_run(ledger):
    for _ in range(2):
        meter("true", **{PARENT_ENV: key_text(KEY)})
    first, second = ledger.tasks(RUN.__class__(KEY.engine, KEY.namespace, KEY.run_id, KEY.flow))
    assert first.key == second.key == RunKey(*(*_of(KEY)[:4], "group.task/train", "-1", 2))
    assert first.segment != second.segment
    (run,) = ledger.runs()
    assert (run.flow, run.state, run.ended_wall_ns) == (KEY.flow, "unseen", None)
    accounts = ledger.accounts(RUN.__class__(KEY.engine, KEY.namespace, KEY.run_id, KEY.flow))
    assert len(accounts) == 2
    assert all(each.account.unattributed_uj is None for each in accounts)


def _of(key: RunKey) -> tuple[object, ...]:
    return (key.engine, key.namespace, key.flow, key.run_id, key.task, key.instance, key.try_number)


def test_a_command_that_is_metered_within_a_metered_task_is_not_counted_twice(run_here, ledger):
    source = dag_of(f"BashOperator(task_id='work', bash_command='{TAO_FLOWS} meter --label inner -- true')")
    assert run_here(source, "work").state == "success"
    assert [record.key.task for record in ledger.tasks(RUN)] == ["work"]
    assert [run.engine for run in ledger.runs()] == ["meter"]


def test_what_a_task_starts_finds_the_run_in_its_environment_and_what_follows_does_not(run_here, ledger, tmp_path):
    said = tmp_path / "env.json"
    code = f"import json, os; json.dump(dict(os.environ), open({str(said)!r}, 'w'))"
    command = f'{sys.executable} -c "{code}"'
    run_here(dag_of(f"BashOperator(task_id='work', bash_command={command!r})"), "work")
    environment, (record,) = json.loads(said.read_text()), ledger.tasks(RUN)
    assert environment[PARENT_ENV] == key_text(record.key)
    assert environment[COUNTED_BY_ENV] == record.segment.id
    assert not {PARENT_ENV, COUNTED_BY_ENV} & os.environ.keys()
