"""``tao-flows pools``: the worker pools that are described, what they draw now, and how they were last seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tao_flows.cli._console import fail, print_json, stderr, stdout
from tao_flows.cli.partners import fetch_command, partner_rows, publish_command, show_partners, trust_command
from tao_flows.clock import SystemClock, iso_from_ns
from tao_flows.config import TaoConfig, load_config
from tao_flows.errors import LedgerError, TaoError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.pools import PoolStore
from tao_flows.pool_state import LiveState, PoolState, Seen, live
from tao_flows.pools import WorkerPool, load_pools, merge_pools
from tao_flows.report.text import count, plain
from tao_flows.units import format_duration, format_power

if TYPE_CHECKING:
    from rich.text import Text

_MOST_AT_ONCE = 16
"""Servers asked side by side, so that one that does not answer holds up none of the others."""
_NOT_FOUND = 1

pools_app = typer.Typer(help="The worker pools: list them, keep descriptions in the ledger, share them with partners.")
pools_app.command("publish")(publish_command)
pools_app.command("trust")(trust_command)
pools_app.command("fetch")(fetch_command)

_Json = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else.")]


@pools_app.callback(invoke_without_command=True)
def pools_command(context: typer.Context, as_json: _Json = False) -> None:
    """List the worker pools, or keep their descriptions in the ledger."""
    if context.invoked_subcommand is None:
        ls_command(as_json=as_json)


@pools_app.command("ls")
def ls_command(as_json: _Json = False) -> None:
    """List the worker pools that are described, what they draw now, and how they were last seen."""
    try:
        config = load_config().config
        in_file = () if config.pools is None else load_pools(config.pools)
    except TaoError as error:
        fail(error)
    in_ledger, states = _kept(config)
    rows, theirs = _rows(in_file, in_ledger, states), partner_rows(config)
    if as_json:
        path = None if config.pools is None else str(config.pools)
        print_json({"schema": "tao-flows/pools/1", "path": path, "pools": rows, "partners": theirs})
    elif rows or theirs:
        if rows:
            _show(rows)
        show_partners(theirs)
    else:
        said = "no pools are described: name a file of [[pools]] tables in TAO_FLOWS_POOLS, or put one in the ledger"
        stderr().print(said, markup=False)


@pools_app.command("put")
def put_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file of [[pools]] tables.")],
    as_json: _Json = False,
) -> None:
    """Keep descriptions in the ledger, for all who share it. A pool that is there already is replaced."""
    try:
        pools = load_pools(file)
        with _store(load_config().config) as store:
            for pool in pools:
                store.put(pool)
    except TaoError as error:
        fail(error)
    names = [pool.pool_id for pool in pools]
    if as_json:
        print_json({"put": names})
    else:
        stdout().print(f"kept {count(len(names), 'pool')}: {', '.join(map(plain, names))}", markup=False)


@pools_app.command("drop")
def drop_command(
    pool_id: Annotated[str, typer.Argument(metavar="ID", help="The pool's id.")],
    as_json: _Json = False,
) -> None:
    """Remove a description from the ledger, with what was seen of the pool. Ends with 1 if there is none."""
    try:
        with _store(load_config().config) as store:
            dropped = store.drop(pool_id)
    except TaoError as error:
        fail(error)
    if as_json:
        print_json({"dropped": [pool_id] if dropped else []})
    else:
        said = f"removed {plain(pool_id)}" if dropped else f"the ledger describes no pool {plain(pool_id)!r}"
        (stdout() if dropped else stderr()).print(said, markup=False)
    if not dropped:
        raise typer.Exit(_NOT_FOUND)


@contextmanager
def _store(config: TaoConfig) -> Iterator[PoolStore]:
    ledger = open_ledger(config.ledger)
    try:
        yield PoolStore(ledger)
    finally:
        ledger.close()


def _kept(config: TaoConfig) -> tuple[tuple[WorkerPool, ...], Mapping[str, tuple[PoolState, ...]]]:
    """What the ledger tells; where it cannot be read the file's pools are still listed."""
    try:
        with _store(config) as store:
            return store.all(), store.states()
    except LedgerError as error:
        stderr().print(f"note: the ledger is not read: {error.summary}", markup=False, highlight=False)
        return (), {}


