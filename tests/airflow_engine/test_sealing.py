"""Bundles of DAG runs: sealed by a real API server, offered by its pages, and left by ``dag.test()``."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import ZipFile

import pytest
from in_process import encoded
from lineage_server import lineage_server
from test_web_browser import NOW, RUN_ID, S, _airflow, _post, _until_it_answers

from airflow_plugin import _compat, bundles
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.governance.keys import SigningKey, new_keys
from tao_flows.governance.sealer import Sealer
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.seals import Seal, last_of_flow, last_seal
from tao_flows.records import RunKey, RunRecord, Segment, TaskRecord, TaskState

pytestmark = pytest.mark.airflow
TAO_FLOWS = str(Path(sys.executable).with_name("tao-flows"))
SEEN, HIDDEN = "etl", "payroll"
DAG = """
import json, os
from pathlib import Path
from airflow.sdk import dag, task
from airflow_plugin.operators import TaoBundleOperator

@dag("{dag_id}", schedule=None)
def made():
    @task
    def load(): sum(range(2_000_000))
    @task
    def tell(told): Path(os.environ.get("TOLD_AT", os.devnull)).write_text(json.dumps(told))
    load(){more}

d = made()
if __name__ == "__main__":
    print("STATE", d.test().state)
"""
AFTER = """
    bundle = TaoBundleOperator(task_id="bundle")
    tell(bundle.output)"""
"""A task that takes the bundle of the DAG's last run."""
WHOLE = {"ok": True, "complete": True, "failures": []}


