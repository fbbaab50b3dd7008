"""Evidence for Annex XI: what is recorded, what is worked out, what only the provider can say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from model_runs import MODEL, START, S, facts_of, put_decision, put_digits, put_run, put_task

from tao_flows.figures import Quality
from tao_flows.governance.amounts import UJ_PER_MWH
from tao_flows.governance.annex_xi import annex_xi_support
from tao_flows.governance.facts import Facts
from tao_flows.governance.provider import HardwareCompute, ModelFacts, ProviderInputs
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.records import TaskState, Who

STATUSES = {"automatic", "estimated", "provider-input-required"}
HARDWARE = HardwareCompute(Decimal(8), Decimal("989e12"), Decimal("0.41"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(str(tmp_path / "ledger.db"))
    yield opened
    opened.close()


def items(facts: Facts) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in annex_xi_support(facts)["items"]}


def test_every_item_says_what_it_is_worth(ledger: Ledger) -> None:
    document = annex_xi_support(facts_of(ledger, put_digits(ledger)))
    assert document == json.loads(json.dumps(document))  # nothing in it is a float or a decimal
    assert len({item["id"] for item in document["items"]}) == len(document["items"])
    for item in document["items"]:
        assert item["status"] in STATUSES
        assert item["references"]
        assert {"value", "unit", "interval", "method", "source", "quality", "note"} <= item.keys()
        if item["status"] == "automatic":
            assert item["value"] is not None


def test_the_energy_is_the_ledgers_and_is_given_in_megawatt_hours_exactly_and_in_short(ledger: Ledger) -> None:
    energy = items(facts_of(ledger, put_digits(ledger)))["training_energy"]
    assert (energy["status"], energy["quality"], energy["unit"]) == ("automatic", "attributed", "MWh")
    assert energy["energy_uj"] == "123456789012"
    assert round(Decimal(energy["value"]) * UJ_PER_MWH) == 123_456_789_012
    assert round(Decimal(energy["interval"]["low"]) * UJ_PER_MWH) == 123_456_789_012 * 9 // 10
    assert round(Decimal(energy["interval"]["high"]) * UJ_PER_MWH) == 123_456_789_012 * 11 // 10
    assert energy["rounded"] == "3.43E-5"
    assert "not in the amount" not in energy["note"]


def test_tries_that_are_of_no_model_are_left_out_and_counted(ledger: Ledger) -> None:
    note = items(facts_of(ledger, put_digits(ledger)))["training_energy"]["note"]
    assert "1 other try of the same runs: not in it." in note


def test_without_a_model_all_tries_count(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "a", 5)
    put_task(ledger, run, "b", 7)
    document = annex_xi_support(facts_of(ledger, run))
    assert document["covers"]["model_id"] is None
    assert {i["id"]: i for i in document["items"]}["training_energy"]["energy_uj"] == "12"


def test_an_estimate_is_never_shown_as_recorded(ledger: Ledger) -> None:
    run = put_run(ledger, who=Who(model_id=MODEL))
    put_task(ledger, run, "a", 5, quality=Quality.MEASURED)
    put_task(ledger, run, "b", 7, quality=Quality.ESTIMATED)
    found = items(facts_of(ledger, run))
    assert (found["training_energy"]["status"], found["training_energy"]["quality"]) == ("estimated", "estimated")
    assert "MWh measured" in found["training_energy"]["note"]
    assert found["training_energy_method"]["status"] == "estimated"
    assert "cpu-min-max/1" in found["training_energy_method"]["value"]


def test_energy_that_was_not_read_is_unknown_and_not_zero(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "dark", None)
    energy = items(facts_of(ledger, run))["training_energy"]
    assert (energy["status"], energy["value"], energy["quality"]) == ("provider-input-required", None, "unknown")
    assert "dark" in energy["note"]


def test_a_part_that_is_unknown_is_named_beside_what_is_known(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "lit", 5)
    put_task(ledger, run, "dark", None)
    energy = items(facts_of(ledger, run))["training_energy"]
    assert energy["energy_uj"] == "5"
    assert "50 % of the parts are known" in energy["note"]
    assert "dark" in energy["note"]


def test_training_time_is_when_any_try_ran_and_waiting_is_not_in_it(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "a", 5, begin_ns=START, length_s=10)
    put_task(ledger, run, "b", 5, begin_ns=START + 5 * S, length_s=10)
    put_task(ledger, run, "c", 5, begin_ns=START + 60 * S, length_s=10)
    found = items(facts_of(ledger, run))
    assert (found["training_time"]["value"], found["training_time"]["unit"]) == ("25", "s")
    assert found["training_period"]["value"] == "2026-05-28T20:26:40.000000Z to 2026-05-28T20:27:50.000000Z"


def test_computation_by_hardware_takes_the_recorded_time(ledger: Ledger) -> None:
    facts = facts_of(ledger, put_digits(ledger), ProviderInputs(hardware=HARDWARE))
    compute = items(facts)["training_compute"]
    assert compute["status"] == "estimated"
    assert Decimal(compute["value"]) == 8 * 40 * 989 * 10**12 * Decimal("0.41")
    assert compute["rounded"] == "1.30E+17"
    assert "recorded" in compute["source"]
    assert compute["method"].startswith("N * L * H * U = 8 units * 40 s * 9.89E+14 FLOP/s * 0.41")
    assert "not the busy time that NVML reports" in compute["method"]
    assert "±30 %" in compute["note"]
    assert "Annex A" in compute["note"]
    assert compute["interval"] is None
    hours = items(facts)["hardware_time"]
    assert (hours["status"], Decimal(hours["value"]).quantize(Decimal("1e-9"))) == ("estimated", Decimal("0.003703704"))


def test_computation_by_architecture_is_six_times_parameters_times_tokens_with_the_stated_error(
    ledger: Ledger,
) -> None:
    inputs = ProviderInputs(
        model=ModelFacts(parameters=Decimal("7e9")), tokens=Decimal("2e12"), compute_error=Decimal("0.2")
    )
    compute = items(facts_of(ledger, put_digits(ledger), inputs))["training_compute"]
    assert Decimal(compute["value"]) == Decimal("8.4e22")
    assert [Decimal(compute["interval"][bound]) for bound in ("low", "high")] == [
        Decimal("6.72e22"),
        Decimal("1.008e23"),
    ]
    assert compute["rounded"] == "8.40E+22"


def test_without_provider_inputs_computation_is_the_providers_to_give(ledger: Ledger) -> None:
    compute = items(facts_of(ledger, put_digits(ledger)))["training_compute"]
    assert (compute["status"], compute["value"]) == ("provider-input-required", None)
    assert "N * L * H * U" in compute["method"]


def test_what_the_provider_states_stays_the_providers_statement(ledger: Ledger) -> None:
    inputs = ProviderInputs(inference_flop=Decimal("2.4e6"), inference_method="profiler", elsewhere_uj=UJ_PER_MWH)
    found = items(facts_of(ledger, put_digits(ledger), inputs))
    assert (found["inference_compute"]["status"], found["inference_compute"]["value"]) == (
        "provider-input-required", "2400000",
    )  # fmt: skip
    assert found["inference_compute_method"]["value"] == "profiler"
    assert (found["energy_elsewhere"]["value"], found["energy_elsewhere"]["source"]) == (
        "1",
        "provider inputs, not checked",
    )


def test_inputs_of_another_model_are_not_taken(ledger: Ledger) -> None:
    inputs = ProviderInputs(model=ModelFacts(id="another"), inference_flop=Decimal(1), inference_method="m")
    assert items(facts_of(ledger, put_digits(ledger), inputs))["inference_compute"]["value"] is None


def test_serving_a_model_is_not_in_the_energy_of_training_it(ledger: Ledger) -> None:
    run = put_run(ledger, who=Who(model_id=MODEL))
    put_task(ledger, run, "train", 5, tags=("activity:training",))
    put_task(ledger, run, "serve", 7, tags=("activity:inference",))
    energy = items(facts_of(ledger, run))["training_energy"]
    assert energy["energy_uj"] == "5"
    assert "deployment and inference are not in the amount" in energy["note"]


def test_a_run_that_is_not_complete_says_what_is_missing(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "gone", 5, state=TaskState.LOST)
    covers = annex_xi_support(facts_of(ledger, run))["covers"]
    assert covers["complete"] is False
    assert any("lost" in each for each in covers["missing"])


def test_one_run_is_said_not_to_be_the_total_and_nothing_is_called_compliant(ledger: Ledger) -> None:
    run = put_digits(ledger)
    document = annex_xi_support(facts_of(ledger, replace(run)))
    text = json.dumps(document)
    assert "One run is not the model's total" in document["covers"]["note"]
    assert "does not establish compliance" in document["scope"]
    assert "not that measurements are correct" in document["scope"]
    assert not re.search(r"\bcompliant|certif|conform", text, re.IGNORECASE)
    assert any("Section 2" in each for each in document["not_assessed"])


def test_the_document_is_valid_by_its_schema(ledger: Ledger) -> None:
    import jsonschema

    schema = json.loads((Path(__file__).parents[2] / "tao_flows/governance/schema/annex_xi_support.json").read_text())
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    run = put_digits(ledger)
    put_decision(ledger, put_task(ledger, run, "dark", None))
    for provider in (None, ProviderInputs(hardware=HARDWARE, compute_error=Decimal("0.1"))):
        document = annex_xi_support(facts_of(ledger, run, provider))
        check.validate(document)
        assert not check.is_valid({**document, "verdict": "fine"})
        assert not check.is_valid({**document, "items": []})
