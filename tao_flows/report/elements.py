"""The parts that every page is made of. All text is escaped here; nothing is fetched, and no script runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Quality
from tao_flows.ledger.base import RunRef
from tao_flows.records import Deferral, RunKey
from tao_flows.report.carbon import Amount
from tao_flows.report.chart import Drawing
from tao_flows.report.links import Links
from tao_flows.report.style import STYLE
from tao_flows.report.text import percent, plain
from tao_flows.units import format_duration, s_from_ns

LIST_LIMIT: Final = 50
MOST_WAITING: Final = 100
_SHORT: Final = 60
_BAD_STATES: Final = ("fail", "crash", "cancel", "lost", "time")
_GOOD_STATES: Final = ("completed", "success")
_EMBEDDED_BYTES: Final = 1_000_000
"""A download is written into a page up to this size."""


def document(title: str, parts: Iterable[str], *, forms: bool = False) -> str:
    """A whole page.

    Args:
        title: of the window.
        parts: of the body; empty ones are left out.
        forms: the page has forms, which lead to where it came from.
    """
    style_hash = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    to = "'self'" if forms else "'none'"
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action {to}"
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def e(text: object, limit: int = 80) -> str:
    """Text that shows and does nothing."""
    return escape(plain(text, limit))


def badge(quality: Quality | str) -> str:
    """How a figure was come by."""
    return f'<span class="badge q-{escape(str(quality))}">{e(quality)}</span>'


def state(name: str) -> str:
    """The state of a run or a try."""
    lowered = name.lower()
    tone = "bad" if any(word in lowered for word in _BAD_STATES) else "good" if lowered in _GOOD_STATES else ""
    return f'<span class="state {tone}">{e(lowered)}</span>'


def link(text: str, address: str, links: Links) -> str:
    """A link, where there is an address; ``text`` is escaped already."""
    return f'<a href="{escape(address)}" target="{escape(links.target)}">{text}</a>' if address else text


def download(text: str, address: str, pieces: Iterable[str], kind: str, name: str) -> str:
    """A link to a download, or with the content in it; a word of what to do where that would be too large.

    Args:
        text: of the link.
        address: where it is; empty: it is in the page.
        pieces: of the content, taken as far as they are needed.
        kind: its media type.
        name: of the file.
    """
    if address:
        return f'<a href="{escape(address)}" download>{e(text)}</a>'
    encoded = bytearray()
    for piece in pieces:
        encoded += piece.encode()
        if len(encoded) > _EMBEDDED_BYTES:
            return f'<span class="soft">{e(text)}: too large for the page, tao-flows export has it</span>'
    data = base64.b64encode(encoded).decode()
    return f'<a href="data:{kind};base64,{data}" download="{escape(name)}">{e(text)}</a>'


def cell(content: str, style: str = "") -> str:
    """A cell of a table; the content is HTML."""
    return f'<td class="{style}">{content}</td>' if style else f"<td>{content}</td>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], last: Iterable[Sequence[str]] = ()) -> str:
    """A table of cells. A head that ends in ">" is set to the right, over its figures."""
    head = "".join(f'<th class="r">{h[:-1]}</th>' if h.endswith(">") else f"<th>{h}</th>" for h in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    rest = "".join(f'\n<tr class="rest">{"".join(row)}</tr>' for row in last)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}{rest}</tbody></table></div>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Tiles: a word, a figure, and what it means; the last two are HTML."""
    drawn = "".join(f"<div><dt>{t}</dt><dd>{v}<small>{s}</small></dd></div>" for t, v, s in items)
    return f'<dl class="cards">{drawn}</dl>'


def section(title: str, note: str, content: str, style: str = "") -> str:
    """A section; the note and the content are HTML."""
    said = f'<p class="soft">{note}</p>' if note else ""
    opening = f'<section class="{style}">' if style else "<section>"
    return f"{opening}<h2>{e(title)}</h2>{said}{content}</section>"


def chart(drawing: Drawing) -> str:
    """A drawing, as wide as the page."""
    return f'<div class="scroll">{drawing.inline()}</div>'


def capped(items: Sequence[str], number: int) -> str:
    """Items of a list, and how many more there are."""
    more = number - len(items)
    return "".join(items) + (f'<li class="soft">and {more:,} more</li>' if more > 0 else "")


