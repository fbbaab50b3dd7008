"""CycloneDX 1.6 ML-BOM: the model, and the energy of each activity that made it, in kWh.

Raw JSON: the object model of CycloneDX's own library drops the model card.
"""

from __future__ import annotations

from typing import Any, Final

import tao_flows
from tao_flows.clock import iso_from_ns
from tao_flows.figures import Figure
from tao_flows.governance.amounts import kwh_from_uj, plain_number
from tao_flows.governance.facts import Facts
from tao_flows.governance.formats.names import TOOL, derived_uuid
from tao_flows.governance.provider import SERVING
from tao_flows.governance.recorded import Recorded, recorded_of

FILE: Final = "mlbom.cdx.json"


def document(facts: Facts) -> dict[str, Any] | None:
    """The bill of materials of a run that made a model; None where none is named, or it was only served."""
    recorded = recorded_of(facts)
    if not recorded.model_id or not set(recorded.by_activity) - SERVING:
        return None
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{derived_uuid(facts.run, 'mlbom')}",
        "version": 1,
        "metadata": {
            "timestamp": iso_from_ns(facts.read_wall_ns),
            "tools": {"components": [{"type": "application", "name": TOOL, "version": tao_flows.__version__}]},
        },
        "components": [_model(facts, recorded)],
    }


def _model(facts: Facts, recorded: Recorded) -> dict[str, Any]:
    model = recorded.provider.model
    parameters = {
        **({"task": model.task} if model.task else {}),
        **({"architectureFamily": model.architecture} if model.architecture else {}),
    }
    environment: dict[str, Any] = {
        "energyConsumptions": [
            _consumption(activity, figure)
            for activity, figure in recorded.by_activity.items()
            if activity not in SERVING and figure.value_uj is not None
        ],
        "properties": _properties(
            run=f"{facts.run.engine}/{facts.run.namespace}/{facts.run.flow}/{facts.run.run_id}",
            covers="one run, not the model's total",
            complete="true" if facts.complete else "false",
        ),
    }
    card = {
        **({"modelParameters": parameters} if parameters else {}),
        "considerations": {"environmentalConsiderations": environment},
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": model.name or recorded.model_id,
        **({"version": model.version} if model.version else {}),
        **({"licenses": [{"license": {"name": model.licence}}]} if model.licence else {}),
        **({"manufacturer": {"name": recorded.provider.organisation}} if recorded.provider.organisation else {}),
        "modelCard": card,
        "properties": _properties(model_id=recorded.model_id),
    }


def _consumption(activity: str, figure: Figure) -> dict[str, Any]:
    bounds = {
        name: plain_number(kwh_from_uj(each))
        for name, each in (("low_kwh", figure.low_uj), ("high_kwh", figure.high_uj))
        if each is not None
    }
    return {
        "activity": activity,
        "energyProviders": [],  # who sold the energy is not recorded
        "activityEnergyCost": {"value": kwh_from_uj(figure.value_uj or 0), "unit": "kWh"},
        "properties": _properties(
            energy_uj=str(figure.value_uj),
            **bounds,
            quality=str(figure.quality),
            sources=", ".join(map(str, figure.sources)),
            coverage=f"{figure.coverage:.6f}",
        ),
    }


def _properties(**values: str) -> list[dict[str, str]]:
    return [{"name": f"{TOOL}:{name}", "value": value} for name, value in values.items()]
