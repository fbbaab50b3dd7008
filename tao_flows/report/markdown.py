"""The report as Markdown, for an engine's page: bounded in size, and inert whatever flows and tasks are called."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from tao_flows.figures import Figure
from tao_flows.records import TaskState
from tao_flows.report.chart import COLUMN, Drawing, account_chart, energy_chart
from tao_flows.report.model import RunReport
from tao_flows.report.rows import TaskRow
from tao_flows.report.summary import account_lines, dearest
from tao_flows.report.text import (
    FLOW_BODY,
    QUALITY_MEANING,
    count,
    cpu_text,
    decision_text,
    energy_text,
    inert,
    listed,
    mix_text,
    penalty_text,
    percent,
)
from tao_flows.units import format_duration, format_energy, format_power

ROW_LIMIT: Final = 100
"""Task rows in an artifact; the rest is summed in one row."""
_LIST_LIMIT: Final = 20
_SPECIAL: Final = re.compile(r"[\\`*_\[\]|~#$]")


def render_markdown(report: RunReport, weighed: str = "") -> str:
    """The whole report.

    Args:
        report: of the run.
        weighed: sections on what was decided, by ``weighed_markdown``.
    """
    parts = (
        _headline(report),
        image_markdown(energy_chart(report, COLUMN)) if report.tasks else "",
        _tasks(report),
        _account(report),
        _decisions(report),
        weighed.strip(),
        _violations(report),
        _notes(report),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_text(text: object, limit: int = 80) -> str:
    """``text`` so that Markdown shows it and does nothing else with it."""
    return _SPECIAL.sub(r"\\\g<0>", escape(inert(text, limit), quote=False))


def _headline(report: RunReport) -> str:
    run, energy = report.run, report.energy
    value = f"**{format_energy(energy.value_j)}**" + energy_text(energy)[len(format_energy(energy.value_j)) :]
    known = "" if energy.coverage >= 1 or not report.tasks else f", with {percent(energy.coverage)} of the parts known"
    mix = f" ({mix_text(report.by_quality_uj)})" if len(report.by_quality_uj) > 1 else ""
    share = report.overhead_share
    overhead = "" if share is None else f" Overhead was {percent(share)} of tasks and overhead."
    return (
        f"## Energy of {_m(run.flow)} / {_m(report.name)}\n\n"
        f"{value}, {energy.quality}{mix}{known}, for {count(len(report.tasks), 'task try', 'task tries')}; run "
        f"{_m(run.state.lower())} after {format_duration(report.wall_s)}.{overhead}"
        + ("\n\n**The engine took more than the work in this run.**" if report.inversion else "")
    )


def _tasks(report: RunReport) -> str:
    if not report.tasks:
        return "No task was recorded."
    rows, rest = dearest(report.tasks, ROW_LIMIT)
    lines = [_task(row) for row in rows]
    if rest is not None:
        cpu = cpu_text(rest.cpu_s, lower_bound=rest.cpu_lower_bound)
        lines.append([_marked(rest.label, rest.states), *_figures(rest.energy, None, cpu, rest.share)])
    if report.flow_body is not None:
        body = report.flow_body
        cpu = cpu_text(body.cpu_s, lower_bound=False)
        lines.append([f"*{FLOW_BODY}*", unbroken(energy_text(body.energy)), str(body.energy.quality), "", _m(cpu), ""])
    return "### Tasks\n\n" + table_markdown(("Task", "Energy>", "Quality", "Power>", "CPU s>", "Share>"), lines)


def _task(row: TaskRow) -> list[str]:
    decision = decision_text(row)
    # The column of an engine's page is too narrow for columns that nearly always say "completed" and "run".
    name = _marked(_m(row.title), ((row.state, 1),)) + (f" → {_m(decision)}" if decision not in {"", "run"} else "")
    cpu = cpu_text(row.cpu_s, lower_bound=row.cpu_lower_bound)
    return [name, *_figures(row.energy, row.power_w, cpu, row.share)]


def _marked(name: str, states: Sequence[tuple[TaskState, int]]) -> str:
    if all(state is TaskState.COMPLETED for state, _ in states):
        return name
    said = ", ".join(f"{number:,} {state}" if number > 1 else str(state) for state, number in states)
    return f"{name} (**{said}**)"


def _figures(energy: Figure, power_w: float | None, cpu: str, share: float | None) -> list[str]:
    power = "" if power_w is None else format_power(power_w)
    return [
        unbroken(energy_text(energy)),
        str(energy.quality),
        unbroken(power),
        unbroken(_m(cpu)),
        unbroken(_m(percent(share))),
    ]


def unbroken(text: str) -> str:
    """``text`` that stays on one line."""
    return text.replace(" ", "\u00a0")


def _account(report: RunReport) -> str:
    if not report.hosts:
        return ""
    rows = [
        [line.title, unbroken(format_energy(line.value_j)), unbroken(_m(percent(line.share))), line.meaning]
        for line in account_lines(report.account)
    ]
    return (
        f"### Where the joules went\n\n{image_markdown(account_chart(report.account, COLUMN))}\n\n"
        f"{table_markdown(('Line', 'Energy>', 'Share>', 'What it is'), rows)}\n\n"
        f"On {count(len(report.hosts), 'host')}: {_m(listed(tuple(host.host for host in report.hosts)), 400)}. "
        f"The account is {report.account.quality}."
    )


def _decisions(report: RunReport) -> str:
    items = [
        f"{group.count:,} × **{_m(group.choice.action)}**"
        + (f" in {_m(group.choice.pool)}" if group.choice.pool else "")
        + f" ({_m(group.choice.mode)}, regime {_m(group.choice.regime or 'none')}, penalty "
        f"{penalty_text(group.penalty_low, group.penalty_high)}): {_m(group.choice.reason, 200)}"
        for group in report.decisions[:_LIST_LIMIT]
    ]
    return _section("Decisions", items, len(report.decisions))


def _violations(report: RunReport) -> str:
    items = [
        f"**{_m(v.code)}**: {_m(v.summary, 300)}"
        + (f" in {_m(v.task)}" if v.task else "")
        + (f" ({v.count:,} times)" if v.count > 1 else "")
        + (f". Remedy: {_m(v.remedy, 300)}" if v.remedy else "")
        for v in report.violations[:_LIST_LIMIT]
    ]
    return _section("What went wrong", items, len(report.violations))


def _notes(report: RunReport) -> str:
    qualities = dict.fromkeys(row.energy.quality for row in report.tasks)
    items = [
        *(_m(note, 600) for note in report.notes),
        *(f"*{quality}*: {QUALITY_MEANING[quality]}" for quality in sorted(qualities, key=lambda each: each.rank)),
        f"Energy from: {_m(listed(report.energy.sources) or 'no source', 400)}",
        f"CPU time from: {_m(listed(report.cpu_sources) or 'no source', 400)}",
        f"Method: {_m(listed(report.methods) or 'none', 400)}",
    ]
    return _section("How to read these figures", items, len(items))


def _section(title: str, items: Sequence[str], number: int) -> str:
    if not items:
        return ""
    more = [f"and {number - len(items):,} more"] if number > len(items) else []
    return f"### {title}\n\n" + "\n".join(f"- {item}" for item in (*items, *more))


def image_markdown(drawing: Drawing, css: str = "") -> str:
    """A chart as an image that stands in the text itself; ``css`` as ``Drawing.image``."""
    encoded = base64.b64encode(drawing.image(css).encode()).decode()
    return f"![{_m(drawing.title, 200)}](data:image/svg+xml;base64,{encoded})"


def table_markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a head that ends in ``>`` is set to the right, over its figures."""
    rule = ("--:" if head.endswith(">") else "---" for head in heads)
    lines = ([head.rstrip(">") for head in heads], list(rule), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_m = markdown_text
