from __future__ import annotations

import asyncio

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_blocks import EnergyBudget, TaoController
from tao_flows import config
from tao_flows.config import SETTINGS, load_config

pytestmark = pytest.mark.prefect


@pytest.mark.parametrize("block", [EnergyBudget, TaoController])
class TestAgainstPrefectsOwnSuite(BlockStandardTestSuite):
    # The project has no web page to link to and no logo to fetch.
    test_has_a_documentation_url = None
    test_has_a_valid_image = None

    @pytest.fixture
    def block(self, request):  # the parametrisation above stands in for it
        return request.param


def test_names_kept_in_servers_never_change():
    assert (EnergyBudget.get_block_type_slug(), TaoController.get_block_type_slug()) == (
        "tao-energy-budget",
        "tao-controller",
    )
    assert EnergyBudget.get_block_capabilities() == {"tao-energy-budget"}
    assert TaoController.get_block_capabilities() == {"tao-settings"}


def test_installing_the_package_registers_the_collection():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="prefect.collections", name="prefect_blocks")
    collection = entry.load()
    assert (collection.EnergyBudget, collection.TaoController) == (EnergyBudget, TaoController)


def test_a_budget_is_kept_by_the_server_and_named_as_its_block(server):
    EnergyBudget(limit="1.2 kWh", window="2h", ceiling="2 kWh").save("team-a")
    loaded = Block.load("tao-energy-budget/team-a", _sync=True)
    assert loaded.to_budget() == config.EnergyBudget("team-a", 4_320_000.0, 7200.0, 7_200_000.0)


def test_a_budget_may_follow_a_calendar_have_a_scope_or_be_a_power_cap():
    block = EnergyBudget(limit="1 kWh", window="month", timezone="Asia/Tokyo", scope="team:ml", ceiling="")
    block._block_document_name = "monthly"
    made = block.to_budget()
    assert (made.calendar, made.timezone, made.scope, made.ceiling_j) == ("month", "Asia/Tokyo", "team:ml", None)
    cap = EnergyBudget(limit="", power=500, window="")
    cap._block_document_name = "cap"
    assert cap.to_budget() == config.EnergyBudget("cap", 30_000.0, 60.0)


def test_settings_are_kept_by_the_server_and_become_a_layer_of_the_configuration(server, tmp_path):
    url = "postgresql://tao:secret@db/tao"
    TaoController(mode="off", ledger=url, tags=["night"], team="").save("production")
    loaded = TaoController.load("production", _sync=True)
    assert loaded.to_config() == {"mode": "off", "ledger": url, "tags": ["night"]}
    resolved = load_config(engine=loaded.to_config(), engine_name="block", env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert (resolved.config.mode, resolved.origins["mode"], resolved.origins["team"]) == ("off", "block", "default")


def test_the_password_of_a_ledger_is_not_shown_by_the_server(server):
    TaoController(ledger="postgresql://tao:secret@db/tao").save("with-password")

    async def shown() -> str:
        async with get_client() as client:
            document = await client.read_block_document_by_name(
                "with-password", "tao-controller", include_secrets=False
            )
            return str(document.data)

    assert "secret" not in asyncio.run(shown())


def test_a_block_may_set_only_what_there_is_to_set():
    assert set(TaoController.model_fields) <= set(SETTINGS)


@pytest.mark.parametrize(
    ("block", "fields", "said"),
    [
        (TaoController, {"mode": "enforc"}, "'off', 'observe', 'advise' or 'enforce'"),
        (TaoController, {"mood": "off"}, "mood"),
        (TaoController, {"ledger": "sqlite://"}, "ledger: the path is empty"),
        (EnergyBudget, {"limit": "-1 J"}, "'-1 J' is not an energy"),
        (EnergyBudget, {"limit": -1}, "limit"),
        (EnergyBudget, {"limit": "5 J", "ceiling": "1 J"}, "ceiling 1 J is below limit 5 J"),
        (EnergyBudget, {"limit": "5 J", "window": "soon"}, "'soon' is not a duration"),
        (EnergyBudget, {"limit": "5 J", "windw": "1d"}, "windw"),
        (EnergyBudget, {"limit": "5 J", "window": "day", "timezone": "Mars/Base"}, "'Mars/Base' is not known here"),
        (EnergyBudget, {"limit": "5 J", "scope": "everyone"}, "scope 'everyone' is not known"),
        (EnergyBudget, {}, "has no limit"),
    ],
)
def test_a_wrong_field_is_refused_with_the_reason(block, fields, said):
    with pytest.raises(ValidationError) as caught:
        block(**fields)
    assert said in str(caught.value)


def test_plain_numbers_are_joules_and_seconds():
    block = EnergyBudget(limit=40, window=90, ceiling=50.5)
    block._block_document_name = "a"
    assert block.to_budget() == config.EnergyBudget("a", 40.0, 90.0, 50.5)


def test_a_budget_without_a_name_says_how_to_get_one():
    with pytest.raises(ValueError, match="save it"):
        EnergyBudget(limit="40 J").to_budget()
