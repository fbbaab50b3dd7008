"""What is counted of runs for good: whole numbers by day, namespace, flow, team and model, so that sums are exact.

Pure: rows of a ledger in, totals out, the same whether the rows are about to go or stay. ``LINES`` says what is counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from tao_flows.figures import Account
from tao_flows.ledger import codec
from tao_flows.records import HostAccount
from tao_flows.units import NS_PER_S

DAY_NS: Final = 86_400 * NS_PER_S
ACCOUNT_LINES: Final = (
    "counter", "estimate", "tasks", "overhead", "idle", "allocated_idle", "unattributed",
)  # fmt: skip
"""Of the account of a host, by its quality."""
LATE: Final = "late"
LATE_ACCOUNTS: Final = "late accounts"
LINES: Final = {
    "runs": "",
    "tries": "",
    "segments": "",
    "energy": "uJ",
    **dict.fromkeys(ACCOUNT_LINES, "uJ"),
    "carbon": "ug",
    "cost": "",
    "incidents": "",
    LATE: "uJ",
    LATE_ACCOUNTS: "",
}
"""Each line and its unit. ``runs`` and ``segments`` are labelled by state, energies by quality, ``incidents`` by code.

``carbon`` is in micrograms of CO2e, ``cost`` in millionths of a currency, which is its unit. ``late`` is what came after
its run was summed up: it can have been counted before, and is in no other line.
"""


class TotalKey(NamedTuple):
    """What a total is of."""

    day: int
    """Days since the epoch, UTC: of a segment its start's, of an account its run's start's."""
    engine: str
    namespace: str
    flow: str
    team: str
    model_id: str
    line: str
    label: str
    unit: str


class Total(NamedTuple):
    """A sum of parts, of which so many are known; the amounts are those of the known ones."""

    parts: int
    known: int
    amount: int = 0
    low: int = 0
    high: int = 0

    def plus(self, other: Total) -> Total:
        """The sum of both."""
        return Total._make(map(int.__add__, self, other))


Tally = defaultdict[TotalKey, Total]


def new_tally(totals: Iterable[tuple[TotalKey, Total]] = ()) -> Tally:
    """The sum of totals."""
    tally: Tally = defaultdict(lambda: Total(0, 0))
    for key, total in totals:
        tally[key] = tally[key].plus(total)
    return tally


class Priced(NamedTuple):
    """What a segment caused, in the millionths of ``LINES``; no amount: it is unknown."""

    line: str
    unit: str
    amount: tuple[int, int, int] | None
    """With its lower and upper bound."""


class TaskPart(NamedTuple):
    """A segment as it is counted: the columns of ``TASK_COLUMNS``. Microjoules; None where they are unknown."""

    engine: str
    namespace: str
    run_id: str
    flow: str
    task: str
    instance: str
    try_number: int
    segment: str
    state: str
    started_wall_ns: int
    ended_wall_ns: int | None
    last_wall_ns: int
    pool: str
    quality: str
    energy_uj: int | None
    low_uj: int | None
    high_uj: int | None
    team: str
    model_id: str


TASK_COLUMNS: Final = ", ".join(
    f"coalesce(nullif(part.{name}, ''), run.{name}, '')" if name in ("team", "model_id") else f"part.{name}"
    for name in TaskPart._fields
)
"""Of ``tasks part`` beside ``runs run``: what a segment does not say itself, its run says of it."""
ACCOUNT_COLUMNS: Final = """part.engine, part.namespace, part.run_id, part.flow, part.host, part.time_window, part.body,
    coalesce(run.team, ''), coalesce(run.model_id, ''), coalesce(run.started_wall_ns, (
        SELECT min(started_wall_ns) FROM tasks own WHERE own.engine = part.engine AND own.namespace = part.namespace
        AND own.run_id = part.run_id AND own.flow = part.flow), 0)"""
SAME_RUN: Final = " AND ".join(f"run.{name} = part.{name}" for name in TaskPart._fields[:4])
"""A segment's, or an account's, run; also what is kept of it once it was summed up."""
Price = Callable[[TaskPart], Iterable[Priced]]


def unpriced(_part: TaskPart) -> Iterable[Priced]:
    """Where no signal is asked: what was caused is unknown."""
    return (Priced("carbon", "ug", None),)


ACCOUNTS, TASKS, DONE = range(3)
"""The order in which a run is summed up."""


