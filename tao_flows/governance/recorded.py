"""What was recorded of a model's making, in one run or in many: what the documents for auditors are about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tao_flows.figures import Account, Figure, Quality
from tao_flows.governance.facts import Facts
from tao_flows.governance.hardware import Part, parts_of
from tao_flows.governance.provider import ACTIVITIES, SERVING, ProviderInputs
from tao_flows.records import Who
from tao_flows.report.rows import TaskRow

NOT_STATED: Final = "other"
"""The activity of what nobody said the purpose of."""
_TAG: Final = "activity:"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Sums over tries of tasks. Energies are of the tasks alone, IT energy without cooling."""

    model_id: str
    """Empty: the tries name no model, or several."""
    tries: int
    energy: Figure
    by_quality_uj: Mapping[Quality, int]
    """Known microjoules."""
    by_activity: Mapping[str, Figure]
    """In the words of ``ACTIVITIES``; serving the model is among them and not in ``energy``."""
    spans_ns: tuple[tuple[int, int], ...]
    """When at least one of the tries ran, in order, without overlap."""
    account: Account
    """Of the hosts over the windows of the runs: what else they did is in it."""
    methods: tuple[str, ...]
    models: tuple[str, ...]
    """The estimates that were used."""
    cpu_sources: tuple[str, ...]
    parts: tuple[Part, ...]
    """The hardware, each kind once."""
    missing: tuple[str, ...]
    """Why the record is not complete; empty where it is."""
    left_out: int = 0
    """Tries of the runs that are of another model, or of none."""
    runs: int = 1
    provider: ProviderInputs = field(default_factory=ProviderInputs)
    """Empty where the inputs are of another model."""

    @property
    def serves(self) -> bool:
        """Whether the tries only serve the model."""
        return bool(self.by_activity) and set(self.by_activity) <= SERVING

    @property
    def wall_ns(self) -> int | None:
        """How long at least one of the tries ran; None where none has ended."""
        return sum(end - begin for begin, end in self.spans_ns) if self.spans_ns else None


def recorded_of(facts: Facts, model_id: str = "") -> Recorded:
    """What one run recorded of a model.

    Args:
        facts: of the run.
        model_id: the model; empty: the one that the provider's inputs or all named tries are of, else all tries.
    """
    report, inputs = facts.report, facts.provider or ProviderInputs()
    named = {name for row in report.tasks if (name := _model(row, report.run.who))}
    model_id = model_id or (inputs.model.id if inputs.model.id in named else "")
    model_id = model_id or (next(iter(named)) if len(named) == 1 else "")
    if inputs.model.id and inputs.model.id != model_id:
        inputs = ProviderInputs()
    rows = [row for row in report.tasks if not model_id or _model(row, report.run.who) == model_id]
    by_activity: defaultdict[str, list[TaskRow]] = defaultdict(list)
    for row in rows:
        by_activity[_activity(row.who, report.run.who, inputs)].append(row)
    making = [row for activity, found in by_activity.items() if activity not in SERVING for row in found]
    ends = [(s.started_wall_ns, s.ended_wall_ns) for row in making for s in row.spans if s.ended_wall_ns is not None]
    return Recorded(
        model_id=model_id,
        tries=len(making),
        energy=Figure.total(row.energy for row in making),
        by_quality_uj=_by_quality(making),
        by_activity={name: Figure.total(row.energy for row in found) for name, found in sorted(by_activity.items())},
        spans_ns=_union(ends),
        account=report.account,
        methods=tuple(dict.fromkeys(method for row in making for method in row.methods)),
        models=report.models,
        cpu_sources=report.cpu_sources,
        parts=parts_of(facts.environments),
        missing=tuple(gap.summary for gap in facts.gaps),
        left_out=len(report.tasks) - len(making),
        provider=inputs,
    )


def together(parts: Sequence[Recorded], model_id: str, inputs: ProviderInputs) -> Recorded:
    """The sum over runs of one model."""
    activities: defaultdict[str, list[Figure]] = defaultdict(list)
    by_quality: defaultdict[Quality, int] = defaultdict(int)
    for part in parts:
        for activity, figure in part.by_activity.items():
            activities[activity].append(figure)
        for quality, energy_uj in part.by_quality_uj.items():
            by_quality[quality] += energy_uj
    return Recorded(
        model_id=model_id,
        tries=sum(part.tries for part in parts),
        energy=_weighted(parts),
        by_quality_uj={quality: by_quality[quality] for quality in Quality if by_quality[quality]},
        by_activity={name: Figure.total(found) for name, found in sorted(activities.items())},
        spans_ns=_union(span for part in parts for span in part.spans_ns),
        account=Account.total(part.account for part in parts),
        methods=_all(part.methods for part in parts),
        models=_all(part.models for part in parts),
        cpu_sources=_all(part.cpu_sources for part in parts),
        parts=tuple(dict.fromkeys(each for part in parts for each in part.parts)),
        missing=_all(part.missing for part in parts),
        left_out=sum(part.left_out for part in parts),
        runs=len(parts),
        provider=inputs,
    )


def _weighted(parts: Sequence[Recorded]) -> Figure:
    """The sum, with the known share of all tries: that of a run of one try counts less than that of a large run."""
    figure = Figure.total(part.energy for part in parts if part.tries)
    tries = sum(part.tries for part in parts)
    coverage = sum(part.energy.coverage * part.tries for part in parts) / tries if tries else 0.0
    return Figure(
        figure.value_uj, figure.low_uj, figure.high_uj, figure.quality, figure.sources, coverage, figure.unknown_parts
    )


def _model(row: TaskRow, run: Who) -> str:
    return row.who.model_id or run.model_id


def _activity(task: Who, run: Who, inputs: ProviderInputs) -> str:
    """What a try was for: its own tag, else its run's, else what the provider states of all."""
    for tag in (*task.tags, *run.tags):
        if tag.startswith(_TAG) and (word := tag.removeprefix(_TAG).strip()) in ACTIVITIES:
            return word
    return inputs.activity or NOT_STATED


def _by_quality(rows: Iterable[TaskRow]) -> dict[Quality, int]:
    sums: defaultdict[Quality, int] = defaultdict(int)
    for row in rows:
        sums[row.energy.quality] += row.energy.value_uj or 0
    return {quality: sums[quality] for quality in Quality if sums[quality]}


def _union(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(span for span in spans if span[1] > span[0]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return tuple(joined)


def _all(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for group in groups for each in group))