def when(wall_ns: int | None) -> str:
    """A time to the minute, UTC; ``unknown`` for None."""
    return (iso_from_ns(wall_ns) or "unknown")[:16].replace("T", " ")


def number(value: float | None) -> str:
    """Three digits; ``unknown`` for None."""
    if value is None:
        return "unknown"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.2e}"


def amount_card(word: str, amount: Amount, per: str, untold: str) -> tuple[str, str, str]:
    """A tile: the amount, its bounds, its factor and where that comes from, and how much of the energy it is of.

    Args:
        word: what it is.
        amount: grams or money.
        per: the unit of the factor; empty where the amount is a difference and has none.
        untold: what is said of an amount that is not known.
    """
    if amount.value is None:
        return word, "unknown", e(untold, 240)
    scale, unit = 1.0, amount.unit
    if unit == "g" and abs(amount.value) >= 1_000:
        scale, unit = 1e-3, "kg"
    elif unit == "g" and 0 < abs(amount.value) < 0.1:
        scale, unit = 1e3, "mg"
    value, low, high = (None if each is None else each * scale for each in (amount.value, amount.low, amount.high))
    said = [] if low == value == high else [f"{number(low)} to {number(high)}"]
    if per:
        said.append(f"{number(amount.factor)} {per}, PUE {', '.join(f'{pue:.2f}' for pue in amount.pues[:3])}")
    said += [", ".join(map(str, amount.origins)), " and ".join(plain(each) for each in amount.sources[:3])]
    if amount.coverage < 0.9995:
        said.append(f"of {percent(amount.coverage)} of the known energy")
    note = f"{badge(amount.quality)} {e('; '.join(each for each in said if each), 240)}"
    return word, e(f"{number(value)} {unit}".strip()), note


def waiting_table(waiting: Sequence[Deferral], links: Links, now_ns: int) -> str:
    """What waits for a better time, with a button for who may release it."""
    if not waiting:
        return '<p class="soft">Nothing waits.</p>'
    rows = (
        [
            cell(link(e(each.key.flow), links.run(_ref(each.key)) if links.run else "", links), "name"),
            cell(_title(each.key, links), "name"),
            cell(_release(each, links)),  # where it is seen in a narrow frame too
            cell(e(each.pool)),
            cell(_moment(each.start_wall_ns, now_ns)),
            cell(_moment(each.latest_wall_ns, now_ns)),
            cell(e(each.state)),
            cell(_folded(each.reason), "wide"),
        ]
        for each in waiting[:MOST_WAITING]
    )
    more = len(waiting) - MOST_WAITING
    rest = [[cell(f"and {more:,} more", "name"), *[cell("")] * 7]] if more > 0 else []
    return table(("Flow", "Task", "", "Pool", "Planned start", "At the latest", "State", "Why"), rows, rest)


def _folded(text: str) -> str:
    """A text whose rest is unfolded by who wants it: rows stay one line high."""
    if len(text) <= _SHORT:
        return e(text)
    return f"<details><summary>{e(text, _SHORT)}</summary>{e(text, 400)}</details>"


def _title(key: RunKey, links: Links) -> str:
    task = key.task or "the whole run"
    title = f"{task} [{key.instance}]" if key.instance not in ("", "-1") else task
    return link(e(title), links.task(key) if links.task else "", links)


def _moment(wall_ns: int, now_ns: int) -> str:
    away_s = s_from_ns(wall_ns - now_ns)
    said = f"in {format_duration(away_s)}" if away_s >= 0 else f"{format_duration(-away_s)} ago"
    return f'<span class="nowrap">{e(when(wall_ns))}</span><br><span class="soft nowrap">{e(said)}</span>'


def _release(deferral: Deferral, links: Links) -> str:
    key = deferral.key
    if not links.release or deferral.state != "waiting" or not links.may_release(key):
        return ""
    given = {name: getattr(key, name) for name in RunKey.__slots__} | {"token": links.token}
    fields = "".join(f'<input type="hidden" name="{name}" value="{escape(str(v))}">' for name, v in given.items())
    return f'<form method="post" action="{escape(links.release)}">{fields}<button type="submit">Release</button></form>'


def _ref(key: RunKey) -> RunRef:
    return RunRef(key.engine, key.namespace, key.run_id, key.flow)
