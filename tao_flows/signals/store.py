"""Forecasts as they were issued and what came true, in the ledger: what a margin is learned from."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from tao_flows.errors import LedgerError
from tao_flows.signals.model import Forecast, Issue, Steps
from tao_flows.units import NS_PER_S

if TYPE_CHECKING:
    from tao_flows.ledger.base import Ledger

KEEP_DAYS: Final = 30
_DAY_NS: Final = 86_400 * NS_PER_S


class ForecastStore:
    """Keeps every distinct issue, and the values that came true, for some days. Written to by many hosts at once.

    ``series`` is what a `SignalSpec` calls its series, so that figures of different kinds never meet.

    Args:
        ledger: where they are kept.
        keep_days: how long.
    """

    def __init__(self, ledger: Ledger, keep_days: float = KEEP_DAYS) -> None:
        self._ledger, self._keep_ns = ledger, round(keep_days * _DAY_NS)

    def put(self, series: str, zone: str, forecast: Forecast) -> None:
        """Keeps an issue unless it says what the one before it said, and what came true. The first of an issue stands.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        about = {"series": series, "zone": zone}
        issued = forecast.issue.issued_wall_ns
        body = _encode(forecast.issue.steps)
        with self._ledger.transaction() as transaction:
            before = transaction.execute(
                "SELECT body FROM forecasts WHERE signal = :series AND zone = :zone AND issued_wall_ns <= :issued"
                " ORDER BY issued_wall_ns DESC LIMIT 1",
                issued=issued, **about,
            )  # fmt: skip
            if before != [(body,)]:
                transaction.change(
                    "INSERT INTO forecasts (signal, zone, issued_wall_ns, body) VALUES (:series, :zone, :issued, :body)"
                    " ON CONFLICT (signal, zone, issued_wall_ns) DO NOTHING",
                    issued=issued, body=body, **about,
                )  # fmt: skip
            for start, value in forecast.actuals:
                # A value may be corrected after the fact.
                transaction.change(
                    "INSERT INTO signal_values (signal, zone, start_wall_ns, value)"
                    " VALUES (:series, :zone, :start, :value) ON CONFLICT (signal, zone, start_wall_ns)"
                    " DO UPDATE SET value = excluded.value WHERE signal_values.value <> excluded.value",
                    start=start, value=value, **about,
                )  # fmt: skip
            oldest = issued - self._keep_ns
            for table, column in (("forecasts", "issued_wall_ns"), ("signal_values", "start_wall_ns")):
                transaction.change(
                    f"DELETE FROM {table} WHERE signal = :series AND zone = :zone AND {column} < :oldest",
                    oldest=oldest, **about,
                )  # fmt: skip

    def pairs(self, series: str, zone: str, since_wall_ns: int = 0) -> tuple[tuple[Issue, ...], Steps]:
        """The issues since, in order of issue, and the values since, in order of time.

        Raises:
            LedgerError: the ledger cannot be read, or what it holds is no forecast.
        """
        where = "WHERE signal = :series AND zone = :zone AND"
        about: dict[str, object] = {"series": series, "zone": zone, "since": since_wall_ns}
        with self._ledger.transaction(write=False) as transaction:
            issues = transaction.execute(
                f"SELECT issued_wall_ns, body FROM forecasts {where} issued_wall_ns >= :since ORDER BY issued_wall_ns",
                **about,
            )
            values = transaction.execute(
                f"SELECT start_wall_ns, value FROM signal_values {where} start_wall_ns >= :since"
                " ORDER BY start_wall_ns",
                **about,
            )
        try:
            found = tuple(Issue(int(issued), _decode(body)) for issued, body in issues)
        except (ValueError, TypeError, LookupError):
            remedy = "delete its rows in the table forecasts"
            raise LedgerError("LEDGER_CORRUPT", f"{zone}: a forecast that is none", remedy) from None
        return found, tuple((int(start), float(value)) for start, value in values)


def _encode(steps: Steps) -> str:
    """Runs of even spacing: start, spacing and values, to six digits. Five minutes apart, a day takes 2 kB."""
    runs: list[list[Any]] = []
    for index, (start, value) in enumerate(steps):
        rounded = float(f"{value:.6g}")
        spacing = start - steps[index - 1][0] if index else 0
        if runs and (spacing == runs[-1][1] or len(runs[-1][2]) == 1):
            runs[-1][1] = spacing
            runs[-1][2].append(rounded)
        else:
            runs.append([start, 0, [rounded]])
    return json.dumps(runs, separators=(",", ":"), allow_nan=False)


def _decode(body: str) -> Steps:
    steps = tuple(
        (start + index * spacing, float(value))
        for start, spacing, values in json.loads(body)
        for index, value in enumerate(values)
    )
    if any(after[0] <= before[0] for before, after in pairwise(steps)):
        raise ValueError(body)
    return steps
