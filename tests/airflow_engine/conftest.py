"""An Airflow home with a database for tests in this process, and a whole Airflow for those that need one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

HOME = tempfile.mkdtemp(prefix="tao-flows-airflow-")
DAGS = Path(HOME, "dags")
DAGS.mkdir()
# Airflow reads its settings when it is imported, which is after this.
for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
    del os.environ[name]
os.environ.update(
    {
        "AIRFLOW_HOME": HOME,
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # Airflow 3.0 puts what it logs among what its commands print.
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
)

from cluster import Cluster  # noqa: E402 - after the settings
from in_process import Outcome, run_task  # noqa: E402
from postgres_server import PostgresServer, running_server  # noqa: E402

from tao_flows import runtime  # noqa: E402
from tao_flows.ledger import open_ledger  # noqa: E402
from tao_flows.ledger.base import Ledger  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples/airflow/dags"


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An engine's own warnings are its makers' to mend; ours stay errors. What needs the cluster is marked so."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if "cluster" in getattr(item, "fixturenames", ()):
                item.add_marker("cluster")
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.filterwarnings("error:::tao_flows"))
            item.add_marker(pytest.mark.filterwarnings("error:::airflow_plugin"))


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """Airflow's database, on SQLite, for what this process does with it."""
    done = subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """This test's own ledger, which the adapter in this process writes to."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("TAO_FLOWS_LEDGER", url)
    runtime.forget()
    opened = open_ledger(url)
    yield opened
    opened.close()
    runtime.forget()


@pytest.fixture
def run_here(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a task of a DAG's source, ``run_here(source, task_id, ...)``, as a task process would, in this one."""
    return lambda source, task_id, **how: run_task(DAGS, source, task_id, **how)


@pytest.fixture(scope="module")
def ledger_server() -> Iterator[PostgresServer]:
    """The server of the cluster's ledger alone: it can be halted while Airflow's own database goes on."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ledger_server: PostgresServer) -> Iterator[Cluster]:
    """A whole Airflow with both executors ours, Celery workers on the queues ``normal`` and ``green``, and examples.

    A module that needs other DAGs or settings has a fixture of this name: there is only ever one that runs.
    """
    try:
        made = Cluster(
            tmp_path_factory.mktemp("cluster"),
            dags=gathered_dags(tmp_path_factory.mktemp("cluster-dags")),
            env={"AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2"},
            ledger_server=ledger_server,
        )
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    with made:
        yield made


@pytest.fixture
def cluster_ledger(cluster: Cluster) -> Iterator[Ledger]:
    """The ledger that the cluster's processes write to."""
    opened = open_ledger(cluster.ledger_url)
    yield opened
    opened.close()


def gathered_dags(folder: Path) -> Path:
    """The folder with links to the example DAGs, ours and Airflow's own."""
    for file in (*EXAMPLES.glob("*.py"), *airflow_examples().values()):
        (folder / file.name).symlink_to(file)
    return folder


def airflow_examples() -> Mapping[str, Path]:
    """Example DAGs of Airflow's own, as they were installed: those that need neither a network nor credentials."""
    import airflow.example_dags
    import airflow.providers.standard.example_dags

    core = Path(airflow.example_dags.__file__).parent
    standard = Path(airflow.providers.standard.example_dags.__file__).parent
    return {name: folder / f"{name}.py" for folder, names in ((core, CORE), (standard, STANDARD)) for name in names}


CORE = (
    "example_dynamic_task_mapping", "example_setup_teardown_taskflow", "example_task_group",
    "example_time_delta_sensor_async", "example_trigger_target_dag", "example_xcomargs", "tutorial_taskflow_api",
)  # fmt: skip
STANDARD = (
    "example_bash_operator", "example_sensor_decorator", "example_short_circuit_operator",
    "example_trigger_controller_dag",
)  # fmt: skip
