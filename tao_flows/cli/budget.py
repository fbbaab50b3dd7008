"""``tao-flows budget``: define energy budgets in the ledger, and watch what is spent of them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from tao_flows.budget import EnergyBudget, zone_of
from tao_flows.cli._console import complain, fail, print_json, stderr, stdout
from tao_flows.clock import iso_from_ns
from tao_flows.config import load_config
from tao_flows.controller.regime import regime_of
from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.budgets import BudgetStore, Standing
from tao_flows.report.text import count, plain
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import NS_PER_S, format_duration, format_energy, j_from_uj

if TYPE_CHECKING:
    from rich.table import Table

budget_app = typer.Typer(
    help="Define energy budgets in the ledger, and watch what is spent of them.", no_args_is_help=True
)

REFRESH_S: Final = 1.0
SCHEMA: Final = "tao-flows/budgets/1"
_STYLES: Final = {"standard": "green", "transition": "yellow", "inversion": "red"}

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The budget's name.")]
_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]


@budget_app.command("set")
def set_command(
    name: _Name,
    limit: Annotated[str | None, typer.Option(metavar="ENERGY", help="What tasks should stay within: 1kWh.")] = None,
    window: Annotated[
        str | None, typer.Option(metavar="DURATION|WORD", help="1d, 2h, ... rolls; hour, day, week, month begin anew.")
    ] = None,
    zone: Annotated[str, typer.Option("--timezone", metavar="ZONE", help="Where a day begins: Europe/Berlin.")] = "UTC",
    ceiling: Annotated[
        str | None, typer.Option(metavar="ENERGY", help="Never exceeded where decisions are enforced.")
    ] = None,
    scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="Who is under it unasked: global, team:X, flow:X or pool:X.")
    ] = "",
    power: Annotated[
        str | None, typer.Option(metavar="POWER", help="A power cap in the place of a limit: 500W.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Define a budget, or define it anew."""
    try:
        budget = EnergyBudget.parse(name, limit, window, ceiling, zone, scope, power)
        with _store() as store:
            store.put(budget)
            standings = store.standings([name])
        configured = load_config().config.budgets
    except TaoError as error:
        fail(error)
    if configured.get(name, budget) != budget:
        _say(f"note: budget {name!r} is configured otherwise, and is so defined again when a flow starts")
    if as_json:
        print_json(_document(standings))
    else:
        ceiling_text = "" if budget.ceiling_j is None else f", never over {format_energy(budget.ceiling_j)}"
        _say(f"budget {name!r}: {format_energy(budget.limit_j)} in a window of {budget.window}{ceiling_text}")


@budget_app.command("show")
def show_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One budget; all if not given.")] = None,
    as_json: _Json = False,
) -> None:
    """Show how budgets stand: the limit, what is spent, reserved and left, and the regime."""
    try:
        with _store() as store:
            standings = _standings(store, name)
        configured = load_config().config.budgets
    except TaoError as error:
        fail(error)
    absent = sorted(configured.keys() - {each.budget.name for each in standings}) if name is None else []
    if absent:
        _say(f"note: configured, and not in the ledger until a flow starts: {', '.join(map(plain, absent))}")
    if as_json:
        print_json(_document(standings))
    elif standings:
        stdout().print(_table(standings))
    else:
        _say("no budgets are defined: tao-flows budget set NAME --limit ENERGY")


@budget_app.command("watch")
def watch_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One budget; all if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON document a line, and nothing else.")] = False,
) -> None:
    """Show how budgets stand, every second, until interrupted."""
    # Whoever runs this in the background has interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _store() as store:
            _watch(store, name, as_json=as_json)
    except TaoError as error:
        fail(error)
    except KeyboardInterrupt:
        return


@budget_app.command("drop")
def drop_command(name: _Name, as_json: _Json = False) -> None:
    """Forget a budget, with what was spent and reserved under it."""
    try:
        with _store() as store:
            _standings(store, name)
            store.drop(name)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"schema": SCHEMA, "dropped": name})
    else:
        _say(f"budget {name!r} is dropped")


@contextmanager
def _store() -> Iterator[BudgetStore]:
    ledger = open_ledger(load_config().config.ledger)
    try:
        yield BudgetStore(ledger)
    finally:
        ledger.close()


