"""The page of a run: no script, nothing fetched, every name escaped."""

from __future__ import annotations

import json
from typing import Final

from tao_flows.clock import SystemClock
from tao_flows.figures import Quality, joules
from tao_flows.records import TaskState
from tao_flows.report.chart import account_chart, energy_chart, quality_chart, spark_chart
from tao_flows.report.elements import (
    LIST_LIMIT,
    amount_card,
    badge,
    capped,
    cards,
    cell,
    chart,
    document,
    download,
    e,
    link,
    number,
    section,
    state,
    table,
    waiting_table,
    when,
)
from tao_flows.report.gantt import gantt_chart
from tao_flows.report.links import NOWHERE, Links
from tao_flows.report.model import RunReport
from tao_flows.report.runview import RunView, view_of
from tao_flows.report.sealsection import seal_section
from tao_flows.report.summary import AccountLine, account_lines
from tao_flows.report.tasktable import task_table
from tao_flows.report.text import QUALITY_MEANING, count, cpu_text, energy_text, mix_text, penalty_text, percent, plain
from tao_flows.units import format_duration, format_energy, format_power

_UNTOLD: Final = "no account of it was written"


def render_html(report: RunReport) -> str:
    """The page of a report alone, without its ledger: no grams, no trend, nothing that was weighed."""
    return render_run(view_of(report))


def render_run(view: RunView, links: Links = NOWHERE, csv: str = "") -> str:
    """The whole page.

    Args:
        view: what it shows.
        links: where it leads.
        csv: the rows of the tasks, to be written into the page where ``links`` has no address for them.
    """
    report = view.report
    return document(
        f"Energy of {plain(report.run.flow)} / {plain(report.name)}",
        (
            _header(view, links, csv),
            _hero(view),
            violations_section(view),
            _waiting(view, links),
            account_section(report),
            timeline_section(view),
            _tasks(view, links),
            energy_section(report),
            decisions_section(report),
            seal_section(view.seal, links),
            method_section(view),
            _footer(report),
        ),
        forms=bool(links.release),
    )


def _header(view: RunView, links: Links, csv: str) -> str:
    report, run = view.report, view.report.run
    who = [f"{word} {e(value)}" for word, value in (("team", run.who.team), ("owner", run.who.owner)) if value]
    parts = [e(report.name), state(run.state), f"started {when(run.started_wall_ns)} UTC", *who]
    name = "".join(char if char.isalnum() and char.isascii() else "-" for char in run.run_id)[:60]
    pieces = () if links.json else json.JSONEncoder(allow_nan=False).iterencode(run_json(view))
    downloads = [download("JSON", links.json, pieces, "application/json", f"{name}.json")]
    if links.csv or csv:
        downloads.append(download("CSV", links.csv, (csv,), "text/csv", f"{name}.csv"))
    fleet = [link("all runs", links.fleet, links)] if links.fleet else []
    return (
        f'<p class="eyebrow">Energy report, {e(run.engine)}</p>\n<h1>{e(run.flow)}</h1>\n'
        f'<p class="sub">{" &middot; ".join([*parts, *downloads, *fleet])}</p>'
    )


def _footer(report: RunReport) -> str:
    run = report.run
    return f"<footer>Run <code>{e(run.run_id, 200)}</code> in {e(run.engine)}, recorded by tao-flows.</footer>"


def run_json(view: RunView) -> dict[str, object]:
    """The run as JSON: the report, with grams and money."""
    saved = None if view.saved is None else view.saved.to_json()
    return {
        **view.report.to_json(),
        "carbon": view.carbon.to_json(),
        "cost": view.cost.to_json(),
        "machine_cost": view.machine_cost,
        "saved_carbon": saved,
    }


def _hero(view: RunView) -> str:
    report, energy = view.report, view.report.energy
    bounds = ""
    if energy.value_uj is not None and not energy.low_uj == energy.value_uj == energy.high_uj:
        bounds = f"between {format_energy(energy.low_j)} and {format_energy(energy.high_j)}"
    mix = ""
    if energy.value_uj:
        words = f"<p>{e(mix_text(report.by_quality_uj))}</p>" if len(report.by_quality_uj) > 1 else ""
        mix = quality_chart(report.by_quality_uj, energy.coverage).inline() + words
    return (
        f'<div class="hero"><div><p class="eyebrow">Energy of the tasks</p>'
        f'<div class="big">{e(format_energy(energy.value_j))}</div><p>{bounds}</p><p>{badge(energy.quality)}</p>'
        f"{mix}{_trend(view)}</div>{cards(_cards(view))}</div>"
    )


