"""The README's flow runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support import only_run, ref

from tao_flows.ledger.base import Ledger

README = Path(__file__).parents[2] / "README.md"


def test_the_flow_in_the_readme_runs_and_is_metered(ledger: Ledger, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (flow,) = [snippet for snippet in snippets if "@tao_flow" in snippet]
    script = tmp_path / "nightly.py"
    script.write_text(flow, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = only_run(ledger)
    assert (run.flow, run.state, run.who.team) == ("nightly", "completed", "search")
    assert [task.budget for task in ledger.tasks(ref(run))] == ["task:embed", "task:embed"]


def test_the_demo_names_nothing_that_is_not_there(tmp_path: Path) -> None:
    demo = README.parent / "examples" / "prefect" / "compare_models.py"
    code = f"import runpy; print(callable(runpy.run_path({str(demo)!r}, run_name='demo')['main']))"
    env = {**os.environ, "DEMO_OUTPUT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-3000:]
