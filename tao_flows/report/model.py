"""The one model of a run that every renderer shows. Pure: records in, a frozen report out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tao_flows.clock import iso_from_ns
from tao_flows.figures import Account, Figure, Quality, joules
from tao_flows.inversion import INVERSION_SHARE
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, TaskRecord
from tao_flows.report.notes import notes_of
from tao_flows.report.rows import (
    Choice,
    DecisionGroup,
    FlowBody,
    HostRow,
    Span,
    TaskRow,
    Violation,
    finite,
    method_of,
    number_in,
    who_json,
)
from tao_flows.units import NS_PER_S

SCHEMA: Final = "tao-flows/report/1"
_FIGURE: Final = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run, in figures."""

    run: RunRecord
    tasks: tuple[TaskRow, ...]
    hosts: tuple[HostRow, ...]
    account: Account
    energy: Figure
    """Of the tasks: the sum of the rows."""
    flow_body: FlowBody | None
    """The flow's own code, which is in the account's line for tasks and in no row; None where it was not told apart."""
    decisions: tuple[DecisionGroup, ...]
    """What was decided, most frequent first."""
    violations: tuple[Violation, ...]
    methods: tuple[str, ...]
    models: tuple[str, ...]
    """The estimates used: name, version and coefficients."""
    cpu_sources: tuple[str, ...]
    notes: tuple[str, ...]
    """Why figures are weak, and where they come from, in sentences."""

    @property
    def wall_s(self) -> float | None:
        """Seconds from the run's start to its end, or None while it has none."""
        ended_ns = self.run.ended_wall_ns
        return None if ended_ns is None else (ended_ns - self.run.started_wall_ns) / NS_PER_S

    @property
    def cpu_s(self) -> float | None:
        """Known CPU seconds of the tasks."""
        return _known_sum(row.cpu_s for row in self.tasks)

    @property
    def by_quality_uj(self) -> dict[Quality, int]:
        """Known microjoules by quality, best first: a total has the worst quality of its parts, this shows how much."""
        known = {quality: [r.energy.value_uj for r in self.tasks if r.energy.quality is quality] for quality in Quality}
        return {quality: sum(uj or 0 for uj in found) for quality, found in known.items() if any(found)}

    @property
    def overhead_share(self) -> float | None:
        """Rho = overhead / (tasks + overhead); None when it cannot be said."""
        return self.account.overhead_share

    @property
    def inversion(self) -> bool | None:
        """Whether overhead took more than the tasks in this run; None when it cannot be said."""
        share = self.overhead_share
        return None if share is None else share > INVERSION_SHARE

    @property
    def name(self) -> str:
        """The run's name, or its id."""
        return self.run.name or self.run.run_id

    def to_json(self) -> dict[str, Any]:
        """The form of the CLI contract: strict JSON, null for unknown."""
        run = self.run
        return {
            "schema": SCHEMA,
            "run": {
                "engine": run.engine,
                "namespace": run.namespace,
                "flow": run.flow,
                "run_id": run.run_id,
                "name": run.name,
                "state": run.state,
                "started": iso_from_ns(run.started_wall_ns),
                "ended": iso_from_ns(run.ended_wall_ns),
                "wall_s": self.wall_s,
                "who": who_json(run.who),
            },
            "energy": self.energy.to_json(),
            "by_quality_j": {str(quality): joules(energy_uj) for quality, energy_uj in self.by_quality_uj.items()},
            "hosts": [host.to_json() for host in self.hosts],
            "tasks": [row.to_json() for row in self.tasks],
            "flow_body": self.flow_body.to_json() if self.flow_body else None,
            "account": self.account.to_json(),
            "overhead_share": self.overhead_share,
            "inversion": self.inversion,
            "decisions": [group.to_json() for group in self.decisions],
            "violations": [violation.to_json() for violation in self.violations],
            "methods": list(self.methods),
            "models": list(self.models),
            "cpu_sources": list(self.cpu_sources),
            "notes": list(self.notes),
        }