def _cards(view: RunView) -> list[tuple[str, str, str]]:
    report, energy = view.report, view.report.energy
    lost = sum(row.state is TaskState.LOST for row in report.tasks)
    power_w = energy.value_j / report.wall_s if energy.value_j is not None and report.wall_s else None
    verdict = {None: _UNTOLD, True: "overhead above the work", False: "of tasks and overhead"}[report.inversion]
    tiles = [
        ("Tasks", f"{len(report.tasks):,}", f"{lost:,} lost" if lost else "tries recorded"),
        ("Duration", format_duration(report.wall_s), "start to end of the run"),
        ("CPU time", _cpu_total(report), "of the tasks"),
        ("Mean power", format_power(power_w), f"tasks, over the run; {energy.quality}"),
        ("Overhead", percent(report.overhead_share), f"{verdict}; {report.account.quality}"),
        ("Coverage", percent(energy.coverage if report.tasks else None), "of the parts are known"),
    ]
    if view.machine_cost is not None:
        tiles.append(("Cost of machines", number(view.machine_cost), "price_per_h of the pools, while tries ran"))
    drawn = [(word, e(figure), e(note, 240)) for word, figure, note in tiles]
    untold = "no signal covers the zone and time of a pool"
    drawn.append(amount_card("gCO2e", view.carbon, "g/kWh", untold))
    drawn.append(amount_card("Cost of energy", view.cost, f"{view.cost.unit}/kWh".lstrip("/"), untold))
    if view.saved is not None:
        drawn.append(amount_card("Saved gCO2e, against home at once", view.saved, "", "no signal covers both ends"))
    return drawn


def _trend(view: RunView) -> str:
    trend = view.trend
    if trend is None or not trend.runs:
        return ""
    values = [joules(run.energy_uj) for run in trend.runs]
    drawing = spark_chart([*values, view.report.energy.value_j], trend.median_j).inline()
    if trend.change is None:
        said = "No earlier run is known as far as this one, to be compared."
    else:
        of = f"the median of {format_energy(trend.median_j)}, of {trend.known} of the last {count(len(values), 'run')}"
        known = "" if view.report.energy.coverage == 1 else ", as far as known"
        said = f"{trend.change * 100:+.0f} % against {of}{known}."
    return f"{drawing}<p>{e(said, 200)}</p>"


def _cpu_total(report: RunReport) -> str:
    bounded = any(row.cpu_lower_bound for row in report.tasks)
    said = cpu_text(report.cpu_s, lower_bound=bounded)
    return said if report.cpu_s is None else f"{said} s"


def violations_section(view: RunView) -> str:
    """What went wrong; empty where nothing did."""
    report = view.report
    items = [
        f"<li><strong>{e(v.code)}</strong> {e(v.summary, 300)}"
        + (f' <span class="soft">in {e(v.task)}</span>' if v.task else "")
        + (f' <span class="soft">({v.count:,} times)</span>' if v.count > 1 else "")
        + (f"<br><em>{e(v.remedy, 300)}</em>" if v.remedy else "")
        + "</li>"
        for v in report.violations[:LIST_LIMIT]
    ]
    items += [
        f"<li><strong>{e(p.code)}</strong> {e(p.summary, 300)}<br><em>{e(p.remedy, 300)}</em></li>"
        for p in view.problems
    ]
    if not items:
        return ""
    note = "Constraints that were not kept, and failures of the metering. None of them failed a task."
    return section("What went wrong", note, f"<ul>{capped(items, len(report.violations))}</ul>", "alert")


def _waiting(view: RunView, links: Links) -> str:
    if not view.waiting:
        return ""
    note = (
        f"{count(len(view.waiting), 'try waits', 'tries wait')} for a better time, and until its latest start at most."
    )
    return section("Waiting now", e(note, 200), waiting_table(view.waiting, links, SystemClock.wall_ns()))


