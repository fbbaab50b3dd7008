"""A run as a ledger has it, and the schemas of the documents that are made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tao_flows import governance
from tao_flows.figures import Account, CpuTime, DomainEnergy, Figure, Measurement, Quality
from tao_flows.governance.environment import SCHEMA
from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.records import (
    DecisionRecord,
    HostAccount,
    Incident,
    ProcessEnvironment,
    RunKey,
    RunRecord,
    Segment,
    TaskRecord,
    TaskState,
)

S = 1_000_000_000
T0 = 1_790_000_000 * S
SEGMENT = Segment("node-1", "boot", 7, 70)
REF = RunRef("airflow", "default", "scheduled__2026-11-23T00:00:00+00:00", "nightly")
RUN = RunRecord(
    REF.engine, REF.namespace, REF.flow, REF.run_id, "success", T0, SEGMENT, ended_wall_ns=T0 + 60 * S, name="amber-fox"
)  # fmt: skip
SCHEMAS = Path(governance.__file__).parent / "schema"


def task(name: str = "train", energy_uj: int | None = 1_234_567, *, ref: RunRef = REF, **more: Any) -> TaskRecord:
    key = RunKey(ref.engine, ref.namespace, ref.flow, ref.run_id, name, more.pop("instance", ""), more.pop("number", 1))
    figure = (
        Figure.unknown(name)
        if energy_uj is None
        else Figure(energy_uj, energy_uj // 2, energy_uj * 2, Quality.ATTRIBUTED, ("rapl",))
    )
    domains = (DomainEnergy("package-0", "rapl", "package", 5_000_001, 1, energy_uj, Quality.ATTRIBUTED),)
    measured = Measurement(name, T0, 10.0, CpuTime(9.5, "cgroup", covers_children=True), figure, domains, Account())
    record = TaskRecord(
        key, more.pop("segment", SEGMENT), TaskState.COMPLETED, T0 + S, pool="home", ended_wall_ns=T0 + 11 * S,
        measurement=measured,
    )  # fmt: skip
    return replace(record, **more)


def decision(number: int = 0, *, of: TaskRecord | None = None, **more: Any) -> DecisionRecord:
    request = {"task": {"key": "train", "home_pool": "home"}, "pools": [{"pool_id": "home", "energy_j": 1.5}]}
    answer = {"penalty": 1.1, "utilisation": 0.5, "regime": "standard", "violations": []}
    record = DecisionRecord(
        (of or task()).key, T0 + number, "enforce", "run", "home", "the only pool", request, answer, enforced=True
    )
    return replace(record, **more)


def account(host: str = "node-1", window: str = "w") -> HostAccount:
    lines = Account(5_000_001, None, 1_234_567, 65_433, 2_000_000, 1_700_001, Quality.MEASURED)
    return HostAccount(host, lines, 60.0, window)


def environment(segment: Segment = SEGMENT, **settings: Any) -> ProcessEnvironment:
    body = {
        "schema": SCHEMA,
        "python": {"version": "3.11.7", "implementation": "CPython"},
        "system": {"name": "Linux", "kernel": "6.1", "architecture": "x86_64"},
        "machine": {"cpu_model": "EPYC", "cpu_microarchitecture": None, "cpus": 8, "memory_bytes": "8", "gpus": []},
        "packages": [{"name": "google-auth", "version": "2.0"}],
        "container": {"hints": []},
        "code": {"commit": None},
        "sources": {"energy": ["rapl"], "cpu_time": [], "domains": ["package-0"], "estimate": None},
        "settings": [{"name": name, "value": value, "origin": "default"} for name, value in settings.items()],
    }
    return ProcessEnvironment(segment, T0, body)


def record_run(ledger: Ledger, decisions: int = 3, run: RunRecord = RUN) -> None:
    """Writes a whole run of two tasks."""
    ref = RunRef(run.engine, run.namespace, run.run_id, run.flow)
    for each in (task(ref=ref), task("score", None, ref=ref)):
        ledger.put_task(each)
    for number in range(decisions):
        ledger.put_decision(decision(number, of=task(ref=ref)))
    ledger.put_account(ref, account())
    ledger.put_incident(Incident("SOURCE_GAP", "a reading is missing", "see doctor", T0 + S, 1, run.run_id, "train"))
    ledger.put_environment(environment())
    ledger.put_run(run)


def problems(schema: str, document: Any) -> list[str]:
    """What a document has against its schema."""
    known = json.loads((SCHEMAS / f"{schema}.json").read_bytes())
    Draft202012Validator.check_schema(known)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(known).iter_errors(document)]


def documents_in(bundle: Path) -> Mapping[str, Any]:
    """The JSON documents of a bundle by name."""
    return {path.name: json.loads(path.read_bytes()) for path in bundle.glob("*.json")}