def build_report(
    run: RunRecord,
    tasks: Sequence[TaskRecord],
    decisions: Iterable[DecisionRecord],
    accounts: Sequence[HostAccount],
    incidents: Sequence[Incident],
) -> RunReport:
    """The report of one run from what the ledger keeps of it. Of the decisions none is kept, however many there are."""
    heard = _Heard()
    for decision in decisions:
        heard.add(decision)
    rows = _rows(tasks, heard.choices())
    measurements = [record.measurement for record in tasks if record.measurement is not None]
    energy = Figure.total(row.energy for row in rows)
    account = Account.total(each.account for each in accounts)
    return RunReport(
        # A run that was suspended and resumed in another process bears that one's start.
        run=replace(run, started_wall_ns=min([run.started_wall_ns, *(record.started_wall_ns for record in tasks)])),
        tasks=rows,
        hosts=_hosts(accounts),
        account=account,
        energy=energy,
        flow_body=_flow_body(accounts),
        decisions=_groups(heard.said()),
        violations=_violations(heard.broken, incidents),
        methods=tuple(sorted({method_of(record) for record in tasks})),
        models=tuple(dict.fromkeys(m.model for m in measurements if m.model)),
        cpu_sources=tuple(dict.fromkeys(m.cpu.source for m in measurements if m.cpu.source)),
        notes=notes_of(tasks, energy, accounts),
    )


