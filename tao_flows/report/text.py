"""Words shared by the renderers. Names of flows and tasks come from users, and are shown without being obeyed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from tao_flows.figures import Figure, Quality, joules
from tao_flows.report.rows import TaskRow
from tao_flows.units import format_energy, format_energy_interval

NAME_LIMIT: Final = 80
"""Characters of a name that are shown."""
FLOW_BODY: Final = "flow's own code"
QUALITY_MEANING: Final = {
    Quality.MEASURED: "a counter of a whole domain, or of a GPU that the task held alone",
    Quality.ATTRIBUTED: "a counter times the task's share of it",
    Quality.ESTIMATED: "a model; no counter was read",
    Quality.UNKNOWN: "no reading; never counted as zero",
}
_JOINER: Final = "\u2060"
"""Word joiner: invisible, and enough to keep text from being read as a link, an image or a tag."""
_ACTIVE: Final = re.compile(r"\](?=[(\[:])|!(?=\[)|<(?=[\w/!?])|&(?=[\w#])|:(?=//)|\bwww(?=\.)|@(?=\w)", re.IGNORECASE)
_ZERO_WIDTH_JOINERS: Final = "\u200c\u200d"
"""Needed to spell some scripts and to draw some signs; the other format characters can turn text around."""


def plain(text: object, limit: int = NAME_LIMIT) -> str:
    """``text`` on one line, without control or direction characters, at most ``limit`` characters long."""
    # More than is shown is looked at, because some of it is dropped; and no more, because a name can be a megabyte.
    head = str(text)[: limit * 4]
    line = " ".join((head if head.isprintable() else "".join(map(_harmless, head))).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _harmless(char: str) -> str:
    category = unicodedata.category(char)
    if category in {"Cc", "Zl", "Zp"}:
        return " "
    if category == "Cs":
        return "\ufffd"
    return "" if category == "Cf" and char not in _ZERO_WIDTH_JOINERS else char


def inert(text: object, limit: int = NAME_LIMIT) -> str:
    """``plain`` text that no Markdown renderer turns into a link, an image or HTML; it looks the same."""
    return _ACTIVE.sub(rf"\g<0>{_JOINER}", plain(text, limit))


def energy_text(figure: Figure) -> str:
    """``1.23 J [0.61, 2.46]``, or ``unknown``."""
    return format_energy_interval(figure.value_j, figure.low_j, figure.high_j)


def mix_text(by_quality_uj: Mapping[Quality, int]) -> str:
    """The known joules by quality: ``3.20 J measured, 8.00 J estimated``."""
    return ", ".join(f"{format_energy(joules(energy_uj))} {quality}" for quality, energy_uj in by_quality_uj.items())


def percent(share: float | None) -> str:
    """A share as a percentage; ``unknown`` for None."""
    if share is None:
        return "unknown"
    if 0 < share < 0.001:
        return "< 0.1 %"
    # Nearly all is not all: no share is rounded up to the whole.
    if 0.995 <= share < 1:
        return f"{min(share, 0.999) * 100:.1f} %"
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def seconds(value_s: float | None) -> str:
    """Seconds with a precision that fits; ``unknown`` for None."""
    if value_s is None:
        return "unknown"
    if 0 < value_s < 0.0005:
        return "<0.001"
    return f"{value_s:.3f}" if value_s < 1 else f"{value_s:,.2f}" if value_s < 100 else f"{value_s:,.0f}"


def cpu_text(cpu_s: float | None, *, lower_bound: bool) -> str:
    """CPU seconds; with ``>=`` where some can have been missed."""
    said = seconds(cpu_s)
    if not lower_bound or cpu_s is None:
        return said
    return "> 0" if said.startswith("<") else f"≥ {said}"


def decision_text(row: TaskRow) -> str:
    """What was decided about a try: ``run``, ``reroute to gpu``; empty where nothing was."""
    choice = row.decision
    if choice is None:
        return ""
    moved = choice.action == "reroute" or (choice.pool and row.pool and choice.pool != row.pool)
    return f"{choice.action} to {choice.pool}" if moved and choice.pool else choice.action


def penalty_text(low: float | None, high: float | None) -> str:
    """A range of penalties; ``unknown`` for None."""
    if low is None or high is None:
        return "unknown"
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"


def count(number: int, singular: str, plural: str = "") -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listed(items: tuple[str, ...], limit: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(plain(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"
