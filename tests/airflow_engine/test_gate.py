from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from in_process import Outcome

from airflow_plugin.facts import run_ref
from tao_flows import runtime
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import TaskState

pytestmark = pytest.mark.airflow

SOURCE = """
from datetime import timedelta
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, task
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow_plugin.operators import tao

class Waiting(BaseOperator):
    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="back", kwargs={"moment": self.start_date})

    def back(self, context, event=None, moment=None):
        return [event, type(moment).__name__]

class Sensing(BaseSensorOperator):
    def poke(self, context):
        return PokeReturnValue(is_done=True, xcom_value="sensed")

class Triggered(Waiting):
    start_from_trigger = True

with DAG("dag", start_date=__import__("pendulum").datetime(2026, 1, 1), default_args={"tao": {"deadline": "3h"}}):
    wait = dict(deferrable=True, max_defer="2h")
    @task.tao(**wait, execution_timeout=timedelta(seconds=30))
    def work(x, ti=None):
        return [x, ti.try_number]
    work("a")
    work.override(task_id="each").expand(x=["a", "b"])
    @task
    def now():
        return "ran"
    now()
    tao(Waiting(task_id="waiting"), **wait)
    tao(Triggered(task_id="triggered"), **wait)
    Triggered(task_id="triggered_by_rule")
    tao(Sensing(task_id="sensing", mode="reschedule"), **wait)
    Sensing(task_id="sensing_by_rule", mode="reschedule")
    tao(BashOperator(task_id="dear", bash_command="true"), budget={"limit": "1 J", "ceiling": "1 J"})
"""
RULES = """
[[rules]]
operator = ["Sensing", "Triggered"]
mode = "enforce"
deferrable = true
max_defer = "2h"
"""

Run = Callable[..., Outcome]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of a host whose power is clean in an hour, and where tasks are known to take 10 J and a second."""
    from airflow_plugin import places

    now = datetime.now(timezone.utc)
    rows = [(-60, 500.0), (60, 20.0), (180, 500.0)]
    carbon = "\n".join(f"{(now + timedelta(minutes=at)).isoformat()},DE,{value}" for at, value in rows)
    (tmp_path / "carbon.csv").write_text(f"time,zone,value\n{carbon}\n")
    (tmp_path / "pools.toml").write_text("""
[[pools]]
pool_id = "local"
zone = "DE"
energy_j = { low = "9 J", mean = "10 J", high = "11 J" }
runtime_s = { p50 = "1s", p95 = "2s" }
""")
    file = tmp_path / "settings.toml"
    file.write_text('mode = "enforce"\npools = "pools.toml"\n[signals.carbon.DE]\ncsv = "carbon.csv"\n' + RULES)
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(file))
    places.executors.cache_clear()
    return file


@pytest.fixture
def run(settings: Path, ledger: Ledger, run_here: Run) -> Run:
    assert settings
    assert ledger
    return lambda task_id, **how: run_here(SOURCE, task_id, **{"run_type": "scheduled", "run_id": "r", **how})


def resumed(run: Run, task_id: str, outcome: Outcome, event: Any = None, **how: Any) -> Outcome:
    """The task as it comes back from its deferral: what was sent is stored, and the event is put beside it."""
    (deferral,) = outcome.of_type("DeferTask")
    stored = json.loads(deferral.model_dump_json())
    return run(task_id, next_method=stored["next_method"], next_kwargs=with_event(stored["next_kwargs"], event), **how)


def with_event(kwargs: Any, event: Any) -> Any:
    if isinstance(kwargs, dict) and "__var" in kwargs:
        return {**kwargs, "__var": {**kwargs["__var"], "event": sent({"e": event}).get("__var", {"e": event})["e"]}}
    return {**(kwargs or {}), "event": event}


def sent(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the API server hands them to a task that resumes."""
    try:
        import airflow.sdk.serde
    except ImportError:
        from airflow.serialization.serialized_objects import BaseSerialization

        return BaseSerialization.serialize(kwargs)
    assert airflow.sdk.serde
    return kwargs


def returned(outcome: Outcome) -> Any:
    assert (outcome.state, outcome.error) == ("success", None)
    (value,) = [msg.value for msg in outcome.of_type("SetXCom") if msg.key == "return_value"]
    return value


def test_a_task_that_is_to_wait_leaves_its_worker_before_any_of_its_code_runs(run, ledger):
    outcome = run("work")
    assert outcome.state == "deferred"
    (deferral,) = outcome.of_type("DeferTask")
    assert (deferral.classpath, deferral.next_method) == ("airflow_plugin.triggers.TaoTrigger", "tao_resume")
    assert deferral.trigger_timeout is None
    (waiting,) = DeferralStore(ledger).open()
    assert waiting.key.task == "work"
    assert 3000e9 < waiting.start_wall_ns - waiting.ready_wall_ns < 7200e9
    assert not ledger.tasks(ref())


def ref() -> Any:
    from airflow_plugin.facts import run_ref

    return run_ref("dag", "r", "default")


def test_it_comes_back_to_what_it_would_have_done_and_waits_no_more(run, ledger):
    assert returned(resumed(run, "work", run("work"))) == ["a", 1]
    (record,) = ledger.tasks(ref())
    assert (record.key.task, record.key.try_number, record.state) == ("work", 1, "completed")
    assert ledger.decisions(ref())[0].action == "defer"


def test_it_comes_back_without_any_argument_as_from_dag_test(run):
    assert returned(run("work", next_method="tao_resume", next_kwargs=sent({}))) == ["a", 1]


