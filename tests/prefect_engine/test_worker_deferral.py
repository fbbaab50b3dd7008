"""Flow runs that wait without a process, under real workers: brought forward, released, killed around, started in time."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest
from deferring import TAO_FLOWS, Site, Started, all_are, flow_processes, names, read, states, until
from prefect.client.orchestration import get_client
from prefect.states import Scheduled
from prefect.workers.base import BaseWorker

from tao_flows.ledger.base import RunRef

HANDED = {"Scheduled", "Pending", "Submitting", "InfrastructurePending", "Running", "Completed"}


@pytest.fixture
def site(server: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    assert server
    made = Site(tmp_path_factory.mktemp("worker"), f"pool-{request.node.name[:40]}")
    yield made
    made.close()


def begun(worker: Started) -> Started:
    until(lambda: "started!" in worker.said(), "the worker", worker)
    return worker


def handed_on(ids: list[UUID]) -> bool:
    return set(names(ids)) <= HANDED


def test_runs_wait_without_a_process_through_the_death_of_their_worker_and_each_runs_once(site: Site) -> None:
    deployment = site.set_up(kind="tao-process")
    worker = begun(site.worker())
    ids = site.create(deployment, 5)
    until(lambda: all_are(ids, "Deferred"), "all wait", worker)
    assert flow_processes(ids) == []
    worker.kill()
    assert all_are(ids, "Deferred"), "without any of us they wait on, in the server"
    released, *others = ids
    said = subprocess.run([TAO_FLOWS, "release", str(released)], env=site.env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    worker = begun(site.worker())
    until(lambda: handed_on([released]), "the released run", worker)
    assert all_are(others, "Deferred")
    assert not set(flow_processes(others))
    at = site.flip()
    until(lambda: handed_on(others), "the others, the power being clean", worker)
    assert time.time() - at < 15
    until(lambda: all_are(ids, "Completed"), "all to be done", worker)
    assert set(site.ran(ids).values()) == {1}
    assert site.waiting() == 0
    with site.ledger() as ledger:
        kept = {(row.key.task, row.action) for run in ids for row in ledger.decisions(_ref(run))}
    assert {("", "defer"), ("", "release")} <= kept


def test_with_nothing_of_ours_left_a_stock_worker_starts_a_run_at_its_planned_start(site: Site) -> None:
    deployment = site.set_up()
    worker = begun(site.worker())
    (run_id,) = ids = site.create(deployment, 1)
    until(lambda: all_are(ids, "Deferred"), "it waits", worker)
    (waiting,) = read(ids)
    worker.kill()
    planned = waiting.next_scheduled_start_time
    assert planned is not None
    assert timedelta(minutes=50) < planned - datetime.now(timezone.utc) < timedelta(minutes=70)
    # An hour is long for a test: the planned start comes sooner.
    planned = datetime.now(timezone.utc) + timedelta(seconds=15)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Scheduled(name="Deferred", scheduled_time=planned))
    stock = begun(site.worker("process"))
    until(lambda: all_are(ids, "Completed"), "it runs", stock)
    (done,) = read(ids)
    assert done.start_time is not None
    assert done.start_time >= planned - timedelta(seconds=1.5), "not before its time"
    assert site.ran(ids) == {run_id: 1}
    assert [state.name for state in states(run_id)].count("Running") == 1


def test_a_worker_without_its_ledger_runs_what_it_is_given(site: Site) -> None:
    deployment = site.set_up(kind="tao-process")
    blocked = site.folder / "blocked"
    blocked.write_text("")
    worker = begun(site.worker(env={"TAO_FLOWS_LEDGER": f"sqlite:///{blocked}/ledger.db"}))
    ids = site.create(deployment, 1)
    until(lambda: all_are(ids, "Completed"), "it runs", worker)
    worker.process.send_signal(signal.SIGINT)
    assert worker.process.wait(180) == 0


def test_workers_of_other_kinds_are_made_of_their_own_classes() -> None:
    for kind in ("process", "kubernetes", "docker"):
        stock, ours = (BaseWorker.get_worker_class_from_type(name) for name in (kind, f"tao-{kind}"))
        assert stock is not None
        assert ours is not None
        assert issubclass(ours, stock)
        assert ours.get_default_base_job_template() == stock.get_default_base_job_template()


def _ref(run_id: UUID) -> RunRef:
    return RunRef("prefect", "default", str(run_id))
