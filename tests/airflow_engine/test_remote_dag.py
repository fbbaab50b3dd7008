"""A DAG run at another organisation, through the REST API of a real Airflow API server that stands for its deployment.

Its scheduler is not there: the test marks a run's end, through the same API.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger
from in_process import Outcome, encoded, run_task
from partners import Org, offer
from processes import end, free_port

from airflow_plugin import remote_dag, remote_trigger, settings
from airflow_plugin.remote_trigger import RemoteDagTrigger
from tao_flows import runtime
from tao_flows.errors import SourceError
from tao_flows.federation.airflow_api import GONE, AirflowApi
from tao_flows.federation.claims import METHOD
from tao_flows.federation.descriptor import PAYLOAD_TYPE, Endpoint
from tao_flows.federation.offers import accept
from tao_flows.federation.records import EnergyRecord
from tao_flows.federation.store import PartnerStore
from tao_flows.federation.trust import Trust
from tao_flows.figures import Figure, Quality
from tao_flows.governance import dsse
from tao_flows.ledger.base import Ledger, RunRef

pytestmark = pytest.mark.airflow

PASSWORD = "s3cret-of-the-partner"
DAG = "nightly"
THERE = f"""
from airflow.sdk import DAG
from airflow.providers.standard.operators.empty import EmptyOperator
with DAG("{DAG}"):
    EmptyOperator(task_id="work")
"""
HERE = """
from airflow.sdk import DAG
from airflow_plugin.remote_dag import TaoRemoteDagOperator
with DAG("dag"):
    TaoRemoteDagOperator(task_id="carry", trigger_dag_id="{dag}", allowed_orgs={orgs}, conf={{"rows": 7}})
"""
SETTINGS = """mode = "enforce"
org = "org-a"
trust = "trust.json"
pools = "pools.toml"
[[rules]]
name = "*"
trigger = ["manual", "scheduled"]
mode = "enforce"
[signals.carbon.A]
value = 900
[partners.org-b]
source = "published"
api_url = "{api_url}"
user = "admin"
key_env = "PARTNER_PASSWORD"
"""


@pytest.fixture(scope="module")
def partner_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowApi]:
    """The partner's API server, with one DAG."""
    home = tmp_path_factory.mktemp("partner")
    (home / "dags").mkdir()
    (home / "dags" / "nightly.py").write_text(THERE)
    (home / "passwords.json").write_text(json.dumps({"admin": PASSWORD}))
    port = free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "TAO_FLOWS"))},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API_AUTH__JWT_ISSUER": "tests",  # PyJWT 2.10 and Airflow 3.0 want one
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "TAO_FLOWS_MODE": "off",
    }
    airflow = [sys.executable, "-m", "airflow"]
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        done = subprocess.run([*airflow, *command], env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    log = (home / "api.log").open("wb")
    command = [*airflow, "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    api = AirflowApi("org-b", f"http://127.0.0.1:{port}", "admin", PASSWORD)
    try:
        give_up_s = time.monotonic() + 240
        while True:
            assert process.poll() is None, (home / "api.log").read_text()
            with suppress(SourceError):
                api.state(DAG, "none")
                break
            assert time.monotonic() < give_up_s, (home / "api.log").read_text()
            time.sleep(0.5)
        yield api
    finally:
        end([process])
        log.close()


@dataclass
class Scene:
    """Our deployment, with a partner that it trusts."""

    folder: Path
    api: AirflowApi
    partner: Org
    ledger: Ledger
    dags: Path

    def carry(self, orgs: list[str], **more: Any) -> Outcome:
        return run_task(self.dags, HERE.format(dag=DAG, orgs=orgs), "carry", **more)

    def finished(self, run_id: str, state: str) -> None:
        """As the partner's scheduler would."""
        path = f"/api/v2/dags/{DAG}/dagRuns/{run_id}"
        answer = self.api._ask("PATCH", path, {"state": state})
        assert answer.status == 200, answer


@pytest.fixture
def scene(partner_api: AirflowApi, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    now = datetime.now(timezone.utc)
    partner = Org("org-b", tmp_path / "published")
    Trust((partner.trusted(valid_from=now - timedelta(1), valid_until=None),)).save(tmp_path / "trust.json")
    (tmp_path / "tao-flows.toml").write_text(SETTINGS.format(api_url=partner_api.api_url))
    costs = "energy_j = { low = 90, mean = 100, high = 110 }\nruntime_s = { p50 = 60, p95 = 90 }\n"
    (tmp_path / "pools.toml").write_text(
        "".join(f'[[pools]]\npool_id = "{pool}"\nzone = "A"\n{costs}' for pool in ("local", "default"))
    )
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(tmp_path / "tao-flows.toml"))
    monkeypatch.setenv("PARTNER_PASSWORD", PASSWORD)
    endpoint = Endpoint("airflow", partner_api.api_url, DAG)
    told = offer(endpoint=endpoint, valid_from=now - timedelta(1), valid_until=now + timedelta(1))
    envelope = dsse.sign(told.to_payload(), PAYLOAD_TYPE, partner.key)
    trust = Trust((partner.trusted(valid_until=None),))
    accept(envelope, "org-b", Trust(tuple(replace(key, valid_from=now - timedelta(1)) for key in trust.keys)),
           PartnerStore(ledger), now)  # fmt: skip
    runtime.forget()
    yield Scene(tmp_path, partner_api, partner, ledger, Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]))
    runtime.forget()


