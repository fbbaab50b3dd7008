"""When a task may start: the latest start, one function for what is allowed and what is forced, and the grid to it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from tao_flows.controller.model import DecisionRequest, Pool, seconds_between, us_between
from tao_flows.units import US_PER_S

MOST_STARTS: Final = 10_000
"""Starts of a pool that are weighed: a month of five-minute slots. What lies beyond is not, however fine the slots."""


def needed_s(request: DecisionRequest, pool: Pool) -> float | None:
    """Seconds to keep free between a start in ``pool`` and the deadline; None when unknown."""
    if pool.queue_wait_s is None or pool.runtime_s is None:
        return None
    return pool.queue_wait_s + pool.runtime_s.p95 + request.engine_latency_s + request.safety_s


def latest_start_s(request: DecisionRequest, pool: Pool) -> float:
    """The latest start in ``pool``, in seconds from now; negative when it has passed.

    ``min(ready_at + max_defer, deadline - queue_wait - p95 - engine_latency - safety)``. A plan in another pool also
    keeps the room that the home pool needs, so that the task can still come home. Where that room is unknown, the
    deadline itself is the only bound it gives.
    """
    task = request.task
    latest_s = seconds_between(request.now, task.ready_at) + task.max_defer_s
    if task.deadline is None:
        return latest_s
    rooms_s = [room_s for place in (pool, request.home) if (room_s := needed_s(request, place)) is not None]
    return min(latest_s, seconds_between(request.now, task.deadline) - max(rooms_s, default=0.0))


def later_starts_us(request: DecisionRequest, pool: Pool, latest_s: float, settled_us: int) -> Sequence[int]:
    """The starts in ``pool`` after now that the task may wait for, in microseconds from now.

    They stand on the grid ``now + k * slot_s``, not before ``min_dwell_s`` and up to the latest start. A slot that has
    no place left holds none. Nothing changes any more for a start ``settled_us`` from now or later, so that only the
    first of those is there.
    """
    slot_us = request.slot_us
    closed = _closed_us(request, pool)
    first_us = first_later_us(request)
    # A thousandth of a microsecond: what a sum of seconds in floating point may be short by.
    last_us = math.floor(min(latest_s, _calendar_s(request)) * US_PER_S + 1e-3)
    # Each closed slot bars one start at most, also the first one of those that are all alike.
    alike_us = max(-(-settled_us // slot_us) * slot_us, first_us) + len(closed) * slot_us
    last_us = min(last_us, alike_us, first_us + (MOST_STARTS - 1) * slot_us)
    grid = range(first_us, last_us + 1, slot_us)
    if not closed:
        return grid
    return [start_us for start_us in grid if not _within(start_us, closed, slot_us)]


def first_later_us(request: DecisionRequest) -> int:
    """The first start after now on the grid, in microseconds from now, whether or not a pool has a place left then."""
    slot_us = request.slot_us
    return max(math.ceil(request.min_dwell_s * US_PER_S / slot_us), 1) * slot_us


def _calendar_s(request: DecisionRequest) -> float:
    """Seconds until the last year that a calendar has."""
    return seconds_between(request.now, request.now.max.replace(tzinfo=request.now.tzinfo)) - 1.0


def _closed_us(request: DecisionRequest, pool: Pool) -> list[int]:
    """When the slots begin that have no place left for a planned start."""
    return [us_between(request.now, start) for start, places in pool.capacity_by_slot if places == 0]


def _within(start_us: int, closed_us: list[int], slot_us: int) -> bool:
    """Whether a start falls in one of the slots that begin at ``closed_us``, in order."""
    before = bisect_right(closed_us, start_us)
    return before > 0 and start_us < closed_us[before - 1] + slot_us


def slack_s(request: DecisionRequest) -> float:
    """The horizon S that latency is weighed against, fixed when the task became ready.

    The home pool's latest start counted from ``ready_at``, and never below the home pool's p95 runtime (1 s where
    that is unknown or shorter): without room to wait, a delay is weighed against the length of the task.
    """
    home = request.home
    since_ready_s = latest_start_s(request, home) - seconds_between(request.now, request.task.ready_at)
    return max(since_ready_s, home.runtime_s.p95 if home.runtime_s is not None else 0.0, 1.0)
