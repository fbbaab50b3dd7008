"""The overnight example, played faster still, on a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from support import ref

from tao_flows.ledger import open_ledger
from tao_flows.units import NS_PER_S

EXAMPLE = Path(__file__).parents[2] / "examples" / "prefect" / "overnight_batch.py"


def test_the_batch_waits_for_cleaner_hours_and_is_done_by_the_morning(server: str, tmp_path: Path) -> None:
    env = {**os.environ, "DEMO_OUTPUT": str(tmp_path), "DEMO_SPEED": "1800"}
    env.pop("TAO_FLOWS_LEDGER", None)
    done = subprocess.run([sys.executable, str(EXAMPLE)], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done by 06:00: all." in done.stdout
    said = re.search(r"Saved against running all at 20:00: (-?\d+)%", done.stdout)
    assert said is not None
    assert int(said[1]) >= 15, done.stdout
    assert "estimated" in done.stdout
    assert "an assumption" in done.stdout

    ledger = open_ledger(str(tmp_path / "overnight" / "ledger.db"))
    (run,) = [run for run in ledger.runs() if run.flow == "overnight batch"]
    tasks = ledger.tasks(ref(run))
    first, *_ = sorted(ledger.decisions(ref(run)), key=lambda each: each.decided_wall_ns)
    ready = datetime.fromtimestamp(first.decided_wall_ns / NS_PER_S, timezone.utc)
    morning = ready.replace(hour=13, minute=0, second=0, microsecond=0)  # 06:00 in California
    assert len(tasks) == 6
    for task in tasks:
        assert task.ended_wall_ns is not None
        assert task.ended_wall_ns <= morning.timestamp() * NS_PER_S, "the deadline is hard"
        about = [each for each in ledger.decisions(ref(run)) if each.key == task.key]
        assert any(each.action == "defer" and each.enforced for each in about), "it was put off, and for a reason"
    ledger.close()
