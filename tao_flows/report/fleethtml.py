"""The fleet page: no script, nothing fetched, every name escaped. Its filters are in its address."""

from __future__ import annotations

from html import escape
from typing import Final
from urllib.parse import urlencode

from tao_flows.figures import joules
from tao_flows.inversion import LEAST_RUNS
from tao_flows.ledger.reads import MOST_DEADLINES
from tao_flows.report.burn import burn_chart
from tao_flows.report.chart import quality_chart
from tao_flows.report.elements import (
    LIST_LIMIT,
    amount_card,
    badge,
    cards,
    cell,
    document,
    e,
    number,
    section,
    table,
    waiting_table,
    when,
)
from tao_flows.report.filters import SINCES, Filters
from tao_flows.report.fleethealth import health_section, pools_section
from tao_flows.report.fleetview import BudgetLine, FleetView, FlowSum
from tao_flows.report.links import NOWHERE, Links
from tao_flows.report.text import count, energy_text, percent
from tao_flows.units import format_energy

_WATT_HOURS: Final = ((3.6e6, "kWh"), (3.6e3, "Wh"), (3.6, "mWh"))
"""Joules in each, the largest first."""
_MOST_FLOWS: Final = 30


def render_fleet(view: FleetView, links: Links = NOWHERE) -> str:
    """The whole page.

    Args:
        view: what it shows.
        links: where it leads.
    """
    return document(
        "Energy of all runs",
        (
            _header(view, links),
            _problems(view),
            _tiles(view),
            _waiting(view, links),
            _movers(view),
            _waste(view),
            _budgets(view),
            _flows(view, links),
            pools_section(view),
            health_section(view),
            f"<footer>As of {e(when(view.now_ns))} UTC, from the ledger, by tao-flows.</footer>",
        ),
        forms=bool(links.fleet or links.release),
    )


def _header(view: FleetView, links: Links) -> str:
    said = f"The last {e(view.filters.since)}, up to {e(when(view.now_ns))} UTC"
    return f'<p class="eyebrow">Energy report</p>\n<h1>All runs</h1>\n<p class="sub">{said}</p>{_form(view, links)}'


def _form(view: FleetView, links: Links) -> str:
    given = view.filters
    if not links.fleet:
        named = [f"{name} {value}" for name in _NAMES if (value := getattr(given, name))]
        return f'<p class="sub">Only {e(", ".join(named), 300)}.</p>' if named else ""
    fields = [_select("since", given.since, dict.fromkeys((*SINCES, given.since)), blank=False)]
    fields += [
        _select(name, value := getattr(given, name), dict.fromkeys((*view.choices[name], value)))
        for name in ("engine", "flow", "team", "owner")
    ]
    pools = dict.fromkeys((*(line.pool.pool_id for line in view.pools), given.pool))
    fields.append(_select("pool", given.pool, pools))
    qualities = ("measured", "attributed", "estimated", "unknown")
    fields.append(_select("quality", given.quality, dict.fromkeys(qualities)))
    return (
        f'<form class="filters" method="get" action="{escape(links.fleet)}">{"".join(fields)}'
        f'<button type="submit">Show</button></form>'
    )


_NAMES: Final = tuple(name for name in Filters.__slots__ if name != "since")


def _select(name: str, chosen: str, values: dict[str, None], *, blank: bool = True) -> str:
    options = ['<option value="">all</option>'] if blank else []
    for value in values:
        if value:
            mark = " selected" if value == chosen else ""
            options.append(f'<option value="{escape(value)}"{mark}>{e(value)}</option>')
    return f'<label>{name}<select name="{name}">{"".join(options)}</select></label>'


def _problems(view: FleetView) -> str:
    items = [
        f"<li><strong>{e(p.code)}</strong> {e(p.summary, 300)}<br><em>{e(p.remedy, 300)}</em></li>"
        for p in view.problems
    ]
    return section("Not everything could be read", "", f"<ul>{''.join(items)}</ul>", "alert") if items else ""


