"""The fleet: what groups of runs cost since a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Quality, joules
from tao_flows.inversion import LEAST_RUNS, follow, follow_by
from tao_flows.ledger.base import FleetRow, RunOverhead
from tao_flows.report.rows import finite
from tao_flows.report.terminal import QUALITY_STYLE
from tao_flows.report.text import count, energy_text, percent, plain, seconds
from tao_flows.units import format_energy

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA: Final = "tao-flows/fleet/1"
_LISTED: Final = 10


def fleet_json(
    rows: Sequence[FleetRow], by: str, since_wall_ns: int, overheads: Sequence[RunOverhead]
) -> dict[str, Any]:
    """The fleet as JSON: energies in joules, null for unknown."""
    return {
        "schema": SCHEMA,
        "by": by,
        "since": iso_from_ns(since_wall_ns),
        "rows": [
            {
                "group": row.group,
                "runs": row.runs,
                "tasks": row.tasks,
                "lost": row.lost,
                "energy": row.energy.to_json(),
                "by_quality_j": {quality: joules(energy_uj) for quality, energy_uj in row.by_quality_uj.items()},
                "overhead_share": row.overhead_share,
                "cpu_s": finite(row.cpu_s),
                "methods": list(row.methods),
                "comparable": len(row.methods) < 2,
            }
            for row in rows
        ],
        "inversion": {**follow(overheads).to_json(), "flows": _inverted_flows(overheads)},
        "notes": _notes(rows),
    }


def print_fleet(
    rows: Sequence[FleetRow], by: str, since_wall_ns: int, overheads: Sequence[RunOverhead], console: Console
) -> None:
    """Writes the fleet to ``console`` as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    since = (iso_from_ns(since_wall_ns) or "")[:16].replace("T", " ")
    console.print(Text.assemble((f"Energy by {by}", "bold"), f" since {since} UTC"))
    if not rows:
        console.print(Text("No task was recorded in this time.", "dim"))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(by.capitalize(), overflow="fold", min_width=10)
    for head in ("Runs", "Tasks", "Lost", "Energy", "Overhead", "CPU s"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        energy = Text(energy_text(row.energy) + ("" if len(row.methods) < 2 else " !"))
        for quality in Quality:
            if uj := row.by_quality_uj.get(quality.value):
                energy.append(f"\n{format_energy(joules(uj))} {quality}", QUALITY_STYLE[quality])
        if row.energy.coverage < 1:
            energy.append(f"\n{percent(1 - row.energy.coverage)} of the parts unknown", QUALITY_STYLE[Quality.UNKNOWN])
        table.add_row(
            Text(plain(row.group) or f"(no {by})"),
            f"{row.runs:,}",
            f"{row.tasks:,}",
            Text(f"{row.lost:,}", "bold red" if row.lost else ""),
            energy,
            percent(row.overhead_share),
            seconds(row.cpu_s),
        )
    console.print(table)
    console.print(Text(_inversion(overheads)))
    for note in _notes(rows):
        console.print(Text(f"· {note}"))


def _inverted_flows(overheads: Sequence[RunOverhead]) -> list[str]:
    return [flow for flow, state in follow_by(overheads, lambda run: run.flow).items() if state.inverted]


def _inversion(overheads: Sequence[RunOverhead]) -> str:
    """One line: whether the engine takes more than the work, how sure that is, and in which flows it does."""
    state = follow(overheads)
    if state.inverted is None or state.low is None:
        return f"Optimization Inversion: not known, {count(state.runs, 'run')} of {LEAST_RUNS} with a known overhead."
    unknown = f", {count(state.unknown, 'run')} more unknown" if state.unknown else ""
    line = (
        f"Optimization Inversion: {'yes' if state.inverted else 'no'}, overhead {percent(state.share)} "
        f"[{percent(state.low)}, {percent(state.high)}] of the last {count(state.runs, 'run')}{unknown}."
    )
    flows = ", ".join(plain(flow) for flow in _inverted_flows(overheads)[:_LISTED])
    return f"{line} In: {flows}." if flows else line


def _notes(rows: Sequence[FleetRow]) -> list[str]:
    notes = []
    mixed = [plain(row.group) or "(none)" for row in rows if len(row.methods) > 1]
    methods = sorted({method for row in rows for method in row.methods})
    if mixed:
        notes.append(f"! marks sums over several method versions, which do not compare: {', '.join(mixed[:10])}.")
    if len(methods) > 1:
        notes.append(f"Method versions differ between rows: {', '.join(plain(method) for method in methods)}.")
    elif methods:
        notes.append(f"Method: {plain(methods[0])}.")
    if any(row.overhead_share is None for row in rows):
        notes.append("Overhead is unknown where a run has no account, or has its tasks in several groups.")
    return notes
