"""What is signed: an in-toto statement over all files of a bundle, and before it checkpoints of its log.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tao_flows.errors import InputError
from tao_flows.governance.canonical import canonical, parse_canonical
from tao_flows.governance.chain import Head
from tao_flows.governance.failures import flaw
from tao_flows.governance.layout import ATTESTATION, CHECKPOINTS, DECISIONS, MOST_FILES, is_file_name

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:tao-flows:bundle:1"
STATEMENT_PAYLOAD: Final = "application/vnd.in-toto+json"
CHECKPOINT_PAYLOAD: Final = "application/vnd.tao-flows.checkpoint+json"
SIGNERS: Final = ("worker", "controller", "api-server", "agent", "seal", "meter", "in-process")
"""Where the key may have been: ``in-process`` is where user code ran too, and could have used it."""
MOST_SIGNED_BYTES: Final = 1024 * 1024
"""Bytes of the largest envelope that is written and read."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_STATEMENT_KEYS: Final = {"_type", "subject", "predicateType", "predicate"}
_WRITERS_OWN: Final = frozenset({"bundle", "revision", "chain", "keyid", "previous", "begun_anew"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed word on how far the log of a bundle had come."""

    bundle: str
    revision: int
    chain: Head

    def payload(self) -> bytes:
        """What is signed of it."""
        return canonical({"bundle": self.bundle, "revision": self.revision, **self.chain.to_json()})

    @classmethod
    def of(cls, payload: bytes) -> Checkpoint:
        """What a payload says.

        Raises:
            BundleError: CHECKPOINT_MALFORMED.
        """
        fields = _canonical_or_none(payload)
        if not _has(fields, {"bundle", "revision", "size", "head"}):
            raise flaw("CHECKPOINT_MALFORMED")
        chain = _head({"size": fields["size"], "head": fields["head"]})
        if chain is None or not isinstance(fields["bundle"], str) or not _is_count(fields["revision"], 1):
            raise flaw("CHECKPOINT_MALFORMED")
        return cls(fields["bundle"], fields["revision"], chain)


@dataclass(frozen=True, slots=True)
class Statement:
    """The last word on a bundle: every file's digest, the head of its log, and about which run it is."""

    bundle: str
    revision: int
    chain: Head
    files: Mapping[str, str]
    """SHA-256 in hex by file name: all files but the attestation."""
    keyid: str | None
    """None in a bundle that was closed without a signing key."""
    previous: str | None = None
    """SHA-256 of the attestation of the last closed revision before this one."""
    begun_anew: str = ""
    """Why an unfinished revision before this one was not gone on with."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """The rest of the predicate: ``complete``, ``signer`` and whatever tells which run it is."""

    @property
    def complete(self) -> bool:
        """Whether all that the run did is in the bundle."""
        return bool(self.about["complete"])

    @property
    def signer(self) -> str:
        """Where the key was: one of ``SIGNERS``."""
        return str(self.about["signer"])

    def payload(self) -> bytes:
        """What is signed of it.

        Raises:
            InputError: ``about`` lacks ``complete`` or ``signer``, says what others say, or is no JSON.
        """
        if taken := _WRITERS_OWN & self.about.keys():
            summary = f"a predicate cannot set {', '.join(sorted(taken))}"
            raise InputError("BAD_PREDICATE", summary, "leave that to the writer of the bundle")
        if not isinstance(self.about.get("complete"), bool) or self.about.get("signer") not in SIGNERS:
            remedy = f"give complete as true or false, and signer as one of {', '.join(SIGNERS)}"
            raise InputError(
                "BAD_PREDICATE", "a predicate has to say whether the bundle is complete and who signs", remedy
            )
        predicate = {
            **self.about,
            "bundle": self.bundle,
            "revision": self.revision,
            "chain": self.chain.to_json(),
            "keyid": self.keyid,
            "previous": self.previous,
            "begun_anew": self.begun_anew,
        }
        subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(self.files.items())]
        statement = {
            "_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": predicate,
        }  # fmt: skip
        return canonical(statement)

    @classmethod
    def of(cls, payload: bytes) -> Statement:
        """What a payload says.

        Raises:
            BundleError: STATEMENT_MALFORMED, STATEMENT_TYPE, BAD_NAME or DUPLICATE_FILE.
        """
        fields = _canonical_or_none(payload)
        if not _has(fields, _STATEMENT_KEYS):
            raise flaw("STATEMENT_MALFORMED")
        if fields["_type"] != STATEMENT_TYPE or fields["predicateType"] != PREDICATE_TYPE:
            raise flaw("STATEMENT_TYPE")
        files, predicate = _files(fields["subject"]), fields["predicate"]
        if not isinstance(predicate, dict) or not predicate.keys() >= _WRITERS_OWN:
            raise flaw("STATEMENT_MALFORMED")
        about = {name: value for name, value in predicate.items() if name not in _WRITERS_OWN}
        chain = _head(predicate["chain"])
        if chain is None or not _is_sound(predicate):
            raise flaw("STATEMENT_MALFORMED")
        return cls(
            predicate["bundle"], predicate["revision"], chain, files, predicate["keyid"], predicate["previous"],
            predicate["begun_anew"], about,
        )  # fmt: skip


def _is_sound(predicate: dict[str, Any]) -> bool:
    return (
        isinstance(predicate["bundle"], str)
        and _is_count(predicate["revision"], 1)
        and all(predicate[name] is None or _is_sha256(predicate[name]) for name in ("keyid", "previous"))
        and isinstance(predicate["begun_anew"], str)
        and isinstance(predicate.get("complete"), bool)
        and predicate.get("signer") in SIGNERS
    )


def _files(subject: Any) -> dict[str, str]:
    if not isinstance(subject, list) or len(subject) >= MOST_FILES:
        raise flaw("STATEMENT_MALFORMED")
    files: dict[str, str] = {}
    for one in subject:
        if not _has(one, {"name", "digest"}) or not _has(one["digest"], {"sha256"}):
            raise flaw("STATEMENT_MALFORMED")
        name, digest = one["name"], one["digest"]["sha256"]
        if not isinstance(name, str) or not _is_sha256(digest):
            raise flaw("STATEMENT_MALFORMED")
        if not is_file_name(name) or name == ATTESTATION:
            raise flaw("BAD_NAME")
        if name in files:
            raise flaw("DUPLICATE_FILE")
        files[name] = digest
    if not files.keys() >= {CHECKPOINTS, DECISIONS}:
        raise flaw("STATEMENT_MALFORMED")
    return files


def _canonical_or_none(payload: bytes) -> Any:
    try:
        return parse_canonical(payload)
    except InputError:
        return None


def _head(value: Any) -> Head | None:
    if not _has(value, {"size", "head"}) or not _is_count(value["size"], 0) or not _is_sha256(value["head"]):
        return None
    return Head(value["size"], value["head"])


def _has(value: Any, keys: set[str]) -> bool:
    return isinstance(value, dict) and value.keys() == keys


def _is_count(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
