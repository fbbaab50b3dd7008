"""``tao-flows report``: what a run cost, or what a fleet of runs did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tao_flows.cli._console import fail, print_json, stderr, stdout
from tao_flows.clock import SystemClock, iso_from_ns
from tao_flows.config import load_config
from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import RunRecord
from tao_flows.report.filters import parse_filters
from tao_flows.report.fleet import fleet_json, print_fleet
from tao_flows.report.model import read_report
from tao_flows.report.text import count, plain
from tao_flows.runtime import signal_board
from tao_flows.telemetry.procfs import is_alive
from tao_flows.units import NS_PER_S, parse_duration_s

_KEYS = ("engine", "namespace", "flow", "team", "owner", "pool", "quality")
_LISTED = 10
"""Runs named in an answer to an ambiguous name."""


def report_command(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN|latest", help="A run's id, name, or flow/run; latest by default.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Write Markdown.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="DURATION", help="All runs of the last 7d, 12h, ... instead of one.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="team|flow|pool", help="How --since groups; flow by default.")
    ] = None,
    totals: Annotated[
        bool,
        typer.Option("--totals", help="All that was ever recorded, by team, model, flow, day, namespace or engine."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of --since with --html: engine, flow, team, owner, pool, quality."),
    ] = None,
) -> None:
    """Show what a run cost, or with --since what all runs did."""
    try:
        if totals:
            from tao_flows.cli.totals import show_totals

            _refuse({"RUN": run, "--markdown": as_markdown, "--html": html, "--only": only}, "--totals")
            show_totals(since, by or "team", as_json=as_json)
            return
        if since is not None:
            _refuse({"RUN": run, "--markdown": as_markdown}, "--since")
            _fleet(since, by or "flow", as_json=as_json, html=html, only=only or [])
            return
        if only:
            raise InputError("BAD_USAGE", "--only narrows the page that --since and --html write", "add both")
        if by is not None:
            raise InputError(
                "BAD_USAGE", "--by groups the runs that --since names", "add --since 7d, or leave out --by"
            )
        if as_json:
            _refuse({"--markdown": as_markdown}, "--json")
        _run(run or "latest", as_json=as_json, as_markdown=as_markdown, html=html)
    except TaoError as error:
        fail(error)


def reconciled(ledger: Ledger) -> Ledger:
    """The ledger, with what is running by it and dead by the kernel marked as lost.

    A ledger that cannot be written is still read: then the diagnosis is all that is missing.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    ledger.find_runs("latest")  # what cannot be read ends here, in its own words
    try:
        lost = ledger.reconcile(is_alive)
    except LedgerError as error:
        stderr().print(f"note: lost tasks are not marked: {error.summary}", markup=False, highlight=False)
    else:
        if lost:
            said = f"note: {count(len(lost), 'task')} marked as lost: the process is gone"
            stderr().print(said, markup=False, highlight=False)
    return ledger


def nothing_yet(ledger: Ledger) -> InputError:
    """What to say of a ledger without runs."""
    return InputError(
        "NO_RUNS",
        f"no runs recorded yet: {ledger.url} is empty",
        "run a flow with @tao_flow or @tao_task, or set TAO_FLOWS_LEDGER to where its records are",
    )


def _refuse(options: dict[str, object], other: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise InputError("BAD_USAGE", f"{' and '.join(given)} cannot be given with {other}", "leave one of them out")


def _run(name: str, *, as_json: bool, as_markdown: bool, html: Path | None) -> None:
    config = load_config().config
    ledger = reconciled(open_ledger(config.ledger))
    try:
        run = one_run(ledger, name)
        if html is not None:
            from tao_flows.report.pages import run_page

            ref = RunRef(run.engine, run.namespace, run.run_id, run.flow)
            _write(run_page(ledger, ref, board=signal_board(config, ledger), config=config), html)
        report = read_report(ledger, run)
    finally:
        ledger.close()
    if as_json:
        print_json(report.to_json())
    elif as_markdown:
        from tao_flows.report.markdown import render_markdown

        print(render_markdown(report), end="")
    elif html is None:
        from tao_flows.report.terminal import print_report

        print_report(report, stdout())


def one_run(ledger: Ledger, name: str) -> RunRecord:
    """The one run that a name names.

    Raises:
        InputError: NO_RUNS, RUN_NOT_FOUND or RUN_AMBIGUOUS, which lists them.
        LedgerError: the ledger cannot be read.
    """
    found = ledger.find_runs(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            "RUN_AMBIGUOUS",
            f"{name!r} names {count(len(found), 'run')}: {_listed(found)}",
            "give the whole run id, or flow/run",
        )
    if not ledger.runs():
        raise nothing_yet(ledger)
    raise InputError("RUN_NOT_FOUND", f"no run is named {name!r}", f"the latest are {_listed(ledger.runs())}")


def _listed(runs: Sequence[RunRecord]) -> str:
    shown = ", ".join(
        f"{plain(run.flow)}/{plain(run.run_id)} ({plain(run.name) or 'unnamed'}, "
        f"started {(iso_from_ns(run.started_wall_ns) or '')[:19]}Z)"
        for run in runs[:_LISTED]
    )
    return shown if len(runs) <= _LISTED else f"{shown} and {len(runs) - _LISTED:,} more"


def _write(page: str, path: Path) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError("UNWRITABLE", f"{path}: {error.strerror}", "give --html a file that can be written") from None
    stderr().print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _fleet(since: str, by: str, *, as_json: bool, html: Path | None, only: Sequence[str]) -> None:
    since_wall_ns = since_ns(since)
    query = _query(since, only)
    if only and html is None:
        raise InputError("BAD_USAGE", "--only narrows the page that --html writes", "add --html FILE, or leave it out")
    config = load_config().config
    ledger = reconciled(open_ledger(config.ledger))
    try:
        rows, overheads = ledger.fleet(since_wall_ns, by), ledger.overheads(since_wall_ns)
        if not rows and not ledger.runs():
            raise nothing_yet(ledger)
        if html is not None:
            from tao_flows.report.pages import fleet_page

            _write(fleet_page(ledger, board=signal_board(config, ledger), config=config, query=query), html)
    finally:
        ledger.close()
    if as_json:
        print_json(fleet_json(rows, by, since_wall_ns, overheads))
    elif html is None:
        print_fleet(rows, by, since_wall_ns, overheads, stdout())


def _query(since: str, only: Sequence[str]) -> dict[str, str]:
    """The filters of the page, as an address would have them."""
    query = {"since": since}
    for each in only:
        key, equals, value = each.partition("=")
        if not equals or key not in _KEYS:
            raise InputError("BAD_USAGE", f"--only {each!r} is no filter", f"give KEY=VALUE of {', '.join(_KEYS)}")
        query[key] = value
    if problems := parse_filters(query)[1]:
        raise problems[0]
    return query


def since_ns(since: str) -> int:
    """The moment ``since`` ago, in nanoseconds of the wall clock; the epoch where that lies before it.

    Raises:
        InputError: ``since`` is no duration.
    """
    return max(0, SystemClock.wall_ns() - round(parse_duration_s(since, what="--since") * NS_PER_S))
