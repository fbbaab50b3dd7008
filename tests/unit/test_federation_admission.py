"""Who may be given work: nobody, unless code or a rule names them, and then only who is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from partners import API_URL, NOW, Org, offer

from tao_flows import runtime
from tao_flows.admission import Ask, Verdict
from tao_flows.config import ConfigWatcher
from tao_flows.federation.descriptor import PAYLOAD_TYPE, Descriptor
from tao_flows.federation.offers import accept
from tao_flows.federation.store import PartnerStore
from tao_flows.federation.trust import Trust
from tao_flows.governance import dsse
from tao_flows.records import RunKey
from tao_flows.runtime import Tao
from tao_flows.testing import FakeClock
from tao_flows.units import NS_PER_S

SETTINGS = """mode = "enforce"
org = "org-a"
trust = "trust.json"
pools = "pools.toml"
ledger = "ledger.db"
agent = "off"
{rule}
[signals.carbon.A]
value = 900
[partners.org-b]
source = "published"
api_url = "{api_url}"
"""
HOME = """[[pools]]
pool_id = "blue"
zone = "A"
energy_j = { low = 90, mean = 100, high = 110 }
runtime_s = { p50 = 60, p95 = 90 }
"""


class Here:
    """An organisation that trusts a partner."""

    def __init__(self, folder: Path, rule: str = "", *offers: Descriptor) -> None:
        (folder / "tao-flows.toml").write_text(SETTINGS.format(api_url=API_URL, rule=rule))
        (folder / "pools.toml").write_text(HOME)
        self.partner, self.clock = (
            Org("org-b", folder / "published"),
            FakeClock(wall_ns=round(NOW.timestamp()) * NS_PER_S),
        )
        self.partner.trust.save(folder / "trust.json")
        self.tao: Tao = runtime.build(ConfigWatcher(env={"HOME": str(folder)}, cwd=folder), self.clock)
        for each in offers or (offer(),):
            envelope = dsse.sign(each.to_payload(), PAYLOAD_TYPE, self.partner.key)
            accept(envelope, "org-b", self.partner.trust, PartnerStore(self.tao.ledger), NOW)

    def ask(self, orgs: tuple[str, ...] | None = ("org-b",), **more: Any) -> Verdict:
        key = RunKey("prefect", "default", "nightly", "r", "", "", 1)
        given: dict[str, Any] = {
            "can_reroute": True,
            "reroutable": True,
            "ahead": True,
            "reaches": lambda _: True,
            **more,
        }
        ask = Ask(key, "blue", self.clock.wall_ns(), allowed_orgs=orgs, **given)
        return self.tao.admission.ask(ask, self.tao.config)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    runtime.forget()


def test_work_goes_to_a_trusted_partner_that_it_names(folder: Path) -> None:
    verdict = Here(folder).ask()
    assert (verdict.action, verdict.pool) == ("reroute", "green@org-b")
    assert verdict.decision is not None
    (theirs,) = [pool for pool in verdict.decision.request["pools"] if pool.get("org")]
    assert (theirs["pool_id"], theirs["org"], theirs["pue"]) == ("green@org-b", "org-b", 1.1)
    assert {"id": "org", "value": "org-b", "limit": ["org-b"], "unit": None, "slack": None, "ok": True} in [
        constraint for each in verdict.decision.answer["candidates"] for constraint in each["constraints"]
    ]


def test_nobody_is_given_work_that_names_nobody(folder: Path) -> None:
    here = Here(folder)
    for orgs in (None, (), ("org-c",)):
        assert here.ask(orgs).pool == "blue"
    assert here.ask(reaches=None).pool == "blue", "an engine that cannot send it there"


@pytest.mark.parametrize(
    ("rule", "in_code", "pool"),
    [
        ('allowed_orgs = ["org-b"]', None, "green@org-b"),
        ('allowed_orgs = ["org-b"]', ("org-b",), "green@org-b"),
        ("allowed_orgs = []", ("org-b",), "blue"),
        ('allowed_orgs = ["org-c"]', ("org-b",), "blue"),
        ('allowed_orgs = ["org-b"]', (), "blue"),
    ],
)
def test_a_rule_may_name_partners_and_forbid_those_that_code_names(
    folder: Path, rule: str, in_code: tuple[str, ...] | None, pool: str
) -> None:
    assert Here(folder, f'[[rules]]\nname = "*"\n{rule}').ask(in_code).pool == pool


def test_a_key_that_is_revoked_takes_its_pools_out_within_seconds(folder: Path) -> None:
    here = Here(folder)
    assert here.ask().pool == "green@org-b"
    here.partner.trust.revoked("org-b", here.partner.key.keyid, NOW).save(folder / "trust.json")
    here.clock.advance(6)
    assert here.ask().pool == "blue"
    Trust().save(folder / "trust.json")


def test_a_trust_file_that_cannot_be_read_trusts_nobody_and_is_told_of(folder: Path) -> None:
    here = Here(folder)
    (folder / "trust.json").write_text("{")
    assert here.ask().pool == "blue"
    assert "BAD_TRUST" in [each.code for each in here.tao.incidents.of_run("")]


def test_a_partner_of_which_no_carbon_is_known_does_not_blind_the_decision(folder: Path) -> None:
    silent = Here(folder, "", offer(carbon=None, pue=offer().pue))
    verdict = silent.ask()
    assert verdict.pool == "blue"


def test_no_description_of_ours_makes_a_partners_pool_ours(folder: Path) -> None:
    here = Here(folder)
    (folder / "pools.toml").write_text(HOME + HOME.replace("blue", "green@org-b").replace('"A"', '"B"'))
    assert here.ask(None).pool == "blue"
