"""By when a task must have ended, for its run to keep its time-out and its Deadline Alerts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from tao_flows.units import NS_PER_S

HOP_S: Final = 5.0
"""From the end of a task until the next one runs: two scheduler loops, a queue, and the start of a process."""


def latest_end_wall_ns(ends_wall_ns: Iterable[int | None], after_s: float) -> int | None:
    """By when a task must have ended, in nanoseconds since 1970; None where nothing ends its run.

    Args:
        ends_wall_ns: by when its run must have ended, by each of its time-outs and alerts; None: by none.
        after_s: how long what follows it takes, in seconds.
    """
    first_ns = min((end_ns for end_ns in ends_wall_ns if end_ns is not None), default=None)
    return None if first_ns is None else first_ns - round(after_s * NS_PER_S)


def after_s(
    task_id: str, downstream: Mapping[str, Iterable[str]], runtime_p95_s: Callable[[str], float | None]
) -> float:
    """How long what follows a task takes from its end on, in seconds: the longest path through all that is downstream.

    Each task on it counts with the 95th percentile of its runtime and ``HOP_S``. One that has never run counts with
    ``HOP_S`` alone: many never do, such as the branches that are not taken. Mapped instances count as one, as if they
    all ran side by side.

    Args:
        task_id: the task.
        downstream: by task, those directly behind it. It has no circles.
        runtime_p95_s: the 95th percentile of a task's runtime, in seconds; None: not known.
    """
    longest_s: dict[str, float] = {}
    # Not by recursion: a chain may be longer than the stack is deep.
    to_do = [task_id]
    while to_do:
        current = to_do[-1]
        behind = downstream.get(current, ())
        missing = [each for each in behind if each not in longest_s]
        if missing:
            to_do.extend(missing)
            continue
        to_do.pop()
        if current not in longest_s:
            longest_s[current] = max(
                ((runtime_p95_s(each) or 0.0) + HOP_S + longest_s[each] for each in behind), default=0.0
            )
    return longest_s[task_id]
