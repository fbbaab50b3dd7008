"""OpenLineage: the run facet ``tao_energy``, and a run event that carries it.

Amounts are texts with all their digits: JSON numbers lose some on the way through readers that know doubles only. The
schema of the facet ships with this package; its address names a version, and what it says there never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Account, Figure
from tao_flows.governance.amounts import joules_from_uj, plain_number
from tao_flows.governance.formats.names import PRODUCER, run_uuid

if TYPE_CHECKING:
    from tao_flows.governance.facts import Facts
    from tao_flows.records import RunRecord
    from tao_flows.report.model import RunReport

NAME: Final = "tao_energy"
"""The facet's key among the facets of a run."""
SCHEMA: Final = "urn:tao-flows:schema:openlineage-tao-energy:1-0-0"
"""The facet's schema, as its ``$id`` says."""
SCHEMA_URL: Final = f"{SCHEMA}#/$defs/TaoEnergyRunFacet"
_EVENT: Final = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_LINES: Final = ("counter", "estimate", "tasks", "overhead", "idle", "allocated_idle", "unattributed")
_FAILED: Final = ("fail", "crash", "lost", "timed")


def facet(energy: Figure, account: Account | None = None, *, complete: bool | None = None) -> dict[str, Any]:
    """The facet of a run or of a task.

    Args:
        energy: of the tasks.
        account: of the hosts over the run; None where there is none, as for one task.
        complete: whether all that was noted is in it; None where that cannot be said yet.
    """
    return {
        "_producer": PRODUCER,
        "_schemaURL": SCHEMA_URL,
        "energy": {
            "value_j": _joules(energy.value_uj),
            "low_j": _joules(energy.low_uj),
            "high_j": _joules(energy.high_uj),
            "quality": str(energy.quality),
            "coverage": energy.coverage,
            "sources": [str(source) for source in energy.sources],
            "unknown_parts": list(energy.unknown_parts),
        },
        "account": None
        if account is None
        else {f"{line}_j": _joules(getattr(account, f"{line}_uj")) for line in _LINES},
        "complete": complete,
    }


def document(facts: Facts) -> dict[str, Any]:
    """The run event of a run. An engine's own integration has its own ids of jobs and runs: it takes ``facet`` alone."""
    return event(facts.run, facts.report, facts.read_wall_ns, complete=facts.complete)


def event(run: RunRecord, report: RunReport, now_wall_ns: int, *, complete: bool | None = None) -> dict[str, Any]:
    """The same of a run as it stands.

    Args:
        run: the run.
        report: what is known of it.
        now_wall_ns: when, of a run that has not ended.
        complete: as of ``facet``.
    """
    return {
        "eventType": _event_type(run.state, ended=run.ended_wall_ns is not None),
        "eventTime": iso_from_ns(run.ended_wall_ns or now_wall_ns),
        "producer": PRODUCER,
        "schemaURL": _EVENT,
        "run": {
            "runId": run_uuid(run),
            "facets": {NAME: facet(report.energy, report.account, complete=complete)},
        },
        "job": {"namespace": f"{run.engine}://{run.namespace}", "name": run.flow, "facets": {}},
        "inputs": [],
        "outputs": [],
    }


def _event_type(state: str, *, ended: bool) -> str:
    lowered = state.lower()
    if any(word in lowered for word in _FAILED):
        return "FAIL"
    if "cancel" in lowered:
        return "ABORT"
    return "COMPLETE" if ended else "RUNNING"


def _joules(energy_uj: int | None) -> str | None:
    return None if energy_uj is None else plain_number(joules_from_uj(energy_uj))
