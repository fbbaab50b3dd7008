"""Evidence that supports Annex XI, Section 1, point 2(d)-(e) of Regulation (EU) 2024/1689: inputs, and no verdict.

Points of the Annex and items of the Model Documentation Form (Code of Practice for general-purpose AI, Transparency
chapter) are named by their place and in our own words. Amounts are texts, so that no reader rounds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Quality
from tao_flows.governance.amounts import mwh_from_uj, plain_number, short_number
from tao_flows.governance.facts import Facts
from tao_flows.governance.provider import HardwareCompute, ProviderInputs
from tao_flows.governance.recorded import NOT_STATED, Recorded, recorded_of
from tao_flows.report.text import count, listed, percent, plain
from tao_flows.units import NS_PER_S, S_PER_H

SCHEMA: Final = "tao-flows/annex-xi-support/1"
TITLE: Final = "Evidence supporting Annex XI, Section 1, point 2(d)-(e)"
REGULATION: Final = "Regulation (EU) 2024/1689"
SCOPE: Final = (
    f"This record does not establish compliance with {REGULATION}. Whether Annex XI applies is for the provider to "
    "determine. Integrity checks show that the record is unchanged since signing, not that measurements are correct."
)
ONE_RUN: Final = (
    "One run is not the model's total: tao-flows aggregate --model-id sums over the runs of a model and shows which "
    "are covered."
)
TOLERANCE: Final = (
    "Commission guidelines on the scope of the obligations for general-purpose AI models, Annex A: any method will do "
    "whose error is within ±30 %, with its assumptions documented."
)
NOT_ASSESSED: Final = (
    "whether the model is a general-purpose AI model, and whether Annex XI applies",
    "Annex XI, Section 1, point 1(a)-(f)",
    "Annex XI, Section 1, point 2(a)-(c)",
    "Annex XI, Section 2",
    "Annex XII",
)
AUTOMATIC: Final = "automatic"
ESTIMATED: Final = "estimated"
REQUIRED: Final = "provider-input-required"
STATUSES: Final = {
    AUTOMATIC: "recorded by tao-flows from counters and clocks",
    ESTIMATED: "from a model, or by a formula from the provider's inputs",
    REQUIRED: "only the provider can say it; a value is the provider's own statement, which was not checked",
}
_POINT_D: Final = "Annex XI, Section 1, point 2(d)"
_POINT_E: Final = "Annex XI, Section 1, point 2(e)"
_FORM: Final = "Model Documentation Form"
_PROVIDER: Final = "provider inputs, not checked"
_NOT_GIVEN: Final = "not given in the provider inputs"
_DAY_S: Final = 24 * S_PER_H
_EXACT: Final = Context(prec=60)
_MOST_MODELS: Final = 5
_LEAST_DAYS: Final = Decimal("1e-9")


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the evidence. Amounts are decimals in ``unit``; None is not known, never 0."""

    id: str
    title: str
    references: tuple[str, ...]
    status: str
    value: str | None
    unit: str
    method: str
    source: str
    quality: str | None = None
    low: str | None = None
    high: str | None = None
    rounded: str | None = None
    energy_uj: int | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """An entry of ``items``."""
        return {
            "id": self.id,
            "title": self.title,
            "references": list(self.references),
            "status": self.status,
            "value": self.value,
            "rounded": self.rounded,
            "unit": self.unit,
            "interval": None if self.low is None or self.high is None else {"low": self.low, "high": self.high},
            "energy_uj": None if self.energy_uj is None else str(self.energy_uj),
            "method": self.method,
            "source": self.source,
            "quality": self.quality,
            "note": self.note,
        }


def annex_xi_support(facts: Facts) -> dict[str, Any]:
    """The evidence of one run: ``annex_xi_support.json``."""
    recorded, run = recorded_of(facts), facts.run
    name = {"engine": run.engine, "namespace": run.namespace, "flow": run.flow, "run_id": run.run_id}
    covers = {
        "kind": "run",
        "run": name,
        "model_id": recorded.model_id or None,
        "complete": facts.complete,
        "missing": list(recorded.missing),
        "note": ONE_RUN,
    }
    return support(recorded, covers)


def support(recorded: Recorded, covers: dict[str, Any]) -> dict[str, Any]:
    """The evidence on what was recorded.

    Args:
        recorded: of one run, or of many.
        covers: what it is of, and what is missing.
    """
    return {
        "schema": SCHEMA,
        "title": TITLE,
        "regulation": REGULATION,
        "scope": SCOPE,
        "covers": covers,
        "statuses": STATUSES,
        "items": [item.to_json() for item in items_of(recorded)],
        "not_assessed": list(NOT_ASSESSED),
    }


