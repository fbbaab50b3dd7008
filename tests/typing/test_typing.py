"""What a type checker makes of the public surface: the other files here are checked, never run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKED = sorted(path for path in HERE.glob("*.py") if path != Path(__file__))


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.stem)
def test_mypy_agrees_with_every_type_that_the_file_states(path):
    # A line that must be refused carries an ignore with its code, and --strict refuses ignores that are not needed.
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(path)],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert run.returncode == 0, run.stdout + run.stderr
