"""Two organisations, each with a Prefect server and a worker of its own: work goes over, and its record comes back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from processes import end, free_port, wait_until
from routing import HASTE

from tao_flows.federation.claims import METHOD
from tao_flows.federation.offers import KEPT_S
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.prefect.deploy import Wanted, deploy
from tao_flows.prefect.elsewhere import REROUTED

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")
FLOWS = Path(__file__).parent / "flows"
POOL = {"org-a": "blue", "org-b": "green"}
CARBON = {"org-a": 900.0, "org-b": 20.0}
SETTINGS = """mode = "enforce"
org = "{org}"
trust = "trust.json"
pools = "pools.toml"
signing_key = "keys/signing.key"
[[rules]]
name = "*"
trigger = ["manual", "scheduled"]
mode = "enforce"
[signals.carbon.A]
value = 900
[partners.{other}]
source = "{source}"
api_url = "{api_url}"
"""
COSTS = "energy_j = { low = 90, mean = 100, high = 110 }\nruntime_s = { p50 = 1, p95 = 2 }\n"


@dataclass
class Organisation:
    """One of the two: its folder, its server, and the processes that are its."""

    name: str
    folder: Path
    api_url: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            **HASTE,
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "TAO_FLOWS_CONFIG": str(self.folder / "tao-flows.toml"),
            "TAO_FLOWS_LEDGER": f"sqlite:///{self.folder}/ledger.db",
        }

    @property
    def published(self) -> Path:
        return self.folder / "published"

    def start(self, *command: str) -> None:
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            started = subprocess.Popen(command, env=self.env, stdout=log, stderr=subprocess.STDOUT, cwd=FLOWS)
        self.processes.append(started)

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-4_000:] for path in sorted(self.folder.glob("log-*")))

    def tao_flows(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [TAO_FLOWS, *arguments], env=self.env, capture_output=True, text=True, cwd=self.folder, timeout=120
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def offer(self, *more: str) -> None:
        """Publishes the pool, for the other to take."""
        self.tao_flows(
            "pools", "publish", POOL[self.name], "--out", str(self.published), "--api-url", self.api_url,
            "--to", f"prefect:carried/tao@{POOL[self.name]}", "--pue-source", "a meter",
            "--carbon", str(CARBON[self.name]), "--carbon-source", "the supplier", *more,
        )  # fmt: skip

    def client(self) -> PrefectClient:
        return PrefectClient(self.api_url)


@dataclass(frozen=True)
class Two:
    """``a`` has work and dear power, ``b`` has clean power and takes work."""

    a: Organisation
    b: Organisation
    deployment: UUID

    def run(self, how: str, tags: list[str] | None = None) -> FlowRun:
        async def create() -> FlowRun:
            async with self.a.client() as client:
                return await client.create_flow_run_from_deployment(
                    self.deployment, parameters={"how": how}, tags=tags or []
                )

        return asyncio.run(create())

    def read(self, org: Organisation, run_id: UUID) -> FlowRun:
        async def read() -> FlowRun:
            async with org.client() as client:
                return await client.read_flow_run(run_id)

        return asyncio.run(read())

    def runs_at_b(self) -> list[FlowRun]:
        async def read() -> list[FlowRun]:
            async with self.b.client() as client:
                return list(await client.read_flow_runs())

        return asyncio.run(read())

    def until(self, seen: Any, what: str) -> Any:
        return wait_until(seen, lambda: f"{what}\n{self.a.said()}\n{self.b.said()}")

    def ended(self, run: FlowRun, name: str) -> FlowRun:
        def seen() -> FlowRun | None:
            now = self.read(self.a, run.id)
            return now if now.state is not None and now.state.is_final() else None

        found: FlowRun = self.until(seen, f"the end of {run.name}")
        assert found.state_name == name, found.state
        return found

    def claim(self, run: FlowRun) -> Any:
        """What our ledger has of a run's energy at the partner, once it is accounted for."""

        def seen() -> Any:
            ledger = open_ledger(f"sqlite:///{self.a.folder}/ledger.db")
            try:
                tasks = ledger.tasks(RunRef("prefect", "default", str(run.id)))
                incidents = ledger.incidents(RunRef("prefect", "default", str(run.id)))
                # A partner that is slow to answer is asked again.
                lasting = [each for each in incidents if each.code != "PARTNER_UNREACHABLE"]
                known = [(task, lasting) for task in tasks]
            finally:
                ledger.close()
            done = [each for each in known if each[0].measurement is not None or each[1]]
            return done and done[0]

        return self.until(seen, f"the record of {run.name}")


