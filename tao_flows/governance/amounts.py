"""Amounts as decimals, made from whole microjoules without a float on the way: what is written is what was counted.

A microjoule is no terminating decimal of a kilowatt-hour (3.6e12 has the factor 9). So many decimals are written that
rounding back gives the same microjoule, whatever the size of the amount.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from tao_flows.units import J_PER_KWH, KWH_PER_MWH, UJ_PER_J

UJ_PER_KWH: Final = UJ_PER_J * J_PER_KWH
UJ_PER_MWH: Final = UJ_PER_KWH * KWH_PER_MWH
SIGNIFICANT: Final = 3
"""Digits of a rounded amount: one more than the Model Documentation Form asks for at least."""
_J_DECIMALS: Final = 6
_KWH_DECIMALS: Final = 13
"""A step of 1e-13 kWh is 0.36 µJ: half of it is less than half a microjoule."""
_MWH_DECIMALS: Final = 16


def joules_from_uj(energy_uj: int) -> Decimal:
    """Microjoules to joules, exactly."""
    return _quotient(energy_uj, UJ_PER_J, _J_DECIMALS)


def kwh_from_uj(energy_uj: int) -> Decimal:
    """Microjoules to kilowatt-hours, to a third of a microjoule."""
    return _quotient(energy_uj, UJ_PER_KWH, _KWH_DECIMALS)


def mwh_from_uj(energy_uj: int) -> Decimal:
    """Microjoules to megawatt-hours, to a third of a microjoule."""
    return _quotient(energy_uj, UJ_PER_MWH, _MWH_DECIMALS)


def uj_from_mwh(energy_mwh: Decimal) -> int:
    """Megawatt-hours to whole microjoules, rounded to the nearest."""
    numerator, denominator = energy_mwh.as_integer_ratio()
    return (2 * numerator * UJ_PER_MWH + denominator) // (2 * denominator)


def plain_number(value: Decimal) -> str:
    """Digits without an exponent, and without zeros at the end that say nothing."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def short_number(value: Decimal) -> str:
    """``SIGNIFICANT`` digits, zeros at the end included; with a power of ten where there would be many zeros."""
    if not value:
        return "0"
    short = f"{value:.{SIGNIFICANT - 1}E}"
    return format(Decimal(short), "f") if -5 < Decimal(short).adjusted() < 6 else short


def json_text(value: Any, indent: str = "") -> str:
    """JSON in which a ``Decimal`` is a number with all its digits.

    Raises:
        TypeError: something in ``value`` has no form in JSON.
        ValueError: a float in it is not finite.
    """
    if isinstance(value, Decimal):
        return plain_number(value)
    inner = f"{indent}  "
    if value and isinstance(value, Mapping):
        members = [f"{inner}{json.dumps(str(key))}: {json_text(each, inner)}" for key, each in value.items()]
        return "{\n" + ",\n".join(members) + f"\n{indent}}}"
    if value and isinstance(value, (list, tuple)):
        return "[\n" + ",\n".join(f"{inner}{json_text(each, inner)}" for each in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def _quotient(numerator: int, denominator: int, decimals: int) -> Decimal:
    # Whole numbers throughout: a decimal context would round what has more digits than it keeps.
    whole = (2 * numerator * 10**decimals + denominator) // (2 * denominator)
    return Decimal(f"{whole}E-{decimals}")
