"""Deadlines that say what they refer to: a duration after a moment of the run, or a time of day.

- ``2h``: after the task became ready.
- ``2h after run_start``: or after ``ready``, ``queued`` or ``data_interval_end``.
- ``by 06:00 Europe/Berlin``: the first 06:00 there after the task became ready.
- ``by 06:00 Europe/Berlin after data_interval_end``: the first 06:00 there after another moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo
from typing import Final, Literal, get_args

from tao_flows.errors import InputError
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import parse_duration_s

Reference = Literal["ready", "run_start", "queued", "data_interval_end"]
REFERENCES: Final[tuple[str, ...]] = get_args(Reference)
_REMEDY: Final = 'write "2h", "2h after run_start" or "by 06:00 Europe/Berlin"'
_AFTER = re.compile(r"(.*?)\s+(?:after|from)\s+(.*)", re.IGNORECASE | re.DOTALL)
_BY = re.compile(r"by\s+(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s+(\S+))?", re.IGNORECASE)
_SHORTEST_STEP: Final = timedelta(seconds=1)
"""No zone has ever changed its offset other than at a whole second."""


@dataclass(frozen=True, slots=True)
class References:
    """The moments of a run that deadlines refer to, each with its zone; None where the engine has no such moment."""

    ready: datetime
    """When the task could have started first."""
    run_start: datetime | None = None
    queued: datetime | None = None
    """When the engine put the task into its queue."""
    data_interval_end: datetime | None = None
    """The end of the interval of data that a scheduled run is for."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """By when a task is to have ended. Made by ``parse``.

    Exactly one of ``after_s`` and ``by`` is given; ``zone`` is the IANA name that ``by`` is told in.
    """

    after_s: float | None = None
    by: time | None = None
    zone: str = ""
    reference: Reference = "ready"

    @classmethod
    def parse(cls, value: object) -> Deadline:
        """A deadline from a text of the forms above, or from seconds or a ``timedelta`` after ready.

        Raises:
            InputError: BAD_DEADLINE or BAD_DURATION, the value is no deadline; UNKNOWN_ZONE, no such time zone.
        """
        if isinstance(value, Deadline):
            return value
        if not isinstance(value, str):
            return cls(after_s=parse_duration_s(value, what="deadline"))
        match = _AFTER.fullmatch(value.strip())
        text = match[1] if match else value.strip()
        reference = _reference(match[2], value) if match else "ready"
        if text[:2].lower() != "by":
            return cls(after_s=parse_duration_s(text, what="deadline"), reference=reference)
        return cls(by=_time_of_day(text, value), zone=_zone_name(text, value), reference=reference)

    def at(self, references: References) -> datetime | None:
        """The moment, in UTC; None where this run has not the moment it refers to.

        What cannot be placed must not be missed: the caller then does not defer the task, and notes ``unplaced``.
        """
        known: datetime | None = getattr(references, self.reference)
        if known is None:
            return None
        moment = known.astimezone(timezone.utc)
        if self.by is not None:
            return _first_after(moment, self.by, load_zone(self.zone))
        try:
            return moment + timedelta(seconds=self.after_s or 0.0)
        except OverflowError:  # longer than there are years
            return datetime.max.replace(tzinfo=timezone.utc)

    def unplaced(self) -> InputError:
        """What to note when ``at`` knows no moment."""
        summary = f"deadline {str(self)!r}: this run has no {self.reference}, so the task is not deferred"
        return InputError("DEADLINE_UNPLACED", summary, "refer to ready, which every task has")

    def __str__(self) -> str:
        said = f"{self.after_s:g}s" if self.by is None else f"by {self.by.isoformat()} {self.zone}"
        return said if self.reference == "ready" else f"{said} after {self.reference}"


def earliest(deadlines: Iterable[Deadline], references: References) -> datetime | None:
    """The earliest of the deadlines that can be placed; None where there is none."""
    placed = (deadline.at(references) for deadline in deadlines)
    return min((moment for moment in placed if moment is not None), default=None)


def load_zone(name: str) -> tzinfo:
    """The time zone of an IANA name such as ``Europe/Berlin``.

    Raises:
        InputError: UNKNOWN_ZONE, there is none of that name, or this system has no time zones.
    """
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found; no such name can be; the name of a directory of zones
        remedy = 'write an IANA name such as "Europe/Berlin" or "UTC" (pip install tzdata where the system has none)'
        raise InputError("UNKNOWN_ZONE", f"{name!r} is no time zone known here", remedy) from None


def _reference(text: str, value: str) -> Reference:
    word = "_".join(re.split(r"[\s_-]+", text.strip().lower()))
    for reference in get_args(Reference):
        if word == reference:
            known: Reference = reference
            return known
    raise InputError("BAD_DEADLINE", f"deadline: {value!r} is after no known moment", did_you_mean(word, REFERENCES))


def _time_of_day(text: str, value: str) -> time:
    match = _BY.fullmatch(text)
    try:
        if match is not None:
            return time(int(match[1]), int(match[2]), int(match[3] or 0))
    except ValueError:  # 25:00
        pass
    raise InputError("BAD_DEADLINE", f"deadline: {value!r} names no time of day", _REMEDY)


def _zone_name(text: str, value: str) -> str:
    match = _BY.fullmatch(text)
    name = (match[4] if match else "") or ""
    if not name:
        raise InputError("BAD_DEADLINE", f"deadline: {value!r} does not say in which time zone", _REMEDY)
    load_zone(name)
    return name


def _first_after(moment: datetime, by: time, zone: tzinfo) -> datetime:
    """The first instant after ``moment`` at which clocks in ``zone`` come to read ``by`` on some day."""
    # The day before, too: west of a change of date the present day's time can still be that of yesterday's date.
    day = moment.astimezone(zone).date() - timedelta(days=1)
    while True:
        instant = _instant(datetime.combine(day, by), zone)
        if instant > moment:
            return instant
        day += timedelta(days=1)


def _instant(local: datetime, zone: tzinfo) -> datetime:
    """The first instant at which clocks in ``zone`` read ``local`` or later, in UTC.

    An hour that a change to winter time repeats counts the first time. A time that a change to summer time leaves
    out is reached when the clocks are put forward.
    """
    # With fold=0 the offset before the change holds, with fold=1 the one after it (PEP 495).
    late = local.replace(tzinfo=zone, fold=0).astimezone(timezone.utc)
    early = local.replace(tzinfo=zone, fold=1).astimezone(timezone.utc)
    if late.astimezone(zone).replace(tzinfo=None) == local:
        return late
    while late - early > _SHORTEST_STEP:
        middle = (early + (late - early) / 2).replace(microsecond=0)
        if middle.astimezone(zone).replace(tzinfo=None) >= local:
            late = middle
        else:
            early = middle
    return late
