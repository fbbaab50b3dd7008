"""Heads that real sealers wrote, exchanged between two organisations: what an insider rewrites later, the partner sees."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import codes
from partners import Org
from recorded_run import REF, T0, S, record_run, task

from tao_flows.errors import BundleError, InputError
from tao_flows.federation.heads import HEADS_FILE, anchors_of, fetch_heads, kept_heads
from tao_flows.federation.publish import publish_runs
from tao_flows.federation.store import PartnerStore
from tao_flows.federation.trust import Trust
from tao_flows.governance.anchors import add_anchors, read_anchors
from tao_flows.governance.sealer import Sealer
from tao_flows.governance.verify import verify
from tao_flows.ledger import open_ledger
from tao_flows.partners import PartnerSpec
from tao_flows.testing import FakeClock

NOW = datetime.fromtimestamp(T0 // S, timezone.utc) + timedelta(hours=1)


@dataclass
class Side:
    """One organisation: its ledger, its bundles, and what it publishes."""

    folder: Path
    org: Org
    ledger: Any
    clock: FakeClock

    @classmethod
    def made(cls, name: str, root: Path) -> Side:
        folder = root / name
        folder.mkdir()
        ledger = open_ledger(f"sqlite:///{folder}/ledger.db")
        return cls(folder, Org(name, folder / "published"), ledger, FakeClock(wall_ns=T0 + 3_600 * S))

    def seal(self, root: str = "bundles", ledger: Any = None) -> Path:
        noted: list[str] = []
        sealer = Sealer(
            ledger or self.ledger, self.folder / root, self.org.key, "seal", clock=self.clock,
            note=lambda doing, error: noted.append(f"{doing}: {error}"),
        )  # fmt: skip
        path = sealer.seal(REF).path
        assert noted == []
        return path

    def publish(self, at_s: float = 0.0) -> None:
        publish_runs(self.org.publisher, self.ledger, "default", NOW + timedelta(seconds=at_s), sealed=True)

    def take(self, other: Side, at_s: float = 0.0) -> Path:
        """Keeps the heads of the other, as ``pools fetch --anchors`` does; the file of anchors."""
        now = NOW + timedelta(seconds=at_s)
        store, spec = PartnerStore(self.ledger), PartnerSpec(other.org.name, str(other.org.out))
        fetch_heads(spec, Trust((other.org.trusted(valid_from=NOW - timedelta(1), valid_until=None),)), store, now)
        path = self.folder / f"{other.org.name}.jsonl"
        add_anchors(path, anchors_of(store, other.org.name, now))
        return path


@pytest.fixture
def sides(tmp_path: Path) -> Any:
    a, b = Side.made("org-a", tmp_path), Side.made("org-b", tmp_path)
    for side, energy_uj in ((a, 1_000_000), (b, 2_000_000)):
        record_run(side.ledger)
        side.ledger.put_task(task("more", energy_uj))
    yield a, b
    for side in (a, b):
        side.ledger.close()


def forged(side: Side) -> Path:
    """The insider's bundle: the same run with another figure, from a ledger of his own, with the organisation's own key."""
    ledger = open_ledger(f"sqlite:///{side.folder}/forged.db")
    try:
        record_run(ledger)
        ledger.put_task(task("more", 1))
        return side.seal("forged", ledger)
    finally:
        ledger.close()


def test_both_sides_hold_the_others_heads_and_a_bundle_signed_anew_is_seen_by_the_partner(sides: Any) -> None:
    a, b = sides
    bundles = {side.org.name: side.seal() for side in sides}
    for side in sides:
        side.publish()
    for here, there in ((a, b), (b, a)):
        anchors, key = here.take(there), there.org.key.public
        assert [org for org, _ in kept_heads(PartnerStore(here.ledger))] == [there.org.name]
        assert codes(verify(bundles[there.org.name], [key], read_anchors(anchors))) == []
        lie = forged(there)
        assert codes(verify(lie, [key])) == [], "by itself it is as good as the true one"
        assert codes(verify(lie, [key], read_anchors(anchors))) == ["ANCHOR_MISMATCH"]


def test_a_head_that_an_insider_publishes_anew_is_refused_and_the_true_one_stays(sides: Any) -> None:
    a, b = sides
    b.seal()
    b.publish()
    anchors = a.take(b)
    true = anchors.read_bytes()
    ledger = open_ledger(f"sqlite:///{b.folder}/forged.db")
    try:
        record_run(ledger)
        ledger.put_task(task("more", 1))
        b.seal("forged", ledger)
        publish_runs(b.org.publisher, ledger, "default", NOW + timedelta(seconds=9), sealed=True)
    finally:
        ledger.close()
    with pytest.raises((InputError, BundleError), match="PARTNER_ROLLBACK"):
        a.take(b, 9)
    assert anchors.read_bytes() == true


def test_a_run_that_is_sealed_anew_for_late_figures_is_a_next_revision_that_the_partner_takes(sides: Any) -> None:
    a, b = sides
    b.seal()
    b.publish()
    a.take(b)
    b.ledger.put_task(task("late", 5_000))
    b.clock.advance(3_600)
    second = b.seal()
    b.publish(at_s=3_600)
    anchors = a.take(b, 3_600)
    assert codes(verify(second, [b.org.key.public], read_anchors(anchors))) == []
    assert len(list(read_anchors(anchors))) == 2, "the first is not forgotten"


def test_documents_of_a_partner_whose_clock_was_set_back_are_newer_all_the_same(sides: Any) -> None:
    a, b = sides
    b.seal()
    b.publish()
    a.take(b)
    b.ledger.put_task(task("late", 5_000))
    b.clock.advance(60)
    b.seal()
    before = (b.org.out / HEADS_FILE).read_bytes()
    b.publish(at_s=-600)
    assert (b.org.out / HEADS_FILE).read_bytes() != before
    a.take(b, 1)
    ((_, head),) = kept_heads(PartnerStore(a.ledger))
    assert head.revision == 2