@dataclass(slots=True)
class Walk:
    """How far a run has been counted, and what of the rest is late: rows are to come in order of their key."""

    floor_wall_ns: int = 0
    """What started before was counted by an earlier walk, or is late."""
    stage: int = ACCOUNTS
    after: tuple[Any, ...] = ()
    """The key of the last row of this stage that was counted."""
    counted_try: tuple[Any, ...] = ()

    @classmethod
    def of(cls, floor_wall_ns: int | None, place: str | None) -> Walk:
        """As the ledger keeps it; None where it keeps none."""
        if not place:
            return cls(floor_wall_ns or 0)
        stage, after, counted_try = json.loads(place)
        return cls(floor_wall_ns or 0, stage, tuple(after), tuple(counted_try))

    @property
    def place(self) -> str:
        """The form in which the ledger keeps it."""
        return json.dumps([self.stage, self.after, self.counted_try], separators=(",", ":"))

    def task(self, part: TaskPart, tally: Tally, price: Price) -> None:
        """Counts a segment."""
        key = part[4:8]
        if self.is_late(TASKS, key, part.started_wall_ns):
            tally_late(part, tally)
            return
        if self.counted_try != key[:3]:
            self.counted_try = key[:3]
            _add(tally, part, "tries", "", Total(1, 1))
        tally_task(part, tally, price)

    def account(self, row: tuple[Any, ...], tally: Tally) -> None:
        """Counts an account: a row of ``ACCOUNT_COLUMNS``."""
        engine, namespace, _, flow, host, window, body, team, model_id, started_wall_ns = row
        record = codec.load(HostAccount, body)
        whose = TotalKey(started_wall_ns // DAY_NS, engine, namespace, flow, team, model_id, "", "", "")
        # An account has no time of its own: once its run was summed up, nobody can tell whether it was in the sum.
        if self.floor_wall_ns or self.is_late(ACCOUNTS, (host, window), 0):
            _put(tally, whose._replace(line=LATE_ACCOUNTS, label=str(record.account.quality)), Total(1, 1))
            return
        tally_account(record.account, whose, tally)

    def is_late(self, stage: int, key: tuple[Any, ...], started_wall_ns: int) -> bool:
        """Whether a row can have been counted before."""
        if started_wall_ns < self.floor_wall_ns:
            return True
        return self.stage > stage or (self.stage == stage and bool(self.after) and key <= self.after)


def tally_task(part: TaskPart, tally: Tally, price: Price) -> None:
    """Counts a segment's state, its energy and what that caused."""
    _add(tally, part, "segments", part.state, Total(1, 1))
    _add(tally, part, "energy", part.quality, _energy(part))
    for priced in price(part):
        total = Total(1, 0) if priced.amount is None else Total(1, 1, *priced.amount)
        _add(tally, part, priced.line, part.quality, total, priced.unit)


def tally_late(part: TaskPart, tally: Tally) -> None:
    """Counts a segment that came after its run was summed up."""
    _add(tally, part, LATE, part.quality, _energy(part))


def tally_account(account: Account, whose: TotalKey, tally: Tally) -> None:
    """Counts the lines of an account."""
    for line in ACCOUNT_LINES:
        uj: int | None = getattr(account, f"{line}_uj")
        total = Total(1, 0) if uj is None else Total(1, 1, uj, uj, uj)
        _put(tally, whose._replace(line=line, label=str(account.quality), unit=LINES[line]), total)


def tally_run(row: tuple[Any, ...], tally: Tally) -> None:
    """Counts a run: its engine, namespace, flow, team, model, start and state."""
    engine, namespace, flow, team, model_id, started_wall_ns, state = row
    key = TotalKey(started_wall_ns // DAY_NS, engine, namespace, flow, team, model_id, "runs", state, "")
    _put(tally, key, Total(1, 1))


def _energy(part: TaskPart) -> Total:
    if part.energy_uj is None:
        return Total(1, 0)
    low, high = (part.energy_uj if bound is None else bound for bound in (part.low_uj, part.high_uj))
    return Total(1, 1, part.energy_uj, low, high)


def _add(tally: Tally, part: TaskPart, line: str, label: str, total: Total, unit: str | None = None) -> None:
    day = part.started_wall_ns // DAY_NS
    key = TotalKey(
        day, part.engine, part.namespace, part.flow, part.team, part.model_id, line, label,
        LINES[line] if unit is None else unit,
    )  # fmt: skip
    _put(tally, key, total)


def _put(tally: Tally, key: TotalKey, total: Total) -> None:
    tally[key] = tally[key].plus(total)
