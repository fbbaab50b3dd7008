"""``docs/headline.md``: one page, made of the figures that were measured and of nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.headline.measuring import STANDING_S
from benchmarks.headline.summary import components_table, length, median, reductions_table, rows_table, table

PAPER_OVERHEAD: Final = 0.9936
PAPER_COVERAGE: Final = 0.92
PAPER_LESS_POWER: Final = 0.748
"""The three figures of the paper that this project began from."""

_HOW: Final = """\
What *enforce* does here is to have many items share one task. In Prefect the controller does that by itself, once it has
seen in earlier runs that overhead outweighs the work (`coalesce="auto"`), and stops doing it where items are long. In
Airflow batches are the author's choice: the DAG of that side says `@task.tao_batch` instead of `@task`. Nothing is
deferred, moved or throttled, and the work arrives at the same rate on both sides. The paper's own figures are of its own
workload; that ours lie beside them says that the effect is real, not that it is one number."""
_METHOD: Final = """\
An item is a fixed number of rounds of PBKDF2, the same on every side; an item's result is compared on all sides, and with
one that was worked out apart. At a fixed rate, groups of items come over a horizon, and each group is one map in one run
of the engine; in the sweep one group comes, and the window is from then until the engine has worked it off. Latency is
from when a group came to when an item's rounds were done.

Before it is measured, an engine is brought up anew, runs the work as often as its controller needs to judge it, settles,
and is watched for {standing_s:g} seconds with nothing to do. The account is taken from outside, by the same instrument on every side:
CPU time of the engine's processes, with all that they start, by **{cpu_source}**. *Tasks* is what the items' own rounds
took, by their threads' clocks; *overhead* is all else that the engine's processes took, tao-flows within them; *idle* is the
node at rest; *unattributed* the rest of the machine, the instrument with it. Sides take turns; figures are medians, with
the least and the most of up to {repetitions} repetitions in brackets: one without brackets was measured once.

Joules and watts are **{quality}**{model}. Shares and reductions of the engine's power are ratios of CPU seconds under that
model, so that its coefficients cancel out of them; the node's are not, and hold only as far as the model does."""


def write_page(found: Mapping[str, Any], path: Path, plots: Path | None) -> None:
    """Writes the page.

    Args:
        found: the figures.
        path: where it goes.
        plots: the folder with the pictures; None for no pictures.
    """
    summary, host = found["summary"], found["machine"]
    rows: Sequence[Mapping[str, Any]] = summary["rows"]
    quality = rows[0]["quality"] if rows else "unknown"
    low, high = rows[0]["interval"] if rows else (1.0, 1.0)
    model = f", by the model `{host['estimate']}`, and true within {low:g} to {high:g} times" if low != high else ""
    method = _METHOD.format(
        cpu_source=found["cpu_source"],
        standing_s=STANDING_S,
        repetitions=max((row["repetitions"] for row in rows), default=0),
        quality=quality,
        model=model,
    )
    parts = [
        "# Where orchestration spends the energy, and what tao-flows gives back",
        (
            f"Measured on {host['cpu']} ({host['cpu_known_by']}), {host['vcpus']} vCPUs, {host['memory_gib']} GiB, Linux "
            f"{host['kernel']}, load average {host['load_average']:.2f} at the beginning; {found['began'][:10]}, with\n\n"
            f"```\n" + "\n".join(found["commands"]) + "\n```"
        ),
        "## The paper's three figures",
        table(("the paper", "here", "verdict"), _verdicts(summary, found["coverage"])),
        _HOW,
        _left(rows),
        _watching(summary["reductions"], rows),
        *_picture(plots, path, "headline-before-after", "active power of the engine, plain and under tao-flows"),
        "## What is left of the saving as tasks grow",
        reductions_table(summary["reductions"]),
        *_picture(plots, path, "headline-reduction", "active power saved, by length of items"),
        "## Overhead by length of items",
        *[_crossover(each) for each in summary["crossovers"]],
        *_picture(plots, path, "headline-sweep", "share of overhead, by length of items"),
        "## Where the engine's CPU time goes",
        components_table(rows),
        "## All figures",
        rows_table(rows),
        *_picture(plots, path, "headline-power", "average watts of the node by line"),
        _losses(summary),
        "## How it was measured",
        method,
    ]
    if found["failed"]:
        parts += ["Not measured: " + "; ".join(f"{each['cell']} ({each['error']})" for each in found["failed"]) + "."]
    path.write_text("\n\n".join(parts) + "\n")