def read_report(ledger: Ledger, run: RunRecord) -> RunReport:
    """The report of one run in a ledger.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    ref = RunRef(run.engine, run.namespace, run.run_id, run.flow)
    return build_report(run, ledger.tasks(ref), ledger.decisions(ref), ledger.accounts(ref), ledger.incidents(ref))


class _Heard:
    """Decisions, one by one, in any order."""

    def __init__(self) -> None:
        # A try that waited was decided on more than once: that it was deferred, or released, is part of what is shown.
        self._said: dict[tuple[RunKey, str], tuple[int, int, Choice]] = {}
        """By try and action: when that was decided first and last, and the last choice."""
        self.broken: Counter[Violation] = Counter()

    def add(self, decision: DecisionRecord) -> None:
        """Keeps what is shown of a decision."""
        at_ns, about = decision.decided_wall_ns, (decision.key, decision.action)
        first_ns, last_ns, choice = self._said.get(about, (at_ns, at_ns, None))
        if choice is None or at_ns >= last_ns:
            last_ns, choice = at_ns, _choice(decision)
        self._said[about] = (min(first_ns, at_ns), last_ns, choice)
        entries = decision.answer.get("violations")
        if isinstance(entries, (list, tuple)):
            self.broken.update(_constraint(entry, decision.key.task) for entry in entries)

    def choices(self) -> dict[RunKey, Choice]:
        """The last choice about each try."""
        latest = sorted(self._said.items(), key=lambda item: item[1][1])
        return {key: choice for (key, _), (_, _, choice) in latest}

    def said(self) -> list[Choice]:
        """The last choice for each try and action, in the order in which they were first taken."""
        return [choice for _, _, choice in sorted(self._said.values(), key=lambda each: each[0])]


def _rows(tasks: Sequence[TaskRecord], choices: Mapping[RunKey, Choice]) -> tuple[TaskRow, ...]:
    tries: dict[RunKey, list[TaskRecord]] = defaultdict(list)
    for record in sorted(tasks, key=lambda record: record.started_wall_ns):
        tries[record.key].append(record)
    titles = _titles(tries)
    energies = {key: Figure.total(_energy(record) for record in segments) for key, segments in tries.items()}
    whole_uj = sum(energy.value_uj or 0 for energy in energies.values())
    return tuple(
        _row(segments, energies[key], whole_uj, titles[key], choices.get(key)) for key, segments in tries.items()
    )


def _row(segments: Sequence[TaskRecord], energy: Figure, whole_uj: int, title: str, decision: Choice | None) -> TaskRow:
    latest = segments[-1]
    measured = [record.measurement for record in segments if record.measurement is not None]
    return TaskRow(
        key=latest.key,
        label=_label(latest),
        title=title,
        map_index=latest.map_index,
        state=latest.state,
        pool=latest.pool,
        who=latest.who,
        spans=tuple(
            Span(s.started_wall_ns, s.ended_wall_ns, finite(s.measurement.power_w) if s.measurement else None)
            for s in segments
        ),
        wall_s=_known_sum(m.wall_s for m in measured),
        cpu_s=_known_sum(m.cpu_s for m in measured),
        cpu_lower_bound=any(m.cpu.lower_bound or m.cpu_s is None for m in measured) or len(measured) < len(segments),
        energy=energy,
        share=None if energy.value_uj is None or whole_uj <= 0 else energy.value_uj / whole_uj,
        methods=tuple(dict.fromkeys(map(method_of, segments))),
        decision=decision,
    )


def _titles(tries: Mapping[RunKey, Sequence[TaskRecord]]) -> dict[RunKey, str]:
    instances: dict[str, dict[str, int]] = defaultdict(dict)
    for key, (first, *_) in tries.items():
        numbers = instances[_label(first)]
        numbers.setdefault(key.instance, len(numbers))
    titles = {}
    for key, (first, *_) in tries.items():
        label = _label(first)
        numbers = instances[label]
        index = first.map_index if first.map_index is not None else numbers[key.instance]
        several = f"[{index}]" if len(numbers) > 1 else ""
        titles[key] = f"{label}{several}" + (f" (try {key.try_number})" if key.try_number > 1 else "")
    return titles


def _label(record: TaskRecord) -> str:
    return record.task_label or record.key.task


def _energy(record: TaskRecord) -> Figure:
    if record.measurement is not None:
        return record.measurement.energy
    return Figure.unknown(f"{_label(record)}: {record.state}")


def _choice(decision: DecisionRecord) -> Choice:
    answer = decision.answer
    regime = answer.get("regime")
    return Choice(
        action=decision.action,
        pool=decision.pool,
        reason=decision.reason,
        mode=decision.mode,
        enforced=decision.enforced,
        regime=None if regime is None else str(regime),
        penalty=number_in(answer, "penalty"),
        utilisation=number_in(answer, "utilisation"),
    )


def _groups(choices: Iterable[Choice]) -> tuple[DecisionGroup, ...]:
    alike: dict[Choice, list[Choice]] = defaultdict(list)
    for choice in choices:
        alike[replace(choice, penalty=None, utilisation=None, reason=_FIGURE.sub("", choice.reason))].append(choice)
    return tuple(sorted(map(_group, alike.values()), key=lambda group: -group.count))


def _group(choices: Sequence[Choice]) -> DecisionGroup:
    last = choices[-1]
    differing = len({choice.reason for choice in choices}) > 1
    reason = f"{last.reason}; the figures are the last one's" if differing else last.reason
    penalties = [choice.penalty for choice in choices if choice.penalty is not None]
    shown = replace(last, penalty=None, utilisation=None, reason=reason)
    return DecisionGroup(shown, len(choices), min(penalties, default=None), max(penalties, default=None))


def _hosts(accounts: Sequence[HostAccount]) -> tuple[HostRow, ...]:
    by_host: dict[str, list[HostAccount]] = defaultdict(list)
    for each in accounts:
        by_host[each.host].append(each)
    return tuple(
        HostRow(
            host,
            Account.total(each.account for each in windows),
            sum(each.wall_s for each in windows),
            tuple(dict.fromkeys(event for each in windows for event in each.events)),
        )
        for host, windows in sorted(by_host.items())
    )


def _flow_body(accounts: Sequence[HostAccount]) -> FlowBody | None:
    bodies = [each.body for each in accounts if each.body is not None]
    return FlowBody(Figure.total(bodies), _known_sum(each.body_cpu_s for each in accounts)) if bodies else None


def _violations(broken: Mapping[Violation, int], incidents: Sequence[Incident]) -> tuple[Violation, ...]:
    found = [Violation("incident", i.code, i.summary, i.remedy, i.task, i.count) for i in incidents]
    return (*found, *(replace(violation, count=times) for violation, times in broken.items()))


def _constraint(entry: object, task: str) -> Violation:
    if not isinstance(entry, Mapping):
        return Violation("constraint", str(entry), "not kept", task=task)
    code = str(entry.get("id", "constraint"))
    limit, unit = entry.get("limit"), entry.get("unit") or ""
    said = "" if limit is None else f": {_short(entry, 'value')} against a limit of {_short(entry, 'limit')} {unit}"
    pool = f" in pool {entry['pool']}" if entry.get("pool") else ""
    return Violation("constraint", code, f"not kept{pool}{said}".rstrip(), task=task)


def _short(entry: Mapping[str, Any], name: str) -> str:
    number = number_in(entry, name)
    return f"{number:.4g}" if number is not None else "unknown" if entry.get(name) is None else str(entry[name])


def _known_sum(values: Iterable[float | None]) -> float | None:
    # Not a number is not a reading.
    known = [value for value in map(finite, values) if value is not None]
    return sum(known) if known else None
