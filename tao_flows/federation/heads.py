"""The heads of an organisation's bundles, which its partners keep: none of them can be taken back or rewritten later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tao_flows.controller.fields import Fields, items
from tao_flows.controller.model import iso
from tao_flows.federation.documents import MALFORMED, MAX_FILE_BYTES, org, reading, refused, schema_is, whole
from tao_flows.federation.fetch import read_document
from tao_flows.federation.records import RunHead
from tao_flows.federation.store import Kept, PartnerStore
from tao_flows.federation.trust import Trust
from tao_flows.governance.anchors import Anchor
from tao_flows.governance.canonical import canonical, parse
from tao_flows.governance.layout import bundle_name
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.partners import PartnerSpec

SCHEMA: Final = "tao-flows/heads/1"
PAYLOAD_TYPE: Final = "application/vnd.tao-flows.heads+json"
HEADS_FILE: Final = "heads.dsse.json"
MOST_HEADS: Final = 5_000
"""The newest so many are published; what a partner has kept of older ones stays with it."""
_SEALED: Final = """SELECT engine, namespace, run_id, flow, revision, size, head, digest, keyid FROM seals
    WHERE keyid <> '' AND namespace = :namespace ORDER BY sealed_wall_ns, revision"""


@dataclass(frozen=True)
class Heads:
    """All that an organisation says at one time."""

    org: str
    seq: int
    heads: tuple[RunHead, ...]

    def to_payload(self) -> bytes:
        """The canonical JSON that is signed; ``read_heads`` gives the same again."""
        heads = [each.to_json() for each in self.heads]
        return canonical({"schema": SCHEMA, "org": self.org, "seq": str(self.seq), "heads": heads})


def read_heads(payload: bytes) -> Heads:
    """The heads of a payload whose signature has been verified.

    Raises:
        InputError: PARTNER_MALFORMED, it is no such document, or a field of it is unknown, missing or wrong.
    """
    with reading("a list of heads"):
        fields = Fields(parse(payload), "", ("schema", "org", "seq", "heads"))
        schema_is(fields, SCHEMA)
        heads = tuple(RunHead.of(item, path) for item, path in items(fields.raw("heads"), "heads", "heads"))
        if len({each.bundle for each in heads}) != len(heads) or len(heads) > MOST_HEADS:
            raise refused(MALFORMED, "a list of heads names a run twice, or too many")
        return Heads(org(fields, "org"), whole(fields, "seq"), heads)


def fetch_heads(spec: PartnerSpec, trust: Trust, store: PartnerStore, now: datetime) -> int:
    """Keeps the heads that a partner publishes now, all or none of them; how many it told.

    Raises:
        SourceError: there is nothing to be had.
        InputError: PARTNER_ROLLBACK, one of them is older than what was seen, or another one than was seen; or it is
            not believed for another reason.
        LedgerError: they cannot be kept.
    """
    envelope = read_document(spec, HEADS_FILE)
    told = read_heads(trust.opened(envelope, PAYLOAD_TYPE, spec.org, now, MAX_FILE_BYTES))
    if told.org != spec.org:
        raise refused("PARTNER_WRONG_ORG", f"{spec.org} has signed heads of {told.org}")
    proof = Kept(spec.org, "heads", HEADS_FILE, told.seq, envelope.decode("ascii"))
    store.put_all([proof, *(kept_head(spec.org, head) for head in told.heads)])
    return len(told.heads)


def kept_head(org: str, head: RunHead) -> Kept:
    """A head as it is kept: of a run's revisions the last one."""
    return Kept(org, "head", head.bundle, head.revision, canonical(head.to_json()).decode())


def kept_heads(store: PartnerStore) -> Sequence[tuple[str, RunHead]]:
    """What is kept of every partner: anchors for the bundles that it shows later.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    return [(each.org, RunHead.of(parse(each.body.encode()), each.name)) for each in store.all("head")]


def anchors_of(store: PartnerStore, org: str, now: datetime) -> list[Anchor]:
    """The same of one partner in the form that ``verify --anchor`` reads.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    return [
        Anchor(each.bundle, each.revision, each.size, each.head, each.digest, each.keyid, iso(now))
        for whose, each in kept_heads(store)
        if whose == org
    ]


def own_heads(ledger: Ledger, namespace: str) -> dict[str, RunHead]:
    """Of every run that was sealed and signed here the last revision, by bundle, the newest last.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.transaction(write=False) as transaction:
        rows = transaction.execute(_SEALED, namespace=namespace)
    found: dict[str, RunHead] = {}
    for engine, space, run_id, flow, *seal in rows:
        head = RunHead(bundle_name(RunRef(engine, space, run_id, flow)), *seal)
        found.pop(head.bundle, None)
        found[head.bundle] = head
    return found
