"""The log: one canonical line an entry, each naming the hash of the one before.

A line is ``{"entry":E,"hash":H,"prev":P,"seq":N}`` in JCS bytes, N counting from 1 and H being the SHA-256 of the JCS
bytes of ``{"entry":E,"prev":P,"seq":N}``. JCS sorts keys, so those bytes are the line's own without its hash: a reader
cuts that out and need not spell the line again to check it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from tao_flows.errors import BundleError, InputError
from tao_flows.governance.canonical import canonical, parse_canonical
from tao_flows.governance.failures import flaw

MOST_LINE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the longest line that is written and read: a decision over a week's forecasts of ten zones takes 2 MB."""
_START: Final = b'{"entry":'
_HASH: Final = b',"hash":"'
_HASH_DIGITS: Final = 64
_FIELDS: Final = {"entry", "hash", "prev", "seq"}


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log stands: how many lines, and the hash of the last one. It stands for every line before."""

    size: int = 0
    head: str = "0" * _HASH_DIGITS
    """SHA-256 in hex; zeros for a log without lines."""

    def to_json(self) -> dict[str, Any]:
        """As checkpoints, attestations and anchors sign it."""
        return {"size": self.size, "head": self.head}


NO_LINES: Final = Head()
"""The head of a log without lines."""


class Chain:
    """A log as far as it was written or read.

    Args:
        head: where it stands.
    """

    def __init__(self, head: Head = NO_LINES) -> None:
        self.head = head

    def link(self, entry: Mapping[str, Any]) -> bytes:
        """The next line, with its newline, for an entry to be kept.

        Raises:
            InputError: the entry is no JSON, or its line would be longer than any reader takes.
        """
        seq = self.head.size + 1
        # Spelt as a whole, so that the line is nested no deeper than a reader takes.
        body = canonical({"entry": dict(entry), "prev": self.head.head, "seq": seq})
        digest = hashlib.sha256(body).hexdigest()
        start = body[: -len(_tail(self.head))]
        line = b"%b%b%b%b\n" % (start, _HASH, digest.encode(), b'"' + _tail(self.head))
        if len(line) > MOST_LINE_BYTES:
            summary = f"an entry of {len(line)} bytes is longer than the log takes"
            raise InputError("ENTRY_TOO_LARGE", summary, f"keep it under {MOST_LINE_BYTES} bytes")
        self.head = Head(seq, digest)
        return line

    def accept(self, line: bytes) -> None:
        """Takes the next line, with its newline, as read.

        Raises:
            BundleError: CHAIN_MALFORMED, CHAIN_ORDER, CHAIN_PREVIOUS or CHAIN_HASH; the chain stays where it is.
        """
        tail = _tail(self.head)
        cut = len(line) - len(tail) - 2 - _HASH_DIGITS
        start = cut - len(_HASH)
        if not (line.startswith(_START) and line.endswith(b'"' + tail + b"\n") and line[start:cut] == _HASH):
            raise _misplaced(line, self.head)
        hasher = hashlib.sha256(memoryview(line)[:start])
        hasher.update(tail)
        digest = hasher.hexdigest()
        if line[cut : cut + _HASH_DIGITS] != digest.encode():
            raise flaw("CHAIN_HASH")
        _fields(line)
        self.head = Head(self.head.size + 1, digest)


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream, each with its newline; the last may lack one.

    Raises:
        BundleError: TOO_LARGE, on coming to a line that is longer than any that is written.
    """
    while line := stream.readline(MOST_LINE_BYTES + 1):
        if len(line) > MOST_LINE_BYTES:
            raise flaw("TOO_LARGE")
        yield line


def _tail(head: Head) -> bytes:
    """What follows the hash in the line after ``head``."""
    return b',"prev":"%b","seq":%d}' % (head.head.encode(), head.size + 1)


def _fields(line: bytes) -> dict[str, Any]:
    """The members of a line, whatever they say."""
    try:
        fields = parse_canonical(line[:-1])
    except InputError:
        raise flaw("CHAIN_MALFORMED") from None
    if not isinstance(fields, dict) or fields.keys() != _FIELDS or not isinstance(fields["entry"], dict):
        raise flaw("CHAIN_MALFORMED")
    return fields


def _misplaced(line: bytes, head: Head) -> BundleError:
    """Why a line does not follow ``head``."""
    if not line.endswith(b"\n"):
        return flaw("CHAIN_MALFORMED")
    try:
        fields = _fields(line)
    except BundleError as error:
        return error
    if fields["seq"] != head.size + 1:
        return flaw("CHAIN_ORDER")
    return flaw("CHAIN_PREVIOUS" if fields["prev"] != head.head else "CHAIN_MALFORMED")
