"""Records on their way to a ledger: one JSON object a line, the same in a spool's file and in a request.

``{"v":1,"kind":"task","body":{...}}``, with ``"run":{...}`` beside an account: it belongs to a run, and its body does
not say to which. The body is the record as a ledger keeps it.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from tao_flows.errors import LedgerError
from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import DecisionRecord, HostAccount, Incident, ProcessEnvironment, RunRecord, TaskRecord

VERSION: Final = 1
MAX_RECORD_BYTES: Final = 1 << 20
"""The longest line."""
BAD_RECORD: Final = "LEDGER_BAD_RECORD"
_INT_BOUND: Final = 1 << 63
"""Every ledger's whole numbers have 64 bits."""

Record = RunRecord | TaskRecord | DecisionRecord | HostAccount | Incident | ProcessEnvironment
_KINDS: Final[Mapping[str, type[Any]]] = {
    "task": TaskRecord,
    "run": RunRecord,
    "decision": DecisionRecord,
    "account": HostAccount,
    "incident": Incident,
    "environment": ProcessEnvironment,
}
_NAMES: Final = {record: kind for kind, record in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A record, and what a ledger must know beside it."""

    record: Record
    run: RunRef | None = None
    """The run an account belongs to."""


class RefusedError(LedgerError):
    """One record was refused for what it is: no later try would have it taken."""


def is_refusal(error: BaseException) -> bool:
    """Whether an error is the record's fault. Any other is an outage: the record can be written later."""
    return isinstance(error, RefusedError) or (isinstance(error, LedgerError) and error.code == BAD_RECORD)


def encode(entry: Entry) -> bytes:
    """An entry as one line, without its newline.

    Raises:
        LedgerError: LEDGER_BAD_RECORD, it has no JSON form, or a longer one than ``MAX_RECORD_BYTES``.
    """
    run = "" if entry.run is None else f',"run":{codec.dump(entry.run)}'
    kind = _NAMES[type(entry.record)]
    line = f'{{"v":{VERSION},"kind":"{kind}"{run},"body":{codec.dump(entry.record)}}}'.encode("ascii")
    if len(line) > MAX_RECORD_BYTES:
        raise codec.bad_record(type(entry.record).__name__, f"it takes more than {MAX_RECORD_BYTES} bytes")
    return line


def decode(line: bytes) -> Entry:
    """The entry of a line. Fields this version does not know are left out of the record.

    Raises:
        RefusedError: RECORD_TOO_LARGE; RECORD_UNREADABLE, no JSON object; RECORD_VERSION; RECORD_KIND;
            RECORD_MALFORMED, a field is missing or of the wrong kind.
    """
    if len(line) > MAX_RECORD_BYTES:
        raise RefusedError("RECORD_TOO_LARGE", f"a record takes more than {MAX_RECORD_BYTES} bytes")
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedError("RECORD_UNREADABLE", f"a record is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise RefusedError("RECORD_UNREADABLE", "a record is no JSON object")
    if said.get("v") != VERSION:
        raise RefusedError("RECORD_VERSION", f"records of version {said.get('v')!r:.20}", "upgrade tao-flows here")
    kind = said.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RefusedError("RECORD_KIND", f"records of kind {kind!r:.40}", "upgrade tao-flows here")
    record = _read(_KINDS[kind], said.get("body"))
    if kind != "account":
        return Entry(record)
    return Entry(record, _read(RunRef, said.get("run")))


def deliver(ledger: Ledger, entry: Entry) -> None:
    """Writes an entry into a ledger.

    Raises:
        LedgerError: as the ledger does.
    """
    record = entry.record
    if isinstance(record, TaskRecord):
        ledger.put_task(record)
    elif isinstance(record, RunRecord):
        ledger.put_run(record)
    elif isinstance(record, DecisionRecord):
        ledger.put_decision(record)
    elif isinstance(record, Incident):
        ledger.put_incident(record)
    elif isinstance(record, ProcessEnvironment):
        ledger.put_environment(record)
    elif entry.run is not None:
        ledger.put_account(entry.run, record)


def _read(cls: type[Any], value: object) -> Any:
    try:
        record = codec.read(cls, value)
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError("RECORD_MALFORMED", f"this is no {cls.__name__}: {error}") from None
    wrong = _wrong(record, cls, cls.__name__)
    if wrong:
        raise RefusedError("RECORD_MALFORMED", f"{wrong} has a value of the wrong kind")
    return record


def _wrong(value: Any, hint: Any, name: str) -> str:
    """Where a value is not of its declared type; empty where it is throughout."""
    if get_origin(hint) in (Union, types.UnionType):
        return "" if value is None else _wrong(value, get_args(hint)[0], name)
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return next(filter(None, (_wrong(item, inner, f"{name}[{n}]") for n, item in enumerate(value))), "")
    if isinstance(hint, type) and is_dataclass(hint):
        parts = _hints(hint)
        wrongs = (_wrong(getattr(value, f.name), parts[f.name], f"{name}.{f.name}") for f in fields(hint))
        return next(filter(None, wrongs), "") if isinstance(value, hint) else name
    return "" if _is_plain(value, hint) else name


@cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _is_plain(value: Any, hint: Any) -> bool:
    if get_origin(hint) is not None:
        return isinstance(value, dict)  # a mapping's content is its author's
    if hint is int:
        return type(value) is int and -_INT_BOUND <= value < _INT_BOUND
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if isinstance(hint, type) and issubclass(hint, (str, bool, Enum)):
        return isinstance(value, hint)
    return True
