"""One picture of the result: who pays for a sleeper, whose CPU time is true, and what a window costs."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Final

from tao_flows.report.chart import Drawing

WIDTH: Final = 860
LABEL: Final = 290
VALUE: Final = 150
ROW: Final = 22
WINDOWS: Final = (
    "tao-flows", "tao-flows-read", "tao-flows-agent", "pyrapl", "pyjoules", "zeus", "carbontracker", "codecarbon-task",
    "codecarbon-process", "codecarbon-tracker",
)  # fmt: skip
"""The rows whose cost is drawn."""


def draw(report: dict[str, Any]) -> str:
    """SVG, with what could not be measured left out."""
    charges = {} if "left_out" in report["charges"] else report["charges"]
    body: list[str] = []
    y = 16.0
    for panel in (_charged, _errors):
        y = panel(charges, y, body)
    y = _costs(report["windows"], y, body)
    body.append(_text(0, y + 8, f"{report['machine']}; {report['date']}", "soft"))
    return Drawing("metering", "tao-flows beside its peers", WIDTH, y + 16, tuple(body)).image()


def _charged(charges: dict[str, Any], y: float, body: list[str]) -> float:
    cases = {each["title"]: each["cases"]["asleep"] for each in charges.values() if "asleep" in each["cases"]}
    if not cases:
        return y
    drawn = [_share(case) for case in cases.values()]
    scale = (WIDTH - LABEL - VALUE) / max([1.0, *(busy + asleep for busy, asleep in drawn)])
    y = _heading("Two tasks at once, one busy and one asleep: who is charged for the busy one's joules?", y, body)
    body.append(_rect(LABEL, y - 9, 12, 12, "tasks") + _text(LABEL + 18, y + 1, "charged to the busy task", "soft"))
    body.append(
        _rect(LABEL + 190, y - 9, 12, 12, "overhead") + _text(LABEL + 208, y + 1, "charged to the sleeper", "soft")
    )
    top = y + 12
    for number, (title, (busy, asleep)) in enumerate(zip(cases, drawn, strict=True)):
        row = top + number * ROW
        body.append(_text(LABEL - 10, row + 14, title, "", "end"))
        body.append(_rect(LABEL, row + 3, busy * scale, ROW - 7, "tasks"))
        body.append(_rect(LABEL + busy * scale, row + 3, asleep * scale, ROW - 7, "overhead"))
        body.append(_text(WIDTH, row + 14, f"{100 * busy:.0f} % + {100 * asleep:.1f} %", "num", "end"))
    bottom = top + len(cases) * ROW
    body.append(f'<path class="whisker" d="M{LABEL + scale:.1f} {top:.1f}V{bottom:.1f}"/>')
    body.append(_text(LABEL + scale, bottom + 15, "what the two really drew", "soft", "middle"))
    return bottom + 44


def _share(case: dict[str, Any]) -> tuple[float, float]:
    truth_j = sum(task["truth_j"] for task in case["tasks"])
    busy, asleep = ((task["energy_j"] or 0.0) / truth_j for task in case["tasks"])
    return busy, asleep


def _errors(charges: dict[str, Any], y: float, body: list[str]) -> float:
    kinds = ("burn", "forks", "orphans")
    tools = {
        each["title"]: [each["cases"][kind]["cpu_error"] for kind in kinds]
        for each in charges.values()
        if all(kind in each["cases"] for kind in kinds)
    }
    if not tools:
        return y
    y = _heading("How much of a task's CPU time is seen? (The other tools tell none.)", y, body)
    step = (WIDTH - LABEL) / len(kinds)
    for column, kind in enumerate(("a busy loop", "short-lived children", "orphans")):
        body.append(_text(LABEL + column * step, y + 1, kind, "soft"))
    top = y + 10
    for number, (title, errors) in enumerate(tools.items()):
        row = top + number * ROW
        body.append(_text(LABEL - 10, row + 14, title, "", "end"))
        for column, error in enumerate(errors):
            x, room = LABEL + column * step, step - 80
            seen = 0.0 if error is None else max(0.0, 1 + error)
            body.append(_rect(x, row + 3, room, ROW - 7, "unattributed", faint=True))
            body.append(_rect(x, row + 3, min(1.0, seen) * room, ROW - 7, "attributed"))
            body.append(_text(x + room + 6, row + 14, f"{100 * seen:.1f} %", "num"))
    return top + len(tools) * ROW + 34


def _costs(windows: dict[str, Any], y: float, body: list[str]) -> float:
    rows = {
        windows[name]["title"]: windows[name]["median_ns"] for name in WINDOWS if "median_ns" in windows.get(name, {})
    }
    if not rows:
        return y
    y = _heading("What does an empty window cost? (Each line is ten times the one before.)", y, body)
    decades = range(math.floor(math.log10(min(rows.values()))), math.ceil(math.log10(max(rows.values()))) + 1)
    per_decade = (WIDTH - LABEL - 90) / max(1, len(decades) - 1)
    top = y - 6
    for number, decade in enumerate(decades):
        x = LABEL + number * per_decade
        body.append(f'<line class="grid" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{top + len(rows) * ROW:.1f}"/>')
        body.append(_text(x, top + len(rows) * ROW + 16, _time(10.0**decade), "soft num", "middle"))
    for number, (title, cost_ns) in enumerate(rows.items()):
        row = top + number * ROW
        width = (math.log10(cost_ns) - decades[0]) * per_decade
        body.append(_text(LABEL - 10, row + 14, title, "", "end"))
        style = "tasks" if title.startswith("tao-flows") else "unattributed"
        body.append(_rect(LABEL, row + 3, width, ROW - 7, style))
        body.append(_text(WIDTH, row + 14, _time(cost_ns), "num", "end"))
    return top + len(rows) * ROW + 44


def _time(duration_ns: float) -> str:
    for unit_ns, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if duration_ns >= unit_ns:
            return f"{duration_ns / unit_ns:.3g} {unit}"
    return f"{duration_ns:.3g} ns"


def _heading(text: str, y: float, body: list[str]) -> float:
    body.append(_text(0, y, text, "").replace("<text ", '<text style="font-weight:600" ', 1))
    return y + 26


def _text(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(content)}</text>'


def _rect(x: float, y: float, width: float, height: float, style: str, *, faint: bool = False) -> str:
    opacity = ' fill-opacity="0.3"' if faint else ""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="2"'
    return f'<rect {box} class="{style}"{opacity}/>'
