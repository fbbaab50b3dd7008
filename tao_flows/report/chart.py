"""Charts as SVG: energy by task with its interval, the account as one bar, small lines of earlier runs.

One drawing serves the HTML page, whose style sheet sets the colours, and an image that stands alone. Estimated
parts are hatched, so that no estimate looks measured. The colours are Okabe and Ito's, told apart by people with any
colour vision (M. Okabe, K. Ito, "Color Universal Design", 2008).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, NamedTuple

from tao_flows.figures import Account, Figure, Quality, joules
from tao_flows.report.model import RunReport
from tao_flows.report.summary import TaskGroup, account_lines, overview
from tao_flows.report.text import energy_text, percent, plain
from tao_flows.units import format_energy

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
.chart .gap{fill:none;stroke:var(--unknown,#8a929d);stroke-dasharray:3 2}
.chart .grid{stroke:var(--line,#dfe4ea);stroke-width:1}.chart .paper{fill:var(--paper,#fff)}
.chart .thread{stroke:var(--soft,#5b6675);stroke-width:1.4;fill:none}.chart .usual{stroke:var(--soft,#5b6675);stroke-dasharray:2 3}
.chart .point{fill:var(--soft,#5b6675)}.chart .here{fill:var(--overhead,#d55e00)}
"""
_MARGIN: Final = 16
_ROW: Final = 24
_MOSTLY: Final = 0.5


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
    style: str = ""
    """A further class, such as ``small``: as wide as it is drawn, and no wider."""

    def inline(self) -> str:
        """SVG for a page whose style sheet holds ``CHART_CSS``."""
        size = f'width="{self.width}" height="{self.height:.0f}" ' if self.style else ""
        return self._svg(f'{size}viewBox="0 0 {self.width} {self.height:.0f}"', "")

    def image(self, css: str = "") -> str:
        """SVG with its own style, paper and margin; ``css`` is further style of the kind of chart that it is."""
        width, height = self.width + 2 * _MARGIN, round(self.height) + 2 * _MARGIN
        box = f'width="{width}" height="{height}"'
        paper = f'<style>{CHART_CSS}{css}</style><rect class="paper" x="-{_MARGIN}" y="-{_MARGIN}" {box}/>'
        return self._svg(f'{box} viewBox="-{_MARGIN} -{_MARGIN} {width} {height}"', paper)

    def _svg(self, box: str, paper: str) -> str:
        hatch = (
            f'<defs><pattern id="{self.name}-hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><line class="stripe" x1="0" y1="0" x2="0" y2="7"/></pattern></defs>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{f"chart {self.style}".strip()}" role="img" aria-label="{escape(plain(self.title, 200))}" '
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
        body.append(label(room.label - 10, height + 10, rest.title, "soft", "end"))
        body.append(label(room.width, height + 10, energy_text(rest.energy), "soft num", "end"))
        height += _ROW
    shown = [quality for quality in Quality if any(bar.energy.quality is quality for bar in bars)]
    body.append(_quality_legend(shown, height + 10, room, name))
    return Drawing(name, f"Energy by task, in all {energy_text(report.energy)}", room.width, height + 24, tuple(body))


def account_chart(
    account: Account, room: Room = PAGE, *, parts: Sequence[Account] = (), name: str = "account"
) -> Drawing:
    """The account as one stacked bar, estimates hatched, with a legend that says what is unknown.

    Args:
        account: the whole.
        room: how wide.
        parts: the accounts that it is the sum of: of a line, the part that is estimated is hatched.
        name: unique in the page.
    """
    lines = account_lines(account)
    body, x = [], 0.0
    for line in lines:
        if line.share is None or line.share <= 0:
            continue
        width = line.share * room.width
        tip = f"{line.title}: {format_energy(line.value_j)}, {percent(line.share)}"
        body.append(_rect(_Box(x, 0, width, 30), line.name, tip=tip))
        if (estimated := _estimated_share(line.name, account, parts)) > 0:
            left = x + width * (1 - estimated)
            body.append(_hatch(_Box(left, 0, width * estimated, 30), name))
        # Room for the text, and paper under it where hatching would make it hard to read.
        if width > 56:
            body.append(_rect(_Box(x + width / 2 - 24, 6, 48, 18), "paper", radius=9))
            body.append(label(x + width / 2, 19.5, percent(line.share), "num", "middle"))
        x += width
    if not body:
        body.append(label(0, 20, "No account: nothing is known of where this host's joules went.", "soft"))
    step = room.width / len(lines)
    for index, line in enumerate(lines):
        left = index * step
        wholly = line.share is not None and _estimated_share(line.name, account, parts) > _MOSTLY
        body.append(_rect(_Box(left, 44, 14, 14), line.name, hatch=name if wholly else ""))
        body.append(label(left + 20, 55.5, line.title, ""))
        said = "unknown" if line.share is None else f"{format_energy(line.value_j)}, {percent(line.share)}"
        body.append(label(left + 20, 73, said, "soft num"))
    return Drawing(name, "Where the joules of the hosts went", room.width, 80, tuple(body))


def _estimated_share(line: str, account: Account, parts: Sequence[Account]) -> float:
    """How much of a line is estimated; all of it where that is all that is said of the whole."""
    sums = {True: 0, False: 0}
    for part in parts or (account,):
        sums[part.quality is Quality.ESTIMATED] += getattr(part, f"{line}_uj") or 0
    whole = sum(sums.values())
    return sums[True] / whole if whole > 0 else float(account.quality is Quality.ESTIMATED)


def quality_chart(by_quality_uj: Mapping[Quality, int], coverage: float, *, name: str = "mix") -> Drawing:
    """The known joules by quality as one thin bar; what is unknown is an open part of it, by its share of the parts."""
    whole = sum(by_quality_uj.values())
    body, x, width = [], 0.0, 280
    known_width = width * coverage
    for quality, energy_uj in by_quality_uj.items():
        part = energy_uj / whole * known_width if whole > 0 else 0.0
        tip = f"{quality}: {format_energy(joules(energy_uj))}, {percent(energy_uj / whole if whole > 0 else None)}"
        hatch = name if quality is Quality.ESTIMATED else ""
        body.append(_rect(_Box(x, 0, part, 12), quality.value, hatch=hatch, tip=tip))
        x += part
    if coverage < 1:
        tip = f"unknown: {percent(1 - coverage)} of the parts"
        body.append(
            f'<rect x="{x:.1f}" y=".5" width="{width - x:.1f}" height="11" class="gap"><title>{tip}</title></rect>'
        )
    return Drawing(name, "Joules by quality", width, 12, tuple(body), "small")


def spark_chart(values: Sequence[float | None], usual: float | None, *, name: str = "trend") -> Drawing:
    """A small line of values, oldest first, the last one marked; a gap is a value that is not known."""
    known = [value for value in values if value is not None]
    most = max([*known, usual or 0.0, 1e-12])
    step = 216 / max(1, len(values) - 1)
    points = [(2 + at * step, 40 - 34 * value / most) for at, value in enumerate(values) if value is not None]
    body = [] if usual is None else [f'<path class="thread usual" d="M0 {40 - 34 * usual / most:.1f}h220"/>']
    if len(points) > 1:
        body.append(f'<path class="thread" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')
    for number, (x, y) in enumerate(points, start=1):
        is_here = number == len(points) and values[-1] is not None
        body.append(
            f'<circle class="{"here" if is_here else "point"}" cx="{x:.1f}" cy="{y:.1f}" r="{3 if is_here else 1.6}"/>'
        )
    return Drawing(name, "Energy of the last runs of this flow", 220, 44, tuple(body), "small")


def fit(text: str, columns: int) -> str:
    """``text`` cut to a width, wide characters counting as two."""
    line, used = plain(text), 0
    for position, char in enumerate(line):
        used += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if used > columns:
            return line[: max(1, position - 1)] + "…"
    return line


def label(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    """A line of text, escaped."""
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
    return solid + (_hatch(box, hatch, radius) if hatch else "")


def _hatch(box: _Box, name: str, radius: float = 2) -> str:
    where = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{max(box.width, 0.5):.1f}" height="{box.height:.1f}"'
    return f'<rect {where} rx="{radius:g}" fill="url(#{name}-hatch)" pointer-events="none"/>'


def _bar(bar: TaskGroup, y: float, per_uj: float, room: Room, name: str) -> str:
    figure, middle = bar.energy, y + _ROW / 2
    drawn = [label(room.label - 10, middle + 4, fit(bar.title, room.columns), "", "end")]
    if figure.value_uj is None:
        states = ", ".join(str(state) for state, _ in bar.states)
        drawn.append(label(room.label, middle + 4, f"unknown ({states})", "soft"))
        return "".join(drawn)
    hatch = name if figure.quality is Quality.ESTIMATED else ""
    tip = f"{plain(bar.title)}: {energy_text(figure)}, {figure.quality}"
    box = _Box(room.label, y + 4, figure.value_uj * per_uj, _ROW - 9)
    drawn.append(_rect(box, figure.quality.value, hatch=hatch, tip=tip))
    drawn.append(_whisker(figure, room.label, middle - 0.5, per_uj))
    drawn.append(label(room.width, middle + 4, energy_text(figure), "num", "end"))
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
        drawn.append(label(x + 18, y + 1, quality.value, "soft"))
        x += 40 + 7 * len(quality.value)
    return "".join([*drawn, label(room.width, y + 1, "whiskers: low to high", "soft", "end")])


def ticks(duration_s: float, room: float, floor: float, left: float = PAGE.label) -> list[str]:
    """Lines and times under a time line of ``duration_s`` that is ``room`` pixels wide and ``floor`` high."""
    rough = max(duration_s, 1e-9) / 6
    magnitude = 10.0 ** math.floor(math.log10(rough))
    clock = [step for step in (60.0, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400) if step >= rough]
    decimal = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough)
    step = clock[0] if rough > 30 and clock else decimal
    drawn = []
    for index in range(math.floor(duration_s / step) + 1):
        x = left + index * step / duration_s * room
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{floor + 4:.1f}"/>')
        drawn.append(label(x, floor + 20, _tick(index * step), "soft num", "middle"))
    return drawn


def _tick(moment_s: float) -> str:
    if moment_s < 60:
        return f"{moment_s:.3g} s"
    hours, rest_s = divmod(round(moment_s), 3600)
    minutes, left_s = divmod(rest_s, 60)
    return f"{hours}:{minutes:02} h" if hours else f"{minutes}:{left_s:02} min"
