"""Hundreds of Airflow tasks that wait at once, on a whole Airflow, beside the same Airflow without tao-flows.

Both run one mapped task N times. The Airflow with tao-flows then has N of them wait for a signal to fall, for a minute,
and the signal changes. ``README.md`` says how to read the result. Needs the environment of Airflow's tests, PostgreSQL
and Redis.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.append(str(Path(__file__).parents[1] / "examples/airflow"))
if TYPE_CHECKING:
    from cluster import Cluster

SIDES: Final = ("plain", "tao")
HOUR_S: Final = 3_600
TICK_S: Final = 0.25
OVER: Final = ("success", "failed", "upstream_failed", "skipped")
DAG: Final = """
from airflow.sdk import dag, task

@dag(schedule=None, max_active_tasks=100_000)
def many():
    @task(executor_config={{"tao_flows": {{"deferrable": True, "max_defer": "2h"}}}})
    def work(number):
        return None

    work.expand(number=list(range({tasks})))

many()
"""
POOL: Final = """
[[pools]]
pool_id = "{pool}"
zone = "DE"
energy_j = {{ mean = 100, low = 80, high = 120 }}
runtime_s = {{ p50 = 2, p95 = 4 }}
"""
SETTINGS: Final = """
mode = "enforce"
pools = "{home}/pools.toml"
[[rules]]
name = "*"
trigger = "manual"
mode = "enforce"
[signals.carbon.DE]
csv = "{home}/carbon.csv"
"""
STATSD: Final = '''
"""Keeps the one timing that the benchmark asks for, a line each."""
import os, time

class _Timer:
    def start(self):
        self.began_s, self.cpu_s = time.perf_counter(), time.thread_time()

    def stop(self):
        took_s, cpu_s = time.perf_counter() - self.began_s, time.thread_time() - self.cpu_s
        with open(os.environ["BENCH_LOOPS"], "a") as file:
            file.write(f"{time.time()} {took_s} {cpu_s}\\n")

class StatsClient:
    def __init__(self, *_):
        pass

    def timer(self, *_):
        return _Timer()

    def __getattr__(self, _):
        return lambda *_: None
'''
WITHOUT_US: Final = '''
"""Hides tao-flows from Airflow: no plugin, no policy, no provider."""
from importlib import metadata

_all = metadata.distributions
metadata.distributions = lambda **how: (each for each in _all(**how) if each.name != "tao-flows")
'''


class Side:
    """One Airflow, with tao-flows or without."""

    def __init__(self, name: str, home: Path, tasks: int) -> None:
        self.is_plain, self.home, self.tasks = name == "plain", home, tasks
        for folder in ("dags", "path"):
            (home / folder).mkdir(parents=True)
        (home / "dags/many.py").write_text(DAG.format(tasks=tasks))
        (home / "path/statsd.py").write_text(STATSD)
        if self.is_plain:
            (home / "path/sitecustomize.py").write_text(WITHOUT_US)
        (home / "pools.toml").write_text("".join(POOL.format(pool=pool) for pool in ("normal", "green", "local")))
        (home / "tao-flows.toml").write_text(SETTINGS.format(home=home))
        self.signal(falls=False)

    def cluster(self) -> Cluster:
        from cluster import Cluster

        env = {
            "PYTHONPATH": str(self.home / "path"),
            "BENCH_LOOPS": str(self.home / "loops"),
            "TAO_FLOWS_CONFIG": str(self.home / "tao-flows.toml"),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "scheduler.scheduler_loop_duration",
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "100000",
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "100000",
            "AIRFLOW__CORE__MAX_MAP_LENGTH": "100000",
            # What runs at once is what the machine can run; what is queued at once is more.
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(os.cpu_count() or 1),
        }
        executors = {"executors": "CeleryExecutor,LocalExecutor"} if self.is_plain else {}
        return Cluster(self.home / "airflow", dags=self.home / "dags", env=env, parallelism=32, **executors)

    def signal(self, *, falls: bool) -> None:
        """Tells of a fall in an hour; or that there is none."""
        now_s = time.time()
        rows = [(-HOUR_S, 500.0), (HOUR_S, 50.0 if falls else 500.0), (4 * HOUR_S, 500.0), (8 * HOUR_S, 500.0)]
        lines = [f"{datetime.fromtimestamp(now_s + s, timezone.utc).isoformat()},DE,{value}" for s, value in rows]
        (self.home / "new.csv").write_text("\n".join(["time,zone,value", *lines]))
        os.replace(self.home / "new.csv", self.home / "carbon.csv")

    def loops_s(self, since_s: float, until_s: float) -> list[tuple[float, float]]:
        """Of the scheduler's loops that ended meanwhile, how long each took, and its thread's CPU seconds."""
        lines = (map(float, line.split()) for line in (self.home / "loops").read_text().splitlines())
        return [(took_s, cpu_s) for at_s, took_s, cpu_s in lines if since_s <= at_s <= until_s]


class Run:
    """One run of the DAG, followed in Airflow's own database."""

    def __init__(self, cluster: Cluster, timeout_s: float) -> None:
        self.cluster, self.timeout_s = cluster, timeout_s
        self.run_id = cluster.trigger("many")

    def count(self, *states: str) -> int:
        """How many task instances are in one of these states."""
        rows = self.cluster.sql(
            f"SELECT count(*) FROM task_instance WHERE run_id = '{self.run_id}' AND state IN ({_quoted(states)})"
        )
        return int(rows[0][0])

    def until(self, there: Callable[[], bool]) -> float:
        """When it was there, in seconds since 1970."""
        give_up_s = time.monotonic() + self.timeout_s
        while not there():
            if time.monotonic() > give_up_s:
                raise TimeoutError(self.cluster.log("scheduler")[-3_000:])
            time.sleep(TICK_S)
        return time.time()

    def ended_s(self) -> list[float]:
        """When each task ended, in seconds since 1970, in order."""
        query = f"SELECT extract(epoch FROM end_date) FROM task_instance WHERE run_id = '{self.run_id}' ORDER BY 1"
        return [float(at) for (at,) in self.cluster.sql(query)]

    def rate_per_s(self) -> float:
        """Tasks that ended in a second, over the middle eight tenths of them."""
        ended_s = self.ended_s()
        first, last = len(ended_s) // 10, len(ended_s) - 1 - len(ended_s) // 10
        return (last - first) / (ended_s[last] - ended_s[first])


