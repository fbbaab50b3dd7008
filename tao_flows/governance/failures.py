"""What can be wrong with a bundle: codes that stay as they are from release to release, each with what it means."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tao_flows.errors import BundleError

FAILURES: Final = MappingProxyType(
    {
        "ANCHOR_ABSENT": "the anchor knows nothing of this bundle and revision",
        "ANCHOR_MISMATCH": "the anchor holds another head or another attestation of this bundle and revision",
        "ARCHIVE_BOMB": "the archive unpacks to far more than it holds, or its members overlap",
        "ARCHIVE_MALFORMED": "no archive that a bundle is kept in, or one that is damaged",
        "BAD_NAME": "a file's name is not one that a bundle uses",
        "CHAIN_HASH": "a line of the log is not what its hash says",
        "CHAIN_HEAD": "the log's last hash is not the one that was signed",
        "CHAIN_LENGTH": "the log has more lines than were signed",
        "CHAIN_MALFORMED": "a line of the log is not canonical JSON of an entry, a hash, its predecessor and its number",
        "CHAIN_ORDER": "a line of the log does not have the number that follows the one before",
        "CHAIN_PREVIOUS": "a line of the log does not name the hash of the one before",
        "CHAIN_TRUNCATED": "the log has fewer lines than were signed",
        "CHECKPOINT_MALFORMED": "what a checkpoint signs is no head of a log",
        "CHECKPOINT_MISMATCH": "a checkpoint signed another bundle, another order or another log than this one",
        "DIGEST_MISMATCH": "a file is not the one that was signed",
        "DUPLICATE_FILE": "a file is there, or is signed, twice",
        "ENVELOPE_MALFORMED": "a signed envelope is not in its one canonical form",
        "FILE_MISSING": "a file that was signed is not there",
        "FILE_UNLISTED": "a file is there that was not signed",
        "INCOMPLETE": "the bundle was never closed with a signature; only what checkpoints signed is shown to be unchanged",
        "KEY_UNKNOWN": "it is signed with a key that was not given",
        "NOT_A_FILE": "a folder, device, pipe or socket is there in place of a file",
        "PAYLOAD_TYPE": "what was signed is of another type",
        "SIGNATURE_INVALID": "the signature was not made with the key that it names",
        "STATEMENT_MALFORMED": "what the attestation signs is not a statement about a bundle",
        "STATEMENT_TYPE": "the attestation's statement is of a kind or version that is not known here",
        "SYMLINK": "a symbolic link is there in place of a file",
        "TOO_LARGE": "a file or a line is larger than any that a bundle holds",
        "TOO_MANY_FILES": "there are more files than any bundle holds",
        "UNREADABLE_FILE": "a file cannot be read",
        "UNSIGNED": "the bundle was closed without a signing key",
    }
)
"""What ``verify`` may say of a bundle, by code."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that is wrong with a bundle, and where."""

    code: str
    file: str
    line: int | None = None

    @property
    def summary(self) -> str:
        """What the code means."""
        return FAILURES[self.code]

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract."""
        place = {} if self.line is None else {"line": self.line}
        return {"code": self.code, "file": self.file, **place}


def flaw(code: str) -> BundleError:
    """The error that a part of a bundle is refused with; ``code`` is one of ``FAILURES``."""
    return BundleError(code, FAILURES[code])
