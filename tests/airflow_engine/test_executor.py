"""What becomes of queued tasks: in Airflow's own database, with its own executors, but no scheduler around them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from queueing import airflow_session, parse, queue, row_of, start_run

from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.deferrals import DeferralStore
from tao_flows.records import Deferral

pytestmark = pytest.mark.airflow

CELERY = "airflow_plugin.executor.TaoCeleryExecutor"
LOCAL = "airflow_plugin.executor.TaoLocalExecutor"
OPTIONS = '{"tao_flows": {"deferrable": True, "max_defer": "2h"}}'
SOURCE = f"""
with DAG("decided", schedule=None, tags=["team:ml"]):
    work = BashOperator(task_id="work", bash_command="true", queue="normal", executor_config={OPTIONS})
    work >> BashOperator(task_id="next", bash_command="true", queue="normal")
    BashOperator(task_id="plain", bash_command="true", queue="normal")
    BashOperator(
        task_id="at_home", bash_command="true", executor="{LOCAL}",
        executor_config={{"tao_flows": {{"reroutable": True}}}},
    )
    BashOperator(
        task_id="moves", bash_command="true", queue="normal", executor_config={{"tao_flows": {{"reroutable": True}}}}
    )
with DAG("short", schedule=None, dagrun_timeout=timedelta(minutes=30)):
    work = BashOperator(task_id="work", bash_command="true", queue="normal", executor_config={OPTIONS})
    work >> BashOperator(task_id="next", bash_command="true")
try:
    from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:
    pass  # they came with Airflow 3.1
else:
    with DAG(
        "promised", schedule=None, deadline=DeadlineAlert(
            DeadlineReference.DAGRUN_QUEUED_AT, timedelta(minutes=30), AsyncCallback("queueing.nothing")
        ),
    ):
        BashOperator(task_id="work", bash_command="true", queue="normal", executor_config={OPTIONS})
"""
RULES = """
mode = "enforce"
[[rules]]
name = "*"
trigger = "manual"
mode = "enforce"
"""


class Place:
    """Two executors of a scheduler, and what decisions go by."""

    def __init__(self, home: Path, ledger: Ledger) -> None:
        from airflow.executors.executor_loader import ExecutorLoader
        from airflow.executors.executor_utils import ExecutorName

        self.home, self.ledger = home, ledger
        self.celery = ExecutorLoader.load_executor(ExecutorName(CELERY))
        self.local = ExecutorLoader.load_executor(ExecutorName(LOCAL))
        for executor in (self.celery, self.local):
            executor.parallelism = 2
            # Its places are taken, so that what it is handed stays in its queue to be looked at.
            executor.running = {"busy", "too"}
            executor.start()
        self.put, self.local.activity_queue.put = self.local.activity_queue.put, self.keep

    def keep(self, workload: Any) -> None:
        """On Airflow 3.0 a LocalExecutor has no queue but that of its processes."""
        self.local.queued_tasks[workload.ti.key] = workload

    def end(self) -> None:
        self.local.activity_queue.put = self.put
        for executor in (self.celery, self.local):
            executor.running.clear()
            executor.queued_tasks.clear()
            executor.end()

    def beat(self) -> None:
        """What the scheduler's loop does, until nothing is held."""
        give_up_s = time.monotonic() + 30
        for executor in (self.celery, self.local):
            executor.heartbeat()
        while self.celery.slots_occupied + self.local.slots_occupied > 4 + self.queued():
            assert time.monotonic() < give_up_s
            time.sleep(0.02)
            for executor in (self.celery, self.local):
                executor.heartbeat()

    def queued(self) -> int:
        return len(self.celery.queued_tasks) + len(self.local.queued_tasks)

    def hand(self, workload: Any, executor: Any = None) -> Any:
        """Queues a workload and lets it be decided on; its row then."""
        with airflow_session() as session:
            (executor or self.celery).queue_workload(workload, session)
        self.beat()
        return row_of(workload)

    def decisions(self, run_id: str) -> list[str]:
        return [each.action for each in self.ledger.decisions(RunRef("airflow", "default", run_id))]

    def deferrals(self) -> list[Deferral]:
        return list(DeferralStore(self.ledger).open())


@pytest.fixture(scope="module")
def dags(airflow_database: None) -> None:
    parse("decided", SOURCE, f"{CELERY},{LOCAL}")


