"""Time stamps as files and providers write them: ISO 8601, always with a zone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Final

from tao_flows.errors import InputError
from tao_flows.units import NS_PER_US

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_END_NS: Final = 2**63 - 2**55
"""In 2261: room is left for the length of a last step."""
_ISO: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?(?:([Zz])|([+-])(\d\d)(?::?([0-5]\d))?)?", re.ASCII
)
_REMEDY: Final = 'give ISO 8601 with a zone, such as "2026-03-01T14:00:00Z"'


@lru_cache(maxsize=65_536)  # a file of forecasts writes the same few thousand times over and over
def ns_from_iso(text: str) -> int:
    """Nanoseconds since the epoch from ISO 8601 with a zone; a fraction is cut off after a microsecond.

    Raises:
        InputError: BAD_TIME: it is no time, or has no zone.
    """
    match = _ISO.fullmatch(text)
    if match is None:
        raise InputError("BAD_TIME", f"{text[:60]!r} is not a time", _REMEDY)
    date, minute, second, fraction, utc, sign, hours, minutes = match.groups()
    if utc is None and sign is None:
        raise InputError("BAD_TIME", f"{text[:60]!r} has no zone", _REMEDY)
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    micros = ((fraction or "") + "000000")[:6]
    try:
        local = datetime.fromisoformat(f"{date}T{minute}:{second or '00'}.{micros}")
        since = local.replace(tzinfo=timezone(offset)) - _EPOCH
    except (ValueError, OverflowError):
        raise InputError("BAD_TIME", f"{text[:60]!r} is not a time that exists", _REMEDY) from None
    return check_ns(since // timedelta(microseconds=1) * NS_PER_US)


def check_ns(wall_ns: object) -> int:
    """Nanoseconds since the epoch, within what 64 bits hold.

    Raises:
        InputError: BAD_TIME.
    """
    if not isinstance(wall_ns, int) or isinstance(wall_ns, bool) or not 0 <= wall_ns < _END_NS:
        raise InputError("BAD_TIME", "a time before 1970 or after 2262", "check the time stamps")
    return wall_ns
