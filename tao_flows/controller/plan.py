"""When a task must have started: one function, for what is allowed and for what is forced."""

from __future__ import annotations

from tao_flows.controller.model import DecisionRequest, Pool, seconds_between


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


def slack_s(request: DecisionRequest) -> float:
    """The horizon S that latency is weighed against, fixed when the task became ready.

    The home pool's latest start counted from ``ready_at``, and never below the home pool's p95 runtime (1 s where
    that is unknown or shorter): without room to wait, a delay is weighed against the length of the task.
    """
    home = request.home
    since_ready_s = latest_start_s(request, home) - seconds_between(request.now, request.task.ready_at)
    return max(since_ready_s, home.runtime_s.p95 if home.runtime_s is not None else 0.0, 1.0)
