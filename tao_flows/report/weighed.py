"""What was decided in a run, as Markdown: when tries waited and ran, what else was weighed, and how budgets stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tao_flows.figures import joules
from tao_flows.ledger.budget_rows import Standing
from tao_flows.records import DecisionRecord
from tao_flows.report.carbon import Amount
from tao_flows.report.chart import COLUMN
from tao_flows.report.elements import number, when
from tao_flows.report.gantt import GANTT_CSS, gantt_chart
from tao_flows.report.lanes import WHOLE_RUN, Timeline
from tao_flows.report.markdown import image_markdown, markdown_text, table_markdown, unbroken
from tao_flows.report.runview import RunView
from tao_flows.report.text import count, percent
from tao_flows.report.weigh import Explained, Weighed, explain
from tao_flows.units import format_duration, format_energy

MOST_DECISIONS: Final = 5
MOST_CANDIDATES: Final = 6
"""Of one decision, that are shown."""
_MOST_BUDGETS: Final = 20
_m = markdown_text


def weighed_markdown(
    view: RunView, decisions: Sequence[DecisionRecord] = (), standings: Sequence[Standing] = ()
) -> str:
    """The sections on decisions; empty where nothing was put off, moved or chosen among several.

    Args:
        view: of the run.
        decisions: of the run, of which those on the run as a whole are in no task of the view.
        standings: how its budgets stand.
    """
    whole = sorted((each for each in decisions if not each.key.task), key=lambda each: each.decided_wall_ns)
    explained = [(WHOLE_RUN, each) for each in explain(whole)]
    explained += [(block.group.title, each) for block in view.blocks for each in block.explained]
    # What was put off or moved is what people ask about.
    chosen = sorted(explained, key=lambda each: each[1].action == "run")
    shown = [(title, each) for title, each in chosen if len(each.candidates) > 1 or each.action != "run"]
    parts = (
        _timeline(view),
        _saved(view.saved) if view.saved is not None else "",
        _weighed(shown),
        _budgets(standings),
    )
    return "\n\n".join(part for part in parts if part)


def _timeline(view: RunView) -> str:
    line = view.timeline
    if line is None or not _anything_waited(line):
        return ""
    return "### When it ran\n\n" + image_markdown(gantt_chart(line, view.line, COLUMN), GANTT_CSS)


def _anything_waited(line: Timeline) -> bool:
    return any(stretch.kind == "deferred" for lane in line.lanes for stretch in lane.stretches)


def _saved(amount: Amount) -> str:
    if amount.value is None:
        return "What waiting or moving saved is unknown: no signal covers both ends."
    bounds = "" if amount.low == amount.value == amount.high else f" [{number(amount.low)}, {number(amount.high)}]"
    origins = _m(", ".join(map(str, amount.origins)), 200)
    part = "" if amount.coverage >= 0.9995 else f", for {percent(amount.coverage)} of the energy"
    return (
        f"Against its home pool at once, this run saved **{number(amount.value)} {_m(amount.unit)}CO2e**{bounds} by "
        f"waiting or moving, {amount.quality} energy times a signal ({origins}){part}."
    )


def _weighed(shown: Sequence[tuple[str, Explained]]) -> str:
    if not shown:
        return ""
    parts = [decision_markdown(title, each) for title, each in shown[:MOST_DECISIONS]]
    if len(shown) > MOST_DECISIONS:
        parts.append(f"and {count(len(shown) - MOST_DECISIONS, 'more kind')} of decision")
    return "### What was weighed\n\n" + "\n\n".join(parts)


def decision_markdown(title: str, made: Explained) -> str:
    """A decision in words, and a table of the candidates that it weighed."""
    acted = ", acted on" if made.enforced else ""
    alike = f", the last of {count(made.count, 'decision')} alike" if made.count > 1 else ""
    latest = f" Latest start {when(made.latest_wall_ns)} UTC." if made.latest_wall_ns is not None else ""
    said = f"**{_m(title)}: {_m(made.action)}** in {_m(made.pool)} ({_m(made.mode)}{acted}{alike}). "
    said += f"{_m(made.reason, 300)}.{latest}"
    if not made.candidates:
        return said
    best = next((each.score for each in made.candidates if each.chosen), None)
    shown = made.candidates[:MOST_CANDIDATES]
    columns = [(head, of) for head, of in _COLUMNS if any(of(each) != "unknown" for each in shown)]
    rows = [
        [
            f"**{_m(each.pool)}**" if each.chosen else _m(each.pool),
            *(unbroken(of(each)) for _, of in columns),
            _outcome(each, best),
        ]
        for each in shown
    ]
    hidden = len(made.candidates) - len(shown) + made.more
    more = f"\n\nand {count(hidden, 'more candidate')}" if hidden > 0 else ""
    heads = ("Candidate", *(head for head, _ in columns), "Outcome")
    return f"{said}\n\n{table_markdown(heads, rows)}{more}"


def _score(each: Weighed) -> str:
    return "unknown" if each.score is None else f"{each.score:.4g}"


_COLUMNS: Final[tuple[tuple[str, Callable[[Weighed], str]], ...]] = (
    # With hyphens at which no line is broken.
    ("Start, UTC", lambda each: when(each.start_wall_ns).replace("-", "\u2011")),
    ("Energy>", lambda each: format_energy(each.energy_j)),
    ("gCO2e>", lambda each: number(each.carbon_g)),
    ("Cost>", lambda each: number(each.cost)),
    ("Ends in>", lambda each: format_duration(each.finish_s)),
    ("Score>", _score),
)
"""A column is shown where anything in it is known."""


def _outcome(each: Weighed, best: float | None) -> str:
    if each.chosen:
        return "**chosen**"
    broken = [constraint.id for constraint in each.constraints if not constraint.ok]
    if not each.feasible:
        return f"not feasible: {_m(', '.join(broken) or 'a constraint')}"
    if each.rank:
        return "dominated"
    behind = None if best is None or each.score is None else each.score - best
    return "behind" if behind is None or behind <= 0 else f"behind by {behind:.3g}"


def _budgets(standings: Sequence[Standing]) -> str:
    if not standings:
        return ""
    rows = [
        [
            _m(standing.budget.name),
            _m(standing.regime),
            unbroken(format_energy(joules(standing.spent_uj))),
            unbroken(format_energy(joules(standing.reserved_uj))),
            unbroken(format_energy(standing.budget.limit_j)),
            unbroken(percent(standing.utilisation)),
            _m(standing.budget.window),
        ]
        for standing in standings[:_MOST_BUDGETS]
    ]
    heads = ("Budget", "Regime", "Spent>", "Reserved>", "Limit>", "Used>", "Window")
    return "### Budgets, at the end of this run\n\n" + table_markdown(heads, rows)