def items_of(recorded: Recorded) -> list[Item]:
    """The items, in the order of the Annex."""
    inputs = recorded.provider
    compute = _compute(recorded)
    return [
        compute,
        _compute_method(compute),
        *_times(recorded),
        _hardware(recorded),
        _energy(recorded),
        _energy_method(recorded),
        _hosts(recorded),
        _elsewhere(inputs),
        *_inference(inputs),
    ]


def _compute(recorded: Recorded) -> Item:
    inputs = recorded.provider
    references = (_POINT_D, f"{_FORM}: amount of computation used for training")
    about = ("training_compute", "Computation used for training", references)
    if inputs.hardware is not None:
        flop, method, source = _by_hardware(inputs.hardware, recorded)
    elif inputs.tokens is not None and inputs.model.parameters is not None:
        flop, source = _EXACT.multiply(6 * inputs.model.parameters, inputs.tokens), _PROVIDER
        method = f"6 * P * D = 6 * {_brief(inputs.model.parameters)} parameters * {_brief(inputs.tokens)} tokens"
    else:
        need = "give compute: hardware (N * L * H * U) or compute: architecture (6 * P * D) in the provider inputs"
        return Item(*about, REQUIRED, None, "FLOP", need, _NOT_GIVEN, note=TOLERANCE)
    if flop is None:
        return Item(*about, REQUIRED, None, "FLOP", method, source, note=TOLERANCE)
    low, high = _within(flop, inputs.compute_error)
    said = "" if inputs.compute_error is not None else " The provider inputs state no error (compute: error)."
    return Item(
        *about, ESTIMATED, plain_number(flop), "FLOP", method, source, str(Quality.ESTIMATED), low, high,
        short_number(flop), note=TOLERANCE + said,
    )  # fmt: skip


def _by_hardware(hardware: HardwareCompute, recorded: Recorded) -> tuple[Decimal | None, str, str]:
    """N * L * H * U, what it was made of, and from where."""
    time_s, source = hardware.time_s, _PROVIDER
    if time_s is None:
        source = f"{_PROVIDER}; training time as recorded"
        if recorded.wall_ns is None:
            return None, "N * L * H * U: no training time is recorded, nor given in compute: hardware: time", source
        time_s = _seconds(recorded.wall_ns)
    flop = _EXACT.multiply(hardware.units, time_s)
    flop = _EXACT.multiply(_EXACT.multiply(flop, hardware.peak_flop_per_s), hardware.utilisation)
    method = (
        f"N * L * H * U = {plain_number(hardware.units)} units * {plain_number(time_s)} s * "
        f"{_brief(hardware.peak_flop_per_s)} FLOP/s * {plain_number(hardware.utilisation)}, where U is the part of "
        "the peak that training reached, not the busy time that NVML reports"
    )
    return flop, method, source


def _compute_method(compute: Item) -> Item:
    references = (_FORM + ": measurement methodology (computation)",)
    about = ("training_compute_method", "How computation was worked out", references)
    if compute.value is None:
        return Item(*about, REQUIRED, None, "", "", _NOT_GIVEN)
    return Item(*about, ESTIMATED, compute.method, "", "formula", compute.source, note=TOLERANCE)


