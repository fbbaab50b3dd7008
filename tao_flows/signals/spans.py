"""Values with a beginning and an end, as providers of half-hours and market prices tell them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tao_flows.errors import InputError
from tao_flows.signals.model import Steps


class Span(NamedTuple):
    """A value that holds from a start to an end; None where it is not known."""

    start_wall_ns: int
    end_wall_ns: int
    value: float | None


def run_around(now_wall_ns: int, spans: Iterable[Span]) -> tuple[Steps, int]:
    """The longest unbroken run of known values that holds the present, or the first after it; and its end.

    Raises:
        InputError: spans overlap, are out of order or have no length, or nothing is known from the present on.
    """
    run: list[tuple[int, float]] = []
    end: int | None = None
    last: int | None = None
    for span in spans:
        if span.end_wall_ns <= span.start_wall_ns:
            raise InputError("BAD_SIGNAL_ORDER", "a step has no length", "")
        if last is not None and span.start_wall_ns < last:
            raise InputError("BAD_SIGNAL_ORDER", "steps overlap or are out of order", "")
        last = span.end_wall_ns
        broken = end is not None and (span.value is None or span.start_wall_ns != end)
        if broken and end is not None and end > now_wall_ns:
            break
        if broken:
            run, end = [], None
        if span.value is not None:
            run.append((span.start_wall_ns, span.value))
            end = span.end_wall_ns
    if end is None or end <= now_wall_ns:
        raise InputError("SIGNAL_NO_DATA", "nothing of the present or the future", "")
    return tuple(run), end