@pytest.fixture(scope="module")
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    port = free_port()
    root = tmp_path_factory.mktemp("federation")
    a = Organisation("org-a", root / "org-a", os.environ["PREFECT_API_URL"])
    b = Organisation("org-b", root / "org-b", f"http://127.0.0.1:{port}/api")
    for org, other in ((a, b), (b, a)):
        org.published.mkdir(parents=True)
        text = SETTINGS.format(org=org.name, other=other.name, source=other.published, api_url=other.api_url)
        (org.folder / "tao-flows.toml").write_text(text)
        zone = "A" if org is a else "B"
        (org.folder / "pools.toml").write_text(f'[[pools]]\npool_id = "{POOL[org.name]}"\nzone = "{zone}"\n{COSTS}')
    try:
        b.start(sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        assert request.getfixturevalue("server") == a.api_url  # both begin side by side
        for org in (a, b):
            org.tao_flows("keys", "new", "--out", str(org.folder / "keys"))
        a.tao_flows("pools", "trust", "org-b", "--key", str(b.folder / "keys" / "signing.pub"))
        b.tao_flows("pools", "trust", "org-a", "--key", str(a.folder / "keys" / "signing.pub"))
        _healthy(b)
        with ThreadPoolExecutor(2) as side_by_side:
            list(side_by_side.map(_set_up, (a, b)))
        b.offer()
        a.tao_flows("pools", "fetch")
        yield Two(a, b, asyncio.run(_deployment(a)))
    finally:
        end([*a.processes, *b.processes])


def _set_up(org: Organisation) -> None:
    """A work pool, a worker of ours, and a deployment."""
    asyncio.run(_make_pool(org))
    org.start(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL[org.name], "--type", "tao-process")
    with temporary_settings({PREFECT_API_URL: org.api_url}):
        asyncio.run(deploy(Wanted(f"{FLOWS / 'carried.py'}:carried", (POOL[org.name],))))


def _healthy(org: Organisation) -> None:
    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{org.api_url}/health", timeout=2):
            return True
        return False

    wait_until(answers, org.said)


async def _make_pool(org: Organisation) -> None:
    async with org.client() as client:
        await client.create_work_pool(WorkPoolCreate(name=POOL[org.name], type="tao-process"), overwrite=True)


async def _deployment(org: Organisation) -> UUID:
    async with org.client() as client:
        return (await client.read_deployment_by_name(f"carried/tao@{POOL[org.name]}")).id


def test_a_run_goes_to_a_trusted_partner_and_its_record_comes_back_verified(two: Two) -> None:
    run = two.run("well")
    two.until(lambda: two.read(two.a, run.id).state_name in {REROUTED, "Completed"}, "the run to be sent")
    ended = two.ended(run, "Completed")
    assert ended.state is not None
    assert ended.state.data is not None, "the reference to the result came back"
    (there,) = two.runs_at_b()
    assert (there.name, there.parameters) == (run.name, {"how": "well"})
    assert set(there.tags) == {"tao-flows:substitute", "tao-flows:for=org-a", *_of_deployment(there)}
    two.b.tao_flows("pools", "publish", "--out", str(two.b.published))
    task, incidents = two.claim(run)
    assert not incidents
    assert (task.pool, task.method, task.key.instance) == ("green@org-b", METHOD, str(there.id))
    figure = task.measurement.energy
    assert all(source.startswith("claim of org-b") for source in figure.sources)
    published = json.loads(two.b.tao_flows("report", str(there.id), "--json"))
    assert figure.value_j is not None
    assert figure.value_j >= published["energy"]["value_j"], "with the flow's own code"
    assert "claim of org-b" in two.a.tao_flows("report", str(run.id), "--json")


def _of_deployment(run: FlowRun) -> set[str]:
    """Tags that the partner's own deployment gave it."""
    return {tag for tag in run.tags if tag.startswith("tao:")}


def test_a_run_that_is_cancelled_at_home_is_cancelled_at_the_partner(two: Two) -> None:
    run = two.run("slow")

    def there() -> FlowRun | None:
        found = [each for each in two.runs_at_b() if each.name == run.name]
        return found[0] if found and found[0].state_name == "Running" else None

    partners_run = two.until(there, "the run to run at the partner")
    said = two.read(two.a, run.id).state
    assert said is not None
    assert "waits for carried/tao@green at org-b" in (said.message or "")

    async def cancel() -> None:
        async with two.a.client() as client:
            await client.set_flow_run_state(run.id, Cancelling())

    asyncio.run(cancel())
    two.ended(run, "Cancelled")
    two.until(lambda: two.read(two.b, partners_run.id).state_name == "Cancelled", "its end at the partner")


def test_what_is_tampered_unknown_rolled_back_or_expired_is_refused_and_the_run_stays_home(two: Two) -> None:
    published = two.b.published / "pools.jsonl"
    old = published.read_bytes()

    def refused() -> list[str]:
        said = json.loads(two.a.tao_flows("pools", "fetch", "--json", status=1))
        return [each["code"] for each in said["partners"][0]["refused"]]

    published.write_bytes(old.replace(b"A", b"B", 1))
    assert refused() in (["PARTNER_MALFORMED"], ["PARTNER_BAD_SIGNATURE"])
    published.unlink()
    two.b.tao_flows("keys", "new", "--out", str(two.b.folder / "stranger"))
    two.b.offer("--key", str(two.b.folder / "stranger" / "signing.key"))
    assert set(refused()) == {"PARTNER_UNKNOWN_KEY"}
    for path in (published, two.b.published / "heads.dsse.json"):
        path.unlink()
    two.b.offer("--valid-for", "15s")
    two.a.tao_flows("pools", "fetch")
    published.write_bytes(old)
    assert refused() == ["PARTNER_ROLLBACK"]

    def standing() -> str:
        (shown,) = json.loads(two.a.tao_flows("pools", "ls", "--json"))["partners"]
        return str((shown["refused"] or {}).get("code"))

    two.until(lambda: standing() == "PARTNER_EXPIRED", "the offer to end")
    time.sleep(KEPT_S)
    before = len(two.runs_at_b())
    run = two.run("well")
    assert two.ended(run, "Completed").run_count == 1, "it ran here"
    assert len(two.runs_at_b()) == before


def test_a_run_at_a_partner_that_falls_silent_is_given_up_when_the_settings_say_and_is_not_run_twice(two: Two) -> None:
    settings = two.a.folder / "tao-flows.toml"
    settings.write_text(settings.read_text() + 'give_up_after = "5s"\n')
    two.b.offer()
    two.a.tao_flows("pools", "fetch")
    server, worker = two.b.processes
    end([worker])  # what is there waits there
    time.sleep(KEPT_S + 1)
    run = two.run("well")
    two.until(lambda: [each for each in two.runs_at_b() if each.name == run.name], "the run at the partner")
    end([server])
    ended = two.ended(run, "Crashed")
    assert ended.state is not None
    assert "nothing has been heard of the run at org-b" in (ended.state.message or "")
    assert ended.run_count == 0, "it did not run here"
