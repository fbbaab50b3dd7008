"""Workflow Run RO-Crate 0.5: the bundle as a research object, with the run's energy as what its action used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import tao_flows
from tao_flows.clock import iso_from_ns
from tao_flows.figures import Figure
from tao_flows.governance.amounts import joules_from_uj
from tao_flows.governance.facts import Facts
from tao_flows.governance.formats.names import TOOL, derived_uuid
from tao_flows.report.text import listed, percent

FILE: Final = "ro-crate-metadata.json"
ENERGY: Final = "urn:tao-flows:resource:task-energy"
"""``propertyID`` of the energy of a run's tasks."""
JOULE: Final = "https://qudt.org/vocab/unit/J"
_CONTEXT: Final = ("https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context")
_CRATE: Final = "https://w3id.org/ro/crate/1.1"
_PROFILES: Final = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_MEDIA: Final = {
    "json": "application/json", "jsonl": "application/x-ndjson", "html": "text/html", "md": "text/markdown",
}  # fmt: skip
_WORKFLOW: Final = "run.json"
"""What stands for the workflow: the run's own record, which names its tasks. The source is not in a bundle."""
_NO_LICENCE: Final = "No licence is stated for this record."


def document(facts: Facts, files: Sequence[str] = (_WORKFLOW, "energy.json")) -> dict[str, Any]:
    """The crate's metadata.

    Args:
        facts: of the run.
        files: the names of the documents of the bundle, ``run.json`` among them; not those that are written later.
    """
    run = facts.run
    name = f"Run {run.name or run.run_id} of {run.flow}"
    organisation = facts.provider.organisation if facts.provider else ""
    used = _used(facts.report.energy)
    others = [file for file in files if file != _WORKFLOW]
    graph: list[dict[str, Any]] = [
        {
            "@id": FILE,
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": [{"@id": _CRATE}, {"@id": "https://w3id.org/workflowhub/workflow-ro-crate/1.0"}],
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": name,
            "description": f"Energy and decisions of one run, as {TOOL} {tao_flows.__version__} recorded them.",
            "identifier": f"urn:uuid:{derived_uuid(run, 'ro-crate')}",
            "datePublished": iso_from_ns(facts.read_wall_ns),
            "license": _NO_LICENCE,
            "conformsTo": _refs(_PROFILES),
            "hasPart": _refs([_WORKFLOW, *others]),
            "mainEntity": {"@id": _WORKFLOW},
            "mentions": {"@id": "#run"},
        },
        *(
            {"@id": profile, "@type": "CreativeWork", "name": title, "version": version}
            for profile, (title, version) in _PROFILES.items()
        ),
        _workflow(facts),
        {"@id": "#engine", "@type": "ComputerLanguage", "name": _ENGINES.get(run.engine, run.engine)},
        _action(facts, name, organisation, used),
        *([] if used is None else [used]),
        *([{"@id": "#provider", "@type": "Organization", "name": organisation}] if organisation else []),
        *(_file(file) for file in others),
    ]
    return {"@context": list(_CONTEXT), "@graph": graph}


_ENGINES: Final = {"airflow": "Apache Airflow", "prefect": "Prefect", "meter": "command line"}


def _workflow(facts: Facts) -> dict[str, Any]:
    return {
        **_file(_WORKFLOW),
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "name": facts.run.flow,
        "description": "The workflow as it ran: the record of the run. Its source code is not in this crate.",
        "programmingLanguage": {"@id": "#engine"},
        "conformsTo": {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"},
    }


def _action(facts: Facts, name: str, organisation: str, used: dict[str, Any] | None) -> dict[str, Any]:
    run, report = facts.run, facts.report
    failed = any(word in run.state.lower() for word in ("fail", "crash", "cancel", "lost", "timed"))
    status = "FailedActionStatus" if failed else "CompletedActionStatus"
    missing = f" The record is not complete: {listed(tuple(gap.summary for gap in facts.gaps))}." if facts.gaps else ""
    action: dict[str, Any] = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": name,
        "description": f"Run {run.run_id} in {run.engine}, state {run.state}.{missing}",
        "instrument": {"@id": _WORKFLOW},
        "startTime": _time(report.run.started_wall_ns),
        "result": {"@id": "energy.json"},
    }
    if run.ended_wall_ns is not None:
        action |= {"endTime": _time(run.ended_wall_ns), "actionStatus": f"http://schema.org/{status}"}
    if organisation:
        action["agent"] = {"@id": "#provider"}
    if used is not None:
        action["resourceUsage"] = {"@id": used["@id"]}
    return action


def _used(energy: Figure) -> dict[str, Any] | None:
    """None where no energy is known: there is nothing to say, which is not 0."""
    if energy.value_uj is None:
        return None
    known = "" if energy.coverage >= 1 else f"; {percent(energy.coverage)} of the parts are known"
    bounds = {
        name: joules_from_uj(each)
        for name, each in (("minValue", energy.low_uj), ("maxValue", energy.high_uj))
        if each is not None
    }
    return {
        "@id": "#task-energy",
        "@type": "PropertyValue",
        "name": "energy of the tasks",
        "propertyID": ENERGY,
        "value": joules_from_uj(energy.value_uj),
        **bounds,
        "unitCode": JOULE,
        "unitText": "J",
        "description": f"{energy.quality}, from {listed(energy.sources) or 'no source'}{known}",
    }


def _time(wall_ns: int) -> str:
    """In the one form that the profile knows."""
    return f"{(iso_from_ns(wall_ns) or '')[:23]}+00:00"


def _file(name: str) -> dict[str, Any]:
    kind = _MEDIA.get(name.rpartition(".")[2], "application/octet-stream")
    return {"@id": name, "@type": "File", "name": name, "encodingFormat": kind}


def _refs(names: Any) -> list[dict[str, str]]:
    return [{"@id": name} for name in names]