def _standings(store: BudgetStore, name: str | None) -> list[Standing]:
    """How one budget stands, or all.

    Raises:
        InputError: NO_BUDGET, there is none of that name.
    """
    known = [budget.name for budget in store.all()]
    if name is not None and name not in known:
        remedy = did_you_mean(name, known) if known else f"define it: tao-flows budget set {name} --limit ENERGY"
        raise InputError("NO_BUDGET", f"there is no budget {name!r}", remedy)
    return store.standings(known if name is None else [name])


def _watch(store: BudgetStore, name: str | None, *, as_json: bool) -> None:
    from rich.live import Live

    standings = _standings(store, name)
    if as_json or not stdout().is_terminal:
        while True:
            for line in [json.dumps(_document(standings))] if as_json else _lines(standings):
                sys.stdout.write(line + "\n")
            sys.stdout.flush()
            standings = _next(store, name, standings)
    with Live(_table(standings), console=stdout(), auto_refresh=False) as live:
        while True:
            standings = _next(store, name, standings)
            live.update(_table(standings), refresh=True)


def _next(store: BudgetStore, name: str | None, before: list[Standing]) -> list[Standing]:
    """How they stand a moment later; as before where the ledger does not answer, which is said."""
    time.sleep(REFRESH_S)
    try:
        return _standings(store, name)
    except LedgerError as error:
        complain(error)
        return before


def _document(standings: list[Standing]) -> dict[str, Any]:
    return {"schema": SCHEMA, "budgets": [_as_json(each) for each in standings]}


def _as_json(standing: Standing) -> dict[str, Any]:
    budget = standing.budget
    return {
        "name": budget.name,
        "limit_j": budget.limit_j,
        "ceiling_j": budget.ceiling_j,
        "power_w": budget.power_w,
        "window_s": budget.window_s,
        "calendar": budget.calendar,
        "timezone": budget.timezone,
        "scope": budget.scope,
        "window_start": iso_from_ns(standing.start_wall_ns),
        "window_end": iso_from_ns(standing.end_wall_ns),
        "spent_j": j_from_uj(standing.spent_uj),
        "reserved_j": j_from_uj(standing.reserved_uj),
        "left_j": j_from_uj(standing.left_uj),
        "utilisation": standing.utilisation,
        "regime": _regime(standing),
        "unknown_runs": standing.unknown_runs,
    }


def _regime(standing: Standing) -> str:
    """The regime now: the one kept is of the last decision, and a window may have begun anew since."""
    previous = standing.regime if standing.regime in _STYLES else None
    return str(regime_of(standing.utilisation, previous))  # type: ignore[arg-type]


def _cells(standing: Standing) -> tuple[str, ...]:
    budget = standing.budget
    unknown = f" + {count(standing.unknown_runs, 'unknown run')}" if standing.unknown_runs else ""
    left = format_energy(j_from_uj(abs(standing.left_uj)))
    return (
        plain(budget.name),
        format_energy(budget.limit_j),
        format_energy(j_from_uj(standing.spent_uj)) + unknown,
        format_energy(j_from_uj(standing.reserved_uj)),
        f"-{left}" if standing.left_uj < 0 else left,
        _regime(standing),
        _window(standing),
    )


def _window(standing: Standing) -> str:
    """The window, and when it ends by the clock of its own zone."""
    budget = standing.budget
    if standing.end_wall_ns is None:
        return f"{format_duration(budget.window_s)}, rolls"
    local = datetime.fromtimestamp(standing.end_wall_ns // NS_PER_S, zone_of(budget.timezone, budget.name))
    return f"{budget.calendar} to {local:%F %H:%M} {budget.timezone}"


def _table(standings: list[Standing]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("budget", "limit", "spent", "reserved", "left", "regime", "window"):
        figure = heading in {"limit", "spent", "reserved", "left"}
        justify: Literal["left", "right"] = "right" if figure else "left"
        table.add_column(heading, overflow="fold", justify=justify, no_wrap=figure or heading == "regime")
    for each in standings:
        name, *cells = _cells(each)
        styled = [Text(cell, style=_STYLES.get(cell, "")) for cell in cells]
        table.add_row(Text(name, style="bold"), *styled)
    return table


def _lines(standings: list[Standing]) -> list[str]:
    now = datetime.now(timezone.utc).strftime("%FT%TZ")
    return [
        f"{now} {name}: {spent} spent, {reserved} reserved, {left} left of {limit}, {regime}"
        for name, limit, spent, reserved, left, regime, _ in map(_cells, standings)
    ]


def _say(line: str) -> None:
    stderr().print(line, markup=False, highlight=False, soft_wrap=True)
