"""The table of a run's tasks: a row a task, which opens to its tries and to what was weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tao_flows.figures import Quality
from tao_flows.report.elements import badge, cell, e, link, number, state, table, when
from tao_flows.report.links import Links
from tao_flows.report.rows import FlowBody, TaskRow
from tao_flows.report.runview import RunView, TaskBlock
from tao_flows.report.summary import TaskGroup
from tao_flows.report.text import FLOW_BODY, count, cpu_text, decision_text, energy_text, percent
from tao_flows.report.weigh import Explained, Slack, Weighed
from tao_flows.units import format_duration, format_energy, format_power

MOST_OPENING: Final = 100
"""Rows that open; of the others the sums are there."""
_HEADS: Final = ("Task", "State", "Energy", "Quality", "Lost in failed tries", "CPU s", "Time", "Share", "Decision")
_RIGHT: Final = frozenset({"Energy", "Lost in failed tries", "CPU s", "Time", "Share"})


def task_table(view: RunView, links: Links) -> str:
    """The rows, in order of the first start; every one opens."""
    head = "".join(f'<span class="{"r" if name in _RIGHT else ""}">{name}</span>' for name in _HEADS)
    rows = [_block(block, links, opens=at < MOST_OPENING) for at, block in enumerate(view.blocks)]
    rows += [_closed(_cells(view.more), "rest")] if view.more else []
    rows += [_closed(_body(view.report.flow_body), "rest")] if view.report.flow_body else []
    return f'<div class="scroll"><div class="rows"><div class="row head">{head}</div>{"".join(rows)}</div></div>'


def _block(block: TaskBlock, links: Links, *, opens: bool) -> str:
    cells = _cells(block.group, block)
    # A link to the task opens the row, as what is linked to lies inside of it.
    anchor = f'id="task-{e(block.members[0].key.task, 300)}"'
    if not opens:
        return f'<div class="row" {anchor}>{"".join(cells)}</div>'
    inside = f'<div class="inside" {anchor}>{_inside(block, links)}</div>'
    return f'<details class="task"><summary class="row">{"".join(cells)}</summary>{inside}</details>'


def _closed(cells: Sequence[str], style: str = "") -> str:
    return f'<div class="row {style}">{"".join(cells)}</div>'


def _cells(group: TaskGroup, block: TaskBlock | None = None) -> list[str]:
    states = " ".join(state(s.value) if group.count == 1 else f"{n:,} {state(s.value)}" for s, n in group.states)
    failed = "" if block is None or block.failed is None else energy_text(block.failed)
    decisions = ", ".join(said if group.count == 1 else f"{n:,} {said}" for said, n in group.decisions)
    name = block.members[0].title if block is not None and group.count == 1 else group.title
    return [
        f'<span class="name">{e(name)}</span>',
        f"<span>{states}</span>",
        _r(energy_text(group.energy)),
        f"<span>{badge(group.energy.quality)}{_missing(group)}</span>",
        _r(failed),
        _r(cpu_text(group.cpu_s, lower_bound=group.cpu_lower_bound)),
        _r(format_duration(group.wall_s)),
        _r(percent(group.share)),
        f"<span>{e(decisions, 120)}</span>",
    ]


def _missing(group: TaskGroup) -> str:
    """A total of known parts says how many there are."""
    if group.energy.coverage == 1 or group.energy.quality is Quality.UNKNOWN:
        return ""
    return f'<small class="soft"> {percent(group.energy.coverage)} known</small>'


def _body(body: FlowBody) -> list[str]:
    return [
        f'<span class="name">{FLOW_BODY}</span>',
        "<span></span>",
        _r(energy_text(body.energy)),
        f"<span>{badge(body.energy.quality)}</span>",
        "<span></span>",
        _r(cpu_text(body.cpu_s, lower_bound=False)),
        *["<span></span>"] * 3,
    ]


def _r(text: str) -> str:
    return f'<span class="r">{e(text)}</span>'


def _inside(block: TaskBlock, links: Links) -> str:
    tries = _tries(block, links)
    said = "".join(explained(each) for each in block.explained)
    return f"{tries}{said or '<p class=soft>No decision about it was recorded.</p>'}"


def _tries(block: TaskBlock, links: Links) -> str:
    last = []
    if block.rest is not None:
        energy = cell(e(energy_text(block.rest.energy)), "r")
        last = [[cell(e(block.rest.label), "name"), cell(""), energy, *[cell("")] * 5]]
    heads = ("Try", "State", "Energy>", "Power>", "Time>", "Started", "Pool", "Decision")
    return table(heads, (_try(row, links) for row in block.members), last)


def _try(row: TaskRow, links: Links) -> list[str]:
    return [
        cell(link(e(row.title), links.task(row.key) if links.task else "", links), "name"),
        cell(state(row.state.value)),
        cell(f"{e(energy_text(row.energy))} {badge(row.energy.quality)}", "r"),
        cell(e(format_power(row.power_w)), "r"),
        cell(e(format_duration(row.wall_s)), "r"),
        cell(e(when(row.started_wall_ns))),
        cell(e(row.pool)),
        cell(e(decision_text(row))),
    ]


def explained(made: Explained) -> str:
    """A decision in words, and the candidates that it weighed."""
    acted = ", acted on" if made.enforced else ""
    alike = f", the last of {count(made.count, 'decision')} alike" if made.count > 1 else ""
    latest = f"Latest start {when(made.latest_wall_ns)} UTC." if made.latest_wall_ns is not None else ""
    title = f"<h3>{e(made.action)} {e(made.pool)} <span class='soft'>({e(made.mode)}{acted}{alike})</span></h3>"
    return f'{title}<p class="soft">{e(made.reason, 400)}. {e(latest)}</p>{_candidates(made)}'


def _candidates(made: Explained) -> str:
    if not made.candidates:
        return ""
    heads = ("Candidate", "Start", "Energy>", "gCO2e>", "Cost>", "Finish in>", "Score>", "Front", "To spare")
    more = [[cell(f"and {count(made.more, 'more candidate')}", "name"), *[cell("")] * 8]] if made.more else []
    return table(heads, map(_candidate, made.candidates), more)


def _candidate(each: Weighed) -> list[str]:
    # What chose it is said in words: bold alone would be lost on a screen reader.
    name = f"<strong>{e(each.pool)}</strong> chosen" if each.chosen else e(each.pool)
    front = "" if each.rank is None else "on it" if each.rank == 0 else f"behind {each.rank:,}"
    return [
        cell(name, "name"),
        cell(e(when(each.start_wall_ns))),
        cell(e(format_energy(each.energy_j)), "r"),
        cell(e(number(each.carbon_g)), "r"),
        cell(e(number(each.cost)), "r"),
        cell(e(format_duration(each.finish_s)), "r"),
        cell(e("unknown" if each.score is None else f"{each.score:.4g}"), "r"),
        cell(e(front if each.feasible else "not feasible")),
        cell("<br>".join(filter(None, map(_slack, each.constraints))), "wide"),
    ]


def _slack(constraint: Slack) -> str:
    """A constraint that is kept and has no measure (trust, online) needs no word."""
    if constraint.slack is None:
        return "" if constraint.ok else f'<span class="state bad">fails {e(constraint.id)}</span>'
    show = {"s": format_duration, "J": format_energy, "W": format_power}.get(constraint.unit)
    size = abs(constraint.slack)
    amount = show(size) if show is not None else f"{number(size)} {constraint.unit}"
    if constraint.ok:
        return f"{e(constraint.id)}: {e(amount)}"
    return f'<span class="state bad">{e(constraint.id)}: {e(amount)} too much</span>'
