"""Which documents of other organisations are believed, and what becomes of those that are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from partners import API_URL, NOW, WEEK, Org, offer

from tao_flows.config import TaoConfig
from tao_flows.errors import ConfigError, InputError
from tao_flows.federation.descriptor import PAYLOAD_TYPE, Descriptor, read_descriptor
from tao_flows.federation.heads import HEADS_FILE, fetch_heads, kept_heads
from tao_flows.federation.offers import POOLS_FILE, accept, fetch_offers, offers
from tao_flows.federation.records import RunHead
from tao_flows.federation.store import PartnerStore
from tao_flows.federation.trust import Trust, TrustedKey, load_trust
from tao_flows.governance import dsse
from tao_flows.governance.canonical import canonical
from tao_flows.governance.keys import SigningKey
from tao_flows.ledger import open_ledger
from tao_flows.partners import PartnerSpec, parse_partners


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartnerStore]:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield PartnerStore(ledger)
    ledger.close()


@pytest.fixture
def org(tmp_path: Path) -> Org:
    return Org("org-b", tmp_path / "published")


def signed(org: Org, descriptor: Descriptor) -> bytes:
    return dsse.sign(descriptor.to_payload(), PAYLOAD_TYPE, org.key)


def code_of(envelope: bytes, trust: Trust, store: PartnerStore, now: datetime = NOW) -> str:
    with pytest.raises(InputError) as refused:
        accept(envelope, "org-b", trust, store, now)
    assert store.all("descriptor") == ()
    return refused.value.code


def test_a_descriptor_is_read_as_it_was_written_and_its_pool_bears_its_organisation(org: Org) -> None:
    descriptor = offer()
    assert read_descriptor(descriptor.to_payload()) == descriptor
    pool = descriptor.to_pool()
    assert (pool.pool_id, pool.org, pool.pue, pool.claimed_g_per_kwh) == ("green@org-b", "org-b", 1.1, 20.0)


def test_what_a_trusted_key_signed_is_believed_and_kept(org: Org, store: PartnerStore) -> None:
    assert accept(signed(org, offer()), "org-b", org.trust, store, NOW) == offer()
    (kept,) = store.all("descriptor")
    assert (kept.org, kept.name, kept.seq) == ("org-b", "green", 1)


def test_every_flipped_byte_of_an_envelope_is_refused(org: Org, store: PartnerStore) -> None:
    envelope = signed(org, offer())
    for place in range(len(envelope)):
        flipped = bytes([*envelope[:place], envelope[place] ^ 1, *envelope[place + 1 :]])
        code_of(flipped, org.trust, store)


def test_each_way_of_not_being_trusted_is_named(org: Org, store: PartnerStore) -> None:
    envelope = signed(org, offer())
    stranger = Org("org-c", org.out)
    both = Trust((org.trusted(), stranger.trusted()))
    assert code_of(envelope, Trust(), store) == "PARTNER_UNKNOWN_ORG"
    assert code_of(signed(stranger, offer()), org.trust, store) == "PARTNER_UNKNOWN_KEY"
    assert code_of(signed(stranger, offer()), both, store) == "PARTNER_WRONG_ORG"
    assert code_of(envelope, Trust((org.trusted(valid_until=NOW),)), store) == "PARTNER_KEY_EXPIRED"
    assert code_of(envelope, Trust((org.trusted(valid_from=NOW + WEEK),)), store) == "PARTNER_KEY_NOT_YET_VALID"
    assert code_of(envelope, Trust((org.trusted(revoked_at=NOW + WEEK),)), store) == "PARTNER_KEY_REVOKED"
    assert code_of(signed(org, replace(offer(), org="org-c")), org.trust, store) == "PARTNER_WRONG_ORG"
    assert code_of(signed(org, offer(valid_until=NOW)), org.trust, store) == "PARTNER_EXPIRED"
    assert code_of(signed(org, offer(valid_from=NOW + timedelta(seconds=1))), org.trust, store) == (
        "PARTNER_NOT_YET_VALID"
    )
    assert code_of(signed(org, offer(pool_id="x" * 100_000)), org.trust, store) == "PARTNER_TOO_LARGE"


def forged_with_keyid_of(org: Org) -> bytes:
    stranger = SigningKey.generate()
    envelope: dict[str, Any] = json.loads(dsse.sign(offer().to_payload(), PAYLOAD_TYPE, stranger))
    envelope["signatures"][0]["keyid"] = org.key.keyid
    return canonical(envelope)


def test_a_signature_by_another_key_under_a_trusted_keys_name_is_refused(org: Org, store: PartnerStore) -> None:
    assert code_of(forged_with_keyid_of(org), org.trust, store) == "PARTNER_BAD_SIGNATURE"


def test_a_document_of_another_kind_is_no_descriptor(org: Org, store: PartnerStore) -> None:
    envelope = dsse.sign(offer().to_payload(), "application/vnd.in-toto+json", org.key)
    assert code_of(envelope, org.trust, store) == "PARTNER_MALFORMED"


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"seq": 7},
        {"seq": "-1"},
        {"seq": "01"},
        {"pool_id": "green@org-a"},
        {"pool_id": "a\nb"},
        {"org": "Org B"},
        {"schema": "tao-flows/pool-descriptor/2"},
        {"valid_until": "2026-11-01T00:00:00Z"},
        {"valid_from": "2026-11-23"},
        {"pue": {"value": 0.5, "source": "a guess"}},
        {"pue": {"value": 1.1}},
        {"zone": None},
        {"capacity": 0},
        {"energy_j": {"low": 2, "mean": 1, "high": 3}},
        {"power_w": -1},
        {"endpoint": {"engine": "prefect", "api_url": API_URL, "flow": "nightly"}},
        {"endpoint": {"engine": "airflow", "api_url": API_URL, "dag_id": "nightly", "key": "hunter2"}},
        {"endpoint": {"engine": "cron", "api_url": API_URL, "flow": "nightly"}},
        {"endpoint": {"engine": "airflow", "api_url": "https://me:pw@host/api", "dag_id": "nightly"}},
    ],
)
def test_an_unknown_missing_or_wrong_field_refuses_the_whole(
    org: Org, store: PartnerStore, change: dict[str, Any]
) -> None:
    payload = canonical({**json.loads(offer().to_payload()), **change})
    assert code_of(dsse.sign(payload, PAYLOAD_TYPE, org.key), org.trust, store) == "PARTNER_MALFORMED"


def test_an_older_descriptor_is_refused_after_a_newer_one_was_seen(org: Org, store: PartnerStore) -> None:
    old, new, other = (signed(org, each) for each in (offer(seq=1), offer(seq=2), offer(seq=2, capacity=3)))
    for envelope in (old, new, new):
        accept(envelope, "org-b", org.trust, store, NOW)
    for envelope in (old, other):
        with pytest.raises(InputError) as refused:
            accept(envelope, "org-b", org.trust, store, NOW)
        assert refused.value.code == "PARTNER_ROLLBACK"
    (kept,) = store.all("descriptor")
    assert kept.body.encode() == new


def test_one_bad_line_of_what_is_published_refuses_no_other(org: Org, store: PartnerStore) -> None:
    org.publisher.pools([offer("green"), offer("blue")])
    with (org.out / POOLS_FILE).open("ab") as file:
        file.write(b"{}\n")
    found = fetch_offers(PartnerSpec("org-b", source=str(org.out)), org.trust, store, NOW)
    assert [each.pool_id for each in found if each.usable] == ["green@org-b", "blue@org-b"]
    (bad,) = [each for each in found if not each.usable]
    assert bad.refusal is not None
    assert bad.refusal.code == "PARTNER_MALFORMED"


def test_publishing_a_pool_again_leaves_the_others_and_takes_its_own_place(org: Org) -> None:
    org.publisher.pools([offer("green"), offer("blue")])
    there = org.publisher.pools([offer("green", seq=2)])
    assert {each.pool_id: each.seq for each in there} == {"green": 2, "blue": 1}


def config_of(tmp_path: Path, org: Org, trust: Trust, api_url: str = API_URL) -> TaoConfig:
    path = tmp_path / "trust.json"
    trust.save(path)
    return TaoConfig(trust=path, partners={"org-b": PartnerSpec("org-b", str(org.out), api_url)})


def test_what_was_believed_once_is_verified_anew_each_time(tmp_path: Path, org: Org, store: PartnerStore) -> None:
    accept(signed(org, offer()), "org-b", org.trust, store, NOW)

    def standing(trust: Trust, now: datetime = NOW, api_url: str = API_URL) -> str:
        (found,) = offers(config_of(tmp_path, org, trust, api_url), store, now)
        return "usable" if found.refusal is None else found.refusal.code

    assert standing(org.trust) == "usable"
    assert standing(org.trust, NOW + WEEK - timedelta(seconds=1)) == "usable"
    assert standing(Trust((org.trusted(valid_until=None),)), NOW + WEEK) == "PARTNER_EXPIRED"
    assert standing(org.trust.revoked("org-b", org.key.keyid[:12], NOW)) == "PARTNER_KEY_REVOKED"
    assert standing(Trust()) == "PARTNER_UNKNOWN_ORG"
    assert standing(org.trust, api_url="https://elsewhere.example/api") == "PARTNER_ENDPOINT"


def test_trust_is_read_as_it_was_saved_and_a_broken_file_is_no_trust(tmp_path: Path, org: Org) -> None:
    path = tmp_path / "trust.json"
    other = Org("org-c", org.out)
    trust = org.trust.with_key(other.trusted(valid_until=None, revoked_at=NOW))
    trust.save(path)
    assert [vars(each) | {"key": each.key.keyid} for each in load_trust(path).keys] == [
        vars(each) | {"key": each.key.keyid} for each in trust.keys
    ]
    assert load_trust(tmp_path / "none.json") == Trust()
    whole = path.read_text()
    for broken in (whole[:-3], whole.replace('"orgs"', '"orgz"'), whole.replace("org-c", "org-b/../x"), "[]"):
        path.write_text(broken)
        with pytest.raises(ConfigError, match="BAD_TRUST"):
            load_trust(path)


def test_one_key_belongs_to_one_organisation(tmp_path: Path, org: Org) -> None:
    with pytest.raises(InputError, match="PARTNER_WRONG_ORG"):
        org.trust.with_key(TrustedKey("org-c", org.key.public, NOW))
    key = org.trusted().to_json()
    path = tmp_path / "trust.json"
    path.write_text(json.dumps({"schema": "tao-flows/trust/1", "orgs": {n: {"keys": [key]} for n in ("a", "b")}}))
    with pytest.raises(ConfigError, match="BAD_TRUST"):
        load_trust(path)


def head(run_id: str, revision: int = 1, digest: str = "a") -> RunHead:
    return RunHead(f"run-{run_id}", revision, 4, "b" * 64, digest * 64, "e" * 64)


def test_heads_of_a_partner_are_kept_and_none_of_them_can_be_taken_back(org: Org, store: PartnerStore) -> None:
    spec = PartnerSpec("org-b", source=str(org.out))

    def published(*heads: RunHead, at_s: float) -> str:
        now = NOW + timedelta(seconds=at_s)
        org.publisher.heads(heads, now)
        try:
            fetch_heads(spec, org.trust, store, now)
        except InputError as error:
            return error.code
        return "kept"

    assert published(head("1"), head("2"), at_s=0) == "kept"
    first = (org.out / HEADS_FILE).read_bytes()
    assert published(head("1", 2, "c"), head("2"), at_s=1) == "kept"
    assert published(head("2", digest="d"), at_s=2) == "PARTNER_ROLLBACK"
    assert published(head("1", 1), head("2"), at_s=3) == "PARTNER_ROLLBACK"
    assert published(head("2"), at_s=4) == "kept"
    (org.out / HEADS_FILE).write_bytes(first)
    with pytest.raises(InputError, match="PARTNER_ROLLBACK"):
        fetch_heads(spec, org.trust, store, NOW)
    assert kept_heads(store) == [("org-b", head("1", 2, "c")), ("org-b", head("2"))]


def test_partners_are_named_in_the_settings_with_clear_errors(tmp_path: Path) -> None:
    parsed = parse_partners({"org-b": {"source": "pub", "api_url": "https://b.example/api/"}}, tmp_path)
    assert parsed == {"org-b": PartnerSpec("org-b", str(tmp_path / "pub"), "https://b.example/api")}
    for table, said in (
        ({"Org B": {}}, "no name of an organisation"),
        ({"org-b": {"sauce": "x"}}, "did you mean 'source'"),
        ({"org-b": {"api_url": "http://b.example/api"}}, "not encrypted"),
        ({"org-b": {"api_url": "https://u:secret@b.example/api"}}, "no address of a server"),
        ({"org-b": {"key_env": "A", "key_file": "b"}}, "more than one key"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            parse_partners(table, tmp_path)
        assert "secret" not in str(refused.value)