def _tiles(view: FleetView) -> str:
    sums, energy = view.sums, view.sums.energy
    big, bounds = "unknown", ""
    if energy.value_j is not None:
        per_unit_j, unit = next((step for step in _WATT_HOURS if energy.value_j >= step[0]), _WATT_HOURS[-1])
        big = f"{number(energy.value_j / per_unit_j)} {unit}"
        if not energy.low_uj == energy.value_uj == energy.high_uj:
            low, high = (number((bound_j or 0) / per_unit_j) for bound_j in (energy.low_j, energy.high_j))
            bounds = f"between {low} and {high} {unit}"
    share = [f"{percent(n / sums.segments)} {quality}" for quality, n in sums.segments_by_quality.items()]
    mix = quality_chart(sums.by_quality_uj, energy.coverage).inline() if energy.value_uj else ""
    return (
        f'<div class="hero"><div><p class="eyebrow">Energy of the tasks</p><div class="big">{e(big)}</div>'
        f"<p>{e(bounds)}</p><p>{badge(energy.quality)}</p>{mix}<p>{e(', '.join(share), 200)}"
        f"{' of the parts of tries' if share else 'No task was recorded in this time.'}</p></div>"
        f"{cards(_cards(view))}</div>"
    )


def _cards(view: FleetView) -> list[tuple[str, str, str]]:
    sums, account = view.sums, view.account
    untold = "no signal covers the zone and time of a pool"
    no_saving = "no signal covers what was put off or moved" if view.moves else "nothing was put off or moved"
    of = (
        f"Realised saving, gCO2e, of {view.saved.parts:,} of {count(view.moves, 'move')}"
        if view.moves
        else "Realised saving"
    )
    known = f"of the parts are known; {count(sums.runs, 'run')}"
    tiles = [
        ("Overhead", percent(account.overhead_share), _overhead_note(view)),
        ("Deadlines missed", *_deadlines(view)),
        ("Coverage", percent(sums.energy.coverage if sums.segments else None), known),
    ]
    return [
        amount_card("gCO2e", view.carbon, "g/kWh", untold),
        amount_card("Cost of energy", view.cost, f"{view.cost.unit}/kWh".lstrip("/"), untold),
        amount_card(of, view.saved, "", no_saving),
        *((word, e(figure), e(note, 240)) for word, figure, note in tiles),
    ]


def _overhead_note(view: FleetView) -> str:
    state = view.inversion
    if state.inverted is None or state.low is None:
        return f"inversion not known: {state.runs} of {LEAST_RUNS} runs with a known overhead"
    verdict = "inverted" if state.inverted else "not inverted"
    return (
        f"{verdict}: {percent(state.share)} [{percent(state.low)}, {percent(state.high)}] of the last {state.runs} runs"
    )


def _deadlines(view: FleetView) -> tuple[str, str]:
    told = view.deadlines
    if not told.tries:
        return "none set", "no try was decided under a deadline, as far as decisions were recorded"
    untold = f"; of {told.untold:,} it cannot be told, no record of the try is there" if told.untold else ""
    latest = "the latest " if told.tries >= MOST_DEADLINES else ""
    return f"{told.missed:,}", f"of {latest}{count(told.tries, 'try', 'tries')} with a deadline{untold}"


def _waiting(view: FleetView, links: Links) -> str:
    drain = " <strong>Draining</strong>: nothing new waits." if view.draining else ""
    note = f"{count(len(view.waiting), 'try waits', 'tries wait')} for a better time, each until its latest start at most.{drain}"
    return section("Waiting now", note, waiting_table(view.waiting, links, view.now_ns))


def _movers(view: FleetView) -> str:
    movers = view.movers
    note = "Flows whose runs take more or less than their median of the four weeks before, by the joules that makes."
    if not movers:
        return section("Movers", note, '<p class="soft">None, or too little is known of the weeks before.</p>')
    most = max(abs(flow.moved_j) for flow in movers)
    rows = (
        [
            cell(e(flow.flow), "name"),
            cell(f"{flow.runs:,}", "r"),
            cell(e(format_energy(flow.now_j)), "r"),
            cell(e(format_energy(flow.usual_j)), "r"),
            cell(_change(flow), "r"),
            cell(_meter(abs(flow.moved_j) / most, "up" if flow.moved_j > 0 else "down")),
            cell(e(_signed(flow.moved_j)), "r"),
            cell(badge(flow.energy.quality)),
        ]
        for flow in movers
    )
    heads = ("Flow", "Runs>", "Median now>", "Median before>", "Change>", "", "In all>", "Quality")
    return section("Movers", note, table(heads, rows))


def _change(flow: FlowSum) -> str:
    change = flow.change or 0.0
    # The arrow and the sign say it too, for eyes that do not tell the colours apart.
    return f'<span class="state {"bad" if change > 0 else "good"}">{"▲" if change > 0 else "▼"} {change * 100:+.0f} %</span>'


def _signed(energy_j: float) -> str:
    return f"{'+' if energy_j > 0 else '−'}{format_energy(abs(energy_j))}"


def _meter(share: float, style: str) -> str:
    width = max(1.0, 120 * share)
    return f'<svg class="chart small" width="120" height="10" role="presentation"><rect class="{style}" width="{width:.1f}" height="10" rx="2"/></svg>'


