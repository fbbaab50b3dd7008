"""What the node agent and its clients say to each other.

A Unix socket of type SOCK_SEQPACKET, one JSON object a message. A request has ``op`` and ``seq``; its answer has the
same ``seq``, and ``ok``. Answers to ``end`` can come later than those to requests made after it.

    hello    {role}                          -> {agent, privileged, cpu_source, cpu_lower_bound, domains, ...}
    begin    {kind, label, pid?, tid?, pool?}       -> {window, token}
    end      {window, token, cpu_ns?, keep?} -> {figure}
    status   {}                              -> {status}

``begin`` opens a window over one of five kinds of party: ``command``, a process of the client's and all that it starts
(``pid``); ``thread``, one thread of the client's and all that it starts (``tid``), with threads of its process that
serve whatever task calls them (``pool``), while it is the only task there; ``steps``, code that gives its
thread away between steps, whose CPU time only the client can tell (``cpu_ns`` of ``end``) and whose joules are a part
of those of the client's own process; ``process``, the client's own process, with ``cpu_ns`` of it the user's code and
the rest the engine's, and all that engines' other processes use; ``self``, the same without those. Process and thread numbers are those that the client sees. ``keep`` leaves the window open.

A client is privileged when it runs as root or as the agent's user, and not in another's container; or as a member of
the group that the agent was told to trust. Others get their own joules and nothing of the host's, over spans of at least a second, in whole millijoules: counters read finely leak secrets (CVE-2020-8694).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from tao_flows.errors import InputError

VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 4_096
MAX_ANSWER_BYTES: Final = 65_536
MAX_LABEL: Final = 200
MAX_POOL: Final = 256
_MOST: Final = 2**63 - 1

Kind = Literal["command", "thread", "steps", "process", "self"]
ClientRole = Literal["engine", "tool", "none"]
"""What a client's own process is, beside the windows it opens: an engine's, tao-flows' own command, or neither."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first request."""

    seq: int
    role: ClientRole


@dataclass(frozen=True, slots=True)
class Begin:
    """Opens a window."""

    seq: int
    kind: Kind
    label: str
    pid: int | None
    tid: int | None
    pool: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """Asks for a window's figure."""

    seq: int
    window: str
    token: str
    cpu_ns: int | None
    keep: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Asks how the agent is."""

    seq: int


Request = Hello | Begin | End | Status


def encode(message: Mapping[str, Any]) -> bytes:
    """A message's bytes."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode(raw: bytes) -> dict[str, Any]:
    """A message from its bytes.

    Raises:
        InputError: BAD_MESSAGE, it is no JSON object.
    """
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        raise _bad("it is no JSON") from None
    if not isinstance(message, dict):
        raise _bad("it is no JSON object")
    return message


def parse_request(raw: bytes) -> Request:
    """A request from its bytes.

    Raises:
        InputError: BAD_MESSAGE, it is too long, or a field is missing or malformed.
    """
    if len(raw) > MAX_REQUEST_BYTES:
        raise _bad(f"it is longer than {MAX_REQUEST_BYTES} bytes")
    message = decode(raw)
    seq = _number(message, "seq")
    op = message.get("op")
    if op == "hello":
        if message.get("v") != VERSION:
            raise _bad(
                f"it speaks version {message.get('v')!r} and this agent {VERSION}", "upgrade the older of the two"
            )
        return Hello(seq, _choice(message, "role", get_args(ClientRole)))
    if op == "begin":
        label = message.get("label", "")
        if not isinstance(label, str) or len(label) > MAX_LABEL:
            raise _bad(f"label is no text of up to {MAX_LABEL} characters")
        kind = _choice(message, "kind", get_args(Kind))
        return Begin(seq, kind, label, _optional(message, "pid"), _optional(message, "tid"), _pool(message))
    if op == "end":
        window, token, keep = message.get("window"), message.get("token"), message.get("keep", False)
        if not isinstance(window, str) or not isinstance(token, str) or not isinstance(keep, bool):
            raise _bad("end needs window and token, two texts")
        return End(seq, window, token, _optional(message, "cpu_ns"), keep)
    if op == "status":
        return Status(seq)
    raise _bad(f"op is {op!r:.40}")


def failure(seq: int, code: str, summary: str, remedy: str = "") -> dict[str, Any]:
    """The answer to a request that came to nothing."""
    return {"seq": seq, "ok": False, "code": code, "summary": summary, "remedy": remedy}


def _bad(why: str, remedy: str = "see tao_flows/agent/wire.py") -> InputError:
    return InputError("BAD_MESSAGE", f"the agent does not understand this message: {why}", remedy)


def _number(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or not 0 <= value <= _MOST:
        raise _bad(f"{name} is no whole number")
    return value


def _optional(message: Mapping[str, Any], name: str) -> int | None:
    return None if message.get(name) is None else _number(message, name)


def _pool(message: Mapping[str, Any]) -> tuple[int, ...]:
    pool = message.get("pool", [])
    if not isinstance(pool, list) or len(pool) > MAX_POOL or not all(type(each) is int and each > 0 for each in pool):
        raise _bad(f"pool is no list of up to {MAX_POOL} thread numbers")
    return tuple(pool)


def _choice(message: Mapping[str, Any], name: str, choices: tuple[Any, ...]) -> Any:
    value = message.get(name)
    if value not in choices or not isinstance(value, str):
        raise _bad(f"{name} is {value!r:.40}, not one of {', '.join(choices)}")
    return value


def _fields(document: Mapping[str, Any], *nullable: str) -> dict[str, Any]:
    """Fields for a record: those that may be None and were left out, and codes as a tuple."""
    fields: dict[str, Any] = dict.fromkeys(nullable or ("task_uj", "low_uj", "high_uj")) | dict(document)
    return fields | {"codes": tuple(fields.get("codes", ()))}


@dataclass(frozen=True, slots=True)
class FigureDomain:
    """One domain of a figure, in whole microjoules; what the client may not see, or is not known, is None."""

    id: str
    task_uj: int | None
    low_uj: int | None
    high_uj: int | None
    quality: str
    known: float = 1.0
    """The share of the span in which it was known."""
    counter_uj: int | None = None
    idle_uj: int | None = None
    overhead_uj: int | None = None
    allocated_idle_uj: int | None = None
    unattributed_uj: int | None = None
    codes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentFigure:
    """What a window came to, as the agent says it."""

    wall_ns: int
    cpu_ns: int | None
    """Of the party; of ``steps``, what the client said."""
    cpu_source: str
    lower_bound: bool
    domains: tuple[FigureDomain, ...]
    gap_ns: int = 0
    """Time in which the agent did not watch: it was restarted."""
    codes: tuple[str, ...] = ()
    overhead_cpu_ns: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The form on the wire; what is None or empty is left out."""
        document = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        document["domains"] = [
            {name: value for name, value in asdict(domain).items() if value not in (None, ())}
            for domain in self.domains
        ]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AgentFigure:
        """A figure from the form on the wire.

        Raises:
            InputError: BAD_MESSAGE.
        """
        try:
            domains = tuple(FigureDomain(**_fields(domain)) for domain in document["domains"])
            return cls(**{**_fields(document, "cpu_ns"), "domains": domains})
        except (TypeError, KeyError, AttributeError):
            raise _bad("the figure has fields that this version does not know") from None
