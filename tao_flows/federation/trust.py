"""Whose signature counts: the keys of other organisations, each for a time, as an operator wrote them into a file.

``trust.json`` is ``{"schema": "tao-flows/trust/1", "orgs": {ORG: {"keys": [{"public_key": PEM, "valid_from": TIME,
"valid_until": TIME or null, "revoked_at": TIME or null}]}}}``. What a key that was revoked has signed does not count any
more, whenever that was: its thief can date it as he likes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tao_flows.controller.fields import Fields, as_object, items
from tao_flows.controller.model import iso
from tao_flows.errors import BundleError, ConfigError, InputError
from tao_flows.federation.documents import MALFORMED, MAX_ENVELOPE_BYTES, refused
from tao_flows.governance import dsse
from tao_flows.governance.canonical import canonical, parse, parse_canonical
from tao_flows.governance.keys import VerifyKey
from tao_flows.partners import org_name

SCHEMA: Final = "tao-flows/trust/1"
_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class TrustedKey:
    """One key of one organisation."""

    org: str
    key: VerifyKey
    valid_from: datetime
    valid_until: datetime | None = None
    revoked_at: datetime | None = None

    def check(self, now: datetime) -> None:
        """Refuses a key that does not count now.

        Raises:
            InputError: PARTNER_KEY_REVOKED, PARTNER_KEY_EXPIRED or PARTNER_KEY_NOT_YET_VALID.
        """
        which = f"the key {self.key.keyid[:16]} of {self.org}"
        if self.revoked_at is not None:
            raise refused("PARTNER_KEY_REVOKED", f"{which} was revoked on {iso(self.revoked_at)}")
        if self.valid_until is not None and now >= self.valid_until:
            raise refused("PARTNER_KEY_EXPIRED", f"{which} ended on {iso(self.valid_until)}")
        if now < self.valid_from:
            raise refused("PARTNER_KEY_NOT_YET_VALID", f"{which} begins on {iso(self.valid_from)}")

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "public_key": self.key.pem.decode("ascii"),
            "valid_from": iso(self.valid_from),
            "valid_until": None if self.valid_until is None else iso(self.valid_until),
            "revoked_at": None if self.revoked_at is None else iso(self.revoked_at),
        }


@dataclass(frozen=True)
class Trust:
    """The keys of all organisations. A key belongs to one of them."""

    keys: tuple[TrustedKey, ...] = ()

    def opened(
        self, envelope: bytes, payload_type: str, org: str, now: datetime, max_bytes: int = MAX_ENVELOPE_BYTES
    ) -> bytes:
        """The payload that ``org`` signed, with a key of its own that counts now.

        Raises:
            InputError: PARTNER_TOO_LARGE, PARTNER_UNKNOWN_ORG, PARTNER_UNKNOWN_KEY, PARTNER_WRONG_ORG,
                PARTNER_BAD_SIGNATURE, PARTNER_MALFORMED, or as ``TrustedKey.check``.
        """
        own = [each for each in self.keys if each.org == org]
        if not own:
            remedy = f"if it is to be trusted: tao-flows pools trust {org} --key FILE"
            raise refused("PARTNER_UNKNOWN_ORG", f"{org} is no organisation that is trusted here", remedy)
        if len(envelope) > max_bytes:
            raise refused("PARTNER_TOO_LARGE", f"a document of {org} has more than {max_bytes} bytes")
        keyid = keyid_of(envelope)
        signer = next((each for each in self.keys if each.key.keyid == keyid), None)
        if signer is None:
            raise refused("PARTNER_UNKNOWN_KEY", f"the key {keyid[:16]!r} is no key of {org} that is trusted here")
        if signer.org != org:
            raise refused("PARTNER_WRONG_ORG", f"a document of {org} is signed with a key of {signer.org}")
        signer.check(now)
        try:
            return dsse.opened(envelope, payload_type, [signer.key])
        except BundleError as error:
            code = "PARTNER_BAD_SIGNATURE" if error.code == "SIGNATURE_INVALID" else MALFORMED
            raise refused(code, f"a document of {org}: {error.summary}") from None

    def with_key(self, key: TrustedKey) -> Trust:
        """With one key more, or another time for one that is there.

        Raises:
            InputError: PARTNER_WRONG_ORG, it is another organisation's.
        """
        others = tuple(each for each in self.keys if each.key.keyid != key.key.keyid)
        taken = next((each.org for each in self.keys if each not in others), key.org)
        if taken != key.org:
            raise refused("PARTNER_WRONG_ORG", f"the key is one of {taken}", "a key belongs to one organisation")
        return Trust((*others, key))

    def revoked(self, org: str, keyid: str, now: datetime) -> Trust:
        """Without one key, from now on and for all that it ever signed.

        Args:
            org: whose key.
            keyid: of the key, or its beginning.
            now: the time that is written down.

        Raises:
            InputError: PARTNER_UNKNOWN_KEY, not one key of the organisation's is meant.
        """
        meant = [each for each in self.keys if each.org == org and keyid and each.key.keyid.startswith(keyid)]
        if len(meant) != 1:
            known = ", ".join(each.key.keyid[:16] for each in self.keys if each.org == org) or "none"
            raise refused("PARTNER_UNKNOWN_KEY", f"{keyid!r} is not one key of {org}", f"its keys are: {known}")
        gone = replace(meant[0], revoked_at=meant[0].revoked_at or now)
        return Trust(tuple(gone if each is meant[0] else each for each in self.keys))

    def save(self, path: Path) -> None:
        """Writes the file, as a whole.

        Raises:
            ConfigError: it cannot be written.
        """
        orgs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for each in self.keys:
            orgs.setdefault(each.org, {"keys": []})["keys"].append(each.to_json())
        new = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(canonical({"schema": SCHEMA, "orgs": orgs}) + b"\n")
            new.replace(path)
        except OSError as error:
            raise ConfigError("UNWRITABLE_FILE", f"{path}: {error.strerror}", "check the path") from None


def load_trust(path: Path | None) -> Trust:
    """The trust of a file; nobody is trusted where there is none.

    Raises:
        ConfigError: BAD_TRUST, the file cannot be read, or something in it is unknown or wrong: then none of it counts.
    """
    if path is None:
        return Trust()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return Trust()
    except OSError as error:
        raise ConfigError("BAD_TRUST", f"{path}: {error.strerror}", "check the path and its permissions") from None
    try:
        if len(data) > _MAX_BYTES:
            raise refused("PARTNER_TOO_LARGE", f"more than {_MAX_BYTES} bytes")
        return _read(parse(data))
    except InputError as error:
        raise ConfigError("BAD_TRUST", f"{path}: {error.summary}", error.remedy or "correct the file") from None


def keyid_of(envelope: bytes) -> str:
    """The id of the key that an envelope says it is signed with.

    Raises:
        InputError: PARTNER_MALFORMED, it is no envelope with one signature.
    """
    try:
        (signature,) = parse_canonical(envelope)["signatures"]
        keyid = signature["keyid"]
    except (InputError, KeyError, TypeError, ValueError):
        keyid = None
    if not isinstance(keyid, str):
        raise refused(MALFORMED, "a document is no envelope with one signature, in its one canonical form")
    return keyid


def _read(value: object) -> Trust:
    fields = Fields(value, "", ("schema", "orgs"))
    if fields.text("schema") != SCHEMA:
        raise refused(MALFORMED, f"the schema is not {SCHEMA!r}", "upgrade, or correct the file")
    orgs: Mapping[str, object] = as_object(fields.raw("orgs"), "orgs", "give an object of organisations")
    trust = Trust()
    for org, entry in orgs.items():
        path = f"orgs.{org_name(org)}"
        for item, where in items(Fields(entry, path, ("keys",)).raw("keys"), f"{path}.keys", "keys"):
            key = _key(org, item, where)
            if any(each.key.keyid == key.key.keyid for each in trust.keys):
                raise refused(MALFORMED, f"{where}: the key is there twice", "a key belongs to one organisation, once")
            trust = trust.with_key(key)
    return trust


def _key(org: str, item: object, where: str) -> TrustedKey:
    fields = Fields(item, where, ("public_key", "valid_from", "valid_until", "revoked_at"))
    pem = fields.raw("public_key")
    if not isinstance(pem, str):
        raise refused(MALFORMED, f"{where}.public_key is no text", "give the PEM text of signing.pub")
    return TrustedKey(
        org,
        VerifyKey.of_pem(pem.encode(), f"{where}.public_key"),
        fields.moment("valid_from"),
        fields.optional_moment("valid_until"),
        fields.optional_moment("revoked_at"),
    )