def _waste(view: FleetView) -> str:
    sums = view.sums
    failed = "0 J" if sums.failed is None and sums.segments else energy_text(sums.failed) if sums.failed else "unknown"
    share = ""
    if sums.failed is not None and sums.failed.value_uj is not None and sums.energy.value_uj:
        share = f", {percent(sums.failed.value_uj / sums.energy.value_uj)} of all"
    idle = view.gpu.allocated_idle_uj
    tiles = [
        ("Failed and lost tries", e(failed), e(f"{count(sums.failed_segments, 'part')}{share}; {_quality_of(view)}")),
        (
            "Idle GPU",
            e(format_energy(joules(idle))),
            e(
                f"held and not used; {view.gpu.quality}" if idle is not None else "no account of a held GPU is there",
                100,
            ),
        ),
        ("Overhead above the work", e(f"{len(view.inverted):,}"), e(_inverted(view), 400)),
    ]
    return section("Waste", "Joules that no result came of.", cards(tiles))


def _quality_of(view: FleetView) -> str:
    return str(view.sums.failed.quality) if view.sums.failed is not None else "none failed"


def _inverted(view: FleetView) -> str:
    named = ", ".join(view.inverted[:8])
    return f"flows with a share above 50 %: {named}" if named else "flows with a share above 50 %, for certain"


def _budgets(view: FleetView) -> str:
    if not view.budgets:
        return section("Budgets", "", '<p class="soft">None is defined.</p>')
    drawn = "".join(_budget(line, f"burn-{at}") for at, line in enumerate(view.budgets[:LIST_LIMIT]))
    note = "Joules in the present window. The broken line is even use of the limit; what is reserved is hatched on top."
    return section("Budgets", note, f'<div class="budgets">{drawn}</div>')


def _budget(line: BudgetLine, name: str) -> str:
    standing, budget = line.standing, line.standing.budget
    ceiling = f", ceiling {format_energy(budget.ceiling_j)}" if budget.ceiling_j is not None else ""
    unknown = f", {count(standing.unknown_runs, 'run')} unknown" if standing.unknown_runs else ""
    ends = f", until {when(standing.end_wall_ns)} UTC" if standing.end_wall_ns is not None else ""
    tone = {"standard": "good", "inversion": "bad"}.get(standing.regime, "")
    return (
        f'<div><h3>{e(budget.name)} <span class="state {tone}">{e(standing.regime)}</span></h3>'
        f"<p>{e(percent(standing.utilisation))} of {e(format_energy(budget.limit_j))}: "
        f"{e(format_energy(joules(standing.spent_uj)))} spent, {e(format_energy(joules(standing.reserved_uj)))} reserved"
        f'{e(unknown)}</p>{burn_chart(line, name=name).inline()}<p class="soft">{e(budget.window + ends + ceiling, 200)}</p></div>'
    )


def _flows(view: FleetView, links: Links) -> str:
    if not view.flows:
        return ""
    whole = sum(flow.energy.value_uj or 0 for flow in view.flows)
    rows = [_flow(flow, whole, view.filters, links) for flow in view.flows[:_MOST_FLOWS]]
    heads = ("Flow", "Engine", "Runs>", "Energy>", "Quality", "Known>", "Share>", "Lost in failed tries>")
    more = len(view.flows) - _MOST_FLOWS
    last = [[cell(f"and {more:,} more", "name"), *[cell("")] * 7]] if more > 0 else []
    return section("Flows", "The dearest first.", table(heads, rows, last), "long")


def _flow(flow: FlowSum, whole_uj: int, filters: Filters, links: Links) -> list[str]:
    name = e(flow.flow)
    if links.fleet:
        mark = "&" if "?" in links.fleet else "?"
        given = {each: value for each in Filters.__slots__ if (value := getattr(filters, each))}
        address = f"{links.fleet}{mark}{urlencode({**given, 'flow': flow.flow})}"
        name = f'<a href="{escape(address)}">{name}</a>'
    share = (flow.energy.value_uj or 0) / whole_uj if whole_uj and flow.energy.value_uj is not None else None
    return [
        cell(name, "name"),
        cell(e(flow.engine)),
        cell(f"{flow.runs:,}", "r"),
        cell(e(energy_text(flow.energy)), "r"),
        cell(badge(flow.energy.quality)),
        cell(e(percent(flow.energy.coverage)), "r"),
        cell(e(percent(share)), "r"),
        cell(e(format_energy(joules(flow.lost_uj)) if flow.lost_uj else ""), "r"),
    ]
