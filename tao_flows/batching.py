"""Items that share a task: how many to one, what of its joules is each one's, and which of them failed. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tao_flows.figures import Figure, Quality
from tao_flows.ledger.base import History, Ledger, RunOverhead, RunRef
from tao_flows.records import TaskRecord
from tao_flows.units import UJ_PER_J

OVERHEAD_SHARE: Final = 0.1
"""Batches are made large enough for the engine to take no more than this share of the joules of a task and its own."""
UNKNOWN_ITEMS: Final = 50
"""Items in a task where nothing is known of what they and a task cost."""
_LATEST_RUNS: Final = 3
_NAMED: Final = 5
"""Failed items that an error names; the log has all."""
_SHOWN: Final = 80

Use = Mapping[tuple[str, int], float]
"""CPU seconds that an item used, by instance and number of the try that ran it."""


def items_per_task(item_j: float | None, overhead_j: float | None, share: float = OVERHEAD_SHARE) -> int:
    """How many items make a task of which the engine takes no more than ``share``.

    With o joules of overhead a task and e an item, n items have the share o / (o + n e).

    Args:
        item_j: joules of one item; None for unknown.
        overhead_j: joules the engine takes for one task; None for unknown.
        share: of overhead, above 0 and below 1.
    """
    if item_j is None or overhead_j is None or item_j <= 0:
        return UNKNOWN_ITEMS
    return max(1, math.ceil(overhead_j * (1 - share) / (share * item_j)))


def item_j(history: History) -> float | None:
    """Joules of one item, over the runs whose energy and number of items are known."""
    known = [(run.energy_uj, run.size) for run in history.runs if run.energy_uj is not None and run.size]
    return None if not known else sum(uj for uj, _ in known) / sum(size for _, size in known) / UJ_PER_J


def item_s(history: History) -> float | None:
    """Seconds of one item, over the runs whose time and number of items are known."""
    known = [(run.runtime_s, run.size) for run in history.runs if run.runtime_s is not None and run.size]
    return None if not known else sum(s for s, _ in known) / sum(size for _, size in known)


def overhead_j(ledger: Ledger, engine: str, runs: Iterable[RunOverhead]) -> float | None:
    """Joules that the engine takes for one task, over the latest of ``runs`` whose overhead is known.

    Args:
        ledger: where the tasks of the runs are.
        engine: such as ``airflow``.
        runs: of one flow, in order of start, as ``ledger.reads.overheads`` gives them.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    known = [run for run in runs if run.overhead_uj is not None][-_LATEST_RUNS:]
    tries = sum(_tries(ledger, engine, run) for run in known)
    return None if not tries else sum(run.overhead_uj or 0 for run in known) / tries / UJ_PER_J


def _tries(ledger: Ledger, engine: str, run: RunOverhead) -> int:
    return len({record.key for record in ledger.tasks(RunRef(engine, run.namespace, run.run_id, run.flow))})


def shares(uses: Sequence[Use], records: Iterable[TaskRecord]) -> list[Figure]:
    """The joules of each item: of every try that ran it, the share of CPU seconds that were the item's.

    Equal CPU seconds count as equal joules, so that the figure of an item is never better than ``attributed``. What a
    try used outside its items is no item's. Where joules or CPU seconds of a try are unknown, so is the item's part.

    Args:
        uses: of all the items of those tries.
        records: of the tasks that ran them.
    """
    measured: defaultdict[tuple[str, int], list[TaskRecord]] = defaultdict(list)
    for record in records:
        measured[record.key.instance, record.key.try_number].append(record)
    used_s: defaultdict[tuple[str, int], float] = defaultdict(float)
    for use in uses:
        for key, cpu_s in use.items():
            used_s[key] += cpu_s
    return [
        Figure.total(_share(measured[key], cpu_s, used_s[key], key[1]) for key, cpu_s in use.items()) for use in uses
    ]


def _share(segments: Sequence[TaskRecord], cpu_s: float, items_s: float, number: int) -> Figure:
    unknown = Figure.unknown(f"try {number}")
    measurements = [segment.measurement for segment in segments if segment.measurement is not None]
    whole = Figure.total(measurement.energy for measurement in measurements)
    known_s = [measurement.cpu.cpu_s for measurement in measurements]
    if whole.value_uj is None or whole.low_uj is None or whole.high_uj is None or len(measurements) < len(segments):
        return unknown
    # The clocks differ a little: no more than the whole is ever shared out.
    whole_s = max(items_s, sum(s for s in known_s if s is not None))
    if whole_s <= 0 or None in known_s:
        return unknown
    share = cpu_s / whole_s
    quality = Quality.ATTRIBUTED if whole.quality is Quality.MEASURED else whole.quality
    value_uj, low_uj, high_uj = (int(uj * share) for uj in (whole.value_uj, whole.low_uj, whole.high_uj))
    return replace(whole, value_uj=value_uj, low_uj=low_uj, high_uj=high_uj, quality=quality)


def failure(failed: Iterable[tuple[int, Mapping[str, object], str]], of: int) -> str:
    """One line that names the items that failed, and why.

    Args:
        failed: of each its index, its arguments and its error.
        of: how many items there were.
    """
    failed = list(failed)
    named = [f"item {index}{_shown(arguments)}: {error}" for index, arguments, error in failed[:_NAMED]]
    if len(failed) > _NAMED:
        named.append(f"and {len(failed) - _NAMED} more")
    return f"{len(failed)} of {of} items failed: {'; '.join(named)}"


def _shown(arguments: Mapping[str, object]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f" ({text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'})" if text else ""
