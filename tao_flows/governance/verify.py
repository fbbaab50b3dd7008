"""Whether a bundle is what was signed: offline, within bounded memory, and whatever the bundle is made of.

What holds is that nothing has changed since it was signed with the key; not that what was recorded is true.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from tao_flows.errors import BundleError
from tao_flows.governance import dsse
from tao_flows.governance.anchors import Anchor
from tao_flows.governance.chain import NO_LINES, Chain, Head, read_lines
from tao_flows.governance.failures import Failure, flaw
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.layout import ATTESTATION, CHECKPOINTS, DECISIONS
from tao_flows.governance.reading import Files, open_bundle
from tao_flows.governance.statement import (
    CHECKPOINT_PAYLOAD,
    MOST_SIGNED_BYTES,
    STATEMENT_PAYLOAD,
    Checkpoint,
    Statement,
)

_BUNDLE: Final = "."
_CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bundle was found to be."""

    failures: tuple[Failure, ...]
    statement: Statement | None = None
    """What was signed of the whole bundle; None unless the signature holds."""
    attestation: str | None = None
    """SHA-256 of the attestation, in hex; None without one."""
    proven: Head = NO_LINES
    """How far the log is shown to be unchanged."""
    seen: Head = NO_LINES
    """How far the log goes on without a break."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures

    @property
    def complete(self) -> bool:
        """Whether the bundle is signed to hold all that the run did."""
        return self.statement is not None and self.statement.complete

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        failures = [failure.to_json() for failure in self.failures]
        return {"ok": self.ok, "complete": self.complete, "failures": failures}


def verify(path: Path, keys: Iterable[VerifyKey], anchor: Iterable[Anchor] | None = None) -> Verdict:
    """Checks every byte of the bundle at ``path``, a directory or an archive.

    Args:
        path: the bundle.
        keys: those that its signatures may be made with; from elsewhere than the bundle.
        anchor: heads held elsewhere; the bundle has to be one of them.

    Raises:
        InputError: there is nothing at ``path`` that can be read, or ``anchor`` raises it. What is wrong with a bundle
            is never raised, and always told.
    """
    try:
        with open_bundle(path) as files:
            return _Check(files, tuple(keys)).verdict(anchor)
    except BundleError as error:
        return Verdict((Failure(error.code, _BUNDLE),))


class _Check:
    """One bundle under examination."""

    def __init__(self, files: Files, keys: tuple[VerifyKey, ...]) -> None:
        self._files = files
        self._keys = keys
        self._failures = list(files.failures)
        self._is_closed = ATTESTATION in files.names
        self._attestation: str | None = None
        self._is_signed = False
        self._chain = Chain()
        self._proven = NO_LINES

    def verdict(self, anchors: Iterable[Anchor] | None) -> Verdict:
        statement = self._attested()
        digests = self._read_logs(statement)
        if statement is not None:
            self._compare_files(statement, digests)
        signed = statement if self._is_signed else None
        if anchors is not None:
            self._compare_anchors(signed, anchors)
        # Each once, in the order they were found.
        failures = tuple(dict.fromkeys(self._failures))
        return Verdict(failures, signed, self._attestation, self._proven, self._chain.head)

    def _fail(self, code: str, file: str, line: int | None = None) -> None:
        self._failures.append(Failure(code, file, line))

    def _attested(self) -> Statement | None:
        """What the attestation says, signed or not."""
        if not self._is_closed:
            self._fail("INCOMPLETE", ATTESTATION)
            return None
        try:
            with self._files.open(ATTESTATION) as file:
                envelope = file.read(MOST_SIGNED_BYTES + 1)
            if len(envelope) > MOST_SIGNED_BYTES:
                raise flaw("TOO_LARGE")
            self._attestation = hashlib.sha256(envelope).hexdigest()
            return self._statement(envelope)
        except BundleError as error:
            self._fail(error.code, ATTESTATION)
            return None

    def _statement(self, envelope: bytes) -> Statement:
        try:
            statement = Statement.of(dsse.opened(envelope, STATEMENT_PAYLOAD, self._keys))
        except BundleError as error:
            if error.code != "UNSIGNED":
                raise
            self._fail("UNSIGNED", ATTESTATION)
            return Statement.of(dsse.unsigned_payload(envelope, STATEMENT_PAYLOAD))
        if statement.keyid not in {key.keyid for key in self._keys}:
            raise flaw("KEY_UNKNOWN")
        self._is_signed = True
        return statement

    def _read_logs(self, statement: Statement | None) -> dict[str, str | None]:
        """Checks the log against its checkpoints and the statement; gives the digests of both files."""
        with closing(self._log(CHECKPOINTS)) as checkpoints, closing(self._log(DECISIONS)) as decisions:
            heads = self._signed_heads(checkpoints, statement)
            is_whole = self._follow(decisions, heads)
            for _ in heads:  # those of lines that are not there are looked at all the same
                pass
            if is_whole and statement is not None:
                self._compare_head(statement.chain)
            return {log.name: self._digest(log) for log in (decisions, checkpoints)}

    def _signed_heads(self, log: _Log, statement: Statement | None) -> Iterator[tuple[int, Head]]:
        """Lines of the checkpoints that hold, each with the head it signs."""
        named = None if statement is None else (statement.bundle, statement.revision)
        size = 0
        try:
            for line in log.lines():
                if not (line.endswith(b"\n") or self._is_closed):
                    return  # its writer died over it
                signed = Checkpoint.of(dsse.opened(line.removesuffix(b"\n"), CHECKPOINT_PAYLOAD, self._keys))
                named = named or (signed.bundle, signed.revision)
                if named != (signed.bundle, signed.revision) or signed.chain.size <= size:
                    raise flaw("CHECKPOINT_MISMATCH")
                size = signed.chain.size
                yield log.line, signed.chain
        except BundleError as error:
            self._fail(error.code, log.name, log.line)

    def _follow(self, log: _Log, heads: Iterator[tuple[int, Head]]) -> bool:
        """Follows the log from head to head, and says whether it goes to its end and to that of the checkpoints."""
        due = next(heads, None)
        try:
            for line in log.lines():
                if not (line.endswith(b"\n") or self._is_closed):
                    break
                self._chain.accept(line)
                if due is not None and due[1].size == self._chain.head.size:
                    if due[1] != self._chain.head:
                        self._fail("CHECKPOINT_MISMATCH", CHECKPOINTS, due[0])
                        return False
                    self._proven = self._chain.head
                    due = next(heads, None)
        except BundleError as error:
            self._fail(error.code, log.name, log.line)
            return False
        if due is not None:
            self._fail("CHAIN_TRUNCATED", log.name, self._chain.head.size + 1)
        return due is None

    def _compare_head(self, signed: Head) -> None:
        seen = self._chain.head
        if seen.size < signed.size:
            self._fail("CHAIN_TRUNCATED", DECISIONS, seen.size + 1)
        elif seen.size > signed.size:
            self._fail("CHAIN_LENGTH", DECISIONS, signed.size + 1)
        elif seen != signed:
            self._fail("CHAIN_HEAD", DECISIONS, seen.size)
        elif self._is_signed:
            self._proven = seen

    def _compare_files(self, statement: Statement, digests: dict[str, str | None]) -> None:
        told = {failure.file for failure in self._files.failures}
        for name, signed in statement.files.items():
            if name not in self._files.names:
                if name not in told:
                    self._fail("FILE_MISSING", name)
                continue
            if name not in digests:
                with closing(self._log(name)) as file:
                    digests[name] = self._digest(file)
            if digests[name] not in (None, signed):
                self._fail("DIGEST_MISMATCH", name)
        for name in sorted(self._files.names - statement.files.keys() - {ATTESTATION}):
            self._fail("FILE_UNLISTED", name)

    def _compare_anchors(self, signed: Statement | None, anchors: Iterable[Anchor]) -> None:
        own = anchor_of(signed, self._attestation)
        held = [] if own is None else [anchor for anchor in anchors if anchor.is_of(own.bundle, own.revision)]
        if own is None or not held:
            self._fail("ANCHOR_ABSENT", ATTESTATION)
        elif not all(own.agrees(anchor) for anchor in held):
            self._fail("ANCHOR_MISMATCH", ATTESTATION)

    def _log(self, name: str) -> _Log:
        """A file of the bundle; an empty one in place of one that is not there or cannot be opened."""
        stream: BinaryIO = io.BytesIO()
        is_read = False
        if name in self._files.names:
            try:
                stream = self._files.open(name)
                is_read = True
            except BundleError as error:
                self._fail(error.code, name)
        return _Log(name, stream, is_read=is_read)

    def _digest(self, log: _Log) -> str | None:
        """SHA-256 of a file in hex; None if it cannot be read to its end, which is told."""
        try:
            return log.digest()
        except BundleError as error:
            self._fail(error.code, log.name)
            return None


class _Log:
    """A file that is read once: line by line as far as that goes, and hashed to its end."""

    def __init__(self, name: str, stream: BinaryIO, *, is_read: bool) -> None:
        self.name: Final = name
        self.line = 1
        """The number of the line that is looked at."""
        self._stream: Final = stream
        self._is_read: Final = is_read
        self._hash: Final = hashlib.sha256()

    def lines(self) -> Iterator[bytes]:
        for line in read_lines(self._stream):
            self._hash.update(line)
            yield line
            self.line += 1

    def digest(self) -> str | None:
        while chunk := self._stream.read(_CHUNK_BYTES):
            self._hash.update(chunk)
        return self._hash.hexdigest() if self._is_read else None

    def close(self) -> None:
        self._stream.close()


def anchor_of(statement: Statement | None, attestation: str | None, recorded: str = "") -> Anchor | None:
    """What is to be held elsewhere of a bundle whose signature holds; None of any other."""
    if statement is None or attestation is None or statement.keyid is None:
        return None
    return Anchor(
        statement.bundle, statement.revision, statement.chain.size, statement.chain.head, attestation, statement.keyid,
        recorded,
    )  # fmt: skip
