"""The formats that others read, each held against its own schema or validator, without a network."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import referencing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_runs import MODEL, START, S, facts_of, put_digits, put_run, put_task

from tao_flows.figures import Account, Figure, Quality
from tao_flows.governance.amounts import UJ_PER_KWH, json_text
from tao_flows.governance.facts import Facts
from tao_flows.governance.formats import boamps, mlbom, openlineage, ro_crate
from tao_flows.governance.provider import ProviderInputs, load_provider_inputs
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.environments import StoredEnvironment
from tao_flows.records import TaskState, Who

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
SCHEMAS = ROOT / "tao_flows/governance/schema"
TRAIN_UJ = 123_456_789_012
HOSTILE = "<script>alert(1)</script>\"'\u202e"
MACHINE = {
    "system": {"name": "Linux"},
    "python": {"version": "3.12.1"},
    "machine": {"cpu_model": "Xeon", "cpus": 32, "memory_bytes": str(64 * 1024**3), "gpus": ["H100", "H100"]},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(str(tmp_path / "ledger.db"))
    yield opened
    opened.close()


@pytest.fixture
def provider() -> ProviderInputs:
    return load_provider_inputs(ROOT / "examples/governance/provider.yaml")


def written(document: dict[str, Any]) -> dict[str, Any]:
    """As a reader that keeps all digits reads it."""
    read: dict[str, Any] = json.loads(json_text(document), parse_float=Decimal)
    return read


def uj_of(kwh: Any) -> int:
    return round(Decimal(kwh) * UJ_PER_KWH)


def with_machine(facts: Facts) -> Facts:
    from dataclasses import replace

    return replace(facts, environments=(StoredEnvironment("d", MACHINE, 1, ("node-1",)),))


# BoAmps


def boamps_validator() -> jsonschema.Draft4Validator:
    schemas = {path.name: json.loads(path.read_text()) for path in (DATA / "boamps").glob("*.json")}
    registry: Any = referencing.Registry().with_resources(
        (schema["id"], referencing.jsonschema.DRAFT4.create_resource(schema)) for schema in schemas.values()
    )
    return jsonschema.Draft4Validator(schemas["report_schema.json"], registry=registry)


def test_boamps_is_valid_by_its_own_schemas_and_counts_in_kilowatt_hours(
    ledger: Ledger, provider: ProviderInputs
) -> None:
    facts = with_machine(facts_of(ledger, put_digits(ledger), provider))
    document = boamps.document(facts)
    assert document is not None
    boamps_validator().validate(json.loads(json_text(document)))
    (measure,) = written(document)["measures"]
    assert uj_of(measure["powerConsumption"]) == TRAIN_UJ
    assert (measure["cpuTrackingMode"], measure["measurementDuration"]) == ("rapl", 40)
    task = document["task"]
    assert (task["taskStage"], task["taskFamily"]) == ("training", "image classification")
    assert task["algorithms"] == [
        {
            "algorithmName": "Digits",
            "algorithmType": "convolutional neural network",
            "parametersNumber": Decimal("0.0012"),
        }
    ]
    assert document["environment"] == {"country": "France"}
    assert document["infrastructure"]["components"] == [
        {"componentType": "cpu", "nbComponent": 32, "componentName": "Xeon"},
        {"componentType": "ram", "nbComponent": 1, "memorySize": 64.0},
        {"componentType": "gpu", "nbComponent": 2, "componentName": "H100"},
    ]
    assert (document["system"], document["software"]["version"]) == ({"os": "Linux"}, "3.12.1")


def test_boamps_says_draft_where_the_provider_stated_nothing_and_is_valid_all_the_same(ledger: Ledger) -> None:
    document = boamps.document(facts_of(ledger, put_digits(ledger)))
    assert document is not None
    boamps_validator().validate(json.loads(json_text(document)))
    assert document["header"]["reportStatus"] == "draft"


def test_boamps_quality_is_that_of_the_interval_and_left_out_where_it_has_no_word(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "a", 1_000_000)
    document = boamps.document(facts_of(ledger, run))
    assert document is not None
    assert document["quality"] == "high"
    put_task(ledger, run, "dark", None)
    document = boamps.document(facts_of(ledger, run))
    assert document is not None
    assert "quality" not in document
    assert "50 % of the parts" in document["task"]["taskDescription"]


def test_there_is_no_boamps_report_of_energy_that_nobody_read(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "dark", None)
    assert boamps.document(facts_of(ledger, run)) is None


# CycloneDX


def check_cyclonedx(document: dict[str, Any]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json_text(document)) is None


def consumptions(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (model,) = written(document)["components"]
    entries = model["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    return {entry["activity"]: entry for entry in entries}


def test_the_ml_bom_is_valid_by_cyclonedx_and_has_the_energy_by_activity(
    ledger: Ledger, provider: ProviderInputs
) -> None:
    document = mlbom.document(facts_of(ledger, put_digits(ledger), provider))
    assert document is not None
    check_cyclonedx(document)
    assert document["components"][0]["name"] == "Digits"
    found = consumptions(document)
    assert found.keys() == {"training"}
    cost = found["training"]["activityEnergyCost"]
    assert (uj_of(cost["value"]), cost["unit"]) == (TRAIN_UJ, "kWh")
    said = {each["name"]: each["value"] for each in found["training"]["properties"]}
    assert said["tao-flows:energy_uj"] == str(TRAIN_UJ)
    assert uj_of(said["tao-flows:low_kwh"]) == TRAIN_UJ * 9 // 10
    assert said["tao-flows:quality"] == "attributed"


def test_tags_say_what_each_task_was_for(ledger: Ledger) -> None:
    run = put_run(ledger, who=Who(model_id=MODEL, tags=("activity:training",)))
    put_task(ledger, run, "train", 5)
    put_task(ledger, run, "check", 7, tags=("activity:validation",))
    put_task(ledger, run, "serve", 9, tags=("activity:inference",))
    document = mlbom.document(facts_of(ledger, run))
    assert document is not None
    check_cyclonedx(document)
    assert {name: uj_of(entry["activityEnergyCost"]["value"]) for name, entry in consumptions(document).items()} == {
        "training": 5, "validation": 7,
    }  # fmt: skip


def test_there_is_no_ml_bom_without_a_model_or_where_one_is_only_served(ledger: Ledger) -> None:
    run = put_run(ledger)
    put_task(ledger, run, "a", 5)
    assert mlbom.document(facts_of(ledger, run)) is None
    served = put_run(ledger, "served", who=Who(model_id=MODEL, tags=("activity:inference",)))
    put_task(ledger, served, "a", 5)
    assert mlbom.document(facts_of(ledger, served)) is None


def test_an_ml_bom_of_energy_that_nobody_read_names_none(ledger: Ledger) -> None:
    run = put_run(ledger, who=Who(model_id=MODEL))
    put_task(ledger, run, "dark", None)
    document = mlbom.document(facts_of(ledger, run))
    assert document is not None
    check_cyclonedx(document)
    assert consumptions(document) == {}


# RO-Crate


def check_crate(folder: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the validator finds wrong with a crate, against local copies of the contexts."""
    from rocrate_validator import services
    from rocrate_validator.models import Severity, ValidationSettings
    from rocrate_validator.utils.http import HttpRequester

    contexts = {
        "https://w3id.org/ro/crate/1.1/context": "ro-crate-1.1.jsonld",
        "https://w3id.org/ro/terms/workflow-run/context": "workflow-run.jsonld",
    }

    def get(_self: Any, url: str, **_more: Any) -> Any:
        text = (DATA / "ro_crate" / contexts[url]).read_text()
        headers = {"Content-Type": "application/ld+json"}
        return SimpleNamespace(status_code=200, text=text, headers=headers, json=lambda: json.loads(text))

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    folder.mkdir()
    (folder / ro_crate.FILE).write_text(json_text(document))
    for entity in document["@graph"][1]["hasPart"]:
        (folder / entity["@id"]).write_text("{}")
    result = services.validate(
        ValidationSettings(
            rocrate_uri=str(folder),
            profile_identifier="workflow-run-crate-0.5",
            requirement_severity=Severity.REQUIRED,
            offline=True,
            cache_path=folder.parent / "cache",
        )
    )
    return [f"{issue.message}" for issue in result.get_issues()]


