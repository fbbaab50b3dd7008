"""The report on a terminal, readable from 80 columns up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Quality
from tao_flows.records import TaskState
from tao_flows.report.model import RunReport
from tao_flows.report.rows import FlowBody
from tao_flows.report.summary import TaskGroup, account_lines, overview
from tao_flows.report.text import (
    FLOW_BODY,
    count,
    cpu_text,
    energy_text,
    listed,
    mix_text,
    penalty_text,
    percent,
    plain,
)
from tao_flows.units import format_duration, format_energy, format_power

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

LINE_LIMIT: Final = 30
"""With more tries than this, those of one label share a line."""
QUALITY_STYLE: Final = {
    Quality.MEASURED: "bold blue",
    Quality.ATTRIBUTED: "green",
    Quality.ESTIMATED: "yellow",
    Quality.UNKNOWN: "red",
}
_BADGE: Final = {
    Quality.MEASURED: "meas.",
    Quality.ATTRIBUTED: "attr.",
    Quality.ESTIMATED: "est.",
    Quality.UNKNOWN: "",
}
_STATE_STYLE: Final = {
    TaskState.RUNNING: "cyan",
    TaskState.COMPLETED: "green",
    TaskState.FAILED: "red",
    TaskState.CANCELLED: "magenta",
    TaskState.DEFERRED: "cyan",
    TaskState.LOST: "bold red",
}
# Told apart without colour, too: each line has its own fill.
_ACCOUNT_FILL: Final = {
    "tasks": ("█", "blue"),
    "overhead": ("▓", "red"),
    "idle": ("▒", "cyan"),
    "allocated_idle": ("▚", "magenta"),
    "unattributed": ("░", "white"),
}
_WIDE: Final = 100
_LEGEND_COLUMNS: Final = 4
_SHARE_BAR: Final = 10
_LIST_LIMIT: Final = 10


def print_report(report: RunReport, console: Console) -> None:
    """Writes the report to ``console``, in its width."""
    for part in (_header(report), _tasks(report, console.width), _account(report, console.width), _said(report)):
        console.print(part)


def _header(report: RunReport) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    run, energy = report.run, report.energy
    style = QUALITY_STYLE[energy.quality]
    head = Text.assemble((energy_text(energy), f"bold {style}"), "  ", (str(energy.quality), style))
    if len(report.by_quality_uj) > 1:
        head.append(f"\n{mix_text(report.by_quality_uj)}", "dim")
    started = (iso_from_ns(run.started_wall_ns) or "")[:19].replace("T", " ")
    facts = [
        plain(run.state.lower()),
        format_duration(report.wall_s),
        count(len(report.tasks), "try", "tries"),
        f"overhead {percent(report.overhead_share)}",
        f"started {started} UTC",
    ]
    head.append("\n" + " · ".join(facts))
    if report.tasks and energy.coverage < 1:
        head.append(f"\n{percent(energy.coverage)} of the parts are known", "yellow")
    if report.inversion:
        head.append("\nThe engine took more than the work in this run.", "bold red")
    title = Text.assemble((plain(run.flow), "bold"), " / ", plain(report.name))
    return Panel(head, title=title, subtitle=Text(plain(run.run_id), "dim"), title_align="left", subtitle_align="right")


def _tasks(report: RunReport, width: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not report.tasks:
        return Text("No task was recorded.", "dim")
    groups, rest = overview(report.tasks, LINE_LIMIT)
    lines = (*groups, *((rest,) if rest else ()))
    wide = width >= _WIDE
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("Task", overflow="fold", min_width=18)
    if wide:
        table.add_column("State")
    table.add_column("Energy", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in ("Power", "CPU s", "Share"):
        table.add_column(head, justify="right", no_wrap=True)
    if wide:
        table.add_column("", no_wrap=True, width=_SHARE_BAR)
    if wide:
        table.add_column("Decision", overflow="fold")
    for line in lines:
        table.add_row(*_row(line, wide=wide))
    if report.flow_body is not None:
        table.add_row(*_flow_body_row(report.flow_body, wide=wide), style="dim")
    return table


def _flow_body_row(body: FlowBody, *, wide: bool) -> list[str]:
    quality = body.energy.quality
    cpu = cpu_text(body.cpu_s, lower_bound=False)
    said = [energy_text(body.energy), str(quality) if wide else _BADGE[quality], "", cpu]
    return [FLOW_BODY, "", *said] if wide else [FLOW_BODY, *said]


def _row(group: TaskGroup, *, wide: bool) -> list[Text]:
    from rich.text import Text

    states = Text(", ").join(
        Text(str(state) if group.count == number else f"{number:,} {state}", _STATE_STYLE[state])
        for state, number in group.states
    )
    name = Text(plain(group.title, 48))
    decisions = ", ".join(
        said if group.count == number else f"{number:,} {said}" for said, number in group.decisions[:3]
    )
    # A narrow table has no room for columns that nearly always say "completed" and "run".
    if not wide and any(state is not TaskState.COMPLETED for state, _ in group.states):
        name = Text.assemble(name, " ", states)
    if not wide and decisions not in {"", "run"}:
        name.append(f"\n→ {plain(decisions)}", "cyan")
    quality = group.energy.quality
    energy = Text(energy_text(group.energy), "" if quality is not Quality.UNKNOWN else "red")
    if group.count > 1 and group.least_uj is not None:
        each = f"\neach {format_energy(group.least_j)} to {format_energy(group.most_j)}"
        energy.append(each, "dim")
    share = Text(percent(group.share) if group.share is not None else "")
    return [
        name,
        *([states] if wide else []),
        energy,
        Text(str(quality) if wide else _BADGE[quality], QUALITY_STYLE[quality]),
        Text(format_power(group.power_w) if group.power_w is not None else ""),
        Text(cpu_text(group.cpu_s, lower_bound=group.cpu_lower_bound) if group.cpu_s is not None else ""),
        share,
        *([Text("█" * round((group.share or 0) * _SHARE_BAR), "blue")] if wide else []),
        *([Text(plain(decisions))] if wide else []),
    ]


def _account(report: RunReport, width: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not report.hosts:
        return Text()
    room = min(width - 2, 100)
    bar, legend = Text(no_wrap=True), []
    # The ends of the parts are rounded, not the parts, so that they fill the bar.
    end, before = 0.0, 0
    for line in account_lines(report.account):
        fill, style = _ACCOUNT_FILL[line.name]
        end += (line.share or 0) * room
        bar.append(fill * (round(end) - before), style)
        before = round(end)
        said = "unknown" if line.share is None else f"{format_energy(line.value_j)} ({percent(line.share)})"
        legend.append(Text.assemble((fill, style), f" {line.title} {said}"))
    names = Table.grid(padding=(0, 3, 0, 0))
    step = 2 if width < _WIDE else len(legend) if len(legend) <= _LEGEND_COLUMNS else 3
    for first in range(0, len(legend), step):
        names.add_row(*legend[first : first + step])
    hosts = f"on {count(len(report.hosts), 'host')}, {report.account.quality}"
    return Group(Text.assemble(("Where the joules went", "bold"), (f"  {hosts}", "dim")), bar, names, Text())


def _said(report: RunReport) -> RenderableType:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for violation in report.violations[:_LIST_LIMIT]:
        where = f" in {plain(violation.task)}" if violation.task else ""
        times = f" ({violation.count:,} times)" if violation.count > 1 else ""
        remedy = f". Remedy: {plain(violation.remedy, 300)}" if violation.remedy else ""
        said = f"{plain(violation.code)}: {plain(violation.summary, 300)}{where}{times}{remedy}"
        grid.add_row(Text("!", "bold red"), Text(said))
    if len(report.violations) > _LIST_LIMIT:
        grid.add_row("", Text(f"and {len(report.violations) - _LIST_LIMIT:,} more", "dim"))
    for group in report.decisions[:_LIST_LIMIT]:
        choice = group.choice
        pool = f" in {plain(choice.pool)}" if choice.pool else ""
        penalty = penalty_text(group.penalty_low, group.penalty_high)
        regime = f"regime {plain(choice.regime or 'none')}, penalty {penalty}, mode {plain(choice.mode)}"
        said = f"{group.count:,} × {plain(choice.action)}{pool} ({regime}): {plain(choice.reason, 200)}"
        grid.add_row(Text("→", "cyan"), Text(said))
    for note in report.notes:
        grid.add_row(Text("·", "dim"), Text(plain(note, 600)))
    origins = (
        f"Energy from {listed(report.energy.sources) or 'no source'}; CPU time from "
        f"{listed(report.cpu_sources) or 'no source'}; method {listed(report.methods) or 'none'}."
    )
    grid.add_row(Text("·", "dim"), Text(origins, "dim"))
    return Padding(grid, (0, 0, 1, 0))
