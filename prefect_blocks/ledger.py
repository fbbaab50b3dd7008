"""Where records are kept, with the password apart, as a Block."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from prefect.blocks.core import Block
from pydantic import Field, SecretStr, model_validator
from typing_extensions import Self

from prefect_blocks.fields import Strict, reference, revealed
from tao_flows.config import mask_password, parse_settings
from tao_flows.ledger import open_ledger
from tao_flows.ledger.relational import RelationalLedger


class LedgerUrl(Strict, Block):
    """Where tao-flows keeps its records, and the password or token that goes with it.

    Example:
        Load a stored address:
        ```python
        from prefect_blocks import LedgerUrl

        ledger_url = LedgerUrl.load("BLOCK_NAME")
        ```
        Choose it in the field `ledger` of a Tao Controller block.
    """

    _block_type_name = "Ledger URL"
    _block_type_slug = "tao-ledger-url"
    _block_schema_capabilities = ["tao-ledger"]  # noqa: RUF012 - Prefect reads it as a plain list
    _description = "Where tao-flows keeps its records: a database, a file or an ingest; the password is kept secret."

    url: str = Field(
        description="A path, postgresql://USER@HOST/DATABASE, or the https:// address of an ingest; no password in it.",
        examples=["postgresql://tao@db.example/tao"],
    )
    password: SecretStr | None = Field(
        default=None, description="The password of that user, or the token of that ingest."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if mask_password(self.url) != self.url:
            raise ValueError("url: there is a password in it, where everyone can read it: give it in password")
        if revealed(self.password) and not self._takes_password():
            raise ValueError("password: only postgresql://USER@HOST/DATABASE and an https:// address take one")
        parse_settings("block", {"ledger": self.url})
        return self

    def open(self) -> RelationalLedger:
        """Opens the ledger; nothing is asked of it before the first read or write.

        Raises:
            ConfigError: LEDGER_URL, the address names no ledger.
            MissingExtraError: what the ledger needs is not installed.
        """
        secret = revealed(self.password)
        if not secret:
            return open_ledger(str(parse_settings("block", {"ledger": self.url})["ledger"]))
        if self.url.startswith(("https://", "http://")):
            from tao_flows.ledger.remote import RemoteLedger

            return RemoteLedger(self.url, token=lambda: secret)
        user, _, rest = self.url.partition("://")[2].partition("@")
        return open_ledger(f"{self.url.partition('://')[0]}://{user}:{quote(secret, safe='')}@{rest}")

    def to_config(self) -> dict[str, Any]:
        """The settings that it makes. With a password the block is named in it, and the password not told.

        Raises:
            ValueError: it holds a password, and has not been saved or loaded.
        """
        return {"ledger": reference(self) if revealed(self.password) else self.url}

    def _takes_password(self) -> bool:
        scheme, _, rest = self.url.partition("://")
        return scheme in {"https", "http"} or (scheme.startswith("postgres") and "@" in rest)
