"""How many items share a task run: as asked for, or by what items and task runs of the flow were measured to cost."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from tao_flows.batching import item_j, item_s, items_per_task, overhead_j
from tao_flows.errors import TaoError
from tao_flows.inversion import LEAVE_SHARE, follow
from tao_flows.ledger.base import History
from tao_flows.ledger.reads import Scope, overheads
from tao_flows.prefect._compat import FlowRunContext
from tao_flows.prefect.admit import LOCAL_POOL
from tao_flows.prefect.places import pool_of
from tao_flows.prefect.settings import tao_here
from tao_flows.runtime import Incidents, Tao
from tao_flows.units import NS_PER_S

AUTO: Final = "auto"
BATCH: Final = "batch"
"""What batches of a task are called after its name, in the ledger, where they are learned apart from its own runs."""
LEAST_ITEMS: Final = 20
"""Fewer are never put in batches unasked: there is nothing to gain."""
MOST_S: Final = 1.0
"""After so long a batch of measured size begins no further item: items that wait for something else than a CPU are run
side by side again."""
_MOST_WORKERS: Final = 10_000
_UNKNOWN_WORKERS: Final = 32
"""Of a cluster, such as Dask's."""
_LOOK_BACK_S: Final = 30 * 86_400
_KNOWN_S: Final = 60.0
"""How long what was measured is remembered."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large the batches of a map call are."""

    items: int
    reason: str = ""
    measured: bool = False
    """It may be made smaller for the items there are and the workers that run them."""
    unasked: bool = False

    @classmethod
    def of_plain(cls) -> Size:
        """No batches."""
        return cls(1)

    @property
    def limit_s(self) -> float | None:
        """After how many seconds a batch hands back what it has not begun; None for never."""
        return MOST_S if self.measured else None

    @property
    def is_plain(self) -> bool:
        """Whether every item has a task run of its own."""
        return self.items <= 1

    def for_items(self, count: int, workers: int | None) -> Size:
        """The size for so many items, on so many workers; None where the runner does not say."""
        if self.unasked and count < LEAST_ITEMS:
            return self.of_plain()
        if not self.measured:
            return self
        side_by_side = _UNKNOWN_WORKERS if workers is None else min(workers, _MOST_WORKERS)
        # Threads without end run side by side on the CPUs there are.
        if side_by_side == _MOST_WORKERS:
            side_by_side = os.cpu_count() or 1
        return replace(self, items=max(1, min(self.items, math.ceil(count / side_by_side))))


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the items of a task, and of the task runs of its flow."""

    item_j: float | None = None
    item_s: float | None = None
    """One after another, in batches: what items of other runs took is mostly their waiting for each other."""
    overhead_j: float | None = None
    inverted: bool = False
    share: float | None = None

    @property
    def items(self) -> int:
        size = items_per_task(self.item_j, self.overhead_j)
        return size if not self.item_s else max(1, min(size, int(MOST_S / self.item_s)))


def chosen_size(task: Any, context: FlowRunContext) -> Size:
    """The size that a task asks for, or that what was measured makes. Never raises."""
    wanted, tao = task.tao_coalesce, tao_here()
    if not isinstance(wanted, (bool, str)):
        return Size(wanted, "asked for")
    unasked = wanted == AUTO
    # Unasked it changes how a flow runs, which is for enforce alone.
    if unasked and (tao is None or tao.config.mode != "enforce"):
        return Size.of_plain()
    known = _Known() if tao is None or tao.config.mode == "off" else _known(tao, task, context)
    if not unasked:
        reason = "asked for, by what they cost" if known.overhead_j and known.item_j else "asked for"
        return Size(known.items, reason, measured=True)
    if not known.inverted or known.item_j is None or known.overhead_j is None:
        return Size.of_plain()
    share = "" if known.share is None else f", {known.share:.0%} of the joules of late"
    return Size(known.items, f"the engine takes more than the work{share}", measured=True, unasked=True)


_kept: WeakKeyDictionary[Incidents, dict[tuple[str, ...], tuple[float, _Known]]] = WeakKeyDictionary()


def _known(tao: Tao, task: Any, context: FlowRunContext) -> _Known:
    flow = context.flow.name if context.flow is not None else task.name
    pool = pool_of(context.flow_run) or LOCAL_POOL
    kept = _kept.setdefault(tao.incidents, {})
    key, now_s = (tao.config.namespace, flow, task.name, pool), time.monotonic()
    if key not in kept or now_s - kept[key][0] > _KNOWN_S:
        kept[key] = now_s, _read(tao, flow, task.name, pool)
    return kept[key][1]


def _read(tao: Tao, flow: str, task: str, pool: str) -> _Known:
    try:
        ledger, since_ns = tao.ledger, tao.clock.wall_ns() - _LOOK_BACK_S * NS_PER_S
        runs = overheads(ledger, Scope(since_ns, "prefect", flow, namespace=tao.config.namespace))
        # A size that the user gives a task is no number of items.
        single = [replace(run, size=1.0) for run in ledger.history(task, pool).runs]
        batched = list(ledger.history(f"{task} {BATCH}", pool).runs)
        history = History((*single, *batched))
        each_j, task_j = item_j(history), overhead_j(ledger, "prefect", runs)
        inversion = follow(runs)
        inverted = bool(inversion.inverted) or (_latest_is(batched, single) and _would_invert(each_j, task_j))
        return _Known(each_j, item_s(History(tuple(batched))), task_j, inverted, inversion.share)
    except TaoError as error:
        tao.incidents.note_error("reading what items cost", error, task=task)
    except Exception as ours:  # noqa: BLE001 - without us the items must still run
        tao.incidents.note_error("sizing batches", ours, task=task)
    return _Known()


def _latest_is(batched: list[Any], single: list[Any]) -> bool:
    """Whether the items were run in batches of late: histories begin with the newest."""
    if not batched:
        return False
    return not single or batched[0].started_wall_ns > single[0].started_wall_ns


def _would_invert(each_j: float | None, task_j: float | None) -> bool:
    """Whether the engine would take more than the work if each item were a task run again.

    Batches end what they are there for: judged by the runs alone, every other window would be without them.
    """
    return each_j is not None and task_j is not None and task_j / (task_j + each_j) > LEAVE_SHARE