def _times(recorded: Recorded) -> list[Item]:
    wall_ns, inputs = recorded.wall_ns, recorded.provider
    wall_s = None if wall_ns is None else _seconds(wall_ns)
    reference = f"{_FORM}: training time"
    clock = "wall clock of the hosts"
    wall = Item(
        "training_time", "Training time, wall clock", (_POINT_D, reference),
        AUTOMATIC if wall_s is not None else REQUIRED, _text(wall_s), "s",
        "time in which at least one try of a task ran; waiting is not in it", clock,
        None if wall_s is None else str(Quality.MEASURED),
        rounded=None if wall_s is None else short_number(wall_s),
        note="" if wall_s is None else f"{short_number(_days(wall_s))} days.",
    )  # fmt: skip
    spans = recorded.spans_ns
    ends = f"{iso_from_ns(spans[0][0])} to {iso_from_ns(spans[-1][1])}" if spans else None
    period = Item(
        "training_period", "Training time, from first start to last end", (_POINT_D, f"{reference} (range)"),
        AUTOMATIC if ends else REQUIRED, ends, "", "first start and last end of the tries", clock,
        str(Quality.MEASURED) if ends else None,
        note="What was done before or beside the runs that are covered is not in it.",
    )  # fmt: skip
    references = (_POINT_D, f"{reference}, in hardware days")
    about = ("hardware_time", "Training time, of the hardware", references)
    if inputs.hardware is None or (wall_s is None and inputs.hardware.time_s is None):
        need = "give compute: hardware: units in the provider inputs"
        return [wall, period, Item(*about, REQUIRED, None, "days", need, _NOT_GIVEN)]
    time_s = inputs.hardware.time_s or wall_s or Decimal(0)
    days = _days(_EXACT.multiply(inputs.hardware.units, time_s))
    source = _PROVIDER if inputs.hardware.time_s is not None else f"{_PROVIDER}; training time as recorded"
    method = f"{plain_number(inputs.hardware.units)} units * {plain_number(time_s)} s"
    hardware = Item(
        *about,
        ESTIMATED,
        plain_number(days),
        "days",
        method,
        source,
        str(Quality.ESTIMATED),
        rounded=short_number(days),
    )
    return [wall, period, hardware]


def _hardware(recorded: Recorded) -> Item:
    found = tuple(map(str, recorded.parts))
    return Item(
        "hardware", "Computational resources that were used", (_POINT_D,), AUTOMATIC if found else REQUIRED,
        "; ".join(found) or None, "", "environment of the metered processes", "operating system and drivers",
        note="" if found else "No environment was recorded.",
    )  # fmt: skip


def _energy(recorded: Recorded) -> Item:
    energy = recorded.energy
    references = (_POINT_E, f"{_FORM}: amount of energy used for training")
    of = f"{count(recorded.tries, 'try', 'tries')} of tasks in {count(recorded.runs, 'run')}"
    method = f"sum of the known energies of {of}; {listed(recorded.methods) or 'no method'}"
    source = listed(tuple(map(str, energy.sources))) or "no source"
    about = ("training_energy", "Energy used, as far as it was recorded", references)
    if energy.value_uj is None:
        return Item(*about, REQUIRED, None, "MWh", method, source, str(Quality.UNKNOWN), note=_energy_note(recorded))
    known = energy.quality in (Quality.MEASURED, Quality.ATTRIBUTED)
    return Item(
        *about, AUTOMATIC if known else ESTIMATED, _mwh(energy.value_uj), "MWh", method, source,
        str(energy.quality), _mwh(energy.low_uj), _mwh(energy.high_uj), _short_mwh(energy.value_uj),
        energy.value_uj, _energy_note(recorded),
    )  # fmt: skip


def _energy_note(recorded: Recorded) -> str:
    energy, said = recorded.energy, ["IT energy of the tasks: cooling and other losses of the site are not in it."]
    if len(recorded.by_quality_uj) > 1:
        parts = (f"{_short_mwh(energy_uj)} MWh {quality}" for quality, energy_uj in recorded.by_quality_uj.items())
        said.append(f"Of it {', '.join(parts)}.")
    if energy.coverage < 1 and recorded.tries:
        said.append(
            f"{percent(energy.coverage)} of the parts are known; what is not known is in no amount: "
            f"{listed(energy.unknown_parts) or 'not named'}."
        )
    if NOT_STATED in recorded.by_activity:
        said.append(
            "What the work was for is not stated: give activity in the provider inputs, or a tag activity:training."
        )
    if set(recorded.by_activity) - {NOT_STATED}:
        parts = (
            f"{activity} {_short_mwh(figure.value_uj) or 'unknown'} MWh"
            for activity, figure in recorded.by_activity.items()
        )
        said.append(f"By activity: {', '.join(parts)}; deployment and inference are not in the amount.")
    if recorded.left_out:
        said.append(f"{count(recorded.left_out, 'other try', 'other tries')} of the same runs: not in it.")
    return " ".join(said)


