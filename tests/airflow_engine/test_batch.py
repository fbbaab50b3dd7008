from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import Outcome
from parsing import parse

from airflow_plugin.facts import run_ref
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.base import Ledger
from tao_flows.records import HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState

pytestmark = pytest.mark.airflow

SOURCE = """
import time
from airflow.sdk import DAG, task
from airflow_plugin.batch import tao_batch

with DAG("dag"):
    @task
    def source():
        return list(range(6))

    @task.tao_batch(items_per_task=3, retries=2, budget="team-a")
    def divide(x, by, ti=None, **rest):
        "Divides."
        if x == 5:
            from airflow.sdk.exceptions import AirflowSkipException
            raise AirflowSkipException
        assert ti.task_id == "divide.run" and "dag_run" in rest
        return by / x

    @task.tao_batch
    def measured(x):
        return x

    @task
    def before():
        pass

    items = source()
    before() >> divide.partial(by=12).expand(x=items)
    measured.expand(x=items)
    divide.override(task_id="pairs", items_per_task=2).expand_kwargs([{"x": 1, "by": 2}, {"x": 3, "by": 4}])
"""

Run = Callable[..., Outcome]
PLAN = ("divide.plan", "return_value")


@pytest.fixture
def source(tmp_path: Path) -> str:
    from airflow_plugin import _compat

    # Where Airflow keeps it, which differs between its versions.
    return SOURCE.replace("airflow.sdk.exceptions", _compat.skip_exception().__module__)


@pytest.fixture
def run(run_here: Run, ledger: Ledger, source: str) -> Run:
    assert ledger
    return lambda task_id, **how: run_here(source, task_id, **how)


def returned(outcome: Outcome) -> Any:
    assert (outcome.state, outcome.error) == ("success", None)
    return pushed(outcome, "return_value")


def pushed(outcome: Outcome, key: str) -> Any:
    (value,) = [msg.value for msg in outcome.of_type("SetXCom") if msg.key == key]
    return value


def kept(outcome: Outcome) -> dict[tuple[str, str], Any]:
    """What a try has left for the next one, which Airflow hands it as it hands anyone an XCom."""
    found = {(msg.task_id, msg.key): msg.value for msg in outcome.of_type("SetXCom") if msg.task_id == "divide.plan"}
    assert all(msg.map_index in {-1, None} for msg in outcome.of_type("SetXCom") if msg.task_id == "divide.plan")
    return found


def test_a_batch_is_three_tasks_and_the_author_passes_its_results_on(tmp_path, source):
    parsed = parse(tmp_path, source)
    assert parsed.errors == {}
    (dag,) = parsed.dags.values()
    assert {each for each in dag.task_ids if "divide" in each} == {"divide.plan", "divide.run", "divide.collect"}
    assert dag.get_task("divide.plan").upstream_task_ids == {"source", "before"}
    assert dag.get_task("divide.run").upstream_task_ids == {"divide.plan"}
    assert dag.get_task("divide.collect").upstream_task_ids == {"divide.run"}
    run = dag.get_task("divide.run")
    assert (run.retries, run.executor_config["tao_flows"]) == (2, {"budget": "team-a"})
    assert dag.get_task("divide.plan").executor_config == {}


def test_the_plan_divides_what_comes_from_upstream(run):
    planned = returned(run("divide.plan", xcoms={("source", "return_value"): list(range(7))}))
    assert [(batch["first"], [item["x"] for item in batch["items"]]) for batch in planned] == [
        (0, [0, 1, 2]),
        (3, [3, 4, 5]),
        (6, [6]),
    ]


def test_dicts_of_arguments_are_items_too(run):
    (batch,) = returned(run("pairs.plan"))
    assert batch == {"first": 0, "items": [{"x": 1, "by": 2}, {"x": 3, "by": 4}]}


def test_without_a_history_fifty_items_share_a_task(run):
    planned = returned(run("measured.plan", xcoms={("source", "return_value"): list(range(120))}))
    assert [len(batch["items"]) for batch in planned] == [50, 50, 20]


