"""Going on with an unfinished bundle: as far as its checkpoints vouch for it, and not a byte further."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tao_flows.governance import dsse
from tao_flows.governance.chain import NO_LINES, Chain, Head, read_lines
from tao_flows.governance.failures import flaw
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import CHECKPOINTS, DECISIONS, is_file_name, is_part_name
from tao_flows.governance.statement import CHECKPOINT_PAYLOAD, Checkpoint

if TYPE_CHECKING:
    from hashlib import _Hash

_READ_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Standing:
    """An unfinished bundle, open for writing at the end of what is gone on with."""

    directory: int
    """Descriptor of its directory."""
    decisions: io.FileIO
    checkpoints: io.FileIO
    decisions_hash: _Hash
    checkpoints_hash: _Hash
    head: Head
    signed: Head
    """The head of the last checkpoint."""


def resume(path: Path, bundle: str, revision: int, key: SigningKey | None) -> Standing:
    """Opens the bundle in a directory, new or left by a writer that died.

    With a key the log is kept up to the last checkpoint; without one there is none, and every whole line is kept.

    Args:
        path: the directory.
        bundle: its name in every revision.
        revision: which one it is.
        key: the one that its checkpoints have to be signed with.

    Raises:
        BundleError: its log or its checkpoints do not hold, or something else lies there.
        OSError: it cannot be read or written.
    """
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise flaw("NOT_A_FILE")
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    opened: list[io.FileIO] = []
    try:
        _remove_documents(directory)
        opened.extend(_opened(directory, name, os.O_RDWR) for name in (DECISIONS, CHECKPOINTS))
        decisions, checkpoints = opened
        heads, checkpoints_hash = _signed_heads(checkpoints, bundle, revision, key)
        head, decisions_hash = _whole_log(decisions, heads, is_signed=key is not None)
    except BaseException:
        for file in opened:
            file.close()
        os.close(directory)
        raise
    return Standing(directory, decisions, checkpoints, decisions_hash, checkpoints_hash, head, heads[max(heads)])


def create_file(directory: int, name: str) -> io.FileIO:
    """A new file for writing, in place of one of that name; no link is followed.

    Raises:
        OSError: it cannot be opened.
    """
    return _opened(directory, name, os.O_WRONLY | os.O_TRUNC)


def _signed_heads(file: io.FileIO, bundle: str, revision: int, key: SigningKey | None) -> tuple[dict[int, Head], _Hash]:
    """Heads by size, and the digest of the lines that sign them; a torn last line is dropped."""
    keys = () if key is None else (key.public,)
    heads, digest, kept = {0: NO_LINES}, hashlib.sha256(), 0
    for line in _whole_lines(file):
        signed = Checkpoint.of(dsse.opened(line[:-1], CHECKPOINT_PAYLOAD, keys))
        if (signed.bundle, signed.revision) != (bundle, revision) or signed.chain.size <= max(heads):
            raise flaw("CHECKPOINT_MISMATCH")
        heads[signed.chain.size] = signed.chain
        digest.update(line)
        kept += len(line)
    _cut(file, kept)
    return heads, digest


def _whole_log(file: io.FileIO, heads: Mapping[int, Head], *, is_signed: bool) -> tuple[Head, _Hash]:
    """Where the log stands, and its digest; what no checkpoint covers is dropped where there are checkpoints."""
    chain, digest, kept, signed_size = Chain(), hashlib.sha256(), 0, max(heads)
    for line in _whole_lines(file):
        if is_signed and chain.head.size == signed_size:
            break
        chain.accept(line)
        if heads.get(chain.head.size, chain.head) != chain.head:
            raise flaw("CHECKPOINT_MISMATCH")
        digest.update(line)
        kept += len(line)
    if chain.head.size < signed_size:
        raise flaw("CHAIN_TRUNCATED")
    _cut(file, kept)
    return chain.head, digest


def _whole_lines(file: io.FileIO) -> Iterator[bytes]:
    reader = io.BufferedReader(file, _READ_BYTES)
    try:
        yield from (line for line in read_lines(reader) if line.endswith(b"\n"))
    finally:
        reader.detach()


def _cut(file: io.FileIO, kept: int) -> None:
    file.truncate(kept)
    file.seek(kept)


def _remove_documents(directory: int) -> None:
    """Takes away what an earlier writer put beside the log: what is signed here is written here."""
    for name in os.listdir(directory):
        if name in {DECISIONS, CHECKPOINTS}:
            continue
        if not (is_file_name(name) or is_part_name(name)):
            raise flaw("BAD_NAME")
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise flaw("NOT_A_FILE")
        os.unlink(name, dir_fd=directory)


def _opened(directory: int, name: str, flags: int) -> io.FileIO:
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise flaw("NOT_A_FILE")
    return io.FileIO(descriptor, "r+" if flags & os.O_RDWR else "w")
