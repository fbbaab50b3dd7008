"""One engine, one side, one length of items: brought up, warmed, given items, and measured."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.headline.instrument import Instrument
from benchmarks.headline.sites import open_site
from benchmarks.headline.work import Done, derive, read_log, rounds_of, write_spec

STANDING_S: Final = 30.0
"""How long the engine is watched with nothing to do."""
PATIENCE_S: Final = 3_600.0
_LEAD_S: Final = 1.0
_LOOK_S: Final = 0.25
_SETTLED_S: Final = 2.0
_SETTLED_LOOKS: Final = 3
_SETTLED_TIMES: Final = 1.5
_SETTLED_SHARE: Final = 0.1
_LIKELY_FLOOR_S: Final = 0.2
"""Of a processor, before it is known what an engine uses with nothing to do: plain Airflow uses a tenth."""
_LONGEST_SETTLING_S: Final = 120.0
_CHECKED: Final = 20_000_000
"""Rounds that are run again to check results; the rest is checked by their being equal on all sides."""


@dataclass(frozen=True)
class Cell:
    """What is measured once."""

    engine: str
    side: str
    kind: str
    """``rate``: groups of items come at a fixed rate over a horizon; ``sweep``: one group, until it is done."""
    item_s: float
    """CPU seconds of an item."""
    rate: float | None
    """Items that come in a second; None in a sweep."""
    items: int
    """In a group."""
    arrivals_s: tuple[float, ...]
    """When a group comes, in seconds from the beginning."""
    horizon_s: float
    repetition: int

    def __str__(self) -> str:
        count = f"{len(self.arrivals_s)} x {self.items} items of {self.item_s:g} s"
        return f"{self.engine} {self.side} {self.kind}, {count}, #{self.repetition + 1}"


def measure_cell(cell: Cell, python: Path, home: Path, instrument: Instrument, per_s: float) -> dict[str, Any]:
    """Everything that is measured of a cell.

    Raises:
        OSError: the engine did not come up or did not end its work in time.
        RuntimeError: one of its programs ended.
    """
    rounds, spec, log = rounds_of(cell.item_s, per_s), home / "spec.json", home / "done.log"
    # The controller is given what it has to see where it is to act. A sweep asks what dispatch takes: any item will do.
    at_rate = cell.kind == "rate"
    write_spec(spec, rounds=rounds if at_rate else 1, log=home / "warm.log")
    site = open_site(cell.engine, python, cell.side, home / "site", spec, [cell.items])
    try:
        site.warm(cell.items if at_rate else 1)
        write_spec(spec, rounds=rounds, log=log)
        instrument.watch(site.components)
        _settle(instrument, _LIKELY_FLOOR_S)
        standing = _standing(instrument)
        floor_s = sum(standing["cpu_s_by_component"].values()) / standing["wall_s"]
        instrument.begin()
        began_s = time.time() + _LEAD_S
        arrivals = [(group, began_s + at_s) for group, at_s in enumerate(cell.arrivals_s)]
        site.run(arrivals, cell.items)
        answer = _followed(site, instrument, began_s + cell.horizon_s)
        settled_s = _settle(instrument, floor_s)
        done = read_log(log)
        account = instrument.end(sum(each.cpu_s for each in done))
    finally:
        instrument.forget()
        site.close()
    return {
        **asdict(cell),
        "rounds": rounds,
        "standing": standing,
        "account": account,
        "settling_s": settled_s,
        **_outcome(cell, done, arrivals, answer, rounds),
    }


def _standing(instrument: Instrument) -> dict[str, Any]:
    instrument.begin()
    until_s = time.monotonic() + STANDING_S
    while time.monotonic() < until_s:
        time.sleep(_LOOK_S)
        instrument.look()
    return instrument.end(0.0)


def _followed(site: Any, instrument: Instrument, until_s: float) -> dict[str, Any]:
    """Waits until the engine has ended all of it, and the horizon is over."""
    give_up_s = time.monotonic() + PATIENCE_S
    answer: dict[str, Any] | None = None
    while answer is None or time.time() < until_s:
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"not done after {PATIENCE_S:g} s")
        time.sleep(_LOOK_S)
        instrument.look()
        answer = answer if answer is not None else site.over()
    return answer


def _settle(instrument: Instrument, floor_s: float) -> float:
    """Waits until the engine has worked off what is left: until it uses about what it does with nothing to do.

    Args:
        instrument: watches it.
        floor_s: CPU seconds that it uses in a second with nothing to do.
    """
    began_s, quiet, before_s = time.monotonic(), 0, sum(instrument.look().values())
    while quiet < _SETTLED_LOOKS and time.monotonic() - began_s < _LONGEST_SETTLING_S:
        time.sleep(_SETTLED_S)
        now_s = sum(instrument.look().values())
        limit_s = max(_SETTLED_SHARE, _SETTLED_TIMES * floor_s) * _SETTLED_S
        quiet, before_s = quiet + 1 if now_s - before_s < limit_s else 0, now_s
    return time.monotonic() - began_s


def _outcome(
    cell: Cell, done: Sequence[Done], arrivals: Sequence[tuple[int, float]], answer: dict[str, Any], rounds: int
) -> dict[str, Any]:
    came_s = dict(arrivals)
    times = Counter((each.group, each.number) for each in done)
    wanted = {(group, number) for group in came_s for number in range(cell.items)}
    results = {f"{each.group}/{each.number}": each.result for each in done}
    latencies_s = sorted(each.ended_s - came_s[each.group] for each in done)
    told = answer.get("results")
    spans = {f"{g}/{n}": derive(g, n, rounds) for g, n in sorted(wanted)[: _CHECKED // rounds]}
    return {
        "lost": len(wanted - times.keys()),
        "ran_twice": sum(count > 1 for count in times.values()),
        "wrong": sum(results.get(item) != result for item, result in spans.items()),
        "checked": len(spans),
        # Prefect gives each result to the flow; Airflow says how its task instances ended.
        "told_otherwise": None if told is None else sum(told.get(item) != result for item, result in results.items()),
        "task_states": answer.get("task_states"),
        "results": results,
        "latency_s": _percentiles(latencies_s),
        "item_cpu_s": statistics.median([each.cpu_s for each in done]) if done else None,
    }


def _percentiles(ordered_s: Sequence[float]) -> dict[str, float] | None:
    if not ordered_s:
        return None
    last = len(ordered_s) - 1
    return {f"p{share}": ordered_s[round(share / 100 * last)] for share in (50, 90, 99)} | {"most": ordered_s[-1]}
