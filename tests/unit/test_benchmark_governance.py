"""benchmarks/governance_verify.py run small: that its figures are sane, not that they are good ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_time_and_memory_are_told_by_the_number_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = [sys.executable, REPOSITORY / "benchmarks/governance_verify.py", "--lines", "20", "40", "--json", path]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(path.read_text())["rows"]
    assert (small["lines"], large["lines"]) == (20, 40)
    for row in (small, large):
        assert 1_900 < row["bytes_per_line"] < 2_200
        for form in ("directory", "archive"):
            assert 0 < row[form]["least_cpu_s"] < row[form]["fastest_s"] * 2
            assert row[form]["most_mib"] > row[form]["more_mib"] >= 0
    assert len(done.stdout.splitlines()) == 2