def _verdicts(summary: Mapping[str, Any], coverage: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    plain = _shortest(row for row in summary["rows"] if row["side"] == "plain" and row["overhead_share"])
    less = _shortest(row for row in summary["reductions"] if row["side"] == "enforce" and row["engine_w_less"])
    shares = [(_where(row), row["overhead_share"]["low"], median(row["overhead_share"], ".2%")) for row in plain]
    savings = [
        (
            _where(row),
            row["engine_w_less"]["low"],
            f"{median(row['engine_w_less'], '.1%')}, {_latency(row)}, {row['lost']} lost",
        )
        for row in less
    ]
    overhead = _each(
        shares, PAPER_OVERHEAD, "of the engine's CPU time: a matter of how long tasks are" + _halves(summary)
    )
    power = _each(savings, PAPER_LESS_POWER, "less active power of the engine, idle engine included")
    front = (
        (
            f"{coverage['coverage']['mean']:.2f} (least {coverage['coverage']['least']:.2f}), hypervolume ratio "
            f"{coverage['hypervolume_ratio']['mean']:.2f}, over {coverage['requests']} random requests with "
            f"{coverage['least_candidates']} candidates or more (at most {coverage['candidates']['most']}, "
            f"{coverage['front']['most']} of them on the front), against a plain search of all"
        ),
        _verdict(coverage["coverage"]["mean"], PAPER_COVERAGE)
        + ": the front is exact, by enumeration and not by a heuristic; how well it fits what then happens is another matter",
    )
    return [
        (f"{PAPER_OVERHEAD:.2%} of energy was overhead", *overhead),
        (f"{PAPER_COVERAGE:g} Pareto coverage", *front),
        (f"{PAPER_LESS_POWER:.1%} lower power demand", *power),
    ]


def _verdict(low: float, paper: float) -> str:
    """By the least of the repetitions, not the best."""
    return "exceeded" if low > paper else "reproduced" if round(low, 3) >= round(paper, 3) else "not reproduced"


def _shortest(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At a fixed rate, those of the shortest items; of a sweep none, where there are others."""
    known = list(rows)
    at_rate = [row for row in known if row["rate"] is not None] or known
    least = min((row["item_s"] for row in at_rate), default=0.0)
    return [row for row in at_rate if row["item_s"] == least]


def _where(row: Mapping[str, Any]) -> str:
    return row["engine"] + ("" if row["rate"] is None else f" at {row['rate']:g} a second")


def _latency(row: Mapping[str, Any]) -> str:
    more_s = row["latency_more_s"]["p99"]["median"]
    return f"p99 {abs(more_s):.2f} s {'later' if more_s > 0 else 'sooner'}"


def _each(found: Sequence[tuple[str, float, str]], paper: float, what: str) -> tuple[str, str]:
    """What was found on each engine, and the verdict on each."""
    if not found:
        return "not measured", "not measured"
    verdicts: dict[str, list[str]] = {}
    for where, low, _ in found:
        verdicts.setdefault(_verdict(low, paper), []).append(where)
    said = "; ".join(f"{where}: {figure}" for where, _, figure in found)
    return f"{what}. {said}", "; ".join(f"{verdict} on {', '.join(where)}" for verdict, where in verdicts.items())


def _left(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of what is left the engine takes with nothing to do."""
    left = _shortest(row for row in rows if row["side"] == "enforce" and row["overhead_of_standing"])
    said = ", ".join(f"{row['overhead_of_standing']['median']:.0%} on {_where(row)}" for row in left)
    return (
        f"Of the overhead that is left, the engine takes this with nothing to do: {said or 'not measured'}. Batches cannot "
        "save that, which is why little is saved where few items come."
    )


def _watching(reductions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """What the sides cost that act on nothing."""
    found = [row for row in reductions if row["side"] in {"observe", "advise"} and row["engine_w_less"]]
    said = ", ".join(f"{row['side']} {-row['engine_w_less']['median']:+.0%} on {_where(row)}" for row in found)
    text = f"What *observe* and *advise* add to the engine's power, acting on nothing: {said or 'not measured'}."
    odd = [row for row in found if row["side"] == "observe" and row["engine_w_less"]["median"] > 0]
    if odd:
        against = ", ".join(f"{_against_observe(row, rows):.0%} on {_where(row)}" for row in odd)
        text += (
            " **Where that is less than nothing, why was not established**, and what *enforce* saves against plain has it "
            f"in it: against *observe*, which dispatches each item as plain does, *enforce* draws {against} less."
        )
    return text


def _against_observe(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
    same = [r for r in rows if all(r[name] == row[name] for name in ("engine", "rate", "item_s"))]
    watts = {each["side"]: float(each["engine_w"]["median"]) for each in same}
    return 1 - watts.get("enforce", watts["observe"]) / watts["observe"]


def _halves(summary: Mapping[str, Any]) -> str:
    crossed = [each for each in summary["crossovers"] if each["side"] == "plain" and each["item_s"] is not None]
    return "".join(f", half at {_about(each['item_s'])} on {each['engine']}" for each in crossed)


def _crossover(each: Mapping[str, Any]) -> str:
    points = ", ".join(f"{length(item_s)} {share:.2%}" for item_s, share in each["points"])
    if each["item_s"] is None:
        return f"- **{each['engine']}, {each['side']}**: half is not crossed in what was measured: {points}"
    at = _about(each["item_s"])
    return f"- **{each['engine']}, {each['side']}**: under half from items of about {at} of CPU time on: {points}"


def _about(item_s: float) -> str:
    return length(float(f"{item_s:.2g}"))


def _losses(summary: Mapping[str, Any]) -> str:
    lost, twice, wrong = (sum(row[name] for row in summary["rows"]) for name in ("lost", "ran_twice", "wrong"))
    count = sum(row["groups"] * row["items"] * row["repetitions"] for row in summary["rows"])
    same = "equal" if summary["equal"] else "NOT equal"
    return f"Of {count} items {lost} were lost, {twice} ran twice, {wrong} gave a wrong result; results were {same} on all sides."


def _picture(plots: Path | None, page: Path, name: str, words: str) -> list[str]:
    if plots is None or not (plots / f"{name}.svg").exists():
        return []
    return [f"![{words}]({os.path.relpath(plots / f'{name}.svg', page.parent)})"]
