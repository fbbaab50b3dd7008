"""What people and servers do to flow runs that wait: deleted, cancelled, forced, rescheduled, paused, limited.

One worker has them all at once; each run ends as its user would expect, once or never, and nothing waits at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from uuid import UUID

import pytest
from deferring import WAITS, Site, Started, all_are, names, read, until
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Scheduled
from soaking import ours_raised


@pytest.fixture(scope="module")
def site(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert server
    made = Site(tmp_path_factory.mktemp("interference"), "interfered")
    yield made
    made.close()


@pytest.fixture(scope="module")
def deployment(site: Site) -> UUID:
    return site.set_up(kind="tao-process")


@pytest.fixture(scope="module")
def worker(site: Site, deployment: UUID) -> Started:
    assert deployment
    started = site.worker()
    until(lambda: "started!" in started.said(), "the worker", started)
    return started


@pytest.fixture
def waiting(site: Site, deployment: UUID, worker: Started) -> Iterator[list[UUID]]:
    """Three runs that wait; afterwards nothing does, and no code of ours has raised."""
    site.signal((-60, 500.0), (60, 20.0), (180, 500.0))
    ids = site.create(deployment, 3)
    until(lambda: all_are(ids, "Deferred"), "all wait", worker)
    yield ids
    until(lambda: site.waiting() == 0, "nothing to wait any more", worker)
    assert ours_raised([worker.said()]) == []
    site.clear()


def set_state(run_id: UUID, state: object, *, force: bool = False) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, state, force=force)  # type: ignore[arg-type]


def test_a_run_that_is_deleted_while_it_waits_is_gone_and_the_others_run(
    site: Site, worker: Started, waiting: list[UUID]
) -> None:
    deleted, *others = waiting
    with get_client(sync_client=True) as client:
        client.delete_flow_run(deleted)
    site.created.remove(deleted)
    site.flip()
    until(lambda: all_are(others, "Completed"), "the others to be done", worker)
    assert site.ran(waiting) == {deleted: 0, **dict.fromkeys(others, 1)}


def test_a_run_that_is_ended_by_hand_while_it_waits_stays_so(site: Site, worker: Started, waiting: list[UUID]) -> None:
    cancelled, completed, rescheduled = waiting
    set_state(cancelled, Cancelled())
    set_state(completed, Completed(), force=True)
    set_state(rescheduled, Scheduled(scheduled_time=datetime.now(timezone.utc)), force=True)
    until(lambda: all_are([rescheduled], "Completed"), "what was rescheduled to be done", worker)
    until(lambda: site.waiting() == 0, "nothing to wait any more", worker)
    site.flip()
    assert names([cancelled, completed]) == {"Cancelled": 1, "Completed": 1}
    assert site.ran(waiting) == {cancelled: 0, completed: 0, rescheduled: 1}


def test_runs_of_a_paused_pool_start_when_it_is_resumed(site: Site, worker: Started, waiting: list[UUID]) -> None:
    with get_client(sync_client=True) as client:
        client.update_work_pool(site.pool, WorkPoolUpdate(is_paused=True))
        try:
            site.flip()
            until(lambda: site.waiting() == 0, "their wait to be over", worker)
            assert site.ran(waiting) == dict.fromkeys(waiting, 0)
        finally:
            client.update_work_pool(site.pool, WorkPoolUpdate(is_paused=False))
    until(lambda: all_are(waiting, "Completed"), "all to be done", worker)
    assert set(site.ran(waiting).values()) == {1}


def test_runs_that_come_due_together_under_a_concurrency_limit_each_run_once(site: Site, worker: Started) -> None:
    limited = site.deploy("limited", WAITS)
    with get_client(sync_client=True) as client:
        client.request("PATCH", "/deployments/{id}", path_params={"id": limited}, json={"concurrency_limit": 1})
    site.signal((-60, 500.0), (60, 20.0), (180, 500.0))
    ids = site.create(limited, 3)
    until(lambda: all_are(ids, "Deferred"), "all wait", worker)
    site.flip()
    until(lambda: all_are(ids, "Completed"), "all to be done", worker, patience_s=240.0)
    assert set(site.ran(ids).values()) == {1}
    until(lambda: site.waiting() == 0, "nothing to wait any more", worker)
    assert ours_raised([worker.said()]) == []
    site.clear()


def test_settings_that_break_while_runs_wait_are_told_and_the_last_good_ones_hold(
    site: Site, worker: Started, waiting: list[UUID]
) -> None:
    settings = site.folder / "tao-flows.toml"
    good = settings.read_text()
    settings.write_text("mode = [not toml")
    try:
        site.flip()
        until(lambda: all_are(waiting, "Completed"), "all to be done", worker)
    finally:
        settings.write_text(good)
    assert set(site.ran(waiting).values()) == {1}


def test_a_deployment_that_is_deleted_takes_its_waiting_runs_along_and_no_others(
    site: Site, worker: Started, waiting: list[UUID]
) -> None:
    doomed = site.deploy("doomed", WAITS)
    ids = site.create(doomed, 2)
    until(lambda: all_are(ids, "Deferred"), "those wait, too", worker)
    with get_client(sync_client=True) as client:
        client.delete_deployment(doomed)
        with pytest.raises(ObjectNotFound):
            client.read_deployment(doomed)
    left = [run.id for run in read(ids)]
    site.created[:] = [run_id for run_id in site.created if run_id not in ids or run_id in left]
    site.flip()
    until(lambda: all_are(waiting, "Completed"), "the others to be done", worker)
    until(lambda: site.waiting() == 0, "nothing to wait any more", worker)
    assert max(site.ran(ids).values()) <= 1