def test_with_a_history_batches_are_as_large_as_the_engines_share_asks_for(run, ledger):
    segment = Segment("host", "boot", 1, 1)
    figure = Figure(2_000_000, 2_000_000, 2_000_000, Quality.ESTIMATED, ("estimate",))
    two_items_2_j = Measurement("run", 0, 1.0, CpuTime(1.0, "perf", covers_children=True), figure, (), Account(), ())
    key = RunKey("airflow", "default", "dag", "earlier", "measured.run", "0", 1)
    now_ns = time.time_ns()
    ledger.put_run(RunRecord("airflow", "default", "dag", "earlier", "success", now_ns, segment))
    ledger.put_task(
        TaskRecord(key, segment, TaskState.COMPLETED, now_ns, pool="local", ended_wall_ns=now_ns + 1, size=2.0,
                   measurement=two_items_2_j)
    )  # fmt: skip
    of_one_task = HostAccount("host", Account(tasks_uj=2_000_000, overhead_uj=10_000_000), 1.0, "earlier")
    ledger.put_account(run_ref("dag", "earlier", "default"), of_one_task)
    planned = returned(run("measured.plan", xcoms={("source", "return_value"): list(range(120))}))
    # 10 J of overhead are a tenth of the whole with 90 J of items.
    assert [len(batch["items"]) for batch in planned] == [90, 30]


BATCHES = [{"first": 0, "items": [{"x": 1}, {"x": 2}]}, {"first": 2, "items": [{"x": 3}, {"x": 0}, {"x": 5}]}]


def test_each_item_gets_its_own_arguments_the_fixed_ones_and_the_context(run):
    items = returned(run("divide.run", map_index=0, xcoms={PLAN: BATCHES}))
    assert [(item["index"], item["state"], item["result"]) for item in items] == [(0, "success", 12), (1, "success", 6)]
    assert all(number == 1 and cpu_s > 0 for item in items for number, cpu_s in item["cpu_s"])


def test_what_a_batch_costs_is_learned_by_its_number_of_items(run, ledger):
    run("divide.run", map_index=0, xcoms={PLAN: BATCHES})
    (record,) = ledger.tasks(run_ref("dag", "manual__2026-01-01", "default"))
    assert (record.key.instance, record.size) == ("0", 2.0)


def test_a_failed_item_is_named_after_the_others_have_run_and_alone_is_run_again(run):
    first = run("divide.run", map_index=1, max_tries=2, xcoms={PLAN: BATCHES})
    assert first.state == "up_for_retry"
    assert str(first.error) == "1 of 3 items failed: item 3 (x=0): ZeroDivisionError: division by zero"
    again = {**BATCHES[1], "items": [{"x": 999}, {"x": 4}, {"x": 999}]}
    second = run("divide.run", map_index=1, max_tries=2, try_number=2, xcoms={PLAN: [BATCHES[0], again], **kept(first)})
    items = returned(second)
    # What had finished is as it was, although it would come to something else now.
    assert [(item["state"], item["result"]) for item in items] == [("success", 4), ("success", 3), ("skipped", None)]
    assert [[number for number, _ in item["cpu_s"]] for item in items] == [[1], [1, 2], [1]]
    assert [msg.task_id for msg in second.of_type("DeleteXCom")] == ["divide.plan"]


def test_what_was_kept_of_another_batch_is_not_taken(run):
    first = run("divide.run", map_index=1, max_tries=2, xcoms={PLAN: BATCHES})
    other = run("divide.run", map_index=0, try_number=2, xcoms={PLAN: BATCHES, **kept(first)})
    assert [item["result"] for item in returned(other)] == [12, 6]


def test_where_nothing_failed_nothing_is_kept(run):
    outcome = run("divide.run", map_index=0, xcoms={PLAN: BATCHES})
    assert kept(outcome) == {}
    assert outcome.of_type("DeleteXCom") == []


TIMED = """
from datetime import timedelta
import time
from airflow.sdk import DAG, task

with DAG("dag"):
    @task.tao_batch(items_per_task=3, execution_timeout=timedelta(seconds=0.5))
    def divide(x):
        time.sleep(x)
        return x
    divide.expand(x=[0, 9])
"""


