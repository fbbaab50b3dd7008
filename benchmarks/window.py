"""What an empty window costs: tao-flows beside pyRAPL, pyJoules, zeus, carbontracker and codecarbon, in one run.

Each library runs unmodified in a process of its own, and all of them read the same powercap tree: as root, every
process sees that tree at /sys/class/powercap, in a mount namespace of its own, with no network. ``README.md`` says how
to read the result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from peers.libraries import BASELINE, ROWS
from peers.worker import Worker, why_not_private, work

from tao_flows.testing import PowercapTree

ROUNDS: Final = 40
ROUND_S: Final = 0.02
MOST_WINDOWS: Final = 1_000
IMPORT_ROUNDS: Final = 3
MOVED_UJ: Final = {"intel-rapl:0": 5_000_000, "intel-rapl:1": 3_000_000, "intel-rapl:0:0": 1_000_000}
"""By how much each counter moves in the window that shows what a library reads."""
ZONES: Final = (
    ("intel-rapl:0", "package-0", 123_000_000),
    ("intel-rapl:0:0", "dram", 45_000_000),
    ("intel-rapl:1", "package-1", 77_000_000),
)
HEAVY: Final = ("prefect", "airflow", "sqlalchemy", "pydantic", "pandas", "asyncio", "pynvml", "rich", "typer")
IMPORTS: Final = {
    "tao-flows": "import tao_flows",
    "tao-flows, to measure": "from tao_flows import measure",
    "pyRAPL": "import pyRAPL",
    "pyJoules": "from pyJoules.energy_meter import EnergyMeter",
    "zeus": "from zeus.monitor import ZeusMonitor",
    "carbontracker": "from carbontracker.tracker import CarbonTracker",
    "codecarbon": "from codecarbon import OfflineEmissionsTracker",
}


def installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def _started(
    tree: Path, scratch: Path, results: dict[str, dict[str, Any]], agent: Path | None
) -> Iterator[dict[str, Worker]]:
    """A worker for each row that can run here; the others get their reason in ``results``."""
    not_private = why_not_private()
    workers: dict[str, Worker] = {}
    try:
        for name, row in ROWS.items():
            if row.agent and agent is None:
                continue
            results[name] = {"title": row.title, "version": installed(row.distribution)}
            if row.needs_root and not_private:
                results[name]["left_out"] = not_private
                continue
            env = {"TAO_FLOWS_AGENT": str(agent)} if row.agent else {}
            workers[name] = Worker(name, tree, scratch, private=not not_private, env=env)
            try:
                results[name] |= workers[name].ask()
                results[name]["helpers"], results[name]["resident_bytes"] = workers[name].settle()
            except RuntimeError as error:
                results[name]["failed"] = str(error)
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


def make_tree(root: Path, zones: Sequence[tuple[str, str, int]]) -> PowercapTree:
    """A powercap tree with the links that the kernel's has: each library follows others."""
    tree = PowercapTree(root)
    for zone, name, energy_uj in zones:
        (tree.root / zone).symlink_to(tree.add_zone(zone, name, energy_uj).relative_to(tree.root))
    (tree.root / "intel-rapl" / "subsystem").symlink_to("..")
    return tree


