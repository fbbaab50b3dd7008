"""benchmarks/headline: that its accounts, comparisons and page say what was measured. Whole engines are no part of it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.headline import work  # noqa: E402
from benchmarks.headline.__main__ import SCHEMA  # noqa: E402
from benchmarks.headline.coverage import measure_coverage  # noqa: E402
from benchmarks.headline.instrument import Instrument, machine  # noqa: E402
from benchmarks.headline.page import write_page  # noqa: E402
from benchmarks.headline.plots import write_plots  # noqa: E402
from benchmarks.headline.summary import crossover, shown, summarised  # noqa: E402

COVERAGE = {
    "requests": 10, "seed": 1, "least_candidates": 50, "coverage": {"mean": 1.0, "least": 1.0},
    "hypervolume_ratio": {"mean": 1.0, "least": 1.0}, "candidates": {"median": 60, "most": 80},
    "front": {"median": 3, "most": 5},
}  # fmt: skip
BURN = "import sys, time\nsys.stdin.readline()\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.readline()"


def cell(side: str, overhead_s: float, item_s: float = 0.001, kind: str = "rate", **other: Any) -> dict[str, Any]:
    """One that was measured over a hundred seconds, with a hundred items; at rest its engine takes 0.01 of a core."""
    tasks_s = 100 * item_s
    cpu_s = {"tasks": tasks_s, "overhead": overhead_s, "unattributed": 1.0}
    power_w = {"tasks": tasks_s / 100, "overhead": overhead_s / 100, "idle": 1.0, "unattributed": 0.01}
    account = {
        "wall_s": 100.0,
        "cpu_s": cpu_s,
        "cpu_s_by_component": {"server": tasks_s + overhead_s},
        "resident_mib": {"server": 300.0},
        "overhead_share_cpu": overhead_s / (overhead_s + tasks_s),
        "quality": "estimated",
        "interval": [0.5, 2.0],
        "energy_j": {name: 100 * watts for name, watts in power_w.items()},
        "power_w": power_w,
        "node_w": sum(power_w.values()),
        "active_w": sum(power_w.values()) - 1.0,
        "engine_w": (tasks_s + overhead_s) / 100,
    }
    standing = {"wall_s": 10.0, "cpu_s_by_component": {"server": 0.1}, "engine_w": 0.01}
    latency_s = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "most": 4.0}
    made = {
        "engine": "prefect", "side": side, "kind": kind, "item_s": item_s, "rate": 1.0 if kind == "rate" else None,
        "items": 10, "arrivals_s": [10.0 * n for n in range(10)], "horizon_s": 100.0, "repetition": 0, "rounds": 4_000,
        "standing": standing, "account": account, "lost": 0, "ran_twice": 0, "wrong": 0, "told_otherwise": None,
        "task_states": None, "results": {"0/0": "ab"}, "latency_s": latency_s,
    }  # fmt: skip
    return {**made, **other}


def figures(*cells: dict[str, Any]) -> dict[str, Any]:
    found = {
        "commands": ["python -m benchmarks.headline"], "coverage": COVERAGE, "began": "2026-11-24T00:00:00+00:00", "machine": machine(),
        "cpu_source": "ebpf", "cells": list(cells), "failed": [],
    }  # fmt: skip
    return {**found, "summary": summarised(found["cells"])}


def test_what_a_component_starts_is_counted_and_the_lines_sum_to_the_node() -> None:
    instrument = Instrument()
    shell = f"{sys.executable} -c '{BURN}'; true"
    with subprocess.Popen(["sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        time.sleep(0.3)
        instrument.watch({"engine": [process.pid]})
        instrument.begin()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        account = instrument.end(tasks_s=0.2)
        process.stdin.write("\n")
        process.stdin.flush()
    instrument.forget()
    assert account["cpu_s_by_component"]["engine"] == pytest.approx(0.5, abs=0.15)
    assert account["cpu_s"]["overhead"] == pytest.approx(account["cpu_s_by_component"]["engine"] - 0.2)
    known_j = [joules for joules in account["energy_j"].values() if joules is not None]
    assert sum(known_j) == pytest.approx(account["node_j"])
    assert account["quality"] in {"estimated", "attributed"}


def test_every_item_is_noted_with_the_result_that_its_rounds_have(tmp_path: Path, monkeypatch: Any) -> None:
    spec, log = tmp_path / "spec.json", tmp_path / "log"
    monkeypatch.setenv(work.SPEC, str(spec))
    work.write_spec(spec, rounds=100, log=log)
    results = [work.run_item(3, number) for number in range(2)]
    done = work.read_log(log)
    assert [(each.group, each.number, each.result) for each in done] == [(3, 0, results[0]), (3, 1, results[1])]
    assert results == [work.derive(3, number, 100) for number in range(2)]
    assert work.derive(3, 0, 101) != results[0]


def test_overhead_falls_under_half_between_the_lengths_that_lie_on_either_side_of_it() -> None:
    assert crossover([(0.01, 0.9), (0.1, 0.6), (1.0, 0.4), (10.0, 0.1)]) == pytest.approx(10**-0.5)
    assert crossover([(0.01, 0.9), (0.1, 0.6)]) is None
    assert crossover([(0.01, 0.4), (0.1, 0.3)]) is None


def test_a_side_is_compared_with_plain_in_the_same_repetition_alone() -> None:
    cells = [
        cell("plain", 9.9),
        cell("plain", 4.9, repetition=1),
        cell("enforce", 1.9),
        cell("enforce", 1.9, repetition=1),
    ]
    (found,) = summarised(cells)["reductions"]
    assert found["engine_w_less"] == pytest.approx({"median": 0.7, "low": 0.6, "high": 0.8})
    # At rest the engine takes one of these CPU seconds on every side.
    assert found["without_standing_less"]["high"] == pytest.approx(1 - (0.9 + 0.1) / (8.9 + 0.1))


def test_the_page_gives_a_verdict_by_the_least_of_the_repetitions(tmp_path: Path) -> None:
    good = [cell("plain", 20.0), cell("enforce", 0.5), cell("plain", 20.0, repetition=1)]
    write_page(figures(*good, cell("enforce", 0.6, repetition=1)), tmp_path / "good.md", None)
    write_page(figures(*good, cell("enforce", 15.0, repetition=1)), tmp_path / "mixed.md", None)
    good_line, mixed_line = (
        next(line for line in (tmp_path / f"{name}.md").read_text().splitlines() if line.startswith("| 74.8%"))
        for name in ("good", "mixed")
    )
    assert "| exceeded" in good_line
    assert "| not reproduced" in mixed_line


def test_a_lost_item_and_a_different_result_are_said_in_the_report(tmp_path: Path) -> None:
    wrong = cell("enforce", 1.0, lost=2, results={"0/0": "cd"})
    found = figures(cell("plain", 9.9), wrong)
    assert not found["summary"]["equal"]
    assert "lost 2" in shown(found)
    write_page(found, tmp_path / "page.md", None)
    assert "NOT equal" in (tmp_path / "page.md").read_text()


def test_nothing_that_was_not_measured_is_given_a_figure(tmp_path: Path) -> None:
    write_page(figures(cell("plain", 9.9)), tmp_path / "page.md", None)
    line = next(line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| 74.8%"))
    assert line == "| 74.8% lower power demand | not measured | not measured |"


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    sweep = [cell("plain", s, item_s=item_s, kind="sweep") for item_s, s in ((0.001, 5.0), (1.0, 5.0))]
    everything = figures(cell("plain", 9.9), cell("enforce", 1.0), *sweep)
    assert [path.stem for path in write_plots(everything, tmp_path)] == [
        "headline-sweep", "headline-reduction", "headline-before-after", "headline-power",
    ]  # fmt: skip
    only_plain = copy.deepcopy(everything) | {"summary": summarised([cell("plain", 9.9)])}
    assert [path.stem for path in write_plots(only_plain, tmp_path / "other")] == ["headline-power"]


def test_coverage_is_that_of_a_plain_search_of_every_pool_and_start() -> None:
    found = measure_coverage(5)
    assert found["coverage"] == {"mean": 1.0, "least": 1.0}
    assert found["candidates"]["median"] >= found["least_candidates"]


def test_figures_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    text = json.dumps({**figures(), "schema": SCHEMA, "rounds_per_s": 1.0, "machine": {**machine(), "vcpus": 999}})
    there.write_text(text)
    command = [sys.executable, "-m", "benchmarks.headline", "--quick", "--more", "--json", str(there)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds another machine's figures" in done.stderr
    assert there.read_text() == text