def verify(path: Path, home: Path) -> dict[str, Any]:
    """What the command says of a bundle, as a process of its own."""
    key = str(home / "keys/signing.pub")
    done = subprocess.run([TAO_FLOWS, "verify", str(path), "--key", key, "--json"], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def settings(home: Path) -> dict[str, str]:
    outside = ("AIRFLOW_", "TAO_FLOWS_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(outside)},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__TAO_FLOWS__LEDGER": f"sqlite:///{home}/ledger.db",
        "AIRFLOW__TAO_FLOWS__BUNDLES": str(home / "bundles"),
        "AIRFLOW__TAO_FLOWS__BUNDLE_STORAGE": f"file://{home}/copies",
        "TAO_FLOWS_SIGNING_KEY": str(home / "keys/signing.key"),
        "TAO_FLOWS_AGENT": "off",
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Airflow home with its database, a key, and the DAGs."""
    made = tmp_path_factory.mktemp("sealing")
    (made / "dags").mkdir()
    for dag_id, more in ((SEEN, AFTER), (HIDDEN, ""), ("other", "")):
        (made / f"dags/{dag_id}.py").write_text(DAG.format(dag_id=dag_id, more=more))
    new_keys(made / "keys")
    for command in (("db", "migrate"), ("dags", "reserialize")):
        _airflow(settings(made), *command)
    return made


def record(ledger: Ledger, dag_id: str) -> None:
    """A run of one task that ended a while ago."""
    segment, key = Segment("node-1", "boot", 1, 1), RunKey("airflow", "default", dag_id, RUN_ID, "load", "-1", 1)
    figure = Figure(40_000_000, 39_000_000, 41_000_000, Quality.ATTRIBUTED, ("rapl",))
    measured = Measurement("load", NOW - 60 * S, 30.0, CpuTime(20.0, "perf", True), figure, (), Account())
    ledger.put_run(
        RunRecord("airflow", "default", dag_id, RUN_ID, "success", NOW - 60 * S, segment, NOW - 30 * S, name=RUN_ID)
    )
    ledger.put_task(
        TaskRecord(key, segment, TaskState.COMPLETED, NOW - 60 * S, ended_wall_ns=NOW - 30 * S, measurement=measured)
    )


@dataclass
class Site:
    """An API server of two processes with the key, and what it has sealed."""

    address: str
    home: Path
    tokens: Mapping[str, str]
    seals: Mapping[str, Seal]

    def get(self, path: str, role: str = "") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.tokens[role]}"} if role else {}
        request = urllib.request.Request(self.address + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def bundle_path(dag_id: str, run_id: str = RUN_ID) -> str:
    return f"/tao/bundle/{quote(dag_id, safe='')}/{quote(run_id, safe='')}"


@pytest.fixture(scope="module")
def site(home: Path) -> Iterator[Site]:
    roles = {"ada": "admin", "vic": "viewer"}
    (home / "passwords.json").write_text(json.dumps(dict.fromkeys(roles, "password")))
    env = {
        **settings(home),
        "PYTHONPATH": str(Path(__file__).parent),
        "AIRFLOW__CORE__AUTH_MANAGER": "picky_auth.PickyAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in roles.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API__SECRET_KEY": "of this test alone",
        "AIRFLOW__API_AUTH__JWT_ISSUER": "tests",
        "AIRFLOW__API_AUTH__JWT_SECRET": "known to nobody else, and long enough for its algorithm: 512 bits" * 2,
    }
    log = home / "api-server.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ledger = open_ledger(env["AIRFLOW__TAO_FLOWS__LEDGER"])
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"],
            env=env, stdout=out, stderr=subprocess.STDOUT, cwd=home,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        tokens = {"ada": _until_it_answers(server, address, log)}
        tokens["vic"] = _token(address, "vic")
        for dag_id in (SEEN, HIDDEN):
            _post(
                f"{address}/api/v2/dags/{dag_id}/dagRuns", {"dag_run_id": RUN_ID, "logical_date": None}, tokens["ada"]
            )
            record(ledger, dag_id)
        yield Site(address, home, tokens, {dag_id: until_sealed(ledger, dag_id, log) for dag_id in (SEEN, HIDDEN)})
    finally:
        server.terminate()
        server.wait(30)
        ledger.close()


def _token(address: str, name: str) -> str:
    return str(_post(f"{address}/auth/token", {"username": name, "password": "password"}, "")["access_token"])


def until_sealed(ledger: Ledger, dag_id: str, log: Path) -> Seal:
    for _ in range(600):
        seal = last_seal(ledger, RunRef("airflow", "default", RUN_ID, dag_id))
        if seal is not None:
            return seal
        time.sleep(0.2)
    raise AssertionError(f"{dag_id} was never sealed\n{log.read_text()[-6000:]}")


def test_an_api_server_seals_ended_runs_once_though_it_has_two_processes(site):
    for dag_id, seal in site.seals.items():
        assert (seal.signer, seal.complete, seal.revision) == ("api-server", True, 1)
        assert verify(Path(seal.place), site.home) == WHOLE
        assert last_of_flow(open_ledger(f"sqlite:///{site.home}/ledger.db"), "airflow", "default", dag_id) is not None
    assert len([path for path in (site.home / "bundles").iterdir() if path.is_dir()]) == len(site.seals)


def test_the_download_is_the_bundle_and_verifies(site, tmp_path):
    status, body = site.get(bundle_path(SEEN), "vic")
    assert status == 200
    (tmp_path / "bundle.zip").write_bytes(body)
    assert verify(tmp_path / "bundle.zip", site.home) == WHOLE
    assert json.loads(ZipFile(BytesIO(body)).read("run.json"))


def test_the_download_is_behind_airflows_own_permissions(site):
    assert site.get(bundle_path(SEEN))[0] == 401
    assert site.get(bundle_path(HIDDEN), "vic")[0] == 403
    assert site.get(bundle_path(HIDDEN), "ada")[0] == 200


def test_a_run_that_is_not_the_dags_or_a_path_gives_nothing(site):
    for path in (
        bundle_path("other"),
        bundle_path(SEEN, "no such run"),
        bundle_path(SEEN, "../../keys/signing.key"),
        f"/tao/bundle/{SEEN}/../../../keys/signing.key",
    ):
        assert site.get(path, "vic")[0] == 404, path


def test_the_tab_and_the_note_name_the_bundle(site):
    seal = site.seals[SEEN]
    status, body = site.get(f"/tao/tab/run/{SEEN}/{quote(RUN_ID, safe='')}", "vic")
    assert status == 200
    page = body.decode()
    for text in ("Signed record", f"sha256:{seal.digest}", seal.keyid, "complete"):
        assert text in page
    # Where a browser does not say who asks, a link could not be followed.
    assert ("/tao/tab/bundle/" in page) == _compat.pages_know_the_reader()
    told = json.loads(site.get(f"/api/v2/dags/{SEEN}/dagRuns/{quote(RUN_ID, safe='')}", "ada")[1])
    assert f"tao-flows bundle: sha256:{seal.digest}, complete" in told["note"]


def test_a_copy_is_where_the_settings_say(site):
    (copy,) = (site.home / "copies").glob(f"{Path(site.seals[SEEN].place).name}.zip")
    assert verify(copy, site.home) == WHOLE


def run_dag(home: Path, dag_id: str, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, str(home / f"dags/{dag_id}.py")], env={**settings(home), **env}, capture_output=True, text=True
    )
    assert "success" in done.stdout.rpartition("STATE")[2], done.stdout + done.stderr


def only_seal(url: str, dag_id: str) -> tuple[RunRef, Seal]:
    ledger = open_ledger(url)
    found = last_of_flow(ledger, "airflow", "default", dag_id)
    ledger.close()
    assert found is not None
    return found


def test_dag_test_leaves_a_bundle_that_says_where_the_key_was_and_lineage_has_the_energy_of_its_task(home):
    url = f"sqlite:///{home}/by_hand.db"
    with lineage_server() as lineage:
        run_dag(
            home,
            "other",
            AIRFLOW__TAO_FLOWS__LEDGER=url,
            AIRFLOW__OPENLINEAGE__TRANSPORT=json.dumps({"type": "http", "url": lineage.url}),
            AIRFLOW__OPENLINEAGE__CUSTOM_RUN_FACETS="airflow_plugin.lineage.energy_facet",
        )
        ended, begun = lineage.of("COMPLETE", "other.load"), lineage.of("START", "other.load")
    _, seal = only_seal(url, "other")
    assert seal.signer == "in-process"
    assert verify(Path(seal.place), home) == WHOLE
    if find_spec("airflow.providers.openlineage") is None:
        assert ended == [], "who tells nothing of lineage has nothing of ours told"
        return
    (event,) = ended
    energy = event["run"]["facets"]["tao_energy"]["energy"]
    of_run = json.loads(Path(seal.place, "openlineage.json").read_text())["run"]["facets"]["tao_energy"]["energy"]
    assert energy["value_j"] == of_run["value_j"]
    assert begun
    assert all("tao_energy" not in each["run"]["facets"] for each in begun)


def test_a_task_that_is_tested_alone_leaves_a_bundle_of_what_was_seen_of_its_run(home):
    url = f"sqlite:///{home}/tested.db"
    _airflow({**settings(home), "AIRFLOW__TAO_FLOWS__LEDGER": url}, "tasks", "test", "other", "load")
    _, seal = only_seal(url, "other")
    assert (seal.signer, seal.complete) == ("in-process", False)
    assert verify(Path(seal.place), home) == {"ok": True, "complete": False, "failures": []}


def test_the_operator_hands_on_the_digest_and_the_place_of_the_dags_last_bundle(site):
    told_at = site.home / "told.json"
    run_dag(site.home, SEEN, TOLD_AT=str(told_at))
    seal = site.seals[SEEN]
    assert json.loads(told_at.read_text()) == {"digest": seal.digest, "path": seal.place}


WAITING = """
from airflow.sdk import dag
from airflow_plugin.operators import TaoBundleOperator

@dag("dag", schedule=None)
def made():
    TaoBundleOperator(task_id="bundle", bundle_dag_id="etl", bundle_run_id="{run_id}")

made()
"""


def test_the_operator_waits_in_a_triggerer_until_the_run_is_sealed(run_here, ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "POLL_S", 0.05)
    source = WAITING.format(run_id=RUN_ID)
    outcome = run_here(source, "bundle")
    assert outcome.state == "deferred"
    (deferred,) = outcome.of_type("DeferTask")
    assert deferred.classpath == bundles.CLASSPATH
    assert deferred.next_method == "resumed"
    record(ledger, SEEN)

    async def fired() -> Any:
        trigger = bundles.TaoBundleTrigger(SEEN, RUN_ID)
        waiting = asyncio.ensure_future(anext(aiter(trigger.run())))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await asyncio.to_thread(
            Sealer(ledger, tmp_path / "bundles", SigningKey.generate(), "seal").seal,
            RunRef("airflow", "default", RUN_ID, SEEN),
        )
        return (await asyncio.wait_for(waiting, 20)).payload

    event = asyncio.run(fired())
    seal = last_seal(ledger, RunRef("airflow", "default", RUN_ID, SEEN))
    assert seal is not None
    assert event == {"digest": seal.digest, "path": seal.place}
    resumed = run_here(source, "bundle", next_method="resumed", next_kwargs=encoded({"event": event}))
    assert resumed.state == "success"
    (sent,) = resumed.of_type("SetXCom")
    assert (sent.key, sent.value) == ("return_value", event)


def test_the_operator_refuses_to_wait_for_its_own_run(run_here, ledger):
    own = WAITING.replace('"etl"', '"dag"').format(run_id="manual__2026-01-01")
    outcome = run_here(own, "bundle")
    assert outcome.state == "failed"
    assert "after its end" in str(outcome.error)