def _quoted(states: Iterable[str]) -> str:
    return ", ".join(f"'{state}'" for state in states)


class Tree:
    """A process with all its descendants."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def pids(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    found += [int(child) for child in children.read_text().split()]
        return found

    def memory_mb(self) -> float:
        """What is theirs of the machine's memory, shared pages by shares (PSS)."""
        return sum(self._pss_kb(pid) for pid in self.pids()) / 1024

    def cpu_s(self) -> float:
        return sum(map(self._cpu_s, self.pids()))

    def own_cpu_s(self) -> float:
        """Without its descendants."""
        return self._cpu_s(self.pid)

    @staticmethod
    def _cpu_s(pid: int) -> float:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    @staticmethod
    def _pss_kb(pid: int) -> int:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    return int(line.split()[1])
        return 0


def run_all(side: Side, cluster: Cluster, timeout_s: float) -> dict[str, Any]:
    """All tasks at once, none of which waits."""
    began_s, cpu_s = time.time(), Tree(cluster.processes["scheduler"].pid).own_cpu_s()
    run = Run(cluster, timeout_s)
    over_s = run.until(lambda: run.count(*OVER) == side.tasks)
    loops_s, cpus_s = zip(*side.loops_s(began_s, over_s), strict=True)
    return {
        "took_s": over_s - began_s,
        "tasks_per_s": run.rate_per_s(),
        "not_succeeded": side.tasks - run.count("success"),
        "loops": len(loops_s),
        "loop_mean_s": statistics.mean(loops_s),
        "loop_median_s": statistics.median(loops_s),
        "loop_cpu_mean_s": statistics.mean(cpus_s),
        "scheduler_cpu_s": Tree(cluster.processes["scheduler"].pid).own_cpu_s() - cpu_s,
    }


