"""Charts as SVG: energy by task with its interval, the account as one bar, tasks on a time line.

One drawing serves the HTML page, whose style sheet sets the colours, and an image that stands alone. Estimated
parts are hatched, so that no estimate looks measured. The colours are Okabe and Ito's, told apart by people with any
colour vision (M. Okabe, K. Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, NamedTuple

from tao_flows.figures import Account, Figure, Quality
from tao_flows.report.model import RunReport
from tao_flows.report.rows import Span, TaskRow
from tao_flows.report.summary import TaskGroup, account_lines, dearest, overview
from tao_flows.report.text import energy_text, percent, plain
from tao_flows.units import NS_PER_S, format_duration, format_energy, format_power

CHART_CSS: Final = """
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;fill:var(--ink,#1c2430)}
.chart .soft{fill:var(--soft,#5b6675)}.chart .num{font-variant-numeric:tabular-nums}
.chart .measured{fill:var(--measured,#0072b2)}.chart .attributed{fill:var(--attributed,#009e73)}
.chart .estimated{fill:var(--estimated,#e69f00)}.chart .unknown{fill:var(--unknown,#8a929d)}
.chart .tasks{fill:var(--tasks,#0072b2)}.chart .overhead{fill:var(--overhead,#d55e00)}
.chart .idle{fill:var(--idle,#56b4e9)}.chart .allocated_idle{fill:var(--allocated-idle,#cc79a7)}
.chart .unattributed{fill:var(--unattributed,#b4bac2)}
.chart .stripe{stroke:var(--paper,#fff);stroke-width:3;stroke-opacity:.45}
.chart .whisker{stroke:var(--ink,#1c2430);stroke-width:1.4;stroke-opacity:.75;fill:none}
.chart .grid{stroke:var(--line,#dfe4ea);stroke-width:1}.chart .paper{fill:var(--paper,#fff)}
.chart .span{fill:var(--tasks,#0072b2);stroke:var(--tasks,#0072b2);stroke-width:1}
.chart .open{fill:none;stroke:var(--overhead,#d55e00);stroke-width:1.4;stroke-dasharray:4 3}
"""
_MARGIN: Final = 16
_ROW: Final = 24
_LANE: Final = 20
_PALEST: Final = 0.18
"""Opacity of a span that drew nothing, against 1 for the one that drew most."""


@dataclass(frozen=True, slots=True)
class Room:
    """The width of a chart, and of what stands beside its bars, in pixels."""

    width: int
    label: int
    value: int
    columns: int
    """Characters of a label that fit."""


PAGE: Final = Room(960, 220, 180, 28)
"""A page of our own."""
COLUMN: Final = Room(600, 186, 146, 28)
"""A column of an engine's page, which is about as wide: drawn larger, the text would be shown too small to read."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart, to be set into a page or to stand alone."""

    name: str
    """Unique in the page it is set into."""
    title: str
    width: int
    height: float
    body: tuple[str, ...]

    def inline(self) -> str:
        """SVG for a page whose style sheet holds ``CHART_CSS``."""
        return self._svg(f'viewBox="0 0 {self.width} {self.height:.0f}"', "")

    def image(self) -> str:
        """SVG with its own style, paper and margin."""
        width, height = self.width + 2 * _MARGIN, round(self.height) + 2 * _MARGIN
        box = f'width="{width}" height="{height}"'
        paper = f'<style>{CHART_CSS}</style><rect class="paper" x="-{_MARGIN}" y="-{_MARGIN}" {box}/>'
        return self._svg(f'{box} viewBox="-{_MARGIN} -{_MARGIN} {width} {height}"', paper)

    def _svg(self, box: str, paper: str) -> str:
        hatch = (
            f'<defs><pattern id="{self.name}-hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><line class="stripe" x1="0" y1="0" x2="0" y2="7"/></pattern></defs>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-label="{escape(self.title)}" '
            f"{box}>{paper}{hatch}{''.join(self.body)}</svg>"
        )


def energy_chart(report: RunReport, room: Room = PAGE, *, limit: int = 30, name: str = "energy") -> Drawing:
    """Horizontal bars of energy with whiskers from low to high: a bar a try, or a label where there are many."""
    bars, rest = overview(report.tasks, limit)
    scale = max((bar.energy.high_uj or 0 for bar in bars), default=0) or 1
    per_uj = (room.width - room.label - room.value) / scale
    body = [_bar(bar, 8 + index * _ROW, per_uj, room, name) for index, bar in enumerate(bars)]
    height = 16 + len(bars) * _ROW
    if rest is not None:
        body.append(_text(room.label - 10, height + 10, rest.title, "soft", "end"))
        body.append(_text(room.width, height + 10, energy_text(rest.energy), "soft num", "end"))
        height += _ROW
    shown = [quality for quality in Quality if any(bar.energy.quality is quality for bar in bars)]
    body.append(_quality_legend(shown, height + 10, room, name))
    return Drawing(name, f"Energy by task, in all {energy_text(report.energy)}", room.width, height + 24, tuple(body))


def account_chart(account: Account, room: Room = PAGE, *, name: str = "account") -> Drawing:
    """The account as one stacked bar, with a legend that says what is unknown."""
    lines = account_lines(account)
    estimated = account.quality is Quality.ESTIMATED
    body, x = [], 0.0
    for line in lines:
        if line.share is None or line.share <= 0:
            continue
        width = line.share * room.width
        tip = f"{line.title}: {format_energy(line.value_j)}, {percent(line.share)}"
        body.append(_rect(_Box(x, 0, width, 30), line.name, hatch=name if estimated else "", tip=tip))
        # Room for the text, and paper under it where hatching would make it hard to read.
        if width > 56:
            body.append(_rect(_Box(x + width / 2 - 24, 6, 48, 18), "paper", radius=9))
            body.append(_text(x + width / 2, 19.5, percent(line.share), "num", "middle"))
        x += width
    if not body:
        body.append(_text(0, 20, "No account: nothing is known of where this host's joules went.", "soft"))
    step = room.width / len(lines)
    for index, line in enumerate(lines):
        left = index * step
        hatch = name if estimated and line.share is not None else ""
        body.append(_rect(_Box(left, 44, 14, 14), line.name, hatch=hatch))
        body.append(_text(left + 20, 55.5, line.title, ""))
        said = "unknown" if line.share is None else f"{format_energy(line.value_j)}, {percent(line.share)}"
        body.append(_text(left + 20, 73, said, "soft num"))
    return Drawing(name, "Where the joules of the hosts went", room.width, 80, tuple(body))


def timeline_chart(report: RunReport, *, limit: int = 60, name: str = "timeline") -> Drawing:
    """Tries on a time line, shaded by mean watts; what has no end is drawn with a broken line."""
    rows, rest = dearest(report.tasks, limit)
    rows = tuple(sorted(rows, key=lambda row: row.started_wall_ns))
    spans = [span for row in rows for span in row.spans]
    begin = min([report.run.started_wall_ns, *(span.started_wall_ns for span in spans)])
    ends = [each for each in (report.run.ended_wall_ns, *(span.ended_wall_ns for span in spans)) if each is not None]
    end = max([begin + 1, *ends, *(span.started_wall_ns for span in spans)])
    room = PAGE.width - PAGE.label - 30
    floor = 10 + len(rows) * _LANE
    most_w = max((span.power_w or 0.0 for span in spans), default=0.0)
    scale = _Scale(begin, end, room / (end - begin), most_w)
    body = _ticks((end - begin) / NS_PER_S, room, floor)
    for index, row in enumerate(rows):
        y = 8 + index * _LANE
        body.append(_text(PAGE.label - 10, y + 12, fit(row.title, PAGE.columns), "", "end"))
        body += [_span(row, span, y, scale) for span in row.spans]
    note = f"Darker is more power; the darkest drew {format_power(most_w)}." if most_w else ""
    note += f" The {len(rows)} dearest of {len(report.tasks):,} are shown." if rest is not None else ""
    body.append(_text(PAGE.label, floor + 40, note.strip(), "soft"))
    return Drawing(name, "Tasks by time", PAGE.width, floor + 48, tuple(body))


def fit(text: str, columns: int) -> str:
    """``text`` cut to a width, wide characters counting as two."""
    line, used = plain(text), 0
    for position, char in enumerate(line):
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > columns:
            return line[: max(1, position - 1)] + "…"
    return line


def _text(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(content)}</text>'


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float


def _rect(box: _Box, style: str, *, hatch: str = "", tip: str = "", radius: float = 2) -> str:
    width = max(box.width, 0.5)
    where = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{width:.1f}" height="{box.height:.1f}" rx="{radius:g}"'
    title = f"<title>{escape(tip)}</title>" if tip else ""
    solid = f'<rect {where} class="{style}">{title}</rect>'
    return solid + (f'<rect {where} fill="url(#{hatch}-hatch)" pointer-events="none"/>' if hatch else "")


def _bar(bar: TaskGroup, y: float, per_uj: float, room: Room, name: str) -> str:
    figure, middle = bar.energy, y + _ROW / 2
    drawn = [_text(room.label - 10, middle + 4, fit(bar.title, room.columns), "", "end")]
    if figure.value_uj is None:
        states = ", ".join(str(state) for state, _ in bar.states)
        drawn.append(_text(room.label, middle + 4, f"unknown ({states})", "soft"))
        return "".join(drawn)
    hatch = name if figure.quality is Quality.ESTIMATED else ""
    tip = f"{plain(bar.title)}: {energy_text(figure)}, {figure.quality}"
    box = _Box(room.label, y + 4, figure.value_uj * per_uj, _ROW - 9)
    drawn.append(_rect(box, figure.quality.value, hatch=hatch, tip=tip))
    drawn.append(_whisker(figure, room.label, middle - 0.5, per_uj))
    drawn.append(_text(room.width, middle + 4, energy_text(figure), "num", "end"))
    return "".join(drawn)


def _whisker(figure: Figure, zero_x: float, y: float, per_uj: float) -> str:
    if figure.low_uj is None or figure.high_uj is None or figure.low_uj == figure.high_uj:
        return ""
    low, high = (zero_x + bound * per_uj for bound in (figure.low_uj, figure.high_uj))
    ends = "".join(f"M{x:.1f} {y - 4:.1f}v8" for x in (low, high))
    return f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}{ends}"/>'


def _quality_legend(qualities: Sequence[Quality], y: float, room: Room, name: str) -> str:
    drawn, x = [], float(room.label)
    for quality in qualities:
        hatch = name if quality is Quality.ESTIMATED else ""
        drawn.append(_rect(_Box(x, y - 9, 12, 12), quality.value, hatch=hatch))
        drawn.append(_text(x + 18, y + 1, quality.value, "soft"))
        x += 40 + 7 * len(quality.value)
    return "".join([*drawn, _text(room.width, y + 1, "whiskers: low to high", "soft", "end")])


@dataclass(frozen=True, slots=True)
class _Scale:
    begin_ns: int
    end_ns: int
    per_ns: float
    most_w: float


def _span(row: TaskRow, span: Span, y: float, scale: _Scale) -> str:
    x = PAGE.label + (span.started_wall_ns - scale.begin_ns) * scale.per_ns
    duration_ns = (span.ended_wall_ns or scale.end_ns) - span.started_wall_ns
    box = _Box(x, y + 2, max(duration_ns * scale.per_ns, 2), _LANE - 7)
    title = plain(row.title)
    if span.ended_wall_ns is None or span.power_w is None:
        return _rect(box, "open", tip=f"{title}: {row.state}, power unknown")
    opacity = _PALEST + (1 - _PALEST) * (span.power_w / scale.most_w if scale.most_w > 0 else 0.0)
    bar = _rect(box, "span", tip=f"{title}: {format_duration(duration_ns / NS_PER_S)}, {format_power(span.power_w)}")
    return bar.replace("<rect ", f'<rect fill-opacity="{opacity:.2f}" ', 1)


def _ticks(duration_s: float, room: float, floor: float) -> list[str]:
    rough = max(duration_s, 1e-9) / 6
    magnitude = 10.0 ** math.floor(math.log10(rough))
    clock = [step for step in (60.0, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400) if step >= rough]
    decimal = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough)
    step = clock[0] if rough > 30 and clock else decimal
    drawn = []
    for index in range(math.floor(duration_s / step) + 1):
        x = PAGE.label + index * step / duration_s * room
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{floor + 4:.1f}"/>')
        drawn.append(_text(x, floor + 20, _tick(index * step), "soft num", "middle"))
    return drawn


def _tick(moment_s: float) -> str:
    if moment_s < 60:
        return f"{moment_s:.3g} s"
    hours, rest_s = divmod(round(moment_s), 3600)
    minutes, left_s = divmod(rest_s, 60)
    return f"{hours}:{minutes:02} h" if hours else f"{minutes}:{left_s:02} min"
