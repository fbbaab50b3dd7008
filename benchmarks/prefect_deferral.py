"""Flow runs that wait at once without a process, while what serves them is killed or restarted; then the power turns clean.

``README.md`` says how to read the result. Needs the environment of Prefect's tests, whose server and site it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

if find_spec("prefect") is None:
    print("passed over: this benchmark needs Prefect; run it with .venv/prefect/bin/python")
    raise SystemExit(0)
TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "prefect_engine"), str(TESTS / "fakes"), str(TESTS / "agent")]

from conftest import begun_server, ended_server  # noqa: E402
from deferring import Site, Started, flow_processes, names, read, states, until  # noqa: E402

if TYPE_CHECKING:
    import subprocess

PATIENCE_S = 300.0
WORKER = {"PREFECT_WORKER_QUERY_SECONDS": "5", "PREFECT_WORKER_PREFETCH_SECONDS": "10"}
TAKEN = {"Pending", "Running", "Completed"}


class Watch:
    """Counts the flow processes that are there while the runs should have none."""

    def __init__(self, runs: Sequence[UUID]) -> None:
        self.runs, self.most, self.began_s = runs, 0, time.monotonic()

    def for_s(self, span_s: float) -> None:
        until_s = time.monotonic() + span_s
        while time.monotonic() < until_s:
            self.most = max(self.most, len(flow_processes(self.runs)))
            time.sleep(0.5)


def worker(site: Site, slots: int) -> Started:
    """A worker of ours, which has begun."""
    started = site.worker("tao-process", "--limit", str(slots), env=WORKER)
    until(lambda: "started!" in started.said(), "the worker", started, patience_s=PATIENCE_S)
    return started


def hold(
    site: Site, runs: Sequence[UUID], hold_s: float, slots: int, server: subprocess.Popen[bytes]
) -> dict[str, Any]:
    """Worker, controller and server are killed or restarted while the runs wait."""
    watch = Watch(runs)
    for process in site.processes:
        watch.for_s(5)
        os.killpg(process.pid, 9)
        process.wait()
    watch.for_s(5)
    ended_server(server)
    watch.for_s(3)
    server = begun_server()
    site.controller()
    worker(site, slots)
    watch.for_s(max(5.0, hold_s - (time.monotonic() - watch.began_s)))
    return {
        "server": server,
        "waited_s": time.monotonic() - watch.began_s,
        "flow_processes_meanwhile": watch.most,
        "still_deferred": names(runs).get("Deferred", 0),
    }


def turns_clean(site: Site, runs: Sequence[UUID]) -> dict[str, Any]:
    """The signal changes, and the runs are handed on and done."""
    at_s = site.flip()
    until(lambda: "Deferred" not in names(runs), "all handed on", patience_s=PATIENCE_S)
    until(lambda: names(runs) == {"Completed": len(runs)}, "all done", patience_s=1_800)
    done_s = time.time() - at_s
    handed_s = [
        min(s.timestamp.timestamp() for s in states(run) if s.timestamp.timestamp() > at_s) - at_s for run in runs
    ]
    ran = site.ran(runs)
    started_s = [run.start_time.timestamp() - at_s for run in read(runs) if run.start_time is not None]
    return {
        "handed_on_median_s": statistics.median(handed_s),
        "handed_on_last_s": max(handed_s),
        "first_started_s": min(started_s),
        "all_done_s": done_s,
        "never_ran": sum(times == 0 for times in ran.values()),
        "ran_twice": sum(times > 1 for times in ran.values()),
        "left_waiting": site.waiting(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--hold", dest="hold_s", type=float, default=60.0, help="seconds that all wait, at least")
    parser.add_argument("--slots", type=int, default=4, help="flow runs that the worker runs at once")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    server = begun_server()
    site = Site(Path(tempfile.mkdtemp(prefix="tao-bench-")), "many")
    try:
        deployment = site.set_up(kind="tao-process")
        worker(site, given.slots)
        site.controller()
        began_s = time.monotonic()
        runs = site.create(deployment, given.runs)
        until(lambda: names(runs) == {"Deferred": len(runs)}, "all wait", patience_s=PATIENCE_S)
        found: dict[str, Any] = {"runs": len(runs), "all_deferred_s": time.monotonic() - began_s}
        held = hold(site, runs, given.hold_s, given.slots, server)
        server = held.pop("server")
        found |= held | turns_clean(site, runs)
        found["load_average"] = os.getloadavg()[0]
    finally:
        site.close()
        ended_server(server)
    text = json.dumps(found, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
