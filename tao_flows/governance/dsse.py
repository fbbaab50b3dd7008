"""Signed envelopes: DSSE 1.0 with one Ed25519 signature, in one canonical spelling.

https://github.com/secure-systems-lab/dsse (envelope.md, protocol.md)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from tao_flows.errors import InputError
from tao_flows.governance.canonical import canonical, parse_canonical
from tao_flows.governance.failures import flaw
from tao_flows.governance.keys import SigningKey, VerifyKey


def sign(payload: bytes, payload_type: str, key: SigningKey | None) -> bytes:
    """The envelope's canonical bytes, on one line without a newline. Without a key it bears no signature."""
    signatures = []
    if key is not None:
        signature = key.sign(_signed_bytes(payload, payload_type))
        signatures = [{"keyid": key.keyid, "sig": base64.b64encode(signature).decode()}]
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": signatures}
    return canonical(envelope)


def opened(envelope: bytes, payload_type: str, keys: Iterable[VerifyKey]) -> bytes:
    """The payload, once its type is the one asked for and one of ``keys`` has signed both.

    Raises:
        BundleError: ENVELOPE_MALFORMED, PAYLOAD_TYPE, UNSIGNED, KEY_UNKNOWN or SIGNATURE_INVALID.
    """
    found_type, payload, signatures = _parts(envelope)
    if found_type != payload_type:
        raise flaw("PAYLOAD_TYPE")
    if not signatures:
        raise flaw("UNSIGNED")
    keyid, signature = signatures[0]
    key = next((key for key in keys if key.keyid == keyid), None)
    if key is None:
        raise flaw("KEY_UNKNOWN")
    if not key.verifies(signature, _signed_bytes(payload, payload_type)):
        raise flaw("SIGNATURE_INVALID")
    return payload


def unsigned_payload(envelope: bytes, payload_type: str) -> bytes:
    """What an envelope without a signature holds: the word of nobody.

    Raises:
        BundleError: ENVELOPE_MALFORMED or PAYLOAD_TYPE; it bears a signature.
    """
    found_type, payload, signatures = _parts(envelope)
    if signatures:
        raise flaw("ENVELOPE_MALFORMED")
    if found_type != payload_type:
        raise flaw("PAYLOAD_TYPE")
    return payload


def _parts(envelope: bytes) -> tuple[str, bytes, list[tuple[str, bytes]]]:
    """Type, payload and at most one signature with its key id."""
    try:
        fields = parse_canonical(envelope)
    except InputError:
        raise flaw("ENVELOPE_MALFORMED") from None
    _check_keys(fields, {"payload", "payloadType", "signatures"})
    found_type, signatures = fields["payloadType"], fields["signatures"]
    if not isinstance(found_type, str) or not isinstance(signatures, list) or len(signatures) > 1:
        raise flaw("ENVELOPE_MALFORMED")
    for signature in signatures:
        _check_keys(signature, {"keyid", "sig"})
    return found_type, _bytes(fields["payload"]), [(one["keyid"], _bytes(one["sig"])) for one in signatures]


def _check_keys(value: Any, keys: set[str]) -> None:
    if not isinstance(value, dict) or value.keys() != keys:
        raise flaw("ENVELOPE_MALFORMED")


def _bytes(text: Any) -> bytes:
    """What standard base64 says; the bits that its last character does not use have to be zero."""
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise flaw("ENVELOPE_MALFORMED")
    return data


def _signed_bytes(payload: bytes, payload_type: str) -> bytes:
    """PAE of the DSSE protocol: nothing can be moved between type and payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
