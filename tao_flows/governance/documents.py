"""Our own documents of a bundle: ``run.json``, ``energy.json``, ``violations.json``, ``environment.json``.

Energies are whole microjoules as texts, the ledger's own digits; so are times in nanoseconds. What has a row for each
task or decision is written as it is read. JSON Schemas of all of them are in ``schema/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, BinaryIO, Final

import tao_flows
from tao_flows.clock import iso_from_ns
from tao_flows.figures import Account, DomainEnergy, Figure, Measurement
from tao_flows.governance.facts import Facts
from tao_flows.governance.retention import retention_json
from tao_flows.records import DecisionRecord, RunKey, RunRecord, TaskRecord
from tao_flows.report.rows import finite, method_of, who_json

RUN: Final = "run.json"
ENERGY: Final = "energy.json"
ENVIRONMENT: Final = "environment.json"
_VERSION: Final = 1
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
_INDENTED: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1)


def write_json(file: BinaryIO, document: Mapping[str, Any]) -> None:
    """Writes a document that is held whole."""
    file.write(_INDENTED.encode(document).encode() + b"\n")


def write_rows(file: BinaryIO, document: Mapping[str, Any], rows_name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a document with a list that is never held: a line for each of its rows."""
    file.write(_INDENTED.encode(document).encode().removesuffix(b"\n}") + f',\n "{rows_name}": ['.encode())
    mark = b"\n  "
    for row in rows:
        file.write(mark + _ENCODER.encode(row).encode())
        mark = b",\n  "
    file.write(b"\n ]\n}\n")


def schema_id(document: str) -> str:
    """The ``schema`` of a document: its name and its version."""
    return f"tao-flows/bundle/{document}/{_VERSION}"


def write_run(file: BinaryIO, facts: Facts, *, entries: int, retention: str, left_out: Mapping[str, str]) -> None:
    """``run.json``: which run it is, and whether its record is complete.

    Args:
        file: where to.
        facts: of the run.
        entries: of the bundle's log.
        retention: the setting.
        left_out: documents that could not be made, and why.
    """
    run, report = facts.run, facts.report
    document = {
        "schema": schema_id("run"),
        "run": {
            **run_json(run),
            "name": run.name,
            "state": run.state,
            "started": moment(report.run.started_wall_ns),
            "ended": moment(run.ended_wall_ns),
            "wall_s": finite(report.wall_s),
            "who": who_json(run.who),
        },
        "complete": facts.complete and not left_out,
        "gaps": [
            *({"code": g.code, "summary": g.summary, "count": g.count, "tasks": list(g.tasks)} for g in facts.gaps),
            *(
                {"code": "DOCUMENT_LEFT_OUT", "summary": f"{name}: {why}", "count": 1, "tasks": []}
                for name, why in left_out.items()
            ),
        ],
        "records": facts.stamp.records,
        "log_entries": entries,
        "tries": len(report.tasks),
        "pools": sorted({row.pool for row in report.tasks if row.pool}),
        "environments": [each.digest for each in facts.environments],
        "read": moment(facts.read_wall_ns),
        "recorded_by": {"package": "tao-flows", "version": tao_flows.__version__},
        "retention": retention_json(retention, run.ended_wall_ns or facts.read_wall_ns),
    }
    write_json(file, document)


def write_energy(file: BinaryIO, facts: Facts) -> None:
    """``energy.json``: every figure as the ledger has it, by task, segment and domain, and the accounts of the hosts.

    Raises:
        LedgerError: the tasks cannot be read.
    """
    report = facts.report
    body = report.flow_body
    document = {
        "schema": schema_id("energy"),
        "run": run_json(facts.run),
        "tasks_total": figure_json(report.energy),
        "by_quality_uj": {str(quality): str(uj) for quality, uj in report.by_quality_uj.items()},
        "account": account_json(report.account),
        "overhead_share": report.overhead_share,
        "inversion": report.inversion,
        "windows": [
            {
                "host": each.host,
                "window": each.window,
                "wall_s": finite(each.wall_s),
                "account": account_json(each.account),
                "events": list(each.events),
            }
            for each in facts.accounts
        ],
        "flow_body": None if body is None else {"energy": figure_json(body.energy), "cpu_s": finite(body.cpu_s)},
        "methods": list(report.methods),
        "models": list(report.models),
        "cpu_sources": list(report.cpu_sources),
        "notes": list(report.notes),
    }
    write_rows(file, document, "tasks", tries_json(facts.tasks()))


def write_environment(file: BinaryIO, facts: Facts) -> None:
    """``environment.json``: what the processes ran in."""
    document = {
        "schema": schema_id("environments"),
        "run": run_json(facts.run),
        "environments": [
            {"digest": each.digest, "processes": each.processes, "hosts": list(each.hosts), "body": dict(each.body)}
            for each in facts.environments
        ],
    }
    write_json(file, document)


