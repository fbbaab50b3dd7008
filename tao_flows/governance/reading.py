"""The files of a bundle that anybody may have made: a directory or a zip, of which no name and no size is believed.

Nothing is unpacked, no link is followed and no pipe is waited for; a file is read as a stream, within bounds.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from tao_flows.errors import InputError
from tao_flows.governance.archive import is_bomb
from tao_flows.governance.failures import Failure, flaw
from tao_flows.governance.layout import MOST_BYTES, MOST_FILES, is_file_name, is_part_name

_BUFFER_BYTES: Final = 256 * 1024
_END: Final = struct.Struct("<4s4H2LH")
"""End of a zip's central directory: signature, two disks, entries here and in all, its size, its place, a comment."""
_END_SIGNATURE: Final = b"PK\x05\x06"
_LARGE_ARCHIVE: Final = b"PK\x06\x07"
_LARGE_ARCHIVE_BYTES: Final = 20
_MOST_DIRECTORY_BYTES: Final = 64 * 1024
_LOCAL_HEADER_BYTES: Final = 30
_PACKINGS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x41
_UNPACKING_ERRORS: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError,
)  # fmt: skip


class Files(Protocol):
    """The files of one bundle."""

    names: set[str]
    """Regular files with a name that a bundle's file may have; those still being written too."""
    failures: list[Failure]
    """What lies there and is no such file."""

    def open(self, name: str) -> BinaryIO:
        """One of ``names`` as a stream, to be closed.

        Raises:
            BundleError: UNREADABLE_FILE, TOO_LARGE or ARCHIVE_MALFORMED; reading the stream raises them too.
        """
        ...


@contextmanager
def open_bundle(path: Path) -> Iterator[Files]:
    """The files of the bundle at ``path``, a directory or a zip.

    Raises:
        InputError: there is nothing that can be read.
        BundleError: TOO_MANY_FILES, ARCHIVE_MALFORMED or ARCHIVE_BOMB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("UNREADABLE_FILE", f"{path}: {reason}", "check the path and its permissions") from None
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            yield _Directory(descriptor)
        elif stat.S_ISREG(kind):
            with io.FileIO(descriptor, closefd=False) as file:
                yield _Archive(file)
        else:
            raise InputError("UNREADABLE_FILE", f"{path} is neither a directory nor a file", "give a bundle's path")
    finally:
        os.close(descriptor)


class _Directory:
    def __init__(self, descriptor: int) -> None:
        self._descriptor: Final = descriptor
        self.names: set[str] = set()
        self.failures: list[Failure] = []
        try:
            with os.scandir(descriptor) as entries:
                for count, entry in enumerate(entries):
                    if count == MOST_FILES:
                        raise flaw("TOO_MANY_FILES")
                    self._note(entry)
        except OSError:
            raise flaw("UNREADABLE_FILE") from None
        self.failures.sort(key=lambda failure: failure.file)

    def _note(self, entry: os.DirEntry[str]) -> None:
        if not (is_file_name(entry.name) or is_part_name(entry.name)):
            self.failures.append(Failure("BAD_NAME", shown(entry.name)))
        elif entry.is_symlink():
            self.failures.append(Failure("SYMLINK", entry.name))
        elif not entry.is_file(follow_symlinks=False):
            self.failures.append(Failure("NOT_A_FILE", entry.name))
        else:
            self.names.add(entry.name)

    def open(self, name: str) -> BinaryIO:
        try:
            # What it was when it was listed may have changed since.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = io.FileIO(os.open(name, flags, dir_fd=self._descriptor))
        except OSError:
            raise flaw("UNREADABLE_FILE") from None
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            file.close()
            raise flaw("TOO_LARGE" if stat.S_ISREG(status.st_mode) else "NOT_A_FILE")
        return io.BufferedReader(_Guarded(file, "UNREADABLE_FILE"), _BUFFER_BYTES)


class _Archive:
    def __init__(self, file: io.FileIO) -> None:
        self.names: set[str] = set()
        self.failures: list[Failure] = []
        try:
            start = _directory_start(file)
            self._zip = zipfile.ZipFile(file)
        except _UNPACKING_ERRORS:
            raise flaw("ARCHIVE_MALFORMED") from None
        members = self._zip.infolist()
        _check_sizes(members, start)
        for member in members:
            self._note(member)

    def _note(self, member: zipfile.ZipInfo) -> None:
        # The name as it stands there: ``filename`` is cut at a zero byte.
        name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
        if not (is_file_name(name) or is_part_name(name)):
            self.failures.append(Failure("BAD_NAME", shown(name)))
        elif kind not in (0, stat.S_IFREG):
            self.failures.append(Failure("SYMLINK" if kind == stat.S_IFLNK else "NOT_A_FILE", name))
        elif name in self.names:
            self.failures.append(Failure("DUPLICATE_FILE", name))
        elif member.compress_type not in _PACKINGS or member.flag_bits & _ENCRYPTED:
            self.failures.append(Failure("ARCHIVE_MALFORMED", name))
        else:
            self.names.add(name)

    def open(self, name: str) -> BinaryIO:
        try:
            member = self._zip.open(name)
        except _UNPACKING_ERRORS:
            raise flaw("ARCHIVE_MALFORMED") from None
        return io.BufferedReader(_Guarded(member, "ARCHIVE_MALFORMED"), _BUFFER_BYTES)


def _directory_start(file: io.FileIO) -> int:
    """Where the central directory of a zip begins, once its end says that it is small enough to be read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _LARGE_ARCHIVE_BYTES))
    last = file.read(_END.size + _LARGE_ARCHIVE_BYTES)
    signature, disk, first_disk, here, entries, length, start, comment = _END.unpack(last[-_END.size :])
    is_plain = signature == _END_SIGNATURE and not (disk or first_disk or comment) and here == entries
    if not is_plain or start + length + _END.size != size or last.startswith(_LARGE_ARCHIVE):
        raise flaw("ARCHIVE_MALFORMED")
    if entries > MOST_FILES or length > _MOST_DIRECTORY_BYTES:
        raise flaw("TOO_MANY_FILES")
    return int(start)


def _check_sizes(members: list[zipfile.ZipInfo], start: int) -> None:
    """Holds what the archive unpacks to within bounds, before anything is unpacked."""
    if sum(member.file_size for member in members) > MOST_BYTES:
        raise flaw("TOO_LARGE")
    end = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        if member.header_offset < end:
            raise flaw("ARCHIVE_BOMB")
        end = member.header_offset + _LOCAL_HEADER_BYTES + len(member.orig_filename) + member.compress_size
        if is_bomb(member):
            raise flaw("ARCHIVE_BOMB")
    if end > start:
        raise flaw("ARCHIVE_MALFORMED")


class _Guarded(io.RawIOBase):
    """Reads what may be damaged, and says so with the one error that bundles are refused with."""

    def __init__(self, file: Any, code: str) -> None:
        super().__init__()
        self._file = file
        self._code = code

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._file.read(len(buffer))
        except _UNPACKING_ERRORS:
            raise flaw(self._code) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def shown(name: str) -> str:
    """A file's name that may hold anything, in plain ASCII and not too long."""
    return ascii(name[:100])[1:-1]
