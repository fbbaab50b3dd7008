"""What survives the agent: written down about once a second, so that a new one goes on where the old one was killed.

The span between the last writing and the new agent is a gap: nobody watched, and every figure that has it says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tao_flows.agent import peer as peers
from tao_flows.agent.peer import Peer, Process
from tao_flows.agent.registry import Registry
from tao_flows.agent.sampler import Uncounted
from tao_flows.agent.session import Session, Window
from tao_flows.agent.stamp import Stamp, Usage
from tao_flows.errors import SourceError
from tao_flows.node_account import Lines, Party, Role
from tao_flows.telemetry import procfs

FORM: Final = "tao-flows/agent-state/1"
FILE: Final = "agent.json"
_MOST_BYTES: Final = 64 << 20
_KEPT: Final = ("id", "token", "kind", "label", "base", "owned", "begun_ns", "process", "tid", "serial", "companions")
_NO_PARTY: Final = -1
_USAGES: Final = ("used", "engines", "claimed", "claim")


def save(directory: Path, registry: Registry, now_ns: int) -> None:
    """Writes the state, in one step: a digest on the first line, and what it is of.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    registry.sampler.settle()  # what is not split yet would be in no line
    account = registry.sampler.account
    document = {
        "form": FORM,
        "boot": procfs.boot_id(registry.proc_root),
        "saved_ns": now_ns,
        "domains": [domain.id for domain in registry.sampler.domains],
        "lines": [lines.values() for lines in account.lines],
        "uncounted": {name: asdict(each) for name, each in registry.sampler.uncounted.items()},
        "busy_ns": account.busy_ns,
        "cpu_ns": account.cpu_ns,
        "engines_ended": _dumped(registry.engines.used()),
        "parties": {number: _party(registry, number) for number in account.parties},
    }
    sessions = [_session(session) for session in registry.sessions.values()]
    text = _with_list(document, "sessions", sessions).encode()
    fresh = directory / f"{FILE}.new"
    fresh.unlink(missing_ok=True)
    try:
        # Nobody else's file, whoever may write into the directory: there are tokens in it.
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(b"%b\n%b" % (_digest(text), text))
        fresh.replace(directory / FILE)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def restore(directory: Path, registry: Registry) -> str:
    """Takes up what the last agent left; says on one line what it found, empty for nothing.

    A state that is damaged, of another boot or of other domains is left alone. Never raises.
    """
    path = directory / FILE
    try:
        digest, _, text = _read(path).partition(b"\n")
        if digest != _digest(text):
            return f"{path} is damaged, and is not used"
        return _restore(json.loads(text), registry)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read, and is not used: {error.strerror}"
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return f"{path} is of another version, and is not used: {type(error).__name__}: {error}"


