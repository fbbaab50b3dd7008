"""Medians and spreads over the repetitions; what the sides differ by; where overhead falls under half. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tao_flows.inversion import INVERSION_SHARE

Row = Mapping[str, Any]
Key = tuple[str, str, float | None, float, str]
"""Engine, kind, rate, length of items, side."""
_LATENCIES: Final = ("p50", "p90", "p99", "most")


def summarised(cells: Sequence[Row]) -> dict[str, Any]:
    """The summary of the cells that were measured."""
    grouped: defaultdict[Key, list[Row]] = defaultdict(list)
    for cell in cells:
        grouped[cell["engine"], cell["kind"], cell["rate"], cell["item_s"], cell["side"]].append(cell)
    rows = [_row(members) for members in grouped.values()]
    return {"rows": rows, "reductions": _reductions(grouped), "crossovers": _crossovers(rows), "equal": _equal(cells)}


def _spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "low": min(known), "high": max(known)} if known else None


def _row(cells: Sequence[Row]) -> dict[str, Any]:
    first, accounts = cells[0], [cell["account"] for cell in cells]
    standing = [cell["standing"] for cell in cells]
    return {
        **{name: first[name] for name in ("engine", "kind", "side", "item_s", "rate", "items")},
        "groups": len(first["arrivals_s"]),
        "repetitions": len(cells),
        "quality": accounts[0]["quality"],
        "interval": accounts[0]["interval"],
        "overhead_share": _spread(each["overhead_share_cpu"] for each in accounts),
        "engine_w": _spread(each["engine_w"] for each in accounts),
        "active_w": _spread(each["active_w"] for each in accounts),
        "node_w": _spread(each["node_w"] for each in accounts),
        "power_w": {line: _spread(each["power_w"][line] for each in accounts) for line in accounts[0]["power_w"]},
        "energy_j": {line: _spread(each["energy_j"][line] for each in accounts) for line in accounts[0]["energy_j"]},
        "cpu_s": {line: _spread(each["cpu_s"][line] for each in accounts) for line in accounts[0]["cpu_s"]},
        "cpu_s_by_component": _by_component(each["cpu_s_by_component"] for each in accounts),
        "resident_mib": _by_component(each["resident_mib"] for each in accounts),
        "wall_s": _spread(each["wall_s"] for each in accounts),
        "latency_s": {p: _spread(cell["latency_s"] and cell["latency_s"][p] for cell in cells) for p in _LATENCIES},
        "standing_w": _spread(each["engine_w"] for each in standing),
        "standing_cpu_share": _spread(_standing_cpu(each) for each in standing),
        "standing_by_component": _by_component(
            {name: s / each["wall_s"] for name, s in each["cpu_s_by_component"].items()} for each in standing
        ),
        "overhead_of_standing": _spread(map(_of_standing, cells)),
        "overhead_cpu_s_an_item": _spread(map(_an_item, cells)),
        **{name: sum(cell[name] or 0 for cell in cells) for name in ("lost", "ran_twice", "wrong", "told_otherwise")},
        "not_succeeded": sum(_not_succeeded(cell) for cell in cells),
    }


def _by_component(each: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    listed = list(each)
    return {name: _spread(one.get(name) for one in listed) for name in listed[0]}


def _standing_cpu(standing: Row) -> float:
    return float(sum(standing["cpu_s_by_component"].values()) / standing["wall_s"])


def _of_standing(cell: Row) -> float | None:
    """The share of overhead that the engine would have taken with nothing to do."""
    overhead_s, wall_s = cell["account"]["cpu_s"]["overhead"], cell["account"]["wall_s"]
    return min(1.0, _standing_cpu(cell["standing"]) * wall_s / overhead_s) if overhead_s else None


def _an_item(cell: Row) -> float:
    """CPU seconds of overhead that an item brings with it, above what the engine takes with nothing to do."""
    overhead_s, wall_s = cell["account"]["cpu_s"]["overhead"], cell["account"]["wall_s"]
    items = cell["items"] * len(cell["arrivals_s"])
    return float(max(0.0, overhead_s - _standing_cpu(cell["standing"]) * wall_s) / items)


def _not_succeeded(cell: Row) -> int:
    return sum(count for state, count in (cell["task_states"] or {}).items() if state != "success")


def _reductions(grouped: Mapping[Key, Sequence[Row]]) -> list[dict[str, Any]]:
    """Of each side against plain, repetition by repetition."""
    found = []
    for (engine, kind, rate, item_s, side), cells in grouped.items():
        plain = {cell["repetition"]: cell for cell in grouped.get((engine, kind, rate, item_s, "plain"), ())}
        pairs = [(plain[cell["repetition"]], cell) for cell in cells if cell["repetition"] in plain]
        if side == "plain" or kind != "rate" or not pairs:
            continue
        found.append(
            {
                "engine": engine,
                "side": side,
                "item_s": item_s,
                "rate": rate,
                "plain_overhead_share": _spread(p["account"]["overhead_share_cpu"] for p, _ in pairs),
                **{
                    f"{name}_less": _spread(_less(p["account"][name], o["account"][name]) for p, o in pairs)
                    for name in ("engine_w", "active_w", "node_w")
                },
                "cpu_less": _spread(_less(_engine_cpu_s(p), _engine_cpu_s(o)) for p, o in pairs),
                "without_standing_less": _spread(_less(_dispatch_s(p), _dispatch_s(o)) for p, o in pairs),
                "latency_more_s": {
                    p50: _spread(_more(p["latency_s"], o["latency_s"], p50) for p, o in pairs) for p50 in _LATENCIES
                },
                "lost": sum(ours["lost"] for _, ours in pairs),
                "wrong": sum(ours["wrong"] for _, ours in pairs),
            }
        )
    return found


def _engine_cpu_s(cell: Row) -> float:
    return float(cell["account"]["cpu_s"]["tasks"] + cell["account"]["cpu_s"]["overhead"])


def _dispatch_s(cell: Row) -> float:
    return float(_an_item(cell) * cell["items"] * len(cell["arrivals_s"]) + cell["account"]["cpu_s"]["tasks"])


def _less(before: float | None, after: float | None) -> float | None:
    return None if not before or after is None else 1 - after / before


def _more(before: Row | None, after: Row | None, name: str) -> float | None:
    return None if before is None or after is None else after[name] - before[name]


def _crossovers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each engine and side, the length of items at which overhead is half."""
    found = []
    for engine, side in dict.fromkeys((row["engine"], row["side"]) for row in rows if row["kind"] == "sweep"):
        mine = [r for r in rows if (r["engine"], r["side"], r["kind"]) == (engine, side, "sweep")]
        points = sorted((r["item_s"], r["overhead_share"]["median"]) for r in mine if r["overhead_share"])
        found.append({"engine": engine, "side": side, "item_s": crossover(points), "points": points})
    return found


