"""The time line as SVG: queued, put off and running, shaded by watts, with the signal behind and the latest start ticked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from tao_flows.clock import iso_from_ns
from tao_flows.report.carbon import Curve, Step
from tao_flows.report.chart import PAGE, Drawing, Room, fit, label, ticks
from tao_flows.report.lanes import Lane, Stretch, Timeline
from tao_flows.report.text import plain
from tao_flows.units import NS_PER_S, format_duration, format_power

GANTT_CSS: Final = """
.chart .span{fill:var(--tasks,#0072b2);stroke:var(--tasks,#0072b2);stroke-width:1}
.chart .open{fill:none;stroke:var(--overhead,#d55e00);stroke-width:1.4;stroke-dasharray:4 3}
.chart .queued{stroke:var(--soft,#5b6675);stroke-width:2;fill:none}
.chart .between{stroke:var(--soft,#5b6675);stroke-width:1.4;stroke-dasharray:1.5 3;fill:none}
.chart .deferred{fill:var(--estimated,#e69f00);fill-opacity:.16;stroke:var(--estimated,#b87f00);stroke-width:1.2;stroke-dasharray:2 2}
.chart .latest{stroke:var(--bad,#b3261e);stroke-width:2;fill:none}
.chart .signal{fill:var(--unknown,#8a929d);fill-opacity:.16;stroke:none}
.chart .signal.forecast{fill-opacity:.08}
.chart .edge{stroke:var(--soft,#5b6675);stroke-width:1;stroke-opacity:.6;fill:none}
.chart .edge.forecast{stroke-dasharray:4 3}
.chart .now{stroke:var(--good,#00704f);stroke-width:1.4;stroke-dasharray:6 3}
"""
_LANE: Final = 20
_TOP: Final = 8
_LEAST: Final = 90
"""Height of the lanes at least, so that the signal behind them can be read."""
_PALEST: Final = 0.18
"""Opacity of a stretch that drew nothing, against 1 for the one that drew most."""


@dataclass(frozen=True, slots=True)
class _Scale:
    begin_ns: int
    end_ns: int
    until_ns: int
    most_w: float
    floor: float
    room: Room

    @property
    def width(self) -> float:
        """Pixels from the first moment to the last."""
        return self.room.width - self.room.label - 44

    def x(self, at_ns: int) -> float:
        part = (min(max(at_ns, self.begin_ns), self.end_ns) - self.begin_ns) / (self.end_ns - self.begin_ns)
        return self.room.label + part * self.width


def gantt_chart(line: Timeline, signal: Curve | None = None, room: Room = PAGE, *, name: str = "timeline") -> Drawing:
    """Lanes on a time line. What has no end is drawn with a broken line; the watts of a model are hatched."""
    floor = max(_LEAST, _TOP + 2 + len(line.lanes) * _LANE) if signal else _TOP + 2 + len(line.lanes) * _LANE
    scale = _Scale(line.begin_ns, line.end_ns, line.until_ns, line.most_w, floor, room)
    body = _signal(signal, scale) if signal is not None else []
    body += ticks((line.end_ns - line.begin_ns) / NS_PER_S, scale.width, floor, room.label)
    for index, lane in enumerate(line.lanes):
        y = _TOP + index * _LANE
        body.append(label(room.label - 10, y + 12, fit(lane.title, room.columns), "", "end"))
        body += [_stretch(lane, each, y, scale, name) for each in lane.stretches]
        body += [_latest(at, y, scale) for at in lane.latest_ns if at <= line.end_ns]
    if line.until_ns < line.end_ns:
        x = scale.x(line.until_ns)
        body.append(f'<path class="now" d="M{x:.1f} 2V{floor + 4:.1f}"><title>now</title></path>')
    keys, height = _legend(line, signal, floor + 40, room, name)
    body.append(keys)
    if line.most_w:
        height += 24
        note = f"Darker is more power; the darkest drew {format_power(line.most_w)}."
        note += f" {line.hidden:,} more tasks are not shown." if line.hidden else ""
        body.append(label(min(room.label, room.width - 6.2 * len(note)), height, note, "soft"))
    return Drawing(name, "Tasks by time", room.width, height + 8, tuple(body))


def _stretch(lane: Lane, part: Stretch, y: float, scale: _Scale, name: str) -> str:
    x, end_ns = scale.x(part.begin_ns), scale.until_ns if part.end_ns is None else part.end_ns
    width = max(scale.x(end_ns) - x, 1.0)
    lasted = format_duration((end_ns - part.begin_ns) / NS_PER_S)
    said = {"queued": "queued", "deferred": "put off", "between": "held no process", "running": "ran"}[part.kind]
    tip = f"{plain(lane.title)}: {said} {lasted}{' so far' if part.end_ns is None else ''}"
    tip += f", {format_power(part.power_w)}" if part.kind == "running" else ""
    tip += f" ({plain(part.tip, 160)})" if part.tip and part.kind == "deferred" else ""
    title = f"<title>{escape(tip)}</title>"
    if part.kind in ("queued", "between"):
        return f'<path class="{part.kind}" d="M{x:.1f} {y + 8.5:.1f}h{width:.1f}">{title}</path>'
    box = f'x="{x:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="{_LANE - 7}" rx="2"'
    if part.kind == "deferred":
        return f'<rect {box} class="deferred">{title}</rect>'
    if part.end_ns is None or part.power_w is None:
        return f'<rect {box} class="open">{title}</rect>'
    opacity = _PALEST + (1 - _PALEST) * (part.power_w / scale.most_w if scale.most_w > 0 else 0.0)
    solid = f'<rect fill-opacity="{opacity:.2f}" {box} class="span">{title}</rect>'
    return solid + (f'<rect {box} fill="url(#{name}-hatch)" pointer-events="none"/>' if lane.estimated else "")


def _latest(at_ns: int, y: float, scale: _Scale) -> str:
    tip = f"starts by {(iso_from_ns(at_ns) or '')[:19].replace('T', ' ')} UTC at the latest"
    return f'<path class="latest" d="M{scale.x(at_ns):.1f} {y:.1f}v{_LANE - 3}"><title>{escape(tip)}</title></path>'


def _signal(curve: Curve, scale: _Scale) -> list[str]:
    steps = [step for step in curve.steps if step.end_ns > scale.begin_ns and step.start_ns < scale.end_ns]
    if not steps:
        return []
    # Never cut off at the bottom: a small change of a large value would look like a large one.
    low, high = min(0.0, *(step.value for step in steps)), max(step.value for step in steps)
    span = high - low or 1.0
    top, height = 4.0, scale.floor - 4.0

    def y(value: float) -> float:
        return top + height * (1 - (value - low) / span)

    drawn = [_step(step, scale, y(step.value)) for step in steps]
    drawn.append(label(scale.room.width, top + 9, f"{high:.4g}", "soft num", "end"))
    drawn.append(label(scale.room.width, scale.floor + 2, f"{low:.4g}", "soft num", "end"))
    return drawn


def _step(step: Step, scale: _Scale, y: float) -> str:
    x, end = scale.x(step.start_ns), scale.x(step.end_ns)
    style = "" if step.origin.name == "ACTUAL" else " forecast"
    tip = f"{step.value:.4g}, {step.origin}"
    return (
        f'<rect class="signal{style}" x="{x:.1f}" y="{y:.1f}" width="{max(end - x, 0.3):.1f}" '
        f'height="{max(scale.floor - y, 0):.1f}"><title>{escape(tip)}</title></rect>'
        f'<path class="edge{style}" d="M{x:.1f} {y:.1f}H{end:.1f}"/>'
    )


def _legend(line: Timeline, signal: Curve | None, y: float, room: Room, name: str) -> tuple[str, float]:
    """The keys, on as many lines as they need, and where the last of these is."""
    kinds = {stretch.kind for lane in line.lanes for stretch in lane.stretches}
    box = '<rect x="0" y="-9" width="16" height="12" rx="2"'
    hatched = f'{box} class="span" fill-opacity=".7"/>{box} fill="url(#{name}-hatch)"/>'
    told = f"{signal.unit} in {signal.zone}" if signal is not None else ""
    keys = (
        ("running" in kinds, f'{box} class="span" fill-opacity=".7"/>', "running"),
        (any(lane.estimated for lane in line.lanes), hatched, "watts of a model"),
        (_has_open(line.lanes), f'{box} class="open"/>', "power unknown, or no end"),
        ("deferred" in kinds, f'{box} class="deferred"/>', "put off"),
        ("queued" in kinds, '<path class="queued" d="M0 -3h16"/>', "queued"),
        ("between" in kinds, '<path class="between" d="M0 -3h16"/>', "held no process"),
        (any(lane.latest_ns for lane in line.lanes), '<path class="latest" d="M8 -10v14"/>', "latest start"),
        (line.until_ns < line.end_ns, '<path class="now" d="M8 -10v14"/>', "now"),
        (bool(told), f'{box} class="signal"/>', told),
    )
    drawn, x = [], 0.0
    for is_there, shape, words in keys:
        if is_there:
            if x + 22 + 6.2 * len(words) > room.width:
                x, y = 0.0, y + 20
            drawn.append(f'<g transform="translate({x:.0f} {y:.0f})">{shape}{label(22, 1, plain(words), "soft")}</g>')
            x += 42 + 6.2 * len(words)
    return "".join(drawn), y


def _has_open(lanes: Sequence[Lane]) -> bool:
    running = (stretch for lane in lanes for stretch in lane.stretches if stretch.kind == "running")
    return any(stretch.end_ns is None or stretch.power_w is None for stretch in running)
