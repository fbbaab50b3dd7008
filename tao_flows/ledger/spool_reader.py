"""The reading end of a spool: one reader at a time, and nothing goes away before it is taken.

How far it came in a segment that it could not finish, a reader leaves in the lock file, for the next to go on from. One
that is killed leaves nothing: then what it took is sent again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import LedgerError
from tao_flows.ledger.spool import MAX_LINE_BYTES, SEGMENT_BYTES, lock_file, segments_of, unframe

MAX_SEGMENT_BYTES: Final = 2 * SEGMENT_BYTES
"""A larger file is no segment of ours."""
_NEW_S: Final = 60.0
_MOST_PLACES_BYTES: Final = 1 << 20
_LOCK_FILE: Final = ".reader"
_CHUNK_BYTES: Final = 2 * MAX_LINE_BYTES
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a segment."""

    content: bytes | None
    """None where it is torn."""
    end: int
    """Where the next one begins."""


class Segment:
    """A segment that is read from its beginning, while others may append to it. Made by ``Reader``."""

    def __init__(self, directory_fd: int, name: str, fd: int, offset: int) -> None:
        self.name = name
        self._directory_fd = directory_fd
        self._fd = fd
        is_place = 0 < offset <= os.fstat(fd).st_size and os.pread(fd, 1, offset - 1) == b"\n"
        self.offset = offset if is_place else 0
        """Where what is not settled begins."""

    def lines(self, most: int) -> list[Line]:
        """The next whole lines that are not taken yet, ``most`` at the most; none at the present end."""
        chunk = os.pread(self._fd, _CHUNK_BYTES, self.offset)
        found: list[Line] = []
        begin = 0
        while len(found) < most and (newline := chunk.find(b"\n", begin)) >= 0:
            if newline > begin:
                found.append(Line(unframe(chunk[begin:newline]), self.offset + newline + 1))
            begin = newline + 1
        if not found and len(chunk) == _CHUNK_BYTES:
            return [Line(None, self.offset + _CHUNK_BYTES)]  # no line is this long
        return found

    def take(self, line: Line) -> None:
        """Says that everything up to and with this line is settled."""
        self.offset = line.end

    def remove(self) -> int | None:
        """Removes it if all its lines are taken and nobody appends now; 1 if its end was torn, 0 if not, else None."""
        if not lock_file(self._fd):
            return None
        try:
            found, rest = os.fstat(self._fd), os.pread(self._fd, _CHUNK_BYTES, self.offset)
            is_new = not found.st_size and time.time() < found.st_mtime + _NEW_S  # its writer is about to lock it
            if b"\n" in rest or len(rest) == _CHUNK_BYTES or is_new:
                return None
            with suppress(FileNotFoundError):  # a writer dropped it to make room
                os.unlink(self.name, dir_fd=self._directory_fd)
            self.offset = 0
            return int(bool(rest))
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._fd)


class Reader:
    """A spool's one reader. Made by ``reading``."""

    def __init__(self, directory_fd: int, lock_fd: int, owner: int) -> None:
        self._directory_fd = directory_fd
        self._lock_fd = lock_fd
        self._owner = owner
        self._places = self._read_places()
        self.strange: list[str] = []
        """Files that are not the owner's own, or too large: left alone."""

    def segments(self) -> Iterator[Segment]:
        """Every segment there is now, oldest first."""
        before, self._places = self._places, {}
        for name, _ in segments_of(self._directory_fd):
            segment = self._open(name, before.get(name, 0))
            if segment is not None:
                try:
                    yield segment
                finally:
                    self._places[name] = segment.offset
                    segment.close()

    def leave(self) -> None:
        """Writes down how far it came. Not in another user's directory: what is there is not to be written to."""
        places = {name: offset for name, offset in self._places.items() if offset}
        if self._owner == os.geteuid() and (places or os.fstat(self._lock_fd).st_size):
            with suppress(OSError):
                os.ftruncate(self._lock_fd, 0)
                os.pwrite(self._lock_fd, json.dumps(places).encode(), 0)

    def _read_places(self) -> dict[str, int]:
        try:
            said: Any = json.loads(os.pread(self._lock_fd, _MOST_PLACES_BYTES, 0) or b"{}")
            return {str(name): int(offset) for name, offset in said.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def _open(self, name: str, offset: int) -> Segment | None:
        try:
            fd = os.open(name, _FLAGS, dir_fd=self._directory_fd)
        except FileNotFoundError:
            return None
        except OSError:  # a link, a directory, or another user's
            self.strange.append(name)
            return None
        found = os.fstat(fd)
        is_owners = stat.S_ISREG(found.st_mode) and found.st_uid == self._owner and found.st_nlink <= 1
        if is_owners and found.st_size <= MAX_SEGMENT_BYTES:
            return Segment(self._directory_fd, name, fd, offset)
        os.close(fd)
        self.strange.append(name)
        return None


@contextmanager
def reading(directory: Path, owner: int | None = None) -> Iterator[Reader | None]:
    """Opens a spool for reading; None while another process or thread reads it, or where there is none.

    Args:
        directory: the spool's.
        owner: the user whose files alone are read, and whose the directory must be; this process's by default.

    Raises:
        LedgerError: SPOOL_FOREIGN, the directory is another user's or a link; SPOOL_FAILED, it cannot be read.
    """
    owner = os.geteuid() if owner is None else owner
    held: list[int] = []
    try:
        if not _claim(directory, owner, held):
            yield None
            return
        reader = Reader(held[0], held[1], owner)
        try:
            yield reader
        finally:
            reader.leave()
    finally:
        for fd in held:
            os.close(fd)


def _claim(directory: Path, owner: int, held: list[int]) -> bool:
    """Opens the directory and takes its lock, into ``held``; whether both could be had."""
    try:
        held.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        if os.fstat(held[0]).st_uid != owner:
            raise LedgerError("SPOOL_FOREIGN", f"{directory} is not user {owner}'s", "remove it")
        held.append(os.open(_LOCK_FILE, _FLAGS | os.O_CREAT, 0o600, dir_fd=held[0]))
        fcntl.flock(held[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    except OSError as error:
        raise LedgerError("SPOOL_FAILED", f"{directory}: {error}", "check who may read it") from error
    return True
