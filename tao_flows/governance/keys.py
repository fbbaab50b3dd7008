"""Ed25519 keys: one signs bundles and stays where no user code runs, the other goes to whoever verifies."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tao_flows.errors import ConfigError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY: Final = "signing.key"
VERIFY_KEY: Final = "signing.pub"
_MOST_BYTES: Final = 64 * 1024
_FORM: Final = "PEM of an Ed25519 key, as `tao-flows keys new` writes it"


class VerifyKey:
    """The public half: says whether a signature is its own."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = key
        self.keyid: Final = hashlib.sha256(
            key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest()
        """SHA-256 of the DER form of its SubjectPublicKeyInfo, in hex."""
        self.pem: Final = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def load(cls, path: Path) -> VerifyKey:
        """The key in a file.

        Raises:
            InputError: the file cannot be read, or holds no public Ed25519 key.
        """
        return cls.of_pem(_read(path)[0], str(path))

    @classmethod
    def of_pem(cls, pem: bytes, where: str) -> VerifyKey:
        """The key of a PEM text; ``where`` says in an error where that came from.

        Raises:
            InputError: it is no public Ed25519 key.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        if b"PRIVATE KEY" in pem:
            remedy = f"give {VERIFY_KEY}; a signing key stays where it signs"
            raise InputError("BAD_KEY", f"{where} holds a signing key where a public key is asked for", remedy)
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError("BAD_KEY", f"{where} holds no public Ed25519 key", f"give {_FORM}")
        return cls(key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key's other half made ``signature`` over ``message``."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """The private half. Its file is its owner's alone."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: Final = VerifyKey(key.public_key())

    @property
    def keyid(self) -> str:
        """That of the public half."""
        return self.public.keyid

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The key in a file that only its owner can read.

        Raises:
            ConfigError: others can read or write the file, or it holds no Ed25519 key without a password.
            InputError: the file cannot be read.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        pem, mode = _read(path)
        if mode & 0o077:
            summary = f"{path} is open to others than its owner (mode {mode:04o})"
            raise ConfigError(
                "KEY_EXPOSED", summary, f"chmod 600 {path}, and make a new key if others may have read it"
            )
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("BAD_KEY", f"{path} holds no Ed25519 key without a password", f"give {_FORM}")
        return cls(key)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key, in memory alone."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """The signature over ``message``: 64 bytes."""
        return self._key.sign(message)

    def pem(self) -> bytes:
        """PKCS 8, without a password: for a file that only its owner can read."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_keys(directory: Path) -> SigningKey:
    """Makes a key and writes ``signing.key`` (mode 0600) and ``signing.pub`` there, making the directory if need be.

    Raises:
        InputError: one of the files is there already, or cannot be written.
    """
    key = SigningKey.generate()
    private, public = directory / SIGNING_KEY, directory / VERIFY_KEY
    for path in (private, public):
        if os.path.lexists(path):
            remedy = "choose another directory: what was signed with the key there can only be verified with it"
            raise InputError("KEY_EXISTS", f"{path} is there already", remedy)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _create(private, key.pem(), 0o600)
        _create(public, key.public.pem, 0o644)
    except OSError as error:
        summary = f"{error.filename or directory}: {error.strerror or error}"
        raise InputError("UNWRITABLE_FILE", summary, "check the directory and its permissions") from None
    return key


def keyid_of(path: Path) -> str:
    """The key id of a key's file, of either half.

    Raises:
        ConfigError: it is a signing key that is open to others, or is no Ed25519 key.
        InputError: the file cannot be read, or holds no key.
    """
    private = b"PRIVATE KEY" in _read(path)[0]
    return SigningKey.load(path).keyid if private else VerifyKey.load(path).keyid


def _create(path: Path, content: bytes, mode: int) -> None:
    # O_EXCL follows no link either: what is there stays as it is.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> tuple[bytes, int]:
    """The content of a key's file, and its permissions."""
    try:
        # Not waiting for the other end of a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("UNREADABLE_FILE", f"{path} is no file", "give the path of a key's file")
            return file.read(_MOST_BYTES), stat.S_IMODE(status.st_mode)
    except OSError as error:
        summary = f"{path}: {error.strerror or error}"
        raise InputError("UNREADABLE_FILE", summary, "check the path and its permissions") from None
