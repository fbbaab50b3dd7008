"""tao-flows beside codecarbon, zeus, pyRAPL, pyJoules and carbontracker: what metering costs, and how true it is.

All in one run, each library unmodified and in a process of its own, on one and the same powercap tree, with loads whose
CPU time and energy are known. It needs root. ``README.md`` says how to read the result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from peers.background import measure_agents
from peers.charges import CASES, TOOLS, Setting, agent, charge
from peers.libraries import CORE_W, ROWS
from peers.plot import draw
from peers.truth import ZONE, Node, groups
from peers.worker import why_not_private, work
from window import (
    IMPORT_ROUNDS,
    ROUNDS,
    ZONES,
    installed,
    machine,
    make_tree,
    measure_imports,
    measure_windows,
    show_windows,
    table,
)

HOLD_S: Final = 10.0
QUICK_S: Final = 0.5
QUICK_TASKS: Final = 20


def task_error(task: dict[str, Any], truth_s: float) -> float | None:
    """How far off a task's CPU time is, as a share of all that really ran."""
    return None if task.get("cpu_s") is None else (task["cpu_s"] - task["truth_cpu_s"]) / truth_s


def case_error(case: dict[str, Any]) -> float | None:
    """The error of the task that is furthest off."""
    truth_s = sum(task["truth_cpu_s"] for task in case["tasks"])
    errors = [error for task in case["tasks"] if (error := task_error(task, truth_s)) is not None]
    return max(errors, key=abs, default=None)


def measure_windows_and_agents(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Costs of windows, those with an agent among them, and of the agent."""
    hold_s = QUICK_S if quick else HOLD_S
    tree = make_tree(scratch / "windows" / "powercap", ZONES)
    with ExitStack() as stack:
        try:
            socket = stack.enter_context(agent(tree.root, scratch, ())).socket
        except RuntimeError as error:
            print(error, file=sys.stderr)
            socket = None
        rounds = 2 if quick else ROUNDS
        windows = measure_windows(tree, scratch, most_rounds=rounds, hold_s=hold_s, agent=socket)
    agents = measure_agents(tree.root, scratch, hold_s, *([QUICK_TASKS] if quick else []))
    return {"windows": windows, "agents": agents}


def measure_charges(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """What each tool makes of loads whose CPU time and energy are known."""
    mount = groups()
    if mount is None:
        return {"left_out": "the truth needs a control group (version 2) that this process may make"}
    tree = make_tree(scratch / "charges" / "powercap", ((ZONE, "package-0", 123_000_000),))
    results: dict[str, Any] = {}
    with Node(tree) as node:
        setting = Setting(tree, node, scratch, mount, quick)
        for name, tool in TOOLS.items():
            results[name] = {"title": tool.title, "version": installed(tool.distribution), **charge(name, setting)}
            for case in results[name]["cases"].values():
                case["cpu_error"] = case_error(case)
    return results


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:+.{digits}f} %"


def _joules(energy_j: float | None) -> str:
    return "-" if energy_j is None else f"{energy_j:.1f}"


def show_background(report: dict[str, Any]) -> None:
    rows = [
        [result["title"], f"{100 * result['open_cpu_share']:.2f} %", f"{result['resident_bytes'] / 1e6:,.0f} MB"]
        for result in report["windows"].values()
        if "open_cpu_share" in result
    ]
    rows += [
        [result["title"], f"{100 * result['cpu_share']:.2f} %", f"{result['resident_bytes'] / 1e6:,.0f} MB"]
        for result in report["agents"].values()
        if "cpu_share" in result
    ]
    print("\n" + table(("while a window is open", "of a core", "resident"), rows))


def show_charges(charges: dict[str, Any]) -> None:
    if "left_out" in charges:
        print(f"\nCPU time and joules: left out: {charges['left_out']}")
        return
    rows = []
    for result in charges.values():
        cases = result["cases"]
        sources = {
            task["cpu_source"]: None for case in cases.values() for task in case["tasks"] if "cpu_source" in task
        }
        errors = [_percent(cases[name]["cpu_error"]) if name in cases else "-" for name in CASES]
        if any(error != "-" for error in errors):
            rows.append([result["title"], ", ".join(sources) or "-", *errors])
    print("\n" + table(("error of CPU time", "source", *(case.title for case in CASES.values())), rows))
    for name, case in CASES.items():
        if case.energy:
            rows = []
            for result in charges.values():
                if name in result["cases"]:
                    tasks = result["cases"][name]["tasks"]
                    cells = [f"{_joules(task['energy_j'])} of {_joules(task['truth_j'])}" for task in tasks]
                    rows.append(
                        [f"{result['title']} ({result['version']})", *cells, _joules(result["cases"][name]["drawn_j"])]
                    )
            heads = [f"{' '.join(load)}, J" for load in case.loads]
            print("\n" + table((f"charged in {case.title}", *heads, "node drew, J"), rows))
    for result in charges.values():
        if "failed" in result:
            print(f"{result['title']}: failed: {result['failed']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the result there, as SVG")
    parser.add_argument("--quick", action="store_true", help="small loads: a try, whose figures mean little")
    parser.add_argument("--worker", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    if refused := why_not_private():
        print(f"left out: {refused}")
        return
    report: dict[str, Any] = {
        "schema": "tao-flows/benchmark-metering/1",
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "quick": arguments.quick,
        "core_w": CORE_W,
    }
    with tempfile.TemporaryDirectory(prefix="tao-flows-bench-") as scratch:
        report |= measure_windows_and_agents(Path(scratch), quick=arguments.quick)
        report["imports"] = measure_imports(1 if arguments.quick else IMPORT_ROUNDS)
        report["charges"] = measure_charges(Path(scratch), quick=arguments.quick)
    print(f"{report['machine']}; {report['date']}\n")
    show_windows(report)
    show_background(report)
    show_charges(report["charges"])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot:
        arguments.plot.write_text(draw(report))


if __name__ == "__main__":
    main()
