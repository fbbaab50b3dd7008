"""A bounded spool on this host's disk, for records that a ledger does not hold yet.

A directory of segments: files of whole lines, each a checksum and a record in the wire format, appended to under a lock
(flock) by every process of one user on one host. What ``append`` has returned for outlives the process, whatever kills
it. It is not synced: a host that loses power may lose what the kernel had not written yet (seconds), as with a ledger
in SQLite. A line that a kill or a power loss cut short fails its checksum and is skipped; the next begins on a line of
its own. A segment goes away only when a reader has seen everything in it taken (``reading``).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tao_flows.config import mask_password, state_directory
from tao_flows.errors import LedgerError
from tao_flows.ledger.wireformat import MAX_RECORD_BYTES, Entry, encode
from tao_flows.records import Incident

log = logging.getLogger("tao_flows.ledger")

CAPACITY_BYTES: Final = 256 << 20
SEGMENT_BYTES: Final = 4 << 20
MAX_LINE_BYTES: Final = MAX_RECORD_BYTES + 10
"""A record, its checksum, a space and a newline."""
SUFFIX: Final = ".spool"
REFUSED: Final = "refused"
"""The file of what a ledger refused for good: kept for people to look at, and to be tried again."""
_REFUSED_BYTES: Final = 16 << 20
LOCK_S: Final = 0.05
"""How long an append waits for another's before it begins a segment of its own: they take microseconds."""
_MOST_TRIES: Final = 3
_MOST_FILES: Final = 10_000
"""Looked at in one directory: it may be another user's, who means no good."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def frame(line: bytes) -> bytes:
    """A line as it lies in a segment."""
    return b"%08x %s\n" % (zlib.crc32(line), line)


def unframe(framed: bytes) -> bytes | None:
    """The line of a framed one without its newline; None where it is torn."""
    checksum, _, line = framed.partition(b" ")
    return line if checksum == b"%08x" % zlib.crc32(line) else None


def spool_directory(ledger_url: str) -> Path | None:
    """Where records for a ledger wait on this host: one directory a ledger; None without a home directory."""
    state = state_directory()
    name = sha256(mask_password(ledger_url).encode()).hexdigest()[:16]
    return None if state is None else state / "spool" / name


def spool_of(ledger_url: str) -> Spool | None:
    """The spool of a ledger on this host; None without a home directory. Nothing is made before something is written."""
    directory = spool_directory(ledger_url)
    return None if directory is None else Spool(directory)


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """How full a spool is."""

    segments: int
    size_bytes: int
    oldest_wall_ns: int | None
    """When its oldest segment was begun."""
    refused_bytes: int
    """What a ledger refused for good."""


@dataclass
class _Writer:
    """One process's hold on a segment: a forked child opens it for itself."""

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    fd: int = -1


