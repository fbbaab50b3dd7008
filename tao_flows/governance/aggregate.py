"""The evidence on a model: the sum over its runs, and which runs are covered, how well, and by which bundles."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.errors import InputError
from tao_flows.governance.annex_xi import support
from tao_flows.governance.documents import run_json
from tao_flows.governance.facts import Facts, read_facts
from tao_flows.governance.held import Bundles, Held
from tao_flows.governance.provider import ProviderInputs
from tao_flows.governance.recorded import Recorded, recorded_of, together
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.models import runs_of_model, summed_up_of_model, unrecorded_runs_of_model

COVERED: Final = (
    "The sum over the runs that are listed. What no run recorded is not in it; runs that lack records, or whose bundle "
    "was refused or differs, are marked."
)


def model_support(
    ledger: Ledger,
    model_id: str,
    *,
    now_wall_ns: int,
    since_wall_ns: int = 0,
    provider: ProviderInputs | None = None,
    bundles: Bundles | None = None,
) -> dict[str, Any]:
    """The evidence on a model, of the form of ``annex_xi_support.json``.

    Args:
        ledger: where the records are.
        model_id: as the runs name it.
        now_wall_ns: the present.
        since_wall_ns: runs started before are not looked at.
        provider: what the provider states.
        bundles: where they are to be compared with the ledger.

    Raises:
        InputError: MODEL_NOT_FOUND, no run names the model; MODEL_SUMMED_UP, none does any more; PROVIDER_INPUTS, the
            inputs are of another model.
        LedgerError: the ledger cannot be read.
    """
    inputs = provider or ProviderInputs()
    if inputs.model.id not in ("", model_id):
        said = f"the provider inputs are of model {inputs.model.id!r}, not of {model_id!r}"
        raise InputError("PROVIDER_INPUTS", said, "give the inputs of this model")
    parts, covered = [], []
    for run in runs_of_model(ledger, model_id, since_wall_ns):
        facts = read_facts(ledger, run, now_wall_ns=now_wall_ns, provider=provider)
        recorded = recorded_of(facts, model_id)
        held = None if bundles is None else bundles.of(facts)
        parts.append(recorded)
        covered.append(_covered(facts, recorded, held))
    orphans = unrecorded_runs_of_model(ledger, model_id, since_wall_ns)
    gone, gone_uj = summed_up_of_model(ledger, model_id, since_wall_ns)
    if not covered and not orphans and gone:
        remedy = "see tao-flows report --totals --by model, and the bundles of the runs"
        raise InputError("MODEL_SUMMED_UP", f"every run that names the model {model_id!r} was summed up", remedy)
    if not covered and not orphans:
        remedy = "set model_id on the flow or the task, and see tao-flows export for the ids that are recorded"
        raise InputError("MODEL_NOT_FOUND", f"no run names the model {model_id!r}", remedy)
    whole = together(parts, model_id, inputs)
    states = Counter(each["bundle"]["status"] for each in covered if each["bundle"] is not None)
    covers: dict[str, Any] = {
        "kind": "model",
        "model_id": model_id,
        "since": iso_from_ns(since_wall_ns) if since_wall_ns else None,
        "complete": not orphans and not gone and all(each["complete"] for each in covered),
        "runs": covered,
        "without_record": orphans,
        "energy_uj_by_quality": {str(quality): str(uj) for quality, uj in whole.by_quality_uj.items()},
        "bundles": None if bundles is None else {
            **{status: states[status] for status in ("verified", "refused", "differing", "absent")},
            "of_other_runs": bundles.others([each["run"] for each in covered]),
        },
        "note": COVERED,
    }  # fmt: skip
    if gone:  # of runs that are not listed, and not in the sum
        covers["summed_up"] = {"tries": gone, "energy_uj_by_quality": {name: str(uj) for name, uj in gone_uj.items()}}
    return support(whole, covers)


def _covered(facts: Facts, recorded: Recorded, held: Held | None) -> dict[str, Any]:
    run, energy = facts.run, recorded.energy
    return {
        "run": run_json(run),
        "name": run.name,
        "state": run.state,
        "started": iso_from_ns(facts.report.run.started_wall_ns),
        "ended": iso_from_ns(run.ended_wall_ns),
        "tries": recorded.tries,
        "activities": list(recorded.by_activity),
        "energy_uj": None if energy.value_uj is None else str(energy.value_uj),
        "quality": str(energy.quality),
        "coverage": energy.coverage,
        "complete": facts.complete,
        "missing": list(recorded.missing),
        "bundle": None if held is None else held.to_json(),
    }
