"""Time, injected: intervals come from the monotonic clock, time stamps from the wall clock, never mixed."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol

from tao_flows.units import NS_PER_S


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_ns(self) -> int:
        """Nanoseconds on a clock that never runs backwards; for intervals."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, UTC; for time stamps shown to people."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


def iso_from_ns(wall_ns: int | None) -> str | None:
    """ISO 8601 in UTC with microseconds, or None."""
    if wall_ns is None:
        return None
    whole_s, rest_ns = divmod(wall_ns, NS_PER_S)
    moment = datetime.fromtimestamp(whole_s, timezone.utc).replace(microsecond=rest_ns // 1_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
