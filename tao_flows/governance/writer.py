"""Writing a bundle: a log that is signed as it grows, documents, and one attestation that closes it.

Whatever moment the writer dies at, what it leaves is a bundle without an attestation, whose checkpoints still hold; or
the finished one. The next writer goes on from the last checkpoint, and drops what came after: no signature covers that,
so anybody may have written it, and the ledger still has what was true in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, cast

from tao_flows.errors import BundleError, InputError
from tao_flows.governance import dsse
from tao_flows.governance.archive import write_archive
from tao_flows.governance.chain import Chain, Head
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import (
    ATTESTATION,
    CHECKPOINTS,
    DECISIONS,
    OWN_FILES,
    bundle_path,
    check_bundle_name,
    is_file_name,
    latest_revision,
    part_name,
)  # fmt: skip
from tao_flows.governance.resuming import Standing, create_file, resume
from tao_flows.governance.statement import CHECKPOINT_PAYLOAD, STATEMENT_PAYLOAD, Checkpoint, Statement

CHECKPOINT_EVERY: Final = 100
"""Entries between two checkpoints: so many are lost to proof, never to the ledger, when a writer dies."""
_LOG_BUFFER_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle that is closed."""

    path: Path
    digest: str
    """SHA-256 of its attestation, in hex: names the bundle and all that is in it."""
    head: Head
    revision: int
    keyid: str | None
    """None where there was no key to sign it with."""