def measure_windows(
    tree: PowercapTree, scratch: Path, *, most_rounds: int = ROUNDS, hold_s: float = 0.0, agent: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What a window costs, by row; with ``hold_s``, also what one costs that stays open for so long."""
    results: dict[str, dict[str, Any]] = {}
    with _started(tree.root, scratch, results, agent) as workers:
        rounds: dict[str, list[float]] = {}
        windows: dict[str, int] = {}
        for name, worker in workers.items():
            if "failed" in results[name]:
                continue
            try:
                if ROWS[name].reads == "tree":
                    worker.ask("look")
                    for zone, by_uj in MOVED_UJ.items():
                        tree.move(zone, by_uj)
                    results[name] |= worker.ask("close")
                once_ns = worker.ask("run 3")["window_ns"]
                windows[name], rounds[name] = max(1, min(MOST_WINDOWS, round(ROUND_S * 1e9 / once_ns))), []
            except RuntimeError as error:
                results[name]["failed"] = str(error)
        for number in range(most_rounds):
            names = list(rounds)
            shift = number % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                try:
                    rounds[name].append(workers[name].ask(f"run {windows[name]}")["window_ns"])
                except RuntimeError as error:
                    results[name]["failed"] = str(error)
                    del rounds[name]
        for name, each_ns in rounds.items():
            results[name] |= _summary(each_ns, windows[name])
        if hold_s:
            hold_open({name: workers[name] for name in rounds}, results, hold_s)
    baseline_ns = results[BASELINE].get("median_ns")
    for result in results.values():
        if baseline_ns and "median_ns" in result:
            result["ratio"] = result["median_ns"] / baseline_ns
    return results


def hold_open(workers: Mapping[str, Worker], results: dict[str, dict[str, Any]], seconds: float) -> None:
    """Opens a window in every process, all at once, and adds the CPU time that each takes meanwhile."""
    for worker in workers.values():
        worker.ask("look")
    before_s = {name: worker.cpu_s() for name, worker in workers.items()}
    began_s = time.monotonic()
    time.sleep(seconds)
    for name, worker in workers.items():
        results[name]["open_cpu_share"] = (worker.cpu_s() - before_s[name]) / (time.monotonic() - began_s)
    for name, worker in workers.items():
        try:
            worker.ask("close")
        except RuntimeError as error:
            results[name]["failed"] = str(error)


def _summary(rounds_ns: Sequence[float], windows: int) -> dict[str, Any]:
    return {
        "median_ns": statistics.median(rounds_ns),
        "fastest_ns": min(rounds_ns),
        "rounds_ns": [round(each) for each in rounds_ns],
        "windows_per_round": windows,
    }


_PROBE: Final = """
import os, sys, time
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, modules, started = resident(), len(sys.modules), time.perf_counter_ns()
exec(sys.argv[1])
print(time.perf_counter_ns() - started, resident() - before, len(sys.modules) - modules)
"""


def measure_imports(most_rounds: int = IMPORT_ROUNDS) -> dict[str, dict[str, Any]]:
    probes: dict[str, list[list[int]]] = {title: [] for title in IMPORTS}
    results: dict[str, dict[str, Any]] = {title: {"statement": statement} for title, statement in IMPORTS.items()}
    for _ in range(most_rounds):
        for title, statement in IMPORTS.items():
            command = [sys.executable, "-I", "-c", _PROBE, statement]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                results[title]["failed"] = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            else:
                probes[title].append([int(field) for field in done.stdout.splitlines()[-1].split()])
    for title, probe in probes.items():
        if probe:
            import_ns, resident_bytes, modules = (statistics.median(column) for column in zip(*probe, strict=True))
            results[title] |= {"import_ns": import_ns, "resident_bytes": resident_bytes, "modules": modules}
    return results


def heavy_imports(statement: str) -> dict[str, Any]:
    """What ``python -X importtime`` says of a statement: microseconds in all, and which heavy packages it loads."""
    command = [sys.executable, "-I", "-X", "importtime", "-c", statement]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    lines = [line.removeprefix("import time:").split("|") for line in said if line.startswith("import time:")][1:]
    names = [name.strip() for _, _, name in lines]
    ours_us = [int(self_us) for self_us, _, name in lines if name.strip().partition(".")[0] == "tao_flows"]
    heavy = sorted({name.partition(".")[0] for name in names} & set(HEAVY))
    return {"statement": statement, "modules": len(names), "own_us": sum(ours_us), "heavy": heavy}


def _time(duration_ns: float | None) -> str:
    if duration_ns is None:
        return "-"
    return f"{duration_ns / 1e6:,.1f} ms" if duration_ns >= 1e6 else f"{duration_ns / 1e3:,.1f} us"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = []
    for row in (heads, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show_windows(report: dict[str, Any]) -> None:
    windows, moved_j = report["windows"], sum(MOVED_UJ.values()) / 1e6
    rows = [
        [
            f"{result['title']} ({result['version']})",
            _time(result["median_ns"]),
            f"{result['ratio']:,.2f} x" if "ratio" in result else "-",
            _time(result["fastest_ns"]),
            _time(result["first_ns"]),
            f"{result['resident_bytes'] / 1e6:,.0f} MB" + f" ({result['helpers']} helpers)" * bool(result["helpers"]),
            f"{result['seen_j']:.1f} of {moved_j:g} J" if "seen_j" in result else "-",
        ]
        for result in windows.values()
        if "median_ns" in result and "failed" not in result
    ]
    print(
        table(("an empty window", "median", "ratio", "fastest", "to the end of the first", "resident", "reads"), rows)
    )
    for result in windows.values():
        for why in ("left_out", "failed"):
            if why in result:
                print(f"{result['title']}: {why.replace('_', ' ')}: {result[why]}")
    rows = [
        [
            result["statement"],
            _time(result["import_ns"]),
            f"{result['resident_bytes'] / 1e6:,.1f} MB",
            f"{result['modules']:,.0f}",
        ]
        for result in report["imports"].values()
        if "import_ns" in result
    ]
    print("\n" + table(("a fresh process", "import", "resident", "modules"), rows))
    for result in report["imports"].values():
        if "failed" in result:
            print(f"{result['statement']}: failed: {result['failed']}")


def show_importtime(report: dict[str, Any]) -> None:
    print()
    for result in report["importtime"]:
        heavy = ", ".join(result["heavy"]) or "none"
        command = f'python -X importtime -c "{result["statement"]}"'
        print(f"{command}: {result['own_us'] / 1e3:.1f} ms of tao-flows' own; heavy packages loaded: {heavy}")
    print(f"(heavy: {', '.join(HEAVY)})")


def machine() -> str:
    from tao_flows.telemetry.cpuinfo import read_cpu

    cpu = read_cpu(Path("/proc"))
    hypervisor = " virtual machine" if "hypervisor" in Path("/proc/cpuinfo").read_text(errors="replace") else ""
    return (
        f"{cpu.microarchitecture or platform.processor() or platform.machine()}, {cpu.vcpus} vCPUs{hypervisor}, "
        f"Linux {platform.release()}, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every figure there")
    parser.add_argument("--worker", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    report: dict[str, Any] = {
        "schema": "tao-flows/benchmark-window/1",
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    with tempfile.TemporaryDirectory(prefix="tao-flows-bench-") as scratch:
        tree = make_tree(Path(scratch) / "powercap", ZONES)
        report["windows"] = measure_windows(tree, Path(scratch))
    report["imports"] = measure_imports()
    report["importtime"] = [heavy_imports(IMPORTS[title]) for title in ("tao-flows", "tao-flows, to measure")]
    print(f"{report['machine']}; {report['date']}\n")
    show_windows(report)
    show_importtime(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