def test_a_mapped_task_comes_back_with_its_own_arguments(run):
    assert returned(resumed(run, "each", run("each", map_index=1), map_index=1)) == ["b", 1]


def test_each_try_is_asked_for_anew(run, ledger):
    assert run("work", max_tries=2).state == "deferred"
    assert run("work", max_tries=2, try_number=2).state == "deferred"
    assert sorted(deferral.key.try_number for deferral in DeferralStore(ledger).open()) == [1, 2]


def test_a_task_whose_author_has_not_asked_for_it_runs_at_once(run):
    assert returned(run("now")) == "ran"


def test_a_manual_run_runs_at_once(run):
    assert returned(run("work", run_type="manual")) == ["a", 1]


def test_a_task_that_waits_when_tao_flows_is_switched_off_comes_back_all_the_same(run, monkeypatch):
    waiting = run("work")
    monkeypatch.setenv("TAO_FLOWS_MODE", "off")
    runtime.forget()
    assert returned(resumed(run, "work", waiting)) == ["a", 1]


def test_after_a_deferral_of_its_own_a_task_waits_once_and_gets_its_own_event(run, ledger):
    first = run("waiting")
    store = DeferralStore(ledger)
    store.started(*[deferral.key for deferral in store.open()])  # as its trigger says of it
    first = resumed(run, "waiting", first)
    assert first.state == "deferred"
    (own,) = first.of_type("DeferTask")
    assert own.next_method == "back"
    # It comes back to its own method, and is asked about again: then the event travels with it.
    second = resumed(run, "waiting", first, event={"of": "its own"})
    assert second.of_type("DeferTask")[0].next_method == "tao_resume"
    assert returned(resumed(run, "waiting", second, event={"tao_flows": "planned"})) == [{"of": "its own"}, "DateTime"]


def test_a_trigger_that_failed_is_told_at_once(run):
    outcome = run("waiting", next_method="__fail__", next_kwargs=sent({"error": "Trigger failure"}))
    assert type(outcome.error).__name__ == "TaskDeferralError"


@pytest.mark.parametrize(("task_id", "waits"), [("triggered", True), ("triggered_by_rule", False)])
def test_what_starts_in_the_triggerer_waits_only_where_its_author_says_so(run, task_id, waits):
    outcome = run(task_id, next_method="back", next_kwargs=sent({"event": "own"}))
    assert outcome.state == ("deferred" if waits else "success")


@pytest.mark.parametrize(("task_id", "waits"), [("sensing", True), ("sensing_by_rule", False)])
def test_a_sensor_that_gives_its_slot_away_waits_only_where_its_author_says_so(run, task_id, waits):
    assert run(task_id).state == ("deferred" if waits else "success")


def test_a_sensor_that_looks_again_is_not_held_up(run):
    assert returned(run("sensing", reschedules=1)) == "sensed"


def test_a_task_over_the_ceiling_of_its_budget_fails_with_the_reason(run):
    outcome = run("dear")
    assert (outcome.state, type(outcome.error).__name__) == ("failed", "DeniedError")
    assert str(outcome.error).startswith("DENIED: ")
    assert "raise the ceiling" in str(outcome.error)
    assert run("dear", max_tries=1).state == "up_for_retry"


@pytest.mark.parametrize(
    ("executor", "gate", "waits"),
    [
        ("LocalExecutor", None, True),
        ("LocalExecutor", "off", False),
        ("airflow_plugin.executor.TaoLocalExecutor", None, False),
        ("airflow_plugin.executor.TaoLocalExecutor", "on", True),
    ],
)
def test_the_gate_is_in_force_where_no_executor_of_ours_decides(run, monkeypatch, executor, gate, waits):
    from airflow_plugin import places

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    if gate is not None:
        monkeypatch.setenv("AIRFLOW__TAO_FLOWS__GATE", gate)
    places.executors.cache_clear()
    try:
        assert run("work").state == ("deferred" if waits else "success")
    finally:
        places.executors.cache_clear()


def test_where_the_wait_cannot_be_had_the_task_runs(run, ledger, monkeypatch):
    from airflow_plugin import gate

    monkeypatch.setattr(gate, "_deferred", lambda *_: 1 / 0)
    assert returned(run("work")) == ["a", 1]
    assert list(DeferralStore(ledger).open()) == []
    assert [incident.code for incident in ledger.incidents()] == ["INTERNAL"]


def test_where_the_ledger_cannot_be_had_the_task_runs(run, monkeypatch, tmp_path):
    (tmp_path / "no").mkdir()
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(tmp_path / "no"))
    runtime.forget()
    assert returned(run("work")) == ["a", 1]
    runtime.built().ledger.close()


def test_where_dag_test_was_called_no_task_waits(settings, ledger, airflow_database):
    settings.write_text(settings.read_text() + "\n[[rules]]\nname = '*'\ntrigger = 'manual'\nmode = 'enforce'\n")
    source = """
from airflow.sdk import DAG, task
with DAG("inline") as dag:
    @task.tao(deferrable=True, max_defer="2h")
    def work():
        return "worked"
    work()
if __name__ == "__main__":
    print("STATE", str(dag.test().state))
"""
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], "inline.py")
    file.write_text(source)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=120)
    assert "STATE success" in done.stdout, done.stdout + done.stderr
    (run,) = ledger.runs()
    tasks = ledger.tasks(run_ref(run.flow, run.run_id, "default"))
    assert [each.state for each in tasks] == [TaskState.COMPLETED]
    assert not DeferralStore(ledger).open()
