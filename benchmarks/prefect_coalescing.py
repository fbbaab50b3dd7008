"""A map of many small items in Prefect: as it is, metered, and in batches, side by side on one server.

Each side is a flow run of its own, which maps the same function over the same items; three of them fail, and are tried
twice. ``README.md`` says how to read the result. Needs the environment of Prefect's tests.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

FAILING: Final = 3
SIDES: Final = ("plain Prefect", "metered", "in batches")
SETTLED_S: Final = 2.0
IDLE_SHARE: Final = 0.1
QUIET_TIMES: Final = 3


class Server:
    """A Prefect server of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        os.environ.update(
            PREFECT_HOME=str(home),
            PREFECT_API_URL=self.url,
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
            PREFECT_LOGGING_LEVEL="CRITICAL",
            PREFECT_CLI_PROMPT="false",
            TAO_FLOWS_LEDGER=f"sqlite:///{home}/ledger.db",
        )
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.5)
        raise SystemExit("the Prefect server did not come up")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def cpu_s(self) -> float:
        """CPU seconds of the server and of what it has started."""
        ticks, found = os.sysconf("SC_CLK_TCK"), {self.process.pid}
        total = 0
        for stat in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parts[2])):
            try:
                pid, fields = int(stat.parts[2]), stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if pid in found or int(fields[1]) in found:
                found.add(pid)
                total += int(fields[11]) + int(fields[12])
        return total / ticks

    def settle(self) -> None:
        """Waits until it has worked off what it was sent."""
        before, quiet = self.cpu_s(), 0
        while quiet < QUIET_TIMES:
            time.sleep(SETTLED_S)
            now = self.cpu_s()
            quiet = quiet + 1 if now - before < IDLE_SHARE * SETTLED_S else 0
            before = now


def compare(items: int, item_ms: float, size: int | None) -> dict[str, Any]:
    from prefect import flow, task

    from tao_flows import runtime
    from tao_flows.prefect import tao_flow, tao_task
    from tao_flows.report.model import read_report

    runs: Counter[int] = Counter()

    def work(number: int) -> int:
        runs[number] += 1
        until_s = time.thread_time() + item_ms / 1e3
        while time.thread_time() < until_s:
            pass
        if number % (items // FAILING) == 1:
            raise ValueError(f"item {number} is not to be had")
        return number * number

    def told(future: Any) -> Any:
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001 - it is the result
            return f"{type(error).__name__}: {error}"

    def body(mapped: Any) -> Any:
        futures = mapped.map(list(range(items)))
        return [(told(future), future.state.type.value) for future in futures], [
            str(future.state) for future in futures
        ]

    plain, ours = task(work, retries=1), tao_task(work, retries=1)
    batched = ours.with_options(coalesce=size or True)
    tasks = dict(zip(SIDES, (plain, ours.with_options(coalesce=False), batched), strict=True))

    def flow_of(side: str) -> Any:
        def coalescing() -> Any:
            return body(tasks[side])

        return (flow if side == SIDES[0] else tao_flow)(coalescing)

    outcomes: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    tao = runtime.current()
    for side in SIDES:
        run_side = flow_of(side)
        SERVER.settle()
        runs.clear()
        server_s, own_s, wall_s = SERVER.cpu_s(), time.process_time(), time.perf_counter()
        outcomes[side] = run_side()
        wall_s = time.perf_counter() - wall_s
        SERVER.settle()
        row = {"wall_s": wall_s, "flow_cpu_s": time.process_time() - own_s, "server_cpu_s": SERVER.cpu_s() - server_s}
        row["calls"], row["cpu_s"] = sum(runs.values()), row["flow_cpu_s"] + row["server_cpu_s"]
        row["work_cpu_s"] = row["calls"] * item_ms / 1e3
        row["overhead_share_cpu"] = 1 - row["work_cpu_s"] / row["cpu_s"]
        if side != SIDES[0] and tao is not None:
            report = read_report(tao.ledger, tao.ledger.runs()[0])
            row["rho"], row["task_runs"] = report.overhead_share, len({each.key.instance for each in report.tasks})
        else:
            row["rho"], row["task_runs"] = None, items
        rows[side] = row
    return {
        "items": items,
        "item_ms": item_ms,
        "sides": rows,
        "same_results": all(outcomes[side][0] == outcomes[SIDES[0]][0] for side in SIDES),
        "same_states": all(outcomes[side][1] == outcomes[SIDES[0]][1] for side in SIDES),
        "failed": sum(state == "FAILED" for _, state in outcomes[SIDES[2]][0]),
    }


def show(found: dict[str, Any]) -> None:
    print(f"{found['items']} items of {found['item_ms']} ms, {found['failed']} of them failing twice")
    head = ("task runs", "wall s", "CPU s", "of the flow", "of the server", "not work", "rho")
    print(f"{'':16}" + "".join(f"{each:>14}" for each in head))
    for side, row in found["sides"].items():
        rho = "" if row["rho"] is None else f"{row['rho']:.3f}"
        cells = (row["task_runs"], *(f"{row[n]:.2f}" for n in ("wall_s", "cpu_s", "flow_cpu_s", "server_cpu_s")))
        print(f"{side:16}" + "".join(f"{each:>14}" for each in (*cells, f"{row['overhead_share_cpu']:.3f}", rho)))
    print(f"results and exceptions the same: {found['same_results']}; states and messages: {found['same_states']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--item-ms", type=float, default=1.0, help="CPU milliseconds of an item")
    parser.add_argument(
        "--size", type=int, help="items in a batch; by default from what the run before was measured to cost"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if find_spec("prefect") is None:
        print("left out: Prefect is not installed here")
        return
    global SERVER
    with tempfile.TemporaryDirectory(prefix="tao-flows-bench-") as home:
        SERVER = Server(Path(home))
        try:
            found = compare(args.items, args.item_ms, args.size)
        finally:
            SERVER.close()
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