@pytest.fixture
def signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes grams by queue as they are now, and, where they fall, as they are in an hour."""

    def write(falls: bool = False, **grams: float) -> None:
        now = datetime.now(timezone.utc) - timedelta(minutes=5)
        carbon = "[signals.carbon]\n"
        for pool, value in grams.items():
            after = [(0, value), (1, value / 10), (6, value)] if falls else [(0, value), (6, value)]
            rows = [f"{(now + timedelta(hours=hours)).isoformat()},{pool},{value}" for hours, value in after]
            (tmp_path / f"{pool}.csv").write_text("\n".join(["time,zone,value", *rows]))
            carbon += f'{pool} = {{ csv = "{tmp_path}/{pool}.csv" }}\n'
        (tmp_path / "tao-flows.toml").write_text(f'pools = "{tmp_path}/pools.toml"\n{RULES}{carbon}')

    cost = "energy_j = { mean = 3.6e6, low = 3.6e6, high = 3.6e6 }\nruntime_s = { p50 = 600, p95 = 700 }"
    pools = [f'[[pools]]\npool_id = "{pool}"\nzone = "{pool}"\n{cost}' for pool in ("normal", "green", "local")]
    (tmp_path / "pools.toml").write_text("\n".join(pools))
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(tmp_path / "tao-flows.toml"))
    return write


@pytest.fixture
def place(
    dags: None, tmp_path: Path, ledger: Ledger, signals: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    from airflow_plugin import places

    signals(normal=100, green=100, local=100)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", f"{CELERY},{LOCAL}")
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", "memory://")
    monkeypatch.setenv("AIRFLOW__CELERY__RESULT_BACKEND", f"db+sqlite:///{tmp_path}/results.db")
    places.executors.cache_clear()
    made = Place(tmp_path, ledger)
    yield made
    made.end()
    places.executors.cache_clear()


def test_a_task_of_a_dear_queue_goes_to_the_green_one_and_back_at_its_retry(place, signals):
    signals(normal=500, green=20, local=500)
    run = start_run("decided")
    row = place.hand(queue("decided", run, "moves"))
    (workload,) = place.celery.queued_tasks.values()
    assert (row.state, row.queue, row.executor, workload.ti.queue) == ("queued", "green", None, "green")
    assert place.decisions(run) == ["reroute"]
    place.celery.queued_tasks.clear()
    signals(normal=20, green=500, local=500)
    row = place.hand(queue("decided", run, "moves", try_number=2))
    (workload,) = place.celery.queued_tasks.values()
    assert (row.queue, workload.ti.queue) == ("normal", "normal")


def test_a_resume_goes_where_it_is_clean_too_and_keeps_what_its_trigger_has_said(place, signals):
    signals(normal=500, green=20, local=500)
    run = start_run("decided")
    queued = queue("decided", run, "moves", next_method="execute_complete", next_kwargs=encoded({"event": [1, "two"]}))
    row = place.hand(queued)
    assert (row.queue, row.next_method, event(row)) == ("green", "execute_complete", [1, "two"])


def test_a_task_goes_from_celery_to_local_and_from_local_to_celery(place, signals):
    signals(normal=500, green=500, local=20)
    run = start_run("decided")
    there = queue("decided", run, "moves", external_executor_id="preassigned")
    row = place.hand(there)
    assert (row.executor, row.external_executor_id, row.queue) == (LOCAL, None, "normal")
    assert (list(place.local.queued_tasks), place.celery.queued_tasks) == ([there.ti.key], {})
    # The executor that ran it before may still report that: then it has to know that the task was queued anew.
    assert place.celery.has_task(row)
    assert place.celery.slots_available == 0
    place.local.queued_tasks.clear()
    place.beat()
    assert not place.celery.has_task(row)
    signals(normal=20, green=500, local=500)
    back = queue("decided", run, "at_home")
    row = place.hand(back, place.local)
    assert row.executor == CELERY
    assert [each.ti.queue for each in place.celery.queued_tasks.values()] == ["normal"]


def test_a_task_waits_without_any_executor_and_runs_once_its_wait_is_over(place, signals):
    signals(normal=500, falls=True)
    run = start_run("decided")
    workload = queue("decided", run, "work")
    row = place.hand(workload)
    assert (row.state, row.next_method, row.trigger_timeout, row.try_number) == ("deferred", None, None, 1)
    assert place.queued() == 0
    assert place.celery.slots_available == 0  # of two places the two that are taken by others
    (waits,) = place.deferrals()
    assert (waits.key.task, waits.key.try_number, place.decisions(run)) == ("work", 1, ["defer"])
    trigger = trigger_of(row)
    assert trigger.classpath == "airflow_plugin.triggers.TaoTrigger"
    assert trigger.kwargs["facts"]["task_id"] == "work"
    fire(row, {"tao_flows": "planned"})
    DeferralStore(place.ledger).started(waits.key)
    row = place.hand(queue("decided", run, "work"))
    # The signal says as before, and it has waited. What our trigger has said would be in the way of its start.
    assert (row.state, row.next_kwargs or None) == ("queued", None)
    assert list(place.celery.queued_tasks) == [workload.ti.key]
    assert place.deferrals() == []


def test_a_retry_waits_anew(place, signals):
    signals(normal=500, falls=True)
    run = start_run("decided")
    fire(place.hand(queue("decided", run, "work")), None)
    DeferralStore(place.ledger).started(place.deferrals()[0].key)
    row = place.hand(queue("decided", run, "work", try_number=2))
    assert row.state == "deferred"
    assert [each.key.try_number for each in place.deferrals()] == [2]


def test_a_resume_after_the_authors_own_wait_waits_anew_once_and_gets_its_own_event(place, signals):
    signals(normal=500, falls=True)
    run = start_run("decided")
    row = place.hand(queue("decided", run, "work"))
    fire(row, None)
    DeferralStore(place.ledger).started(place.deferrals()[0].key)
    place.hand(queue("decided", run, "work"))
    place.celery.queued_tasks.clear()
    # It ran, and deferred itself; now its own trigger has fired.
    resumed = {
        "next_method": "execute_complete", "next_kwargs": encoded({"event": {"rows": 3}}),
        "last_heartbeat_at": datetime.now(timezone.utc),
    }  # fmt: skip
    row = place.hand(queue("decided", run, "work", **resumed))
    assert (row.state, row.next_method) == ("deferred", "execute_complete")
    assert trigger_of(row).kwargs["payload"] == {"rows": 3}
    fire(row, {"rows": 3})
    DeferralStore(place.ledger).started(place.deferrals()[0].key)
    row = place.hand(queue("decided", run, "work"))
    assert (row.state, row.next_method, event(row)) == ("queued", "execute_complete", {"rows": 3})


def test_a_resume_that_is_to_fail_does_not_wait(place, signals):
    signals(normal=500, falls=True)
    failed = {"next_method": "__fail__", "next_kwargs": encoded({"error": "Trigger timeout"})}
    assert place.hand(queue("decided", start_run("decided"), "work", **failed)).state == "queued"
    assert place.queued() == 1


# With a time-out of half an hour, and with a Deadline Alert after it: there are those since 3.1.
@pytest.mark.parametrize("dag_id", ["short"] if version("apache-airflow-core") < "3.1" else ["short", "promised"])
def test_a_run_that_has_to_end_in_half_an_hour_leaves_no_room_to_wait_an_hour(dag_id, place, signals):
    signals(normal=500, falls=True)
    assert place.hand(queue(dag_id, start_run(dag_id), "work")).state == "queued"


def test_a_task_that_was_taken_away_meanwhile_is_left_as_it_is(place, signals, monkeypatch):
    from airflow_plugin import _compat

    signals(normal=500, falls=True)
    run = start_run("decided")
    workload = queue("decided", run, "work")
    deferring = _compat.defer_queued

    def too_late(*about: Any) -> bool:
        queue("decided", run, "work", state="failed")
        return deferring(*about)

    monkeypatch.setattr(_compat, "defer_queued", too_late)
    row = place.hand(workload)
    assert (row.state, row.trigger_id) == ("failed", None)
    assert list(place.celery.queued_tasks) == [workload.ti.key]  # as it would be without us; Airflow refuses to run it
    assert place.deferrals() == []


def test_a_database_that_fails_leaves_tasks_where_they_go(place, signals, monkeypatch):
    from airflow_plugin import _compat

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the database is gone")

    signals(normal=500, green=20, local=20, falls=True)
    run = start_run("decided")
    for failing, task in (("defer_queued", "work"), ("change_queued", "moves"), ("queued_rows", "moves")):
        place.celery.queued_tasks.clear()
        monkeypatch.setattr(_compat, failing, fails)
        row = place.hand(workload := queue("decided", run, task))
        assert (row.state, row.queue) == ("queued", "normal")
        assert list(place.celery.queued_tasks) == [workload.ti.key]
        assert place.deferrals() == []


def test_a_ledger_that_does_not_answer_leaves_tasks_where_they_go(place, signals):
    signals(normal=500, falls=True)
    workload = queue("decided", start_run("decided"), "work")
    with closing(sqlite3.connect(place.home / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        row = place.hand(workload)
    assert (row.state, row.queue) == ("queued", "normal")
    assert list(place.celery.queued_tasks) == [workload.ti.key]


def test_what_rules_leave_alone_is_held_once_and_then_no_more(place, signals):
    run = start_run("decided")
    for _ in range(2):
        place.hand(queue("decided", run, "plain"))
        place.celery.queued_tasks.clear()
    workload = queue("decided", run, "plain")
    with airflow_session() as session:
        place.celery.queue_workload(workload, session)
    assert list(place.celery.queued_tasks) == [workload.ti.key]
    # Other settings may say otherwise.
    signals(normal=500, green=20)
    place.celery.queued_tasks.clear()
    time.sleep(0.2)
    place.beat()
    with airflow_session() as session:
        place.celery.queue_workload(workload, session)
    assert place.celery.queued_tasks == {}
    assert place.celery.has_task(row_of(workload))


def test_a_mode_that_acts_on_nothing_holds_nothing(place, signals, monkeypatch):
    signals(normal=500, green=20)
    for mode in ("off", "observe", "advise"):
        monkeypatch.setenv("TAO_FLOWS_MODE", mode)
        time.sleep(0.2)
        place.beat()
        workload = queue("decided", start_run("decided"), "work")
        with airflow_session() as session:
            place.celery.queue_workload(workload, session)
        assert list(place.celery.queued_tasks) == [workload.ti.key]
        place.celery.queued_tasks.clear()


def test_settings_that_cannot_be_read_keep_nothing_that_is_held(place):
    workload = queue("decided", start_run("decided"), "work")
    with airflow_session() as session:
        place.celery.queue_workload(workload, session)
    (place.home / "tao-flows.toml").write_text("x = " + "[" * 5_000 + "]" * 5_000)
    time.sleep(0.2)
    place.beat()
    assert list(place.celery.queued_tasks) == [workload.ti.key]


def test_an_executor_that_ends_sends_on_what_it_holds(place):
    workload = queue("decided", start_run("decided"), "work")
    with airflow_session() as session:
        place.celery.queue_workload(workload, session)
    assert place.celery.queued_tasks == {}
    place.celery.running.clear()
    place.celery.end()
    assert workload.ti.key in place.celery.running


def test_a_provider_that_is_not_installed_is_missed_only_by_who_wants_it():
    from airflow_plugin import executor

    assert executor.TaoLocalExecutor is executor.TaoLocalExecutor
    assert executor.TaoLocalExecutor.__module__ == "airflow_plugin.executor"
    with pytest.raises(ImportError):
        _ = executor.TaoKubernetesExecutor
    with pytest.raises(AttributeError):
        _ = executor.TaoOther


def encoded(kwargs: dict[str, Any]) -> Any:
    """Arguments of a resume as a column of this version takes them."""
    try:
        from airflow.sdk.serde import serialize
    except ImportError:
        return kwargs
    return serialize(kwargs)


def event(row: Any) -> Any:
    from airflow_plugin._compat import event_of

    return event_of(row.next_kwargs)


def trigger_of(row: Any) -> Any:
    from airflow.models.trigger import Trigger

    with airflow_session() as session:
        found = session.get(Trigger, row.trigger_id)
        session.expunge_all()
    return found


def fire(row: Any, payload: Any) -> None:
    """What a triggerer does when a trigger has fired."""
    from airflow.models.trigger import Trigger
    from airflow.triggers.base import TriggerEvent

    with airflow_session() as session:
        Trigger.submit_event(row.trigger_id, TriggerEvent(payload), session=session)
