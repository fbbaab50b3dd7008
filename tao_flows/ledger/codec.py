"""Records to rows and back.

A row's ``body`` is the whole record as canonical JSON: reading needs nothing else, and two bodies can be compared.
The other columns repeat what is searched and summed.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from tao_flows.errors import InputError, LedgerError
from tao_flows.figures import Figure
from tao_flows.ledger.base import RunRef
from tao_flows.records import (
    UNSEEN_RUN,
    DecisionRecord,
    HostAccount,
    Incident,
    ProcessEnvironment,
    RunKey,
    RunRecord,
    TaskRecord,
    TaskState,
    Who,
)
from tao_flows.signals.times import ns_from_iso

Row = dict[str, Any]
T = TypeVar("T")

LOST_RUN: Final = "lost"
"""State of a run whose process is gone without an end."""

# How much is known of a try or a run: an end says more than a loss, a loss more than a start; and an end whose
# figures are complete more than one that waits for them.
_STARTED, _LOST, _ENDED, COMPLETE = range(4)


def dump(record: object) -> str:
    """A record as canonical JSON: every field, keys sorted.

    Raises:
        LedgerError: LEDGER_BAD_RECORD, something in it has no JSON form.
    """
    try:
        return json.dumps(record, default=_plain, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise bad_record(type(record).__name__, error) from error


def bad_record(what: str, error: object) -> LedgerError:
    """The error for a record that no ledger could keep."""
    return LedgerError(
        "LEDGER_BAD_RECORD",
        f"{what} cannot be written: {error}",
        "keep to numbers, texts, lists and mappings with text keys in what is given to tao-flows",
    )


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def load(cls: type[T], body: str) -> T:
    """The record of a body. Fields the body lacks take their defaults; fields this version does not know are left.

    Raises:
        LedgerError: LEDGER_CORRUPT, the body is no such record.
    """
    try:
        return read(cls, json.loads(body))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise LedgerError(
            "LEDGER_CORRUPT",
            f"a stored {cls.__name__} cannot be read: {error}",
            "restore a backup, or move the ledger away: a new one is then begun",
        ) from error


def read(cls: type[T], value: object) -> T:
    """The record that a decoded JSON value is. As ``load``, but raises what is wrong as Python says it."""
    hint: Any = cls
    record: T = _reader(hint)(value)
    return record


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """What turns a JSON value into a value of the type ``hint``."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = _reader(get_args(hint)[0])
        return lambda value: None if value is None else inner(value)
    if get_origin(hint) is tuple:
        inner = _reader(get_args(hint)[0])
        return lambda value: tuple(inner(item) for item in value)
    if isinstance(hint, type) and is_dataclass(hint):
        readers = {name: _reader(field_hint) for name, field_hint in get_type_hints(hint).items()}
        return lambda value: hint(**{name: readers[name](item) for name, item in value.items() if name in readers})
    return hint if isinstance(hint, type) and issubclass(hint, Enum) else _as_it_is


def _as_it_is(value: Any) -> Any:
    return value


def run_row(run: RunRecord) -> Row:
    """The row of a run."""
    lost = _LOST if run.state == LOST_RUN else _STARTED
    seen = run.state != UNSEEN_RUN
    return {
        "engine": run.engine,
        "namespace": run.namespace,
        "flow": run.flow,
        "run_id": run.run_id,
        "name": run.name,
        "state": run.state,
        **_times(lost if run.ended_wall_ns is None else _ENDED, run.started_wall_ns, run.ended_wall_ns),
        **_who(run.who),
        "host": run.segment.host,
        "segment": run.segment.id,
        "body": dump(run),
        # Only what is known of the run itself has a time to win by.
        **({} if seen else {"last_wall_ns": 0}),
    }


def task_row(record: TaskRecord) -> Row:
    """The row of a segment of a try."""
    measurement = record.measurement
    energy = measurement.energy if measurement else Figure.unknown(record.key.task)
    ended = _ENDED if measurement is not None and measurement.pending else COMPLETE
    phase = {TaskState.RUNNING: _STARTED, TaskState.LOST: _LOST}.get(record.state, ended)
    return {
        **_key(record.key),
        "segment": record.segment.id,
        "host": record.segment.host,
        "state": record.state.value,
        **_times(phase, record.started_wall_ns, record.ended_wall_ns),
        "pool": record.pool,
        "budget": record.budget,
        "size": record.size,
        **_who(record.who),
        "method": measurement.method if measurement else record.method,
        "energy_uj": energy.value_uj,
        "low_uj": energy.low_uj,
        "high_uj": energy.high_uj,
        "quality": energy.quality.value,
        "sources": dump(energy.sources),
        "coverage": energy.coverage,
        "cpu_s": measurement.cpu_s if measurement else None,
        "wall_s": measurement.wall_s if measurement else None,
        "body": dump(record),
    }


def decision_row(record: DecisionRecord) -> Row:
    """The row of a decision."""
    about = record.request.get("task")
    task: Mapping[str, Any] = about if isinstance(about, Mapping) else {}
    home_pool = task.get("home_pool")
    return {
        **_key(record.key),
        "decided_wall_ns": record.decided_wall_ns,
        "mode": record.mode,
        "action": record.action,
        "pool": record.pool,
        "reason": record.reason,
        "home_pool": home_pool if isinstance(home_pool, str) else None,
        "ready_wall_ns": _moment_ns(task.get("ready_at")),
        "deadline_wall_ns": _moment_ns(task.get("deadline")),
        "enforced": int(record.enforced),
        "body": dump(record),
    }


def account_row(run: RunRef, account: HostAccount) -> Row:
    """The row of the account of one host and window of a run."""
    return {
        "engine": run.engine,
        "namespace": run.namespace,
        "flow": run.flow,
        "run_id": run.run_id,
        "host": account.host,
        "time_window": account.window,
        "wall_s": account.wall_s,
        "tasks_uj": account.account.tasks_uj,
        "overhead_uj": account.account.overhead_uj,
        "body": dump(account),
    }


def incident_row(incident: Incident) -> Row:
    """The row of one occurrence of an incident."""
    return {f.name: getattr(incident, f.name) for f in fields(incident)}


def environment_rows(record: ProcessEnvironment) -> tuple[Row, Row]:
    """The row of an environment, and that of a process in it."""
    body = dump(record.body)
    digest = hashlib.sha256(body.encode()).hexdigest()
    segment = record.segment
    process = {"process": segment.process, "host": segment.host, "seen_wall_ns": record.seen_wall_ns}
    return {"digest": digest, "body": body}, {**process, "digest": digest}


def _moment_ns(text: object) -> int | None:
    """A time of a recorded request, which may hold anything; None where it is none."""
    try:
        return ns_from_iso(text) if isinstance(text, str) else None
    except InputError:
        return None


def _key(key: RunKey) -> Row:
    return {f.name: getattr(key, f.name) for f in fields(key)}


def _who(who: Who) -> Row:
    return {"team": who.team, "owner": who.owner, "cluster": who.cluster, "model_id": who.model_id}


def _times(phase: int, started_wall_ns: int, ended_wall_ns: int | None) -> Row:
    # The wall clock can be set back between a start and its end: an end is never older than its own start.
    last_wall_ns = max(started_wall_ns, ended_wall_ns or started_wall_ns)
    return {
        "phase": phase,
        "started_wall_ns": started_wall_ns,
        "ended_wall_ns": ended_wall_ns,
        "last_wall_ns": last_wall_ns,
    }
