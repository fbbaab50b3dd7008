from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

import prefect_blocks
from prefect_blocks import (
    CarbonSignal,
    EnergyBudget,
    LedgerUrl,
    PriceSignal,
    SigningKey,
    TaoController,
    WorkerPoolProfile,
)
from tao_flows import budget as core
from tao_flows import config, runtime
from tao_flows.config import SETTINGS, load_config
from tao_flows.errors import LedgerError, SourceError
from tao_flows.ledger import open_ledger
from tao_flows.prefect import settings
from tao_flows.prefect.connections import PrefectConnections
from tao_flows.prefect.settings import BlockSettings, tao_here
from tao_flows.signals.spec import parse_signals

pytestmark = pytest.mark.prefect
BLOCKS = [getattr(prefect_blocks, name) for name in prefect_blocks.__all__]
SECRET = "tell-nobody"


def pem() -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize("block", BLOCKS)
class TestAgainstPrefectsOwnSuite(BlockStandardTestSuite):
    # The project has no page on the web to link to. A logo could only be fetched from there: Prefect refuses any other
    # address, a data URI too, and the UI draws its own sign.
    test_has_a_documentation_url = None
    test_has_a_valid_image = None

    @pytest.fixture
    def block(self, request):  # the parametrisation above stands in for it
        return request.param


def test_names_kept_in_servers_never_change():
    assert {block.__name__: (block.get_block_type_slug(), *block.get_block_capabilities()) for block in BLOCKS} == {
        "CarbonSignal": ("tao-carbon-signal", "tao-signal"),
        "EnergyBudget": ("tao-energy-budget", "tao-energy-budget"),
        "LedgerUrl": ("tao-ledger-url", "tao-ledger"),
        "PriceSignal": ("tao-price-signal", "tao-signal"),
        "SigningKey": ("tao-signing-key", "tao-signing-key"),
        "TaoController": ("tao-controller", "tao-settings"),
        "WorkerPoolProfile": ("tao-worker-pool-profile", "tao-worker-pool"),
    }


def test_installing_the_package_registers_the_collection():
    (entry,) = entry_points(group="prefect.collections", name="prefect_blocks")
    assert [getattr(entry.load(), name) for name in prefect_blocks.__all__] == BLOCKS


def test_a_budget_is_kept_by_the_server_and_named_as_its_block(server):
    EnergyBudget(limit="1.2 kWh", window="2h", ceiling="2 kWh").save("team-a")
    loaded = Block.load("tao-energy-budget/team-a", _sync=True)
    assert loaded.to_budget() == core.EnergyBudget("team-a", 4_320_000.0, 7200.0, 7_200_000.0)


def test_a_budget_may_follow_a_calendar_have_a_scope_or_be_a_power_cap():
    block = EnergyBudget(limit="1 kWh", window="month", timezone="Asia/Tokyo", scope="team:ml", ceiling="")
    block._block_document_name = "monthly"
    made = block.to_budget()
    assert (made.calendar, made.timezone, made.scope, made.ceiling_j) == ("month", "Asia/Tokyo", "team:ml", None)
    cap = EnergyBudget(limit="", power=500, window="")
    cap._block_document_name = "cap"
    assert cap.to_budget() == config.EnergyBudget("cap", 30_000.0, 60.0)


def test_plain_numbers_are_joules_and_seconds():
    block = EnergyBudget(limit=40, window=90, ceiling=50.5)
    block._block_document_name = "a"
    assert block.to_budget() == config.EnergyBudget("a", 40.0, 90.0, 50.5)


