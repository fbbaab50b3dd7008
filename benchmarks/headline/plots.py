"""The pictures: overhead by length of items, power by line before and after, what is left of the saving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.headline.summary import length
from tao_flows.report.chart import Drawing, label

_WIDTH: Final = 760
_LEFT: Final = 60
_RIGHT: Final = 190
_HEIGHT: Final = 300
_TOP: Final = 34
_COLOURS: Final = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LINES: Final = ("tasks", "overhead", "unattributed", "idle")
_BAR: Final = 18

Series = Mapping[str, Sequence[tuple[float, Mapping[str, float]]]]
"""By name, lengths of items in seconds with median, low and high."""


def write_plots(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures that the figures are there for, as SVG, and says which."""
    summary = found["summary"]
    sweep = _series([r for r in summary["rows"] if r["kind"] == "sweep"], lambda row: row["overhead_share"])
    curve = _series(summary["reductions"], lambda row: row["engine_w_less"])
    drawings = []
    if sweep:
        title = "Share of CPU time that is overhead, by CPU time of an item"
        drawings.append(Drawing("headline-sweep", title, _WIDTH, _HEIGHT, _lines_of(title, sweep, 0.5)))
    if curve:
        title = "Active power saved against the plain engine, by CPU time of an item"
        drawings.append(Drawing("headline-reduction", title, _WIDTH, _HEIGHT, _lines_of(title, curve, 0.748)))
    at_rate = [row for row in summary["rows"] if row["kind"] == "rate"]
    pairs = _pairs(at_rate)
    if pairs:
        drawings.append(_before_after(pairs))
    if at_rate:
        title = "Average watts of the node at a fixed rate of items (idle as estimated or calibrated)"
        drawings.append(_bars(title, at_rate))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for drawing in drawings:
        path = folder / f"{drawing.name}.svg"
        path.write_text(drawing.image() + "\n")
        written.append(path)
    return written


def _series(rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], Any]) -> Series:
    found: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    for row in sorted(rows, key=lambda row: row["item_s"]):
        if value(row) is not None:
            rate = "" if row["rate"] is None else f", {row['rate']:g}/s"
            found.setdefault(f"{row['engine']}, {row['side']}{rate}", []).append((row["item_s"], value(row)))
    return found


def _lines_of(title: str, series: Series, mark: float) -> tuple[str, ...]:
    """Shares over a logarithmic scale of lengths, with their spread, and a line at ``mark``."""
    lengths_s = sorted({item_s for points in series.values() for item_s, _ in points})
    first, last = math.log10(lengths_s[0]), math.log10(lengths_s[-1])
    least = min(0.0, *(spread["low"] for points in series.values() for _, spread in points))
    room, floor = _WIDTH - _LEFT - _RIGHT, _HEIGHT - 36

    def x_of(item_s: float) -> float:
        return _LEFT + (room * (math.log10(item_s) - first) / (last - first) if last > first else room / 2)

    def y_of(share: float) -> float:
        return floor - (floor - _TOP) * (share - least) / (1 - least)

    drawn = [label(_LEFT, 14, title, "")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = y_of(share)
        drawn.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + room}" y2="{y:.1f}"/>')
        drawn.append(label(_LEFT - 6, y + 4, f"{share:.0%}", "soft num", "end"))
    drawn.append(f'<line class="usual" x1="{_LEFT}" y1="{y_of(mark):.1f}" x2="{_LEFT + room}" y2="{y_of(mark):.1f}"/>')
    drawn.append(label(_LEFT + room - 4, y_of(mark) - 4, f"{mark:.1%}", "soft num", "end"))
    drawn += [label(x_of(item_s), floor + 18, length(item_s), "soft num", "middle") for item_s in lengths_s]
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(s):.1f},{y_of(spread['median']):.1f}" for s, spread in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for item_s, spread in points:
            x, low, high = x_of(item_s), y_of(spread["low"]), y_of(spread["high"])
            drawn.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            drawn.append(f'<circle cx="{x:.1f}" cy="{y_of(spread["median"]):.1f}" r="3.5" fill="{colour}"/>')
        y = _TOP + 6 + 20 * number
        drawn.append(f'<circle cx="{_LEFT + room + 18}" cy="{y - 4}" r="4" fill="{colour}"/>')
        drawn.append(label(_LEFT + room + 28, y, name, ""))
    return tuple(drawn)


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Of each engine and rate the plain side and the enforced one, at the shortest items that both have."""
    by_side: dict[tuple[str, float], dict[float, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        by_side.setdefault((row["engine"], row["rate"]), {}).setdefault(row["item_s"], {})[row["side"]] = row
    found = []
    for lengths in by_side.values():
        both = [sides for _, sides in sorted(lengths.items()) if {"plain", "enforce"} <= sides.keys()]
        found += [(sides["plain"], sides["enforce"]) for sides in both[:1]]
    return found


def _before_after(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Drawing:
    """What the engine draws for the same items, without tao-flows and with it."""
    title, left = "Active power of the engine for the same items, plain and under tao-flows (enforce)", 250
    room = _WIDTH - left - 150
    most_w = max(row["engine_w"]["median"] for pair in pairs for row in pair)
    drawn, y = [label(0, 14, title, "")], 32
    for before, after in pairs:
        less = 1 - after["engine_w"]["median"] / before["engine_w"]["median"]
        for row, said in ((before, ""), (after, f", {less:.0%} less")):
            name = "plain" if row is before else "tao-flows"
            items = f"{row['engine']}, {row['rate']:g}/s of {length(row['item_s'])}" if row is before else ""
            drawn.append(label(0, y + 13, items, "soft"))
            drawn.append(label(left - 8, y + 13, name, "", "end"))
            watts = row["engine_w"]["median"]
            width, kind = room * watts / most_w, "unattributed" if row is before else "tasks"
            drawn.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{width:.1f}" height="{_BAR}"/>')
            drawn.append(label(left + width + 6, y + 13, f"{watts:.3f} W{said}", "num"))
            y += _BAR + 4
        y += 12
    return Drawing("headline-before-after", title, _WIDTH, y, tuple(drawn))


def _bars(title: str, rows: Sequence[Mapping[str, Any]]) -> Drawing:
    """The account's lines of each side, as one bar of watts."""
    left, room = 270, _WIDTH - 270 - 70
    known = [{n: (row["power_w"][n] or {}).get("median", 0.0) for n in _LINES} for row in rows]
    most_w = max(sum(each.values()) for each in known)
    drawn = [label(0, 14, title, "")]
    for number, name in enumerate(_LINES):
        drawn.append(f'<rect class="{name}" x="{left + 100 * number}" y="24" width="12" height="12"/>')
        drawn.append(label(left + 100 * number + 18, 35, name, ""))
    y = 50
    for row, watts in zip(rows, known, strict=True):
        drawn.append(
            label(
                left - 8,
                y + 13,
                f"{row['engine']}, {row['side']}, {row['rate']:g}/s of {length(row['item_s'])}",
                "",
                "end",
            )
        )
        x = float(left)
        for name in _LINES:
            width = room * watts[name] / most_w
            drawn.append(f'<rect class="{name}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"/>')
            x += width
        drawn.append(label(x + 6, y + 13, f"{sum(watts.values()):.2f} W", "soft num"))
        y += _BAR + 8
    return Drawing("headline-power", title, _WIDTH, y, tuple(drawn))
