"""How long bundles are to be kept. Nothing is ever deleted but by who asks for it.

Periods that Regulation (EU) 2024/1689 names, for documents and logs that fall under it: technical documentation of
high-risk systems ten years (Article 18), automatically generated logs at least six months (Articles 19 and 26(6)).
Whether they apply to a record is for the provider or deployer to determine.
"""

from __future__ import annotations

import calendar
import re
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from tao_flows.config import RETENTION
from tao_flows.units import NS_PER_S

PERIODS: Final = (
    ("Regulation (EU) 2024/1689, Article 18", "technical documentation of high-risk systems", "10y"),
    ("Regulation (EU) 2024/1689, Articles 19 and 26(6)", "automatically generated logs, at least", "6mo"),
)
"""Where a period is named, what it is of, and the period."""
_MONTHS: Final = {"mo": 1, "y": 12}
_DAYS: Final = {"d": 1, "w": 7}


def keep_until(period: str, from_wall_ns: int) -> str | None:
    """The first day (ISO 8601, UTC) on which a record of that time need no longer be kept; None for never.

    Args:
        period: as the setting ``retention`` has it; empty for ever.
        from_wall_ns: what it counts from, in nanoseconds since the Unix epoch.
    """
    found = re.fullmatch(RETENTION, period)
    if found is None:
        return None
    number, unit = int(found[1]), found[2]
    begin = datetime.fromtimestamp(from_wall_ns // NS_PER_S, timezone.utc).date()
    try:
        if unit in _DAYS:
            return (begin + timedelta(days=number * _DAYS[unit] + 1)).isoformat()
        months = begin.year * 12 + begin.month - 1 + number * _MONTHS[unit]
        year, month = divmod(months, 12)
        last = calendar.monthrange(year, month + 1)[1]
        return (begin.replace(year=year, month=month + 1, day=min(begin.day, last)) + timedelta(days=1)).isoformat()
    except (OverflowError, ValueError):  # past the calendar's last year
        return None


def retention_json(period: str, from_wall_ns: int) -> dict[str, Any]:
    """What ``run.json`` says of it."""
    return {
        "period": period or None,
        "keep_until": keep_until(period, from_wall_ns),
        "periods_named_in_law": [{"where": where, "what": what, "period": long} for where, what, long in PERIODS],
    }
