"""What tao-flows adds to each of Airflow's processes, beside the same process without it: modules, milliseconds, MB.

``python tests/airflow_engine/import_cost.py`` prints a table. Each role is what that process does at its start: an
interpreter of its own, Airflow's own entry points, and ours in sight or hidden from it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DAG = """
from airflow.sdk import DAG, task

with DAG("dag"):
    @task
    def work():
        return 1

    work()
"""
_BEGIN = """
import importlib.metadata as metadata, json, os, sys, time
begun_s = time.perf_counter() - time.process_time()
if sys.argv[1] == "plain":
    def hide(metadata):
        everything = metadata.distributions
        metadata.distributions = lambda **which: (d for d in everything(**which) if d.metadata["Name"] != "tao-flows")
    hide(metadata)
    try:
        import importlib_metadata  # Airflow takes this before Python 3.12
        hide(importlib_metadata)
    except ImportError:
        pass
"""
_END = """
rss_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
cpu_share = time.process_time() / (time.perf_counter() - begun_s)
print("\\n" + json.dumps({"modules": sorted(sys.modules), "rss_kb": rss_kb, "cpu_share": cpu_share}))
"""
ROLES = {
    "scheduler": """
from airflow.executors.executor_loader import ExecutorLoader
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.listeners.listener import get_listener_manager
ExecutorLoader.init_executors()
get_listener_manager().hook.on_starting(component=Job())
""",
    "API server": """
from airflow.api_fastapi.app import create_app
create_app()
""",
    "DAG processor": """
import structlog
from airflow.dag_processing.processor import DagFileParseRequest, _parse_file
request = {"file": sys.argv[3], "bundle_path": os.path.dirname(sys.argv[3]), "bundle_name": "dags-folder"}
parsed = _parse_file(DagFileParseRequest(**request), structlog.get_logger())
assert not parsed.import_errors, parsed.import_errors
""",
    "task": """
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from in_process import run_task
outcome = run_task(Path(os.path.dirname(sys.argv[3])), open(sys.argv[3]).read(), "work")
assert outcome.state == "success", outcome.error
""",
}


@dataclass(frozen=True)
class Process:
    """One process at the end of its role."""

    modules: frozenset[str]
    rss_kb: int
    import_us: dict[str, float]
    """By module, the CPU time of its import alone: ``-X importtime`` says how long it took, which on a busy machine is
    longer by what the process had to wait."""


def run(role: str, *, plain: bool, home: Path) -> Process:
    """Runs a role in a process of its own; ``plain``: with our entry points hidden from it."""
    dags = home / "dags"
    dags.mkdir(parents=True, exist_ok=True)
    file = dags / "dag.py"
    file.write_text(DAG)
    executor = "LocalExecutor" if plain else "airflow_plugin.executor.TaoLocalExecutor"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "TAO_FLOWS_"))},
        "AIRFLOW_HOME": str(home),
        "HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__EXECUTOR": executor,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "known to nobody else, and long enough for its algorithm: 512 bits" * 2,
        "TAO_FLOWS_AGENT": "off",
    }
    code = _BEGIN + ROLES[role] + _END
    arguments = ["plain" if plain else "ours", str(HERE), str(file)]
    command = [sys.executable, "-X", "importtime", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert plain == (not any(map(is_ours, said["modules"]))), "nothing of ours is loaded where we are hidden"
    timed = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE)
    return Process(
        frozenset(said["modules"]), said["rss_kb"], {name: int(us) * said["cpu_share"] for us, name in timed}
    )


def is_ours(module: str) -> bool:
    """Whether it is one of this package's."""
    return module.partition(".")[0] in {"tao_flows", "airflow_plugin"}


def brought(plain: Process, ours: Process) -> frozenset[str]:
    """The modules of others that are loaded on our account."""
    more = ours.modules - plain.modules
    return frozenset(name for name in more if not is_ours(name) and not name.startswith("unusual_prefix_"))


def main(times: int = 5) -> None:
    """Prints the table, of several runs, plain and ours in turn: the least time, and the median of memory."""
    print(f"{'role':14} {'import':>10} {'memory':>10} {'of plain':>10}  modules of ours; modules of others")
    with tempfile.TemporaryDirectory() as folder:
        for role in ROLES:
            pairs = [
                (run(role, plain=True, home=Path(folder)), run(role, plain=False, home=Path(folder)))
                for _ in range(times)
            ]
            more_ms = min(_import_ms(plain, ours) for plain, ours in pairs)
            more_mb = statistics.median(ours.rss_kb - plain.rss_kb for plain, ours in pairs) / 1024
            rss_mb = statistics.median(plain.rss_kb for plain, _ in pairs) / 1024
            plain, ours = pairs[-1]
            count, others = sum(map(is_ours, ours.modules)), ", ".join(sorted(brought(plain, ours))) or "none"
            print(f"{role:14} {more_ms:+7.0f} ms {more_mb:+7.1f} MB {rss_mb:7.0f} MB  {count}; {others}")


def _import_ms(plain: Process, ours: Process) -> float:
    return sum(us for name, us in ours.import_us.items() if name not in plain.modules) / 1e3


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
