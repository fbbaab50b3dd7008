"""What every command shares: two consoles, strict JSON, and one line for an error."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from tao_flows.errors import TaoError

if TYPE_CHECKING:
    from rich.console import Console

BAD_USAGE = 2
"""Exit status for bad usage or unreadable input."""


def stdout() -> Console:
    """The console for what was asked for."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for diagnostics and progress."""
    return _console(stderr=True)


@cache
def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    # A console without a file looks sys.stdout or sys.stderr up at each write, so a redirection is followed.
    return Console(stderr=stderr)


def print_json(value: Any) -> None:
    """Writes one strict JSON document and a newline on standard output, and nothing else.

    Raises:
        ValueError: ``value`` holds NaN or an infinity, which JSON has no word for.
    """
    sys.stdout.write(json.dumps(value, allow_nan=False, indent=2) + "\n")


def fail(error: TaoError) -> NoReturn:
    """Says what is wrong and what to do, on one line of standard error, and exits with 2."""
    complain(error)
    raise typer.Exit(BAD_USAGE)


def complain(error: TaoError) -> None:
    """Says what is wrong and what to do, on one line of standard error."""
    line = f"tao-flows: {error.summary}" + (f"; {error.remedy}" if error.remedy else "") + f" [{error.code}]"
    # Plain text: rich would wrap the line and read brackets in names as markup.
    print(" ".join(line.split()), file=sys.stderr)
