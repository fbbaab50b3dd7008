"""Whatever a ledger holds of a run: figures in its documents are the ledger's to the last digit, and schemas take them."""

from __future__ import annotations

import io
import json
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded_run import REF, RUN, SEGMENT, T0, decision, problems

from tao_flows.figures import Account, CpuTime, DomainEnergy, Figure, Measurement, Quality
from tao_flows.governance.documents import entry_of, write_energy, write_environment, write_run
from tao_flows.governance.facts import Facts, read_facts
from tao_flows.governance.violations import write_violations
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.records import DecisionRecord, HostAccount, RunKey, TaskRecord, TaskState

NAMES = st.sampled_from(["a", "b", "é", "\U0001f600"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
MICROJOULES = st.none() | st.integers(0, 2**55)
FIGURES = st.one_of(
    st.just(Figure.unknown("x")),
    st.builds(
        Figure, st.integers(0, 2**55), st.integers(0, 2**55), st.integers(0, 2**55),
        st.sampled_from([q for q in Quality if q is not Quality.UNKNOWN]), st.lists(NAMES, max_size=2).map(tuple),
    ),
)  # fmt: skip
DOMAINS = st.builds(
    DomainEnergy, NAMES, NAMES, NAMES, MICROJOULES, MICROJOULES, MICROJOULES, st.sampled_from(Quality), st.booleans()
)
MEASUREMENTS = st.builds(
    Measurement, TEXTS, st.just(T0), st.floats(0, 1e6), st.builds(CpuTime, st.none() | st.floats(0, 1e6), NAMES, st.booleans()),
    FIGURES, st.lists(DOMAINS, max_size=2).map(tuple), st.just(Account()), memory_bytes=st.none() | st.integers(0, 2**62),
)  # fmt: skip
KEYS = st.builds(
    RunKey,
    *(st.just(part) for part in (REF.engine, REF.namespace, REF.flow, REF.run_id)),
    NAMES,
    NAMES,
    st.integers(1, 2),
)
TASKS = st.builds(
    TaskRecord, KEYS, st.sampled_from([SEGMENT, RUN.segment.__class__("node-2", "b", 1, 1)]), st.sampled_from(TaskState),
    st.integers(T0, T0 + 10**10), pool=NAMES, task_label=TEXTS, ended_wall_ns=st.none() | st.integers(T0, T0 + 10**11),
    measurement=st.none() | MEASUREMENTS,
)  # fmt: skip
ACCOUNTS = st.builds(
    HostAccount, NAMES, st.builds(Account, *[MICROJOULES] * 6, st.sampled_from(Quality)), st.floats(0, 1e6), NAMES
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)
DECISIONS = st.builds(
    lambda key, at, request, answer: decision(at, key=key, request=request, answer=answer),
    KEYS, st.integers(0, 5), st.dictionaries(TEXTS, JSON, max_size=3),
    st.dictionaries(st.sampled_from(["violations", "utilisation", "penalty", "regime"]), JSON, max_size=3),
)  # fmt: skip


def written(write: Any, *arguments: Any, **options: Any) -> Any:
    file = io.BytesIO()
    write(file, *arguments, **options)
    return json.loads(file.getvalue())


def facts_of(
    ledger: Ledger, tasks: list[TaskRecord], decisions: list[DecisionRecord], accounts: list[HostAccount]
) -> Facts:
    for task in tasks:
        ledger.put_task(task)
    for each in decisions:
        ledger.put_decision(each)
    for account in accounts:
        ledger.put_account(REF, account)
    ledger.put_run(RUN)
    return read_facts(ledger, RUN, now_wall_ns=T0 + 10**12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TASKS, max_size=8), st.lists(DECISIONS, max_size=3), st.lists(ACCOUNTS, max_size=3))
def test_documents_hold_the_ledgers_digits_and_fit_their_schemas(
    tasks: list[TaskRecord], decisions: list[DecisionRecord], accounts: list[HostAccount]
) -> None:
    with tempfile.TemporaryDirectory() as directory, closing(open_ledger(f"{Path(directory)}/ledger.db")) as ledger:
        facts = facts_of(ledger, tasks, decisions, accounts)
        energy = written(write_energy, facts)
        run = written(write_run, facts, entries=0, retention="10y", left_out={})
        others = {"violations": written(write_violations, facts), "environments": written(write_environment, facts)}
        kept = list(ledger.tasks(REF))
        for name, document in {"energy": energy, "run": run, **others}.items():
            assert problems(name, document) == []
        for each in facts.decisions():
            assert problems("decision", json.loads(json.dumps(entry_of(each), allow_nan=False))) == []
        windows = {(each.host, each.window): each for each in ledger.accounts(REF)}
    segments = {segment["segment"] + str((row["task"], row["instance"], row["try_number"])): segment
                for row in energy["tasks"] for segment in row["segments"]}  # fmt: skip
    assert len(segments) == len(kept)
    for task in kept:
        place = task.segment.id + str((task.key.task, task.key.instance, task.key.try_number))
        said = segments[place]["measurement"]
        assert (said is None) == (task.measurement is None)
        if task.measurement is not None:
            figure = task.measurement.energy
            assert said["energy"]["value_uj"] == (None if figure.value_uj is None else str(figure.value_uj))
            assert [each["task_uj"] for each in said["domains"]] == [
                None if each.task_uj is None else str(each.task_uj) for each in task.measurement.domains
            ]
    known = [
        m.energy.value_uj for task in kept if (m := task.measurement) is not None and m.energy.value_uj is not None
    ]
    assert energy["tasks_total"]["value_uj"] == (str(sum(known)) if known else None)
    assert sum(int(row["energy"]["value_uj"] or 0) for row in energy["tasks"]) == sum(known)
    for window in energy["windows"]:
        account = windows[window["host"], window["window"]].account
        assert window["account"]["tasks_uj"] == (None if account.tasks_uj is None else str(account.tasks_uj))
