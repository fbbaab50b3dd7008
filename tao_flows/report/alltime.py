"""Totals for good, by team, model, flow, day, namespace or engine; and what each segment caused, in whole numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.errors import InputError, TaoError
from tao_flows.figures import Quality, joules
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.lasting import grouped
from tao_flows.ledger.pools import read_pools
from tao_flows.ledger.tally import DAY_NS, LATE, LATE_ACCOUNTS, Price, Priced, Tally, TaskPart, Total
from tao_flows.pools import merge_pools
from tao_flows.report.carbon import Curve, Place, Use, caused
from tao_flows.report.curves import places_of, read_curves
from tao_flows.report.runview import currency
from tao_flows.report.text import plain
from tao_flows.signals.model import CARBON, PRICE
from tao_flows.units import NS_PER_S, format_energy

if TYPE_CHECKING:
    from rich.console import Console

    from tao_flows.pools import WorkerPool
    from tao_flows.signals.board import SignalBoard

SCHEMA: Final = "tao-flows/totals/1"
GROUPS: Final = {
    "team": "team", "model": "model_id", "flow": "flow", "day": "day", "namespace": "namespace", "engine": "engine",
}  # fmt: skip
"""What totals can be grouped by, and the field that it is."""
_MILLION: Final = 1_000_000
_COVERED: Final = 0.999
"""Of a segment's time: below it, what the segment caused is unknown."""
Lines = Mapping[tuple[str, str, str], Total]


def pricer(
    ledger: Ledger, board: SignalBoard | None, pools: Iterable[WorkerPool], now_wall_ns: int
) -> tuple[Price, tuple[TaoError, ...]]:
    """What segments caused, by the signals as they are kept, and what could not be read of these.

    Of a segment whose time no signal covers it is unknown. Each amount is rounded by itself, to a microgram or a
    millionth of the currency, so that a sum of segments does not depend on their order.

    Args:
        ledger: knows pools that the settings do not describe.
        board: the configured signals.
        pools: as they are described.
        now_wall_ns: the present.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.transaction(write=False) as tx:
        places = places_of(merge_pools(pools, read_pools(tx)))
    zones = {place.zone for place in places.values() if place.zone}
    grams, problems = read_curves(board, CARBON, zones, 0, now_wall_ns)
    prices, more = read_curves(board, PRICE, zones, 0, now_wall_ns)
    kinds = (("carbon", "ug", grams), ("cost", currency(prices), prices)) if prices else (("carbon", "ug", grams),)

    def price(part: TaskPart) -> Iterable[Priced]:
        return [Priced(line, unit, _caused(part, places, curves)) for line, unit, curves in kinds]

    return price, (*problems, *more)


def _caused(part: TaskPart, places: Mapping[str, Place], curves: Mapping[str, Curve]) -> tuple[int, int, int] | None:
    if part.energy_uj is None or part.ended_wall_ns is None:
        return None
    use = Use(
        part.pool, part.started_wall_ns, part.ended_wall_ns, part.energy_uj, part.low_uj, part.high_uj,
        Quality(part.quality),
    )  # fmt: skip
    amount = caused([use], places, curves, "")
    if amount.value is None or amount.low is None or amount.high is None or amount.coverage < _COVERED:
        return None
    return round(amount.value * _MILLION), round(amount.low * _MILLION), round(amount.high * _MILLION)


def group_field(by: str) -> str:
    """The field of a total that ``by`` names.

    Raises:
        InputError: TOTALS_GROUP, there is none.
    """
    if by not in GROUPS:
        raise InputError("TOTALS_GROUP", f"{by!r} is no grouping of totals", f"group by {', '.join(GROUPS)}")
    return GROUPS[by]


def totals_json(tally: Tally, by: str, since_wall_ns: int) -> dict[str, Any]:
    """Totals as JSON: amounts are whole numbers in texts, null where no part is known."""
    return {
        "schema": SCHEMA,
        "by": by,
        "since": iso_from_ns(since_wall_ns // DAY_NS * DAY_NS) if since_wall_ns else None,
        "rows": [
            {"group": _name(group, by), "lines": [_line_json(*name, total) for name, total in lines.items()]}
            for group, lines in grouped(tally, group_field(by)).items()
        ],
    }


def _line_json(line: str, label: str, unit: str, total: Total) -> dict[str, Any]:
    amounts = {name: str(getattr(total, name)) if unit and total.known else None for name in ("amount", "low", "high")}
    return {"line": line, "label": label, "unit": unit, "parts": total.parts, "known": total.known, **amounts}


def print_totals(tally: Tally, by: str, since_wall_ns: int, console: Console) -> None:
    """Writes totals to ``console`` as a table; what is unknown of a sum is said beside it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    since = f" since {(iso_from_ns(since_wall_ns) or '')[:10]}" if since_wall_ns else ", all that was ever recorded"
    console.print(Text.assemble((f"Totals by {by}", "bold"), since))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(by.capitalize(), overflow="fold", min_width=10)
    for head in ("Runs", "Tries", "Energy", "Overhead", "gCO2e", "Energy's cost"):
        table.add_column(head, justify="right")
    late = 0
    for group, lines in grouped(tally, group_field(by)).items():
        late += sum(total.parts for (line, _, _), total in lines.items() if line in (LATE, LATE_ACCOUNTS))
        cells = (
            *(f"{sum(total.parts for (name, _, _), total in lines.items() if name == line):,}"
              for line in ("runs", "tries")),
            _energies(lines, "energy"), _energies(lines, "overhead"), _amounts(lines, "carbon"), _amounts(lines, "cost"),
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in (plain(_name(group, by)) or f"(no {by})", *cells)))
    console.print(table)
    if late:
        console.print(f"{late:,} records came after their run was summed up. They are in no sum: see --json.")


def _energies(lines: Lines, line: str) -> str:
    found = {label: total for (name, label, _), total in lines.items() if name == line}
    said = [f"{format_energy(joules(total.amount))} {label}" for label, total in sorted(found.items()) if total.known]
    return _with_unknown(said, found.values())


def _amounts(lines: Lines, line: str) -> str:
    found: dict[str, Total] = {}
    for (name, _, unit), total in lines.items():
        if name == line:
            found[unit] = found.get(unit, Total(0, 0)).plus(total)
    said = [
        f"{total.amount / _MILLION:,.6g}" + ("" if unit == "ug" else f" {plain(unit)}")
        for unit, total in sorted(found.items())
        if total.known
    ]
    return _with_unknown(said, found.values())


def _with_unknown(said: list[str], totals: Iterable[Total]) -> str:
    unknown = sum(total.parts - total.known for total in totals)
    return "\n".join([*said, *([f"{unknown:,} parts unknown"] if unknown else [])])


def _name(group: str, by: str) -> str:
    if by != "day":
        return group
    return datetime.fromtimestamp(int(group) * DAY_NS // NS_PER_S, timezone.utc).date().isoformat()
