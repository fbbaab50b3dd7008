"""Units and their conversions: the only file where a factor between units is written.

Energies are held as whole microjoules (the unit the kernel counts in) so that accounts add up
exactly; joules appear at the edges. Durations are seconds.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

from tao_flows.errors import InputError

UJ_PER_J: Final = 1_000_000
UJ_PER_MJ: Final = 1_000
"""Microjoules per millijoule, the unit NVML counts in."""
NS_PER_S: Final = 1_000_000_000
NS_PER_US: Final = 1_000
US_PER_S: Final = 1_000_000
S_PER_H: Final = 3_600
J_PER_KWH: Final = 3_600_000
KWH_PER_MWH: Final = 1_000
G_PER_KG: Final = 1_000
G_PER_LB: Final = 453.59237
"""Grams per avoirdupois pound, exactly (international yard and pound agreement of 1959)."""
BYTES_PER_GIB: Final = 1024**3

_ENERGY_J: Final = {
    "uj": 1e-6, "µj": 1e-6, "mj": 1e-3, "j": 1.0, "kj": 1e3, "wh": 3.6e3, "kwh": float(J_PER_KWH), "mwh": 3.6e9,
}  # fmt: skip
# Case tells mega from milli ("MJ" is a million joules, "mJ" a thousandth, and no one means mWh).
_ENERGY_J_EXACT: Final = {"MJ": 1e6, "mJ": 1e-3, "GJ": 1e9, "mWh": 3.6}
_POWER_W: Final = {"w": 1.0, "kw": 1e3}
_POWER_W_EXACT: Final = {"MW": 1e6, "mW": 1e-3}
_DURATION_S: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*([A-Za-zµ]+)\s*")
_POWER_STEPS: Final = ((1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW"))
_ENERGY_STEPS: Final = ((J_PER_KWH * 1.0, "kWh"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))


def uj_from_j(energy_j: float) -> int:
    """Joules to whole microjoules, rounded to the nearest."""
    return round(energy_j * UJ_PER_J)


def j_from_uj(energy_uj: int) -> float:
    """Microjoules to joules."""
    return energy_uj / UJ_PER_J


def s_from_ns(duration_ns: int) -> float:
    """Nanoseconds to seconds."""
    return duration_ns / NS_PER_S


def kwh_from_j(energy_j: float) -> float:
    """Joules to kilowatt-hours."""
    return energy_j / J_PER_KWH


def parse_energy_j(value: object, *, what: str = "energy") -> float:
    """Joules from a number of joules or a text such as ``"40 J"`` or ``"1.2 kWh"``.

    Raises:
        InputError: the value is no energy, is negative, or is not finite.
    """
    remedy = 'give joules as a number, or a text such as "40 J", "3 kJ" or "1.2 kWh"'
    return _parse(value, what, ("an energy", "BAD_ENERGY", remedy), _ENERGY_J, _ENERGY_J_EXACT)


def parse_power_w(value: object, *, what: str = "power") -> float:
    """Watts from a number of watts or a text such as ``"500 W"`` or ``"1.5 kW"``.

    Raises:
        InputError: the value is no power, is negative, or is not finite.
    """
    remedy = 'give watts as a number, or a text such as "500 W" or "1.5 kW"'
    return _parse(value, what, ("a power", "BAD_POWER", remedy), _POWER_W, _POWER_W_EXACT)


def _parse(
    value: object, what: str, kind: tuple[str, str, str], factors: dict[str, float], exact: dict[str, float]
) -> float:
    """A number, or a text of one number and one unit. ``exact`` are units whose case tells them apart."""
    noun, code, remedy = kind
    if not isinstance(value, str):
        return _finite_and_not_negative(value, value, what, code, remedy)
    match = _QUANTITY.fullmatch(value)
    factor = (exact.get(match[2]) or factors.get(match[2].lower())) if match else None
    if match is None or factor is None:
        raise InputError(code, f"{what}: {value!r} is not {noun}", remedy)
    return _finite_and_not_negative(float(match[1]) * factor, value, what, code, remedy)


def parse_duration_s(value: object, *, what: str = "duration") -> float:
    """Seconds from a number of seconds, a ``timedelta``, or a text such as ``"2h"`` or ``"1h 30m"``.

    Raises:
        InputError: the value is no duration, is negative, or is not finite.
    """
    remedy = 'give seconds as a number, a timedelta, or a text such as "90s", "15m", "2h" or "1h 30m"'
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str):
        total, position = 0.0, 0
        while position < len(value):
            match = _QUANTITY.match(value, position)
            factor = _DURATION_S.get(match[2].lower()) if match else None
            if match is None or factor is None:
                raise InputError("BAD_DURATION", f"{what}: {value!r} is not a duration", remedy)
            total += float(match[1]) * factor
            position = match.end()
        if not value.strip():
            raise InputError("BAD_DURATION", f"{what}: the text is empty", remedy)
        value = total
    return _finite_and_not_negative(value, value, what, "BAD_DURATION", remedy)


def _finite_and_not_negative(number: object, shown: object, what: str, code: str, remedy: str) -> float:
    # bool is an int in Python; a budget of True is a mistake, not one joule.
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise InputError(code, f"{what}: {shown!r} is not a number", remedy)
    try:
        value = float(number)
    except OverflowError:  # a whole number that no float can hold, nor a line show
        raise InputError(code, f"{what}: the number is too large", remedy) from None
    if not math.isfinite(value):
        raise InputError(code, f"{what}: {shown!r} is not finite", remedy)
    if value < 0:
        raise InputError(code, f"{what}: {shown!r} is negative", remedy)
    return value


def format_energy(energy_j: float | None) -> str:
    """An energy for people, three significant digits; ``unknown`` for None."""
    return _format(energy_j, _ENERGY_STEPS, "J")


def format_energy_interval(value_j: float | None, low_j: float | None, high_j: float | None) -> str:
    """An energy and its bounds in one unit, such as ``1.23 J [0.61, 2.46]``; ``unknown`` for None.

    There are no brackets where a bound is unknown or the bounds close on the value.
    """
    if value_j is None or low_j is None or high_j is None or low_j == value_j == high_j:
        return format_energy(value_j)
    largest = _rounded(max(abs(value_j), abs(high_j)) if value_j == 0 else abs(value_j))
    factor, unit = next((step for step in _ENERGY_STEPS if largest >= step[0]), _ENERGY_STEPS[-1])
    value, low, high = (_three_digits(each / factor) for each in (value_j, low_j, high_j))
    return f"{value} {unit} [{low}, {high}]"


def format_power(power_w: float | None) -> str:
    """A power for people, three significant digits; ``unknown`` for None."""
    return _format(power_w, _POWER_STEPS, "W")


def _format(value: float | None, steps: tuple[tuple[float, str], ...], base: str) -> str:
    if value is None or not math.isfinite(value):  # joules over a window of no length are no power
        return "unknown"
    if value == 0:
        return f"0 {base}"
    size = abs(_rounded(value))
    factor, unit = next((step for step in steps if size >= step[0]), steps[-1])
    return f"{_three_digits(value / factor)} {unit}"


def _rounded(value: float) -> float:
    # Before a unit or a number of digits is chosen: 999.9 mJ is 1.00 J, not 1,000 mJ.
    rounded = float(f"{value:.3g}")
    return rounded if math.isfinite(rounded) else value


def _three_digits(value: float) -> str:
    value = _rounded(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 3)}f}"


def format_duration(duration_s: float | None) -> str:
    """A duration for people; ``unknown`` for None."""
    if duration_s is None:
        return "unknown"
    if 0 < duration_s < 0.0005:
        return f"{duration_s * 1e6:.0f} µs"
    if round(duration_s, 3) < 1:
        return f"{duration_s * 1e3:.0f} ms"
    if round(duration_s, 2) < 60:
        return f"{duration_s:.2f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
