"""The application: its sub-commands and the options they share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final, NoReturn

import typer

import tao_flows
from tao_flows.cli._console import BAD_USAGE, complain
from tao_flows.errors import InputError

_INTERRUPTED = 130
"""Exit status after an interrupt, as a shell gives it."""

app = typer.Typer(
    name="tao-flows",
    help="Energy in Airflow and Prefect: what each task cost, and where it should run.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(tao_flows.__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


COMMANDS: Final = {
    "doctor": "doctor",
    "meter": "meter",
    "report": "report",
    "keys": "keys",
    "seal": "seal",
    "verify": "verify",
    "expire": "expire",
    "deposit": "deposit",
    "anchor": "anchor",
    "decide": "decide",
    "simulate": "simulate",
    "export": "export",
    "config": "config",
    "pools": "pools",
    "agent": "agent",
    "controller": "controller",
    "ledger": "ledger",
    "prefect": "prefect",
    "calibrate": "calibrate",
    "aggregate": "aggregate",
    "budget": "budget",
    "ingest": "ingest",
    "spool": "spool",
    "release": "release",
    "drain": "drain",
    "deferrals": "release",
    "rules": "rules",
    "signals": "signals",
}
"""Each command, in the order of the help, and the file that it is in."""


def _add(name: str) -> None:
    module = import_module(f"tao_flows.cli.{COMMANDS[name]}")
    group = getattr(module, f"{name}_app", None)
    if group is not None:
        app.add_typer(group, name=name)
    else:
        # What follows the command of ``meter`` is that command's own, dashes and all.
        settings = {"allow_interspersed_args": False} if name == "meter" else None
        app.command(name, context_settings=settings)(getattr(module, f"{name}_command"))


def run(args: Sequence[str]) -> NoReturn:
    """Runs a command and ends with its status. Bad usage is told on one line."""
    # A command loads what it needs itself, and none of what the others need: most of them start in a fraction of the time.
    for name in [args[0]] if args and args[0] in COMMANDS else COMMANDS:
        _add(name)
    try:
        # Not standalone: typer would print a usage error on several lines.
        status: Any = app(prog_name="tao-flows", args=list(args) or ["--help"], standalone_mode=False)
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        # Its class lies in click or in typer, by typer's version.
        format_message, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
        if format_message is None:
            raise
        command = getattr(context, "command_path", "tao-flows")
        complain(InputError("BAD_USAGE", format_message().rstrip("."), f"{command} --help shows how"))
        sys.exit(BAD_USAGE)
    sys.exit(status)
