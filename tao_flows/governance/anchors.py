"""Heads held elsewhere: a file that shows a bundle signed anew by whoever has the key.

One canonical JSON line a closed revision of a bundle. Whoever keeps the file need not trust those who sign.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from tao_flows.errors import BundleError, InputError
from tao_flows.governance.canonical import canonical, parse_canonical

_MOST_LINE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Anchor:
    """What was seen of one closed revision of one bundle, and when."""

    bundle: str
    revision: int
    size: int
    """Lines of its log."""
    head: str
    """SHA-256 of the last line's content, in hex."""
    attestation: str
    """SHA-256 of its attestation, in hex: names every byte of the bundle."""
    keyid: str
    recorded: str
    """When it was written down, ISO 8601 in UTC; not part of what is compared."""

    def is_of(self, bundle: str, revision: int) -> bool:
        """Whether it speaks of that revision of that bundle."""
        return (self.bundle, self.revision) == (bundle, revision)

    def agrees(self, other: Anchor) -> bool:
        """Whether both saw the same."""
        return replace(self, recorded="") == replace(other, recorded="")


def read_anchors(path: Path) -> Iterator[Anchor]:
    """The anchors of a file, one by one.

    Raises:
        InputError: the file cannot be read, or a line is no anchor.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("UNREADABLE_FILE", f"{path} is no file", "give the path of an anchor file")
            number = 0
            while line := file.readline(_MOST_LINE_BYTES):
                number += 1
                yield _anchor(line, f"{path} line {number}")
    except OSError as error:
        summary = f"{path}: {error.strerror or error}"
        raise InputError("UNREADABLE_FILE", summary, "check the path and its permissions") from None


def add_anchors(path: Path, anchors: Iterable[Anchor]) -> list[Anchor]:
    """Appends those that the file does not have yet in one write, and gives them. The file is made if need be.

    Raises:
        BundleError: ANCHOR_MISMATCH, the file holds another word on one of them; nothing is written then.
        InputError: the file cannot be read or written, or a line of it is no anchor.
    """
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path, flags, 0o644), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            new = _missing(path, anchors)
            _append(file.fileno(), b"".join(canonical(asdict(anchor)) + b"\n" for anchor in new))
    except OSError as error:
        summary = f"{path}: {error.strerror or error}"
        raise InputError("UNWRITABLE_FILE", summary, "check the path and its permissions") from None
    return new


def _append(descriptor: int, lines: bytes) -> None:
    """All of the lines, or none."""
    end = os.fstat(descriptor).st_size
    try:
        is_whole = os.write(descriptor, lines) == len(lines)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
    if not is_whole:
        os.ftruncate(descriptor, end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _missing(path: Path, anchors: Iterable[Anchor]) -> list[Anchor]:
    wanted: dict[tuple[str, int], Anchor] = {}
    for anchor in anchors:
        _check_agreement(path, wanted.setdefault((anchor.bundle, anchor.revision), anchor), anchor)
    for held in read_anchors(path):
        new = wanted.pop((held.bundle, held.revision), None)
        if new is not None:
            _check_agreement(path, held, new)
    return list(wanted.values())


def _check_agreement(path: Path, held: Anchor, anchor: Anchor) -> None:
    if not anchor.agrees(held):
        summary = f"{path} would hold two heads or attestations of {held.bundle} revision {held.revision}"
        raise BundleError("ANCHOR_MISMATCH", summary, "one of the two was made anew: find out which")


def _anchor(line: bytes, where: str) -> Anchor:
    try:
        values = parse_canonical(line.removesuffix(b"\n"))
    except InputError:
        values = None
    counts = {"revision", "size"}
    is_one = (
        line.endswith(b"\n")
        and isinstance(values, dict)
        and values.keys() == {one.name for one in fields(Anchor)}
        and all(type(value) is (int if name in counts else str) for name, value in values.items())
    )
    if not is_one:
        raise InputError(
            "BAD_ANCHOR", f"{where} is no anchor, or cut off", "restore the file, or remove a cut last line"
        )
    return Anchor(**values)
