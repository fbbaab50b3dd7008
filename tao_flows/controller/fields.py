"""A strict reader of JSON objects: every refusal names the field, what is wrong with it, and what to write."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import NoReturn

from tao_flows.errors import InputError

LARGEST = 1e18
"""No figure of a real task or pool comes near; beyond it products would overflow."""

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?(?:([Zz])|([+-])(\d\d)(?::?([0-5]\d))?)?", re.ASCII
)
_TIME_REMEDY = 'give ISO 8601 with a zone, such as "2026-03-01T14:00:00Z" or "2026-03-01T15:00:00+01:00"'


def refuse(path: str, problem: str, remedy: str) -> NoReturn:
    """Raises the InputError of a request."""
    raise InputError("BAD_REQUEST", f"{path}: {problem}", remedy)


def shown(value: object) -> str:
    """A value as it is quoted in a refusal: as in JSON where that differs, on one line, and short."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return reprlib.repr(value)


def did_you_mean(text: object, known: Iterable[str]) -> str:
    """A remedy: the nearest known name if there is one near, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(text)[:100], names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")


class Fields:
    """The fields of one JSON object.

    A field is required unless a default is given; an optional field that is null counts as absent.

    Args:
        value: what should be an object.
        path: where it stands, such as ``pools[1].energy_j``; empty for the request itself.
        known: every field it may have.

    Raises:
        InputError: here and in every method: the field's path, the problem, the remedy.
    """

    def __init__(self, value: object, path: str, known: Iterable[str]) -> None:
        self.path = path
        names = tuple(known)
        self._values = as_object(value, path or "request", f"give an object with the fields {', '.join(names)}")
        for name in self._values:
            if name not in names:
                refuse(self.at(str(name)[:100]), "unknown field", did_you_mean(name, names))

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def raw(self, name: str) -> object:
        """A required field, as it is."""
        if name not in self._values:
            refuse(self.at(name), "missing", "add this field" if self.path else "add this field to the request")
        return self._values[name]

    def optional(self, name: str) -> object:
        """An optional field, as it is; None when absent."""
        return self._values.get(name)

    def number(self, name: str, unit: str, *, least: float = 0.0, default: float | None = None) -> float:
        """A number of ``unit``, at least ``least``."""
        value = self.raw(name) if default is None else self._values.get(name)
        return default if value is None and default is not None else as_number(value, self.at(name), unit, least)

    def number_or_unknown(self, name: str, unit: str, *, least: float = 0.0) -> float | None:
        """A number that must be given, and may be null for unknown."""
        value = self.raw(name)
        return None if value is None else as_number(value, self.at(name), unit, least)

    def optional_number(self, name: str, unit: str, *, least: float = 0.0) -> float | None:
        """A number that may be left out."""
        value = self._values.get(name)
        return None if value is None else as_number(value, self.at(name), unit, least)

    def positive(self, name: str, unit: str, *, default: float | None = None) -> float:
        """A number above zero."""
        value = self.number(name, unit, default=default)
        if value == 0:
            refuse(self.at(name), "0 is not above 0", f"give {unit} > 0")
        return value

    def optional_positive(self, name: str, unit: str) -> float | None:
        """A number above zero that may be left out."""
        return None if self._values.get(name) is None else self.positive(name, unit)

    def text(self, name: str) -> str:
        """A non-empty text of printable characters."""
        return as_text(self.raw(name), self.at(name))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self.raw(name) if default is None else self._values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            refuse(self.at(name), f"{shown(value)} is not true or false", "write true or false")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of names, sorted and each once; None when absent."""
        value = self._values.get(name)
        if value is None:
            return None
        return tuple(sorted({as_text(item, path) for item, path in items(value, self.at(name), "names")}))

    def moment(self, name: str) -> datetime:
        """A time, in UTC."""
        return as_moment(self.raw(name), self.at(name))

    def optional_moment(self, name: str) -> datetime | None:
        """A time that may be left out."""
        value = self._values.get(name)
        return None if value is None else as_moment(value, self.at(name))


def as_object(value: object, path: str, remedy: str) -> Mapping[str, object]:
    """``value`` as a JSON object."""
    if not isinstance(value, Mapping):
        refuse(path, f"{shown(value)} is not an object", remedy)
    return value


def items(value: object, path: str, what: str) -> Iterator[tuple[object, str]]:
    """The items of a list, each with its path."""
    if not isinstance(value, (list, tuple)):
        refuse(path, f"{shown(value)} is not a list", f"give a list of {what}")
    return ((item, f"{path}[{index}]") for index, item in enumerate(value))


def as_number(value: object, path: str, unit: str, least: float) -> float:
    """``value`` as a finite number, at least ``least``."""
    remedy = f"give {unit} >= {least:g}" if math.isfinite(least) else f"give {unit}"
    # bool is an int in Python; in JSON it is no number.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(path, f"{shown(value)} is not a number", remedy)
    if not abs(value) < math.inf:
        refuse(path, f"{shown(value)} is not finite", remedy)
    if abs(value) > LARGEST:
        refuse(path, f"the number is beyond {LARGEST:g}", f"check the unit: {unit}")
    if value < least:
        refuse(path, f"{shown(value)} is " + ("negative" if least == 0 else f"below {least:g}"), remedy)
    return float(value)


def as_count(value: object, path: str) -> int:
    """``value`` as a whole number, 0 or more."""
    number = as_number(value, path, "a whole number", 0.0)
    if not number.is_integer():
        refuse(path, f"{shown(value)} is not whole", "give a whole number >= 0")
    return int(number)


def as_text(value: object, path: str) -> str:
    """``value`` as a non-empty text of printable characters."""
    if not isinstance(value, str) or not value:
        refuse(path, f"{shown(value)} is not a text" if value != "" else "the text is empty", "give a non-empty text")
    if not value.isprintable():
        refuse(path, f"{shown(value)} holds characters that cannot be printed", "leave out line breaks and controls")
    return value


def as_moment(value: object, path: str) -> datetime:
    """``value``, ISO 8601 with a zone, in UTC. Fractions beyond a microsecond are cut off."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        refuse(path, f"{shown(value)} is not a time", _TIME_REMEDY)
    date, minute, second, fraction, utc, sign, hours, minutes = match.groups()
    if utc is None and sign is None:
        refuse(path, f"{shown(value)} has no zone", _TIME_REMEDY)
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    micros = ((fraction or "") + "000000")[:6]
    try:
        local = datetime.fromisoformat(f"{date}T{minute}:{second or '00'}.{micros}")
        return local.replace(tzinfo=timezone(offset)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        refuse(path, f"{shown(value)} is not a time that exists", _TIME_REMEDY)
