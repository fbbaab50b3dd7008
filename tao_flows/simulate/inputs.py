"""Reads what a simulation is given: jobs, a signal, and optionally pools. Every problem names its file and place."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import InputError
from tao_flows.signals.csvfile import read_series
from tao_flows.signals.times import ns_from_iso
from tao_flows.simulate.market import Job, Market, Place, Zone

JOB_COLUMNS: Final = ("job_id", "arrival", "deadline", "runtime_s", "energy_j")
_POOL_FIELDS: Final = ("pool_id", "zone", "capacity", "energy_factor")
_JOBS_REMEDY: Final = f"the first line is {','.join(JOB_COLUMNS)}"
_LONGEST_RUNTIME_S: Final = 366 * 86_400.0
_MOST_JOULES: Final = 1e18


def read_jobs(path: Path) -> tuple[Job, ...]:
    """Jobs in order of arrival.

    Raises:
        InputError: BAD_JOBS_FILE, with the file's name and the line.
    """
    jobs: dict[str, Job] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, fields in _rows(path, file):
                job = _job(path, line, fields)
                if job.job_id in jobs:
                    raise _bad_jobs(f"{path}:{line}: job {job.job_id!r} is there twice", "give each job its own id")
                jobs[job.job_id] = job
    except OSError as error:
        raise _bad_jobs(f"{path}: {error.strerror or error}", "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise _bad_jobs(f"{path}: not UTF-8 text", "save the file as UTF-8") from None
    if not jobs:
        raise _bad_jobs(f"{path}: there are no jobs", "give one line for each job")
    return tuple(sorted(jobs.values(), key=lambda job: (job.arrival_ns, job.job_id)))


def _rows(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    table = csv.reader(lines, strict=True)
    names: list[str] | None = None
    try:
        for fields in table:
            if not fields:
                continue
            if names is None:
                names = [field.strip() for field in fields]
                if sorted(names) != sorted(JOB_COLUMNS):
                    raise _bad_jobs(f"{path}:{table.line_num}: the columns are {', '.join(names)}", _JOBS_REMEDY)
                continue
            if len(fields) != len(names):
                problem = f"{path}:{table.line_num}: {len(fields)} fields where the first line has {len(names)}"
                raise _bad_jobs(problem, "give one for each column")
            yield table.line_num, dict(zip(names, (field.strip() for field in fields), strict=True))
    except csv.Error as error:
        raise _bad_jobs(f"{path}:{table.line_num}: {error}", "mend the line") from None
    if names is None:
        raise _bad_jobs(f"{path}: the file is empty", _JOBS_REMEDY)


def _job(path: Path, line: int, fields: dict[str, str]) -> Job:
    def number(name: str, least: float, most: float) -> float:
        try:
            value = float(fields[name]) if "_" not in fields[name] else math.nan
        except ValueError:
            value = math.nan
        if not (least <= value <= most) or (name == "runtime_s" and value == 0):
            problem = f"{path}:{line}: {name} {fields[name][:60]!r} is not a number above 0"
            raise _bad_jobs(problem, f"give a finite number up to {most:g}")
        return value

    def time(name: str) -> int:
        try:
            return ns_from_iso(fields[name])
        except InputError as error:
            raise _bad_jobs(f"{path}:{line}: {name}: {error.summary}", error.remedy) from None

    if not fields["job_id"] or not fields["job_id"].isprintable():
        raise _bad_jobs(f"{path}:{line}: job_id {fields['job_id'][:60]!r} is no name", "name the job")
    arrival, deadline = time("arrival"), time("deadline")
    if deadline < arrival:
        raise _bad_jobs(f"{path}:{line}: the deadline lies before the arrival", "give the time by which it must end")
    return Job(
        job_id=fields["job_id"],
        arrival_ns=arrival,
        deadline_ns=deadline,
        runtime_s=number("runtime_s", 1e-6, _LONGEST_RUNTIME_S),
        energy_j=number("energy_j", 0.0, _MOST_JOULES),
    )


def read_market(signal: Path, pools: Path | None) -> Market:
    """The signal's zones and the pools in them; without a file of pools, one pool in the only zone.

    Raises:
        InputError: BAD_SIGNAL_FILE or BAD_POOLS_FILE, with the file's name and the place in it.
    """
    series = read_series(signal)
    zones = {name: Zone(one) for name, one in series.items() if one.actuals}
    if not zones:
        problem, remedy = f"{signal}: there are no values", "give rows without issued_at: they say what came true"
        raise InputError("BAD_SIGNAL_FILE", problem, remedy)
    if pools is None:
        if len(zones) > 1:
            problem = f"{signal}: there are {len(zones)} zones: {', '.join(zones)}"
            raise InputError("BAD_SIGNAL_FILE", problem, "say with --pools which pool is in which zone")
        return Market(zones, (Place("home", next(iter(zones))),))
    return Market(zones, _read_pools(pools, zones))


def _read_pools(path: Path, zones: Iterable[str]) -> tuple[Place, ...]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _bad_pools(f"{path}: {error.strerror or error}", "check the path and its permissions") from None
    except (ValueError, RecursionError) as error:
        raise _bad_pools(f"{path}: not JSON: {error}", "mend the file at the place named") from None
    if isinstance(document, dict) and set(document) == {"pools"}:
        document = document["pools"]
    if not isinstance(document, list) or not document:
        raise _bad_pools(f"{path}: no list of pools", f'give [{{"pool_id": "home", "zone": "{next(iter(zones))}"}}]')
    places = [_place(f"{path}: pool {number}", item, zones) for number, item in enumerate(document, 1)]
    for number, place in enumerate(places, 1):
        if place.pool_id in {other.pool_id for other in places[: number - 1]}:
            raise _bad_pools(f"{path}: pool {number}: {place.pool_id!r} is there twice", "give each pool its own id")
    return tuple(places)


def _place(where: str, item: Any, zones: Iterable[str]) -> Place:
    if not isinstance(item, dict):
        raise _bad_pools(f"{where}: not an object", f"give {', '.join(_POOL_FIELDS)}")
    for name in item:
        if name not in _POOL_FIELDS:
            raise _bad_pools(f"{where}: unknown field {name!r}", f"the fields are {', '.join(_POOL_FIELDS)}")
    pool_id, zone = item.get("pool_id"), item.get("zone")
    capacity, factor = item.get("capacity"), item.get("energy_factor", 1.0)
    if not isinstance(pool_id, str) or not pool_id:
        raise _bad_pools(f"{where}: pool_id is missing", "name the pool")
    if not isinstance(zone, str) or zone not in zones:
        raise _bad_pools(f"{where}: zone {zone!r} is not in the signal", f"name one of {', '.join(zones)}")
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1):
        raise _bad_pools(f"{where}: capacity is no count", "give a whole number from 1, or null for no limit")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1e6:
        raise _bad_pools(f"{where}: energy_factor is no number above 0", "1 takes what the jobs' rows say")
    return Place(pool_id, zone, capacity, float(factor))


def check_covered(jobs: Sequence[Job], market: Market) -> None:
    """Refuses jobs that could run where the signal is not known.

    Raises:
        InputError: SIGNAL_TOO_SHORT.
    """
    for zone in {place.zone for place in market.places}:
        known = market.zones[zone]
        for job in jobs:
            if job.arrival_ns < known.starts[0] or job.latest_ns + job.runtime_ns > known.end_ns:
                problem = f"job {job.job_id!r} can run before or after what the signal says of zone {zone!r}"
                raise InputError("SIGNAL_TOO_SHORT", problem, "leave the job out, or give a longer signal")


def _bad_jobs(summary: str, remedy: str) -> InputError:
    return InputError("BAD_JOBS_FILE", summary, remedy)


def _bad_pools(summary: str, remedy: str) -> InputError:
    return InputError("BAD_POOLS_FILE", summary, remedy)
