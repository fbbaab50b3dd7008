"""Deleting bundles whose period is over: only those that are sealed and verify, and only where somebody asks for it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from tao_flows.config import RETENTION
from tao_flows.errors import BundleError, InputError
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.layout import ARCHIVE_SUFFIX, ATTESTATION
from tao_flows.governance.retention import keep_until
from tao_flows.governance.verify import Verdict, verify
from tao_flows.governance.writer import locked
from tao_flows.units import NS_PER_S

_PLACE: Final = re.compile(r"(?P<name>[A-Za-z0-9].*?)(?:\.r\d+)?(?:\.zip)?")
_LEAVING: Final = ".expired"
"""What a bundle's hidden directory ends with while it is deleted: one that is half gone is never taken for a bundle."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found of one revision of a bundle, or of an archive of one."""

    path: Path
    status: str
    """``due``: it need no longer be kept; ``deleted``; ``kept``: its period, or that of another of its revisions, is not
    over; ``unsealed``: nobody has signed it as a whole yet; ``refused``: it cannot be told, and ``code`` says why."""
    code: str = ""
    keep_until: str | None = None
    """The first day (ISO 8601, UTC) on which it need no longer be kept."""

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        return {"path": str(self.path), "status": self.status, "code": self.code, "keep_until": self.keep_until}


def expire(root: Path, period: str, keys: Sequence[VerifyKey], now_wall_ns: int, *, delete: bool) -> Iterator[Looked]:
    """Looks at every bundle in a directory, and deletes those that are due where that is asked for.

    The period counts from the signed time of sealing. The revisions and archives of one run go together, or stay.

    Args:
        root: the directory of bundles. No link in it is followed.
        period: as the setting ``retention`` has it.
        keys: those that the bundles may be signed with.
        now_wall_ns: the time, in nanoseconds since the Unix epoch.
        delete: whether those that are due are deleted; else they are only told.

    Raises:
        InputError: BAD_PERIOD; or UNREADABLE_FILE, the directory cannot be read.
        OSError: a bundle cannot be deleted.
    """
    if not re.fullmatch(RETENTION, period):
        remedy = "give a number of days, weeks, months or years, such as 10y or 6mo"
        raise InputError("BAD_PERIOD", f"{period!r} is no period", remedy)
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise InputError("UNREADABLE_FILE", f"{root}: {error.strerror}", "give the directory of bundles") from None
    if delete:
        _finish(root, names)
    today = datetime.fromtimestamp(now_wall_ns // NS_PER_S, timezone.utc).date().isoformat()
    found = [(match["name"], root / name) for name in names if (match := _PLACE.fullmatch(name))]
    for bundle, members in groupby(sorted(found), key=lambda each: each[0]):
        paths = [path for _, path in members if path.is_symlink() or path.is_dir() or path.suffix == ARCHIVE_SUFFIX]
        yield from _of_bundle(root, bundle, paths, _Asked(period, keys, today, delete))


@dataclass(frozen=True, slots=True)
class _Asked:
    period: str
    keys: Sequence[VerifyKey]
    today: str
    delete: bool


def _of_bundle(root: Path, name: str, paths: Sequence[Path], asked: _Asked) -> list[Looked]:
    """All that lies there of one run, looked at and deleted while no sealer can write to it."""
    if not paths:
        return []
    try:
        with locked(root, name) if asked.delete else nullcontext():
            looked = [_looked(path, asked) for path in paths]
            if any(each.status != "due" for each in looked):
                return [Looked(e.path, "kept", "", e.keep_until) if e.status == "due" else e for e in looked]
            if asked.delete:
                # The last revision first: what is left, if this is cut short, is still a row of revisions.
                for path in sorted(paths, key=_revision, reverse=True):
                    _delete(path)
            return [Looked(e.path, "deleted" if asked.delete else "due", "", e.keep_until) for e in looked]
    except BundleError as error:
        return [Looked(path, "unsealed", error.code) for path in paths]


def _looked(path: Path, asked: _Asked) -> Looked:
    if path.is_symlink():
        return Looked(path, "refused", "SYMLINK")
    if path.is_dir() and not os.path.lexists(path / ATTESTATION):
        return Looked(path, "unsealed", "INCOMPLETE")
    try:
        verdict = verify(path, asked.keys)
    except InputError as error:
        return Looked(path, "refused", error.code)
    if not verdict.ok:
        return Looked(path, "refused", verdict.failures[0].code)
    until = _until(verdict, asked.period)
    if until is None:
        return Looked(path, "kept")
    return Looked(path, "due" if asked.today >= until else "kept", "", until)


def _until(verdict: Verdict, period: str) -> str | None:
    """By the time that is signed; None where none is."""
    try:
        sealed: Any = verdict.statement and verdict.statement.about["sealed"]
        return keep_until(period, int(sealed["wall_ns"]))
    except (KeyError, TypeError, ValueError):
        return None


def _revision(path: Path) -> int:
    found = re.search(r"\.r(\d+)(?:\.zip)?\Z", path.name)
    return int(found[1]) if found else 1


def _delete(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    leaving = path.with_name(f".{path.name}{_LEAVING}")
    path.rename(leaving)
    shutil.rmtree(leaving)  # follows no link


def _finish(root: Path, names: Iterable[str]) -> None:
    """Deletes what an earlier pass was cut short over."""
    for name in names:
        path = root / name
        if name.startswith(".") and name.endswith(_LEAVING) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
