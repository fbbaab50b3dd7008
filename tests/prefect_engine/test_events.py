"""What automations hear of us, and the example that pauses a work pool, on a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from nightly import nightly, release_when_waiting, settings
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from support import artifacts_of, burn, only_run, ref

from tao_flows import runtime, tao_flow, tao_task
from tao_flows.ledger.base import Ledger
from tao_flows.prefect import events, progress

EXAMPLE = Path(__file__).parents[2] / "examples" / "prefect" / "pause_pool_in_inversion.py"
STARTED = datetime.now(timezone.utc)


def heard(server: str, name: str, **labels: str) -> list[dict[str, Any]]:
    """The events of a name that the server has, with those labels on their resource."""
    since = (STARTED - timedelta(minutes=1)).isoformat()
    asked = {"filter": {"event": {"name": [name]}, "occurred": {"since": since}}, "limit": 50}
    found = httpx.post(f"{server}/events/filter", json=asked, timeout=30).json()["events"]
    return [event for event in found if labels.items() <= event["resource"].items()]


def until(seen: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    give_up_s = time.monotonic() + timeout_s
    while not (found := seen()):
        assert time.monotonic() < give_up_s, f"never seen: {what}"
        time.sleep(0.2)
    return found


def work_pool(name: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_work_pool(name)


def test_a_pool_is_paused_in_inversion_and_resumed_once_it_is_quiet(
    server: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    budget = f"tiny-{uuid4().hex[:8]}"
    expected = "energy_j = { low = 1, mean = 2, high = 3 }\nruntime_s = { p50 = 1, p95 = 2 }\n"
    (tmp_path / "pools.toml").write_text(f'[[pools]]\npool_id = "local"\n{expected}')
    (tmp_path / "settings.toml").write_text(f'pools = "pools.toml"\n[budgets.{budget}]\nlimit = "0.001 J"\n')
    monkeypatch.setenv("TAO_FLOWS_CONFIG", str(tmp_path / "settings.toml"))
    with get_client(sync_client=True) as client:
        pool = client.create_work_pool(WorkPoolCreate(name=f"pool-{budget}", type="process"))
    command = [sys.executable, str(EXAMPLE), pool.name, budget, "--quiet", "10"]
    for _ in range(2):  # a second time it replaces them
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    with get_client(sync_client=True) as client:
        assert len([each for each in client.read_automations() if pool.name in each.name]) == 2
    time.sleep(2)  # the server's triggers take up new automations a moment later

    @tao_task(budget=budget)
    def tiny() -> None:
        burn(0.05)

    @tao_flow(name="over the limit")
    def over() -> None:
        tiny()
        tiny()

    over()
    until(lambda: work_pool(pool.name).is_paused, "the pool paused")
    (event,) = heard(server, "tao.budget.regime", **{"prefect.resource.name": budget})
    assert event["resource"]["tao.regime"] == "inversion"
    assert event["payload"]["budget"] == budget
    assert f"prefect.flow-run.{only_run(ledger).run_id}" in {each["prefect.resource.id"] for each in event["related"]}
    until(lambda: not work_pool(pool.name).is_paused, "the pool resumed")


def test_a_task_that_waits_is_told_of_and_its_page_shows_what_was_weighed(
    server: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "EVERY_S", 0.2)
    runtime.forget()
    releasing = release_when_waiting(ledger, after_s=2.0)
    assert nightly() == 6
    releasing.join()
    run = only_run(ledger)
    (event,) = until(
        lambda: [
            each
            for each in heard(server, "tao.task.deferred")
            if f"prefect.flow-run.{run.run_id}" in {r["prefect.resource.id"] for r in each["related"]}
        ],
        "the event",
    )
    assert event["resource"]["prefect.resource.id"].startswith("prefect.task-run.")
    assert event["resource"]["tao.pool"] == "local"
    assert event["payload"]["latest_start"]
    assert event["payload"]["reason"]
    page = str(artifacts_of(run.run_id)["tao-energy-nightly"][-1])
    assert "### When it ran" in page
    assert "### What was weighed" in page
    assert "train: defer" in page
    assert "**chosen**" in page
    assert "dominated" in page or "behind" in page, "the candidates that lost are there too"
    assert "### Budgets, at the end of this run" in page
    assert "| night | standard |" in page
    (decision, *_) = [each for each in ledger.decisions(ref(run)) if each.action == "defer"]
    assert decision.enforced
    with get_client(sync_client=True) as client:
        shown = [
            each
            for each in client.read_artifacts(limit=50)
            if each.type == "progress" and str(each.flow_run_id) == run.run_id
        ]
    assert len(shown) == 1, "one for the run, however often it is written"
    assert "put off" in shown[0].description or "Nothing waits" in shown[0].description


def test_no_more_events_are_emitted_for_a_run_than_is_stated(server: str, ledger: Ledger) -> None:
    decision = decision_of(uuid4().hex)
    for _ in range(events.MOST + 5):
        events.decided(runtime_tao(), decision, events.related_of(SimpleNamespace(id=uuid4(), flow_id=uuid4())))
    name = decision.key.task
    until(lambda: len(heard(server, "tao.task.denied", **{"prefect.resource.name": name})) >= events.MOST, "them all")
    time.sleep(1)
    assert len(heard(server, "tao.task.denied", **{"prefect.resource.name": name})) == events.MOST


def test_an_event_that_cannot_be_emitted_is_noted_and_nothing_else(ledger: Ledger) -> None:
    tao = runtime_tao()
    broken = decision_of(uuid4().hex, answer=None)
    events.decided(tao, broken)
    assert any("event" in incident.summary for incident in tao.incidents.of_run(broken.key.run_id))


def runtime_tao() -> Any:
    from tao_flows.prefect.settings import tao_here

    tao = tao_here()
    assert tao is not None
    return tao


def decision_of(task: str, answer: Any = {}) -> Any:  # noqa: B006 - it is only read
    from tao_flows.records import DecisionRecord, RunKey

    key = RunKey("prefect", "default", "flow", str(uuid4()), task, str(uuid4()), 1)
    return DecisionRecord(key, time.time_ns(), "enforce", "deny", "local", "too dear", {}, answer, enforced=True)