def account_section(report: RunReport) -> str:
    """Where the joules of the hosts went."""
    account = report.account
    wholes = [
        f"{format_energy(value)} {how}"
        for value, how in ((joules(account.counter_uj), "counted"), (joules(account.estimate_uj), "estimated"))
        if value is not None
    ]
    # A node agent tells ordinary users their own part and nothing of the host's.
    unknown = "Not known" if account.tasks_uj is None else "The user's own part; the whole is not known"
    said = f"{' and '.join(wholes)} on {count(len(report.hosts), 'host')}" if wholes else unknown
    meanings = "".join(f"<b>{line.title.capitalize()}</b>: {line.meaning}. " for line in account_lines(account))
    drawn = f'{chart(account_chart(account, parts=[host.account for host in report.hosts]))}<p class="meanings">{meanings}</p>{_hosts(report)}'
    return section("Where the joules went", f"{e(said)}. {badge(account.quality)}", drawn)


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
            cell(e(host.host), "name"),
            *(cell(e(energy(line)), "r") for line in account_lines(host.account, gpu=gpu)),
            cell(badge(host.account.quality)),
        ]
        for host in report.hosts[:LIST_LIMIT]
    )
    heads = ("Host", *(f"{line.title.capitalize()}>" for line in lines), "Quality")
    return table(heads, rows)


def energy_section(report: RunReport) -> str:
    """The energy of each task, drawn."""
    if not report.tasks:
        return section("Energy by task", "No task was recorded.", "")
    note = "The whiskers run from the lower to the upper bound. Hatched bars are estimates."
    return section("Energy by task", note, chart(energy_chart(report)))


def _tasks(view: RunView, links: Links) -> str:
    report = view.report
    if not report.tasks:
        return ""
    note = f"{count(len(report.tasks), 'try', 'tries')}; known joules {energy_text(report.energy)}. A row opens to its "
    note += "tries and to the candidates that were weighed."
    return section("Tasks", e(note, 240), task_table(view, links), "long")


def timeline_section(view: RunView) -> str:
    """When tries waited and ran; empty where the view has no time line."""
    if view.timeline is None or not view.timeline.lanes:
        return ""
    behind = ""
    if view.line is not None:
        behind = (
            f" Behind: {e(view.line.unit)} in {e(view.line.zone)}, {e(view.line.source)}; paler where it was forecast."
        )
    note = f"When each try was queued, put off and held a process, from the start of the run (UTC).{behind}"
    return section("Time line", note, chart(gantt_chart(view.timeline, view.line)))


def decisions_section(report: RunReport) -> str:
    """What was decided, alike decisions together; empty where nothing was."""
    if not report.decisions:
        return ""
    rows = (
        [
            cell(f"{group.count:,}", "r"),
            cell(f"<strong>{e(group.choice.action)}</strong>"),
            cell(e(group.choice.pool)),
            cell(e(group.choice.regime or "none")),
            cell(e(penalty_text(group.penalty_low, group.penalty_high)), "r"),
            cell(e(f"{group.choice.mode}{' (acted on)' if group.choice.enforced else ''}")),
            cell(e(group.choice.reason, 200), "wide"),
        ]
        for group in report.decisions[:LIST_LIMIT]
    )
    drawn = table(("Tries>", "Action", "Pool", "Regime", "Penalty>", "Mode", "Reason"), rows)
    note = "What the controller chose for each try. A penalty of 1 means that no budget binds; it rises to 2 as one is "
    return section("Decisions", f"{note}used up.", drawn)


def method_section(view: RunView) -> str:
    """How the figures were made, and what weakens them."""
    report = view.report
    notes = [f"<li>{e(note, 600)}</li>" for note in report.notes] or ["<li>Nothing weakens these figures.</li>"]
    words = "".join(f"<dt>{badge(quality)}</dt><dd>{e(QUALITY_MEANING[quality])}</dd>" for quality in Quality)
    facts = (
        ("Energy from", report.energy.sources),
        ("CPU time from", report.cpu_sources),
        ("Method", report.methods),
    )
    origins = "".join(
        f"<dt>{word}</dt><dd><code>{e(', '.join(values) or 'unknown', 300)}</code></dd>" for word, values in facts
    )
    weak = [
        f"<li><strong>{e(each.host)}</strong>: {e(each.what, 300)}.<br><em>{e(each.remedy, 400)}</em></li>"
        for each in view.weak[:LIST_LIMIT]
    ]
    why = f"<h3>Why these figures are weak here</h3><ul>{capped(weak, len(view.weak))}</ul>" if weak else ""
    return section(
        "How to read these figures",
        "What was read, what was modelled, and what is not known.",
        f'{why}<h3>What they are made of</h3><ul>{"".join(notes)}</ul><dl class="words">{words}{origins}</dl>',
    )
