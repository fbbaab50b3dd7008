"""One self-contained page: no script, nothing fetched, every name escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Figure, Quality, joules
from tao_flows.records import TaskState
from tao_flows.report.chart import Drawing, account_chart, energy_chart, timeline_chart
from tao_flows.report.model import RunReport
from tao_flows.report.rows import FlowBody, TaskRow
from tao_flows.report.style import STYLE
from tao_flows.report.summary import AccountLine, TaskGroup, account_lines, dearest
from tao_flows.report.text import (
    FLOW_BODY,
    QUALITY_MEANING,
    count,
    cpu_text,
    decision_text,
    energy_text,
    mix_text,
    penalty_text,
    percent,
    plain,
)
from tao_flows.units import format_duration, format_energy, format_power

ROW_LIMIT: Final = 1_000
"""Task rows in a page; the rest is summed in one row."""
_LIST_LIMIT: Final = 50
_BAD_STATES: Final = ("fail", "crash", "cancel", "lost", "time")


def render_html(report: RunReport) -> str:
    """The whole page."""
    style_hash = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    title = f"Energy of {plain(report.run.flow)} / {plain(report.name)}"
    body = "\n".join(
        part
        for part in (
            _header(report),
            _hero(report),
            _violations(report),
            _account(report),
            _energy(report),
            _tasks(report),
            _timeline(report),
            _decisions(report),
            _method(report),
            _footer(report),
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _header(report: RunReport) -> str:
    run = report.run
    who = [f"{word} {_e(value)}" for word, value in (("team", run.who.team), ("owner", run.who.owner)) if value]
    started = (iso_from_ns(run.started_wall_ns) or "")[:19].replace("T", " ")
    parts = [_e(report.name), _state(run.state), f"started {started} UTC", *who]
    return (
        f'<p class="eyebrow">Energy report, {_e(run.engine)}</p>\n<h1>{_e(run.flow)}</h1>\n'
        f'<p class="sub">{" &middot; ".join(parts)}</p>'
    )


def _hero(report: RunReport) -> str:
    energy = report.energy
    bounds = ""
    if energy.value_uj is not None and not energy.low_uj == energy.value_uj == energy.high_uj:
        bounds = f"between {format_energy(energy.low_j)} and {format_energy(energy.high_j)}"
    mix = f"<p>{_e(mix_text(report.by_quality_uj))}</p>" if len(report.by_quality_uj) > 1 else ""
    lost = sum(row.state is TaskState.LOST for row in report.tasks)
    power_w = None
    if energy.value_j is not None and report.wall_s:
        power_w = energy.value_j / report.wall_s
    share = report.overhead_share
    verdict = {None: "overhead not known", True: "overhead above the work", False: "of tasks and overhead"}
    cards = [
        ("Tasks", f"{len(report.tasks):,}", f"{lost:,} lost" if lost else "tries recorded"),
        ("Duration", format_duration(report.wall_s), "start to end of the run"),
        ("CPU time", _cpu_total(report), "of the tasks"),
        ("Mean power", format_power(power_w), "tasks, over the run"),
        ("Overhead", percent(share), verdict[report.inversion]),
        ("Coverage", percent(energy.coverage if report.tasks else None), "of the parts are known"),
    ]
    drawn = "".join(f"<div><dt>{t}</dt><dd>{_e(v)}<small>{_e(s)}</small></dd></div>" for t, v, s in cards)
    return (
        f'<div class="hero"><div><p class="eyebrow">Energy of the tasks</p>'
        f'<div class="big">{_e(format_energy(energy.value_j))}</div><p>{bounds}</p><p>{_badge(energy.quality)}</p>'
        f'{mix}</div><dl class="cards">{drawn}</dl></div>'
    )


def _cpu_total(report: RunReport) -> str:
    bounded = any(row.cpu_lower_bound for row in report.tasks)
    said = cpu_text(report.cpu_s, lower_bound=bounded)
    return said if report.cpu_s is None else f"{said} s"


def _violations(report: RunReport) -> str:
    if not report.violations:
        return ""
    items = [
        f"<li><strong>{_e(v.code)}</strong> {_e(v.summary, 300)}"
        + (f' <span class="soft">in {_e(v.task)}</span>' if v.task else "")
        + (f' <span class="soft">({v.count:,} times)</span>' if v.count > 1 else "")
        + (f"<br><em>{_e(v.remedy, 300)}</em>" if v.remedy else "")
        + "</li>"
        for v in report.violations[:_LIST_LIMIT]
    ]
    return (
        '<section class="alert"><h2>What went wrong</h2><p class="soft">Constraints that were not kept, and failures '
        f"of the metering. None of them failed a task.</p><ul>{_capped(items, len(report.violations))}</ul></section>"
    )


def _account(report: RunReport) -> str:
    account = report.account
    wholes = [
        f"{format_energy(value)} {how}"
        for value, how in (
            (joules(account.counter_uj), "counted"),
            (joules(account.estimate_uj), "estimated"),
        )
        if value is not None
    ]
    # A node agent tells ordinary users their own part and nothing of the host's.
    unknown = "Not known" if account.tasks_uj is None else "The user's own part; the whole is not known"
    said = f"{' and '.join(wholes)} on {count(len(report.hosts), 'host')}" if wholes else unknown
    meanings = "".join(f"<b>{line.title.capitalize()}</b>: {line.meaning}. " for line in account_lines(account))
    return (
        f'<section><h2>Where the joules went</h2><p class="soft">{_e(said)}.</p>{_chart(account_chart(account))}'
        f'<p class="meanings">{meanings}</p>{_hosts(report)}</section>'
    )


def _hosts(report: RunReport) -> str:
    if len(report.hosts) < 2:
        return ""
    lines = account_lines(report.account)
    gpu = report.account.allocated_idle_uj is not None

    def energy(line: AccountLine) -> str:
        # A host without a GPU has nothing there to know.
        return "–" if line.name == "allocated_idle" and line.value_j is None else format_energy(line.value_j)

    rows = (
        [
            _cell(_e(host.host), "name"),
            *(_cell(_e(energy(line)), "r") for line in account_lines(host.account, gpu=gpu)),
            _cell(_badge(host.account.quality)),
        ]
        for host in report.hosts[:_LIST_LIMIT]
    )
    heads = ("Host", *(f"{line.title.capitalize()}>" for line in lines), "Quality")
    return _table(heads, rows)


def _energy(report: RunReport) -> str:
    if not report.tasks:
        return "<section><h2>Energy by task</h2><p class='soft'>No task was recorded.</p></section>"
    return (
        '<section><h2>Energy by task</h2><p class="soft">The whiskers run from the lower to the upper bound. Hatched '
        f"bars are estimates.</p>{_chart(energy_chart(report))}</section>"
    )


def _tasks(report: RunReport) -> str:
    if not report.tasks:
        return ""
    rows, rest = dearest(report.tasks, ROW_LIMIT)
    last = [*([_rest(rest)] if rest else []), *([_flow_body(report.flow_body)] if report.flow_body else [])]
    heads = ("Task", "State", "Energy>", "Quality", "Power>", "CPU s>", "Time>", "Share>", "Decision")
    drawn = _table(heads, map(_task, rows), last)
    return f'<section class="long"><h2>Tasks</h2><p class="soft">{_e(_who_ran(report))}</p>{drawn}</section>'


def _who_ran(report: RunReport) -> str:
    energy = energy_text(report.energy)
    return f"{count(len(report.tasks), 'try', 'tries')}; known joules {energy}."


def _task(row: TaskRow) -> list[str]:
    return [
        _cell(_e(row.title), "name"),
        _cell(_state(row.state.value)),
        *_figures(row.energy, row.power_w, cpu_text(row.cpu_s, lower_bound=row.cpu_lower_bound), row.wall_s, row.share),
        _cell(_e(decision_text(row)), "wide"),
    ]


def _rest(rest: TaskGroup) -> list[str]:
    states = ", ".join(f"{number:,} {state}" for state, number in rest.states)
    return [
        _cell(_e(rest.label), "name"),
        _cell(_e(states)),
        *_figures(rest.energy, None, cpu_text(rest.cpu_s, lower_bound=rest.cpu_lower_bound), rest.wall_s, rest.share),
        _cell(""),
    ]


def _flow_body(body: FlowBody) -> list[str]:
    return [
        _cell(FLOW_BODY, "name"),
        _cell(""),
        _cell(_e(energy_text(body.energy)), "r"),
        _cell(_badge(body.energy.quality)),
        _cell(""),
        _cell(_e(cpu_text(body.cpu_s, lower_bound=False)), "r"),
        *[_cell("")] * 3,
    ]


def _figures(energy: Figure, power_w: float | None, cpu: str, wall_s: float | None, share: float | None) -> list[str]:
    return [
        _cell(_e(energy_text(energy)), "r"),
        _cell(_badge(energy.quality)),
        _cell(_e(format_power(power_w) if power_w is not None else ""), "r"),
        _cell(_e(cpu), "r"),
        _cell(_e(format_duration(wall_s)), "r"),
        _cell(_e(percent(share)), "r"),
    ]


def _timeline(report: RunReport) -> str:
    if not report.tasks:
        return ""
    return (
        '<section><h2>Time line</h2><p class="soft">When each try held a process, from the start of the run. A broken '
        "line has no known power, or no end.</p>"
        f"{_chart(timeline_chart(report))}</section>"
    )


def _decisions(report: RunReport) -> str:
    if not report.decisions:
        return ""
    rows = (
        [
            _cell(f"{group.count:,}", "r"),
            _cell(f"<strong>{_e(group.choice.action)}</strong>"),
            _cell(_e(group.choice.pool)),
            _cell(_e(group.choice.regime or "none")),
            _cell(_e(penalty_text(group.penalty_low, group.penalty_high)), "r"),
            _cell(_e(f"{group.choice.mode}{' (acted on)' if group.choice.enforced else ''}")),
            _cell(_e(group.choice.reason, 200), "wide"),
        ]
        for group in report.decisions[:_LIST_LIMIT]
    )
    drawn = _table(("Tries>", "Action", "Pool", "Regime", "Penalty>", "Mode", "Reason"), rows)
    return (
        '<section><h2>Decisions</h2><p class="soft">What the controller chose for each try. A penalty of 1 means that '
        f"no budget binds; it rises to 2 as one is used up.</p>{drawn}</section>"
    )


def _method(report: RunReport) -> str:
    notes = [f"<li>{_e(note, 600)}</li>" for note in report.notes] or ["<li>Nothing weakens these figures.</li>"]
    words = "".join(f"<dt>{_badge(quality)}</dt><dd>{_e(QUALITY_MEANING[quality])}</dd>" for quality in Quality)
    facts = (
        ("Energy from", report.energy.sources),
        ("CPU time from", report.cpu_sources),
        ("Method", report.methods),
    )
    origins = "".join(
        f"<dt>{word}</dt><dd><code>{_e(', '.join(values) or 'unknown', 300)}</code></dd>" for word, values in facts
    )
    return (
        f'<section><h2>How to read these figures</h2><p class="soft">What was read, what was modelled, and what is '
        f'not known.</p><ul>{"".join(notes)}</ul><dl class="words">{words}{origins}</dl></section>'
    )


def _footer(report: RunReport) -> str:
    run = report.run
    return f"<footer>Run <code>{_e(run.run_id, 200)}</code> in {_e(run.engine)}, recorded by tao-flows.</footer>"


def _chart(drawing: Drawing) -> str:
    return f'<div class="scroll">{drawing.inline()}</div>'


def _e(text: object, limit: int = 80) -> str:
    return escape(plain(text, limit))


def _badge(quality: Quality) -> str:
    return f'<span class="badge q-{quality}">{quality}</span>'


def _state(state: str) -> str:
    lowered = state.lower()
    tone = "bad" if any(word in lowered for word in _BAD_STATES) else "good" if lowered == "completed" else ""
    return f'<span class="state {tone}">{_e(lowered)}</span>'


def _cell(content: str, style: str = "") -> str:
    return f'<td class="{style}">{content}</td>' if style else f"<td>{content}</td>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], last: Iterable[Sequence[str]] = ()) -> str:
    # A head that ends in ">" is set to the right, over its figures.
    head = "".join(f'<th class="r">{h[:-1]}</th>' if h.endswith(">") else f"<th>{h}</th>" for h in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    rest = "".join(f'\n<tr class="rest">{"".join(row)}</tr>' for row in last)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}{rest}</tbody></table></div>'


def _capped(items: Sequence[str], number: int) -> str:
    more = number - len(items)
    return "".join(items) + (f'<li class="soft">and {more:,} more</li>' if more else "")
