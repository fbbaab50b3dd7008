"""``tao-flows controller``: decides on flow runs before any worker picks them up, in the foreground."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tao_flows.cli._console import fail
from tao_flows.errors import InputError, MissingExtraError, TaoError


def controller_command(
    *,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Of the Prefect server that PREFECT_API_URL names.")
    ] = False,
    pool: Annotated[
        list[str] | None, typer.Option("--pool", metavar="NAME", help="Only this work pool; may be given again.")
    ] = None,
) -> None:
    """Put flow runs off before any worker takes them, and start them in time, until SIGTERM. Several may run."""
    try:
        if not prefect:
            raise InputError("BAD_USAGE", "say of which engine", "add --prefect; in Airflow the scheduler does this")
        try:
            from tao_flows.prefect.controller import run_controller
        except ImportError as error:
            raise MissingExtraError("prefect", "the controller") from error
        import asyncio

        asyncio.run(run_controller(pool or None, _say))
    except TaoError as error:
        fail(error)


def _say(line: str) -> None:
    print(f"tao-flows controller: {line}", file=sys.stderr, flush=True)