def test_what_has_finished_outlives_a_time_out(run_here, ledger):
    batch = [{"first": 0, "items": [{"x": 0}, {"x": 9}]}]
    first = run_here(TIMED, "divide.run", map_index=0, max_tries=1, xcoms={PLAN: batch})
    assert type(first.error).__name__ == "AirflowTaskTimeout"
    ((_, items),) = kept(first).items()
    assert [(item["index"], item["state"]) for item in items] == [(0, "success"), (1, "failed")]


FATAL = """
from airflow.sdk import DAG, task
from {module} import AirflowFailException

with DAG("dag"):
    @task.tao_batch(items_per_task=3)
    def divide(x):
        raise AirflowFailException("no use") if x == 1 else ValueError("try again")
    divide.expand(x=[1])
"""


@pytest.mark.parametrize(("values", "state"), [([1, 1], "failed"), ([1, 2], "up_for_retry")])
def test_only_where_no_item_is_worth_another_try_there_is_none(run_here, ledger, values, state):
    from airflow_plugin import _compat

    source = FATAL.format(module=_compat.fail_exception().__module__)
    batch = [{"first": 0, "items": [{"x": value} for value in values]}]
    assert run_here(source, "divide.run", map_index=0, max_tries=1, xcoms={PLAN: batch}).state == state


MISTAKES = {
    "tao_batch(lambda x: x).expand(y=[1])": "TypeError: got an unexpected keyword argument 'y'",
    "tao_batch(lambda x: x).partial(x=1).expand(x=[1])": "TypeError: mapping already partial argument: x",
    "tao_batch(lambda x: x).expand()": "TypeError: no arguments to expand against",
    "tao_batch(lambda x: x, items_per_task=0)": "items_per_task: 0 is not a whole number from 1 to",
    'tao_batch(lambda x: x, deadline="soon")': "BAD_DURATION: deadline: 'soon' is not a duration",
    "tao_batch(later)": "is no plain function",
    "tao_batch(task(lambda x: x))": "is no plain function",
}


@pytest.mark.parametrize("written", MISTAKES)
def test_a_mistake_is_an_import_error(tmp_path, written):
    source = f"""
from airflow.sdk import DAG, task
from airflow_plugin.batch import tao_batch
async def later(x): return x
with DAG("dag"):
    {written}
"""
    assert MISTAKES[written] in parse(tmp_path, source).error


WHOLE = """
import sys
from airflow.sdk import DAG, task
from airflow_plugin.batch import tao_batch

with DAG("whole_batch") as dag:
    @task
    def source():
        return list(range(7))

    def half(x, y):
        return None if x == 3 else [x, y]

    @task
    def compare(plain, batched):
        assert list(batched) == list(plain) and len(batched) == 12, (list(plain), batched)

    @task
    def count(item):
        return item[0]

    @task
    def costs(ti=None):
        items = ti.xcom_pull(task_ids="half.collect", key="tao_items")
        assert [item["index"] for item in items] == list(range(14)), items
        assert {item["state"] for item in items} == {"success"}
        assert all(item["energy"]["quality"] == "estimated" for item in items), items
        assert all(0 < item["energy"]["value_j"] < 10 for item in items), items

    items = source()
    batched = tao_batch(half, items_per_task=4).expand(x=items, y=["a", "b"])
    compare(task(task_id="plain")(half).expand(x=items, y=["a", "b"]), batched)
    count.expand(item=batched)
    batched >> costs()

if __name__ == "__main__":
    run = dag.test()
    print("ENDED", run.state.value, len(run.get_task_instances()), file=sys.stderr)
"""


def test_downstream_sees_what_plain_mapping_would_give(airflow_database, ledger, tmp_path):
    file = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"], "whole_batch.py")
    file.write_text(WHOLE)
    env = {**os.environ, "TAO_FLOWS_LEDGER": f"sqlite:///{tmp_path}/ledger.db", "TAO_FLOWS_SOURCES": "estimate"}
    try:
        run = subprocess.run([sys.executable, str(file)], env=env, capture_output=True, text=True, timeout=200)
    finally:
        file.unlink()
    assert run.returncode == 0, run.stderr[-4000:]
    # Batched in 4 tasks of 4 items at the most, planned and collected by one each; 14 the plain way, mapped over by 12.
    assert "ENDED success 35" in run.stderr, run.stderr[-4000:]