def fired(trigger: RemoteDagTrigger) -> Any:
    async def all_of_it() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    (payload,) = asyncio.run(all_of_it())
    return payload


def deferred(outcome: Outcome) -> RemoteDagTrigger:
    assert outcome.state == "deferred", outcome.error
    (message,) = outcome.of_type("DeferTask")
    assert message.classpath == remote_trigger.CLASSPATH
    kwargs = message.trigger_kwargs
    arguments = kwargs if "run_id" in kwargs else _decoded(kwargs)
    assert PASSWORD not in json.dumps(arguments)
    return RemoteDagTrigger(**arguments)


def _decoded(kwargs: Any) -> dict[str, Any]:
    from airflow.sdk.serde import deserialize

    return dict(deserialize(kwargs))


def test_a_dag_runs_at_a_partner_without_a_slot_and_its_record_comes_back(scene: Scene) -> None:
    outcome = scene.carry(["org-b"])
    trigger = deferred(outcome)
    run_id = trigger.run_id
    assert run_id.startswith("tao-flows.for.org-a.")
    assert scene.api.state(DAG, run_id) == "queued"
    scene.api.begin(DAG, run_id, {"rows": 7})  # it is there already, and is that run
    figure = Figure(42_000_000, 40_000_000, 44_000_000, Quality.MEASURED, ("rapl",))
    record = EnergyRecord(
        "org-b", "org-a", 1, "airflow", DAG, run_id, "success", figure, 60.0, 50.0, "m/1", complete=True
    )
    scene.partner.publisher.record(record)
    scene.finished(run_id, "success")
    event = fired(trigger)
    assert event == {"org": "org-b", "run_id": run_id, "state": "success"}
    (claim,) = [
        task
        for task in scene.ledger.tasks(RunRef("airflow", "default", "manual__2026-01-01", "dag"))
        if task.key.instance == run_id
    ]
    assert claim.measurement is not None
    assert (claim.measurement.energy.value_uj, claim.method, claim.pool) == (42_000_000, METHOD, "green@org-b")
    assert claim.measurement.energy.sources == ("claim of org-b: rapl",)
    arguments = encoded({"event": event})
    done = scene.carry(["org-b"], next_method=remote_dag.DONE_METHOD, next_kwargs=arguments)
    assert done.state == "success", done.error


def test_a_run_that_fails_there_fails_the_task_and_one_that_is_killed_is_stopped_there(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_trigger, "RECORD_WAIT_S", 0.0)
    trigger = deferred(scene.carry(["org-b"], run_id="manual__killed"))
    asyncio.run(trigger.on_kill())
    assert scene.api.state(DAG, trigger.run_id) == "failed"
    event = fired(trigger)
    assert event["state"] == "failed"
    arguments = encoded({"event": event})
    done = scene.carry(["org-b"], next_method=remote_dag.DONE_METHOD, next_kwargs=arguments)
    assert done.state == "failed"
    assert "ended as failed" in str(done.error)