def _read(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        if os.fstat(file.fileno()).st_uid != os.geteuid():
            raise PermissionError(0, "it is another user's")
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise OSError(0, "it is too large to be ours")
    return raw


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _with_list(document: Mapping[str, Any], name: str, texts: Iterable[str]) -> str:
    """The JSON of a document that is not empty, and of a list in it whose members are JSON already."""
    return f'{_json(document)[:-1]},"{name}":[{",".join(texts)}]}}'


def _session(session: Session) -> str:
    document = {
        "peer": {**asdict(session.peer), "groups": sorted(session.peer.groups)},
        "role": session.role,
        "number": session.number,
        "begun": session.begun,
        "claimed": _dumped(session.claimed),
    }
    windows = (_window(window) for window in session.windows.values() if window.ended_ns is None)
    return _with_list(document, "windows", windows)


def _window(window: Window) -> str:
    # Most windows have not changed since the last time, and there can be thousands of them.
    changing = (window.claim, window.spent)
    if window.saved is None or window.saved[0] != changing:
        window.saved = (changing, _json(_window_document(window)))
    return window.saved[1]


def _window_document(window: Window) -> dict[str, Any]:
    return {
        **{name: getattr(window, name) for name in _KEPT},
        "before": _dumped_stamp(window.before),
        **{name: _dumped(getattr(window, name)) for name in _USAGES},
        "spent": None if window.spent is None else _dumped(window.spent),
    }


def _party(registry: Registry, number: int) -> dict[str, Any]:
    party, nested = registry.sampler.account.parties[number], registry.nested.get(number)
    return {
        "energy_uj": party.energy_uj,
        "cpu_ns": party.cpu_ns,
        "lost_ns": party.lost_ns,
        "inside": registry.inside.get(number),
        "nested": None if nested is None else _dumped(nested),
    }


# Not dataclasses.asdict: with hundreds of windows its copies cost more than all the rest.
def _dumped(usage: Usage) -> dict[str, Any]:
    return {"energy_uj": usage.energy_uj, "cpu_ns": usage.cpu_ns, "lost_ns": usage.lost_ns}


def _dumped_stamp(stamp: Stamp) -> dict[str, Any]:
    fields = {name: getattr(stamp, name) for name in stamp.__slots__}
    return {**fields, "lines": [lines.values() for lines in stamp.lines]}


def _restore(document: Mapping[str, Any], registry: Registry) -> str:
    if document["form"] != FORM or document["boot"] != procfs.boot_id(registry.proc_root):
        return "the last agent's state is of another boot or version, and is not used"
    if document["domains"] != [domain.id for domain in registry.sampler.domains]:
        return "the last agent read other domains: its windows are not taken up"
    sampler = registry.sampler
    sampler.account.lines[:] = [Lines(*values) for values in document["lines"]]
    sampler.account.busy_ns = document["busy_ns"]
    sampler.account.cpu_ns.update({Role(name): cpu_ns for name, cpu_ns in document["cpu_ns"].items()})
    sampler.uncounted.update({name: Uncounted(**each) for name, each in document["uncounted"].items()})
    registry.engines.ended = _usage(document["engines_ended"])
    taking = _TakingUp(registry, document)
    # Parents first, so that what a client started is not taken for the client's own.
    for saved in sorted(document["sessions"], key=lambda each: (each["peer"]["start_ticks"], each["peer"]["pid"])):
        taking.session(saved)
    taking.nest()
    registry.refresh_public()
    sampler.gaps += 1
    sessions, windows = len(registry.sessions), registry.window_count
    return f"took up {windows} windows of {sessions} processes after a gap of {taking.gap_ns / 1e9:.2f} s"


class _TakingUp:
    """Opens the last agent's sessions and windows anew, under numbers that may be others."""

    def __init__(self, registry: Registry, document: Mapping[str, Any]) -> None:
        self._registry = registry
        self._parties: dict[int, Mapping[str, Any]] = {int(name): each for name, each in document["parties"].items()}
        self._now: dict[int, int] = {}
        """Parties' numbers by those that they had."""
        self.gap_ns = max(0, registry.now_ns() - document["saved_ns"])

    def session(self, saved: Mapping[str, Any]) -> None:
        registry = self._registry
        peer = Peer(**{**saved["peer"], "groups": frozenset(saved["peer"]["groups"])})
        if not _runs(peer.process, registry.proc_root):
            return
        used = self._used(saved["number"])
        with contextlib.suppress(SourceError):  # it ended this very moment
            session = registry.hello(peer, saved["role"], threads=_tree(peer.pid, registry.proc_root), used=used)
            self._now[saved["number"]] = session.number
            session.claimed, session.begun = _usage(saved["claimed"]), saved["begun"]
            for each in saved["windows"]:
                with contextlib.suppress(SourceError):
                    self._window(session, each)

    def _window(self, session: Session, saved: Mapping[str, Any]) -> None:
        fields: dict[str, Any] = {name: saved[name] for name in _KEPT}
        fields |= {name: _usage(saved[name]) for name in _USAGES}
        fields |= {"process": None if saved["process"] is None else tuple(saved["process"])}
        fields |= {"spent": None if saved["spent"] is None else _usage(saved["spent"])}
        if saved["owned"]:
            self._now[saved["base"]] = self._open(session, fields)
        base = self._now.get(saved["base"]) if fields["spent"] is None else _NO_PARTY
        if base is None:
            return
        fields |= {"session": session, "base": base, "before": _stamp(saved["before"]), "restored": True}
        self._registry.put_back(Window(**fields))

    def _open(self, session: Session, window: Mapping[str, Any]) -> int:
        # Of what has ended in the gap there is nothing more to count, and what it had used is still asked for.
        registry, used, tid = self._registry, self._used(window["base"]), window["tid"]
        process: Process | None = window["process"]
        if process is not None:
            tids = _tree(process[0], registry.proc_root) if _runs(process, registry.proc_root) else ()
            return registry.open_command(session, process, tids, used)
        runs = tid in peers.threads_of(session.peer.pid, registry.proc_root)
        return registry.open_thread(session, tid, (tid,) if runs else (), used)

    def nest(self) -> None:
        """Puts parties inside those they were in; what those that are gone had used is of the next one outside."""
        registry = self._registry
        for old, party in self._parties.items():
            outer, number = self._outer(party), self._now.get(old)
            if number is not None and outer is not None:
                registry.inside[number] = outer
            keeper, kept = (outer, _usage(party)) if number is None else (number, registry.nothing())
            nested = registry.nothing() if party["nested"] is None else _usage(party["nested"])
            if keeper is not None:
                registry.nested[keeper] = registry.nested.get(keeper, registry.nothing()).plus(kept).plus(nested)

    def _outer(self, party: Mapping[str, Any]) -> int | None:
        inside = party["inside"]
        while inside is not None and inside not in self._now:
            inside = self._parties[inside]["inside"]
        return None if inside is None else self._now[inside]

    def _used(self, old: int) -> Party:
        used = self._parties[old]
        lost_ns = used["lost_ns"] + self.gap_ns
        return Party(Role.NONE, pooled=False, energy_uj=[*used["energy_uj"]], cpu_ns=used["cpu_ns"], lost_ns=lost_ns)


def _runs(process: Process, proc_root: Path) -> bool:
    stat = procfs.process_stat(process[0], proc_root)
    return stat is not None and stat.start_ticks == process[1]


def _tree(pid: int, proc_root: Path) -> tuple[int, ...]:
    """Threads of a process and of all that it started and that still has its parent."""
    return tuple(tid for each in procfs.tree(pid, proc_root) for tid in peers.threads_of(each, proc_root))


def _usage(document: Mapping[str, Any]) -> Usage:
    return Usage(tuple(document["energy_uj"]), document["cpu_ns"], document["lost_ns"])


def _stamp(document: Mapping[str, Any]) -> Stamp:
    lines = tuple(Lines(*values) for values in document["lines"])
    return Stamp(**{**document, "lines": lines, "uncounted": tuple(tuple(each) for each in document["uncounted"])})
