"""The controller process beside stock workers: it defers before they pick up, several at once, whatever the API does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from deferring import TAO_FLOWS, Site, all_are, flow_processes, names, states, until
from prefect.client.orchestration import get_client
from proxy import proxy_before

from tao_flows.prefect.desk import LOOK_S

HANDED = {"Scheduled", "Pending", "Submitting", "Running", "Completed"}


@pytest.fixture
def site(server: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    assert server
    made = Site(tmp_path_factory.mktemp("controller"), f"pool-{request.node.name[:40]}")
    yield made
    made.close()


def handed_on(ids: list[UUID]) -> bool:
    return set(names(ids)) <= HANDED


def test_two_controllers_defer_what_a_stock_worker_would_take_and_nothing_runs_twice(site: Site, server: str) -> None:
    deployment = site.set_up()
    with proxy_before(server) as proxy:
        one, two = site.controller(env={"PREFECT_API_URL": proxy.url}), site.controller()
        worker = site.worker("process")
        # Due later than a worker looks ahead.
        ids = site.create(deployment, 4, in_s=15)
        until(lambda: all_are(ids, "Deferred"), "all wait", one, two)
        until(lambda: "started!" in worker.said(), "the worker", worker)
        time.sleep(16)
        assert all_are(ids, "Deferred")
        assert flow_processes(ids) == []

        # One of them is told to leave the API alone while the power becomes clean, and the other is killed.
        two.kill()
        proxy.refuse, proxy.retry_after = lambda path: True, "4"
        until(lambda: any(status == 503 for *_, status in proxy.seen), "a 503", one)
        refused_s = time.time()
        at = site.flip()
        time.sleep(3.5)
        assert proxy.count(since_s=refused_s + 0.5) == 0, "it was asked to wait for 4 s"
        proxy.refuse = lambda path: False
        until(lambda: handed_on(ids), "all to be brought forward", one)
        assert time.time() - at < 15
        until(lambda: all_are(ids, "Completed"), "all to be done", one, worker)
        assert set(site.ran(ids).values()) == {1}
        until(lambda: site.waiting() == 0, "the ledger to know", one)
        for run_id in ids:
            assert [state.name for state in states(run_id)].count("Running") == 1
        assert proxy.count("set_state") <= 2 * 2 * len(ids)
        assert one.stop() == 0
        assert "Traceback" not in one.said()


def test_a_controller_asks_for_what_is_due_and_for_little_else_while_nothing_waits(site: Site, server: str) -> None:
    site.set_up()
    with proxy_before(server) as proxy:
        controller = site.controller(env={"PREFECT_API_URL": proxy.url})
        begun_s = time.time()
        time.sleep(12)
        asked = proxy.count(since_s=begun_s)
        took_s = time.time() - begun_s
        # One call a look, and up to 6 more every 10 s for runs elsewhere and suspended ones.
        assert asked <= took_s / LOOK_S + 6 * (took_s / 10 + 1)
        assert controller.stop() == 0


def test_a_push_pool_is_deferred_by_the_controller_alone(site: Site) -> None:
    deployment = site.set_up(kind="modal:push")
    controller = site.controller()
    ids = site.create(deployment, 1, in_s=20)
    until(lambda: all_are(ids, "Deferred"), "it waits", controller)
    site.flip()
    until(lambda: all_are(ids, "Scheduled"), "it is brought forward", controller)
    with get_client(sync_client=True) as client:
        client.delete_flow_run(ids[0])


@pytest.mark.parametrize("arguments", [[], ["--prefect", "--poll"]])
def test_what_it_is_to_control_must_be_said(arguments: list[str]) -> None:
    said = subprocess.run(
        [TAO_FLOWS, "controller", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert said.returncode == 2
    assert len(said.stderr.splitlines()) == 1
