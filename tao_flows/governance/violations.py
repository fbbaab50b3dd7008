"""``violations.json``: constraints that were not kept, budgets and deadlines overrun, and failures of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from tao_flows.errors import InputError
from tao_flows.governance.documents import moment, run_json, schema_id, write_rows
from tao_flows.governance.facts import Facts
from tao_flows.records import DecisionRecord, RunKey
from tao_flows.signals.times import ns_from_iso
from tao_flows.units import NS_PER_S

FILE: Final = "violations.json"
DEADLINE_MISSED: Final = "DEADLINE_MISSED"
BUDGET_EXCEEDED: Final = "BUDGET_EXCEEDED"
_REMEDIES: Final = {
    "deadline": "give more time, a faster pool, or let it start earlier",
    "power_cap": "raise the pool's cap, or move work to another pool",
    "thermal": "see the host's cooling, or move work to another pool",
    "ceiling": "raise the budget's ceiling, or run less in its window",
    DEADLINE_MISSED: "give more time, a faster pool, or let it start earlier",
    BUDGET_EXCEEDED: "raise the budget's limit, or run less in its window",
}
_REMEDY: Final = "see the decision in decisions.jsonl for what else was weighed"


def write_violations(file: BinaryIO, facts: Facts) -> None:
    """Writes the document, each violation as it is met.

    Raises:
        LedgerError: the decisions cannot be read.
    """
    document = {"schema": schema_id("violations"), "run": run_json(facts.run)}
    write_rows(file, document, "violations", violations_of(facts))


def violations_of(facts: Facts) -> Iterator[dict[str, Any]]:
    """Every violation: of decisions in order of time, deadlines missed, then failures of ours.

    Raises:
        LedgerError: the decisions cannot be read.
    """
    deadlines: dict[RunKey, int] = {}
    for decision in facts.decisions():
        if (deadline_ns := _deadline_ns(decision)) is not None:
            deadlines[decision.key] = deadline_ns
        yield from _of_decision(decision)
    yield from _missed(facts, deadlines)
    for incident in facts.incidents:
        yield {
            "kind": "incident",
            "code": incident.code,
            "summary": incident.summary,
            "remedy": incident.remedy,
            "when": moment(incident.wall_ns),
            "task": incident.task,
            "instance": None,
            "try_number": None,
            "count": incident.count,
            "figures": {},
        }


def _of_decision(decision: DecisionRecord) -> Iterator[dict[str, Any]]:
    entries = decision.answer.get("violations")
    for entry in entries if isinstance(entries, (list, tuple)) else ():
        said = entry if isinstance(entry, Mapping) else {"id": str(entry)}
        code = str(said.get("id", "constraint"))
        figures = {name: _plain(said.get(name)) for name in ("pool", "value", "limit", "unit", "slack")}
        yield _violation(decision, "constraint", code, "a constraint was not kept", figures)
    utilisation = decision.answer.get("utilisation")
    if isinstance(utilisation, (int, float)) and not isinstance(utilisation, bool) and utilisation > 1:
        budget = decision.request.get("budget")
        given = budget if isinstance(budget, Mapping) else {}
        figures = {name: _plain(given.get(name)) for name in ("limit_j", "spent_j", "reserved_j", "ceiling_j")}
        figures["utilisation"] = _plain(utilisation)
        yield _violation(decision, "budget", BUDGET_EXCEEDED, "spent, reserved and predicted joules exceed it", figures)


def _missed(facts: Facts, deadlines: Mapping[RunKey, int]) -> Iterator[dict[str, Any]]:
    for row in facts.report.tasks:
        deadline_ns = deadlines.get(row.key)
        if deadline_ns is None:
            continue
        ended_ns = row.ended_wall_ns
        late_ns = (facts.read_wall_ns if ended_ns is None else ended_ns) - deadline_ns
        if late_ns > 0:
            yield {
                "kind": "deadline",
                "code": DEADLINE_MISSED,
                "summary": "it ended after its deadline" if ended_ns else "its deadline is over, and it has not ended",
                "remedy": _REMEDIES[DEADLINE_MISSED],
                "when": moment(deadline_ns),
                "task": row.key.task,
                "instance": row.key.instance,
                "try_number": row.key.try_number,
                "count": 1,
                "figures": {"deadline": moment(deadline_ns), "ended": moment(ended_ns), "late_s": late_ns / NS_PER_S},
            }


def _violation(
    decision: DecisionRecord, kind: str, code: str, summary: str, figures: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": kind,
        "code": code,
        "summary": summary,
        "remedy": _REMEDIES.get(code, _REMEDY),
        "when": moment(decision.decided_wall_ns),
        "task": decision.key.task,
        "instance": decision.key.instance,
        "try_number": decision.key.try_number,
        "count": 1,
        "figures": dict(figures),
    }


def _deadline_ns(decision: DecisionRecord) -> int | None:
    task = decision.request.get("task")
    text = task.get("deadline") if isinstance(task, Mapping) else None
    try:
        return ns_from_iso(text) if isinstance(text, str) else None
    except InputError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
