"""The totals that are kept for good, with what is not summed up yet: the same before a compaction and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tao_flows.ledger.base import Ledger, Transaction
from tao_flows.ledger.tally import (
    ACCOUNT_COLUMNS,
    DAY_NS,
    SAME_RUN,
    TASK_COLUMNS,
    Price,
    Tally,
    TaskPart,
    Total,
    TotalKey,
    Walk,
    new_tally,
    tally_run,
    unpriced,
)

_PAGE: Final = 2_000
_KEY: Final = TotalKey._fields
_SUMS: Final = Total._fields
_PUT: Final = f"""INSERT INTO totals ({", ".join((*_KEY, *_SUMS))})
    VALUES ({", ".join(f":{name}" for name in (*_KEY, *_SUMS))})
    ON CONFLICT ({", ".join(_KEY)}) DO UPDATE SET {", ".join(f"{name} = totals.{name} + excluded.{name}" for name in _SUMS)}"""
_STANDING: Final = SAME_RUN.replace("run.", "standing.")
_TASK_KEY: Final = ("engine", "namespace", "run_id", "flow", "task", "instance", "try_number", "segment")
_ACCOUNT_KEY: Final = (*_TASK_KEY[:4], "host", "time_window")


def put_totals(tx: Transaction, tally: Tally) -> None:
    """Adds to the totals, in one order for all: of two that add to the same ones at once, one waits for the other."""
    for key, total in sorted(tally.items()):
        tx.change(_PUT, **key._asdict(), **total._asdict())


def read_totals(ledger: Ledger, since_wall_ns: int = 0, price: Price = unpriced) -> Tally:
    """All that was ever recorded, in whole numbers: what was summed up, and every record that is there.

    It reads every record, and so takes seconds for some hundred thousand, in bounded memory.

    Args:
        ledger: its schema must be this version's.
        since_wall_ns: what is of an earlier day (UTC) is left out.
        price: what a segment caused.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    since_day = since_wall_ns // DAY_NS
    with ledger.transaction(write=False) as tx:
        names = ", ".join((*_KEY, *_SUMS))
        rows = tx.execute(f"SELECT {names} FROM totals WHERE day >= :since", since=since_day)
        width = len(_KEY)
        tally = new_tally((TotalKey._make(row[:width]), Total._make(map(int, row[width:]))) for row in rows)
        there = new_tally()
        _read_runs(tx, there)
        _read_tasks(tx, there, price)
        _read_accounts(tx, there)
        for wall_ns, code, count in tx.execute("SELECT wall_ns, code, count FROM incidents"):
            key = TotalKey(wall_ns // DAY_NS, "", "", "", "", "", "incidents", code, "")
            there[key] = there[key].plus(Total(int(count), int(count)))
    for key, total in there.items():
        if key.day >= since_day:
            tally[key] = tally[key].plus(total)
    return tally


def grouped(tally: Tally, by: str) -> dict[str, dict[tuple[str, str, str], Total]]:
    """Totals by one of the fields of ``TotalKey``; in a group by line, label and unit."""
    groups: dict[str, dict[tuple[str, str, str], Total]] = {}
    for key, total in sorted(tally.items()):
        lines = groups.setdefault(str(getattr(key, by)), {})
        name = key.line, key.label, key.unit
        lines[name] = lines.get(name, Total(0, 0)).plus(total)
    return groups


def _read_runs(tx: Transaction, tally: Tally) -> None:
    for row in tx.execute(
        f"""SELECT part.engine, part.namespace, part.flow, part.team, part.model_id, part.started_wall_ns, part.state
        FROM runs part LEFT JOIN compacted standing ON {_STANDING} WHERE coalesce(standing.floor_wall_ns, 0) = 0"""
    ):
        tally_run(row, tally)


def _read_tasks(tx: Transaction, tally: Tally, price: Price) -> None:
    walk, whose = Walk(), ("", "", "", "")
    for *columns, floor_ns, place in _paged(tx, "tasks", TASK_COLUMNS, _TASK_KEY):
        part = TaskPart._make(columns)
        if part[:4] != whose:
            walk, whose = Walk.of(floor_ns, place), part[:4]
        if part.state == "running":
            continue  # nothing is known of it yet
        walk.task(part, tally, price)


def _read_accounts(tx: Transaction, tally: Tally) -> None:
    for *columns, floor_ns, place in _paged(tx, "accounts", ACCOUNT_COLUMNS, _ACCOUNT_KEY):
        Walk.of(floor_ns, place).account(tuple(columns), tally)


def _paged(tx: Transaction, table: str, columns: str, key: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Every row of a table in order of its key, with how far its run is summed up."""
    names = ", ".join(f"part.{name}" for name in key)
    given = ", ".join(f":{name}" for name in key)
    after: dict[str, object] = {name: -1 if name == "try_number" else "" for name in key}
    while True:
        rows = tx.execute(
            f"""SELECT {columns}, standing.floor_wall_ns, standing.place FROM {table} part
            LEFT JOIN runs run ON {SAME_RUN} LEFT JOIN compacted standing ON {_STANDING}
            WHERE ({names}) > ({given}) ORDER BY {names} LIMIT :page""",
            page=_PAGE, **after,
        )  # fmt: skip
        yield from rows
        if len(rows) < _PAGE:
            return
        after = dict(zip(key, rows[-1], strict=False))