def _energy_method(recorded: Recorded) -> Item:
    references = (f"{_FORM}: measurement methodology (energy)",)
    about = ("training_energy_method", "How energy was worked out", references)
    if recorded.energy.value_uj is None:
        return Item(*about, REQUIRED, None, "", "", "no energy is recorded")
    said = [f"{listed(recorded.methods)}: {_MEANINGS[recorded.energy.quality]}"]
    said.append(f"energy from {listed(recorded.energy.sources) or 'no source'}")
    if recorded.cpu_sources:
        said.append(f"CPU time from {listed(recorded.cpu_sources)}")
    if recorded.models:
        # In full: the coefficients are the method.
        shown = [plain(model, 400) for model in recorded.models[:_MOST_MODELS]]
        more = len(recorded.models) - len(shown)
        said.append("estimates by " + "; ".join([*shown, *([f"{more:,} more"] if more else [])]))
    status = ESTIMATED if recorded.energy.quality is Quality.ESTIMATED else AUTOMATIC
    return Item(*about, status, "; ".join(said), "", "the rules are in docs/metering.md", "tao-flows")


_MEANINGS: Final = {
    Quality.MEASURED: "counters of whole domains",
    Quality.ATTRIBUTED: "counters of the hosts times each task's share of CPU time, or of the GPU",
    Quality.ESTIMATED: "at least in part a model of the hardware, where no counter could be read",
    Quality.UNKNOWN: "no reading",
}


def _hosts(recorded: Recorded) -> Item:
    account = recorded.account
    lines = (
        account.tasks_uj, account.overhead_uj, account.idle_uj, account.allocated_idle_uj, account.unattributed_uj
    )  # fmt: skip
    known = [line for line in lines if line is not None]
    status = AUTOMATIC if account.quality in (Quality.MEASURED, Quality.ATTRIBUTED) else ESTIMATED
    whole_uj = sum(known) if known else None
    return Item(
        "host_energy", "Energy of the hosts while the runs were on them, whoever used it", (_POINT_E,),
        status if known else REQUIRED, _mwh(whole_uj), "MWh",
        "sum of the accounts: tasks, overhead, idle and what belongs to nobody", "accounts of the hosts",
        str(account.quality), rounded=_short_mwh(whole_uj), energy_uj=whole_uj,
        note="An upper view: other work of the hosts is in it, and the energy of the tasks too. Never add the two.",
    )  # fmt: skip


def _elsewhere(inputs: ProviderInputs) -> Item:
    amount = inputs.elsewhere_uj
    return Item(
        "energy_elsewhere", "Energy of training that no run recorded",
        (_POINT_E, f"{_FORM}: amount of energy used for training"), REQUIRED, _mwh(amount), "MWh",
        inputs.elsewhere_method or "give energy_elsewhere in the provider inputs, where there is some",
        _PROVIDER if amount is not None else _NOT_GIVEN,
        rounded=_short_mwh(amount), energy_uj=amount,
    )  # fmt: skip


def _inference(inputs: ProviderInputs) -> list[Item]:
    flop = inputs.inference_flop
    source = _PROVIDER if flop is not None else _NOT_GIVEN
    need = "give inference: flop and method in the provider inputs"
    return [
        Item(
            "inference_compute", "Computation used for inference, benchmarked",
            (f"{_FORM}: benchmarked amount of computation used for inference",), REQUIRED, _text(flop), "FLOP",
            inputs.inference_method or need, source, rounded=None if flop is None else short_number(flop),
        ),
        Item(
            "inference_compute_method", "How computation for inference was worked out",
            (f"{_FORM}: measurement methodology (benchmarked inference)",), REQUIRED,
            inputs.inference_method or None, "", "" if inputs.inference_method else need, source,
        ),
    ]  # fmt: skip


def _within(value: Decimal, error: Decimal | None) -> tuple[str | None, str | None]:
    if error is None:
        return None, None
    low, high = (_EXACT.multiply(value, factor) for factor in (1 - error, 1 + error))
    return plain_number(low), plain_number(high)


def _seconds(duration_ns: int) -> Decimal:
    return _EXACT.divide(Decimal(duration_ns), Decimal(NS_PER_S))


def _days(duration_s: Decimal) -> Decimal:
    return _EXACT.quantize(_EXACT.divide(duration_s, Decimal(_DAY_S)), _LEAST_DAYS)


def _mwh(energy_uj: int | None) -> str | None:
    return None if energy_uj is None else plain_number(mwh_from_uj(energy_uj))


def _short_mwh(energy_uj: int | None) -> str | None:
    return None if energy_uj is None else short_number(mwh_from_uj(energy_uj))


def _text(value: Decimal | None) -> str | None:
    return None if value is None else plain_number(value)


def _brief(value: Decimal) -> str:
    """All digits that were stated; as a power of ten where many zeros follow."""
    return plain_number(value) if value.adjusted() < 6 else str(value.normalize(_EXACT))
