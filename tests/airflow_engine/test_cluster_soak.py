"""Runs of all kinds while whatever they stand on is killed: no task is lost, doubled, or failed by us.

A minute here; ``make soak`` runs an hour. Airflow's own database stays up: without it there is no Airflow.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest
from cluster import Cluster
from postgres_server import PostgresServer, find_binaries
from soaking import OPEN, SEED, SOAK_S, check_ledger, ours_raised, soak
from test_cluster_deciding import assert_each_try_once, deciding_cluster, grams, until

from airflow_plugin.facts import run_ref
from tao_flows.ledger import open_ledger

pytestmark = pytest.mark.airflow

KILLED = ("scheduler", "triggerer", "dag-processor", "normal", "green")
DAGS = ("many", "patient", "resumes")


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """Where the ledger is kept."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs the programs of PostgreSQL: apt install postgresql")
    server = PostgresServer(binaries, fsync="on", synchronous_commit="on")
    yield server
    server.stop()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, database: PostgresServer) -> Iterator[Cluster]:
    with deciding_cluster(tmp_path_factory.mktemp("soak"), ledger_server=database) as made:
        yield made


def test_no_task_is_lost_doubled_or_failed_by_us_whatever_is_killed(cluster: Cluster, database: PostgresServer) -> None:
    rng, runs = random.Random(SEED), list[tuple[str, str]]()

    def work(number: int) -> None:
        dag_id = DAGS[number % len(DAGS)]
        runs.append((dag_id, cluster.trigger(dag_id)))

    def kill(name: str) -> None:
        cluster.kill(name, signal.SIGKILL)
        time.sleep(rng.uniform(0, 3))
        cluster.begin(name)

    def restart_database() -> None:
        database.halt(signal.SIGQUIT)
        database.start()

    def lose_signals() -> None:
        for pool in ("normal", "green", "local"):
            (cluster.home / f"{pool}.csv").write_text("not a signal any more\n")

    def change_signals() -> None:
        better_in_s = rng.choice([None, 60.0])
        grams(
            cluster, better_in_s=better_in_s, **{pool: rng.choice([20, 500]) for pool in ("normal", "green", "local")}
        )

    troubles: dict[str, Callable[[], None]] = {
        **{f"kill the {name}": partial(kill, name) for name in KILLED},
        "kill the ledger's server": restart_database,
        "lose the signals": lose_signals,
        "change the signals": change_signals,
    }
    had = soak(work, troubles, most_rest_s=min(12.0, SOAK_S / 8))
    grams(cluster, normal=20, green=20, local=20)
    ends = {run: cluster.wait(*run, timeout_s=420) for run in runs}
    print(dict(had), len(runs))
    assert {run: end for run, end in ends.items() if end != "success"} == {}
    with closing(open_ledger(cluster.ledger_url)) as ledger:
        refs = [run_ref(dag_id, run_id, "default") for dag_id, run_id in runs]
        until(lambda: not [task for ref in refs for task in ledger.tasks(ref) if task.state in OPEN])
        until(lambda: all(run.state != "running" for run in ledger.runs()))
        check_ledger(ledger, [run_id for _, run_id in runs], "many")
        for dag_id, run_id in runs:
            if dag_id == "many":
                assert_each_try_once(cluster, ledger, run_id)
    assert ours_raised(path.read_text(errors="replace") for path in cluster.home.glob("**/*.log")) == []
    assert set(had) == set(troubles)
