"""Keys and the envelopes that are signed with them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from tao_flows.errors import BundleError, ConfigError, InputError
from tao_flows.governance import dsse
from tao_flows.governance.keys import SigningKey, VerifyKey, keyid_of, new_keys

TYPE = "application/vnd.example+json"


def test_new_keys_are_a_pair_of_files_of_which_one_is_its_owners_alone(tmp_path: Path) -> None:
    made = new_keys(tmp_path / "new" / "keys")
    signing, public = tmp_path / "new/keys/signing.key", tmp_path / "new/keys/signing.pub"
    assert stat.S_IMODE(signing.stat().st_mode) == 0o600
    assert signing.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")
    der = load_pem_public_key(public.read_bytes()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert made.keyid == hashlib.sha256(der).hexdigest()
    assert made.keyid == SigningKey.load(signing).keyid == VerifyKey.load(public).keyid
    assert keyid_of(signing) == keyid_of(public) == made.keyid
    signature = SigningKey.load(signing).sign(b"message")
    assert VerifyKey.load(public).verifies(signature, b"message")
    assert not VerifyKey.load(public).verifies(signature, b"another")


@pytest.mark.parametrize("taken", ["signing.key", "signing.pub"])
@pytest.mark.parametrize("dangling", [True, False])
def test_new_keys_take_the_place_of_nothing(tmp_path: Path, taken: str, dangling: bool) -> None:
    if dangling:
        (tmp_path / taken).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / taken).write_text("mine")
    with pytest.raises(InputError, match="KEY_EXISTS"):
        new_keys(tmp_path)
    assert os.listdir(tmp_path) == [taken]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_signing_key_that_others_may_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    new_keys(tmp_path)
    (tmp_path / "signing.key").chmod(mode)
    with pytest.raises(ConfigError, match="KEY_EXPOSED") as raised:
        SigningKey.load(tmp_path / "signing.key")
    assert f"chmod 600 {tmp_path}/signing.key" in raised.value.remedy


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"-----BEGIN PRIVATE KEY-----\n", b"\0" * 100_000,
        private_pem(ec.generate_private_key(ec.SECP256R1())),
        private_pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
    ],
)  # fmt: skip
def test_what_is_no_signing_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="BAD_KEY"):
        SigningKey.load(path)


def test_a_signing_key_is_not_taken_for_a_public_one_nor_anything_else(tmp_path: Path) -> None:
    new_keys(tmp_path)
    with pytest.raises(InputError, match="BAD_KEY.*stays where it signs"):
        VerifyKey.load(tmp_path / "signing.key")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "other.pub").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(InputError, match="BAD_KEY"):
        VerifyKey.load(tmp_path / "other.pub")


def test_a_pipe_or_a_directory_in_place_of_a_key_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent", Path("/dev/zero")):
        for load in (SigningKey.load, VerifyKey.load, keyid_of):
            with pytest.raises(InputError, match="UNREADABLE_FILE"):
                load(path)


def test_an_envelope_is_what_the_protocol_says_and_opens_with_its_key_alone() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    envelope = dsse.sign(b"hello world", TYPE, key)
    fields = json.loads(envelope)
    signature = base64.b64decode(fields["signatures"][0]["sig"])
    assert key.public.verifies(signature, b"DSSEv1 28 application/vnd.example+json 11 hello world")
    assert fields["signatures"][0]["keyid"] == key.keyid
    assert dsse.opened(envelope, TYPE, [other.public, key.public]) == b"hello world"
    for keys, kind, code in (
        ([other.public], TYPE, "KEY_UNKNOWN"),
        ([], TYPE, "KEY_UNKNOWN"),
        ([key.public], "x", "PAYLOAD_TYPE"),
    ):
        with pytest.raises(BundleError, match=code):
            dsse.opened(envelope, kind, keys)


def with_(envelope: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(envelope), **changes}, sort_keys=True, separators=(",", ":")).encode()


def test_an_envelope_that_is_changed_or_spelt_otherwise_is_refused() -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    envelope = dsse.sign(b"ab", TYPE, key)  # in base64 YWI=, of whose last sign two bits are not used
    (signature,) = json.loads(envelope)["signatures"]
    forged = {"keyid": key.keyid, "sig": json.loads(dsse.sign(b"ab", TYPE, other))["signatures"][0]["sig"]}
    spelt = json.loads(envelope)
    refused = {
        "ENVELOPE_MALFORMED": [
            b"", b"{}", b"[]", b"null", envelope + b"\n", b" " + envelope, json.dumps(spelt).encode(), envelope * 2,
            b'{"payload":"YWI=",' + envelope[1:], with_(envelope, extra=1), with_(envelope, payload="YWJ="),
            with_(envelope, payload="YWI"), with_(envelope, payload="YW I="), with_(envelope, payload="YWI=\n"),
            with_(envelope, payload="YWI=="), with_(envelope, payload="YW-_"), with_(envelope, payload="YWI=€"),
            with_(envelope, payload=None), with_(envelope, payloadType=None), with_(envelope, signatures=None),
            with_(envelope, signatures=[signature, signature]), with_(envelope, signatures=[None]),
            with_(envelope, signatures=[{**signature, "more": 1}]), with_(envelope, signatures=[{"sig": signature["sig"]}]),
            with_(envelope, signatures=[{**signature, "sig": signature["sig"].rstrip("=")}]),
        ],
        "UNSIGNED": [with_(envelope, signatures=[])],
        "PAYLOAD_TYPE": [with_(envelope, payloadType="")],
        "KEY_UNKNOWN": [
            with_(envelope, signatures=[{**signature, "keyid": keyid}]) for keyid in (other.keyid, key.keyid.upper(), "", None, [1])
        ],
        "SIGNATURE_INVALID": [
            with_(envelope, payload="YWM="), with_(envelope, signatures=[forged]),
            with_(envelope, signatures=[{**signature, "sig": ""}]),
        ],
    }  # fmt: skip
    for code, envelopes in refused.items():
        for changed in envelopes:
            with pytest.raises(BundleError) as raised:
                dsse.opened(changed, TYPE, [key.public])
            assert raised.value.code == code, changed
    for position, byte in enumerate(envelope):
        with pytest.raises(BundleError):
            dsse.opened(envelope[:position] + bytes([byte ^ 1]) + envelope[position + 1 :], TYPE, [key.public])
