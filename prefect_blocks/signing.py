"""The key that bundles are signed with, as a Block."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.blocks.core import Block
from pydantic import Field, SecretStr, field_validator

from prefect_blocks.fields import Strict

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tao_flows.governance.keys import SigningKey as Key


class SigningKey(Strict, Block):
    """The Ed25519 key that bundles are signed with: for the process that signs, never for one that runs users' code.

    No other block refers to it, so that no flow run loads it.

    Example:
        Load a stored key and write it where the signing process reads it:
        ```python
        from prefect_blocks import SigningKey

        signing_key = SigningKey.load("BLOCK_NAME")
        signing_key.write("/run/tao-flows/signing.key")
        ```
        Have a worker of tao-flows or the controller sign with it: set `TAO_FLOWS_PREFECT_SIGNING_KEY=BLOCK_NAME` in its
        environment, and `TAO_FLOWS_BUNDLES`.
    """

    _block_type_name = "Signing Key"
    _block_type_slug = "tao-signing-key"
    _block_schema_capabilities = ["tao-signing-key"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = "The Ed25519 key that bundles are signed with, for the process that signs."

    private_key: SecretStr = Field(description="An Ed25519 private key, unencrypted, as PKCS#8 PEM text.")

    @field_validator("private_key")
    @classmethod
    def _check(cls, value: SecretStr) -> SecretStr:
        _loaded(value)
        return value

    def public_key(self) -> str:
        """The public key to verify with, as PEM text."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        key = _loaded(self.private_key).public_key()
        return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    def to_key(self) -> Key:
        """The key to sign with, in memory alone."""
        from tao_flows.governance.keys import SigningKey as Key

        return Key(_loaded(self.private_key))

    def write(self, path: str | Path) -> None:
        """Writes the private key to a new file that only its owner may read.

        Raises:
            FileExistsError: there is a file already; it is left as it is.
            OSError: the file cannot be written.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(self.private_key.get_secret_value().strip() + "\n")


def _loaded(secret: SecretStr) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret.get_secret_value().strip().encode(), password=None)
    except Exception:  # noqa: BLE001 - of many kinds, and none may tell what it was given
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("private_key: this is no Ed25519 private key as unencrypted PKCS#8 PEM text")  # noqa: TRY004
    return key
