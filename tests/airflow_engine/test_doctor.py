"""``tao-flows doctor --engine airflow``: which mechanism is in force, and where we cannot act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_plugin import _compat, doctor, places
from airflow_plugin.settings import watcher
from tao_flows.ledger.diagnose import ledger_diagnosis

pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("airflow_database")]

OURS = "airflow_plugin.executor"
LOCAL, CELERY = f"{OURS}.TaoLocalExecutor", f"{OURS}.TaoCeleryExecutor"


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    places.executors.cache_clear()
    yield
    places.executors.cache_clear()


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def examine(executor: str = "LocalExecutor", pools: tuple[str, ...] = (), **options: str) -> dict[str, Any]:
        """By id, the checks of a deployment; ``executors`` has those of each."""
        places.executors.cache_clear()
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__TAO_FLOWS__{name.upper()}", value)
        if pools:
            file = tmp_path / "pools.toml"
            file.write_text("".join(f'[[pools]]\npool_id = "{pool}"\n' for pool in pools))
            monkeypatch.setenv("AIRFLOW__TAO_FLOWS__POOLS", str(file))
        config = watcher().get().config
        checks = doctor.examine(config, ledger_diagnosis(config))
        for check in checks:
            assert set(check) >= {"id", "status", "code", "summary", "remedy"}
            assert check["status"] in {"ready", "denied", "absent", "broken"}
            assert check["status"] not in {"denied", "broken"} or (check["code"] and check["remedy"])
        executors = [check for check in checks if check["id"] == "executor"]
        return {check["id"]: check for check in checks} | {"executors": executors}

    return examine


def test_an_executor_of_ours_decides_in_the_scheduler(examined):
    found = examined(f"{CELERY},{LOCAL}")["executors"]
    assert [check["mechanism"] for check in found] == ["mixin", "mixin"]
    assert "other queues" in found[0]["summary"]
    assert "other executors" in found[1]["summary"]
    assert "nowhere" in examined(LOCAL)["executor"]["summary"]


def test_a_signing_key_that_tasks_could_read_is_told(examined, tmp_path):
    assert examined()["signing"]["status"] == "absent"
    asked = {"bundles": str(tmp_path / "bundles"), "signing_key": str(tmp_path / "signing.key")}
    out_of_reach = examined(**asked)["signing"]
    assert (out_of_reach["status"], out_of_reach["code"]) == ("ready", "")
    assert "cannot be read" in out_of_reach["summary"]
    (tmp_path / "signing.key").write_text("a key")
    in_reach = examined(LOCAL, **asked)["signing"]
    assert (in_reach["status"], in_reach["code"]) == ("broken", "KEY_IN_REACH")
    assert str(tmp_path / "signing.key") in in_reach["summary"]
    elsewhere = examined(CELERY, **asked)["signing"]
    assert (elsewhere["status"], elsewhere["code"]) == ("ready", "KEY_HERE")


def test_an_executor_that_derives_from_our_mixin_decides_too(examined, tmp_path, monkeypatch):
    (tmp_path / "my_executors.py").write_text(
        "from airflow.executors.local_executor import LocalExecutor\n"
        "from airflow_plugin.executor import TaoMixin\n"
        "class MyExecutor(TaoMixin, LocalExecutor): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = examined("mine:my_executors.MyExecutor")["executor"]
    assert (found["mechanism"], found["code"], found["remedy"]) == ("mixin", "GATE_TOO", "set [tao_flows] gate = off")
    assert examined("mine:my_executors.MyExecutor", gate="off")["executor"]["code"] == ""


@pytest.mark.parametrize(
    ("executor", "remedy"),
    [
        ("LocalExecutor", f"[core] executor = {LOCAL}"),
        ("CeleryExecutor", f"[core] executor = {CELERY}"),
        ("KubernetesExecutor", f"[core] executor = {OURS}.TaoKubernetesExecutor"),
        ("my.EdgeExecutor", f"{OURS}.tao_executor(EdgeExecutor)"),
    ],
)
def test_other_executors_have_the_gate_on_the_worker_and_a_better_way_is_named(
    examined, executor, remedy, tmp_path, monkeypatch
):
    (tmp_path / "my.py").write_text("class EdgeExecutor: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = examined(executor)["executor"]
    assert (found["mechanism"], found["code"]) == ("gate", "GATE_ONLY")
    assert remedy in found["remedy"]
    assert "where a platform sets the executor" in found["remedy"]


def test_with_the_gate_off_and_no_executor_of_ours_tasks_are_metered_only(examined):
    found = examined("CeleryExecutor", gate="off")["executor"]
    assert (found["mechanism"], found["code"]) == ("meter", "METER_ONLY")
    assert "gate = on" in found["remedy"]


def test_an_executor_that_cannot_be_imported_is_broken(examined):
    found = examined("nowhere.NoExecutor")["executor"]
    assert (found["status"], found["code"]) == ("broken", "EXECUTOR_BROKEN")
    assert "No module named 'nowhere'" in found["summary"]


def test_without_a_triggerer_nothing_can_be_deferred(examined):
    assert examined()["triggerer"]["status"] == "absent"
    found = examined(mode="enforce")["triggerer"]
    assert (found["status"], found["code"], found["remedy"]) == ("broken", "NO_TRIGGERER", "run `airflow triggerer`")


def test_a_triggerer_is_found_by_its_heartbeat(examined):
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        job = Job(job_type="TriggererJob", state="running", hostname="north-1")
        session.add(job)
        session.flush()
        number = job.id
    try:
        assert examined()["triggerer"]["summary"] == "1 alive, on north-1"
    finally:
        with create_session() as session:
            session.delete(session.get(Job, number))


def test_a_database_that_cannot_be_read_is_told_and_the_rest_too(examined, monkeypatch):
    def fail() -> Any:
        raise ConnectionError("the database is away")

    monkeypatch.setattr(_compat, "alive_jobs", fail)
    found = examined()
    assert (found["triggerer"]["status"], found["triggerer"]["code"]) == ("denied", "DATABASE_UNREADABLE")
    assert "the database is away" in found["triggerer"]["summary"]
    assert found["executor"]["mechanism"] == "gate"


def test_a_file_is_no_ledger_for_several_hosts(examined, monkeypatch):
    assert examined("LocalExecutor")["sharing"]["code"] == ""
    found = examined("CeleryExecutor")["sharing"]
    assert (found["status"], found["code"]) == ("ready", "LEDGER_NOT_SHARED")
    assert examined("CeleryExecutor", mode="enforce")["sharing"]["status"] == "broken"
    monkeypatch.setattr(_compat, "alive_jobs", lambda: (("SchedulerJob", "a"), ("TriggererJob", "b")))
    found = examined("LocalExecutor", mode="enforce")["sharing"]
    assert found["code"] == "LEDGER_NOT_SHARED"
    assert "2 hosts" in found["summary"]


def test_a_ledger_behind_an_ingest_is_one_for_all(examined):
    assert examined("CeleryExecutor", mode="enforce", ledger="https://tao.example.com")["sharing"]["status"] == "ready"


def test_pools_that_no_executor_has_are_named(examined):
    found = examined("CeleryExecutor", pools=("green", "local", "k8s:gpu"))["places"]
    assert (found["status"], found["code"], found["nowhere"]) == ("broken", "POOL_NOWHERE", ["k8s:gpu", "local"])
    assert "CeleryExecutor:QUEUE" in found["remedy"]
    assert examined("CeleryExecutor,LocalExecutor", pools=("green", "local"))["places"]["status"] == "ready"
    assert examined("LocalExecutor", pools=("green",))["places"]["nowhere"] == ["green"]


def test_an_executor_without_queues_is_one_pool_of_its_name(examined):
    found = examined("CeleryExecutor,k8s:KubernetesExecutor", pools=("green", "k8s", "k8s:green"))["places"]
    assert found["nowhere"] == ["k8s:green"]


def test_pages_are_told_by_airflows_version(examined, monkeypatch):
    monkeypatch.setattr("airflow.__version__", "3.0.6")
    assert "extra link" in examined()["pages"]["summary"]
    monkeypatch.setattr("airflow.__version__", "3.1.8")
    assert (examined()["pages"]["code"], examined()["pages"]["status"]) == ("", "ready")


def test_a_plugin_that_did_not_load_is_told(examined, monkeypatch):
    monkeypatch.setattr(_compat, "plugin_errors", lambda: {"tao-flows": "Traceback\nImportError: no such thing"})
    found = examined()["plugin"]
    assert (found["status"], found["code"]) == ("broken", "PLUGIN_BROKEN")
    assert "no such thing" in found["summary"]
