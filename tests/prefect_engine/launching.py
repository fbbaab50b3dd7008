"""What is to be seen of a worker that starts each flow run in something of its own, such as a job or a container."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from deferring import Site, Started, all_are, read, until
from prefect.client.orchestration import get_client

PATIENCE_S = 240.0
"""For a run to start and end: a worker, Prefect's client and its flow are each started anew."""


@dataclass(frozen=True)
class Launcher:
    """A kind of worker, and the fake that it starts flow runs by."""

    kind: str
    env: Mapping[str, str]
    created: Sequence[Any]
    """What was created, as it was asked for, oldest first."""
    run_id: Callable[[Any], str]
    """The flow run that something was created for."""

    def created_for(self, runs: Sequence[UUID]) -> list[int]:
        """How many were created for each run."""
        made = [self.run_id(each) for each in self.created]
        return [made.count(str(run)) for run in runs]

    def worker(self, site: Site, kind: str, env: Mapping[str, str] | None = None) -> Started:
        """Starts a worker, always of the same name."""
        started = site.worker(kind, "--name", "the-worker", env={**self.env, **(env or {})})
        until(lambda: "started!" in started.said(), "the worker", started, patience_s=PATIENCE_S)
        return started


def set_up(site: Site, kind: str) -> tuple[UUID, UUID]:
    """A pool of a type, made as its user makes it; a deployment whose runs may wait, and one whose runs do not."""
    command = [sys.executable, "-m", "prefect", "work-pool", "create", site.pool, "--type", kind]
    said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert said.returncode == 0, said.stdout + said.stderr
    return site.set_up(kind=None), site.deploy("plain")


def template(pool: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        return dict(client.read_work_pool(pool).base_job_template)


def see_a_run_wait_and_start(launcher: Launcher, site: Site, worker: Started, waits: UUID, plain: UUID) -> None:
    """One that need not wait is started at once, and for one that waits there is nothing until the power is clean."""
    waiting, at_once = site.create(waits, 1), site.create(plain, 1)
    until(lambda: all_are(waiting, "Deferred"), "one waits", worker, patience_s=PATIENCE_S)
    until(lambda: all_are(at_once, "Completed"), "the other runs", worker, patience_s=PATIENCE_S)
    assert all_are(waiting, "Deferred")
    assert launcher.created_for(waiting + at_once) == [0, 1]
    site.flip()
    until(lambda: all_are(waiting, "Completed"), "it runs, the power being clean", worker, patience_s=PATIENCE_S)
    assert launcher.created_for(waiting + at_once) == [1, 1]
    assert set(site.ran(waiting + at_once).values()) == {1}
    assert site.waiting() == 0


def see_that_in_a_pool_of_the_stock_type_it_is_as_by_the_stock_worker(launcher: Launcher, site: Site) -> None:
    """Our worker defers there too, and creates what the stock worker creates."""
    waits, plain = set_up(site, launcher.kind)
    ours = launcher.worker(site, f"tao-{launcher.kind}")
    waiting = site.create(waits, 1)
    until(lambda: all_are(waiting, "Deferred"), "one waits", ours, patience_s=PATIENCE_S)
    created = see_a_run_start_at_once(launcher, site, ours, plain)
    assert launcher.created_for(waiting) == [0]
    assert ours.stop() == 0
    stock = launcher.worker(site, launcher.kind)
    assert without_names(launcher, see_a_run_start_at_once(launcher, site, stock, plain)) == without_names(
        launcher, created
    )
    assert all_are(waiting, "Deferred")


def see_a_run_start_at_once(launcher: Launcher, site: Site, worker: Started, deployment: UUID) -> Any:
    """What is created for a run that is started as by a stock worker."""
    before = len(launcher.created)
    ids = site.create(deployment, 1)
    until(lambda: all_are(ids, "Completed"), "it runs", worker, patience_s=PATIENCE_S)
    assert launcher.created_for(ids) == [1]
    assert len(launcher.created) == before + 1
    return launcher.created[-1]


def without_names(launcher: Launcher, created: Any) -> Any:
    """What was created, the names of its flow run put away."""
    run_id = launcher.run_id(created)
    (run,) = read([UUID(run_id)])
    said = json.dumps(created)
    for own, common in ((run_id, "RUN_ID"), (run.name, "RUN_NAME")):
        assert own in said
        said = said.replace(own, common)
    return json.loads(said)
