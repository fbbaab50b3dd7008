"""Which pools of partners may be chosen: those whose descriptors are believed now, at an address that our settings name."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from tao_flows.admission.ask import Noted
from tao_flows.clock import Clock
from tao_flows.config import TaoConfig
from tao_flows.errors import InputError, TaoError
from tao_flows.federation.descriptor import PAYLOAD_TYPE, Descriptor, read_descriptor
from tao_flows.federation.documents import MOST_POOLS, refused
from tao_flows.federation.fetch import read_document
from tao_flows.federation.store import PartnerStore
from tao_flows.federation.trust import Trust, load_trust
from tao_flows.ledger.base import Ledger
from tao_flows.partners import PartnerSpec, pool_at
from tao_flows.pools import WorkerPool
from tao_flows.units import NS_PER_S

POOLS_FILE: Final = "pools.jsonl"
"""What an organisation publishes: one signed descriptor a line."""
KEPT_S: Final = 5.0
"""Descriptors are read and verified anew this often: a key that is revoked counts no longer than that."""


@dataclass(frozen=True)
class Offer:
    """A partner's pool, and why it is not believed where it is not."""

    org: str
    pool_id: str
    """Among ours; that of the organisation's own where nothing could be read."""
    descriptor: Descriptor | None = None
    refusal: TaoError | None = None

    @property
    def usable(self) -> bool:
        """Whether work may be sent there."""
        return self.descriptor is not None and self.refusal is None


def accept(envelope: bytes, org: str, trust: Trust, store: PartnerStore, now: datetime) -> Descriptor:
    """Believes a descriptor, and keeps it: from now on no older one of the pool counts.

    Args:
        envelope: as published.
        org: who is to have signed it.
        trust: whose keys count.
        store: where it is kept.
        now: the present, aware.

    Raises:
        InputError: it is not believed; the code says why.
        LedgerError: it cannot be kept, so that it does not count.
    """
    descriptor = opened_descriptor(envelope, org, trust, now)
    store.put(org, "descriptor", descriptor.pool_id, descriptor.seq, envelope.decode("ascii"))
    return descriptor


def opened_descriptor(envelope: bytes, org: str, trust: Trust, now: datetime) -> Descriptor:
    """The descriptor of an envelope, believed but for its number.

    Raises:
        InputError: as ``accept``.
    """
    descriptor = read_descriptor(trust.opened(envelope, PAYLOAD_TYPE, org, now))
    if descriptor.org != org:
        raise refused("PARTNER_WRONG_ORG", f"{org} has signed a descriptor of a pool of {descriptor.org}")
    descriptor.check_time(now)
    return descriptor


def fetch_offers(spec: PartnerSpec, trust: Trust, store: PartnerStore, now: datetime) -> list[Offer]:
    """Takes what a partner publishes now; each descriptor is believed or refused by itself.

    Raises:
        SourceError: there is nothing to be had.
        InputError: PARTNER_TOO_LARGE, there are too many.
        LedgerError: they cannot be kept.
    """
    lines = [line for line in read_document(spec, POOLS_FILE).split(b"\n") if line]
    if len(lines) > MOST_POOLS:
        raise refused("PARTNER_TOO_LARGE", f"{spec.name} publishes more than {MOST_POOLS} pools")
    return [_taken(line, spec.org, trust, store, now) for line in lines]


def _taken(line: bytes, org: str, trust: Trust, store: PartnerStore, now: datetime) -> Offer:
    try:
        descriptor = accept(line, org, trust, store, now)
    except InputError as error:
        return Offer(org, pool_at("?", org), refusal=error)
    return Offer(org, descriptor.id, descriptor)


def offers(config: TaoConfig, store: PartnerStore, now: datetime) -> Iterator[Offer]:
    """Every descriptor that is kept, verified anew: keys, times and addresses as they stand.

    Raises:
        ConfigError: the file of trust cannot be read.
        LedgerError: the ledger cannot be read.
    """
    trust = load_trust(config.trust)
    for kept in store.all("descriptor"):
        pool_id = pool_at(kept.name, kept.org)
        try:
            descriptor = opened_descriptor(kept.body.encode("ascii"), kept.org, trust, now)
        except InputError as error:
            yield Offer(kept.org, pool_id, refusal=error)
            continue
        yield Offer(kept.org, pool_id, descriptor, _elsewhere(config, descriptor))


def _elsewhere(config: TaoConfig, descriptor: Descriptor) -> TaoError | None:
    spec, api_url = config.partners.get(descriptor.org), descriptor.endpoint.api_url
    if spec is not None and spec.api_url == api_url:
        return None
    named = "no address" if spec is None or not spec.api_url else spec.api_url
    summary = f"{descriptor.id} is offered at {api_url}, and the settings name {named}"
    return refused("PARTNER_ENDPOINT", summary, f"if that is right: api_url in [partners.{descriptor.org}]")


class PartnerPools:
    """The pools of partners, as decisions ask for them. Safe to share between threads.

    Args:
        ledger: where descriptors are kept.
        clock: where time comes from.
        noted: told of our failures.
    """

    def __init__(self, ledger: Ledger, clock: Clock, noted: Noted) -> None:
        self._store, self._clock, self._noted = PartnerStore(ledger), clock, noted
        self._lock = threading.Lock()
        self._read: tuple[int, TaoConfig, Sequence[Offer]] | None = None

    def __call__(self, config: TaoConfig) -> tuple[WorkerPool, ...]:
        """Those that work may be sent to. Never raises: what cannot be read is not trusted."""
        return tuple(each.descriptor.to_pool() for each in self.usable(config) if each.descriptor is not None)

    def usable(self, config: TaoConfig) -> Sequence[Offer]:
        """The same as offers."""
        if config.trust is None or not config.org or not config.partners:
            return ()
        with self._lock:
            now_ns, kept = self._clock.monotonic_ns(), self._read
            if kept is None or kept[1] is not config or now_ns - kept[0] >= KEPT_S * NS_PER_S:
                kept = self._read = (now_ns, config, self._look(config))
            return kept[2]

    def find(self, config: TaoConfig, pool_id: str) -> Descriptor | None:
        """The descriptor of a pool of ours by its id; None where it is not trusted now."""
        return next((each.descriptor for each in self.usable(config) if each.pool_id == pool_id), None)

    def _look(self, config: TaoConfig) -> Sequence[Offer]:
        now = datetime.fromtimestamp(self._clock.wall_ns() / NS_PER_S, timezone.utc)
        try:
            return [each for each in offers(config, self._store, now) if each.usable]
        except TaoError as error:
            if error.code != "LEDGER_WRITE_ONLY":
                self._noted.note_error("looking at partners' pools", error)
            return ()