def test_a_profile_is_the_pool_that_a_file_would_describe():
    block = WorkerPoolProfile(
        pool_id="north/gpu", zone="DE", capabilities=["gpu"], pue=1.2, dispatch_energy=5, queue_wait="30s", places=None,
        runtime={"p50": "2m", "p95": "4m"}, energy={"low": 80, "mean": "100 J", "high": "0.1 Wh"},
    )  # fmt: skip
    pool = block.to_pool()
    assert (pool.pool_id, pool.zone, pool.capabilities, pool.pue) == ("north/gpu", "DE", ("gpu",), 1.2)
    assert (pool.dispatch_energy_j, pool.queue_wait_s, pool.places) == (5.0, 30.0, None)
    assert (pool.runtime_s.p95, pool.energy_j.high) == (240.0, 360.0)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (CarbonSignal(zone="DE", value=350), {"carbon": {"DE": {"value": 350.0}}}),
        (CarbonSignal(zone="uk", provider="ukcarbonintensity", area="GB"), None),
        (CarbonSignal(zone="SCE", csv="/srv/co2.csv", kind="marginal", unit="lb/MWh"), None),
        (PriceSignal(zone="DE", provider="awattar", refresh="2h"), None),
    ],
)
def test_a_signal_is_the_one_that_a_file_would_describe(block, said, tmp_path):
    made = block.to_config()["signals"]
    assert said is None or made == said
    (spec,) = parse_signals(made, tmp_path).values()
    assert spec.zone == block.zone
    assert (spec.provider, spec.area) in {
        ("static", "DE"), ("ukcarbonintensity", "GB"), ("csv", "SCE"), ("awattar", "DE")
    }  # fmt: skip


def test_a_signing_key_gives_its_public_half_and_a_file_for_its_owner_alone(server, tmp_path):
    SigningKey(private_key=pem()).save("signer")
    key = SigningKey.load("signer", _sync=True)
    assert key.public_key().startswith("-----BEGIN PUBLIC KEY-----")
    key.write(tmp_path / "signing.key")
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600
    assert SigningKey(private_key=(tmp_path / "signing.key").read_text()).public_key() == key.public_key()
    with pytest.raises(FileExistsError):
        key.write(tmp_path / "signing.key")


@pytest.fixture(scope="module")
def production(server) -> TaoController:
    """A block of each kind, and the controller that names them, as the server gives it."""
    LedgerUrl(url="postgresql://tao@db/tao", password=SECRET).save("records")
    EnergyBudget(limit="1 kWh", scope="global").save("all")
    WorkerPoolProfile(pool_id="north", zone="DE").save("north")
    WorkerPoolProfile(pool_id="south", zone="ES", pue=1.3).save("south")
    CarbonSignal(zone="DE", provider="electricitymaps", key=SECRET).save("carbon-de")
    CarbonSignal(zone="ES", provider="electricitymaps", key=SECRET).save("carbon-es")
    PriceSignal(zone="DE", provider="entsoe", area="10Y1001A1001A82H", key=SECRET).save("price-de")
    TaoController(
        mode="enforce",
        ledger=LedgerUrl.load("records", _sync=True),
        budgets=["all"],
        pools=["north", "south"],
        carbon=["carbon-de", "carbon-es"],
        prices=["price-de"],
        rules=[{"engine": "prefect", "deferrable": True}],
        report_artifacts="1/10",
        team="",
    ).save("production")
    return TaoController.load("production", _sync=True)


def test_one_named_block_configures_everything_and_tells_no_secret(production, tmp_path, caplog):
    made = production.to_config()
    resolved = load_config(engine=made, engine_name="block", env={"HOME": str(tmp_path)}, cwd=tmp_path)
    got = resolved.config
    assert (got.mode, resolved.origins["mode"], resolved.origins["team"]) == ("enforce", "block", "default")
    assert (got.report_artifacts, list(got.budgets)) == ("1/10", ["all"])
    assert [(pool.pool_id, pool.pue) for pool in got.pools] == [("north", 1.0), ("south", 1.3)]
    assert sorted(got.signals) == ["carbon.DE", "carbon.ES", "price.DE"]
    assert got.signals["carbon.DE"].key_conn == "tao-carbon-signal/carbon-de"
    assert got.ledger == "conn:tao-ledger-url/records"
    assert got.rules.items[0].deferrable is True
    for shown in (repr(production), str(production), repr(made), repr(resolved), caplog.text):
        assert SECRET not in shown


def test_all_of_it_can_be_awaited(production):
    async def awaited():
        loaded = await TaoController.aload("production")
        return await loaded.ato_config()

    assert asyncio.run(awaited()) == production.to_config()


def test_the_server_shows_no_secret(production):
    SigningKey(private_key=pem()).save("hidden", overwrite=True)
    # Blocks within a block, saved by it alone.
    inner = TaoController(ledger=LedgerUrl(url="postgresql://tao@db/tao", password=SECRET))
    inner.save("within", overwrite=True)
    assert inner.to_config() == {"ledger": "conn:tao-controller/within"}

    async def shown() -> str:
        async with get_client() as client:
            documents = await client.read_block_documents(limit=200, include_secrets=False)
            return "".join(str(document.data) for document in documents)

    text = asyncio.run(shown())
    assert "electricitymaps" in text
    assert SECRET not in text
    assert "PRIVATE KEY" not in text