def entry_of(decision: DecisionRecord, *, reduced: str = "") -> dict[str, Any]:
    """A decision as an entry of the log.

    Args:
        decision: cleaned.
        reduced: why its request and answer are left out; empty where they are there.
    """
    return {
        "kind": "decision",
        "key": key_json(decision.key),
        "decided": moment(decision.decided_wall_ns),
        "mode": decision.mode,
        "action": decision.action,
        "pool": decision.pool,
        "reason": decision.reason,
        "enforced": decision.enforced,
        "request": {} if reduced else dict(decision.request),
        "answer": {} if reduced else dict(decision.answer),
        "reduced": reduced,
    }


def tries_json(tasks: Iterable[TaskRecord]) -> Iterator[dict[str, Any]]:
    """A row for each try, from segments of which those of one try follow one another."""
    for key, found in groupby(tasks, key=lambda record: record.key):
        yield _try_json(key, sorted(found, key=lambda record: record.started_wall_ns))


def _try_json(key: RunKey, segments: list[TaskRecord]) -> dict[str, Any]:
    last = segments[-1]
    return {
        "task": key.task,
        "instance": key.instance,
        "try_number": key.try_number,
        "flow": key.flow,
        "label": last.task_label or key.task,
        "map_index": last.map_index,
        "pool": last.pool,
        "budget": last.budget,
        "size": finite(last.size),
        "state": last.state.value,
        "who": who_json(last.who),
        "started": moment(segments[0].started_wall_ns),
        "ended": moment(last.ended_wall_ns),
        "energy": figure_json(Figure.total(_energy(record) for record in segments)),
        "segments": [_segment_json(record) for record in segments],
    }


def _energy(record: TaskRecord) -> Figure:
    if record.measurement is not None:
        return record.measurement.energy
    return Figure.unknown(f"{record.task_label or record.key.task}: {record.state}")


def _segment_json(record: TaskRecord) -> dict[str, Any]:
    return {
        "segment": record.segment.id,
        "host": record.segment.host,
        "state": record.state.value,
        "started": moment(record.started_wall_ns),
        "ended": moment(record.ended_wall_ns),
        "method": method_of(record),
        "measurement": None if record.measurement is None else _measurement_json(record.measurement),
    }


def _measurement_json(measured: Measurement) -> dict[str, Any]:
    cpu = measured.cpu
    return {
        "wall_s": finite(measured.wall_s),
        "cpu": {
            "cpu_s": finite(cpu.cpu_s),
            "source": cpu.source,
            "covers_children": cpu.covers_children,
            "lower_bound": cpu.lower_bound,
        },
        "energy": figure_json(measured.energy),
        "domains": [_domain_json(domain) for domain in measured.domains],
        "events": list(measured.events),
        "model": measured.model,
        "baseline": measured.baseline,
        "memory_bytes": _text(measured.memory_bytes),
    }


def _domain_json(domain: DomainEnergy) -> dict[str, Any]:
    return {
        "domain": domain.domain,
        "source": domain.source,
        "kind": domain.kind,
        "counter_uj": _text(domain.counter_uj),
        "idle_uj": _text(domain.idle_uj),
        "allocated_idle_uj": _text(domain.allocated_idle_uj),
        "task_uj": _text(domain.task_uj),
        "quality": domain.quality.value,
        "counted": domain.counted,
        "events": list(domain.events),
    }


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure in whole microjoules; null is unknown."""
    return {
        "value_uj": _text(figure.value_uj),
        "low_uj": _text(figure.low_uj),
        "high_uj": _text(figure.high_uj),
        "quality": figure.quality.value,
        "sources": list(figure.sources),
        "coverage": figure.coverage,
        "unknown_parts": list(figure.unknown_parts),
    }


def account_json(account: Account) -> dict[str, Any]:
    """An account in whole microjoules; null is unknown."""
    return {
        "counter_uj": _text(account.counter_uj),
        "estimate_uj": _text(account.estimate_uj),
        "tasks_uj": _text(account.tasks_uj),
        "overhead_uj": _text(account.overhead_uj),
        "idle_uj": _text(account.idle_uj),
        "allocated_idle_uj": _text(account.allocated_idle_uj),
        "unattributed_uj": _text(account.unattributed_uj),
        "quality": account.quality.value,
        "unknown_parts": list(account.unknown_parts),
    }


def run_json(run: RunRecord) -> dict[str, str]:
    """What names a run."""
    return {"engine": run.engine, "namespace": run.namespace, "flow": run.flow, "run_id": run.run_id}


def key_json(key: RunKey) -> dict[str, Any]:
    """What names a try."""
    return {
        "engine": key.engine,
        "namespace": key.namespace,
        "flow": key.flow,
        "run_id": key.run_id,
        "task": key.task,
        "instance": key.instance,
        "try_number": key.try_number,
    }


def moment(wall_ns: int | None) -> dict[str, str] | None:
    """A time for people, and exactly: nanoseconds since the Unix epoch. None where there is none."""
    if wall_ns is None:
        return None
    return {"time": iso_from_ns(wall_ns) or "", "wall_ns": str(wall_ns)}


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