def _rows(
    in_file: tuple[WorkerPool, ...],
    in_ledger: tuple[WorkerPool, ...],
    states: Mapping[str, tuple[PoolState, ...]],
) -> list[dict[str, Any]]:
    from concurrent.futures import ThreadPoolExecutor

    now_wall_ns, file_ids = SystemClock.wall_ns(), {pool.pool_id for pool in in_file}
    # In the file's order, then by id.
    order = {pool.pool_id: number for number, pool in enumerate(in_file)}
    pools = sorted(
        merge_pools(in_file, in_ledger), key=lambda pool: (order.get(pool.pool_id, len(order)), pool.pool_id)
    )

    def row(pool: WorkerPool) -> dict[str, Any]:
        return {
            "pool_id": pool.pool_id,
            "origin": "file" if pool.pool_id in file_ids else "ledger",
            "zone": pool.zone,
            "online": pool.online,
            "trusted": pool.trusted,
            "capabilities": list(pool.capabilities),
            "pue": pool.pue,
            "price_per_h": pool.price_per_h,
            "power_cap_w": pool.power_cap_w,
            "temperature_limit_c": pool.temperature_limit_c,
            "places": pool.places,
            "power": None if pool.power_from is None else pool.power_from.read().to_json(),
            "live": _live(live(states.get(pool.pool_id, ()), now_wall_ns), now_wall_ns),
        }

    with ThreadPoolExecutor(_MOST_AT_ONCE) as executor:
        return list(executor.map(row, pools))


def _live(state: LiveState, now_wall_ns: int) -> dict[str, Any]:
    names = ("online", "capacity_free", "queue_wait_s", "power_w", "temperature_c")
    fresh = {name: seen for name in names if (seen := getattr(state, name)) is not None}

    def told(seen: Seen[Any], *, stale: bool) -> dict[str, Any]:
        return {
            "value": seen.value,
            "seen": iso_from_ns(seen.seen_wall_ns),
            "age_s": seen.age_s(now_wall_ns),
            "source": seen.source,
            "stale": stale,
        }

    return {
        name: told(fresh[name], stale=False) if name in fresh else told(state.stale[name], stale=True)
        for name in names
        if name in fresh or name in state.stale
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("pool", "from", "zone", "state", "PUE", "draws now", "last seen"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        state = "online" if row["online"] else "offline"
        state += "" if row["trusted"] else ", not trusted"
        table.add_row(
            Text(row["pool_id"], style="bold"),
            row["origin"],
            Text(row["zone"] or "-"),
            state,
            f"{row['pue']:g}",
            _power(row["power"]),
            _last_seen(row["live"]),
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
    series = "1 series" if power["series"] == 1 else f"{power['series']} series"
    return Text(f"{format_power(power['power_w'])} ({power['quality']}{age}, {series} of {power['source']})")


def _last_seen(state: dict[str, Any]) -> Text:
    """One line a field: what was seen, how long ago and by whom; what is not believed any more is marked."""
    from rich.text import Text

    if not state:
        return Text("never", style="dim")
    text = Text()
    for name, seen in state.items():
        value = seen["value"]
        words = {
            "online": "online" if value else "offline",
            "capacity_free": f"{value} free",
            "queue_wait_s": f"wait {format_duration(float(value))}",
            "power_w": format_power(float(value)),
            "temperature_c": f"{value:g} °C",
        }[name]
        age = f"{format_duration(max(0.0, seen['age_s']))} ago by {plain(seen['source'])}"
        line = f"{words} ({age}{', stale: not used' if seen['stale'] else ''})"
        text.append(line if not text else f"\n{line}", "dim" if seen["stale"] else "")
    return text
