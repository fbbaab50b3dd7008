"""``tao-flows ledger``: what the ledger is and holds, bringing its schema to this version, and keeping it small."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tao_flows.cli._console import complain, fail, print_json, stdout
from tao_flows.clock import SystemClock, iso_from_ns
from tao_flows.config import load_config, period_days
from tao_flows.errors import InputError, TaoError
from tao_flows.ledger import open_ledger, schema
from tao_flows.ledger.migrations import Migration
from tao_flows.ledger.tally import DAY_NS
from tao_flows.report.text import count

if TYPE_CHECKING:
    from tao_flows.ledger.compaction import Compaction

_LEAST_DAYS: Final = 7
_MOST_PROBLEMS: Final = 5
ledger_app = typer.Typer(
    help="Show the ledger, bring its schema to this version, or sum up what is old.", no_args_is_help=True
)

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


@ledger_app.command("compact")
def compact_command(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="PERIOD", help="Such as 90d; the setting ledger_retention by default. At least 7d."),
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do.")] = False,
    as_json: _Json = False,
) -> None:
    """Sum up runs last heard of before that, keep the totals for good, and take their records away.

    What is under way stays, and what predictions are made from; where bundles are configured, also what is not sealed.
    Exits with 1 where something was left for the next time because the ledger was busy or a record cannot be read.
    """
    from tao_flows.cli.report import reconciled
    from tao_flows.cli.totals import price_of
    from tao_flows.ledger.compaction import compact

    try:
        config = load_config().config
        before_wall_ns = _before(older_than, config.ledger_retention)
        ledger = reconciled(open_ledger(config.ledger))
        try:
            done = compact(
                ledger, before_wall_ns, price=price_of(config, ledger), sealed_only=config.bundles is not None,
                dry_run=dry_run,
            )  # fmt: skip
        finally:
            ledger.close()
    except TaoError as error:
        fail(error)
    if as_json:
        print_json(_compaction_json(ledger.url, done))
    else:
        stdout().print(_compacted(ledger.url, done), markup=False, highlight=False, soft_wrap=True)
    for problem in done.problems[:_MOST_PROBLEMS]:
        complain(problem)
    raise typer.Exit(1 if done.problems else 0)


def _before(older_than: str | None, setting: str) -> int:
    """The beginning of the day (UTC) that lies so long back: a day's totals are then of whole runs of that day.

    Raises:
        InputError: NO_PERIOD, none is given; or it is none; or too short for what reports and budgets look back on.
    """
    text = older_than or setting
    if not text:
        remedy = "add --older-than 90d, or set ledger_retention"
        raise InputError("NO_PERIOD", "it is not said how old what is summed up has to be", remedy)
    days = period_days(text)
    if days < _LEAST_DAYS:
        raise InputError(
            "SHORT_PERIOD", f"{text!r} is less than {_LEAST_DAYS} days", "give a longer period, such as 90d"
        )
    return max(0, SystemClock.wall_ns() // DAY_NS - days) * DAY_NS


def _compaction_json(url: str, done: Compaction) -> dict[str, Any]:
    return {
        "ledger": url,
        "before": iso_from_ns(done.before_wall_ns),
        "applied": done.applied,
        "runs": done.runs,
        "rows": dict(done.rows),
        "kept": dict(done.kept),
        "late": done.late,
        "problems": [{"code": each.code, "summary": each.summary, "remedy": each.remedy} for each in done.problems],
    }


def _compacted(url: str, done: Compaction) -> str:
    verb = "summed up" if done.applied else "would be summed up"
    lines = [f"{url}: {count(done.runs, 'run')} from before {(iso_from_ns(done.before_wall_ns) or '')[:10]} {verb}"]
    if rows := ", ".join(f"{number:,} {table}" for table, number in sorted(done.rows.items()) if number):
        lines.append(f"rows taken away: {rows}")
    lines += [f"kept: {count(number, 'run')}, {reason}" for reason, number in sorted(done.kept.items())]
    if done.late:
        lines.append(f"{count(done.late, 'record')} came after their run was summed up: told apart, in no sum")
    return "\n".join(lines)


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
