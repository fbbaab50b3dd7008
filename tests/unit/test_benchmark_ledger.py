"""benchmarks/ledger.py run small: that its figures are sane, not that they are good ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from postgres_server import find_binaries

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report, and what was printed."""
    path = tmp_path_factory.mktemp("ledger") / "report.json"
    command = [sys.executable, REPOSITORY / "benchmarks/ledger.py", "--quick", "--json", path]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def test_both_ledgers_are_timed_where_their_servers_are(run: Any) -> None:
    report, printed = run
    assert report["schema"] == "tao-flows/benchmark-ledger/1"
    assert set(report["ledgers"]) == {"SQLite", "PostgreSQL"}
    left_out = {name for name, found in report["ledgers"].items() if "left_out" in found}
    assert left_out == (set() if find_binaries() else {"PostgreSQL"})
    for name in left_out:
        assert report["ledgers"][name]["left_out"] in printed


def test_every_look_up_is_timed_on_a_small_ledger_and_on_a_large_one(run: Any) -> None:
    report, printed = run
    for found in report["ledgers"].values():
        small, large = found.get("by_runs", {"1000": {}, "10000": {}}).values()
        assert set(small) == set(large)
        for row in (*small.values(), *large.values(), *found.get("settling", {}).values()):
            assert 0 < row["median_ms"] <= row["p90_ms"]
    assert set(report["ledgers"]["SQLite"]["settling"]) == {"settled task", "plain sqlite3"}
    for row in ("history", "budget standing", "find_runs latest", "fleet"):
        assert row in printed