class Spool:
    """The writing end. Safe to share between threads, between processes and across forks.

    Args:
        directory: made with mode 0700 where it does not exist; files are 0600.
        capacity_bytes: beyond it the oldest segment is dropped. Each writer that could not wait for the others can
            exceed it by one segment.
        segment_bytes: size at which a new segment is begun.
    """

    def __init__(
        self, directory: Path, *, capacity_bytes: int = CAPACITY_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.directory = directory
        self._capacity_bytes = capacity_bytes
        self._segment_bytes = segment_bytes
        self._host = quote(os.uname().nodename, safe="")
        self._writer = _Writer()

    def append(self, lines: Sequence[bytes]) -> int:
        """Writes lines of the wire format; how many older records were dropped to make room.

        Those are counted in the spool itself, by an incident SPOOL_DROPPED. A failure leaves nothing half written.

        Raises:
            LedgerError: SPOOL_FULL, the disk is; SPOOL_FAILED, it cannot be written for another reason.
        """
        dropped, group = 0, bytearray()
        writer = self._mine()
        with writer.lock:
            try:
                for framed in map(frame, lines):
                    if group and len(group) + len(framed) > self._segment_bytes:
                        dropped += self._write(writer, bytes(group))
                        group.clear()
                    group += framed
                dropped += self._write(writer, bytes(group)) if group else 0
            except OSError as error:
                raise self._failed(error) from error
        return dropped

    def has_records(self) -> bool:
        """Whether anything waits to be read."""
        return any(size for _, size in self._segments())

    def status(self) -> SpoolStatus:
        """How full it is."""
        segments = self._segments()
        refused = _size(self.directory / REFUSED)
        began = int(segments[0][0].partition("-")[0]) if segments else None
        return SpoolStatus(len(segments), sum(size for _, size in segments), began, refused)

    def set_aside(self, lines: Sequence[bytes]) -> None:
        """Keeps lines that a ledger refused for good, up to 16 MiB of them; beyond that they are lost. Never raises."""
        set_aside(self.directory / REFUSED, lines)

    def retry_refused(self) -> bool:
        """Puts what was refused back among what is to be sent; whether there was any.

        Raises:
            LedgerError: SPOOL_FAILED.
        """
        try:
            os.rename(self.directory / REFUSED, self.directory / self._new_name())
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._failed(error) from error
        return True

    def close(self) -> None:
        """Gives back what it holds; it may be used again."""
        writer = self._mine()
        with writer.lock:
            self._let_go(writer)

    def _mine(self) -> _Writer:
        if self._writer.pid != os.getpid():
            inherited, self._writer = self._writer.fd, _Writer()
            if inherited >= 0:
                os.close(inherited)  # our copy alone: the parent's lock, if it holds one, stays
        return self._writer

    def _failed(self, error: OSError) -> LedgerError:
        if error.errno in _FULL:
            remedy = "free space there; until then records are kept in memory"
            return LedgerError("SPOOL_FULL", f"{self.directory}: {error}", remedy)
        remedy = "check that the directory exists and can be written by this user"
        return LedgerError("SPOOL_FAILED", f"{self.directory}: {error}", remedy)

    def _write(self, writer: _Writer, data: bytes) -> int:
        """Appends whole lines to the segment; how many records were dropped to make room."""
        dropped = 0
        if not self._hold(writer, len(data)) and not self._adopt(writer, len(data)):
            dropped = make_room(self.directory, self._capacity_bytes - self._segment_bytes)
            self._begin(writer)
            if dropped:
                data += self._confession(dropped)
        try:
            _append(writer.fd, data)
        finally:
            fcntl.flock(writer.fd, fcntl.LOCK_UN)
        return dropped

    def _hold(self, writer: _Writer, more: int) -> bool:
        """Locks the segment that is open, if it is still one to append to; else lets it go."""
        if writer.fd >= 0 and lock_file(writer.fd) and self._takes(writer.fd, more):
            return True
        self._let_go(writer)
        return False

    def _takes(self, fd: int, more: int) -> bool:
        found = os.fstat(fd)
        # No link: a reader has taken it away, or the whole directory went.
        is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        return is_ours and found.st_size + more <= self._segment_bytes

    def _adopt(self, writer: _Writer, more: int) -> bool:
        """Goes on with the newest segment of this host: thousands of short processes leave a few files."""
        mine = [name for name, _ in self._segments() if name.endswith(f"-{self._host}{SUFFIX}")]
        if not mine:
            return False
        with suppress(OSError):
            flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            writer.fd = os.open(self.directory / mine[-1], flags)
        return self._hold(writer, more)

    def _begin(self, writer: _Writer) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(_MOST_TRIES):
            writer.fd = os.open(self.directory / self._new_name(), flags, 0o600)
            if self._hold(writer, 0):  # a reader may have taken away what it found empty
                return
        raise OSError(errno.EIO, "what is created there is not this user's")

    def _new_name(self) -> str:
        return f"{time.time_ns():020d}-{os.getpid()}-{threading.get_ident():x}-{self._host}{SUFFIX}"

    def _let_go(self, writer: _Writer) -> None:
        if writer.fd >= 0:
            os.close(writer.fd)  # and with it the lock
            writer.fd = -1

    def _confession(self, dropped: int) -> bytes:
        summary = f"{dropped} records were dropped on {os.uname().nodename}: the spool was full"
        remedy = "see why the ledger takes nothing"
        return frame(encode(Entry(Incident("SPOOL_DROPPED", summary, remedy, time.time_ns(), dropped))))

    def _segments(self) -> list[tuple[str, int]]:
        """Names and sizes, oldest first."""
        return segments_of(self.directory)


def segments_of(directory: Path | int) -> list[tuple[str, int]]:
    """Names and sizes of the segments in a directory, oldest first; none where it cannot be read."""
    found: list[tuple[str, int]] = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in islice(entries, _MOST_FILES):
            if entry.name.endswith(SUFFIX) and entry.name[:20].isdecimal():
                with suppress(OSError):
                    found.append((entry.name, entry.stat(follow_symlinks=False).st_size))
    return sorted(found)


def make_room(directory: Path, most_bytes: int) -> int:
    """Drops the oldest segments that nobody writes to until the rest has ``most_bytes``; how many records they held."""
    segments, dropped = segments_of(directory), 0
    size_bytes = sum(each for _, each in segments)
    for name, each in segments:
        if size_bytes <= most_bytes:
            break
        with suppress(OSError):
            dropped += _drop(directory / name)
            size_bytes -= each
    return dropped


def set_aside(path: Path, lines: Sequence[bytes]) -> None:
    """Appends lines to a file of refused ones, up to 16 MiB in all; beyond that they are lost. Never raises."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, flags, 0o600)
        try:
            if lock_file(fd) and os.fstat(fd).st_size < _REFUSED_BYTES:
                _append(fd, b"".join(map(frame, lines)))
        finally:
            os.close(fd)
    except OSError as error:
        log.warning("SPOOL_FAILED: refused records are lost: %s: %s", path, error)


def _append(fd: int, data: bytes) -> None:
    """Writes all of it at the end, on a line of its own, or nothing."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        data = b"\n" + data  # what is torn there ends here
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        with suppress(OSError):
            os.ftruncate(fd, size)
        raise


def lock_file(fd: int, timeout_s: float = LOCK_S) -> bool:
    """Locks an open file for this process alone; False where another holds it all that time."""
    give_up_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(0.001)


def _drop(path: Path) -> int:
    """Removes a segment that nobody writes to; how many lines it had."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        lines, offset = 0, 0
        while chunk := os.pread(fd, 1 << 20, offset):
            lines, offset = lines + chunk.count(b"\n"), offset + len(chunk)
        return lines
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
