"""``python -m benchmarks.headline``: the same work on plain engines and under tao-flows, and what of it is overhead.

It brings up whole engines one after the other, each in its own environment (``.venv/prefect``, ``.venv/airflow``), gives
them the same items at the same rate, and takes the node's account from outside. ``README.md`` beside this says how to
read the result. As root it counts CPU time by eBPF.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from benchmarks.headline.coverage import measure_coverage
from benchmarks.headline.instrument import Instrument, machine
from benchmarks.headline.measuring import Cell, measure_cell
from benchmarks.headline.page import write_page
from benchmarks.headline.plots import write_plots
from benchmarks.headline.sites import ENGINES, REPOSITORY, SIDES
from benchmarks.headline.summary import shown, summarised
from benchmarks.headline.work import rounds_per_s

SCHEMA: Final = "tao-flows/benchmark-headline/1"
SWEEP_S: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
SWEEP_SIDES: Final = ("plain", "observe")
"""What dispatch takes is the question; how many items share one is that of the other kind."""
CURVE_SIDES: Final = ("plain", "enforce")
CURVE_S: Final = (0.001, 0.01, 0.1, 0.5)
SWEEP_ITEMS: Final = 30
SWEEP_WORK_S: Final = 40.0
"""CPU seconds: fewer items where they are long, for a few that take minutes tell as much; never less than two."""
RATES: Final = {"prefect": (1.0, 10.0), "airflow-local": (1.0,), "airflow-celery": (1.0,)}
"""Items a second. On two processors plain Airflow ends less than two a second, plain Prefect some twenty."""
MOST_LOAD: Final = 0.4
"""What would take more of the processors is left out: with plain dispatch beside it, it would pile up."""


def cells_of(given: argparse.Namespace) -> list[Cell]:
    """What is measured, in order: the sides of the same work follow each other, in turns."""
    cells = []
    for repetition in range(given.repetitions):
        turn = 1 if repetition % 2 == 0 else -1
        for engine in given.engine:
            for rate in given.rate or RATES[engine]:
                for item_s in given.items_s:
                    if rate * item_s > MOST_LOAD * (os.cpu_count() or 1):
                        continue
                    # What observing takes does not depend on the items' length: once is enough.
                    sides = given.side if item_s == given.items_s[0] else [s for s in given.side if s in CURVE_SIDES]
                    cells += [_at_rate(given, engine, side, rate, item_s, repetition) for side in sides[::turn]]
            for item_s in given.sweep_s:
                sides = [side for side in given.side[::turn] if side in SWEEP_SIDES]
                cells += [_all_at_once(engine, side, item_s, repetition) for side in sides]
    return cells


def _at_rate(given: argparse.Namespace, engine: str, side: str, rate: float, item_s: float, repetition: int) -> Cell:
    groups = max(1, round(given.horizon_s / given.tick_s))
    arrivals_s = tuple(given.tick_s * number for number in range(groups))
    items = max(1, round(rate * given.tick_s))
    return Cell(engine, side, "rate", item_s, rate, items, arrivals_s, given.horizon_s, repetition)


def _all_at_once(engine: str, side: str, item_s: float, repetition: int) -> Cell:
    items = max(2, min(SWEEP_ITEMS, round(SWEEP_WORK_S / item_s)))
    return Cell(engine, side, "sweep", item_s, None, items, (0.0,), 0.0, repetition)


def python_of(engine: str) -> Path:
    """The interpreter of the engine's environment."""
    return REPOSITORY / ".venv" / engine.partition("-")[0] / "bin/python"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headline", description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", choices=ENGINES, action="append", help="only this one; may be repeated")
    parser.add_argument("--side", choices=SIDES, action="append", help="only this one; may be repeated")
    parser.add_argument("--items-s", type=float, nargs="*", help="CPU seconds of an item, at the fixed rate")
    parser.add_argument("--sweep-s", type=float, nargs="*", help="CPU seconds of an item, all at once")
    parser.add_argument("--rate", type=float, nargs="*", help="items that come in a second, on every engine")
    parser.add_argument("--tick", dest="tick_s", type=float, help="seconds between arrivals of a group")
    parser.add_argument("--horizon", dest="horizon_s", type=float, help="seconds over which items come")
    parser.add_argument("--repetitions", type=int, help="of everything, the sides in turns")
    parser.add_argument("--quick", action="store_true", help="Prefect, plain and enforced, once: under five minutes")
    parser.add_argument("--json", type=Path, help="where the figures go; written after each cell")
    parser.add_argument("--more", action="store_true", help="add to what is in the file of --json; what is there stays")
    parser.add_argument("--from", dest="old", type=Path, help="measure nothing: read the figures of this file")
    parser.add_argument("--plots", type=Path, help="a folder for the pictures")
    parser.add_argument("--page", type=Path, help="where the page goes, such as docs/headline.md")
    given = parser.parse_args()
    quick = given.quick
    given.engine = given.engine or (["prefect"] if quick else list(ENGINES))
    given.side = given.side or (["plain", "enforce"] if quick else list(SIDES))
    given.items_s = given.items_s if given.items_s is not None else ([0.001] if quick else list(CURVE_S))
    given.sweep_s = given.sweep_s if given.sweep_s is not None else ([] if quick else list(SWEEP_S))
    given.rate = given.rate or ([5.0] if quick else None)
    given.tick_s = given.tick_s or (20.0 if quick else 30.0)
    given.horizon_s = given.horizon_s or (40.0 if quick else 120.0)
    given.repetitions = given.repetitions or (1 if quick else 3)
    return given


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measures every cell; what fails is noted and the rest goes on."""
    instrument = Instrument()
    found = _begun(given, instrument.source)
    found["commands"].append(" ".join(["python -m benchmarks.headline", *sys.argv[1:]]))
    per_s, there = found["rounds_per_s"], [_identity(cell) for cell in found["cells"]]
    cells = [cell for cell in cells_of(given) if _is_there(cell.engine, found["failed"])]
    cells = [cell for cell in cells if _identity(json.loads(json.dumps(asdict(cell)))) not in there]
    for number, cell in enumerate(cells, 1):
        began_s = time.monotonic()
        print(f"[{number}/{len(cells)}] {cell}", end=" ", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="tao-headline-") as home:
            try:
                found["cells"].append(measure_cell(cell, python_of(cell.engine), Path(home), instrument, per_s))
                print(f"{time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
            except (OSError, RuntimeError) as error:
                found["failed"].append({"cell": str(cell), "error": f"{type(error).__name__}: {error}"})
                print(f"failed: {error}", file=sys.stderr, flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _begun(given: argparse.Namespace, cpu_source: str) -> dict[str, Any]:
    """What the cells are added to: nothing yet, or what was measured before on the same machine.

    Raises:
        SystemExit: it was another machine's, or counted otherwise.
    """
    host = machine()
    if given.more and given.json and given.json.exists():
        found: dict[str, Any] = json.loads(given.json.read_text())
        before, now = ({**one, "load_average": None} for one in (found["machine"], host))
        if (before, found["cpu_source"], found["schema"]) != (now, cpu_source, SCHEMA):
            sys.exit(f"{given.json} holds another machine's figures: name another file with --json")
        return {**found, "failed": []}
    return {
        "schema": SCHEMA,
        "commands": [],
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": host,
        "rounds_per_s": rounds_per_s(),
        "cpu_source": cpu_source,
        "coverage": measure_coverage(),
        "cells": [],
        "failed": [],
    }


def _identity(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """What was asked for, of a cell that was measured or is to be."""
    return tuple(json.dumps(cell[field.name]) for field in fields(Cell))


def _is_there(engine: str, failed: list[dict[str, str]]) -> bool:
    if python_of(engine).exists():
        return True
    note = {"cell": engine, "error": f"left out: {python_of(engine)} is not there"}
    if note not in failed:
        failed.append(note)
    return False


def main() -> int:
    given = parsed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    found = json.loads(given.old.read_text()) if given.old else measure(given)
    found["summary"] = summarised(found["cells"])
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(shown(found))
    if given.plots:
        write_plots(found, given.plots)
    if given.page:
        write_page(found, given.page, given.plots)
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
