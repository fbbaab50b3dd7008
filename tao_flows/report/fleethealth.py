"""The fleet page's pools, and the health of what measures and keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tao_flows.ledger.reads import HostSum
from tao_flows.pool_state import LiveState, Seen
from tao_flows.report.elements import LIST_LIMIT, badge, cell, e, number, section, table, when
from tao_flows.report.fleetview import FleetView, PoolLine
from tao_flows.report.text import count, percent
from tao_flows.signals.board import SignalStatus
from tao_flows.units import format_duration, format_power, s_from_ns


def pools_section(view: FleetView) -> str:
    """The pools with how they were last seen."""
    if not view.pools:
        return section("Pools", "", '<p class="soft">None is described, and none was seen.</p>')
    heads = (
        "Pool",
        "Zone",
        "PUE>",
        "State",
        "Free places>",
        "Queue wait>",
        "Power>",
        "Cap>",
        "Temperature>",
        "Waiting>",
    )
    rows = (_pool(line, view.now_ns) for line in view.pools[:LIST_LIMIT])
    note = "As described, and as last seen; what was seen too long ago to be believed is said to be old."
    return section("Pools", note, table(heads, rows))


def _pool(line: PoolLine, now_ns: int) -> list[str]:
    pool, state = line.pool, line.state
    online = "not seen" if state.online is None else "online" if state.online.value else "offline"
    online = online if pool.online else "offline"
    tone = {"online": "good", "offline": "bad"}.get(online, "")
    return [
        cell(e(pool.pool_id), "name"),
        cell(e(pool.zone or "not described")),
        cell(f"{pool.pue:.2f}", "r"),
        cell(f'<span class="state {tone}">{online}</span>{_old(state, now_ns)}'),
        cell(e(_seen(state.capacity_free, str)), "r"),
        cell(e(_seen(state.queue_wait_s, format_duration)), "r"),
        cell(e(_seen(state.power_w, format_power)), "r"),
        cell(e("none" if pool.power_cap_w is None else format_power(pool.power_cap_w)), "r"),
        cell(e(_seen(state.temperature_c, lambda value: f"{value:.0f} °C")), "r"),
        cell(f"{line.waiting:,}", "r"),
    ]


def _seen(seen: Seen[Any] | None, show: Any) -> str:
    return "unknown" if seen is None else str(show(seen.value))


def _old(state: LiveState, now_ns: int) -> str:
    if not state.stale:
        return ""
    youngest = min(state.stale.values(), key=lambda seen: seen.age_s(now_ns))
    return f'<br><span class="soft">old: {e(youngest.source)}, {e(format_duration(youngest.age_s(now_ns)))} ago</span>'


def health_section(view: FleetView) -> str:
    """Hosts, signals, the spool and what went wrong."""
    health = view.health
    parts = [
        "<h3>Hosts and agents</h3>",
        _hosts(health.hosts, view.now_ns),
        "<h3>Signals</h3>",
        _signals(health.signals),
    ]
    parts += ["<h3>Spool</h3>", _spool(view), "<h3>Incidents</h3>", _incidents(view)]
    return section("Health", "Of what measures, and of what keeps the records.", "".join(parts), "long")


def _hosts(sums: Sequence[HostSum], now_ns: int) -> str:
    if not sums:
        return '<p class="soft">No host was heard of in this time.</p>'
    by_host: defaultdict[str, list[HostSum]] = defaultdict(list)
    for each in sums:
        by_host[each.host].append(each)
    rows = []
    for host, members in list(by_host.items())[:LIST_LIMIT]:
        whole = sum(each.segments for each in members)
        last_ns = max(each.last_wall_ns for each in members)
        mix = " ".join(f"{percent(each.segments / whole)} {badge(each.quality)}" for each in members)
        heard = f"{when(last_ns)}<br><span class='soft'>{e(format_duration(max(0.0, s_from_ns(now_ns - last_ns))))} ago</span>"
        rows.append(
            [cell(e(host), "name"), cell(f"{whole:,}", "r"), cell(heard), cell(mix, "wide"), cell(_advice(members))]
        )
    return table(("Host", "Parts of tries>", "Last heard of (UTC)", "Quality", "What to do"), rows)


def _advice(members: Sequence[HostSum]) -> str:
    told: Mapping[str, int] = {each.quality: each.segments for each in members}
    if told.get("estimated") or told.get("unknown"):
        return e("run tao-flows doctor there; the node agent reads its counters for all", 120)
    return ""


def _signals(signals: Sequence[SignalStatus]) -> str:
    if not signals:
        return '<p class="soft">None is configured here: gCO2e and cost are unknown.</p>'
    rows = (
        [
            cell(e(status.spec.name), "name"),
            cell(e(status.spec.provider)),
            cell(f"{e(number(status.value))} {e(status.spec.read_as)}", "r"),
            cell(e(_or(status, "no age", status.age_s)), "r"),
            cell(e(_or(status, "no end", status.horizon_s)), "r"),
            cell(_signal_state(status), "wide"),
        ]
        for status in signals[:LIST_LIMIT]
    )
    return table(("Signal", "From", "Now>", "Age>", "Known ahead>", "State"), rows)


def _or(status: SignalStatus, word: str, seconds: float | None) -> str:
    """A duration; the word for one that a known signal does not have."""
    return word if seconds is None and status.value is not None else format_duration(seconds)


def _signal_state(status: SignalStatus) -> str:
    if not status.problems:
        return '<span class="state good">usable</span>'
    problem = status.problems[0]
    return f'<span class="state bad">{e(problem.code)}</span> {e(problem.summary, 200)}<br><em>{e(problem.remedy, 200)}</em>'


def _spool(view: FleetView) -> str:
    spool = view.health.spool
    if spool is None:
        return '<p class="soft">Not known here: it is told where the settings are.</p>'
    if not spool.size_bytes and not spool.refused_bytes:
        return "<p>Empty on this host: every record is in the ledger.</p>"
    oldest = f", the oldest since {when(spool.oldest_wall_ns)} UTC" if spool.oldest_wall_ns is not None else ""
    said = f"{spool.size_bytes:,} bytes in {count(spool.segments, 'file')} wait on this host{oldest}."
    refused = f" {spool.refused_bytes:,} bytes were refused for good." if spool.refused_bytes else ""
    return f"<p><strong>{e(said, 200)}</strong>{e(refused)} <em>tao-flows spool flush writes them</em></p>"


def _incidents(view: FleetView) -> str:
    incidents = view.health.incidents
    if not incidents:
        return "<p>None in this time.</p>"
    rows = (
        [
            cell(f"<strong>{e(each.code)}</strong>", "name"),
            cell(f"{each.times:,}", "r"),
            cell(e(when(each.last_wall_ns))),
            cell("<br>".join(filter(None, (e(each.summary, 300), f"<em>{e(each.remedy, 300)}</em>"))), "wide"),
        ]
        for each in incidents[:LIST_LIMIT]
    )
    return table(("Code", "Times>", "Last (UTC)", "What, and what to do"), rows)