def wait_all(side: Side, cluster: Cluster, hold_s: float, timeout_s: float) -> dict[str, Any]:
    """All tasks wait at once, until the signal changes."""
    triggerer = Tree(cluster.processes["triggerer"].pid)
    before_mb = triggerer.memory_mb()
    side.signal(falls=True)
    began_s = time.time()
    run = Run(cluster, timeout_s)
    waiting_s = run.until(lambda: run.count("deferred", *OVER) == side.tasks)
    waited = run.count("deferred")
    time.sleep(10.0)  # until each has its trigger
    cpu_s, held_s = triggerer.cpu_s(), time.monotonic()
    memory_mb, slots = before_mb, 0
    while time.monotonic() - held_s < hold_s:
        memory_mb, slots = max(memory_mb, triggerer.memory_mb()), max(slots, run.count("queued", "running"))
        time.sleep(2.0)
    cpu_share = (triggerer.cpu_s() - cpu_s) / (time.monotonic() - held_s)
    left = waited - run.count("deferred")
    loops_s = [took_s for took_s, _ in side.loops_s(time.time() - hold_s, time.time())]
    side.signal(falls=False)
    changed_s = time.time()
    rescheduled_s = run.until(lambda: run.count("deferred") == 0)
    over_s = run.until(lambda: run.count(*OVER) == side.tasks)
    return {
        "all_wait_after_s": waiting_s - began_s,
        "did_not_wait": side.tasks - waited,
        "left_early": left,
        "worker_slots_held": slots,
        "triggerer_more_mb": memory_mb - before_mb,
        "triggerer_cpu_share": cpu_share,
        "loop_median_while_waiting_s": statistics.median(loops_s),
        "all_rescheduled_after_s": rescheduled_s - changed_s,
        "all_over_after_s": over_s - changed_s,
        "tasks_per_s": run.rate_per_s(),
        "not_succeeded": side.tasks - run.count("success"),
    }


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What one side does."""
    with tempfile.TemporaryDirectory(prefix="tao-bench-") as home:
        side = Side(name, Path(home), given.tasks)
        with side.cluster() as cluster:
            cluster.wait_for_dags("many")
            found: dict[str, Any] = {"at_once": run_all(side, cluster, given.timeout_s)}
            if name == "tao":
                found["waiting"] = wait_all(side, cluster, given.hold_s, given.timeout_s)
            return found


def printed(sides: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{name}: {json.dumps(sides[name], indent=2)}" for name in SIDES if name in sides]
    if set(SIDES) <= set(sides):
        plain, tao, waiting = sides["plain"]["at_once"], sides["tao"]["at_once"], sides["tao"]["waiting"]
        loops = [
            f"{tao[f'loop_{each}_s'] / plain[f'loop_{each}_s']:.2f} x ({each})"
            for each in ("mean", "median", "cpu_mean")
        ]
        rates = [f"{each['tasks_per_s'] / plain['tasks_per_s']:.2f} x" for each in (tao, waiting)]
        lines.append(f"a scheduler loop with tao-flows: {', '.join(loops)}")
        lines.append(f"tasks a second with tao-flows: {rates[0]}, after a wait {rates[1]}")
    return "\n".join(lines)


def main() -> int:
    """Measures each side, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--hold", dest="hold_s", type=float, default=60.0, help="seconds that all wait")
    parser.add_argument("--timeout", dest="timeout_s", type=float, default=900.0, help="seconds for a run")
    parser.add_argument("--side", choices=SIDES, action="append", help="only this one")
    parser.add_argument("--json", type=Path, help="where the figures go; what another side left there is kept")
    given = parser.parse_args()
    if find_spec("airflow") is None:
        print("left out: Airflow is not installed here")
        return 0
    sides: dict[str, Any] = {}
    if given.json is not None and given.json.exists():
        sides = json.loads(given.json.read_text())["sides"]
    for name in given.side or SIDES:
        sides[name] = measure(name, given)
        if given.json is not None:
            report = {"schema": "tao-flows/benchmark-airflow-deferral/1", "tasks": given.tasks, "sides": sides}
            given.json.write_text(json.dumps(report, indent=2))
    print(printed(sides))
    return 0


if __name__ == "__main__":
    sys.exit(main())
