"""The application: its sub-commands and the options they share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

import tao_flows
from tao_flows.cli._console import BAD_USAGE, complain
from tao_flows.cli.agent import agent_command
from tao_flows.cli.budget import budget_app
from tao_flows.cli.calibrate import calibrate_command
from tao_flows.cli.config import config_command
from tao_flows.cli.decide import decide_command
from tao_flows.cli.doctor import doctor_command
from tao_flows.cli.drain import drain_command
from tao_flows.cli.export import export_command
from tao_flows.cli.ingest import ingest_app
from tao_flows.cli.ledger import ledger_app
from tao_flows.cli.meter import meter_command
from tao_flows.cli.pools import pools_app
from tao_flows.cli.release import deferrals_command, release_command
from tao_flows.cli.report import report_command
from tao_flows.cli.rules import rules_app
from tao_flows.cli.signals import signals_app
from tao_flows.cli.simulate import simulate_command
from tao_flows.cli.spool import spool_app
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


app.command("doctor")(doctor_command)
# What follows the command's name is the command's own, dashes and all.
app.command("meter", context_settings={"allow_interspersed_args": False})(meter_command)
app.command("report")(report_command)
app.command("decide")(decide_command)
app.command("simulate")(simulate_command)
app.command("export")(export_command)
app.command("config")(config_command)
app.add_typer(pools_app, name="pools")
app.command("agent")(agent_command)
app.add_typer(ledger_app, name="ledger")
app.command("calibrate")(calibrate_command)
app.add_typer(budget_app, name="budget")
app.add_typer(ingest_app, name="ingest")
app.add_typer(spool_app, name="spool")
app.command("release")(release_command)
app.command("drain")(drain_command)
app.command("deferrals")(deferrals_command)
app.add_typer(rules_app, name="rules")
app.add_typer(signals_app, name="signals")


def run(args: Sequence[str]) -> NoReturn:
    """Runs a command and ends with its status. Bad usage is told on one line."""
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