def crossover(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the share falls under one half for good, between two lengths on a logarithmic scale; None if nowhere.

    Args:
        points: lengths of items, in seconds, from short to long, with the share of overhead.
    """
    for (short_s, above), (long_s, below) in reversed(list(itertools.pairwise(points))):
        if above > INVERSION_SHARE >= below:
            part = (above - INVERSION_SHARE) / (above - below)
            return math.exp(math.log(short_s) + part * (math.log(long_s) - math.log(short_s)))
    return None


def _equal(cells: Sequence[Row]) -> bool:
    """Whether each item of the same work gave the same result wherever it ran."""
    by_work: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
    for cell in cells:
        for item, result in cell["results"].items():
            by_work[cell["rounds"], item].add(result)
    return all(len(results) == 1 for results in by_work.values())


def length(item_s: float) -> str:
    """A length of items for people."""
    return f"{item_s * 1e3:g} ms" if item_s < 1 else f"{item_s:g} s"


def median(spread: Row | None, form: str = ".2f") -> str:
    """A median with its least and most."""
    if spread is None:
        return "unknown"
    if spread["low"] == spread["high"]:
        return f"{spread['median']:{form}}"
    return f"{spread['median']:{form}} ({spread['low']:{form}} to {spread['high']:{form}})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rows_table(rows: Sequence[Row]) -> str:
    """What was measured, a line for each side."""
    head = (
        "engine, side", "items", "overhead, CPU share", "CPU s: tasks", "overhead", "engine W (tasks + overhead)",
        "with nothing to do, W", "node W", "latency p50, s", "p99, s",
    )  # fmt: skip
    return table(
        head,
        [
            (
                f"{row['engine']}, {row['side']}",
                f"{row['groups']} x {row['items']} of {length(row['item_s'])}",
                median(row["overhead_share"], ".2%"),
                median(row["cpu_s"]["tasks"]),
                median(row["cpu_s"]["overhead"]),
                median(row["engine_w"], ".3f"),
                median(row["standing_w"], ".3f"),
                median(row["node_w"]),
                median(row["latency_s"]["p50"]),
                median(row["latency_s"]["p99"]),
            )
            for row in rows
        ],
    )


def components_table(rows: Sequence[Row]) -> str:
    """CPU seconds of the parts of each engine, and what each takes with nothing to do, as shares of a processor."""
    head = ("engine, side", "items", "CPU s of each part", "with nothing to do, of a processor")
    return table(
        head,
        [
            (
                f"{row['engine']}, {row['side']}",
                f"{row['groups']} x {row['items']} of {length(row['item_s'])}",
                ", ".join(f"{name} {spread['median']:.2f}" for name, spread in _by_size(row["cpu_s_by_component"])),
                ", ".join(f"{name} {spread['median']:.2%}" for name, spread in _by_size(row["standing_by_component"])),
            )
            for row in rows
        ],
    )


def _by_size(parts: Mapping[str, Row]) -> list[tuple[str, Row]]:
    return sorted(parts.items(), key=lambda part: -float(part[1]["median"]))


def reductions_table(reductions: Sequence[Row]) -> str:
    """What the sides save against the plain engine."""
    head = (
        "engine, side", "items", "overhead before", "active W of the engine, less", "of the node, less",
        "CPU beyond standing, less", "latency p50, more s", "p99, more s", "lost",
    )  # fmt: skip
    return table(
        head,
        [
            (
                f"{row['engine']}, {row['side']}",
                f"{row['rate']:g} a second of {length(row['item_s'])}",
                median(row["plain_overhead_share"], ".1%"),
                median(row["engine_w_less"], ".1%"),
                median(row["active_w_less"], ".1%"),
                median(row["without_standing_less"], ".1%"),
                median(row["latency_more_s"]["p50"]),
                median(row["latency_more_s"]["p99"]),
                str(row["lost"]),
            )
            for row in reductions
        ],
    )


def shown(found: Row) -> str:
    """The report for the terminal."""
    summary, host = found["summary"], found["machine"]
    bad = {
        name: sum(row[name] for row in summary["rows"])
        for name in ("lost", "ran_twice", "wrong", "told_otherwise", "not_succeeded")
    }
    lines = [
        (
            f"{host['cpu']}, {host['vcpus']} vCPUs, Linux {host['kernel']}, load average {host['load_average']:.2f} at first; "
            f"CPU time by {found['cpu_source']}"
        ),
        rows_table(summary["rows"]),
        f"results equal on all sides: {summary['equal']}; {', '.join(f'{n} {c}' for n, c in bad.items())}",
    ]
    if summary["reductions"]:
        lines.append(reductions_table(summary["reductions"]))
    for each in summary["crossovers"]:
        where = "nowhere in what was measured" if each["item_s"] is None else f"at items of {length(each['item_s'])}"
        lines.append(f"{each['engine']}, {each['side']}: overhead falls under half {where}")
    lines += [f"failed: {each['cell']}: {each['error']}" for each in found["failed"]]
    return "\n\n".join(lines)
