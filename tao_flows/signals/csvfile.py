"""Signals in a CSV file: ``time,zone,value[,issued_at]``, read row by row.

A row with ``issued_at`` is a forecast as it was issued then; one without is the value itself. A value holds until the
next start of its zone, or of its zone and issue.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from tao_flows.errors import InputError
from tao_flows.signals.model import Issue, Signal, Steps, check_value
from tao_flows.signals.times import ns_from_iso

HEADER: Final = "time,zone,value[,issued_at]"
_LONGEST_FIELD: Final = 1_000


class Row(NamedTuple):
    """One line of the file."""

    line: int
    start_wall_ns: int
    zone: str
    value: float
    issued_wall_ns: int | None
    """None: the value itself, no forecast."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a file says of one zone."""

    actuals: Steps
    issues: tuple[Issue, ...]
    """In order of issue."""


def read_rows(path: Path, *, signal: Signal | None = None, column: str = "value", factor: float = 1.0) -> Iterator[Row]:
    """The rows of a file, checked one by one: order, duplicates, numbers, zones and time stamps.

    Args:
        path: the file, UTF-8; one that ends in ``.gz`` is unpacked.
        signal: what it holds, where values are to be checked for it: a carbon intensity is never negative.
        column: the heading of the values. Where it is not ``value`` the file is taken for another program's, and may
            have further columns.
        factor: what a value is multiplied by.

    Raises:
        InputError: BAD_SIGNAL_FILE, with the file's name and the line.
    """
    try:
        with _opened(path) as file:
            yield from _Reader(path, column, signal, factor).rows(file)
    except (OSError, EOFError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or error
        raise _bad(f"{path}: {problem}", "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise _bad(f"{path}: not UTF-8 text", "save the file as UTF-8") from None


def read_series(
    path: Path, *, signal: Signal | None = None, column: str = "value", factor: float = 1.0
) -> Mapping[str, Series]:
    """By zone, the values and the forecasts of a file; arguments and errors are those of ``read_rows``."""
    actuals: dict[str, list[tuple[int, float]]] = {}
    issues: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for row in read_rows(path, signal=signal, column=column, factor=factor):
        steps = (
            actuals.setdefault(row.zone, [])
            if row.issued_wall_ns is None
            else issues.setdefault(row.zone, {}).setdefault(row.issued_wall_ns, [])
        )
        steps.append((row.start_wall_ns, row.value))
    return {
        zone: Series(
            tuple(actuals.get(zone, ())),
            tuple(Issue(issued, tuple(steps)) for issued, steps in sorted(issues.get(zone, {}).items())),
        )
        for zone in sorted(actuals.keys() | issues.keys())
    }


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


class _Reader:
    def __init__(self, path: Path, column: str, signal: Signal | None, factor: float) -> None:
        self._path, self._column, self._signal, self._factor = path, column, signal, factor
        self._last: dict[tuple[str, int | None], int] = {}

    def rows(self, lines: Iterator[str]) -> Iterator[Row]:
        table = csv.reader(lines, strict=True)
        places: tuple[int, int, int, int] | None = None
        width = 0
        try:
            for fields in table:
                if not fields:
                    continue
                if places is None:
                    places, width = self._header(fields), len(fields)
                    continue
                yield self._row(fields, places, width, table.line_num)
        except csv.Error as error:
            raise _bad(f"{self._path}:{table.line_num}: {error}", "mend the line") from None
        except InputError as error:
            if error.code == "BAD_SIGNAL_FILE":
                raise
            raise _bad(f"{self._path}:{table.line_num}: {error.summary}", error.remedy) from None
        if places is None:
            raise _bad(f"{self._path}: the file is empty", f"begin it with {HEADER}")

    def _header(self, fields: list[str]) -> tuple[int, int, int, int]:
        names = [name.strip() for name in fields]
        remedy = f"the first line is {HEADER.replace('value', self._column)}"
        for name in ("time", "zone", self._column):
            if name not in names:
                raise InputError("", f"no column {name!r}", remedy)
        if len(set(names)) < len(names):
            raise InputError("", "a column is there twice", remedy)
        # A mistyped issued_at would turn forecasts into what came true.
        extra = set(names) - {"time", "zone", self._column, "issued_at"}
        if extra and self._column == "value":
            raise InputError("", f"unknown column {min(extra)!r}", remedy)
        issued = names.index("issued_at") if "issued_at" in names else -1
        return names.index("time"), names.index("zone"), names.index(self._column), issued

    def _row(self, fields: list[str], places: tuple[int, int, int, int], width: int, line: int) -> Row:
        if len(fields) != width:
            raise InputError("", f"{len(fields)} fields where the first line has {width}", "give one for each column")
        time, zone, value, issued = (fields[place].strip()[:_LONGEST_FIELD] if place >= 0 else "" for place in places)
        if not zone or not zone.isprintable():
            raise InputError("", f"zone {zone!r} is no name", "name the zone")
        row = Row(line, ns_from_iso(time), zone, self._value(value), ns_from_iso(issued) if issued else None)
        last = self._last.get((zone, row.issued_wall_ns))
        if last is not None and row.start_wall_ns <= last:
            problem = "is there twice" if row.start_wall_ns == last else "comes before the time above it"
            raise InputError("", f"{time} {problem} in zone {zone!r}", "give each time once, in order")
        self._last[zone, row.issued_wall_ns] = row.start_wall_ns
        return row

    def _value(self, text: str) -> float:
        try:
            number = float(text) if text.isascii() and "_" not in text else None
        except ValueError:
            number = None
        if number is None:
            raise InputError("", f"value {text[:60]!r} is not a number", "give a number; leave unknown times out")
        return check_value(number, self._signal) * self._factor


def _bad(summary: str, remedy: str) -> InputError:
    return InputError("BAD_SIGNAL_FILE", summary, remedy)
