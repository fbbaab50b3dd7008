"""benchmarks/metering.py run small: that its figures are sane, not that they are good ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
METERS = ("meter", "meter-perf", "meter-wait4", "measure", "agent-ebpf", "agent-perf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """The report, what was printed, and the picture. Peers that are not installed here say so in their rows."""
    if os.geteuid() != 0:
        pytest.skip("the loads run in control groups and mount namespaces that only root can make")
    if not any(" - cgroup2 " in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        pytest.skip("no control groups of version 2 are mounted here")
    directory = tmp_path_factory.mktemp("metering")
    report, plot = directory / "report.json", directory / "plot.svg"
    command = [sys.executable, REPOSITORY / "benchmarks" / "metering.py", "--quick", "--json", report, "--plot", plot]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text()), done.stdout, plot.read_text()


def failures(report: dict[str, Any], *names: str) -> dict[str, str]:
    return {name: report["charges"][name]["failed"] for name in names if "failed" in report["charges"][name]}


def test_what_our_meters_are_told_is_what_the_control_groups_of_the_loads_say(run: Any) -> None:
    report, _, _ = run
    assert failures(report, *METERS) == {}
    for name in METERS:
        cases = report["charges"][name]["cases"]
        assert set(cases) == {"burn", "forks", "orphans", "shared", "asleep"}
        for kind in ("burn", "shared", "asleep"):
            off_s = [abs(task["cpu_s"] - task["truth_cpu_s"]) for task in cases[kind]["tasks"]]
            ran_s = sum(task["truth_cpu_s"] for task in cases[kind]["tasks"])
            assert abs(cases[kind]["cpu_error"]) == pytest.approx(max(off_s) / ran_s)
            for task in cases[kind]["tasks"]:
                assert task["cpu_s"] == pytest.approx(task["truth_cpu_s"], rel=0.05, abs=0.05), (name, kind)


def test_a_task_is_charged_for_its_share_of_what_the_node_drew_and_no_more_is_charged_than_that(run: Any) -> None:
    report, _, _ = run
    for name in METERS:
        for kind in ("shared", "asleep"):
            case = report["charges"][name]["cases"][kind]
            charged_j = [task["energy_j"] for task in case["tasks"]]
            for task in case["tasks"]:
                assert task["truth_j"] == pytest.approx(task["truth_cpu_s"] * report["core_w"])
                assert task["energy_j"] == pytest.approx(task["truth_j"], rel=0.15, abs=4), (name, kind)
            # The counter moves in steps of a clock tick, and the meters' windows are a little longer than the node's.
            assert 0 < sum(charged_j) <= case["drawn_j"] * 1.1 + 5
            for task in case["tasks"]:
                if "account" in task:
                    lines = [
                        task["account"][f"{line}_j"] or 0 for line in ("tasks", "overhead", "idle", "unattributed")
                    ]
                    assert sum(lines) == pytest.approx(task["account"]["counter_j"], abs=2e-6)


def test_a_peer_that_cannot_run_here_says_why_instead_of_a_figure(run: Any) -> None:
    report, printed, _ = run
    for rows in (report["windows"], report["charges"], report["imports"]):
        for name, row in rows.items():
            why = row.get("failed") or row.get("left_out")
            if why:
                assert why in printed, name
                assert row.get("cases", {}) == {}
            else:
                assert row.get("cases") or row.get("median_ns") or row.get("import_ns"), name


def test_costs_are_of_the_windows_and_agents_that_ran(run: Any) -> None:
    report, _, _ = run
    assert report["schema"] == "tao-flows/benchmark-metering/1"
    ours = [row for name, row in report["windows"].items() if name.startswith("tao-flows")]
    assert len(ours) == 5
    for row in ours:
        assert len(row["rounds_ns"]) == 2
        assert min(row["rounds_ns"]) <= row["median_ns"] <= max(row["rounds_ns"])
        assert row["open_cpu_share"] >= 0
        assert row["resident_bytes"] > 1_000_000
    assert report["windows"]["tao-flows-agent"]["seen_j"] == 9.0
    for agent in report["agents"].values():
        assert "failed" not in agent
        assert 0 < agent["cpu_share"] < 1
    sources = {name: agent["cpu_source"] for name, agent in report["agents"].items()}
    assert sources == {"ebpf-0": "ebpf", "ebpf-20": "ebpf", "perf-20": "perf"}


def test_the_picture_is_svg_and_names_every_tool_with_a_figure(run: Any) -> None:
    report, _, picture = run
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    for name in METERS:
        assert report["charges"][name]["title"] in texts
    assert any(report["machine"] in (text or "") for text in texts)
