"""Bundles of flow runs: sealed by a real worker with a key of its own, or in the process of a flow started by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from deferring import FLOWS, HASTE, TAO_FLOWS, Started, _end, until
from lineage_server import lineage_server
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments import run_deployment
from support import artifacts_of

from prefect_blocks import SigningKey as SigningKeyBlock
from tao_flows.governance.keys import new_keys
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.seals import Seal, last_seal
from tao_flows.prefect.sealing import KEPT_BACK, SEALED_BY_ENV, keep_back

POOL = "sealing"


@dataclass(frozen=True)
class Place:
    """Where the settings of a test say that things are."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            **HASTE,
            "TAO_FLOWS_LEDGER": f"sqlite:///{self.folder}/ledger.db",
            "TAO_FLOWS_BUNDLES": str(self.folder / "bundles"),
            "TAO_FLOWS_SIGNING_KEY": str(self.folder / "keys/signing.key"),
            "TAO_FLOWS_BUNDLE_STORAGE": "results",
            "PREFECT_LOCAL_STORAGE_PATH": str(self.folder / "results"),
        }

    def ledger(self) -> Ledger:
        return open_ledger(self.env["TAO_FLOWS_LEDGER"])

    def verify(self, path: str, key: str = "keys/signing.pub") -> tuple[int, dict[str, Any]]:
        """What the command says of a bundle, as a process of its own."""
        done = subprocess.run(
            [TAO_FLOWS, "verify", path, "--key", str(self.folder / key), "--json"], capture_output=True, text=True
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(server: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("sealing"))
    new_keys(made.folder / "keys")
    return made


@pytest.fixture(scope="module")
def worker(place: Place) -> Iterator[Started]:
    """A worker of ours with the key, and the flow deployed to its pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    flow = Flow.from_source(str(FLOWS), "sealed.py:sealed")
    assert isinstance(flow, Flow)
    flow.deploy("here", work_pool_name=POOL, print_next_steps=False, ignore_warnings=True)
    log = place.folder / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "tao-process"],
            env=place.env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        yield Started(process, log)
    finally:
        _end(process)


def begin(**parameters: Any) -> str:
    run = run_deployment("sealed/here", parameters=parameters, timeout=0, as_subflow=False)
    assert not isinstance(run, UUID)
    return str(run.id)


def seal_of(ledger: Ledger, run_id: str, flow: str = "sealed") -> Seal | None:
    return last_seal(ledger, RunRef("prefect", "default", run_id, flow))


@pytest.fixture(scope="module")
def runs(place: Place, worker: Started) -> dict[str, str]:
    """One run that completes and one that is killed, at once; both are sealed."""
    begun = {"whole": begin(told_at=str(place.folder / "told")), "killed": begin(die=True)}
    ledger = place.ledger()
    for run_id in begun.values():
        until(lambda run_id=run_id: seal_of(ledger, run_id), "the seal", worker, patience_s=180)  # type: ignore[misc]
    ledger.close()
    return begun


def test_a_worker_seals_a_run_after_its_end_and_the_bundle_verifies_in_a_process_of_its_own(place, runs):
    seal = seal_of(place.ledger(), runs["whole"])
    assert seal is not None
    assert (seal.signer, seal.complete) == ("worker", True)
    assert place.verify(seal.place) == (0, {"ok": True, "complete": True, "failures": []})


def test_a_run_that_was_killed_is_sealed_as_incomplete(place, runs):
    seal = seal_of(place.ledger(), runs["killed"])
    assert seal is not None
    assert (seal.signer, seal.complete) == ("worker", False)
    assert place.verify(seal.place) == (0, {"ok": True, "complete": False, "failures": []})


def test_the_process_of_a_flow_is_given_neither_the_key_nor_the_place_of_bundles(place, runs):
    told = (place.folder / "told").read_bytes()
    assert b"TAO_FLOWS_LEDGER=" in told
    for name in KEPT_BACK:
        assert f"{name}=".encode() not in told
    assert b"signing.key" not in told
    assert f"{SEALED_BY_ENV}=worker".encode() in told


def test_the_run_shows_its_bundle_and_the_bundle_is_in_the_result_storage(place, worker, runs):
    seal = seal_of(place.ledger(), runs["whole"])
    assert seal is not None
    until(lambda: "tao-bundle-sealed" in artifacts_of(runs["whole"]), "the artifact", worker)
    artifacts = artifacts_of(runs["whole"])
    (leads,) = artifacts["tao-bundle-sealed"]
    page = str(artifacts["tao-energy-sealed"][-1])
    assert len(artifacts["tao-energy-sealed"]) == 2
    assert page.count("## Signed record") == 1
    for text in (str(leads), page):
        assert f"sha256:{seal.digest}" in text
        assert seal.keyid in text
        assert "complete" in text
    archive = place.folder / "results/tao-flows-bundles" / f"{Path(seal.place).name}.zip"
    assert str(archive) in str(leads)
    assert place.verify(str(archive)) == (0, {"ok": True, "complete": True, "failures": []})


SCRIPT = """
import sys
sys.path.insert(0, {flows!r})
from sealed import sealed
sealed()
"""


def started_by_hand(place: Place, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    script = place.folder / "by_hand.py"
    script.write_text(SCRIPT.format(flows=str(FLOWS)))
    return subprocess.run([sys.executable, str(script)], env={**place.env, **env}, capture_output=True, text=True)


def only_seal(url: str) -> tuple[str, Seal]:
    ledger = open_ledger(url)
    (run,) = ledger.runs()
    seal = seal_of(ledger, run.run_id)
    ledger.close()
    assert seal is not None
    return run.run_id, seal


def test_a_flow_started_by_hand_leaves_its_bundle_which_says_where_the_key_was_and_tells_lineage(place):
    url = f"sqlite:///{place.folder}/by_hand.db"
    with lineage_server() as lineage:
        done = started_by_hand(place, {"TAO_FLOWS_LEDGER": url, "OPENLINEAGE_URL": lineage.url})
        assert done.returncode == 0, done.stderr
        run_id, seal = only_seal(url)
        (event,) = lineage.of("COMPLETE", "sealed")
    assert seal.signer == "in-process"
    assert place.verify(seal.place) == (0, {"ok": True, "complete": True, "failures": []})
    assert f"sha256:{seal.digest}" in str(artifacts_of(run_id)["tao-bundle-sealed"][-1])
    assert event["run"]["runId"] == run_id
    recorded = json.loads(Path(seal.place, "openlineage.json").read_text())["run"]["facets"]["tao_energy"]
    assert event["run"]["facets"]["tao_energy"]["energy"] == recorded["energy"]


def test_a_key_that_cannot_be_used_never_fails_the_flow_and_is_an_incident(place):
    url = f"sqlite:///{place.folder}/no_key.db"
    done = started_by_hand(
        place, {"TAO_FLOWS_LEDGER": url, "TAO_FLOWS_SIGNING_KEY": "/nowhere", "OPENLINEAGE_URL": "http://127.0.0.1:9"}
    )
    assert done.returncode == 0, done.stderr
    ledger = open_ledger(url)
    (run,) = ledger.runs()
    assert run.state == "completed"
    assert "UNREADABLE_FILE" in {incident.code for incident in ledger.incidents()}
    ledger.close()


def test_a_job_and_a_container_are_not_given_the_key_either():
    env = {"TAO_FLOWS_SIGNING_KEY": "/k", "TAO_FLOWS_BUNDLES": "/b", "MINE": "1"}
    listed = [{"name": name, "value": value} for name, value in env.items()]
    job = {"spec": {"template": {"spec": {"containers": [{"name": "one", "env": list(listed)}]}}}}
    container = SimpleNamespace(env=dict(env))
    manifest = SimpleNamespace(env=list(listed), job_manifest=job)
    for each in (container, manifest):
        keep_back(each, "worker")
    assert container.env == {"MINE": "1", SEALED_BY_ENV: "worker"}
    (one,) = job["spec"]["template"]["spec"]["containers"]
    assert one["env"] == [{"name": "MINE", "value": "1"}, {"name": SEALED_BY_ENV, "value": "worker"}]


def test_a_controller_signs_with_the_key_of_a_block_which_nobody_can_read_off_it(place, tmp_path):
    key = new_keys(tmp_path / "keys")
    block = SigningKeyBlock(private_key=key.pem().decode())
    block.save("seals", overwrite=True)
    assert "PRIVATE" not in repr(block)
    assert "PRIVATE" not in str(block.model_dump())
    url = f"sqlite:///{tmp_path}/ledger.db"
    done = started_by_hand(place, {"TAO_FLOWS_LEDGER": url, "TAO_FLOWS_BUNDLES": ""})
    assert done.returncode == 0, done.stderr
    env = {
        **place.env,
        "TAO_FLOWS_LEDGER": url,
        "TAO_FLOWS_BUNDLES": str(tmp_path / "bundles"),
        "TAO_FLOWS_SIGNING_KEY": "",
        "TAO_FLOWS_PREFECT_SIGNING_KEY": "seals",
    }
    log = tmp_path / "controller.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [TAO_FLOWS, "controller", "--prefect", "--pool", "none"], env=env, stdout=out, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    ledger = open_ledger(url)
    (run,) = ledger.runs()
    try:
        until(lambda: seal_of(ledger, run.run_id), "the seal", Started(process, log))
    finally:
        _end(process)
    seal = seal_of(ledger, run.run_id)
    ledger.close()
    assert seal is not None
    assert (seal.signer, seal.keyid) == ("controller", key.keyid)
    code, said = Place(tmp_path).verify(seal.place)
    assert (code, said["ok"]) == (0, True)
