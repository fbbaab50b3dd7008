"""Blocks as settings name them: ``ledger = "conn:SLUG/NAME"``, and ``key = "conn:NAME"`` of a signal.

A name alone is that of a Ledger URL block, or for a key of one of Prefect's own Secret blocks. A secret stays in its
block until it is used: it is in no setting, no environment and no record.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from prefect.blocks.core import Block

from tao_flows.errors import LedgerError, SourceError
from tao_flows.ledger.base import Ledger
from tao_flows.partners import PartnerSpec
from tao_flows.prefect._compat import impatient
from tao_flows.signals.keys import Credentials
from tao_flows.signals.spec import SignalSpec

KEPT_S: Final = 60.0
"""A block that was read counts this long, and one that could not be read is not asked for again before."""
_REMEDY: Final = "see whether it is in the UI under Blocks, and whether the API answers"


class PrefectConnections:
    """Looks blocks up when they are needed. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, Any]] = {}
        """By ``SLUG/NAME``: when it was read, and the block, or why there is none."""

    def keep(self, block: Any) -> None:
        """Takes a block that was read for another reason, so that it need not be read again."""
        self._found[f"{block.get_block_type_slug()}/{block._block_document_name}"] = (time.monotonic(), block)  # noqa: SLF001

    def ledger(self, name: str) -> Ledger:
        """Opens the ledger of a Ledger URL block, or of a Tao Controller block.

        Raises:
            LedgerError: CONNECTION_UNKNOWN, there is no such block, or it cannot be had now.
            ConfigError: it names no ledger.
            MissingExtraError: what the ledger needs is not installed.
        """
        from prefect_blocks import LedgerUrl, TaoController

        block = self._block(name, "tao-ledger-url")
        address = block.ledger if isinstance(block, TaoController) else block
        if not isinstance(address, LedgerUrl):
            raise LedgerError("CONNECTION_UNKNOWN", f"the block {name} names no ledger", "name a Ledger URL block")
        return address.open()

    def credentials(self, spec: SignalSpec) -> Credentials | None:
        """The key of a signal; None where it names no block.

        Raises:
            SourceError: SIGNAL_KEY, there is no such block, or it cannot be had now.
        """
        from prefect_blocks import CarbonSignal, PriceSignal

        if not spec.key_conn:
            return None
        try:
            block = self._block(spec.key_conn, "secret")
        except LedgerError as error:
            raise SourceError("SIGNAL_KEY", f"{spec.name}: {error.summary}", error.remedy) from error
        if isinstance(block, (CarbonSignal, PriceSignal)):
            return block.to_credentials()
        if block.get_block_type_slug() != "secret":
            remedy = "name a Secret block, or a signal's own"
            raise SourceError("SIGNAL_KEY", f"{spec.name}: the block {spec.key_conn} holds no key", remedy)
        return Credentials(str(block.get()), spec.user)

    def partner_key(self, spec: PartnerSpec) -> str:
        """The key to a partner's API; empty where it needs none.

        Raises:
            SourceError: PARTNER_KEY, it is named and not to be had.
        """
        if not spec.key_conn:
            return spec.key()
        try:
            block = self._block(spec.key_conn, "secret")
        except LedgerError as error:
            raise SourceError("PARTNER_KEY", f"{spec.name}: {error.summary}", error.remedy) from error
        if block.get_block_type_slug() != "secret":
            raise SourceError("PARTNER_KEY", f"{spec.name}: {spec.key_conn} is no Secret block", "name a Secret block")
        return str(block.get())

    def _block(self, name: str, slug: str) -> Any:
        """A block by ``SLUG/NAME``, or by a name alone among those of ``slug``."""
        reference = name if "/" in name else f"{slug}/{name}"
        with self._lock:
            read_s, found = self._found.get(reference, (-KEPT_S, None))
            if found is None or time.monotonic() - read_s >= KEPT_S:
                found = _read(reference)
                self._found[reference] = (time.monotonic(), found)
        if isinstance(found, Exception):
            said = f"{type(found).__name__}: {found}".splitlines()[0]
            raise LedgerError("CONNECTION_UNKNOWN", f"the block {reference} cannot be had: {said}", _REMEDY)
        return found


def _read(reference: str) -> Any:
    import prefect_blocks  # noqa: F401 - so that its types are known by their slugs

    try:
        with impatient():
            # Prefect decides at run time whether this is a coroutine, and its types do not know how to ask.
            return Block.load(reference, _sync=True)  # type: ignore[call-arg]
    except Exception as error:  # noqa: BLE001 - no such block and an API that does not answer end alike
        return error