def test_keys_reach_those_who_ask_providers_and_those_who_open_ledgers(production, tmp_path):
    LedgerUrl(url=str(tmp_path / "ledger.db")).save("on-disk")
    TaoController(ledger=LedgerUrl(url=str(tmp_path / "ledger.db"))).save("with-its-own")
    Secret(value=SECRET).save("for-watttime", overwrite=True)
    connections = PrefectConnections()
    specs = parse_signals(
        {
            "carbon": {
                "DE": {"provider": "electricitymaps", "key": "conn:tao-carbon-signal/carbon-de"},
                "ES": {"provider": "electricitymaps", "key_env": "ELECTRICITY_MAPS"},
            },
            "price": {"DE": {"provider": "entsoe", "zone": "10Y1001A1001A82H", "key": "conn:for-watttime"}},
        },
        tmp_path,
    )
    found = connections.credentials(specs["carbon.DE"])
    assert (found.key, SECRET in repr(found)) == (SECRET, False)
    assert connections.credentials(specs["carbon.ES"]) is None, "it names a variable"
    assert connections.credentials(specs["price.DE"]).key == SECRET
    assert connections.ledger("on-disk").url.endswith("ledger.db")
    assert connections.ledger("tao-controller/with-its-own").url.endswith("ledger.db")
    with pytest.raises(LedgerError, match="tao-ledger-url/absent cannot be had"):
        connections.ledger("absent")
    with pytest.raises(SourceError, match="SIGNAL_KEY"):
        connections.credentials(parse_signals(
            {"carbon": {"DE": {"provider": "electricitymaps", "key": "conn:absent"}}}, tmp_path)["carbon.DE"]
        )  # fmt: skip


class _Provider(BaseHTTPRequestHandler):
    seen: list[str] = []  # noqa: RUF012 - one provider for one test

    def do_GET(self):
        self.seen.append(self.headers.get("auth-token", ""))
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_args):
        """Says nothing."""


@pytest.fixture
def provider():
    _Provider.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Provider)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_process_that_names_the_block_works_by_it(server, provider, tmp_path, monkeypatch, caplog):
    CarbonSignal(zone="DE", provider="electricitymaps", url=provider, key=SECRET).save("carbon-here")
    address = LedgerUrl(url=str(tmp_path / "ledger.db"))
    TaoController(mode="enforce", ledger=address, carbon=["carbon-here"]).save("here")
    monkeypatch.setenv("TAO_FLOWS_PREFECT_BLOCK", "here")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TAO_FLOWS_LEDGER", raising=False)
    runtime.forget()
    with caplog.at_level(logging.DEBUG):
        tao = tao_here()
        assert tao is not None
        assert (tao.config.mode, tao.ledger.url) == ("enforce", f"sqlite:///{tmp_path / 'ledger.db'}")
        reading = tao.admission._shared.board.read(["DE"], tao.clock.wall_ns(), wait_s=10.0)
    assert set(_Provider.seen) == {SECRET}
    assert reading.problems, "it said no"
    assert SECRET not in caplog.text
    assert SECRET not in repr(reading)
    assert not [name for name, value in os.environ.items() if SECRET in value]
    runtime.forget()


def test_a_change_of_the_block_is_followed_without_a_restart(server, monkeypatch):
    monkeypatch.setattr(settings, "REFRESH_S", 0.2)
    TaoController(mode="enforce").save("switch", overwrite=True)
    current = BlockSettings("switch")
    assert current() == {"mode": "enforce"}
    TaoController(mode="off").save("switch", overwrite=True)
    give_up_s = time.monotonic() + 30
    while current() != {"mode": "off"}:
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


def test_what_is_wrong_in_a_block_leaves_the_rest_of_it_in_force_and_is_said(server, caplog):
    WorkerPoolProfile(pool_id="north", zone="DE").save("north-again")
    TaoController(mode="off", pools=["absent", "north-again"], budgets=["absent"]).save("half", overwrite=True)
    made = BlockSettings("half")()
    assert (made["mode"], [pool.pool_id for pool in made["pools"]]) == ("off", ["north"])
    assert "tao-worker-pool-profile/absent" in caplog.text
    assert "tao-energy-budget/absent" in caplog.text
    with pytest.raises(ValueError, match="absent"):
        TaoController.load("half", _sync=True).to_config()


