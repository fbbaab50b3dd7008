"""BoAmps 1.1.0 (Boavizta): the energy of an AI task. Its ``powerConsumption`` is an energy, in kWh."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

import tao_flows
from tao_flows.figures import Figure
from tao_flows.governance.amounts import kwh_from_uj
from tao_flows.governance.facts import Facts
from tao_flows.governance.formats.names import TOOL, derived_uuid
from tao_flows.governance.recorded import Recorded, recorded_of
from tao_flows.report.text import listed, percent
from tao_flows.units import NS_PER_S, s_from_ns

VERSION: Final = "1.1.0"
FILE: Final = "boamps.json"
_SPECIFICATION: Final = "https://github.com/Boavizta/BoAmps/tree/main/model"
_STAGES: Final = {"data-collection": "datacreation", "data-preparation": "preprocessing", "fine-tuning": "finetuning"}
"""Where BoAmps has another word for an activity of CycloneDX."""
_QUALITIES: Final = ((0.10, "high"), (0.25, "medium"), (0.50, "low"))
"""The error, either way, up to which a report has each quality."""
_BILLION: Final = 1_000_000_000


def document(facts: Facts) -> dict[str, Any] | None:
    """The report of a run; None where no energy is known, for the format has no word for that."""
    recorded = recorded_of(facts)
    energy = Figure.total(recorded.by_activity.values())
    if energy.value_uj is None:
        return None
    report: dict[str, Any] = {
        "header": _header(facts, recorded),
        "task": _task(facts, recorded, energy),
        "measures": [_measure(facts, recorded, energy)],
        "infrastructure": _infrastructure(facts, recorded),
    }
    report |= _system(facts)
    if recorded.provider.country:
        report["environment"] = {"country": recorded.provider.country}
    if (quality := _quality(energy)) is not None:
        report["quality"] = quality
    return report


def _header(facts: Facts, recorded: Recorded) -> dict[str, Any]:
    publisher = {"name": recorded.provider.organisation} if recorded.provider.organisation else {}
    return {
        "formatVersion": VERSION,
        "formatVersionSpecificationUri": _SPECIFICATION,
        "reportId": derived_uuid(facts.run, "boamps"),
        "reportDatetime": _date(facts.read_wall_ns),
        # What the provider did not state stands in the report as "other".
        "reportStatus": "final" if facts.complete and recorded.provider.activity else "draft",
        "publisher": {**publisher, "confidentialityLevel": "internal"},
    }


def _task(facts: Facts, recorded: Recorded, energy: Figure) -> dict[str, Any]:
    inputs, model = recorded.provider, recorded.provider.model
    algorithm: dict[str, Any] = {}
    if name := model.name or recorded.model_id:
        algorithm["foundationModelName" if recorded.serves else "algorithmName"] = name
    if model.architecture:
        algorithm["algorithmType"] = model.architecture
    if model.parameters is not None:
        algorithm["parametersNumber"] = model.parameters / _BILLION
    data = [
        {
            "dataUsage": "input",
            "dataType": each.type,
            **({} if each.items is None else {"dataQuantity": each.items}),
            **({"source": each.source} if each.source else {}),
        }
        for each in inputs.data
    ]
    known = "" if energy.coverage >= 1 else f" Energy is known for {percent(energy.coverage)} of the parts."
    missing = f" The record is not complete: {listed(recorded.missing)}." if recorded.missing else ""
    return {
        "taskStage": "+".join(_STAGES.get(activity, activity) for activity in recorded.by_activity) or "other",
        "taskFamily": model.task or "other",
        "algorithms": [algorithm],
        "dataset": data or [{"dataUsage": "input", "dataType": "other"}],
        "taskDescription": f"Run {facts.run.run_id} of {facts.run.flow} in {facts.run.engine}.{known}{missing}",
    }


def _measure(facts: Facts, recorded: Recorded, energy: Figure) -> dict[str, Any]:
    sources = tuple(map(str, energy.sources))
    gpu = tuple(source for source in sources if "nvml" in source)
    cpu = tuple(source for source in sources if source not in gpu)
    measure: dict[str, Any] = {
        "measurementMethod": TOOL,
        "version": tao_flows.__version__,
        **({"cpuTrackingMode": listed(cpu)} if cpu else {}),
        **({"gpuTrackingMode": listed(gpu)} if gpu else {}),
        "powerConsumption": kwh_from_uj(energy.value_uj or 0),
        "measurementDateTime": _date(facts.report.run.started_wall_ns),
    }
    if recorded.wall_ns is not None:
        measure["measurementDuration"] = s_from_ns(recorded.wall_ns)
    return measure


def _infrastructure(facts: Facts, recorded: Recorded) -> dict[str, Any]:
    hosts = {each.host for each in facts.accounts} or {facts.run.segment.host}
    components = [
        {
            "componentType": part.kind,
            "nbComponent": part.count,
            **({"componentName": part.name} if part.name else {}),
            **({} if part.memory_gib is None else {"memorySize": round(part.memory_gib, 3)}),
        }
        for part in recorded.parts
    ]
    host = {"componentType": "host", "nbComponent": len(hosts)}
    return {"infraType": recorded.provider.infrastructure or "other", "components": components or [host]}


def _system(facts: Facts) -> dict[str, Any]:
    """What the first environment says: processes of one run rarely differ in this."""
    found: dict[str, Any] = {}
    for environment in facts.environments[:1]:
        system, python = environment.body.get("system"), environment.body.get("python")
        if isinstance(system, Mapping) and system.get("name"):
            found["system"] = {"os": str(system["name"])}
        if isinstance(python, Mapping) and python.get("version"):
            found["software"] = {"language": "python", "version": str(python["version"])}
    return found


def _quality(energy: Figure) -> str | None:
    """By how far the bounds lie from the value; None where that is further than any that BoAmps has a word for."""
    if not energy.value_uj or energy.low_uj is None or energy.high_uj is None or energy.coverage < 1:
        return None
    error = max(energy.high_uj - energy.value_uj, energy.value_uj - energy.low_uj) / energy.value_uj
    return next((word for most, word in _QUALITIES if error <= most), None)


def _date(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // NS_PER_S, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
