"""The ``tao-flows`` command: one file a sub-command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line. Exit status 2 is bad usage, told on one line."""
    from tao_flows.cli._app import run

    run(sys.argv[1:])
