"""``tao-flows ledger``: what the ledger is and holds, and bringing its schema to this version."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stdout
from tao_flows.config import load_config
from tao_flows.errors import TaoError
from tao_flows.ledger import open_ledger, schema
from tao_flows.ledger.migrations import Migration
from tao_flows.report.text import count

ledger_app = typer.Typer(help="Show the ledger, or bring its schema to this version.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]


@ledger_app.command("show")
def show_command(as_json: _Json = False) -> None:
    """Say where the ledger is, its schema, its size and what it holds."""
    try:
        ledger = open_ledger(load_config().config.ledger)
        standing = ledger.standing()
        is_current = standing.version >= len(schema.MIGRATIONS)
        found = {
            "ledger": ledger.url,
            "dialect": ledger.dialect,
            "shared": ledger.is_shared,
            "schema_version": standing.version,
            "contract": standing.contract,
            "needs_migration": standing.version > 0 and not is_current,
            "size_bytes": ledger.size_bytes(),
            "rows": ledger.counts() if is_current else None,
        }
        ledger.close()
    except TaoError as error:
        fail(error)
    if as_json:
        print_json(found)
    else:
        _show(found)


@ledger_app.command("migrate")
def migrate_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    as_json: _Json = False,
) -> None:
    """Bring the ledger's schema to this version. Nothing else does; writers of the version before go on working."""
    try:
        ledger = open_ledger(load_config().config.ledger)
        done = ledger.migrate(dry_run=dry_run)
        ledger.close()
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"ledger": ledger.url, **asdict(done)})
    else:
        stdout().print(_said(ledger.url, done), markup=False, highlight=False, soft_wrap=True)


def _said(url: str, done: Migration) -> str:
    if done.before == done.after:
        return f"{url} has schema version {done.after}: nothing to do"
    verb = "brought" if done.applied else "would be brought"
    whence = f"from schema version {done.before}" if done.before else "from nothing"
    steps = count(len(done.statements), "statement")
    lines = () if done.applied else done.statements
    return "\n".join((f"{url} {verb} {whence} to {done.after} by {steps}", *lines))


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")
    version = f"version {found['schema_version']}, for writers of {found['contract']} and later"
    if found["needs_migration"]:
        version += "; run: tao-flows ledger migrate"
    table.add_row("ledger", Text(found["ledger"]))
    table.add_row("kind", f"{found['dialect']}, {'shared by hosts' if found['shared'] else 'for this host alone'}")
    table.add_row("schema", version if found["schema_version"] else "none yet: the first use makes it")
    table.add_row("size", f"{found['size_bytes'] / 1e6:,.1f} MB")
    for name, rows in (found["rows"] or {}).items():
        table.add_row(name, f"{rows:,}")
    stdout().print(table)