def test_work_that_names_no_partner_or_one_that_is_not_trusted_stays_here(scene: Scene) -> None:
    for orgs in ([], ["org-c"]):
        here = scene.carry(orgs, run_id=f"manual__{len(orgs)}")
        assert here.of_type("TriggerDagRun"), here.error
    Trust().save(scene.folder / "trust.json")
    runtime.forget()
    here = scene.carry(["org-b"], run_id="manual__untrusted")
    assert here.of_type("TriggerDagRun"), here.error


def test_a_partner_that_refuses_the_key_gets_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTNER_PASSWORD", "wrong")
    here = scene.carry(["org-b"], run_id="manual__denied")
    assert here.of_type("TriggerDagRun"), here.error
    tao = settings.tao_here()
    assert tao is not None
    assert [each.code for each in tao.incidents.of_run("manual__denied")] == ["PARTNER_REFUSED"]


def test_a_run_that_was_deleted_there_is_gone(partner_api: AirflowApi) -> None:
    assert partner_api.state(DAG, "never was") == GONE


@pytest.mark.parametrize("arrived", [True, False])
def test_a_run_whose_answer_was_not_heard_starts_here_only_if_the_partner_does_not_have_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    begin = AirflowApi.begin

    def unheard(api: AirflowApi, *what: Any) -> None:
        if arrived:
            begin(api, *what)
        raise SourceError("PARTNER_TIMEOUT", "no answer")

    monkeypatch.setattr(AirflowApi, "begin", unheard)
    monkeypatch.setattr(remote_trigger, "RECORD_WAIT_S", 0.0)
    run_id = f"manual__unheard_{arrived}"
    trigger = deferred(scene.carry(["org-b"], run_id=run_id))
    if arrived:
        scene.finished(trigger.run_id, "success")
    event = fired(trigger)
    assert event["state"] == ("success" if arrived else remote_dag.NEVER_THERE)
    done = scene.carry(
        ["org-b"], run_id=run_id, next_method=remote_dag.DONE_METHOD, next_kwargs=encoded({"event": event})
    )
    assert bool(done.of_type("TriggerDagRun")) is not arrived, done.error


def test_a_partner_that_stays_silent_fails_the_task_without_a_retry(scene: Scene) -> None:
    trigger = deferred(scene.carry(["org-b"], run_id="manual__silent"))
    text = SETTINGS.format(api_url=f"http://127.0.0.1:{free_port()}") + 'give_up_after = "0s"\n'
    (scene.folder / "tao-flows.toml").write_text(text)
    runtime.forget()
    event = fired(trigger)
    assert event["state"] == remote_dag.SILENT
    done = scene.carry(
        ["org-b"], run_id="manual__silent", next_method=remote_dag.DONE_METHOD, next_kwargs=encoded({"event": event})
    )
    assert type(done.error).__name__ == "AirflowFailException"
    assert "may be going on there" in str(done.error)


def test_a_task_that_is_marked_or_cleared_stops_the_run_there_and_a_triggerer_that_ends_does_not(scene: Scene) -> None:
    trigger = deferred(scene.carry(["org-b"], run_id="manual__marked"))

    async def stopped(*said: str) -> None:
        async def all_of_it() -> None:
            async for _ in trigger.run():
                pass

        waiting = asyncio.create_task(all_of_it())
        await asyncio.sleep(1.0)
        waiting.cancel(*said)
        with suppress(asyncio.CancelledError):
            await waiting
        # As Airflow's triggerer does from 3.3 on.
        if not said and hasattr(BaseTrigger, "on_kill"):
            await trigger.on_kill()

    asyncio.run(stopped("EOF - shutting down"))
    assert scene.api.state(DAG, trigger.run_id) == "queued"
    asyncio.run(stopped())
    assert scene.api.state(DAG, trigger.run_id) == "failed"
