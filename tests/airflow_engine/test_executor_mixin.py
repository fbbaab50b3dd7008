"""Any executor with ours before it: what it is handed reaches exactly one executor, or waits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_plugin import holding
from airflow_plugin.executor import tao_executor
from airflow_plugin.holding import AWAY, Case, Desk, Onward
from tao_flows.config import TaoConfig

pytestmark = pytest.mark.airflow


@dataclass(frozen=True)
class ExecuteTask:
    """As much of a workload as is looked at here."""

    ti: Any
    behaviour: str


class Recorder(BaseExecutor):
    """Hands nothing out, and keeps what it is handed."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(parallelism=4)
        self.got: list[Any] = []
        self.refuses = refuses

    def queue_workload(self, workload: Any, session: Any) -> None:
        if self.refuses:
            raise RuntimeError("not now")
        self.got.append(workload.ti.key)

    def trigger_tasks(self, open_slots: int) -> None:
        """Nothing is handed out here."""


TaoRecorder = tao_executor(Recorder)
CONFIG = TaoConfig(mode="enforce", ledger="sqlite:////nowhere/ledger.db")
BEHAVIOURS = ("stays", "raises", "is slow", "waits", "goes", "goes where it is refused", "fails to write")


def workload(number: int, behaviour: str) -> ExecuteTask:
    key = TaskInstanceKey("dag", f"task-{number}", "manual__1", 1, -1)
    ti = SimpleNamespace(
        id=key.task_id,
        key=key,
        dag_id="dag",
        task_id=key.task_id,
        run_id=key.run_id,
        executor_config={},
        queue="normal",
    )
    return ExecuteTask(ti, behaviour)


def desk(elsewhere: Any, refusing: Any) -> Desk:
    def decide(cases: Sequence[Case]) -> None:
        for case in cases:
            said = case.workload.behaviour
            if said == "raises":
                raise OSError("the database is gone")
            if said == "is slow":
                time.sleep(0.03)
            onward = {"waits": AWAY, "goes": Onward(elsewhere, "green"), "goes where it is refused": Onward(refusing)}
            if said in onward:
                with case.writing() as mine:
                    if mine:
                        case.settle(onward[said])
            elif said == "fails to write":
                with case.writing():
                    raise OSError("the database is gone")

    return Desk(decide, lambda error: None, "deciding")


@settings(max_examples=40)
@given(st.lists(st.sampled_from(BEHAVIOURS), max_size=8))
def test_each_task_reaches_one_executor_whatever_becomes_of_deciding_on_it(behaviours):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "HOLD_S", 0.02)
        home, elsewhere, refusing = TaoRecorder(), TaoRecorder(), TaoRecorder(refuses=True)
        home._tao_config, home._tao_desk = CONFIG, desk(elsewhere, refusing)
        handed = [workload(number, behaviour) for number, behaviour in enumerate(behaviours)]
        for each in handed:
            home.queue_workload(each, None)
        assert home.slots_occupied + len(home.got) == len(handed)
        assert all(home.has_task(each.ti) for each in handed if each.ti.key not in home.got)
        while home.slots_occupied:
            home.heartbeat()
            time.sleep(0.001)
        home._tao_desk.close()
    reached = Counter(home.got + elsewhere.got)
    assert set(reached.values()) <= {1}
    # What is nowhere waits, and what was sent elsewhere is nowhere else: its row says so, too.
    nowhere = [each.behaviour for each in handed if each.ti.key not in reached]
    assert set(nowhere) <= {"waits"}
    assert all(each.behaviour == "goes" and each.ti.queue == "green" for each in handed if each.ti.key in elsewhere.got)


def test_what_is_no_task_goes_straight_on():
    home = TaoRecorder()
    home._tao_config, home._tao_desk = CONFIG, desk(None, None)
    callback = SimpleNamespace(ti=SimpleNamespace(key="a callback's"))
    home.queue_workload(callback, None)
    assert home.got == ["a callback's"]
    assert home.slots_occupied == 0


def test_a_task_that_is_to_be_left_alone_goes_straight_on():
    home = TaoRecorder()
    home._tao_config, home._tao_desk = CONFIG, desk(None, None)
    left = workload(1, "waits")
    left.ti.executor_config = {"tao_flows": {"off": True}}
    home.queue_workload(left, None)
    assert home.got == [left.ti.key]


def test_what_is_taken_back_while_it_is_held_goes_nowhere():
    home = TaoRecorder()
    home._tao_config, home._tao_desk = CONFIG, desk(None, None)
    held = workload(1, "stays")
    home.queue_workload(held, None)
    assert home.has_task(held.ti)
    with pytest.raises(NotImplementedError):  # as the executor without us: what it refuses is not done
        home.revoke_task(ti=held.ti)
    assert home.has_task(held.ti)


def test_what_an_executor_offers_is_offered_by_ours_too():
    from airflow.executors.local_executor import LocalExecutor

    from airflow_plugin.executor import TaoLocalExecutor

    for name in ("is_local", "serve_logs", "is_production", "supports_ad_hoc_ti_run", "sentry_integration"):
        assert getattr(TaoLocalExecutor, name, None) == getattr(LocalExecutor, name, None)
    assert issubclass(TaoLocalExecutor, LocalExecutor)
    assert TaoLocalExecutor.get_cli_commands() == LocalExecutor.get_cli_commands()
