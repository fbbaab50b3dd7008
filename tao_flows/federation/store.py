"""What is kept of partners, for all who share a ledger: the newest of each document, and what was sent to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tao_flows.federation.documents import refused
from tao_flows.ledger.base import Ledger, Transaction

Kind = Literal["asked", "descriptor", "head", "heads", "record", "sent", "silence"]
"""A run that a partner was asked to run, or is not to be; a pool's descriptor; a run's head; the number of a partner's
list of heads; a run's record; a run that we sent; since when a partner has said nothing of a run."""
_PUT: Final = """INSERT INTO partners (org, kind, name, seq, body, changed_wall_ns)
    VALUES (:org, :kind, :name, :seq, :body, :now)
    ON CONFLICT (org, kind, name) DO UPDATE SET seq = excluded.seq, body = excluded.body,
    changed_wall_ns = excluded.changed_wall_ns"""
_OF: Final = "SELECT org, kind, name, seq, body, changed_wall_ns FROM partners WHERE kind = :kind"
_ORDER: Final = "ORDER BY org, name"


@dataclass(frozen=True, slots=True)
class Kept:
    """One row."""

    org: str
    kind: str
    name: str
    seq: int
    body: str
    changed_wall_ns: int = 0
    """By the database's clock, which writes it."""


class PartnerStore:
    """Documents of partners in a ledger. A number that has been seen is never followed by a lower one.

    Raises (every method):
        LedgerError: the ledger cannot be read or written.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def put(self, org: str, kind: Kind, name: str, seq: int, body: str) -> bool:
        """Keeps a document in place of the last one of that name; whether it is new.

        Raises:
            InputError: PARTNER_ROLLBACK, a newer one was seen, or another one with the same number.
        """
        with self._ledger.transaction() as transaction:
            return put_in(transaction, Kept(org, kind, name, seq, body))

    def put_all(self, kept: Sequence[Kept]) -> None:
        """Keeps several, or none of them.

        Raises:
            InputError: as ``put``.
        """
        with self._ledger.transaction() as transaction:
            for each in kept:
                put_in(transaction, each)

    def all(self, kind: Kind) -> tuple[Kept, ...]:
        """Everything of a kind, by organisation and name."""
        with self._ledger.transaction(write=False) as transaction:
            return tuple(Kept(*row) for row in transaction.execute(f"{_OF} {_ORDER}", kind=kind))

    def sent(self, below_seq: int, kind: Kind = "sent") -> tuple[Kept, ...]:
        """The runs that we sent, or asked for, and that have not come so far yet."""
        with self._ledger.transaction(write=False) as transaction:
            rows = transaction.execute(f"{_OF} AND seq < :below {_ORDER}", kind=kind, below=below_seq)
            return tuple(Kept(*row) for row in rows)

    def find(self, kind: Kind, org: str, name: str) -> Kept | None:
        """One document; None where there is none."""
        with self._ledger.transaction(write=False) as transaction:
            return find_in(transaction, kind, org, name)


def put_in(transaction: Transaction, kept: Kept) -> bool:
    """``PartnerStore.put`` within a transaction.

    Raises:
        InputError: PARTNER_ROLLBACK.
    """
    before = find_in(transaction, kept.kind, kept.org, kept.name)
    if before is not None and (kept.seq < before.seq or (kept.seq == before.seq and kept.body != before.body)):
        what = f"{kept.kind} {kept.name!r} of {kept.org}"
        said = "another one with this number" if kept.seq == before.seq else f"one with the number {before.seq}"
        raise refused("PARTNER_ROLLBACK", f"{what} has the number {kept.seq}, and {said} was seen")
    if before is not None and before.seq == kept.seq:
        return False
    now_ns = transaction.now_ns()
    transaction.change(_PUT, org=kept.org, kind=kept.kind, name=kept.name, seq=kept.seq, body=kept.body, now=now_ns)
    return True


def find_in(transaction: Transaction, kind: str, org: str, name: str) -> Kept | None:
    """``PartnerStore.find`` within a transaction."""
    found = transaction.execute(f"{_OF} AND org = :org AND name = :name", kind=kind, org=org, name=name)
    return Kept(*found[0]) if found else None