def test_a_command_shows_the_settings_of_the_block(production, tmp_path):
    env = {**os.environ, "TAO_FLOWS_PREFECT_BLOCK": "production", "HOME": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("tao-flows")), "config", "--engine", "prefect", "--origin"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert "north, south" in shown.stdout
    assert "prefect block" in shown.stdout
    as_json = subprocess.run([*command, "--json"], env=env, capture_output=True, text=True, timeout=120)
    assert SECRET not in shown.stdout + shown.stderr + as_json.stdout + as_json.stderr
    assert '"pool_id": "south"' in as_json.stdout


def test_a_controller_may_set_only_what_there_is_to_set():
    assert set(TaoController.model_fields) - {"carbon", "prices"} <= set(SETTINGS)


@pytest.mark.parametrize(
    ("block", "fields", "said"),
    [
        (TaoController, {"mode": "enforc"}, "'off', 'observe', 'advise' or 'enforce'"),
        (TaoController, {"mood": "off"}, "mood"),
        (TaoController, {"report_artifacts": "2/3"}, "1/N"),
        (TaoController, {"rules": [{"mtch": {}}]}, "mtch"),
        (EnergyBudget, {"limit": "-1 J"}, "'-1 J' is not an energy"),
        (EnergyBudget, {"limit": -1}, "limit"),
        (EnergyBudget, {"limit": "5 J", "ceiling": "1 J"}, "ceiling 1 J is below limit 5 J"),
        (EnergyBudget, {"limit": "5 J", "window": "soon"}, "'soon' is not a duration"),
        (EnergyBudget, {"limit": "5 J", "windw": "1d"}, "windw"),
        (EnergyBudget, {"limit": "5 J", "window": "day", "timezone": "Mars/Base"}, "'Mars/Base' is not known here"),
        (EnergyBudget, {"limit": "5 J", "scope": "everyone"}, "scope 'everyone' is not known"),
        (EnergyBudget, {}, "has no limit"),
        (WorkerPoolProfile, {"pool_id": ""}, "pool_id"),
        (WorkerPoolProfile, {"pool_id": "a", "pue": 0.5}, "not a number of 1 or more"),
        (WorkerPoolProfile, {"pool_id": "a", "runtime": {"p50": 2}}, "p95"),
        (CarbonSignal, {"zone": "DE", "provider": "electricitymap", "key": SECRET}, "did you mean 'electricitymaps'?"),
        (CarbonSignal, {"zone": "DE", "provider": "electricitymaps", "kee": SECRET}, "kee"),
        (CarbonSignal, {"zone": "DE"}, "no source"),
        (CarbonSignal, {"zone": "GB", "provider": "ukcarbonintensity", "key": SECRET}, "unknown key 'key'"),
        (PriceSignal, {"zone": "DE", "value": 0.3}, "is no price"),
        (LedgerUrl, {"url": f"postgresql://tao:{SECRET}@db/tao"}, "give it in password"),
        (LedgerUrl, {"url": "/srv/ledger.db", "password": SECRET}, "take one"),
        (LedgerUrl, {"url": "sqlite://"}, "the path is empty"),
        (SigningKey, {"private_key": SECRET}, "no Ed25519 private key"),
    ],
)
def test_a_wrong_field_is_refused_with_the_reason_and_no_secret(block, fields, said):
    with pytest.raises(ValidationError) as caught:
        block(**fields)
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "give",
    [
        lambda: EnergyBudget(limit="40 J").to_budget(),
        lambda: CarbonSignal(zone="DE", provider="electricitymaps", key=SECRET).to_config(),
        lambda: LedgerUrl(url="https://ingest.example", password=SECRET).to_config(),
    ],
)
def test_what_needs_a_name_and_has_none_says_how_to_get_one(give):
    with pytest.raises(ValueError, match="save it"):
        give()


def test_a_password_with_signs_in_it_opens_its_ledger(tmp_path):
    opened = LedgerUrl(url="https://ingest.example/x", password="a@b/c").open()
    assert opened.url == "https://ingest.example/x"
    assert LedgerUrl(url=str(tmp_path / "ledger.db")).open().url == open_ledger(str(tmp_path / "ledger.db")).url
