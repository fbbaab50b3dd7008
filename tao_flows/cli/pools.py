"""``tao-flows pools``: the worker pools that are described, and what they draw now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stderr, stdout
from tao_flows.config import load_config
from tao_flows.errors import TaoError
from tao_flows.pools import WorkerPool, load_pools
from tao_flows.units import format_duration, format_power

if TYPE_CHECKING:
    from rich.text import Text

_MOST_AT_ONCE = 16
"""Servers asked side by side, so that one that does not answer holds up none of the others."""


def pools_command(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")] = False,
) -> None:
    """List the worker pools that are described, and what they draw now."""
    try:
        config = load_config().config
        described = () if config.pools is None else load_pools(config.pools)
    except TaoError as error:
        fail(error)
    rows = _rows(described)
    if as_json:
        path = None if config.pools is None else str(config.pools)
        print_json({"schema": "tao-flows/pools/1", "path": path, "pools": rows})
    elif rows:
        _show(rows)
    else:
        stderr().print("no pools are described: name a file of [[pools]] tables in TAO_FLOWS_POOLS", markup=False)


def _rows(pools: tuple[WorkerPool, ...]) -> list[dict[str, Any]]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_MOST_AT_ONCE) as executor:
        return list(executor.map(_row, pools))


def _row(pool: WorkerPool) -> dict[str, Any]:
    return {
        "pool_id": pool.pool_id,
        "zone": pool.zone,
        "online": pool.online,
        "trusted": pool.trusted,
        "capabilities": list(pool.capabilities),
        "pue": pool.pue,
        "price_per_h": pool.price_per_h,
        "power_cap_w": pool.power_cap_w,
        "power": None if pool.power_from is None else pool.power_from.read().to_json(),
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("pool", "zone", "state", "PUE", "draws now"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        state = "online" if row["online"] else "offline"
        state += "" if row["trusted"] else ", not trusted"
        table.add_row(
            Text(row["pool_id"], style="bold"), Text(row["zone"] or "-"), state, f"{row['pue']:g}", _power(row["power"])
        )
    stdout().print(table)


def _power(power: dict[str, Any] | None) -> Text:
    """The watts, with their age and quality; or why there are none. Text, not markup: there are names in it."""
    from rich.text import Text

    if power is None:
        return Text("no source", style="dim")
    if power["power_w"] is None:
        return Text(f"unknown: {power['summary']} [{power['code']}]\n-> {power['remedy']}")
    age = "" if power["age_s"] is None else f", {format_duration(power['age_s'])} old"
    count = "1 series" if power["series"] == 1 else f"{power['series']} series"
    return Text(f"{format_power(power['power_w'])} ({power['quality']}{age}, {count} of {power['source']})")
