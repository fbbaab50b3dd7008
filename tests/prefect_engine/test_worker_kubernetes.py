"""The real Kubernetes worker with our mixin, before an API server that runs no pods but processes: what jobs it creates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deferring import Site
from kubernetes_server import Cluster, kubernetes
from launching import (
    Launcher,
    see_a_run_start_at_once,
    see_a_run_wait_and_start,
    see_that_in_a_pool_of_the_stock_type_it_is_as_by_the_stock_worker,
    set_up,
    template,
)
from prefect.workers.base import BaseWorker
from proxy import proxy_before


@pytest.fixture
def site(server: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    assert server
    made = Site(tmp_path_factory.mktemp("kubernetes"), f"pool-{request.node.name[:40]}")
    yield made
    made.close()


@pytest.fixture
def cluster(site: Site) -> Iterator[Cluster]:
    with kubernetes(site.folder) as made:
        yield made


@pytest.fixture
def launcher(cluster: Cluster) -> Launcher:
    return Launcher("kubernetes", {"KUBECONFIG": str(cluster.kubeconfig)}, cluster.created, _run_id)


def test_no_job_is_created_while_a_run_waits_and_one_when_the_power_is_clean(
    site: Site, cluster: Cluster, launcher: Launcher
) -> None:
    waits, plain = set_up(site, "tao-kubernetes")
    stock = BaseWorker.get_worker_class_from_type("kubernetes")
    assert stock is not None
    assert template(site.pool) == stock.get_default_base_job_template()
    worker = launcher.worker(site, "tao-kubernetes")
    assert "mismatch" not in worker.said()
    see_a_run_wait_and_start(launcher, site, worker, waits, plain)
    assert cluster.unanswered == []


def test_in_a_pool_of_the_stock_type_the_job_is_the_one_of_the_stock_worker(site: Site, launcher: Launcher) -> None:
    see_that_in_a_pool_of_the_stock_type_it_is_as_by_the_stock_worker(launcher, site)


def test_where_our_calls_fail_a_job_is_created_as_by_the_stock_worker(
    site: Site, server: str, launcher: Launcher
) -> None:
    waits, _ = set_up(site, "tao-kubernetes")
    with proxy_before(server) as proxy:
        # What a stock worker does not ask.
        proxy.refuse = lambda path: path.endswith(("/flows/filter", "/flow_runs/filter"))
        # The observer needs a websocket, which the proxy does not pass on.
        env = {"PREFECT_API_URL": proxy.url, "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false"}
        worker = launcher.worker(site, "tao-kubernetes", env)
        see_a_run_start_at_once(launcher, site, worker, waits)
        assert proxy.count("/flows/filter") or proxy.count("/flow_runs/filter")
        assert worker.stop() == 0


def _run_id(job: dict[str, Any]) -> str:
    return str(job["metadata"]["labels"]["prefect.io/flow-run-id"])