class BundleWriter:
    """Writes one bundle, and keeps other writers of it away until it is closed.

    It goes on with an unfinished bundle, and begins a new revision of one that is closed or does not hold. After an
    ``OSError`` it is closed; another writer goes on from what is there.

    Args:
        root: the directory of all bundles; it is made if need be.
        name: the bundle's name, the same in every revision.
        key: signs checkpoints and the attestation; without one the bundle never verifies.
        checkpoint_every: entries between two checkpoints.

    Raises:
        InputError: the name cannot be one.
        BundleError: BUNDLE_BUSY, another writer has it.
        OSError: a file cannot be written.
    """

    def __init__(
        self, root: Path, name: str, key: SigningKey | None, *, checkpoint_every: int = CHECKPOINT_EVERY
    ) -> None:
        check_bundle_name(name)
        self.name: Final = name
        self._key: Final = key
        self._every: Final = max(1, checkpoint_every)
        self._root: Final = root
        self._digests: Final[dict[str, str]] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._lock_path: Final = root / f".{name}.lock"
        self._lock = _lock(self._lock_path)
        try:
            self._begin()
        except BaseException:
            self._unlock()
            raise

    def _begin(self) -> None:
        self.revision = latest_revision(self._root, self.name)
        self.begun_anew = ""
        standing = self._resumed()
        if standing is None:
            self.revision += 1
            self.path.mkdir()
            standing = resume(self.path, self.name, self.revision, self._key)
        self.previous = _last_digest(self._root, self.name, self.revision - 1)
        """SHA-256 of the attestation of the last closed revision before this one."""
        self._standing: Standing = standing
        self._chain = Chain(standing.head)
        self._signed = standing.signed
        self._decisions = io.BufferedWriter(standing.decisions, _LOG_BUFFER_BYTES)
        self._is_open = True

    def _resumed(self) -> Standing | None:
        """Where the last revision stands, if it can be gone on with."""
        if self.revision == 0 or os.path.lexists(self.path / ATTESTATION):
            return None
        if self.revision > 1 and not os.path.lexists(
            bundle_path(self._root, self.name, self.revision - 1) / ATTESTATION
        ):
            self.begun_anew = f"revision {self.revision - 1} was left without an attestation"
        try:
            return resume(self.path, self.name, self.revision, self._key)
        except BundleError as error:
            self.begun_anew = f"revision {self.revision} cannot be gone on with: {error.code}, {error.summary}"
            return None

    @property
    def path(self) -> Path:
        """The directory of this revision."""
        return bundle_path(self._root, self.name, self.revision)

    @property
    def head(self) -> Head:
        """Where the log stands: on opening, as far as an earlier writer's part is gone on with."""
        return self._chain.head

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry to the log, and a checkpoint when one is due.

        Raises:
            InputError: the entry is no JSON, or too large.
            OSError: it cannot be written.
        """
        self._check_open()
        line = self._chain.link(entry)
        with self._closing_on_error():
            self._decisions.write(line)
        self._standing.decisions_hash.update(line)
        if self.head.size - self._signed.size >= self._every:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Makes sure of all entries, and signs how far the log has come.

        Raises:
            OSError: it cannot be written.
        """
        self._check_open()
        with self._closing_on_error():
            self._decisions.flush()
            os.fsync(self._decisions.fileno())
            if self._key is None or self._signed == self.head:
                return
            payload = Checkpoint(self.name, self.revision, self.head).payload()
            line = dsse.sign(payload, CHECKPOINT_PAYLOAD, self._key) + b"\n"
            _write_all(self._standing.checkpoints, line)
            os.fsync(self._standing.checkpoints.fileno())
        self._standing.checkpoints_hash.update(line)
        self._signed = self.head

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """A stream for a document, which takes its place once the block ends without an error.

        Raises:
            InputError: a document of a bundle cannot be called so.
            OSError: it cannot be written.
        """
        self._check_open()
        if not is_file_name(name) or name in OWN_FILES:
            raise InputError("BAD_FILE_NAME", f"{name[:100]!r} cannot be a document of a bundle", "use plain ASCII")
        part = part_name(name)
        with self._closing_on_error():
            file = io.BufferedWriter(create_file(self._standing.directory, part))
        hashing = _Hashing(file)
        try:
            with file:
                yield cast("BinaryIO", hashing)
                file.flush()
                os.fsync(file.fileno())
            self._rename(part, name)
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=self._standing.directory)
            raise
        self._digests[name] = hashing.hash.hexdigest()

    def seal(self, predicate: Mapping[str, Any]) -> Sealed:
        """Closes the bundle with the attestation, in one step and last of all, and lets other writers in.

        It signs what was written here, not what the disk says by now. Documents that a writer before this one left are
        not part of it.

        Args:
            predicate: which run it is and how it was recorded; has ``complete`` and ``signer``.

        Raises:
            InputError: the predicate is no JSON, or sets what is the writer's to say.
            OSError: it cannot be written.
        """
        self.checkpoint()
        standing = self._standing
        files = {
            **self._digests,
            DECISIONS: standing.decisions_hash.hexdigest(),
            CHECKPOINTS: standing.checkpoints_hash.hexdigest(),
        }
        keyid = None if self._key is None else self._key.keyid
        statement = Statement(
            self.name, self.revision, self.head, files, keyid, self.previous, self.begun_anew, predicate
        )
        envelope = dsse.sign(statement.payload(), STATEMENT_PAYLOAD, self._key)
        with self._closing_on_error():
            os.fsync(standing.directory)  # what is attested is there before the attestation is
            part = part_name(ATTESTATION)
            with create_file(standing.directory, part) as file:
                _write_all(file, envelope)
                os.fsync(file.fileno())
            self._rename(part, ATTESTATION)
            os.fsync(standing.directory)
            _fsync_directory(self._root)
        self.close()
        return Sealed(self.path, hashlib.sha256(envelope).hexdigest(), self.head, self.revision, keyid)

    def archive(self) -> Path:
        """Packs the closed bundle into one file beside it, the same bytes for the same bundle.

        Raises:
            BundleError: BUNDLE_OPEN, it is not closed; ARCHIVE_TOO_LARGE.
            OSError: it cannot be written.
        """
        if self._is_open:
            raise BundleError("BUNDLE_OPEN", f"{self.path} is not closed", "seal it first")
        return write_archive(self.path)

    def close(self) -> None:
        """Lets other writers in. A bundle that is not sealed stays unfinished."""
        if not self._is_open:
            return
        self._is_open = False
        for file in (self._decisions, self._standing.checkpoints):
            with suppress(OSError):
                file.close()
        os.close(self._standing.directory)
        self._unlock()

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise BundleError("BUNDLE_CLOSED", f"{self.path} is closed to this writer", "open another one")

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.close()
            raise

    def _rename(self, part: str, name: str) -> None:
        directory = self._standing.directory
        os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)

    def _unlock(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._lock_path)
        os.close(self._lock)


class _Hashing(io.RawIOBase):
    """Passes bytes on and takes their digest: what is signed is what was written here."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.hash.update(data)
        return self._file.write(data)


def _write_all(file: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _last_digest(root: Path, name: str, revision: int) -> str | None:
    for earlier in range(revision, 0, -1):
        with suppress(FileNotFoundError, NotADirectoryError):
            attestation = (bundle_path(root, name, earlier) / ATTESTATION).read_bytes()
            return hashlib.sha256(attestation).hexdigest()
    return None


def _lock(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The writer before may have removed the file that was opened here, and a third made another.
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(lock)
            summary = f"another writer has the bundle {path.name[1:-5]}"
            raise BundleError("BUNDLE_BUSY", summary, "let it finish, and write again") from None
        os.close(lock)


@contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Keeps every writer of a bundle away from it.

    Raises:
        BundleError: BUNDLE_BUSY, a writer has it.
        OSError: there is no directory, or nothing can be written to it.
    """
    path = root / f".{name}.lock"
    lock = _lock(path)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(lock)


def _fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
