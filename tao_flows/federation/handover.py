"""One run on its way to a partner: it is started in one place alone, whoever dies and whatever is not heard.

What is asked of a partner is written down before. From then on the partner may have the run, and it starts here only if
the partner says that it does not have it. A run that was never asked for may start here; then it is asked for no more.
Both are one row of the ledger, which has one of the two in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tao_flows.errors import InputError
from tao_flows.federation.store import Kept, PartnerStore, find_in, put_in
from tao_flows.ledger.base import Ledger
from tao_flows.units import s_from_ns

ASKED, SETTLED = range(2)
"""The partner may have it, and has not confirmed it; it is known whether the partner has it."""
_HERE: Final = ""


@dataclass(frozen=True, slots=True)
class Handover:
    """One run, by the key under which it is asked for.

    Raises (every method):
        LedgerError: the ledger cannot be read or written.
    """

    ledger: Ledger
    org: str
    key: str

    def ask(self, body: str) -> bool | None:
        """Takes note that it is about to be asked for.

        Args:
            body: what is to be known of the run if it is there; kept from the first time.

        Returns:
            Whether nobody asked for it before; None: it starts here, and is not to be asked for.
        """
        store = PartnerStore(self.ledger)
        try:
            if store.put(self.org, "asked", self.key, ASKED, body):
                return True
        except InputError:
            pass  # it was written before
        kept = store.find("asked", self.org, self.key)
        return None if kept is not None and kept.body == _HERE else False

    def keep(self) -> bool:
        """Has it start here; False where the partner may have it."""
        try:
            PartnerStore(self.ledger).put(self.org, "asked", self.key, ASKED, _HERE)
        except InputError:
            return False
        return True

    def settle(self) -> None:
        """It is known now whether the partner has it."""
        store = PartnerStore(self.ledger)
        kept = store.find("asked", self.org, self.key)
        if kept is not None and kept.seq == ASKED:
            store.put(self.org, "asked", self.key, SETTLED, kept.body)

    def silent_s(self) -> float:
        """Seconds between the first look at it that failed and this one, by the database's clock; none has succeeded since."""
        with self.ledger.transaction() as transaction:
            kept = find_in(transaction, "silence", self.org, self.key)
            if kept is not None and kept.seq % 2:
                return max(0.0, s_from_ns(transaction.now_ns() - kept.changed_wall_ns))
            put_in(transaction, Kept(self.org, "silence", self.key, 1 if kept is None else kept.seq + 1, ""))
        return 0.0

    def heard(self) -> None:
        """A look at it has succeeded."""
        with self.ledger.transaction(write=False) as transaction:
            kept = find_in(transaction, "silence", self.org, self.key)
        if kept is not None and kept.seq % 2:
            PartnerStore(self.ledger).put(self.org, "silence", self.key, kept.seq + 1, "")
