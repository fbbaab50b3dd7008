"""The real Docker worker with our mixin, before a daemon that runs no containers but processes: which it creates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deferring import Site
from docker_server import Daemon, docker_daemon
from launching import (
    Launcher,
    see_a_run_start_at_once,
    see_a_run_wait_and_start,
    see_that_in_a_pool_of_the_stock_type_it_is_as_by_the_stock_worker,
    set_up,
    template,
)
from prefect.workers.base import BaseWorker


@pytest.fixture
def site(server: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    assert server
    made = Site(tmp_path_factory.mktemp("docker"), f"pool-{request.node.name[:40]}")
    yield made
    made.close()


@pytest.fixture
def daemon(site: Site) -> Iterator[Daemon]:
    with docker_daemon(site.folder) as made:
        yield made


@pytest.fixture
def launcher(daemon: Daemon) -> Launcher:
    return Launcher("docker", {"DOCKER_HOST": daemon.url}, daemon.created, _run_id)


def test_no_container_is_created_while_a_run_waits_and_one_when_the_power_is_clean(
    site: Site, daemon: Daemon, launcher: Launcher
) -> None:
    waits, plain = set_up(site, "tao-docker")
    stock = BaseWorker.get_worker_class_from_type("docker")
    assert stock is not None
    assert template(site.pool) == stock.get_default_base_job_template()
    worker = launcher.worker(site, "tao-docker")
    see_a_run_wait_and_start(launcher, site, worker, waits, plain)
    assert len(daemon.started) == len(daemon.created)
    assert daemon.unanswered == []


def test_in_a_pool_of_the_stock_type_the_container_is_the_one_of_the_stock_worker(
    site: Site, launcher: Launcher
) -> None:
    see_that_in_a_pool_of_the_stock_type_it_is_as_by_the_stock_worker(launcher, site)


def test_without_its_ledger_a_container_is_created_as_by_the_stock_worker(site: Site, launcher: Launcher) -> None:
    waits, _ = set_up(site, "tao-docker")
    blocked = site.folder / "blocked"
    blocked.write_text("")
    worker = launcher.worker(site, "tao-docker", {"TAO_FLOWS_LEDGER": f"sqlite:///{blocked}/ledger.db"})
    see_a_run_start_at_once(launcher, site, worker, waits)
    assert worker.stop() == 0


def _run_id(container: dict[str, Any]) -> str:
    return str(container["Labels"]["io.prefect.flow-run-id"])