@pytest.mark.filterwarnings("ignore")
def test_the_crate_is_valid_by_the_workflow_run_profile(
    ledger: Ledger, provider: ProviderInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = facts_of(ledger, put_digits(ledger), provider)
    document = ro_crate.document(facts, ["run.json", "energy.json", "decisions.jsonl", "report.html"])
    assert check_crate(tmp_path / "crate", document, monkeypatch) == []
    entities = {entity["@id"]: entity for entity in written(document)["@graph"]}
    used = entities[entities["#run"]["resourceUsage"]["@id"]]
    assert used["value"] == Decimal("123457.789012")
    assert used["propertyID"] == "urn:tao-flows:resource:task-energy"
    assert used["unitCode"].endswith("/J")
    assert entities["#run"]["agent"] == {"@id": "#provider"}
    # The validator does find what is wrong.
    for entity in document["@graph"]:
        entity.pop("instrument", None)
    assert any("instrument" in each for each in check_crate(tmp_path / "broken", document, monkeypatch))


def test_a_crate_of_energy_that_nobody_read_says_nothing_was_used(ledger: Ledger) -> None:
    run = put_run(ledger, state="crashed")
    put_task(ledger, run, "dark", None)
    document = ro_crate.document(facts_of(ledger, run))
    (action,) = [entity for entity in document["@graph"] if entity["@id"] == "#run"]
    assert "resourceUsage" not in action
    assert action["actionStatus"] == "http://schema.org/FailedActionStatus"


# OpenLineage


def facet_validator() -> Any:
    schema = json.loads((SCHEMAS / "openlineage-tao-energy-1-0-0.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert f"{schema['$id']}#/$defs/TaoEnergyRunFacet" == openlineage.SCHEMA_URL
    return jsonschema.Draft202012Validator(schema)


def test_the_facet_is_valid_by_its_schema_and_the_event_is_one_that_openlineage_takes(ledger: Ledger) -> None:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.serde import Serde

    document = openlineage.document(facts_of(ledger, put_digits(ledger)))
    facets = document["run"]["facets"]
    facet_validator().validate(facets)
    assert facets["tao_energy"]["energy"]["value_j"] == "123457.789012"
    assert facets["tao_energy"]["account"]["counter_j"] == "150000"
    assert facets["tao_energy"]["account"]["idle_j"] is None
    event = RunEvent(
        eventType=RunState[document["eventType"]], eventTime=document["eventTime"], producer=document["producer"],
        run=Run(runId=document["run"]["runId"], facets=facets),
        job=Job(namespace=document["job"]["namespace"], name=document["job"]["name"]),
    )  # fmt: skip
    sent = json.loads(Serde.to_json(event))
    # The client leaves out what is null: absent is unknown too.
    facet_validator().validate(sent["run"]["facets"])
    assert sent["run"]["runId"] == document["run"]["runId"]
    assert sent["run"]["facets"]["tao_energy"]["energy"] == facets["tao_energy"]["energy"]
    assert sent["schemaURL"] == document["schemaURL"]


def test_the_facet_of_a_task_that_was_not_read_is_valid_and_says_unknown() -> None:
    facet = openlineage.facet(Figure.unknown("a"), Account())
    facet_validator().validate({openlineage.NAME: facet})
    assert (facet["energy"]["value_j"], facet["energy"]["quality"]) == (None, "unknown")
    assert not facet_validator().is_valid({openlineage.NAME: {**facet, "energy": {**facet["energy"], "value_j": 0}}})


def test_what_the_address_of_the_facets_schema_names_never_changes() -> None:
    import hashlib

    schema = json.loads((SCHEMAS / "openlineage-tao-energy-1-0-0.json").read_text())
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
    assert digest == "b76a86040da2adcdd033c00d43965f9387921f48767ba4ddf0d3c50c26d19606", (
        "a schema that says something else has to be another version, in a file of its own"
    )


@pytest.mark.parametrize(
    ("state", "ended", "said"),
    [("completed", True, "COMPLETE"), ("failed", True, "FAIL"), ("Crashed", True, "FAIL"), ("cancelled", True, "ABORT"),
     ("running", False, "RUNNING")],
)  # fmt: skip
def test_the_event_says_how_the_run_ended(ledger: Ledger, state: str, ended: bool, said: str) -> None:
    run = put_run(ledger, state=state, ended_wall_ns=START + S if ended else None)
    assert openlineage.document(facts_of(ledger, run))["eventType"] == said


def test_a_run_without_a_uuid_gets_one_that_is_its_own_and_stays(ledger: Ledger) -> None:
    ids = [
        openlineage.document(facts_of(ledger, put_run(ledger, run_id, flow=flow)))["run"]["runId"]
        for run_id, flow in (("manual__1", "a"), ("manual__1", "b"), ("manual__1", "a"))
    ]
    assert ids[0] == ids[2] != ids[1]
    assert all(str(uuid.UUID(each)) == each for each in ids)


# All of them


DOCUMENTS = (boamps.document, mlbom.document, openlineage.document, ro_crate.document)


def test_names_that_hold_anything_leave_every_document_valid(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = put_run(ledger, HOSTILE, flow=HOSTILE, name=HOSTILE, who=Who(model_id=HOSTILE, team=HOSTILE))
    put_task(ledger, run, HOSTILE, 5, source=HOSTILE)
    put_task(ledger, run, "gone", None, state=TaskState.LOST)
    facts = facts_of(ledger, run)
    for make in DOCUMENTS:
        document = make(facts)
        assert document is not None
        json_text(document).encode("ascii")
    boamps_validator().validate(json.loads(json_text(boamps.document(facts))))
    bom = mlbom.document(facts)
    assert bom is not None
    check_cyclonedx(bom)
    facet_validator().validate(openlineage.document(facts)["run"]["facets"])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(min_value=0, max_value=2**56), min_size=1, max_size=5))
def test_every_document_has_the_ledgers_sum_to_the_microjoule(tmp_path: Path, energies: list[int]) -> None:
    ledger = open_ledger(str(tmp_path / f"{uuid.uuid4()}.db"))
    run = put_run(ledger, who=Who(model_id=MODEL))
    for number, energy_uj in enumerate(energies):
        put_task(ledger, run, f"t{number}", energy_uj, quality=Quality.MEASURED)
    facts, whole_uj = facts_of(ledger, run), sum(energies)
    ledger.close()
    report, bom = boamps.document(facts), mlbom.document(facts)
    assert report is not None
    assert bom is not None
    assert uj_of(written(report)["measures"][0]["powerConsumption"]) == whole_uj
    assert uj_of(consumptions(bom)["other"]["activityEnergyCost"]["value"]) == whole_uj
    event = openlineage.document(facts)["run"]["facets"]["tao_energy"]
    assert Decimal(event["energy"]["value_j"]) * 10**6 == whole_uj
    (used,) = [each for each in written(ro_crate.document(facts))["@graph"] if each["@id"] == "#task-energy"]
    assert Decimal(used["value"]) * 10**6 == whole_uj
