"""Where a budget's window begins and ends, and the buckets that its joules are summed in. Pure arithmetic."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from typing import Final

from tao_flows.budget import Calendar, EnergyBudget, zone_of
from tao_flows.units import NS_PER_S

BUCKETS: Final = 64
"""Buckets in a rolling window. The oldest counts whole, so that what is spent is overstated by the joules of at most
one 64th of the window, and never understated."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


def window_bounds(budget: EnergyBudget, now_ns: int) -> tuple[int, int | None]:
    """The window that holds the instant ``now_ns``: its beginning, and its end, which is the next one's beginning.

    A rolling window ends now, and so has no end of its own. A calendar window lasts as long as the clock on the wall
    takes to show the next hour, day, week or month for the first time: a day is 23 or 25 hours long where the clock
    is changed, an hour that is shown twice is one window, and a day that is left out is none. Nanoseconds since the
    epoch.
    """
    if budget.calendar is None:
        return now_ns - _window_ns(budget), None
    zone, calendar = zone_of(budget.timezone, f"budget {budget.name!r}"), budget.calendar
    local = (_EPOCH + timedelta(seconds=now_ns // NS_PER_S)).astimezone(zone)
    begin = _floor(local.replace(tzinfo=None, fold=0), calendar)
    while _instant_ns(begin, zone) > now_ns:
        begin = _floor(begin - datetime.resolution, calendar)
    # A clock set back over the end of a window does not begin it anew.
    while _instant_ns(_next(begin, calendar), zone) <= now_ns:
        begin = _next(begin, calendar)
    return _instant_ns(begin, zone), _instant_ns(_next(begin, calendar), zone)


def bucket_ns(budget: EnergyBudget, at_ns: int) -> int:
    """The bucket that joules charged at ``at_ns`` are added to: a calendar window's beginning, or a 64th of a window."""
    if budget.calendar is not None:
        return window_bounds(budget, at_ns)[0]
    return at_ns - at_ns % _grain_ns(budget)


def oldest_bucket_ns(budget: EnergyBudget, now_ns: int) -> int:
    """The first bucket with a part in the present window; the sum from there on is what is spent."""
    begin_ns, _ = window_bounds(budget, now_ns)
    return begin_ns if budget.calendar is not None else begin_ns - begin_ns % _grain_ns(budget)


def _window_ns(budget: EnergyBudget) -> int:
    return round(budget.window_s * NS_PER_S)


def _grain_ns(budget: EnergyBudget) -> int:
    return max(1, -(-_window_ns(budget) // BUCKETS))


def _floor(local: datetime, calendar: Calendar) -> datetime:
    if calendar == "hour":
        return local.replace(minute=0, second=0, microsecond=0)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if calendar == "week":
        return midnight - timedelta(days=midnight.weekday())
    return midnight.replace(day=1) if calendar == "month" else midnight


def _next(begin: datetime, calendar: Calendar) -> datetime:
    if calendar == "hour":
        return begin + timedelta(hours=1)
    if calendar == "month":
        return (begin + timedelta(days=31)).replace(day=1)
    return begin + timedelta(days=7 if calendar == "week" else 1)


def _instant_ns(local: datetime, zone: tzinfo) -> int:
    """When the zone's clock first shows ``local``; of a time that it leaves out, the instant by the offset before."""
    since = local.replace(tzinfo=zone, fold=0) - _EPOCH
    return (since.days * 86_400 + since.seconds) * NS_PER_S
